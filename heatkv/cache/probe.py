"""Probing: the attention of chosen heads, token by token, for people to look at."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from heatkv.cache.seam import Entries, ScheduleCache, full_schedule
from heatkv.scales import Geometry
from heatkv.schedule import Schedule

# Attention of one head at one scale is kept whole up to so many entries; beyond, queries are thinned out.
MAX_ENTRIES = 1 << 22


class ProbeCache(ScheduleCache):
    """A cache that also records the attention probabilities of the conditional row of some heads.

    ``attention[layer, head][t]`` is ``[queries, bounds[t][1]]`` float32 on the CPU: what each query of
    target scale t reads of all tokens so far, in order; columns of dropped cells are zero. With more
    than ``MAX_ENTRIES`` entries every n-th query is kept. Where an image is drawn by lines, t = 0 is the condition.
    """

    def __init__(
        self, geometry: Geometry, heads: Collection[tuple[int, int]], schedule: Schedule | None = None
    ) -> None:
        super().__init__(geometry, schedule or full_schedule(geometry))
        for layer, head in heads:
            if not (0 <= layer < geometry.layers and 0 <= head < geometry.heads):
                raise ValueError(
                    f"there is no head {head} in layer {layer}: the model has {geometry.layers} layers "
                    f"of {geometry.heads} heads"
                )
        self.heads = frozenset(heads)
        self.attention: dict[tuple[int, int], list[Tensor]] = {key: [] for key in heads}

    def look(self, layer: int, q_BHND: Tensor, entries: Entries) -> None:
        for head in range(self.geometry.heads):
            if (layer, head) in self.heads:
                k_BMD, _, where_M = entries.of_head(head)
                self.attention[layer, head].append(self._probabilities(q_BHND[0, head], k_BMD[0], where_M))

    def _probabilities(self, q_ND: Tensor, k_MD: Tensor, where_M: npt.NDArray[np.integer]) -> Tensor:
        """Of some keys, which are the tokens ``where_M`` of the sequence, among the tokens so far."""
        start, tokens = self.geometry.scales.bounds[self.scale]
        every = -(-len(q_ND) * tokens // MAX_ENTRIES)
        logits_NM = q_ND[::every].float() @ k_MD.float().T
        where = torch.from_numpy(where_M).to(q_ND.device)
        if self.scale == 0 and self.mask_BNN is not None:
            logits_NM = logits_NM.masked_fill(~self.mask_BNN[0, ::every], -torch.inf)
        elif self.scale and self.geometry.scales.by_line:  # of its own line, a token reads what is before it
            position_N = torch.arange(start, tokens, device=q_ND.device)[::every]
            logits_NM = logits_NM.masked_fill(where > position_N[:, None], -torch.inf)
            if self.hidden_BT is not None:
                unseen = F.pad(self.hidden_BT[0], (0, tokens - self.hidden_BT.shape[1]))
                logits_NM = logits_NM.masked_fill(unseen[where], -torch.inf)
        probabilities = logits_NM.new_zeros(len(logits_NM), tokens)
        probabilities[:, where] = logits_NM.softmax(-1)
        return probabilities.cpu()
