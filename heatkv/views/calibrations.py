"""How far two calibrations of a model are apart: whether they rank heads alike, and plans from them keep the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from heatkv.schedule import Schedule
from heatkv.study.statistics import rank_correlation


def orders_correlation(a_SN: npt.NDArray[np.integer], b_SN: npt.NDArray[np.integer]) -> float:
    """Spearman's correlation of two rankings of the heads, mean over the sources: 1 for the same, about 0 by chance.

    Orders as `heatkv.HeadScores.orders` gives them, the first to go first. Raises ``ValueError`` for unequal shapes.
    """
    if a_SN.shape != b_SN.shape:
        raise ValueError(f"orders of {a_SN.shape} and {b_SN.shape} are of different models or sinks")
    places = zip(a_SN.argsort(axis=1), b_SN.argsort(axis=1), strict=True)
    return float(np.mean([rank_correlation(one_N, other_N) for one_N, other_N in places]))


@dataclass(frozen=True)
class PlanDifference:
    """Of the cells that a plan may drop (``prunable``): how many the two do not keep alike to the end (``differ``)."""

    differ: int
    prunable: int


def plan_difference(a: Schedule, b: Schedule) -> PlanDifference:
    """Compare what the last target still reads. Raises ``ValueError`` for schedules of unequal geometry or sinks."""
    if (a.geometry, a.sink_scales) != (b.geometry, b.sink_scales):
        raise ValueError("the schedules are of different models or sinks")
    last = len(a.geometry.scales) - 1
    differ_LHS = (a.keep(last) != b.keep(last))[:, :, a.sink_scales : last]
    return PlanDifference(int(differ_LHS.sum()), differ_LHS.size)
