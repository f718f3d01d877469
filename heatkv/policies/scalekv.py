"""ScaleKV (arXiv 2505.19602): layers that read history broadly (drafters) hold many tokens, the others (refiners) few.

Calibrates, offline and from the same scores as HeatKV, which layers are drafters at which scale: those of the lowest
attention selectivity, that is attention on the scale itself times the mean of the highest attention values on history,
as a z-score within the scale. Refiners hold ``600 - 70 k`` of 650 tokens at the k-th compressed scale, as the paper's
text has it for 2B at 10 %, and drafters share what that leaves of the uniform budget. After a layer has attended, the
queries at the centres of a grid of patches of the newest map observe: their tokens stay, and those that they attend to
most after max-pooling along the sequence.

Re-implementation. One thing is an approximation: the highest attention values on history are taken per source scale, as
if a head's attention were even within one (a calibration records no more), over the ``TOP`` best tokens. What the paper
leaves open is ours:

- one in ``DRAFTER_EVERY`` (layer, scale) pairs is a drafter, and at least one a scale on average;
- a refiner keeps at least a quarter of the uniform budget. The tables in the published code follow no such line: of 650
  tokens at 10 %, refiners hold 632, 594, 526, 420, 465 (2B) and 629, 584, 503, 374, 200 (8B);
- the budget holds after every layer: a layer that will hold less after the next scale gives way one scale earlier;
- the observation window is 4 x 4 patches, fewer where that is more than a quarter of what a head may keep.

``scoring="published"`` scores as the published code does: raw logits summed over the window, no softmax. (That code
also recomputes the queries without their norm and rotary embedding, which a cache cannot.)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from heatkv.policies.allowance import patch_centres, pooled
from heatkv.policies.base import PlanInput, Policy
from heatkv.policies.tokens import Candidates, Priority, TokenCache
from heatkv.scales import Geometry
from heatkv.scores import HeadScores

TOP = 16
DRAFTER_EVERY = 16
REFINER_FIRST, REFINER_STEP, REFINER_LEAST = 600 / 650, 70 / 650, 1 / 4
KERNEL = 5
SCORINGS = ("paper", "published")


def selectivity(scores: HeadScores) -> npt.NDArray[np.float64]:
    """Attention selectivity of every layer at every target scale, ``(layers, targets)``; high for refiners."""
    mass_LHTS, tokens_S = scores.mass_LHTS, np.array(scores.geometry.scales.tokens)
    L, H, K, _ = mass_LHTS.shape
    index_LT = np.zeros((L, K))
    for t in range(1, K):
        each_LHS, size_LHS = mass_LHTS[:, :, t, :t] / tokens_S[:t], np.broadcast_to(tokens_S[:t], (L, H, t))
        order_LHS = np.argsort(-each_LHS, axis=2, kind="stable")
        before_LHS = np.cumsum(np.take_along_axis(size_LHS, order_LHS, 2), 2)
        taken_LHS = np.diff(np.minimum(before_LHS, TOP), axis=2, prepend=0)
        top_LH = (np.take_along_axis(each_LHS, order_LHS, 2) * taken_LHS).sum(2) / taken_LHS.sum(2)
        index_LT[:, t] = mass_LHTS[:, :, t, t].mean(1) * top_LH.mean(1)
    return index_LT


def drafters(scores: HeadScores, targets: range) -> npt.NDArray[np.bool_]:
    """Which layers are drafters at each of ``targets``, ``(layers, targets)``."""
    index_LT = selectivity(scores)[:, targets.start : targets.stop]
    z_LT = (index_LT - index_LT.mean(0)) / np.maximum(index_LT.std(0), 1e-30)
    count = max(z_LT.shape[1], round(z_LT.size / DRAFTER_EVERY))
    is_drafter = np.zeros(z_LT.size, bool)
    is_drafter[np.argsort(z_LT.ravel(), kind="stable")[:count]] = True
    return is_drafter.reshape(z_LT.shape)


def capacities(inputs: PlanInput) -> npt.NDArray[np.int64]:
    """Tokens a head of each layer may hold after each scale, ``(scales - 1, layers)``."""
    assert inputs.scores is not None
    L, scales = inputs.geometry.layers, inputs.geometry.scales
    limit = inputs.limit // inputs.geometry.heads  # over layers, a head of each
    base = limit // L
    capacity_TL = np.full((len(scales) - 1, L), base, np.int64)
    first = next((t for t in range(len(scales) - 1) if scales.bounds[t][1] > base), None)
    if first is None:
        return capacity_TL
    # What is held after scale t is what scale t + 1 reads.
    is_drafter_LT = drafters(inputs.scores, range(first + 1, len(scales)))
    for k, t in enumerate(range(first, len(scales) - 1)):
        is_drafter_L, most = is_drafter_LT[:, k], scales.bounds[t][1]
        n = int(is_drafter_L.sum())
        if not 0 < n < L:
            continue
        refiner = int(base * max(REFINER_FIRST - REFINER_STEP * k, REFINER_LEAST))
        drafter = min(most, (base * L - (L - n) * refiner) // n)
        refiner = min(most, (base * L - n * drafter) // (L - n))  # drafters that have all leave the rest
        capacity_TL[t] = np.where(is_drafter_L, drafter, refiner)
    return give_way(capacity_TL)


def give_way(capacity_TL: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """What layers may hold so that they never hold more than any one row of capacities adds up to.

    While a scale runs, some layers have their share for it and the others still what they had before. If no layer had
    more than its share for the next scale, all of them together stay within that scale's row.
    """
    return np.concatenate([np.minimum(capacity_TL[:-1], capacity_TL[1:]), capacity_TL[-1:]])


class ScaleKVCache(TokenCache):
    """Holds ``capacity_TL`` tokens a head, ``(scales - 1, layers)``: the window, and what it attends to."""

    def __init__(self, geometry: Geometry, capacity_TL: npt.NDArray[np.integer], scoring: str = "paper") -> None:
        if scoring not in SCORINGS:
            raise ValueError(f"there is no scoring {scoring!r}; choose one of {', '.join(SCORINGS)}")
        super().__init__(geometry, np.repeat(capacity_TL[:, :, None], geometry.heads, axis=2))
        self.scoring = scoring

    def rank(self, candidates: Candidates) -> Priority:
        side = next((n for n in (4, 3, 2) if 4 * n * n <= int(candidates.keep_R.min())), 1)
        if self.geometry.scales.by_line:
            window = candidates.newest(side * side)
        else:
            window = patch_centres(*self.geometry.scales[self.scale], side).to(candidates.q_RND.device)
        q_RND = candidates.q_RND[:, window]
        if self.scoring == "paper":
            score_RU = candidates.received(q_RND)
        else:
            score_RU = candidates.logits(q_RND).sum(1) / self.geometry.head_dim**0.5
        score_RU[:, candidates.old + window] = -torch.inf
        in_window_RU = torch.zeros_like(score_RU, dtype=torch.int8)
        in_window_RU[:, candidates.old + window] = 1
        return Priority(pooled(score_RU, candidates.pos_RU, KERNEL), in_window_RU)


def cache(inputs: PlanInput, scoring: str = "paper") -> ScaleKVCache:
    return ScaleKVCache(inputs.geometry, capacities(inputs), scoring)


POLICY = Policy(
    name="scalekv",
    title="ScaleKV",
    summary="Gives layers that read history broadly many tokens and the others few; a sample of queries picks which.",
    provenance="re-implementation",
    needs="scores",
    sinks=False,
    cache=cache,
    options={"scoring": "paper"},
)
