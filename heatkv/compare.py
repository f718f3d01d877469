"""Comparison: how far images move from the full cache's under every policy and budget.

Every run of a prompt uses the same seed and the same noise, so that it differs by the cache only.
References give the numbers a meaning: another seed of the same prompt (what "a different image of the
same thing" scores), the sinks alone (everything prunable dropped), and bfloat16 against float32 with
the full cache (what no one minds).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from heatkv import metrics
from heatkv.cache import ScheduleCache, full_cache
from heatkv.models.base import GenerativeModel, Sampling, seeded_noise
from heatkv.policies import find, plan
from heatkv.schedule import Schedule, least_budget
from heatkv.scores import HeadScores

METRICS = ("psnr", "psnr_foreground", "ssim", "bit_agreement")
SEED_STRIDE = 1_000  # seed of prompt i, repetition j: i + j * SEED_STRIDE
OTHER_SEED = 500_000  # added for the "another seed" reference
BOOTSTRAPS = 1_000

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Batch:
    """Images of one run over a few prompts: pixels, bits per scale, and the costs of one image."""

    pixels: npt.NDArray[np.uint8]
    bits: tuple[npt.NDArray[np.generic], ...]
    kv_bytes_peak: int
    seconds: float


@dataclass(frozen=True)
class Sample:
    """What is compared: prompts with their seeds, in batches of ``batch`` rows."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    batch: int

    @classmethod
    def of(cls, prompts: Sequence[str], repetitions: int, batch: int) -> Sample:
        pairs = [(prompt, i + j * SEED_STRIDE) for j in range(repetitions) for i, prompt in enumerate(prompts)]
        return cls(tuple(p for p, _ in pairs), tuple(s for _, s in pairs), batch)

    def reseeded(self, offset: int) -> Sample:
        return Sample(self.prompts, tuple(seed + offset for seed in self.seeds), self.batch)


