"""The one seam: ``attend``. Models know nothing of compression, caches nothing of models.

``ScheduleCache`` executes a static ``Schedule`` and frees what it drops; the full cache is the
schedule that drops nothing. ``CalibratingCache`` (calibration.py) and ``ProbeCache`` (probe.py)
look on; the caches of dynamic policies are in policies/tokens.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from heatkv.cache.attention import attention
from heatkv.cache.by_line import LineMemory
from heatkv.cache.by_scale import ScaleMemory
from heatkv.cache.packed import PackedMemory
from heatkv.cache.packed_lines import PackedLineMemory
from heatkv.scales import Geometry
from heatkv.schedule import Schedule


class Attend(Protocol):
    """All that a model needs of a cache. Training has one that caches nothing and masks (training/transformer.py)."""

    def attend(
        self, layer: int, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor, mask_BNN: Tensor | None = None
    ) -> Tensor: ...


class KVCache:
    """Keys and values of what has been drawn so far, for one batch of images.

    ``attend`` is called once a layer with every scale whole, layers in order, scales in order; where an image is drawn
    by lines, with the whole condition and then with one token after the other. Subclasses implement ``_attend``.

    ``scale`` is the segment being drawn (-1 before the first), and ``first`` the token of it that the running call
    begins with. ``hidden_BT`` are tokens of the condition that nothing drawn later reads (None: no such).
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.scale, self.first = -1, 0
        self.allocated_bytes = 0
        self.peak_bytes = 0
        self.tokens = 0
        self.mask_BNN: Tensor | None = None  # of the running call
        self.hidden_BT: Tensor | None = None
        self._next_layer = 0

    def attend(
        self, layer: int, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor, mask_BNN: Tensor | None = None
    ) -> Tensor:
        """Attention of the queries at hand to what is cached and to their own tokens.

        Queries, keys and values are ``[batch, heads, tokens, head_dim]``; queries are already scaled (softmax
        scale 1). Returns the same shape as ``q_BHND``. ``mask_BNN`` comes with the tokens of a condition alone, and the
        same to all layers: which of them each may read (True). What the last one may not read, nothing drawn later
        does: padding. It is cached like the rest, as rows of a batch differ in it.

        Raises ``ValueError``, and changes nothing, where layers, heads or tokens do not fit the geometry or it is not
        their turn.
        """
        scales = self.geometry.scales
        if layer != self._next_layer:
            raise ValueError(f"layer {layer} attended out of turn: layer {self._next_layer} is next")
        scale, first = (self.scale, self.first) if layer else self._next_tokens()
        if scale >= len(scales):
            raise ValueError(
                f"the cache was made for {len(scales)} {'segments' if scales.by_line else 'scales'}; "
                "use a new one for a new image"
            )
        expected = (self.geometry.heads, scales.tokens_a_call(scale), self.geometry.head_dim)
        if not expected == k_BHND.shape[1:] == v_BHND.shape[1:] == q_BHND.shape[1:]:
            raise ValueError(
                f"keys of shape {tuple(k_BHND.shape[1:])} at {scales.name(scale)} do not fit the geometry's "
                f"(heads, tokens, head_dim) = {expected}, or queries or values are of another shape"
            )
        if mask_BNN is not None and not (scales.by_line and scale == 0):
            raise ValueError(f"{scales.name(scale)} came with a mask: only tokens of a condition may have one")
        if mask_BNN is not None and layer == 0:
            hidden_BT = ~mask_BNN[:, -1]
            self.hidden_BT = hidden_BT if bool(hidden_BT.any()) else None
        self.scale, self.first, self.mask_BNN = scale, first, mask_BNN
        self._next_layer = (layer + 1) % self.geometry.layers
        return self._attend(layer, q_BHND, k_BHND, v_BHND)

    def _next_tokens(self) -> tuple[int, int]:
        """The segment and its token that layer 0 is due."""
        if self.scale < 0:
            return 0, 0
        scales = self.geometry.scales
        first = self.first + scales.tokens_a_call(self.scale)
        return (self.scale, first) if first < scales.tokens[self.scale] else (self.scale + 1, 0)

    @property
    def planned_tokens(self) -> int:
        """The most tokens it will hold for one batch row, summed over heads, as far as is known in advance."""
        return self.geometry.full_peak_tokens

    def planned_bytes(self, rows: int, itemsize: int) -> int:
        """The most it will hold for so many batch rows, with ``itemsize`` bytes a computed number."""
        return self.geometry.kv_bytes(self.planned_tokens, batch=rows, key_bytes=itemsize, value_bytes=itemsize)

    @property
    def planned_share(self) -> float:
        """The same as a share of the full cache's peak, both as if the model computed in 16 bits."""
        return self.planned_tokens / max(1, self.geometry.full_peak_tokens)

    @property
    def last_scale(self) -> bool:
        return self.scale == len(self.geometry.scales) - 1

    @property
    def last_tokens(self) -> bool:
        """Whether the running call is the last of its segment."""
        scales = self.geometry.scales
        return self.first + scales.tokens_a_call(self.scale) == scales.tokens[self.scale]

    def _attend(self, layer: int, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        raise NotImplementedError


class Entries(Protocol):
    """What a layer has read with the queries of a segment, for those who look on."""

    def all_heads(self) -> tuple[Tensor, Tensor]:
        """Keys and values ``[B, H, M, D]`` in the order of drawing, where all heads have read everything."""
        ...

    def of_head(self, head: int) -> tuple[Tensor, Tensor, npt.NDArray[np.integer]]:
        """Keys and values ``[B, M, D]`` of a head, and which tokens of the sequence they are, ascending."""
        ...


@dataclass(frozen=True, eq=False)
class Condition:
    """A condition reads itself whole, whatever is cached of it."""

    k_BHTD: Tensor
    v_BHTD: Tensor

    def all_heads(self) -> tuple[Tensor, Tensor]:
        return self.k_BHTD, self.v_BHTD

    def of_head(self, head: int) -> tuple[Tensor, Tensor, npt.NDArray[np.integer]]:
        return self.k_BHTD[:, head], self.v_BHTD[:, head], np.arange(self.k_BHTD.shape[2])


class ScheduleCache(KVCache):
    """Executes a static schedule in exactly the memory that it needs.

    As computed (by_scale.py, by_line.py) or in fewer bits (packed.py, packed_lines.py).
    """

    def __init__(self, geometry: Geometry, schedule: Schedule) -> None:
        super().__init__(geometry)
        schedule.check_matches(geometry)
        self.schedule = schedule
        of_scales = PackedMemory if schedule.encoded else ScaleMemory
        of_lines = PackedLineMemory if schedule.encoded else LineMemory
        self._memory = (of_lines if geometry.scales.by_line else of_scales)(geometry, schedule)
        self._looks = type(self).look is not ScheduleCache.look
        self._queries_L: list[list[Tensor]] = [[] for _ in range(geometry.layers)]

    @property
    def planned_tokens(self) -> int:
        return self.schedule.peak_tokens

    def planned_bytes(self, rows: int, itemsize: int) -> int:
        return self.schedule.peak_bytes(rows, itemsize)

    @property
    def planned_share(self) -> float:
        return self.schedule.peak_share

    def look(self, layer: int, q_BHND: Tensor, entries: Entries) -> None:
        """For subclasses that look on: a layer has read ``entries`` with all queries of a segment.

        A query sees its whole scale, or the whole condition, but of its own line only what comes before it and itself.
        """

    def _attend(self, layer: int, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        memory = self._memory
        if isinstance(memory, ScaleMemory | PackedMemory):
            look = (lambda q, entries: self.look(layer, q, entries)) if self._looks else None
            out_BHND = memory.attend(layer, self.scale, q_BHND, k_BHND, v_BHND, look)
        else:
            if self.scale == 0:
                memory.take_condition(layer, k_BHND, v_BHND, self.hidden_BT)
                if self._looks:
                    self.look(layer, q_BHND, Condition(k_BHND, v_BHND))
                out_BHND = attention(q_BHND, k_BHND, v_BHND, None if self.mask_BNN is None else self.mask_BNN[:, None])
            else:
                out_BHND = memory.attend(layer, self.scale, self.first, q_BHND, k_BHND, v_BHND)
                if self._looks:
                    self._look_at_line(memory, layer, q_BHND)
            if self.last_scale and self.last_tokens and layer == self.geometry.layers - 1:
                memory.release()
        self.tokens, self.allocated_bytes, self.peak_bytes = memory.tokens, memory.allocated_bytes, memory.peak_bytes
        return out_BHND

    def _look_at_line(self, memory: LineMemory | PackedLineMemory, layer: int, q_BHND: Tensor) -> None:
        queries = self._queries_L[layer]
        queries.append(q_BHND)
        if self.last_tokens:
            self.look(layer, torch.cat(queries, 2), memory.entries(layer))
            queries.clear()


def full_cache(geometry: Geometry) -> ScheduleCache:
    """The cache that keeps everything: the schedule that drops nothing."""
    return ScheduleCache(geometry, full_schedule(geometry))


@lru_cache(maxsize=8)
def full_schedule(geometry: Geometry) -> Schedule:
    """One for all images of a geometry, so that what caches work out of it is worked out once."""
    return Schedule.full(geometry, "any")
