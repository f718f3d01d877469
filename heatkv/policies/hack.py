"""HACK (arXiv 2504.09261): contextual heads, whose queries all read the same keys, need far fewer tokens than others.

Calibrates offline which heads are contextual: those of the lowest variance, over the queries of the last scale, of the
attention that a key receives (`heatkv.scores.HeadScores.spread_LH`). The lowest ``alpha`` of all heads of the model
are contextual, the rest structural. While it generates, 32 queries of the newest scale observe:

- a contextual head keeps the tokens to which they attend most; the last time that tokens are evicted, each is merged
  into the kept one whose key is most similar (cosine), as the mean of keys and of values;
- a structural head keeps the first two scales, then the newest scale, then of the scales between those to which they
  attend most; where not even the newest scale fits, its most attended tokens.

Where an image is drawn by lines, tokens go line after line and none is merged: ``merge`` says nothing there.

Re-implementation. One thing is an approximation: the paper selects before attention and counts the scale being
generated; here attention reads the whole of that scale, which no budget of this program counts, and selection follows.
What the reachable text leaves open is ours: ``alpha`` (default 0.5), and a contextual head's budget as a share of a
structural head's, ``ratio`` (default 1/3; less was worse on the bundled model).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot, pad

from heatkv.policies.allowance import EMPTY
from heatkv.policies.base import PlanInput, Policy
from heatkv.policies.tokens import Candidates, Priority, TokenCache
from heatkv.scores import HeadScores

OBSERVERS = 32
FIRST_SCALES = 2


def contextual_heads(scores: HeadScores, alpha: float = 0.5) -> npt.NDArray[np.bool_]:
    """HACK's head types, ``(layers, heads)``: true for contextual heads, false for structural ones."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha {alpha} is no share of the heads: choose 0 to 1")
    if scores.spread_LH is None:
        raise ValueError(
            f"these scores of {scores.model} do not hold the variance that HACK tells heads by; calibrate again"
        )
    contextual = np.zeros(scores.spread_LH.size, bool)
    contextual[np.argsort(scores.spread_LH, axis=None, kind="stable")[: round(alpha * contextual.size)]] = True
    return contextual.reshape(scores.spread_LH.shape)


def budgets(inputs: PlanInput, contextual: int, ratio: float) -> tuple[int, int]:
    """Tokens of a contextual and of a structural head, where ``contextual`` heads of all are contextual."""
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio {ratio} must be above 0 and up to 1")
    structural, full = inputs.geometry.head_count - contextual, inputs.geometry.scales.full_peak
    most = min(full, int(inputs.limit / (ratio * contextual + structural)))
    least = min(full, (inputs.limit - most * structural) // contextual) if contextual else 0
    return least, most


class HackCache(TokenCache):
    def __init__(self, inputs: PlanInput, contextual_LH: npt.NDArray[np.bool_], ratio: float, merge: bool) -> None:
        contextual, structural = budgets(inputs, int(contextual_LH.sum()), ratio)
        allowance_LH = np.where(contextual_LH, contextual, structural)
        super().__init__(inputs.geometry, np.repeat(allowance_LH[None], len(inputs.geometry.scales) - 1, axis=0))
        self.contextual_LH = torch.from_numpy(contextual_LH)
        self.merge = merge
        self._evicted: tuple[Tensor, Tensor] | None = None

    def rank(self, candidates: Candidates) -> Priority:
        observers = candidates.newest(OBSERVERS)
        score_RU = candidates.received(candidates.q_RND[:, observers])
        tier_RU = 2 * (candidates.pos_RU < sum(self.geometry.scales.tokens[:FIRST_SCALES])).to(torch.int8)
        tier_RU[:, candidates.old :] = 1
        tier_RU[self._contextual_lanes(candidates)] = 0
        return Priority(score_RU, tier_RU)

    def _contextual_lanes(self, candidates: Candidates) -> Tensor:
        """Indices of the lanes of contextual heads, all rows."""
        lanes, device = candidates.pos_RU.shape[0], candidates.pos_RU.device
        of_layer_H = self.contextual_LH[candidates.layer]
        return of_layer_H.repeat(lanes // self.geometry.heads).nonzero().flatten().to(device)

    def evicting(self, candidates: Candidates, chosen_RU: Tensor, v_RND: Tensor) -> None:
        """Before the last scale: remember what contextual heads are about to lose."""
        self._evicted = None
        lanes = self._contextual_lanes(candidates)
        if not self.merge or self.scale != len(self.geometry.scales) - 2 or not len(lanes):
            return
        lane, index = (~chosen_RU[lanes] & (candidates.pos_RU[lanes] != EMPTY)).nonzero(as_tuple=True)
        if not len(lane) or not int(candidates.keep_R[int(lanes[0])]):
            return
        # Contextual heads hold and lose equally many tokens each, and what they hold is in the first piece.
        lane, index = lane.view(len(lanes), -1), index.view(len(lanes), -1)
        k, v = candidates.k_RND[lanes], v_RND[lanes]
        for base in candidates.pieces[:1]:
            row_R, padding = base.row_R[lanes], (0, 0, 0, candidates.old - base.end)
            k, v = (torch.cat([pad(x[row_R], padding), new], 1) for x, new in ((base.k, k), (base.v, v)))
        self._evicted = k[lane, index], v[lane, index]

    def evicted(self, candidates: Candidates) -> None:
        """Merge what contextual heads have lost into what they keep."""
        if self._evicted is None:
            return
        state = self._layers[candidates.layer]
        assert state is not None
        lanes, base = self._contextual_lanes(candidates), state.pieces[0]
        row_R, kept = base.row_R[lanes], int(candidates.keep_R[int(lanes[0])])
        lost_k, lost_v = (x.float() for x in self._evicted)
        k, v = (x[row_R, :kept].float() for x in (base.k, base.v))
        nearest_RE = (normalize(lost_k, dim=2) @ normalize(k, dim=2).transpose(1, 2)).argmax(2)
        # A product with ones and zeros rather than scattered sums, which differ from run to run on a GPU.
        into_RME = one_hot(nearest_RE, kept).float().transpose(1, 2)
        count_RM1 = 1 + into_RME.sum(2, keepdim=True)
        base.k[row_R, :kept] = ((k + into_RME @ lost_k) / count_RM1).to(base.k.dtype)
        base.v[row_R, :kept] = ((v + into_RME @ lost_v) / count_RM1).to(base.v.dtype)
        self._evicted = None


def cache(inputs: PlanInput, alpha: float = 0.5, ratio: float = 1 / 3, merge: bool = True) -> HackCache:
    assert inputs.scores is not None
    return HackCache(inputs, contextual_heads(inputs.scores, alpha), ratio, merge)


POLICY = Policy(
    name="hack",
    title="HACK",
    summary="Gives heads whose queries all read the same keys few tokens, and the others the newest scale and more.",
    provenance="re-implementation",
    needs="spread",
    sinks=False,
    cache=cache,
    options={"alpha": 0.5, "ratio": 1 / 3, "merge": True},
)
