"""What a comparison comes to: means with bootstrap intervals, paired differences, and bytes at equal quality.

Values are by image, ``[images, metrics]``, ordered so that image ``i`` is of prompt ``i % prompts`` (all prompts with
one seed, then with the next; several orders of a policy that rolls dice follow each other). Images of one prompt are
alike, so it is prompts that are resampled, with all their images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from heatkv.study.metrics import METRICS

BOOTSTRAPS = 1_000
LEVELS = 3  # of quality at which bytes are compared

Values = npt.NDArray[np.float64]


def _by_prompt(values: Values, prompts: int) -> Values:
    mean: Values = values.reshape(-1, prompts, *values.shape[1:]).mean(axis=0)
    return mean


def interval(by_prompt: Values) -> tuple[Values, Values]:
    """Ends of the 95 % percentile bootstrap interval of the mean over prompts; the same picks on every call."""
    prompts = len(by_prompt)
    picks = np.random.default_rng(0).integers(0, prompts, (BOOTSTRAPS, prompts))
    low, high = np.percentile(by_prompt[picks].mean(axis=1), [2.5, 97.5], axis=0)
    return low, high


def summarise(values: Values, agreement_IK: Values, prompts: int) -> dict[str, Any]:
    """Means over images, bit agreement also by scale, and intervals of the means."""
    low, high = interval(_by_prompt(values, prompts))
    summary: dict[str, Any] = {name: round(float(v), 4) for name, v in zip(METRICS, values.mean(0), strict=True)}
    summary["n"] = len(values)
    summary["ci95"] = {
        name: [round(float(a), 4), round(float(b), 4)] for name, a, b in zip(METRICS, low, high, strict=True)
    }
    summary["bits_per_scale"] = [round(float(v), 4) for v in agreement_IK.mean(axis=0)]
    return summary


def add_measured(summary: dict[str, Any], names: Sequence[str], values_IM: Values, prompts: int) -> None:
    """Means and intervals of further values into a summary, where they were measured."""
    if not len(values_IM):
        return
    low, high = interval(_by_prompt(values_IM, prompts))
    for name, mean, a, b in zip(names, values_IM.mean(0), low, high, strict=True):
        summary[name] = round(float(mean), 6)
        summary["ci95"][name] = [round(float(a), 6), round(float(b), 6)]


def difference(values: Values, other: Values, prompts: int) -> dict[str, Any]:
    """Mean PSNR of ``values`` minus that of ``other`` over the same images, with its paired bootstrap interval."""
    psnr = METRICS.index("psnr")
    by_prompt = _by_prompt(values[:, psnr], prompts) - _by_prompt(other[:, psnr], prompts)
    low, high = interval(by_prompt)
    return {"psnr": round(float(by_prompt.mean()), 4), "ci95": [round(float(low), 4), round(float(high), 4)]}


def iso_psnr(rows: Sequence[Mapping[str, Any]], policy: str, against: str) -> dict[str, Any] | None:
    """How many bytes ``policy`` takes for the PSNR of ``against``, at `LEVELS` levels; None where they never meet.

    PSNR is interpolated linearly over the logarithm of the measured bytes (``ratio``), or of the planned bytes as a
    share of a 16-bit cache (``share_ratio``). The levels divide evenly what both policies reach.
    """
    curves = {}
    for name in (policy, against):
        for cost in ("kv_bytes_peak", "share_16bit"):
            curves[name, cost] = _curve([row for row in rows if row["policy"] == name and "psnr" in row], cost)
    reached = [psnr for psnr, _ in curves.values()]
    if min(len(psnr) for psnr in reached) < 2:
        return None
    low, high = max(psnr[0] for psnr in reached), min(psnr[-1] for psnr in reached)
    if high <= low:
        return None
    levels = []
    for level in low + (high - low) * np.arange(1, LEVELS + 1) / (LEVELS + 1):
        at = {key: float(np.exp(np.interp(level, *curve))) for key, curve in curves.items()}
        levels.append(
            {
                "psnr": round(float(level), 3),
                "kv_bytes": round(at[policy, "kv_bytes_peak"]),
                "kv_bytes_against": round(at[against, "kv_bytes_peak"]),
                "ratio": round(at[policy, "kv_bytes_peak"] / at[against, "kv_bytes_peak"], 4),
                "share_ratio": round(at[policy, "share_16bit"] / at[against, "share_16bit"], 4),
            }
        )
    return {"policy": policy, "against": against, "levels": levels}


def _curve(rows: Sequence[Mapping[str, Any]], cost: str) -> tuple[Values, Values]:
    """PSNR, ascending, and the logarithm of the least cost that reaches it; budgets that do not pay are left out."""
    points: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: (row[cost], -row["psnr"])):
        if not points or row["psnr"] > points[-1][0]:
            points.append((row["psnr"], float(np.log(row[cost]))))
    psnr, log_cost = np.array(points).reshape(-1, 2).T
    return psnr, log_cost


def pareto(
    rows: Sequence[Mapping[str, Any]], metric: str, cost: str = "kv_bytes_peak", less: bool = False
) -> list[Mapping[str, Any]]:
    """The rows that no other row beats: none is better at as few bytes or fewer. Ascending in bytes.

    ``less``: of this metric less is better.
    """
    best: list[Mapping[str, Any]] = []
    sign = -1 if less else 1
    for row in sorted((row for row in rows if metric in row), key=lambda row: (row[cost], -sign * row[metric])):
        if not best or sign * row[metric] > sign * best[-1][metric]:
            best.append(row)
    return best


def rank_correlation(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Spearman's: 1 where two lists rank alike, 0 where one says nothing of the other. Ties stand in order."""
    ranks = [np.argsort(np.argsort(np.ravel(values), kind="stable")).astype(float) for values in (a, b)]
    return float(np.corrcoef(np.stack(ranks))[0, 1])
