"""``compare`` and ``bench``: each takes its arguments, writes its tables and returns what ``--json`` prints."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from heatkv.cli.arguments import check_output, list_of, load_model, load_scores, read_prompts, say, variants
from heatkv.files import write_atomic


def cmd_compare(arguments: argparse.Namespace) -> dict[str, Any]:
    from heatkv.models import find_folder
    from heatkv.study.tables import markdown

    inputs = arguments.prompts, arguments.scores
    out = check_output(arguments.out, *inputs)
    tables = check_output(tables_path(out), *inputs)
    prompts = read_prompts(arguments.prompts)
    models = list_of(str, arguments.model)
    if arguments.scores and len(models) > 1:
        raise ValueError("--scores are of one model; with several, each is planned from the scores in its folder")
    for model in models:  # what is wrong with the last is said before the work on the first
        find_folder(model)
    results = [compare_model(arguments, model, prompts) for model in models]
    report = results[0] if len(results) == 1 else {"models": results}
    text = "\n\n".join(map(markdown, results))
    write_atomic(out, (json.dumps(report, indent=1) + "\n").encode())
    write_atomic(tables, with_command("Comparison", arguments, text).encode())
    if not arguments.json:
        print(text)
    return {**report, "out": str(out)}


def compare_model(arguments: argparse.Namespace, model: str, prompts: list[str]) -> dict[str, Any]:
    from heatkv.models import bundled_scores, chosen_device, chosen_dtype
    from heatkv.policies import REGISTRY
    from heatkv.scores import HeadScores
    from heatkv.study.compare import compare

    budgets = list_of(float, arguments.budgets)
    policies = list(REGISTRY) if arguments.policies == "all" else variants(arguments.policies)
    device = chosen_device(arguments.device)
    dtype = str(chosen_dtype(arguments.dtype, device)).removeprefix("torch.")
    scores = HeadScores.load(arguments.scores) if arguments.scores else bundled_scores(model)
    result = compare(
        model,
        prompts,
        scores,
        list(dict.fromkeys(budgets)),
        list(dict.fromkeys(policies)),
        baseline=arguments.baseline,
        device=str(device),
        dtype=dtype,
        repetitions=arguments.seeds,
        orders=arguments.orders_count,
        batch=arguments.batch,
        threads=arguments.threads,
        shards=arguments.shards / Path(model).absolute().name if arguments.shards else None,
        workers=arguments.workers,
        engine=arguments.engine,
        progress=say,
    )
    return {**result, "machine": machine()}


def cmd_bench(arguments: argparse.Namespace) -> dict[str, Any]:
    from heatkv.models import bundled_folders, chosen_device, random_init
    from heatkv.study.bench import bench, markdown

    out = check_output(arguments.out, arguments.scores) if arguments.out else None
    tables = check_output(tables_path(out), arguments.scores) if out else None
    budgets, batches = list_of(float, arguments.budgets), list_of(int, arguments.batch)
    if arguments.random_init:
        model: Any = random_init(arguments.model, chosen_device(arguments.device), arguments.dtype)
    else:
        model = load_model(arguments)
    scores = load_scores(arguments) if arguments.scores or arguments.model in bundled_folders() else None
    result = bench(
        model, budgets, batches, scores=scores, policy=arguments.policy, repeats=arguments.repeats, progress=say
    )
    result["machine"] = machine()
    text = markdown(result)
    if out and tables:
        write_atomic(out, (json.dumps(result, indent=1) + "\n").encode())
        write_atomic(tables, with_command("Speed and memory", arguments, text).encode())
    if not arguments.json:
        print(text)
    return result


def tables_path(out: Path) -> Path:
    """Where the tables of the results in ``out`` go: beside it, as Markdown."""
    if out.suffix == ".md":
        raise ValueError(f"{out} is for the numbers, as JSON; their tables are written beside it, as .md")
    return out.with_suffix(".md")


def with_command(title: str, arguments: argparse.Namespace, text: str) -> str:
    """``text`` as a file that says which command wrote it."""
    return f"# {title}\n\nWritten by\n\n```bash\n{arguments.typed}\n```\n\n{text}\n"


def machine() -> str:
    """The machine a number was measured on, for tables."""
    import platform

    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{os.cpu_count()} cores of {name}, torch {torch.__version__}"
