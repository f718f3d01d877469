"""Caches that tell local heads from others in this very image: what HeadKV and SSD share.

Until heads are typed, all of them may hold the mean of the budget. From then on a local head may hold less, and the
others of its layer and image share what that leaves.

On lines heads are typed as the HeadKV paper says: once the cache holds `THRESHOLD` tokens (or is full, if that is
earlier), the attention of the current query is added up from its own token backwards until 0.9; a head that needs fewer
tokens than the recent window, two lines of the image, is local.

On scales, which have no order of tokens within, the analogue (ours): at the latest scale up to which even a local head
can hold everything, a local head spends 0.9 of its attention on that scale and the one before it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from heatkv.policies.allowance import EMPTY, uniform
from heatkv.policies.base import PlanInput
from heatkv.policies.tokens import Candidates, Layer, TokenCache

LOCAL_ATTENTION = 0.9
THRESHOLD = 100  # tokens; the paper's for LlamaGen and Janus
WINDOW_LINES = 2


def local_heads(mass_LHTS: npt.NDArray[np.floating], scale: int) -> npt.NDArray[np.bool_]:
    """Head types of a next-scale model, ``(layers, heads)``: true for local heads, typed at ``scale``.

    ``mass_LHTS`` is the attention mass of one image (`heatkv.calibration.CalibratingCache`) or of many.
    """
    near_LH = mass_LHTS[:, :, scale, max(0, scale - 1) : scale + 1].sum(2)
    return np.asarray(near_LH >= LOCAL_ATTENTION)


def typing_scale(inputs: PlanInput, local_share: float = 0.5) -> int:
    """The scale at which heads of a next-scale model are typed."""
    fits = int(local_share * (inputs.limit // inputs.geometry.head_count))
    latest = max((t for t, (_, end) in enumerate(inputs.geometry.scales.bounds[:-1]) if end <= fits), default=0)
    return max(latest, inputs.sink_scales - 1)


def tokens_needed(p_RU: Tensor, pos_RU: Tensor) -> Tensor:
    """How many of the latest tokens take 0.9 of a query's attention, ``[R]``."""
    latest_RU = pos_RU.argsort(dim=1, descending=True, stable=True)
    return 1 + (p_RU.gather(1, latest_RU).cumsum(1) < LOCAL_ATTENTION).sum(1)


class TypedCache(TokenCache):
    """``local_LBH[layer]`` tells, once typed, which heads of which image are local, ``[B, H]`` bool on the CPU."""

    def __init__(self, inputs: PlanInput, local_share: float) -> None:
        if not 0 < local_share <= 1:
            raise ValueError(f"local_share {local_share} must be above 0 and up to 1")
        geometry, scales = inputs.geometry, inputs.geometry.scales
        self.mean = mean = min(inputs.limit // geometry.head_count, scales.full_peak)
        self.sink_tokens = sum(scales.tokens[: inputs.sink_scales])
        self.sinks = inputs.sink_scales
        allowance_TLH = uniform(inputs)
        if scales.by_line:
            self.window = min(WINDOW_LINES * scales.sizes[-1][1], max(1, mean // 2))
            # The condition and the recent window, unless that is more than a local head's share.
            self.local_tokens = max(1, min(self.sink_tokens + self.window, int(local_share * mean)))
        else:
            self.typing_scale = typing_scale(inputs, local_share)
            so_far = scales.bounds[self.typing_scale][1]
            self.local_tokens = min(mean, max(int(local_share * mean), so_far))
            allowance_TLH = np.minimum(allowance_TLH, self.local_tokens)
        self.local_LBH: list[Tensor | None] = [None] * geometry.layers
        self._typed_LR: dict[int, Tensor] = {}
        super().__init__(geometry, allowance_TLH)

    @property
    def planned_tokens(self) -> int:
        return self.mean * self.geometry.head_count

    @property
    def typed_when(self) -> str:
        """When heads are typed, in words that complete "found"."""
        if self.geometry.scales.by_line:
            return f"once {min(THRESHOLD, self.mean)} tokens a head were cached"
        return f"at {self.geometry.scales.name(self.typing_scale)}"

    @property
    def block(self) -> int:
        return min(super().block, max(1, self.local_tokens // 3))

    def allowed(self, layer: int, lanes: int) -> Tensor:
        if layer in self._typed_LR:
            return self._typed_LR[layer]
        return super().allowed(layer, lanes)

    def watch(self, candidates: Candidates) -> Tensor | None:
        """Type the heads of the layer, where this is the time to do it."""
        if candidates.layer in self._typed_LR or not self._time_to_type(candidates):
            return None
        if self.geometry.scales.by_line:
            p_RU = candidates.attention(candidates.q_RND[:, -1:])[:, 0]
            local_R = tokens_needed(p_RU, candidates.pos_RU) < self.window
        else:
            start = self.geometry.scales.bounds[max(0, self.scale - 1)][0]
            near_R = (candidates.received(candidates.q_RND) * (candidates.pos_RU >= start)).sum(1)
            local_R = near_R >= LOCAL_ATTENTION
        self.local_LBH[candidates.layer] = local_R.view(-1, self.geometry.heads).cpu()
        if self.geometry.scales.by_line:
            self._share_out(candidates.layer)
        return None

    def _time_to_type(self, candidates: Candidates) -> bool:
        if not self.geometry.scales.by_line:
            return self.scale == self.typing_scale
        tokens = int((candidates.pos_RU[0] != EMPTY).sum())
        full = self.mean < self.geometry.scales.full_peak and tokens + self.block > self.mean
        return tokens >= THRESHOLD or full

    def _update(self, layer: int, state: Layer, q_RND: Tensor, k_RND: Tensor, v_RND: Tensor) -> None:
        super()._update(layer, state, q_RND, k_RND, v_RND)
        if self.scale == self.typing_scale:
            self._share_out(layer)

    def _share_out(self, layer: int) -> None:
        """From now on, local heads hold less and the others share the rest, row by row."""
        local_BH = self.local_LBH[layer]
        assert local_BH is not None
        heads, full = self.geometry.heads, self.geometry.scales.full_peak
        allowed_BH = torch.empty_like(local_BH, dtype=torch.int64)
        for row, local_H in enumerate(local_BH):
            local = int(local_H.sum())
            rest = heads * self.mean - local * self.local_tokens
            others = min(full, rest // (heads - local)) if local < heads else 0
            more = (rest - others * (heads - local)) // local if local else 0
            allowed_BH[row] = torch.where(local_H, min(full, self.local_tokens + more), others)
        self._typed_LR[layer] = allowed_BH.flatten()
        self._cuts[layer] = sorted({*self._cuts[layer], *allowed_BH.flatten().tolist()} - {0})

    def local_lanes(self, candidates: Candidates) -> Tensor:
        """Which (row, head) pairs are local, ``[R, 1]``; none before heads are typed."""
        local_BH = self.local_LBH[candidates.layer]
        if local_BH is None:
            return torch.zeros(len(candidates.pos_RU), 1, dtype=torch.bool, device=candidates.pos_RU.device)
        return local_BH.flatten().to(candidates.pos_RU.device)[:, None]

    def segment_of(self, pos_RU: Tensor) -> Tensor:
        """The scale or line of every candidate."""
        ends = torch.tensor([end for _, end in self.geometry.scales.bounds], device=pos_RU.device)
        return torch.bucketize(pos_RU.clamp_min(0), ends, right=True)