def run(model: GenerativeModel, sample: Sample, schedule: Schedule | None, sampling: Sampling) -> list[Batch]:
    """Generate the whole sample, full cache or under a schedule."""
    batches = []
    for first in range(0, len(sample.prompts), sample.batch):
        prompts = sample.prompts[first : first + sample.batch]
        seeds = sample.seeds[first : first + sample.batch]
        cache = ScheduleCache(model.geometry, schedule) if schedule else full_cache(model.geometry)
        started = time.perf_counter()
        steps = list(model.run(prompts, seeded_noise(seeds), cache, sampling))
        pixels = model.decode(steps[-1].latent).numpy()
        seconds = (time.perf_counter() - started) / len(prompts)
        bits = tuple(step.tokens.cpu().numpy() for step in steps)
        batches.append(Batch(pixels, bits, cache.peak_bytes // len(prompts), seconds))
    return batches


def score(reference: list[Batch], other: list[Batch]) -> npt.NDArray[np.float64]:
    """``METRICS`` of every image of ``other`` against the same image of ``reference``, ``[images, metrics]``."""
    rows = []
    for a, b in zip(reference, other, strict=True):
        tokens = [bits[0].size for bits in a.bits]
        for i in range(len(a.pixels)):
            agreement = metrics.bit_agreement([x[i] for x in a.bits], [x[i] for x in b.bits])
            pair = a.pixels[i], b.pixels[i]
            rows.append(
                [
                    metrics.psnr(*pair),
                    metrics.foreground_psnr(*pair),
                    metrics.ssim(*pair),
                    metrics.mean_agreement(agreement, tokens),
                ]
            )
    return np.array(rows)


def summarise(values: npt.NDArray[np.float64], prompts: int) -> dict[str, Any]:
    """Means over images with bootstrap confidence intervals (prompts are resampled, with all their seeds)."""
    by_prompt = values.reshape(-1, prompts, len(METRICS)).mean(0)
    picks = np.random.default_rng(0).integers(0, prompts, (BOOTSTRAPS, prompts))
    low, high = np.percentile(by_prompt[picks].mean(1), [2.5, 97.5], axis=0)
    summary: dict[str, Any] = {name: round(float(v), 4) for name, v in zip(METRICS, values.mean(0), strict=True)}
    summary["n"] = len(values)
    summary["ci95"] = {
        name: [round(float(a), 4), round(float(b), 4)] for name, a, b in zip(METRICS, low, high, strict=True)
    }
    return summary


def mean_of(batches: list[Batch], field: str) -> float:
    weights = [len(b.pixels) for b in batches]
    return float(np.average([getattr(b, field) for b in batches], weights=weights))


def check_request(model: GenerativeModel, prompts: Sequence[str], scores: HeadScores, policies: Sequence[str]) -> None:
    """Refuse unusable prompts, unknown policies, and evaluation on calibration prompts."""
    if not prompts:
        raise ValueError("there are no prompts to compare on")
    for prompt in prompts:
        model.check_prompt(prompt)
    shared = sorted(set(prompts) & set(scores.prompts))
    if shared:
        raise ValueError(
            f"{len(shared)} prompts were used for calibration, first {shared[0]!r}: compare on other prompts"
        )
    for policy in policies:
        find(policy)


def compare(
    model: GenerativeModel,
    prompts: Sequence[str],
    scores: HeadScores,
    budgets: Sequence[float],
    policies: Sequence[str],
    *,
    low_precision: GenerativeModel | None = None,
    repetitions: int = 2,
    orders: int = 5,
    sink_scales: int = 3,
    batch: int = 8,
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Compare policies at budgets against the full cache.

    Parameters
    ----------
    prompts
        Evaluation prompts; none of them may be one of the calibration's.
    low_precision
        The same model in bfloat16, for the ``dtype_noise`` reference; left out if None.
    repetitions
        Seeds a prompt.
    orders
        How many random orders the ``random`` policy (any seeded one) is averaged over.

    Returns
    -------
    dict
        ``rows`` (one a policy and budget), ``references``, and the settings; plain JSON values.
    """
    check_request(model, prompts, scores, policies)
    sampling = model.sampling
    sample = Sample.of(prompts, repetitions, batch)
    plans = {
        (policy, budget): [
            plan(scores, budget, policy, sink_scales, seed=seed) for seed in range(orders if find(policy).seeded else 1)
        ]
        for policy in policies
        for budget in budgets
    }
    sinks_only = plan(scores, least_budget(model.geometry.scales, sink_scales), "heatkv", sink_scales)

    progress(f"full cache, {len(sample.prompts)} images")
    full = run(model, sample, None, sampling)
    references = {}
    progress("reference: another seed")
    references["other_seed"] = score(full, run(model, sample.reseeded(OTHER_SEED), None, sampling))
    progress("reference: sinks only")
    references["sinks_only"] = score(full, run(model, sample, sinks_only, sampling))
    if low_precision is not None:
        progress("reference: bfloat16")
        references["dtype_noise"] = score(full, run(low_precision, sample, None, sampling))
    rows = []
    for (policy, budget), schedules in plans.items():
        progress(f"{policy} at {budget:g}")
        runs = [run(model, sample, schedule, sampling) for schedule in schedules]
        values = np.concatenate([score(full, r) for r in runs])
        rows.append(
            {
                "policy": policy,
                "budget": budget,
                **summarise(values, len(prompts)),
                "kv_bytes_peak": max(b.kv_bytes_peak for r in runs for b in r),
                "seconds": round(float(np.mean([mean_of(r, "seconds") for r in runs])), 4),
            }
        )
    return {
        "model": model.id,
        "prompts": len(prompts),
        "seeds": repetitions,
        "random_orders": orders,
        "sink_scales": sink_scales,
        "calibration_prompts": scores.count,
        "kv_bytes_full": max(b.kv_bytes_peak for b in full),
        "seconds_full": round(mean_of(full, "seconds"), 4),
        "rows": rows,
        "references": {name: summarise(values, len(prompts)) for name, values in references.items()},
    }


def markdown_table(result: dict[str, Any]) -> str:
    """The comparison as a Markdown table, references first."""
    names = {"other_seed": "another seed", "sinks_only": "sinks only", "dtype_noise": "bf16 against fp32"}
    lines = [
        "| policy | budget | PSNR (95 % CI) | foreground PSNR | SSIM | bit agreement | peak KV bytes |",
        "|---|---|---|---|---|---|---|",
    ]

    def line(label: str, budget: str, row: dict[str, Any], size: str) -> str:
        low, high = row["ci95"]["psnr"]
        return (
            f"| {label} | {budget} | {row['psnr']:.2f} ({low:.2f} to {high:.2f}) | {row['psnr_foreground']:.2f} | "
            f"{row['ssim']:.3f} | {row['bit_agreement']:.3f} | {size} |"
        )

    for key, row in result["references"].items():
        lines.append(line(f"*{names[key]}*", "", row, ""))
    for row in sorted(result["rows"], key=lambda r: (-r["budget"], -r["psnr"])):
        lines.append(line(row["policy"], f"{row['budget']:g}", row, f"{row['kv_bytes_peak']}"))
    return "\n".join(lines)
