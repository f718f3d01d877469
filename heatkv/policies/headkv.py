"""HeadKV (arXiv 2605.20600): head types found in this very image; global heads keep a sample of all that was drawn.

Made for models that draw token by token, and there, on lines, done as the paper says: nothing is compressed before the
cache passes a threshold; then heads are typed (typed.py). Local heads keep [condition, recent window], global heads
[condition, stratified history, recent window], and their budgets differ so that their mean is the budget. Stratified
eviction, every few tokens: the history is split at its middle; a token's score is the mean, over the queries since the
last time, of the softmax taken inside its half; the lowest go, half of them from each half. Nothing is calibrated.
Not in the paper and ours: the window that tells heads apart is the recent window, two lines (or half of the mean
budget, if that is less); a local head holds the condition and that window, at most ``local_share`` (default half) of
the mean; a threshold that the budget can not reach is the budget; every 8 tokens, or a third of what a head may hold.

Adaptation to next-scale models, ours but for the 0.9:

- the condition is the sink scales, the local window the scale itself and the one before it;
- a local head may hold ``local_share`` of the mean budget;
- local: the sinks, then the newest scale, then the one before, each by attention;
- global: the sinks, then the scales thinned out evenly, so that no scale gives a token while another holds more;
  within a scale, the lowest by attention go, mean of the softmax within that scale over ``OBSERVERS`` queries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from heatkv.policies.allowance import EMPTY
from heatkv.policies.base import PlanInput, Policy
from heatkv.policies.tokens import Candidates, Priority
from heatkv.policies.typed import TypedCache

OBSERVERS = 64


class HeadKVCache(TypedCache):
    def rank(self, candidates: Candidates) -> Priority:
        if self.geometry.scales.by_line:
            return self._rank_lines(candidates)
        pos_RU = candidates.pos_RU
        scale_RU = self.segment_of(pos_RU)
        p_RNU = candidates.attention(candidates.q_RND[:, candidates.newest(OBSERVERS)])
        within_RU = softmax_within(p_RNU, scale_RU, len(self.geometry.scales)).mean(1)
        local_R1 = self.local_lanes(candidates)
        sink_RU = pos_RU < self.sink_tokens
        tier_RU = torch.where(local_R1, scale_RU, -rank_within(within_RU, scale_RU, pos_RU != EMPTY))
        tier_RU = tier_RU.masked_fill(sink_RU, torch.iinfo(tier_RU.dtype).max)
        return Priority(torch.where(local_R1, p_RNU.mean(1), within_RU), tier_RU)

    def _rank_lines(self, candidates: Candidates) -> Priority:
        """Tiers: what goes 0, history 1, the recent window 2, the condition 3; of local heads the latest first."""
        pos_RU, keep_R1 = candidates.pos_RU, candidates.keep_R.to(candidates.pos_RU.device)[:, None]
        there_RU = pos_RU != EMPTY
        condition_RU = there_RU & (pos_RU < self.sink_tokens)
        # The window shrinks where not even a half of what a head keeps has room for it.
        window_R1 = (keep_R1 // 2).clamp(max=self.window)
        recent_RU = pos_RU > pos_RU[:, -1:] - window_R1
        history_RU = there_RU & ~condition_RU & ~recent_RU
        half_RU = 2 * history_RU.cumsum(1) > history_RU.sum(1, keepdim=True)
        part_RU = torch.where(history_RU, half_RU.long(), 2)
        within_RU = softmax_within(candidates.attention(candidates.q_RND), part_RU, 3).mean(1)
        going_R1 = (there_RU.sum(1, keepdim=True) - keep_R1).clamp_min(0)
        older_R1 = torch.minimum(going_R1 // 2, (part_RU == 0).sum(1, keepdim=True))
        quota_RU = torch.where(part_RU == 0, older_R1, going_R1 - older_R1)
        goes_RU = history_RU & (rank_within(-within_RU, part_RU, there_RU) < quota_RU)
        tier_RU = 1 - goes_RU.long() + recent_RU.long() + 2 * condition_RU.long()
        local_tier_RU = 1 + 2 * condition_RU.long()
        local_R1 = self.local_lanes(candidates)
        return Priority(torch.where(local_R1, pos_RU.float(), within_RU), torch.where(local_R1, local_tier_RU, tier_RU))


def softmax_within(p_RNU: Tensor, group_RU: Tensor, groups: int) -> Tensor:
    """Probabilities over all candidates made to sum to 1 within every group."""
    member_RUG = torch.nn.functional.one_hot(group_RU, groups).float()
    total_RNG = p_RNU @ member_RUG
    index_RNU = group_RU[:, None].expand(-1, p_RNU.shape[1], -1)
    return p_RNU / total_RNG.gather(2, index_RNU).clamp_min(1e-30)


def rank_within(score_RU: Tensor, group_RU: Tensor, valid_RU: Tensor) -> Tensor:
    """Place of every candidate in its group, the highest score first: 0, 1, ..."""
    order_RU = score_RU.masked_fill(~valid_RU, -torch.inf).argsort(dim=1, descending=True, stable=True)
    group_sorted_RU, by_group_RU = group_RU.gather(1, order_RU).sort(dim=1, stable=True)
    order_RU = order_RU.gather(1, by_group_RU)
    place_U = torch.arange(order_RU.shape[1], device=order_RU.device)
    first_RU = torch.nn.functional.pad(group_sorted_RU[:, 1:] != group_sorted_RU[:, :-1], (1, 0), value=True)
    start_RU = torch.where(first_RU, place_U, 0).cummax(dim=1).values
    return torch.empty_like(order_RU).scatter_(1, order_RU, place_U - start_RU)


def cache(inputs: PlanInput, local_share: float = 0.5) -> HeadKVCache:
    return HeadKVCache(inputs, local_share)


POLICY = Policy(
    name="headkv",
    title="HeadKV",
    summary="Finds in this very image which heads look near and which far; far ones keep a sample of every scale.",
    provenance="adaptation",
    provenance_by_line="paper",
    needs="nothing",
    cache=cache,
    options={"local_share": 0.5},
)
