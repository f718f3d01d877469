"""H2O (arXiv 2306.14048): heavy hitters, the tokens with the most attention so far, and the latest tokens.

Adaptation: the paper evicts one token a step; here the cache is cut back after every scale that overflows it, and of
lines every few tokens. A token's score is the attention that it received from all queries since it came, summed. Half
of what a head may keep (``recent``, default 0.5 as in the paper) goes to the newest scale, to tokens spread evenly over
its map, which has no order in time, or to the latest tokens of lines; the rest to the heaviest of all others. The same
number of tokens for every head and layer. Nothing protects the sink scales. Needs no calibration.
"""

from __future__ import annotations

import torch
from torch import Tensor

from heatkv.policies.allowance import uniform
from heatkv.policies.base import PlanInput, Policy
from heatkv.policies.tokens import Candidates, Priority, TokenCache


class H2OCache(TokenCache):
    def __init__(self, inputs: PlanInput, recent: float) -> None:
        if not 0 <= recent <= 1:
            raise ValueError(f"recent {recent} is no share of the tokens: choose 0 to 1")
        super().__init__(inputs.geometry, uniform(inputs))
        self.recent = recent

    def watch(self, candidates: Candidates) -> Tensor:
        q_RND = candidates.q_RND
        return candidates.score_RU + candidates.received(q_RND) * q_RND.shape[1]

    def rank(self, candidates: Candidates) -> Priority:
        count = int(self.recent * int(candidates.keep_R.min()))
        return Priority(candidates.score_RU, candidates.recent(count).to(torch.int8))


def cache(inputs: PlanInput, recent: float = 0.5) -> H2OCache:
    return H2OCache(inputs, recent)


POLICY = Policy(
    name="h2o",
    title="H2O",
    summary="Keeps, in every head, the tokens that received most attention so far, and some of the newest scale.",
    provenance="adaptation",
    needs="nothing",
    sinks=False,
    cache=cache,
    options={"recent": 0.5},
)
