"""Probing: the attention of chosen heads, token by token, for people to look at."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from heatkv.cache import ScheduleCache
from heatkv.scales import Geometry
from heatkv.schedule import Schedule

# Attention of one head at one scale is kept whole up to so many entries; beyond, queries are thinned out.
MAX_ENTRIES = 1 << 22


class ProbeCache(ScheduleCache):
    """A cache that also records the attention probabilities of the conditional row of some heads.

    ``attention[layer, head][t]`` is ``[queries, bounds[t][1]]`` float32 on the CPU: what each query of
    target scale t reads of all tokens so far, in order; columns of dropped cells are zero. With more
    than ``MAX_ENTRIES`` entries every n-th query is kept.
    """

    def __init__(
        self, geometry: Geometry, heads: Collection[tuple[int, int]], schedule: Schedule | None = None
    ) -> None:
        super().__init__(geometry, schedule or Schedule.full(geometry, "any"), prefix_scales=0)
        for layer, head in heads:
            if not (0 <= layer < geometry.layers and 0 <= head < geometry.heads):
                raise ValueError(
                    f"there is no head {head} in layer {layer}: the model has {geometry.layers} layers "
                    f"of {geometry.heads} heads"
                )
        self.heads = frozenset(heads)
        self.attention: dict[tuple[int, int], list[Tensor]] = {key: [] for key in heads}

    def _attend(self, layer: int, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        for head in range(self.geometry.heads):
            if (layer, head) in self.heads:
                self.attention[layer, head].append(self._probabilities(layer, head, q_BHND, k_BHND))
        return super()._attend(layer, q_BHND, k_BHND, v_BHND)

    def _probabilities(self, layer: int, head: int, q_BHND: Tensor, k_BHND: Tensor) -> Tensor:
        bounds = self.geometry.scales.bounds
        tokens = bounds[self.scale][1]
        step = -(-q_BHND.shape[2] * tokens // MAX_ENTRIES)
        q_ND = q_BHND[0, head, ::step].float()
        logits = q_ND.new_full((len(q_ND), tokens), float("-inf"))
        start, end = bounds[self.scale]
        logits[:, start:end] = q_ND @ k_BHND[0, head].float().T
        for cell in self._cells[layer]:
            heads = range(self.geometry.heads) if cell.heads is None else cell.heads
            if head in heads:
                start, end = bounds[cell.source]
                logits[:, start:end] = q_ND @ cell.k.read(torch.float32)[0, heads.index(head)].float().T
        return logits.softmax(-1).cpu()
