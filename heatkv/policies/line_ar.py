"""LineAR (arXiv 2512.04857): the first and the latest lines stay, the lines between thin out.

Made for models that draw token by token, and managed by the line: initial anchors and the most recent lines always
stay; what lies between is thinned progressively, by the attention that the line just drawn pays to it, so that after
every line the cache is within a fixed budget of a few lines. The same number of tokens for every head and layer.

Re-implementation on lines; what the reachable text leaves open is ours: the anchors are the condition and the first
line (``anchors``, default 1), the recent lines two (``recent``), and where not all of them fit, the condition stays,
then the latest tokens. Thinning every line, or, where a head may hold less than three, every third of that.

Adaptation to scales: the anchors are the sink scales, the recent lines the newest scale.
"""

from __future__ import annotations

import torch

from heatkv.policies.allowance import uniform
from heatkv.policies.base import PlanInput, Policy
from heatkv.policies.tokens import Candidates, Priority, TokenCache


class LineARCache(TokenCache):
    def __init__(self, inputs: PlanInput, anchors: int, recent: int) -> None:
        if anchors < 0 or recent < 1:
            raise ValueError(f"anchors {anchors} must be 0 or more, and recent {recent} 1 or more")
        scales = inputs.geometry.scales
        self.width = scales.sizes[-1][1]
        sinks = inputs.sink_scales
        self.sink_tokens = sum(scales.tokens[:sinks])
        self.anchor_tokens = sum(scales.tokens[: max(sinks, 1 + anchors)]) if scales.by_line else self.sink_tokens
        self.lines = recent
        super().__init__(inputs.geometry, uniform(inputs))

    @property
    def block(self) -> int:
        return self.width

    def rank(self, candidates: Candidates) -> Priority:
        pos_RU = candidates.pos_RU
        score_RU = candidates.received(candidates.q_RND)
        if self.geometry.scales.by_line:
            recent_RU = candidates.recent(self.lines * self.width)
            score_RU = torch.where(recent_RU, pos_RU.float(), score_RU)
        else:
            recent_RU = pos_RU >= self.geometry.scales.bounds[self.scale][0]
        anchor_RU, sink_RU = pos_RU < self.anchor_tokens, pos_RU < self.sink_tokens
        tier_RU = torch.where(recent_RU, 2, anchor_RU.long()).masked_fill(sink_RU, 3)
        return Priority(score_RU, tier_RU)


def cache(inputs: PlanInput, anchors: int = 1, recent: int = 2) -> LineARCache:
    return LineARCache(inputs, anchors, recent)


POLICY = Policy(
    name="line-ar",
    title="LineAR",
    summary="Keeps the first and the latest lines, and of those between what the newest line attends to most.",
    provenance="adaptation",
    provenance_by_line="re-implementation",
    needs="nothing",
    cache=cache,
    options={"anchors": 1, "recent": 2},
)
