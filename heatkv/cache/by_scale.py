"""How scales are cached: each is handed over whole, and the layers take turns in one ring of memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from heatkv.cache.arena import Arena
from heatkv.cache.attention import keys_and_values, ragged_attention, select, write
from heatkv.cache.layout import Layout, Step, ranges, scales_at_rest, scales_in_place, step
from heatkv.scales import Geometry
from heatkv.schedule import Schedule


class ScaleMemory:
    """Executes a static schedule over scales, cells as computed, in exactly the memory that it needs.

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
        self.geometry, self.schedule = geometry, schedule
        self.tokens = self.allocated_bytes = self.peak_bytes = 0
        self._in_place = scales_in_place(schedule.drop_at_LHS)
        self._at_rest = scales_at_rest(schedule.drop_at_LHS)
        self._tables = [table_HS.tobytes() for table_HS in schedule.drop_at_LHS]
        self._arena: Arena | None = None
        self._start_L = [0] * geometry.layers
        self._leading: dict[int, Tensor] = {}

    def attend(
        self, layer: int, scale: int, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor,
        look: Callable[[Tensor, ScaleEntries], None] | None,
    ) -> Tensor:  # fmt: skip
        """Attention of a scale, which is then stored as the schedule says; ``look`` sees what is read."""
        if self._arena is None:
            batch, _, _, dim = k_BHND.shape
            self._arena = Arena(k_BHND.new_empty(self.schedule.peak_tokens, 2, batch, dim))
            self.peak_bytes = self._arena.entries.nbytes
        now = self._step(layer, scale, q_BHND)
        in_place = scale < self._in_place
        if in_place:
            entries = self._append(self._arena, layer, scale, k_BHND, v_BHND)
        else:
            stored = now.layout.by_head(self._arena.read(self._start_L[layer], now.layout.held))
            entries_E2BD = self._gather(stored, k_BHND, v_BHND, now.layout)
            entries = now.layout.by_head(entries_E2BD)
        if look is not None:
            look(q_BHND, ScaleEntries(entries, now.layout, self.geometry.scales.bounds[: scale + 1]))
        out_BHND = ragged_attention(q_BHND, entries, now.reading)
        if not in_place and scale not in self._at_rest:
            self._store(self._arena, layer, stored, entries_E2BD, now)
        self.tokens += now.stored - now.layout.held
        self.allocated_bytes = self.tokens * self._arena.entry_bytes
        if scale == len(self.geometry.scales) - 1 and layer == self.geometry.layers - 1:
            self._arena = None
            self._leading.clear()
        return out_BHND

    def _step(self, layer: int, scale: int, q_BHND: Tensor) -> Step:
        """What is worked out once a schedule; layers that drop the same share it."""
        batch, _, _, dim = q_BHND.shape
        table, known = self._tables[layer], self.schedule.worked_out
        key = (table, scale, batch, dim, q_BHND.dtype, q_BHND.device)
        found: Step | None = known.get(key)
        if found is None:
            tokens_S = self.geometry.scales.tokens
            found = known[key] = step(table, tokens_S, scale, batch, dim, q_BHND.dtype, q_BHND.device)
        return found

    def _append(self, arena: Arena, layer: int, scale: int, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        """Write a leading scale behind the earlier ones; returns the entries of all of them, by head."""
        start, end = self.geometry.scales.bounds[scale]
        if layer not in self._leading:
            heads, tokens = self.geometry.heads, self.geometry.scales.bounds[self._in_place][0]
            self._start_L[layer] = arena.room(heads * tokens)
            entries = arena.read(self._start_L[layer], heads * tokens)
            self._leading[layer] = entries.view(heads, tokens, *entries.shape[1:])
        leading = self._leading[layer]
        write(leading[:, start:end], k_BHND, v_BHND)
        return leading[:, :end]

    def _gather(self, stored: Tensor, k_BHND: Tensor, v_BHND: Tensor, layout: Layout) -> Tensor:
        """What the layer holds and the new scale, in the compute dtype, numbered as the layout says."""
        entries_E2BD = k_BHND.new_empty(layout.entries, 2, len(k_BHND), k_BHND.shape[3])
        held, new_HN2BD = layout.held_and_new(entries_E2BD)
        held.copy_(stored)
        write(new_HN2BD, k_BHND, v_BHND)
        return entries_E2BD

    def _store(self, arena: Arena, layer: int, stored: Tensor, entries_E2BD: Tensor, now: Step) -> None:
        """Let go of what the layer holds and put back what the schedule still needs of all entries."""
        layout = now.layout
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


@dataclass(frozen=True, eq=False)
class ScaleEntries:
    """What a layer reads with the queries of a scale, for those who look on (`heatkv.cache.seam.Entries`)."""

    entries: Tensor
    layout: Layout
    bounds: tuple[tuple[int, int], ...]

    def all_heads(self) -> tuple[Tensor, Tensor]:
        return keys_and_values(self.entries)

    def of_head(self, head: int) -> tuple[Tensor, Tensor, npt.NDArray[np.int64]]:
        layout = self.layout
        own = self.entries[head] if layout.aligned else self.entries[torch.from_numpy(layout.entries_of(head))]
        k_BMD, v_BMD = own.permute(1, 2, 0, 3).unbind()
        return k_BMD, v_BMD, ranges(np.array([start for start, _ in self.bounds]), layout.length_HS[head])
