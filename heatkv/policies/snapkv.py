"""SnapKV (arXiv 2404.14469): the tokens that a window of recent queries attends to, and the window itself.

Adaptation: the paper compresses a prompt once and observes with its last tokens. Here the cache is compressed after
every scale that overflows it, and the window is ``window`` tokens (default 32) spread evenly over the newest scale,
whose tokens have no order in time; at most a quarter of what the head may keep, so that small budgets are not all
window. As in the paper: softmax attention from the window, max-pooled along the sequence (``kernel``, default 5), top
tokens a head, the same number for every head and layer. Nothing protects the sink scales. Needs no calibration.
"""

from __future__ import annotations

import torch

from heatkv.policies.allowance import pooled, uniform
from heatkv.policies.base import PlanInput, Policy
from heatkv.policies.tokens import Candidates, Priority, TokenCache


class SnapKVCache(TokenCache):
    def __init__(self, inputs: PlanInput, window: int, kernel: int) -> None:
        if window < 1 or kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"window {window} must be 1 or more, and kernel {kernel} odd")
        super().__init__(inputs.geometry, uniform(inputs))
        self.window, self.kernel = window, kernel

    def rank(self, candidates: Candidates) -> Priority:
        size = max(1, min(self.window, int(candidates.keep_R.min()) // 4))
        window = candidates.newest(size)
        score_RU = candidates.received(candidates.q_RND[:, window])
        in_window_RU = torch.zeros_like(score_RU, dtype=torch.int8)
        in_window_RU[:, candidates.old + window] = 1
        return Priority(pooled(score_RU, candidates.pos_RU, self.kernel), in_window_RU)


def cache(inputs: PlanInput, window: int = 32, kernel: int = 5) -> SnapKVCache:
    return SnapKVCache(inputs, window, kernel)


POLICY = Policy(
    name="snapkv",
    title="SnapKV",
    summary="Keeps, in every head, the tokens that a sample of the newest queries attends to most.",
    provenance="adaptation",
    needs="nothing",
    sinks=False,
    cache=cache,
    options={"window": 32, "kernel": 5},
)
