"""The one seam: ``KVCache.attend``. Models know nothing of compression, caches nothing of models.

``ScheduleCache`` executes a static ``Schedule`` and frees what it drops; the full cache is the
schedule that drops nothing. ``CalibratingCache`` (calibration.py) and ``ProbeCache`` (probe.py)
observe it from inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from heatkv.attention import Piece, ragged_attention
from heatkv.scales import Geometry
from heatkv.schedule import Schedule, Storage, bytes_per_token


class KVCache:
    """Keys and values of the scales generated so far, for one batch of images.

    ``attend`` is called once a layer a scale, layers in order, scales in order. Subclasses implement
    ``_attend``. ``scale`` is the scale being generated (-1 before the first).
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.scale = -1
        self.allocated_bytes = 0
        self.peak_bytes = 0
        self.tokens = 0
        self._next_layer = 0

    def attend(self, layer: int, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        """Attention of the current scale's queries to what is cached and to their own scale.

        All arguments are ``[batch, heads, tokens, head_dim]``; queries are already scaled (softmax
        scale 1). Returns the same shape as ``q_BHND``. Raises ``ValueError`` where layers, heads or
        tokens do not fit the geometry.
        """
        if layer != self._next_layer:
            raise ValueError(f"layer {layer} attended out of turn: layer {self._next_layer} is next")
        if layer == 0:
            self.scale += 1
        self._next_layer = (layer + 1) % self.geometry.layers
        if self.scale >= len(self.geometry.scales):
            raise ValueError(
                f"the cache was made for {len(self.geometry.scales)} scales; use a new one for a new image"
            )
        expected = (self.geometry.heads, self.geometry.scales.tokens[self.scale], self.geometry.head_dim)
        if tuple(k_BHND.shape[1:]) != expected:
            raise ValueError(
                f"keys of shape {tuple(k_BHND.shape[1:])} at scale {self.scale} do not fit the geometry's "
                f"(heads, tokens, head_dim) = {expected}"
            )
        return self._attend(layer, q_BHND, k_BHND, v_BHND)

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

    def _attend(self, layer: int, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        raise NotImplementedError

    def _count(self, *tensors: Tensor) -> None:
        """Book newly allocated cache tensors."""
        self.allocated_bytes += sum(t.untyped_storage().nbytes() for t in tensors)
        self.peak_bytes = max(self.peak_bytes, self.allocated_bytes)

    def _release(self, *tensors: Tensor) -> None:
        """Book cache tensors about to lose their last reference."""
        self.allocated_bytes -= sum(t.untyped_storage().nbytes() for t in tensors)


@dataclass(frozen=True)
class Stored:
    """Keys or values ``[B, H, M, D]`` as a cache holds them: as they are, or int8 with a factor a token and head.

    The factor is bfloat16: of float32's range, and what it rounds is made up for by the numbers it multiplies.
    """

    numbers: Tensor
    factor: Tensor | None = None

    @classmethod
    def of(cls, x_BHMD: Tensor, storage: Storage) -> Stored:
        """A copy (a view would keep the whole projection alive)."""
        if storage == "compute":
            return cls(x_BHMD.clone(memory_format=torch.contiguous_format))
        x_BHMD = x_BHMD.float()
        # 126.5, so that the largest number is still below 127.5 where the factor is rounded down.
        factor = (x_BHMD.abs().amax(-1, keepdim=True) / 126.5).clamp_min(1e-30).bfloat16()
        return cls((x_BHMD / factor).round_().to(torch.int8), factor)

    def of_heads(self, index: Tensor) -> Stored:
        """A copy for some of the heads."""
        return Stored(
            self.numbers.index_select(1, index), None if self.factor is None else self.factor.index_select(1, index)
        )

    def read(self, dtype: torch.dtype) -> Tensor:
        return self.numbers if self.factor is None else self.numbers.to(dtype) * self.factor.to(dtype)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.numbers,) if self.factor is None else (self.numbers, self.factor)


@dataclass(frozen=True)
class _Cell:
    """One source scale for the heads of a layer (None: all) that drop it at the same time."""

    k: Stored
    v: Stored
    heads: tuple[int, ...] | None
    source: int
    drop_at: int

    @property
    def tokens(self) -> int:
        return self.k.numbers.shape[1] * self.k.numbers.shape[2]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.k.tensors + self.v.tensors


@dataclass
class _Prefix:
    """Scales that no head of a layer ever drops, in one buffer that each scale is written into."""

    k: Tensor
    v: Tensor
    filled: int = 0


def read_cells(cells: Sequence[_Cell], dtype: torch.dtype) -> list[Piece]:
    """What cells hold, in the compute dtype; 8-bit cells are decoded together, which takes fewer operations."""
    if not cells or cells[0].k.factor is None:
        return [Piece(cell.k.read(dtype), cell.v.read(dtype), cell.heads) for cell in cells]
    shapes = [cell.k.numbers.shape for cell in cells]

    def decoded(all_of: list[Stored]) -> list[Tensor]:
        numbers = torch.cat([one.numbers.flatten(1, 2) for one in all_of], 1)
        factor = torch.cat([one.factor.flatten(1, 2) for one in all_of if one.factor is not None], 1)
        runs = Stored(numbers, factor).read(dtype).split([cell.tokens for cell in cells], 1)
        return [run.view(shape) for run, shape in zip(runs, shapes, strict=True)]

    keys, values = decoded([cell.k for cell in cells]), decoded([cell.v for cell in cells])
    return [Piece(k, v, cell.heads) for k, v, cell in zip(keys, values, cells, strict=True)]


class ScheduleCache(KVCache):
    """Executes a static schedule and really frees memory.

    A layer's cells are stored in groups of heads that drop them at the same target scale, so that
    dropping is letting go of a tensor: nothing is compacted, copied or over-allocated. Allocated
    bytes equal the schedule's count of cached tokens after every layer of every scale (before the
    last sink scale, the buffer of the sinks is already there).

    What the running layer needs for the scale being generated is not part of the cache, in this
    class as in the published accounting: its own keys and values, and a copy of the pieces that each
    head reads laid end to end for the kernel (attention.py), in the compute dtype whatever the storage.
    The last scale is never cached, and each layer's cache is released as soon as the last scale has
    passed it.
    """

    def __init__(self, geometry: Geometry, schedule: Schedule, *, prefix_scales: int | None = None) -> None:
        """``prefix_scales``: leading scales kept in one buffer (default: the sinks; all if nothing is dropped)."""
        super().__init__(geometry)
        schedule.check_matches(geometry)
        scales = geometry.scales
        last = len(scales) - 1
        self.schedule = schedule
        if prefix_scales is None:
            drops_nothing = bool((schedule.drop_at_LHS[..., :last] == len(scales)).all())
            prefix_scales = last if drops_nothing else schedule.sink_scales
            if schedule.storage != "compute":  # the buffer is read as it is
                prefix_scales = 0
        self._drop_at_LHS = schedule.drop_at_LHS
        self._prefix_scales = prefix_scales
        self._prefix_tokens = scales.bounds[prefix_scales][0]
        self._prefixes: list[_Prefix | None] = [None] * geometry.layers
        self._cells: list[list[_Cell]] = [[] for _ in range(geometry.layers)]

    @property
    def planned_tokens(self) -> int:
        return self.schedule.peak_tokens

    def planned_bytes(self, rows: int, itemsize: int) -> int:
        return self.planned_tokens * bytes_per_token(self.schedule.storage, self.geometry, rows, itemsize)

    @property
    def planned_share(self) -> float:
        return self.schedule.peak_share

    def _attend(self, layer: int, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        if self.scale < self._prefix_scales:
            return self._read(layer, q_BHND, [self._write_prefix(layer, k_BHND, v_BHND)])
        prefix = self._prefixes[layer]
        first = [] if prefix is None else [Piece(prefix.k, prefix.v)]
        cells = read_cells(self._cells[layer], k_BHND.dtype)
        out_BHND = self._read(layer, q_BHND, [*first, *cells, Piece(k_BHND, v_BHND)])
        self._drop(layer)
        if not self.last_scale:
            self._store(layer, k_BHND, v_BHND)
        return out_BHND

    def _read(self, layer: int, q_BHND: Tensor, pieces: list[Piece]) -> Tensor:
        """Attention over what the layer holds, oldest first, and the scale being generated."""
        return ragged_attention(q_BHND, pieces)

    def _write_prefix(self, layer: int, k_BHND: Tensor, v_BHND: Tensor) -> Piece:
        """Write a scale that all heads keep in place behind the earlier ones; returns all of them."""
        prefix = self._prefixes[layer]
        if prefix is None:
            shape = (*k_BHND.shape[:2], self._prefix_tokens, k_BHND.shape[3])
            prefix = self._prefixes[layer] = _Prefix(k_BHND.new_empty(shape), v_BHND.new_empty(shape))
            self._count(prefix.k, prefix.v)
        start, prefix.filled = prefix.filled, prefix.filled + k_BHND.shape[2]
        prefix.k[:, :, start : prefix.filled] = k_BHND
        prefix.v[:, :, start : prefix.filled] = v_BHND
        self.tokens += k_BHND.shape[1] * k_BHND.shape[2]
        return Piece(prefix.k[:, :, : prefix.filled], prefix.v[:, :, : prefix.filled])

    def _drop(self, layer: int) -> None:
        """Let go of what this layer's attention has read for the last time."""
        prefix, cells = self._prefixes[layer], self._cells[layer]
        gone = cells if self.last_scale else [c for c in cells if c.drop_at == self.scale + 1]
        for cell in gone:
            self._release(*cell.tensors)
            self.tokens -= cell.tokens
        self._cells[layer] = [] if self.last_scale else [c for c in cells if c.drop_at > self.scale + 1]
        if self.last_scale and prefix is not None:
            self._release(prefix.k, prefix.v)
            self.tokens -= prefix.k.shape[1] * prefix.k.shape[2]
            self._prefixes[layer] = None

    def _store(self, layer: int, k_BHND: Tensor, v_BHND: Tensor) -> None:
        """Keep the scale just generated for the heads that will still read it, grouped by when they drop it."""
        keepers = _keepers(self._drop_at_LHS[layer, :, self.scale].tobytes(), k_BHND.device)
        later = [keeper for keeper in keepers if keeper[0] > self.scale + 1]
        if not later:
            return
        # 8-bit numbers are made of all heads at once; as they are, only what is kept is copied.
        compact = self.schedule.storage != "compute"
        whole = [Stored.of(x, self.schedule.storage) if compact else Stored(x) for x in (k_BHND, v_BHND)]
        for drop_at, heads, index in later:
            if heads is not None:
                k, v = (stored.of_heads(index) for stored in whole)
            else:
                k, v = whole if compact else (Stored.of(x, "compute") for x in (k_BHND, v_BHND))
            cell = _Cell(k, v, heads, self.scale, drop_at)
            self._cells[layer].append(cell)
            self._count(*cell.tensors)
            self.tokens += cell.tokens


@lru_cache(maxsize=4096)
def _keepers(drop_at_H: bytes, device: torch.device) -> list[tuple[int, tuple[int, ...] | None, Tensor]]:
    """When heads drop a cell -> which heads (None: all), as numbers and as an index on the device."""
    drop_at = np.frombuffer(drop_at_H, np.int16)
    groups = []
    for when in np.unique(drop_at):
        heads = np.flatnonzero(drop_at == when)
        everyone = len(heads) == len(drop_at)
        index = torch.from_numpy(heads).to(device)
        groups.append((int(when), None if everyone else tuple(heads.tolist()), index))
    return groups


def full_cache(geometry: Geometry) -> ScheduleCache:
    """The cache that keeps everything: the schedule that drops nothing."""
    return ScheduleCache(geometry, Schedule.full(geometry, "any"))
