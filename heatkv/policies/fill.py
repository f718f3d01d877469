"""Static schedules from a ranking of cells: at every target scale the cells worth most stay, as many as fit.

What the static policies beside HeatKV build on. A cell is ranked anew at each target scale; what has gone stays gone.
The plan is a matter of thresholds: whether a cell is still there at a target scale depends on one number, the smallest
limit that has room for it, so that between scales a larger budget keeps all that a smaller one keeps. What goes a scale
early, to keep to the budget while layers take turns, is chosen for each budget by itself (`drop_early`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from heatkv.budget import resident_tokens
from heatkv.policies.base import PlanInput
from heatkv.scales import Geometry

Floats = npt.NDArray[np.float64]
# Target scale t -> worth of the cells (slot, source) with source scales sink_scales .. t - 1, per cached token.
Worth = Callable[[int], Floats]

RESORTS = 2


def least_limits(worth: Worth, geometry: Geometry, sink_scales: int) -> dict[int, Floats]:
    """The smallest token limit at which each cell is still cached when target scale t runs.

    Returns
    -------
    dict
        For every target scale above ``sink_scales``, ``(slots, sources)``: source scales ``sink_scales .. t - 1``. It
        never falls from one target scale to the next, but for what a line takes itself while it is drawn. The cells
        with a value of at most ``limit`` fit into ``limit``.
    """
    tokens_S = np.array(geometry.scales.tokens, np.float64)
    sink_tokens = geometry.head_count * tokens_S[:sink_scales].sum()
    limits: dict[int, Floats] = {}
    before_NS = np.zeros((geometry.head_count, 0))
    for t in range(sink_scales + 1, len(geometry.scales)):
        worth_NS = worth(t)
        size = np.broadcast_to(tokens_S[sink_scales:t], worth_NS.shape).ravel()
        before = np.pad(before_NS, ((0, 0), (0, 1))).ravel()
        needed = _cumulative(size, -worth_NS.ravel())
        # A cell that only larger limits still hold leaves its room to those that rank behind it.
        for _ in range(RESORTS):
            needed = _cumulative(size, np.maximum(needed, before))
        before_NS = np.maximum(needed, before).reshape(geometry.head_count, -1)
        limits[t] = before_NS + sink_tokens + geometry.head_count * geometry.scales.open_tokens[t]
    return limits


def _cumulative(size: Floats, key: Floats) -> Floats:
    """Tokens of a cell and of all before it, in ascending order of ``key``."""
    order = np.argsort(key, kind="stable")
    total = np.empty_like(size)
    total[order] = np.cumsum(size[order])
    return total


def fill(worth: Worth, inputs: PlanInput, loss: Worth | None = None) -> npt.NDArray[np.int64]:
    """The table of `heatkv.schedule` that keeps the cells worth most, within the budget after every layer.

    ``loss`` is what a cell is worth to target scale t alone, again per token, where ``worth`` looks further ahead.
    """
    geometry, sinks, limit = inputs.geometry, inputs.sink_scales, inputs.limit
    K = len(geometry.scales)
    late_NS = np.full((geometry.head_count, K), K, np.int64)
    for t, needed_NS in sorted(least_limits(worth, geometry, sinks).items(), reverse=True):
        late_NS[:, sinks:t][needed_NS > limit] = t
    return drop_early(late_NS.reshape(geometry.layers, geometry.heads, K), loss or worth, inputs)


def drop_early(late_LHS: npt.NDArray[np.int64], loss: Worth, inputs: PlanInput) -> npt.NDArray[np.int64]:
    """Make a plan that keeps to the limit between scales keep to it after every layer too.

    While scale t runs, the layers that it has passed already hold it, and later layers still hold the cells that it
    reads last. Where that is too much, some of those go before scale t: the ones whose loss is least, in layers where
    going helps.
    """
    L, H, K = late_LHS.shape
    sinks, tokens = inputs.sink_scales, inputs.geometry.scales.tokens
    excess_TL = resident_tokens(late_LHS, inputs.geometry.scales) - inputs.limit
    drop_at_LHS = late_LHS.copy()
    for t in range(sinks + 1, K - 1):
        if excess_TL[t].max() <= 0:
            continue
        loss_LHS = loss(t).reshape(L, H, -1)
        leaving: list[list[tuple[float, int, int, int]]] = [[] for _ in range(L)]
        for layer, head, i in np.argwhere(late_LHS[:, :, sinks:t] == t + 1).tolist():
            leaving[layer].append((float(loss_LHS[layer, head, i]), layer, head, i + sinks))
        # What goes from a layer helps all layers before it. Each layer, from the last on, picks from those after it;
        # all of them together are enough, because after the scale the cache is within the limit.
        candidates: list[tuple[float, int, int, int]] = []
        freed = 0
        for layer in range(L - 2, -1, -1):
            for cell in leaving[layer + 1]:
                heapq.heappush(candidates, cell)
            while freed < excess_TL[t, layer]:
                _, i, head, s = heapq.heappop(candidates)
                drop_at_LHS[i, head, s] = t
                freed += tokens[s]
    return drop_at_LHS
