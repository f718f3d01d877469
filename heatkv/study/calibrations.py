"""How many prompts a calibration needs, and of which kind: the same policies planned from few prompts and from more.

``python -m heatkv.cli.calibrations --calibration FILE [FILE ...] --prompts FILE --sizes 3,10,28 --out FILE.md``
calibrates on prompts of every kind, compares at every size, and writes a table and its numbers, which
``python -m heatkv.study.calibrations_figure`` draws.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from heatkv.calibration import calibrate_steps
from heatkv.models import load
from heatkv.scores import HeadScores
from heatkv.study.compare import Progress, compare
from heatkv.study.statistics import rank_correlation
from heatkv.study.tables import measure_of


def cells_correlation(scores: HeadScores, others: HeadScores) -> float:
    """Spearman's, over all cells, of what outputs lose without a cell (of mass, where that is not measured)."""
    lost = [each.mass_LHTS if each.change_LHTS is None else each.change_LHTS for each in (scores, others)]
    return rank_correlation(*(lost_LHTS.sum(2)[..., :-1] for lost_LHTS in lost))


def calibrations(
    model: str,
    kinds: Mapping[str, Sequence[str]],
    prompts: Sequence[str],
    sizes: Sequence[int],
    budgets: Sequence[float],
    policies: Sequence[str],
    *,
    repeats: int = 1,
    shards: Path | None = None,
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """``{"model", "measure", "results"}``; of every kind, size and repeat the measured ``values`` by policy and budget.

    ``kinds`` are calibration prompts by name; those that are compared on are left out of them. The first repeat takes a
    kind's first prompts, as they stand, and seed 0; every other one shuffles them, and draws, with a seed of its own.
    A size that a kind does not reach is left out for it, and so is a kind that reaches none. ``correlation`` is
    `cells_correlation` with the first kind's largest calibration of the first repeat. Raises ``ValueError`` for a size
    that no kind reaches, and what `compare` raises.
    """
    kinds = {kind: [text for text in texts if text not in prompts] for kind, texts in kinds.items()}
    most = max(map(len, kinds.values()))
    if not sizes or min(sizes) < 1 or max(sizes) > most:
        raise ValueError(f"sizes must be from 1 to {most}, the number of calibration prompts")
    if repeats < 1:
        raise ValueError(f"{repeats} repeats: at least 1 is needed")
    loaded, found = load(model, "cpu", "float32"), {}
    for kind, texts in kinds.items():
        wanted = sorted(size for size in sizes if size <= len(texts))
        for repeat in range(repeats if wanted else 0):
            order = random.Random(repeat).sample(texts, len(texts)) if repeat else texts
            for scores in calibrate_steps(loaded, order[: wanted[-1]], seed=1000 * repeat):
                progress(f"calibrated on {scores.count} prompts of {kind}, repeat {repeat}")
                if scores.count in wanted:
                    found[kind, scores.count, repeat] = scores
    first = next(iter(found))[0]
    most_of_first = max(size for kind, size, _ in found if kind == first)
    results = []
    measure = ""
    for (kind, size, repeat), scores in found.items():
        own = shards / f"{kind}-{size}-{repeat}" if shards else None
        rows = compare(
            model, prompts, scores, budgets, policies, baseline=policies[0], repetitions=1, shards=own, orders=1,
            progress=progress,
        )["rows"]  # fmt: skip
        measure = measure or measure_of(rows)
        results.append({
            "kind": kind, "prompts": size, "repeat": repeat,
            "correlation": round(cells_correlation(scores, found[first, most_of_first, 0]), 4),
            "values": [[row["policy"], row["budget"], row.get(measure)] for row in rows],
        })  # fmt: skip
    return {"model": model, "measure": measure, "results": results}


def markdown(study: Mapping[str, Any]) -> str:
    """One line a kind and size: means over the repeats, and from where to where they go."""
    results = study["results"]
    digits = 3 if study["measure"] == "forced_kl" else 2
    columns = [(policy, budget) for policy, budget, _ in results[0]["values"]]
    heads = ["kind", "prompts", *(f"`{policy}` at {budget:g}" for policy, budget in columns), "correlation of cells"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for kind, size in dict.fromkeys((each["kind"], each["prompts"]) for each in results):
        repeats = [each for each in results if (each["kind"], each["prompts"]) == (kind, size)]
        measured = [[each["values"][i][2] for each in repeats] for i in range(len(columns))]
        cells = [spread(values, digits) for values in measured]
        cells.append(spread([each["correlation"] for each in repeats], 3))
        lines.append(f"| {kind} | {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float | None], digits: int) -> str:
    """Mean, and the least and the greatest where there are several; nothing where any is missing."""
    there = [value for value in values if value is not None]
    if len(there) < len(values):
        return ""
    mean = f"{sum(there) / len(there):.{digits}f}"
    return mean if len(there) == 1 else f"{mean} ({min(there):.{digits}f} to {max(there):.{digits}f})"
