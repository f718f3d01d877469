"""The command line: ``heatkv models | generate | calibrate | plan | compare | bench | app`` (``python -m heatkv`` too).

A bad argument or file ends with exit code 2 and one line on stderr. With ``--json``, stdout holds one
JSON object and nothing else; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from heatkv import __version__
from heatkv.files import check_writable, one_line, program_root, read_bytes, shown, write_atomic
from heatkv.models.base import Sampling
from heatkv.threads import keep_to_own_cores

MAX_PROMPTS = 100_000
MAX_PROMPTS_BYTES = 16 << 20


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {one_line(message, 300)} (see {self.prog} --help)\n")


def say(text: str) -> None:
    if sys.stderr is not None:  # it is None where the program was started without
        print(text, file=sys.stderr, flush=True)


def read_prompts(path: Path) -> list[str]:
    """One prompt a line; empty lines are skipped."""
    data = read_bytes(path, limit=MAX_PROMPTS_BYTES, error=ValueError)
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file of prompts: {error}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise ValueError(f"{path} holds {len(prompts)} prompts: write 1 to {MAX_PROMPTS}, one a line")
    return prompts


def variants(text: str) -> list[str]:
    """Policies with commas between; a part with an equals sign and no colon goes on with the options before it."""
    found: list[str] = []
    for part in list_of(str, text):
        if found and "=" in part and ":" not in part:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def list_of(kind: type, text: str) -> list[Any]:
    """The values of a list with commas between; ``ValueError`` where there is none."""
    try:
        values = [kind(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ValueError(f"{shown(text)} is not a comma-separated list of {kind.__name__} values") from error
    if not values:
        raise ValueError(f"{shown(text)} lists nothing: give one {kind.__name__} value or several with commas between")
    return values


def cmd_models(arguments: argparse.Namespace) -> dict[str, Any]:
    from heatkv.models import download, list_models

    if arguments.download:
        download(arguments.download, say)

    rows: list[dict[str, Any]] = [
        {
            "id": m.id, "family": m.family, "layers": m.geometry.layers, "heads": m.geometry.heads,
            "scales": [list(size) for size in m.geometry.scales], "on_disk": m.on_disk, "summary": m.summary,
            "sampling": m.sampling and asdict(m.sampling), "sampling_source": m.sampling_source,
            "licence": m.licence, "download_bytes": m.download_bytes, "download_estimated": m.download_estimated,
        }
        for m in list_models()
    ]  # fmt: skip
    if not arguments.json:
        for row in rows:
            about, mark = ("about ", "*") if row["download_estimated"] else ("", "")
            state = "on disk" if row["on_disk"] else f"to download: {about}{row['download_bytes'] / 1e9:.1f} GB{mark}"
            print(f"{row['id']:<15} {row['layers']:>2} x {row['heads']:>2} heads  {state:<28} {row['summary']}")
            if row["licence"]:
                print(f"{'':<15} licence: {row['licence']}")
        if any(row["download_estimated"] for row in rows):
            print("* unverified: in part computed from the number of parameters, not read off the hub")
    return {"models": rows}


def load_model(arguments: argparse.Namespace) -> Any:
    from heatkv.models import load

    return load(arguments.model, arguments.device, arguments.dtype)


def load_scores(arguments: argparse.Namespace) -> Any:
    from heatkv.models import bundled_scores
    from heatkv.scores import HeadScores

    return HeadScores.load(arguments.scores) if arguments.scores else bundled_scores(arguments.model)


def cmd_generate(arguments: argparse.Namespace) -> dict[str, Any]:
    from PIL.PngImagePlugin import PngInfo

    from heatkv.generate import generate
    from heatkv.models import find_folder, find_geometry
    from heatkv.policies import cache_factory, find
    from heatkv.schedule import Schedule

    out = check_writable(arguments.out)
    find_folder(arguments.model)
    if arguments.schedule and arguments.budget is not None:
        raise ValueError("give either --budget or --schedule, not both")
    if arguments.scores and arguments.budget is None:
        raise ValueError("--scores are what a budget is planned from: give --budget, too")
    policy = find(arguments.policy)
    schedule = Schedule.load(arguments.schedule) if arguments.schedule else None
    scores = None
    if arguments.budget is not None:
        if policy.needs != "nothing":
            scores = load_scores(arguments)
        geometry = scores.geometry if scores is not None else find_geometry(arguments.model)
        cache_factory(arguments.policy, geometry, arguments.budget, scores)  # what is wrong is said before loading
    model = load_model(arguments)
    sampling = chosen_sampling(arguments, model.sampling)
    if note := model.about().get("note"):
        say(f"note: {note}")
    result = generate(
        model, arguments.prompt, arguments.seed, schedule, sampling, policy=arguments.policy, budget=arguments.budget,
        scores=scores,
    )  # fmt: skip
    if result.note:
        say(f"note: {result.note}")
    about = PngInfo()
    facts = {
        "prompt": result.prompt,
        "seed": result.seed,
        "model": result.model,
        "policy": result.policy,
        "budget": result.budget,
        "sampling": asdict(sampling),
    }
    for key, value in facts.items():
        about.add_itxt(key, str(value))
    buffer = io.BytesIO()
    result.image.save(buffer, "png", pnginfo=about)
    write_atomic(out, buffer.getvalue())
    report = {
        **facts,
        "kv_bytes_peak": result.kv_bytes_peak,
        "kv_bytes_theoretical": result.kv_bytes_theoretical,
        "kv_bytes_full": result.kv_bytes_full,
        "process_bytes_peak": result.process_bytes_peak,
        "seconds": round(result.seconds, 4),
        "scales": [
            {"scale": e.scale, "tokens": e.tokens, "kv_bytes": e.kv_bytes, "seconds": round(e.seconds, 4)}
            for e in result.scales
        ],
        "note": result.note,
        "out": str(out),
    }
    if not arguments.json:
        share = result.kv_bytes_peak / result.kv_bytes_full
        print(f"{out}: {result.seconds:.2f} s, KV cache {result.kv_bytes_peak} bytes ({share:.1%} of the full peak)")
    return report


def cmd_calibrate(arguments: argparse.Namespace) -> dict[str, Any]:
    from heatkv.calibration import calibrate_steps
    from heatkv.models import is_bundled

    out = check_writable(arguments.out)
    path = arguments.prompts
    if path is None and is_bundled(arguments.model):
        path = program_root() / "assets" / "prompts" / "calibration.txt"
    prompts = read_prompts(path) if path else []
    model = load_model(arguments)
    prompts = prompts or list(model.examples)
    started = time.perf_counter()
    scores = None
    sampling = chosen_sampling(arguments, model.sampling)
    for scores in calibrate_steps(model, prompts, arguments.seed, sampling, arguments.batch):
        say(f"calibrated {scores.count} of {len(prompts)} prompts")
    assert scores is not None
    scores.save(out)
    seconds = time.perf_counter() - started
    if not arguments.json:
        print(f"{out}: {scores.count} prompts in {seconds:.1f} s")
    return {
        "model": model.id,
        "prompts": scores.count,
        "seed": arguments.seed,
        "seconds": round(seconds, 3),
        "out": str(out),
    }


def cmd_plan(arguments: argparse.Namespace) -> dict[str, Any]:
    from heatkv.models import find_geometry
    from heatkv.policies import plan
    from heatkv.schedule import least_budget
    from heatkv.scores import HeadScores, load_orders

    out = check_writable(arguments.out)
    if arguments.orders:
        if not arguments.model:
            raise ValueError("--orders needs --model: orders do not say which model they are of")
        geometry = find_geometry(arguments.model)
        sinks = geometry.scales.default_sinks if arguments.sink_scales is None else arguments.sink_scales
        source: Any = load_orders(arguments.orders, geometry, sinks)
        model = arguments.model
    else:
        source = HeadScores.load(arguments.scores)
        geometry, model = source.geometry, source.model
    started = time.perf_counter()
    schedule = plan(
        source, arguments.budget, arguments.policy, arguments.sink_scales,
        model=model, geometry=geometry, seed=arguments.seed, storage=arguments.storage,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    schedule.save(out)
    if not arguments.json:
        compact = f", {schedule.storage}: {schedule.peak_share:.1%} of the bytes in 16" if schedule.encoded else ""
        print(f"{out}: {schedule.peak_tokens} of {geometry.full_peak_tokens} cached tokens at the peak{compact}")
    return {
        "model": schedule.model,
        "policy": schedule.policy,
        "budget": schedule.budget,
        "least_budget": least_budget(geometry.scales, schedule.sink_scales),
        "sink_scales": schedule.sink_scales,
        "storage": schedule.storage,
        "peak_tokens": schedule.peak_tokens,
        "full_peak_tokens": geometry.full_peak_tokens,
        "removed_per_source": schedule.removed_TS.tolist(),
        "seconds": round(seconds, 5),
        "out": str(out),
    }


def cmd_compare(arguments: argparse.Namespace) -> dict[str, Any]:
    from heatkv.models import find_folder
    from heatkv.study.compare import markdown

    out = check_writable(arguments.out)
    tables = check_writable(tables_path(out))
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

    out = check_writable(arguments.out) if arguments.out else None
    tables = check_writable(tables_path(out)) if out else None
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


def sampling_options(parser: OneLineParser) -> None:
    """How tokens are drawn; what is left out is the model's own setting (`models --json` lists it, and whose it is)."""
    parser.add_argument(
        "--guidance",
        help="of all scales, or a list of one a scale (Infinity); VAR: of the last scale, published cfg + 1",
    )
    parser.add_argument("--temperature", type=float, help="divides the logits (published as tau)")
    parser.add_argument("--top-k", type=int, help="values that may be drawn, 0: all (no use for the bits of Infinity)")
    parser.add_argument("--top-p", type=float, help="probability that the values that may be drawn make up, 0: all")
    parser.add_argument("--negative", help="a prompt to move away from (Infinity)")
    parser.add_argument("--smooth", action="store_true", default=None, help="mixtures of codes (VAR's more_smooth)")


