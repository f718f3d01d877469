"""SSD (arXiv 2510.18716): heads of spatial locality keep a short window, heads of semantic sinks few heavy tokens.

Two types of heads: those that read what was drawn just before keep a short window of it; the others keep a compact set
of the tokens that are attended to most. Made for models that draw token by token.

Re-implementation on lines; what the reachable text leaves open is ours: heads are told apart in the image itself, as
HeadKV does (typed.py); a spatial head holds ``local_share`` (default 0.5) of the mean budget, its window, and the
others share the rest; a token is heavy by the attention it received since it came; a quarter of the mean
budget (``recent``) goes to the latest tokens, without which it could not continue a line. The condition stays.

Adaptation to scales: the window is the newest scales, the condition the sink scales.
"""

from __future__ import annotations

import torch
from torch import Tensor

from heatkv.policies.base import PlanInput, Policy
from heatkv.policies.tokens import Candidates, Priority
from heatkv.policies.typed import TypedCache


class SSDCache(TypedCache):
    def __init__(self, inputs: PlanInput, local_share: float, recent: float) -> None:
        if not 0 <= recent <= 1:
            raise ValueError(f"recent {recent} is no share of the tokens: choose 0 to 1")
        super().__init__(inputs, local_share)
        self.recent = recent

    def watch(self, candidates: Candidates) -> Tensor:
        super().watch(candidates)
        q_RND = candidates.q_RND
        return candidates.score_RU + candidates.received(q_RND) * q_RND.shape[1]

    def rank(self, candidates: Candidates) -> Priority:
        pos_RU, local_R1 = candidates.pos_RU, self.local_lanes(candidates)
        age_RU = pos_RU if self.geometry.scales.by_line else self.segment_of(pos_RU)
        recent_RU = candidates.recent(int(self.recent * self.mean))
        tier_RU = torch.where(local_R1, age_RU, recent_RU.long())
        tier_RU = tier_RU.masked_fill(pos_RU < self.sink_tokens, torch.iinfo(tier_RU.dtype).max)
        return Priority(candidates.score_RU, tier_RU)


def cache(inputs: PlanInput, local_share: float = 0.5, recent: float = 0.25) -> SSDCache:
    return SSDCache(inputs, local_share, recent)


POLICY = Policy(
    name="ssd",
    title="SSD",
    summary="Heads that look near keep a short window, the others few tokens that were attended to most.",
    provenance="adaptation",
    provenance_by_line="re-implementation",
    needs="nothing",
    cache=cache,
    options={"local_share": 0.5, "recent": 0.25},
)
