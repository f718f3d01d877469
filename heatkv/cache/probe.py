"""Probing: the attention of chosen heads, token by token, for people to look at."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from heatkv.cache.layout import Step, ranges
from heatkv.cache.seam import ScheduleCache
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
        super().__init__(geometry, schedule or Schedule.full(geometry, "any"))
        for layer, head in heads:
            if not (0 <= layer < geometry.layers and 0 <= head < geometry.heads):
                raise ValueError(
                    f"there is no head {head} in layer {layer}: the model has {geometry.layers} layers "
                    f"of {geometry.heads} heads"
                )
        self.heads = frozenset(heads)
        self.attention: dict[tuple[int, int], list[Tensor]] = {key: [] for key in heads}

    def _read(self, layer: int, q_BHND: Tensor, entries: Tensor, now: Step) -> Tensor:
        for head in range(self.geometry.heads):
            if (layer, head) in self.heads:
                own = entries[head] if now.layout.aligned else entries[torch.from_numpy(now.layout.entries_of(head))]
                probabilities_NM = self._probabilities(q_BHND[0, head], own[:, 0, 0], now.layout.length_HS[head])
                self.attention[layer, head].append(probabilities_NM)
        return super()._read(layer, q_BHND, entries, now)

    def _probabilities(self, q_ND: Tensor, k_MD: Tensor, length_S: npt.NDArray[np.int64]) -> Tensor:
        """Of some keys, ``length_S`` of each source scale, among the tokens so far."""
        bounds = self.geometry.scales.bounds[: self.scale + 1]
        tokens = bounds[-1][1]
        q_ND = q_ND[:: -(-len(q_ND) * tokens // MAX_ENTRIES)].float()
        where_M = ranges(np.array([start for start, _ in bounds]), length_S)
        probabilities = q_ND.new_zeros(len(q_ND), tokens)
        probabilities[:, torch.from_numpy(where_M)] = (q_ND @ k_MD.float().T).softmax(-1)
        return probabilities.cpu()
