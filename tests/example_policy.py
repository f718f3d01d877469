"""TOVA (arXiv 2401.06104), as an example: a policy in one file.

Every head keeps the tokens that the queries of the newest scale attend to most.
"""

from heatkv.policies.allowance import uniform
from heatkv.policies.base import PlanInput, Policy
from heatkv.policies.tokens import Candidates, Priority, TokenCache


class TovaCache(TokenCache):
    def rank(self, candidates: Candidates) -> Priority:
        return Priority(score_RU=candidates.received(candidates.q_RND))


def cache(inputs: PlanInput) -> TovaCache:
    return TovaCache(inputs.geometry, uniform(inputs))


POLICY = Policy(
    name="tova",
    title="TOVA",
    summary="Keeps, in every head, the tokens that the newest queries attend to most.",
    provenance="adaptation",
    needs="nothing",
    cache=cache,
)
