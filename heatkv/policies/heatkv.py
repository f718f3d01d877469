"""HeatKV (arXiv 2605.14877): every prunable scale is dropped in equally many heads, those that need it least.

How many heads follows from the budget and the incoming cache alone; which heads, from the order of the source scale.
That settles the cache between scales. Within a scale, layers that have run already hold the new scale's cells while
later layers still hold what they are about to lose; where that exceeds the budget, cells of the latest layers go before
the scale begins, as few as possible.

The paper is about scales. On lines nothing changes but what has to fit: the line that is being drawn is cache itself,
so that ``c_k`` counts it, and cells go between lines, so that nothing has to go early.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from heatkv.budget import resident_tokens, token_limit
from heatkv.policies.base import PlanInput, Policy
from heatkv.scales import Geometry


@dataclass(frozen=True, eq=False)
class Removals:
    """The greedy schedule before it is folded into one number per cell.

    Parameters
    ----------
    late_LHS
        First target scale that would do without the cell if only the cache between scales counted (K: none).
    trigger_LHS
        Layer whose overflow makes the cell go one scale earlier than that; -1 where it does not.
    """

    late_LHS: npt.NDArray[np.int64]
    trigger_LHS: npt.NDArray[np.int64]

    @property
    def drop_at_LHS(self) -> npt.NDArray[np.int64]:
        return self.late_LHS - (self.trigger_LHS >= 0)


def heads_to_drop(budget: float, geometry: Geometry, sink_scales: int) -> npt.NDArray[np.int64]:
    """Heads in which every prunable scale is absent from the cache that target scale t starts with, ``(targets,)``.

    Zero while everything fits, then growing with t.
    """
    slots, scales = geometry.head_count, geometry.scales
    sink_tokens, per_slot = sum(scales.tokens[:sink_scales]), budget * scales.full_peak
    count_T = np.zeros(len(scales), np.int64)
    for t in range(sink_scales + 1, len(scales)):
        incoming = scales.bounds[t][0]
        if scales.by_line:
            over = slots * (incoming + scales.open_tokens[t]) - token_limit(budget, geometry)
            count_T[t] = max(0, -(-over // (incoming - sink_tokens)))
        elif incoming > per_slot:
            # The published form, to the last bit: the ceiling depends on how the quotient is rounded.
            count_T[t] = min(np.ceil(slots * (incoming - per_slot) / (incoming - sink_tokens)), slots)
    # The last line is shorter by a token, but what is gone stays gone.
    growing_T: npt.NDArray[np.int64] = np.maximum.accumulate(count_T)
    return growing_T


def removals(orders_SN: npt.NDArray[np.integer], budget: float, geometry: Geometry, sink_scales: int) -> Removals:
    """Plan HeatKV's strict schedule: the budget holds after every layer.

    Parameters
    ----------
    orders_SN
        Slots of every prunable source scale, least needed first, as `heatkv.scores.HeadScores.orders` gives them.
    budget, geometry, sink_scales
        A feasible combination, see `heatkv.budget.check_budget`.
    """
    L, H, K = geometry.layers, geometry.heads, len(geometry.scales)
    count_T = heads_to_drop(budget, geometry, sink_scales)
    limit = token_limit(budget, geometry)

    rank_SN = np.empty(orders_SN.shape, np.int64)
    np.put_along_axis(rank_SN, orders_SN, np.arange(L * H)[None], axis=1)
    # A cell goes with the first count above its rank, but not before it could have been stored.
    source_S = np.arange(sink_scales, K - 1)
    late_SN = np.maximum(np.searchsorted(count_T, rank_SN, side="right"), source_S[:, None] + 1)
    late_LHS = np.full((L, H, K), K, np.int64)
    late_LHS[:, :, sink_scales : K - 1] = late_SN.T.reshape(L, H, -1)
    excess_TL = resident_tokens(late_LHS, geometry.scales) - limit

    # Cells whose last reader is scale t may have to go before it. The cells of the latest layers go first, in a layer
    # those of the latest source scale, in a scale those needed least.
    s, slot = np.nonzero((late_SN < K) & (late_SN > source_S[:, None] + 1))
    layer, last_reader = slot // H, late_SN[s, slot] - 1
    queue = np.lexsort((rank_SN[s, slot], -s, -layer, last_reader))
    starts_T = np.searchsorted(last_reader[queue], np.arange(K + 1))
    tokens_S = np.array(geometry.scales.tokens[sink_scales : K - 1], np.int64)
    trigger_SN = np.full(late_SN.shape, -1, np.int64)
    for t in range(sink_scales + 1, K - 1):
        cells = queue[starts_T[t] : starts_T[t + 1]]
        freed = np.cumsum(tokens_S[s[cells]])
        # Layer l is over by excess_TL[t, l] and calls for the shortest queue front that frees as much. That front lies
        # in layers after l, where the excess counts the cells still: without them the cache is at most as large as
        # after this scale, and that is within the limit.
        front_L = np.where(excess_TL[t] > 0, np.searchsorted(freed, excess_TL[t]) + 1, 0)
        gone_L = np.maximum.accumulate(front_L)
        early = cells[: gone_L[-1]]
        trigger_SN[s[early], slot[early]] = np.searchsorted(gone_L, np.arange(len(early)), side="right")
    trigger_LHS = np.full((L, H, K), -1, np.int64)
    trigger_LHS[:, :, sink_scales : K - 1] = trigger_SN.T.reshape(L, H, -1)
    return Removals(late_LHS, trigger_LHS)


def strict_greedy(orders_SN: npt.NDArray[np.integer], inputs: PlanInput) -> npt.NDArray[np.int64]:
    """HeatKV's table for any ranking of the heads; what the policies that differ only in the ranking build on."""
    return removals(orders_SN, inputs.budget, inputs.geometry, inputs.sink_scales).drop_at_LHS


def drop_at(inputs: PlanInput) -> npt.NDArray[np.int64]:
    assert inputs.orders_SN is not None
    return strict_greedy(inputs.orders_SN, inputs)


POLICY = Policy(
    name="heatkv",
    title="HeatKV",
    summary="Drops every scale in equally many heads: in those whose later attention falls on it least (S-CAS).",
    provenance="paper",
    needs="orders",
    drop_at=drop_at,
)
