"""HeadKV (arXiv 2605.20600): head types found in this very image; global heads keep a sample of all scales.

The paper is about next-token models: with the queries at hand it adds up attention backwards from the current position
until 0.9; heads that need fewer tokens than a local window are local and keep [condition, recent], the others are
global and keep [condition, stratified history, recent]. Nothing is calibrated.

Adaptation to next-scale models, ours but for the 0.9:

- the condition is the sink scales, the local window the scale itself and the one before it;
- heads are typed once an image, for each batch row, at the latest scale up to which even a local head can hold all
  scales: a local head spends 0.9 of its attention on the local window. From then on it may hold ``local_share``
  (default half) of the mean budget, and global heads share what that leaves of their layer;
- local: the sinks, then the newest scale, then the one before, each by attention;
- global: the sinks, then the scales thinned out evenly, so that no scale gives a token while another holds more;
  within a scale, the lowest by attention go, mean of the softmax within that scale over ``OBSERVERS`` queries.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from heatkv.policies.allowance import EMPTY, evenly, uniform
from heatkv.policies.base import PlanInput, Policy
from heatkv.policies.tokens import Candidates, Layer, Priority, TokenCache

LOCAL_ATTENTION = 0.9
OBSERVERS = 64


def local_heads(mass_LHTS: npt.NDArray[np.floating], scale: int) -> npt.NDArray[np.bool_]:
    """HeadKV's head types, ``(layers, heads)``: true for local heads, typed at ``scale``.

    ``mass_LHTS`` is the attention mass of one image (`heatkv.calibration.CalibratingCache`) or of many.
    """
    near_LH = mass_LHTS[:, :, scale, max(0, scale - 1) : scale + 1].sum(2)
    return np.asarray(near_LH >= LOCAL_ATTENTION)


def typing_scale(inputs: PlanInput, local_share: float = 0.5) -> int:
    """The scale at which heads are typed."""
    fits = int(local_share * (inputs.limit // inputs.geometry.head_count))
    latest = max((t for t, (_, end) in enumerate(inputs.geometry.scales.bounds[:-1]) if end <= fits), default=0)
    return max(latest, inputs.sink_scales - 1)


class HeadKVCache(TokenCache):
    """``local_LBH[layer]`` tells, once typed, which heads of which image are local, ``[B, H]`` bool on the CPU."""

    def __init__(self, inputs: PlanInput, local_share: float) -> None:
        if not 0 < local_share <= 1:
            raise ValueError(f"local_share {local_share} must be above 0 and up to 1")
        mean = min(inputs.limit // inputs.geometry.head_count, inputs.geometry.scales.full_peak)
        self.typing_scale = typing_scale(inputs, local_share)
        all_so_far = inputs.geometry.scales.bounds[self.typing_scale][1]
        self._local = min(mean, max(int(local_share * mean), all_so_far))
        super().__init__(inputs.geometry, np.minimum(uniform(inputs), self._local))
        self.mean, self.sink_tokens = mean, sum(inputs.geometry.scales.tokens[: inputs.sink_scales])
        self.local_LBH: list[Tensor | None] = [None] * inputs.geometry.layers
        self._typed_LR: dict[int, Tensor] = {}

    @property
    def planned_tokens(self) -> int:
        return self.mean * self.geometry.head_count

    def allowed(self, layer: int, lanes: int) -> Tensor:
        if layer in self._typed_LR:
            return self._typed_LR[layer]
        return super().allowed(layer, lanes)

    def _update(self, layer: int, state: Layer, q_RND: Tensor, k_RND: Tensor, v_RND: Tensor) -> None:
        super()._update(layer, state, q_RND, k_RND, v_RND)
        if self.scale == self.typing_scale:
            self._share_out(layer)

    def watch(self, candidates: Candidates) -> None:
        """Type the heads of the layer, where this is the scale to do it."""
        if self.scale == self.typing_scale:
            start = self.geometry.scales.bounds[max(0, self.scale - 1)][0]
            near_R = (candidates.received(candidates.q_RND) * (candidates.pos_RU >= start)).sum(1)
            self.local_LBH[candidates.layer] = (near_R >= LOCAL_ATTENTION).view(-1, self.geometry.heads).cpu()

    def _share_out(self, layer: int) -> None:
        """From now on, local heads hold less and global heads share the rest, row by row."""
        local_BH = self.local_LBH[layer]
        assert local_BH is not None
        heads, full = self.geometry.heads, self.geometry.scales.full_peak
        allowed_BH = torch.empty_like(local_BH, dtype=torch.int64)
        for row, local_H in enumerate(local_BH):
            local = int(local_H.sum())
            rest = heads * self.mean - local * self._local
            globals_ = min(full, rest // (heads - local)) if local < heads else 0
            more = (rest - globals_ * (heads - local)) // local if local else 0
            allowed_BH[row] = torch.where(local_H, min(full, self._local + more), globals_)
        self._typed_LR[layer] = allowed_BH.flatten()
        self._cuts[layer] = sorted({*self._cuts[layer], *allowed_BH.flatten().tolist()} - {0})

    def rank(self, candidates: Candidates) -> Priority:
        local_BH = self.local_LBH[candidates.layer]
        assert local_BH is not None
        pos_RU, device = candidates.pos_RU, candidates.pos_RU.device
        ends = torch.tensor([end for _, end in self.geometry.scales.bounds], device=device)
        scale_RU = torch.bucketize(pos_RU.clamp_min(0), ends, right=True)
        observers = evenly(OBSERVERS, candidates.q_RND.shape[1], device)
        p_RNU = candidates.attention(candidates.q_RND[:, observers])
        within_RU = softmax_within(p_RNU, scale_RU, len(ends)).mean(1)
        local_R1 = local_BH.flatten().to(device)[:, None]
        sink_RU = pos_RU < self.sink_tokens
        tier_RU = torch.where(local_R1, scale_RU, -rank_within(within_RU, scale_RU, pos_RU != EMPTY))
        tier_RU = tier_RU.masked_fill(sink_RU, torch.iinfo(tier_RU.dtype).max)
        return Priority(torch.where(local_R1, p_RNU.mean(1), within_RU), tier_RU)


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
    needs="nothing",
    cache=cache,
    options={"local_share": 0.5},
)
