"""Speed and memory: the full cache against budgets, in alternation on one machine, and how far that is from its limit.

Timings do not depend on weights, so `heatkv.models.random_init` builds any preset at full size without them; its
schedules are planned from random orders. Ratios between rows come from alternating runs and hold on a machine that
does other things; absolute seconds only hold on an idle one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.flop_counter import FlopCounterMode

from heatkv.budget import check_budget
from heatkv.cache.seam import KVCache, ScheduleCache, full_cache
from heatkv.calibration import CalibratingCache
from heatkv.formats import COMPUTE, OPEN_LINE
from heatkv.generate import process_bytes_peak
from heatkv.models.base import GenerativeModel, seeded_noise
from heatkv.models.memory import check_batch
from heatkv.policies import cache_factory, variant
from heatkv.scales import Geometry
from heatkv.schedule import Schedule
from heatkv.scores import HeadScores


def cpu_attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """Operations of the CPU's fused attention, which PyTorch's counter leaves out; arguments are shapes."""
    batch, heads, queries, dim = q
    return 2 * batch * heads * queries * k[2] * (dim + v[3])


COUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: cpu_attention}
CLEAR_REFS = Path("/proc/self/clear_refs")  # "5" resets the most memory that the process has held (proc(5))
MAX_REPEATS = 1_000
PLANS = 5  # repetitions of planning, which takes milliseconds
Makers = dict[float, Callable[[], KVCache]]  # how to make a cache, by budget


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that ``work`` takes, to its end on the device."""
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


def forget_peak(device: torch.device) -> None:
    """Let `process_bytes_peak` count from here on (on Linux and CUDA; elsewhere it counts from the start)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_REFS.exists():
        with suppress(OSError):  # where it may not be written
            CLEAR_REFS.write_text("5")


def peaks(device: torch.device, dtype: torch.dtype, repeats: int = 5, side: int | None = None) -> tuple[float, float]:
    """What the device does at best, measured: operations a second of a matrix product, bytes a second of a copy."""
    side = side or (8192 if device.type == "cuda" else 1024)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.empty(max(16 * side * side, 1 << 20), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = min(timed(lambda: a @ b, device) for _ in range(repeats + 1))
    copy = min(timed(lambda: target.copy_(source), device) for _ in range(repeats + 1))
    return 2 * side**3 / product, 2 * source.numel() / copy


def bytes_read(model: GenerativeModel, schedule: Schedule | None, rows: int) -> int:
    """The least a run reads: the blocks' weights once a scale, and what is cached once a scale; of lines, once a token.

    ``schedule`` is None for the full cache.
    """
    geometry: Geometry = model.geometry
    blocks = model.transformer.blocks  # type: ignore[attr-defined]
    weights = sum(p.numel() * p.element_size() for p in blocks.parameters())
    tokens_S, own_S = np.array(geometry.scales.tokens), np.array(geometry.scales.open_tokens)
    planned, size = schedule or Schedule.full(geometry, "any"), model.dtype.itemsize
    held_S = planned.resident_bytes(size)[:, -1]
    if not geometry.scales.by_line:
        return weights * len(tokens_S) + rows * int(held_S[:-1].sum())
    # At the end of a line all of it is there; before, it was less by a token at a time.
    a_token = (OPEN_LINE if planned.encoded else COMPUTE).cell_bytes(1, geometry.head_dim, size)
    cached = int((held_S * own_S).sum()) - geometry.head_count * a_token * int((own_S * (own_S - 1) // 2).sum())
    return weights * (1 + int(own_S.sum())) + rows * cached


def prefill(model: Any, prompts: list[str], cache: KVCache) -> None:
    """All that comes before the first token of an image that is drawn token by token."""
    height, width = model.geometry.scales.picture
    nothing_BN = torch.zeros(len(prompts), height * width, dtype=torch.int64)
    next(iter(model.replay(prompts, nothing_BN, cache, model.sampling)))


def bench(
    model: GenerativeModel,
    budgets: Sequence[float],
    batches: Sequence[int],
    *,
    scores: HeadScores | None = None,
    policy: str = "heatkv",
    repeats: int = 5,
    peak_side: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure generation (with decoding) under every budget and batch, planning and calibration.

    Parameters
    ----------
    budgets
        Shares of the full peak; 1 is the full cache, which always runs, as the base.
    scores
        What to plan from; random orders if None.
    policy
        Which policy spends the budgets.
    repeats
        Runs of each kind; medians are reported.

    Returns
    -------
    dict
        ``rows`` (one a batch and budget), ``plan_seconds``, ``calibration_ratio``, the device's peaks; plain JSON.
    """
    if not 1 <= repeats <= MAX_REPEATS or not batches or min(batches) < 1:
        raise ValueError(f"give 1 to {MAX_REPEATS} repeats, and batches of 1 or more")
    for budget in budgets:
        check_budget(budget, model.geometry.scales, 0, model=model.id)
    check_batch(model, max(batches))
    source = random_orders(model.geometry) if scores is None else scores
    chosen, asked = variant(policy)

    def factory(budget: float) -> Callable[[], KVCache]:
        return cache_factory(chosen.name, model.geometry, budget, source, model=model.id, **asked)

    makers: Makers = {1.0: lambda: full_cache(model.geometry)}
    makers |= {b: factory(b) for b in budgets if b < 1}
    plan_seconds = [timed(lambda: factory(min(makers)), torch.device("cpu")) for _ in range(PLANS)]
    flops_peak, bytes_peak = peaks(model.device, model.dtype, side=peak_side)
    rows = []
    for batch in batches:
        progress(f"batch {batch}")
        rows += bench_batch(model, makers, batch, repeats, flops_peak, bytes_peak)
    progress("calibration")
    return {
        "model": model.id,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "policy": policy,
        "planned_from": "random orders" if scores is None else "scores",
        "peak_operations_per_second": flops_peak,
        "peak_bytes_per_second": bytes_peak,
        "plan_seconds": median(plan_seconds),
        "calibration_ratio": calibration_ratio(model, batches[0], repeats),
        "rows": rows,
    }