def chosen_sampling(arguments: argparse.Namespace, usual: Sampling) -> Sampling:
    """A model's own way to draw with what the command line says otherwise. Raises ``ValueError``."""
    names = ("temperature", "top_k", "top_p", "negative", "smooth")
    stated = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.guidance is not None:
        strengths = list_of(float, arguments.guidance)
        one, each = (strengths[0], ()) if len(strengths) == 1 else (usual.guidance, tuple(strengths))
        stated |= {"guidance": one, "guidance_by_scale": each}
    return replace(usual, **stated)


def make_parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m heatkv", description="Head-specific KV-cache budgets for visual autoregressive models."
    )
    parser.add_argument("--version", action="version", version=f"heatkv {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Any, what: str, *, model: bool = True) -> OneLineParser:
        sub: OneLineParser = commands.add_parser(name, help=what, description=what)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
        if model:
            sub.add_argument("--model", default="pocket", help="model name (see `models`) or folder")
            sub.add_argument("--device", help="cpu, cuda, mps (default: the fastest there is)")
            sub.add_argument("--dtype", choices=["float32", "bfloat16"], help="compute dtype (default: by device)")
        return sub

    sub = command("models", cmd_models, "list the models", model=False)
    sub.add_argument("--download", metavar="NAME", help="fetch a published model's files from its hub first")

    sub = command("generate", cmd_generate, "generate one image")
    sub.add_argument("--prompt", required=True)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument(
        "--budget", type=float, help="share of the full cache's peak, for example 0.3 (default: full cache)"
    )
    sub.add_argument("--policy", default="heatkv", help="how the budget is spent (default: heatkv)")
    sub.add_argument("--scores", type=Path, help="calibration to plan from (default: the bundled one)")
    sub.add_argument("--schedule", type=Path, help="a schedule file instead of a budget")
    sampling_options(sub)
    sub.add_argument("--out", type=Path, required=True, help="PNG file to write")

    sub = command("calibrate", cmd_calibrate, "measure where every head looks")
    sub.add_argument(
        "--prompts",
        type=Path,
        help="text file, one prompt a line (default: the bundled ones, or a published model's examples)",
    )
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--batch", type=int, default=1, help="prompts at a time")
    sampling_options(sub)
    sub.add_argument("--out", type=Path, required=True, help="scores file to write (safetensors)")

    sub = command("plan", cmd_plan, "plan a schedule for a budget", model=False)
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--scores", type=Path, help="scores file of `calibrate`")
    source.add_argument("--orders", type=Path, help="head orders in the published JSON format (needs --model)")
    sub.add_argument("--model", help="model of the orders, for example infinity-2b; its weights are not needed")
    sub.add_argument("--budget", type=float, required=True)
    sub.add_argument("--policy", default="heatkv")
    sub.add_argument("--sink-scales", type=int, help="leading segments that always stay (default: 3; by lines 1)")
    sub.add_argument("--storage", help="how cells are stored, such as int8 or int4 (default: as the policy does)")
    sub.add_argument("--seed", type=int, default=0, help="for policies that roll dice")
    sub.add_argument("--out", type=Path, required=True, help="schedule file to write (JSON)")

    sub = command("compare", cmd_compare, "compare policies with the full cache over many prompts", model=False)
    sub.add_argument("--model", default="pocket", help="model name or folder, or several with commas between")
    sub.add_argument("--device", help="cpu, cuda, mps (default: the fastest there is)")
    sub.add_argument("--dtype", choices=["float32", "bfloat16"], help="compute dtype (default: by device)")
    sub.add_argument(
        "--prompts", type=Path, required=True, help="text file, one prompt a line; none used for calibration"
    )
    sub.add_argument("--budgets", default="0.5,0.3,0.2,0.1")
    sub.add_argument(
        "--policies", default="all",
        help="names with commas between, options behind a colon: heatkv:sinks=1,storage=int8,h2o (default: all)",
    )  # fmt: skip
    sub.add_argument("--baseline", default="heatkv", help="the policy that the others are compared with")
    sub.add_argument("--scores", type=Path, help="calibration to plan from (default: the bundled one)")
    sub.add_argument("--seeds", type=int, default=2, help="seeds a prompt")
    sub.add_argument(
        "--random-orders", dest="orders_count", type=int, default=5, help="orders that `random` is averaged over"
    )
    sub.add_argument("--batch", type=int, default=8, help="images at a time")
    sub.add_argument("--shards", type=Path, help="folder for finished pieces: run again to go on where it ended")
    sub.add_argument("--workers", type=int, default=1, help="processes on this machine")
    sub.add_argument("--threads", type=int, default=1, help="threads of each process")
    sub.add_argument("--engine", default="local", help="local, or ray: the machines of a Ray cluster")
    sub.add_argument("--out", type=Path, required=True, help="results file to write (JSON; tables beside it, as .md)")

    sub = command("bench", cmd_bench, "measure speed and memory, full cache against budgets")
    sub.add_argument("--random-init", action="store_true", help="a published model's full size with random weights")
    sub.add_argument("--budgets", default="1,0.5,0.3,0.1", help="shares of the full peak")
    sub.add_argument("--policy", default="heatkv", help="how budgets are spent (default: heatkv)")
    sub.add_argument("--batch", default="1,2,4,8", help="images at a time")
    sub.add_argument("--repeats", type=int, default=5)
    sub.add_argument("--scores", type=Path, help="calibration to plan from (default: bundled, or random orders)")
    sub.add_argument("--out", type=Path, help="results file to write (JSON; tables beside it, as .md)")

    commands.add_parser("app", help="serve the explorer in the browser", add_help=False)
    return parser


def start_app(arguments: Sequence[str]) -> int:
    """The explorer, which a checkout has beside the library and a wheel inside it."""
    missing = [name for name in ("gradio", "plotly") if find_spec(name) is None]
    if missing:
        say(f"error: the app needs {' and '.join(missing)}: pip install 'heatkv[app]'")
        return 2
    sys.path.insert(0, str(program_root()))
    from app.__main__ import main as serve

    serve(list(arguments))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["app"]:  # it has a parser of its own, and imports what no other command needs
            return start_app(argv[1:])
        arguments = make_parser().parse_args(argv)
        arguments.typed = shlex.join(["heatkv", *argv])
    except SystemExit as end:
        return int(end.code or 0)
    keep_to_own_cores()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of libraries, beside the one line that says what is wrong
    try:
        if sys.stdout is None:
            raise OSError("the standard output is closed")
        report = arguments.run(arguments)
        if arguments.json:
            print(json.dumps(report))
        sys.stdout.flush()
    except KeyboardInterrupt:
        say("cancelled")
        return 130
    except Exception as error:
        forget_output()
        say(f"error: {one_line(words_for(error))}")
        return 2 if is_foreseen(error) else 1
    return 0


def is_foreseen(error: Exception) -> bool:
    """Whether an error is of the arguments, a file or the machine; anything else is a mistake in this program."""
    return isinstance(error, (ValueError, OSError, MemoryError)) or out_of_memory(error)


def out_of_memory(error: Exception) -> bool:
    """PyTorch says so with errors of several kinds."""
    text = str(error)
    return isinstance(error, RuntimeError) and ("allocate memory" in text or "out of memory" in text)


def words_for(error: Exception) -> str:
    """One line on an error for people."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError) or out_of_memory(error):
        return "there is not enough memory for this: choose a smaller batch, size or model"
    if not is_foreseen(error):
        return f"this program made a mistake ({type(error).__name__}: {error}); please report it with the command"
    return str(error) or type(error).__name__


def forget_output() -> None:
    """Drop what could not be written, which Python would try again, and report, at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
