"""``models``, ``generate``, ``calibrate`` and ``plan``: each takes its arguments and returns what ``--json`` prints."""

from __future__ import annotations

import argparse
import io
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from heatkv.cli.arguments import (
    check_output,
    chosen_sampling,
    load_model,
    load_scores,
    policy_asked,
    read_prompts,
    say,
)
from heatkv.files import write_atomic


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
            "cache_bytes": m.cache_bytes,
        }
        for m in list_models()
    ]  # fmt: skip
    if not arguments.json:
        for row in rows:
            about, mark = ("about ", "*") if row["download_estimated"] else ("", "")
            state = "on disk" if row["on_disk"] else f"to download: {about}{row['download_bytes'] / 1e9:.1f} GB{mark}"
            print(f"{row['id']:<16} {row['layers']:>2} x {row['heads']:>2} heads  {state:<28} {row['summary']}")
            licence = f"; licence: {row['licence']}" if row["licence"] else ""
            print(f"{'':<16} full cache of an image, 16 bits: {row['cache_bytes'] / 1e6:.0f} MB{licence}")
        if any(row["download_estimated"] for row in rows):
            print("* unverified: in part computed from the number of parameters, not read off the hub")
    return {"models": rows}


def cmd_generate(arguments: argparse.Namespace) -> dict[str, Any]:
    from PIL.PngImagePlugin import PngInfo

    from heatkv.cache.seam import ScheduleCache
    from heatkv.generate import generate
    from heatkv.models import find_folder, find_geometry
    from heatkv.policies import cache_factory
    from heatkv.schedule import Schedule

    out = check_output(arguments.out, arguments.scores, arguments.schedule)
    find_folder(arguments.model)
    policy, asked = policy_asked(arguments)
    if arguments.schedule and arguments.budget is not None:
        raise ValueError("give either --budget or --schedule, not both")
    idle = [f"--{name}" for name in ("policy", "scores", "storage") if getattr(arguments, name)]
    if idle and arguments.budget is None:
        raise ValueError(f"{' and '.join(idle)} would not count: give --budget, too (a schedule states its own)")
    schedule = Schedule.load(arguments.schedule) if arguments.schedule else None
    scores, storage, few = None, schedule.storage if schedule else "compute", ""
    budgeted: dict[str, Any] = {}
    if arguments.budget is not None:
        if policy.needs != "nothing":
            scores = load_scores(arguments)
        geometry = scores.geometry if scores is not None else find_geometry(arguments.model)
        # What is wrong is said before loading.
        cache = cache_factory(policy.name, geometry, arguments.budget, scores, **asked)()
        budgeted = {"policy": policy.name, "budget": arguments.budget, "scores": scores, **asked}
        storage = cache.schedule.storage if isinstance(cache, ScheduleCache) else "compute"
        few = f"; {cache.planned_share:.1%} counted against 16 bits" if storage != "compute" else ""
    model = load_model(arguments)
    sampling = chosen_sampling(arguments, model.sampling)
    if note := model.about().get("note"):
        say(f"note: {note}")
    result = generate(model, arguments.prompt, arguments.seed, schedule, sampling, **budgeted)
    if result.note:
        say(f"note: {result.note}")
    about = PngInfo()
    facts = {
        "prompt": result.prompt,
        "seed": result.seed,
        "model": result.model,
        "policy": result.policy,
        "budget": result.budget,
        "storage": storage,
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
        of_full = f"{result.kv_bytes_peak / max(result.kv_bytes_full, 1):.1%} of the full peak{few}"
        print(f"{out}: {result.seconds:.2f} s, KV cache {result.kv_bytes_peak} bytes ({of_full})")
    return report


def cmd_calibrate(arguments: argparse.Namespace) -> dict[str, Any]:
    from heatkv.calibration import calibrate_steps
    from heatkv.models import is_bundled
    from heatkv.models.bundled import calibration_prompts

    out = check_output(arguments.out, arguments.prompts)
    path = arguments.prompts
    if path is None and is_bundled(arguments.model):
        path = calibration_prompts()
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
    from heatkv.budget import counted_scales, least_budget
    from heatkv.models import find_geometry, find_id
    from heatkv.policies import plan
    from heatkv.scores import HeadScores, load_orders

    out = check_output(arguments.out, arguments.scores, arguments.orders)
    policy, asked = policy_asked(arguments)
    if arguments.orders:
        if not arguments.model:
            raise ValueError("--orders needs --model: orders do not say which model they are of")
        geometry = find_geometry(arguments.model)
        sinks = asked.get("sink_scales", geometry.scales.default_sinks)
        source: Any = load_orders(arguments.orders, geometry, sinks)
        model = find_id(arguments.model)
    else:
        source = HeadScores.load(arguments.scores)
        geometry, model = source.geometry, arguments.model or source.model
        if Path(model).exists():  # a folder: what it calls itself is of no account, what it can run is
            source.check_matches(find_geometry(model))
            model = source.model
    started = time.perf_counter()
    schedule = plan(source, arguments.budget, policy.name, model=model, geometry=geometry, seed=arguments.seed, **asked)
    seconds = time.perf_counter() - started
    schedule.save(out)
    scales, share = counted_scales(geometry, schedule.storage)
    if not arguments.json:
        compact = f", {schedule.storage}: {schedule.peak_share:.1%} of the bytes in 16" if schedule.encoded else ""
        print(f"{out}: {schedule.peak_tokens} of {geometry.full_peak_tokens} cached tokens at the peak{compact}")
    return {
        "model": schedule.model,
        "policy": schedule.policy,
        "budget": schedule.budget,
        "least_budget": least_budget(scales, schedule.sink_scales, share),
        "sink_scales": schedule.sink_scales,
        "storage": schedule.storage,
        "peak_tokens": schedule.peak_tokens,
        "full_peak_tokens": geometry.full_peak_tokens,
        "removed_per_source": schedule.removed_TS.tolist(),
        "seconds": round(seconds, 5),
        "out": str(out),
    }
