"""How many prompts a calibration needs: the same policies planned from its first few prompts and from more.

``python -m heatkv.cli.calibrations --calibration FILE --prompts FILE --sizes 3,10,30 --out FILE.md`` calibrates once,
compares at every size, and writes a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from heatkv.calibration import calibrate_steps
from heatkv.models import load
from heatkv.scores import HeadScores
from heatkv.study.compare import Progress, compare
from heatkv.study.statistics import rank_correlation


def cells_correlation(scores: HeadScores, others: HeadScores) -> float:
    """Spearman's, over all cells, of what outputs lose without a cell (of mass, where that is not measured)."""
    lost = [each.mass_LHTS if each.change_LHTS is None else each.change_LHTS for each in (scores, others)]
    return rank_correlation(*(lost_LHTS.sum(2)[..., :-1] for lost_LHTS in lost))


def calibrations(
    model: str,
    calibration: Sequence[str],
    prompts: Sequence[str],
    sizes: Sequence[int],
    budgets: Sequence[float],
    policies: Sequence[str],
    *,
    shards: Path | None = None,
    progress: Progress = lambda line: None,
) -> list[dict[str, Any]]:
    """Of every size ``{"prompts", "correlation", "rows"}``: with the largest one's cells, and `compare`'s rows.

    Raises ``ValueError`` for sizes that the calibration prompts do not reach, and what `compare` raises.
    """
    if not sizes or min(sizes) < 1 or max(sizes) > len(calibration):
        raise ValueError(f"sizes must be from 1 to {len(calibration)}, the number of calibration prompts")
    found = {}
    for scores in calibrate_steps(load(model, "cpu", "float32"), calibration[: max(sizes)]):
        progress(f"calibrated on {scores.count} prompts")
        found[scores.count] = scores
    results = []
    for size in sorted(sizes):
        rows = compare(
            model, prompts, found[size], budgets, policies, baseline=policies[0], repetitions=1, shards=shards,
            orders=1, progress=progress,
        )["rows"]  # fmt: skip
        results.append(
            {"prompts": size, "correlation": cells_correlation(found[size], found[max(sizes)]), "rows": rows}
        )
    return results


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """One line a size: PSNR in dB of every policy and budget."""
    columns = [(row["policy"], row["budget"]) for row in results[0]["rows"]]
    heads = ["prompts", *(f"`{policy}` at {budget:g}" for policy, budget in columns), "rank correlation of cells"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for each in results:
        cells = (f"{row['psnr']:.2f}" if "psnr" in row else "" for row in each["rows"])
        lines.append(f"| {each['prompts']} | {' | '.join(cells)} | {each['correlation']:.3f} |")
    return "\n".join(lines)
