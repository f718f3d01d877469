"""HeatKV+ (ours): one ranking of all cells, by what a cached token of the cell is worth to the scales still to come.

HeatKV drops every source scale in equally many heads, so that a coarse scale of a few tokens goes as readily as a fine
one of thousands. Here a cell competes with every other by its importance per token; and because importance is known by
target scale, at target scale t only the scales from t on count, not those that have already read it.

Importance is one of two measures of the same calibration:

- ``mass``: the share of the head's attention that falls on the cell (what S-CAS averages);
- ``change``: how much the attention output of the layer would change without the cell, squared, as a share of the
  output of all heads. It sees what mass does not: values that agree with the rest of what the head reads can go at no
  cost, and some heads say little whatever they read.

Static, monotone and nested in the budget; calibration is HeatKV's. Provenance: this repository.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from heatkv.policies.base import PlanInput, Policy
from heatkv.policies.fill import fill
from heatkv.scores import HeadScores

IMPORTANCE = ("mass", "change")


def importance(scores: HeadScores, measure: str) -> npt.NDArray[np.float64]:
    """What source scale s is worth to target scale t in every head, ``(layers, heads, targets, sources)``."""
    if measure not in IMPORTANCE:
        raise ValueError(f"there is no importance {measure!r}; choose one of {', '.join(IMPORTANCE)}")
    if measure == "mass":
        return scores.mass_LHTS
    if scores.change_LHTS is None:
        raise ValueError(
            "these scores do not say how outputs change without a cell; calibrate again, or choose importance 'mass'"
        )
    return scores.change_LHTS


def drop_at(ask: PlanInput, importance: str = "mass") -> npt.NDArray[np.int64]:
    assert ask.scores is not None
    sinks = ask.sink_scales
    worth_NTS = _per_token(ask.scores, importance)
    ahead_NTS = np.cumsum(worth_NTS[:, ::-1], axis=1)[:, ::-1]  # to the target scales t .. K - 1 together
    return fill(lambda t: ahead_NTS[:, t, sinks:t], ask, loss=lambda t: worth_NTS[:, t, sinks:t])


def _per_token(scores: HeadScores, measure: str) -> npt.NDArray[np.float64]:
    K = len(scores.geometry.scales)
    worth_NTS: npt.NDArray[np.float64] = importance(scores, measure).reshape(-1, K, K)
    return worth_NTS / np.array(scores.geometry.scales.tokens, np.float64)


POLICY = Policy(
    name="heatkv+",
    title="HeatKV+",
    summary="Keeps the cells, of any head and scale, whose tokens are worth most to the scales still to come.",
    provenance="ours",
    needs="scores",
    drop_at=drop_at,
    options={"importance": "mass"},
)
