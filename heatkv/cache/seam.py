"""The one seam: ``KVCache.attend``. Models know nothing of compression, caches nothing of models.

``ScheduleCache`` executes a static ``Schedule`` and frees what it drops; the full cache is the
schedule that drops nothing. ``CalibratingCache`` (calibration.py) and ``ProbeCache`` (probe.py)
observe it from inside; the caches of dynamic policies are in policies/tokens.py.
"""

from __future__ import annotations

from torch import Tensor

from heatkv.cache.arena import Arena, decode, encode, memory_for
from heatkv.cache.attention import keys_and_values, ragged_attention, select
from heatkv.cache.layout import Layout, Step, scales_at_rest, scales_in_place, step
from heatkv.scales import Geometry
from heatkv.schedule import Schedule, bytes_per_token


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


class ScheduleCache(KVCache):
    """Executes a static schedule in exactly the memory that it needs.

    One arena (arena.py), as long as the most tokens that the schedule ever holds, serves all layers.

    - The leading scales that all heads keep have their places in it from the start, and are written there.
    - Then each layer in turn reads what it holds, frees it, and puts back what the schedule keeps of it and of the
      new scale, so that the room of what it drops is there for the next layer. Where a scale leaves every layer with
      what it had, nothing moves.
    - The last scale is never cached; the arena is released when it has passed the last layer.

    Which entries are read and kept is worked out once a schedule (layout.py).

    What the running layer needs for the scale being generated is not part of the cache, in this class as in the
    published accounting: its own keys and values, and the entries that each head reads laid end to end for the kernel
    (attention.py), in the compute dtype whatever the storage.

    ``allocated_bytes`` counts the tokens held; ``peak_bytes`` is the arena.
    """

    def __init__(self, geometry: Geometry, schedule: Schedule) -> None:
        super().__init__(geometry)
        schedule.check_matches(geometry)
        self.schedule = schedule
        self._encoded = schedule.storage != "compute"
        self._in_place = scales_in_place(schedule.drop_at_LHS)
        self._at_rest = scales_at_rest(schedule.drop_at_LHS)
        self._tables = [table_HS.tobytes() for table_HS in schedule.drop_at_LHS]
        self._arena: Arena | None = None
        self._start_L = [0] * geometry.layers
        self._leading: dict[int, Tensor] = {}

    @property
    def planned_tokens(self) -> int:
        return self.schedule.peak_tokens

    def planned_bytes(self, rows: int, itemsize: int) -> int:
        return self.planned_tokens * bytes_per_token(self.schedule.storage, self.geometry, rows, itemsize)

    @property
    def planned_share(self) -> float:
        return self.schedule.peak_share

    def _attend(self, layer: int, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        if self._arena is None:
            self._arena = Arena(memory_for(self.planned_tokens, k_BHND, self.schedule.storage))
            self.peak_bytes = self._arena.entries.nbytes
        batch, _, _, dim = q_BHND.shape
        table, tokens_S = self._tables[layer], self.geometry.scales.tokens
        now = step(table, tokens_S, self.scale, batch, dim, q_BHND.dtype, q_BHND.device)
        if self.scale < self._in_place:
            out_BHND = self._read(layer, q_BHND, self._append(self._arena, layer, k_BHND, v_BHND, now.layout), now)
        else:
            stored = now.layout.by_head(self._arena.read(self._start_L[layer], now.layout.held))
            entries_E2BD = self._gather(stored, k_BHND, v_BHND, now.layout)
            out_BHND = self._read(layer, q_BHND, now.layout.by_head(entries_E2BD), now)
            if self.scale not in self._at_rest:
                self._store(self._arena, layer, stored, entries_E2BD, now)
        self.tokens += now.stored - now.layout.held
        self.allocated_bytes = self.tokens * self._arena.entry_bytes
        if self.last_scale and layer == self.geometry.layers - 1:
            self._arena = None
            self._leading.clear()
        return out_BHND

    def _read(self, layer: int, q_BHND: Tensor, entries: Tensor, now: Step) -> Tensor:
        """Attention over what the layer holds and the scale being generated, ``Layout.by_head`` of all entries."""
        return ragged_attention(q_BHND, entries, now.reading)

    def _append(self, arena: Arena, layer: int, k_BHND: Tensor, v_BHND: Tensor, layout: Layout) -> Tensor:
        """Write a leading scale behind the earlier ones; returns the entries of all of them, by head."""
        start, end = self.geometry.scales.bounds[self.scale]
        if layer not in self._leading:
            heads, tokens = self.geometry.heads, self.geometry.scales.bounds[self._in_place][0]
            self._start_L[layer] = arena.room(heads * tokens)
            entries = arena.read(self._start_L[layer], heads * tokens)
            self._leading[layer] = entries.view(heads, tokens, *entries.shape[1:])
        leading = self._leading[layer]
        if not self._encoded:
            write(leading[:, start:end], k_BHND, v_BHND)
            return leading[:, :end]
        entries_E2BD = self._gather(leading[:, :start], k_BHND, v_BHND, layout)
        encode(layout.held_and_new(entries_E2BD)[1], leading[:, start:end])
        return layout.by_head(entries_E2BD)

    def _gather(self, stored: Tensor, k_BHND: Tensor, v_BHND: Tensor, layout: Layout) -> Tensor:
        """What the layer holds and the new scale, in the compute dtype, numbered as the layout says."""
        entries_E2BD = k_BHND.new_empty(layout.entries, 2, len(k_BHND), k_BHND.shape[3])
        held, new_HN2BD = layout.held_and_new(entries_E2BD)
        if self._encoded:
            decode(stored, held)
        else:
            held.copy_(stored)
        write(new_HN2BD, k_BHND, v_BHND)
        return entries_E2BD

    def _store(self, arena: Arena, layer: int, stored: Tensor, entries_E2BD: Tensor, now: Step) -> None:
        """Let go of what the layer holds and put back what the schedule still needs of all entries."""
        layout = now.layout
        if self._encoded and now.stored:
            bytes_E2BY = arena.entries.new_empty(layout.entries, *arena.entries.shape[1:])
            held, new = layout.held_and_new(bytes_E2BY)
            held.copy_(stored)
            encode(layout.held_and_new(entries_E2BD)[1], new)
            entries_E2BD = bytes_E2BY
        arena.free(layout.held)
        if not now.stored:
            return
        self._start_L[layer] = start = arena.room(now.stored)
        first = 0
        for room in arena.runs(start, now.stored):
            if now.keep_E is None:
                room.copy_(entries_E2BD[first : first + len(room)])
            else:
                select(entries_E2BD, 0, now.keep_E[first : first + len(room)], out=room)
            first += len(room)


def write(entries_HN2BD: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> None:
    """Write keys and values where entries are wanted."""
    for out_BHND, x_BHND in zip(keys_and_values(entries_HN2BD), (k_BHND, v_BHND), strict=True):
        out_BHND.copy_(x_BHND)


def full_cache(geometry: Geometry) -> ScheduleCache:
    """The cache that keeps everything: the schedule that drops nothing."""
    return ScheduleCache(geometry, Schedule.full(geometry, "any"))