def random_orders(geometry: Geometry) -> npt.NDArray[np.int64]:
    """Head orders to plan from where nothing was measured."""
    sources = len(geometry.scales) - 1 - geometry.scales.default_sinks
    slots = np.tile(np.arange(geometry.head_count), (sources, 1))
    return np.random.default_rng(0).permuted(slots, axis=1)


def bench_batch(
    model: GenerativeModel, makers: Makers, batch: int, repeats: int, flops_peak: float, bytes_peak: float
) -> list[dict[str, Any]]:
    """A row a budget, for so many images at a time; budgets take turns, so that ratios outlive a busy machine."""
    prompts, guided = [model.examples[0]] * batch, model.sampling.rows
    by_line, size = model.geometry.scales.by_line, model.dtype.itemsize

    def run(cache: KVCache) -> None:
        *_, last = model.run(prompts, seeded_noise(range(batch)), cache, model.sampling)
        model.decode(last.latent)

    operations, memory = {}, {}
    for budget, new_cache in makers.items():  # also warms up
        cache = new_cache()
        forget_peak(model.device)
        with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
            run(cache)
        operations[budget] = counter.get_total_flops()
        memory[budget] = cache.peak_bytes, process_bytes_peak(model.device)
    seconds: dict[float, list[float]] = {budget: [] for budget in makers}
    before: dict[float, list[float]] = {budget: [] for budget in makers}
    for _ in range(repeats):
        for budget, new_cache in makers.items():
            seconds[budget].append(timed(partial(run, new_cache()), model.device))
            if by_line:
                before[budget].append(timed(partial(prefill, model, prompts, new_cache()), model.device))
    rows = []
    for budget, new_cache in makers.items():
        cache = new_cache()
        schedule = cache.schedule if isinstance(cache, ScheduleCache) else None
        # What a policy reads that decides as it goes is not known; the full cache's reading is the most.
        read = bytes_read(model, schedule, batch * guided)
        floor = max(operations[budget] / flops_peak, read / bytes_peak)
        typical = median(seconds[budget])
        row: dict[str, Any] = {
            "batch": batch,
            "budget": budget,
            "seconds": typical / batch,
            "speed_of_full": median(a / b for a, b in zip(seconds[1.0], seconds[budget], strict=True)),
            "kv_bytes_theoretical": cache.planned_bytes(batch * guided, size),
            "kv_bytes_allocated": memory[budget][0],
            "process_bytes_peak": memory[budget][1],
            "operations": operations[budget],
            "bytes_read": read,
            "share_of_peak": floor / typical,
        }
        if by_line:
            height, width = model.geometry.scales.picture
            row["prefill_seconds"] = median(before[budget])
            row["tokens_per_second"] = batch * height * width / (typical - median(before[budget]))
        rows.append(row)
    return rows


def calibration_ratio(model: GenerativeModel, batch: int, repeats: int) -> float:
    """How many generations a calibration takes."""
    prompts = [model.examples[0]] * batch

    def generate(cache: KVCache) -> None:
        for _ in model.run(prompts, seeded_noise(range(batch)), cache, model.sampling):
            pass
        if isinstance(cache, CalibratingCache):
            cache.mass_LHTS  # noqa: B018  (sums up)

    ratios = []
    for _ in range(repeats):
        plain = timed(partial(generate, full_cache(model.geometry)), model.device)
        ratios.append(timed(partial(generate, CalibratingCache(model.geometry, rows=batch)), model.device) / plain)
    return median(ratios)


def markdown(result: dict[str, Any]) -> str:
    """The measurements as a Markdown table with what they were measured on."""
    lines = [
        f"{result['model']}, {result['dtype']}, {result.get('machine', result['device'])}, "
        f"{result['threads']} threads, {result['policy']}, medians of {result['repeats']}; "
        f"planning {result['plan_seconds'] * 1e3:.1f} ms; calibration {result['calibration_ratio']:.2f} x a generation",
        "",
        f"Measured peaks: {result['peak_operations_per_second'] / 1e12:.3g} TFLOP/s (matrix product), "
        f"{result['peak_bytes_per_second'] / 1e9:.3g} GB/s (copy). Roofline: the larger of operations and bytes at "
        "these peaks, over the time.",
        "",
        "| batch | budget | s an image | against full | KV bytes | allocated | process peak | TFLOP | roofline |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    by_token = any("tokens_per_second" in row for row in result["rows"])
    if by_token:
        lines[-2:] = [lines[-2] + " prefill | tokens a second |", lines[-1] + "---|---|"]
    for row in result["rows"]:
        peak = row["process_bytes_peak"]
        lines.append(
            f"| {row['batch']} | {row['budget']:g} | {row['seconds']:.3f} | {row['speed_of_full']:.2f} x | "
            f"{row['kv_bytes_theoretical']} | {row['kv_bytes_allocated']} | "
            f"{'' if peak is None else f'{peak / 1e9:.2f} GB'} | {row['operations'] / 1e12:.4g} | "
            f"{row['share_of_peak']:.0%} |"
            + (f" {1e3 * row['prefill_seconds']:.1f} ms | {row['tokens_per_second']:.0f} |" if by_token else "")
        )
    return "\n".join(lines)
