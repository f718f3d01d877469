"""The memory of schedules that store cells in fewer bits than the model computes in, each in the format it was given.

One ring of bytes serves all layers, exactly as long as the most that the schedule ever holds. What a layer holds lies
in it as one block, format by format: the codes of all tokens, oldest scale first and head by head, then their ranges.
Each layer in turn decodes its block, attends, and puts back what the schedule keeps of it and, encoded, of the new
scale. Codes are never encoded twice.

As in by_scale.py, what the running layer needs is no part of the cache: its own keys and values, and what it reads,
decoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from heatkv.cache.arena import Arena
from heatkv.cache.attention import Reading, on_host, plan_reading, ragged_attention, select, write
from heatkv.cache.by_scale import ScaleEntries
from heatkv.cache.layout import Layout, scales_at_rest
from heatkv.formats import FORMATS, Format
from heatkv.scales import Geometry
from heatkv.schedule import Schedule

Shape = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Section:
    """Cells of one format in one layer while target scale t runs, or their keys or values, if stored differently.

    Parameters
    ----------
    planes, start
        Keys (0), values (1) or both, and the number of the first entry.
    entries, ranges
        How many tokens of a head are held, and how many ranges they have.
    range_of_E
        The range of each entry, where a cell has one for all of its tokens; else None.
    keep_E, keep_R
        Which of them stay once t has run; None: all.
    kept_entries, kept_ranges
        How many those are.
    heads_H
        The heads whose cells of t are stored in this format, and how many: None for all of them.
    """

    form: Format
    planes: slice
    start: int
    entries: int
    ranges: int
    range_of_E: Tensor | None
    keep_E: Tensor | None
    keep_R: Tensor | None
    kept_entries: int
    kept_ranges: int
    heads_H: Tensor | None
    heads: int
    tokens: int

    def shapes(self, stored: bool, batch: int, dim: int) -> tuple[Shape, Shape]:
        """Of codes and ranges, held or to be stored: ``[how many, planes, B, bytes]``."""
        form, planes = self.form, self.planes.stop - self.planes.start
        by_cell = form.ranges == "channel"
        entries, count = self.entries, self.ranges
        if stored:
            entries = self.kept_entries + self.heads * self.tokens
            count = self.kept_ranges + self.heads * (1 if by_cell else self.tokens)
        range_bytes = form.range_size * (dim if by_cell else 1)
        return (entries, planes, batch, form.code_bytes(dim)), (count, planes, batch, range_bytes)


class Parts:
    """How a block is divided: codes and ranges of each section, end to end."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self.shapes, self.sizes = shapes, [math.prod(shape) for shape in shapes]
        self.bytes = sum(self.sizes)

    def of(self, block: Tensor) -> list[Tensor]:
        return [part.view(shape) for part, shape in zip(block.split(self.sizes), self.shapes, strict=True)]


@dataclass(frozen=True, eq=False)
class PackedStep:
    """What a layer does at one scale: its sections, and how heads read the held entries and, behind them, the new.

    ``held`` and ``next`` are the parts of its block, before and after.
    """

    sections: tuple[Section, ...]
    held: Parts
    next: Parts
    layout: Layout
    reading: Reading
    stored: int  # tokens after it


def packed_step(
    drop_at: bytes, stored_as: bytes, tokens_S: tuple[int, ...], t: int, batch: int, dim: int, dtype: torch.dtype,
    device: torch.device,
) -> PackedStep:  # fmt: skip
    """The step of a layer, from its rows of a schedule's int16 and int8 tables."""
    drop_at_HS = np.frombuffer(drop_at, np.int16).reshape(-1, len(tokens_S))
    stored_as_HS = np.frombuffer(stored_as, np.int8).reshape(-1, len(tokens_S))
    heads, new = len(drop_at_HS), tokens_S[t]
    held_HS, stays_HS = drop_at_HS[:, : t + 1] > t, drop_at_HS[:, : t + 1] > t + 1
    held_HS[:, t] = False
    sections: list[Section] = []
    start_HS = np.zeros((heads, t + 1), np.int64)
    length_HS = held_HS * np.array(tokens_S[: t + 1])
    first = 0
    for i, form in enumerate(FORMATS.values()):
        own_HS = held_HS & (stored_as_HS[:, : t + 1] == i)
        s, head = np.nonzero(own_HS.T)  # oldest scale first, head by head
        count = np.array(tokens_S)[s]
        start_HS[head, s] = first + count.cumsum() - count
        heads_H = np.nonzero((stored_as_HS[:, t] == i) & stays_HS[:, t])[0]
        if not len(s) and not len(heads_H):
            continue
        stays_C = stays_HS[head, s]
        stays_E = np.repeat(stays_C, count)
        for planes, side in form.sides:
            by_cell = side.ranges == "channel"
            stays_R = stays_C if by_cell else stays_E
            sections.append(
                Section(
                    side, planes, first, int(count.sum()), len(stays_R),
                    on_host(np.repeat(np.arange(len(s)), count), device) if by_cell else None,
                    None if stays_E.all() else on_host(np.nonzero(stays_E)[0], device),
                    None if stays_R.all() else on_host(np.nonzero(stays_R)[0], device),
                    int(stays_E.sum()), int(stays_R.sum()),
                    None if len(heads_H) == heads else on_host(heads_H, device), len(heads_H), new,
                )
            )  # fmt: skip
        first += int(count.sum())
    start_HS[:, t], length_HS[:, t] = first + new * np.arange(heads), new
    layout = Layout(start_HS, length_HS, first, False, stays_HS)
    read = plan_reading(
        [layout.entries_of(head) for head in range(heads)], layout.entries, batch * new, dim, dtype, device
    )  # fmt: skip
    held, after = (
        Parts([shape for s in sections for shape in s.shapes(stored, batch, dim)]) for stored in (False, True)
    )
    stored = int(stays_HS @ np.array(tokens_S[: t + 1]) @ np.ones(heads))
    return PackedStep(tuple(sections), held, after, layout, read, stored)


class PackedMemory:
    """Executes a static schedule over scales whose cells are encoded, in exactly the bytes that it needs.

    ``allocated_bytes`` counts what is held; ``peak_bytes`` is the ring.
    """

    def __init__(self, geometry: Geometry, schedule: Schedule) -> None:
        self.geometry, self.schedule = geometry, schedule
        self.tokens = self.allocated_bytes = self.peak_bytes = 0
        self._at_rest = scales_at_rest(schedule.drop_at_LHS)
        tables = zip(schedule.drop_at_LHS, schedule.formats_LHS, strict=True)
        self._tables = [(drop_at_HS.tobytes(), form_HS.tobytes()) for drop_at_HS, form_HS in tables]
        self._arena: Arena | None = None
        self._block_L = [(0, 0)] * geometry.layers  # where the block of each layer starts, and its bytes

    def attend(
        self, layer: int, scale: int, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor,
        look: Callable[[Tensor, ScaleEntries], None] | None,
    ) -> Tensor:  # fmt: skip
        """Attention of a scale, which is then stored as the schedule says; ``look`` sees what is read."""
        batch, heads, _, dim = q_BHND.shape
        if self._arena is None:
            self.peak_bytes = self.schedule.peak_bytes(batch, q_BHND.element_size())
            self._arena = Arena(q_BHND.new_empty(self.peak_bytes, dtype=torch.uint8))
        tokens_S = self.geometry.scales.tokens
        now = self._step(layer, scale, q_BHND)
        start, size = self._block_L[layer]
        block = self._arena.read(start, size)
        entries_E2BD = k_BHND.new_empty(now.layout.entries, 2, batch, dim)
        decode_block(now, block, entries_E2BD[: now.layout.held])
        _, new_HN2BD = now.layout.held_and_new(entries_E2BD)
        write(new_HN2BD, k_BHND, v_BHND)
        by_head = entries_E2BD.unflatten(0, (heads, -1)) if now.reading.index_E is None else entries_E2BD
        if look is not None:
            look(q_BHND, ScaleEntries(entries_E2BD, now.layout, self.geometry.scales.bounds[: scale + 1]))
        out_BHND = ragged_attention(q_BHND, by_head, now.reading)
        if scale == len(tokens_S) - 1:
            self._arena.free(size)
        elif scale not in self._at_rest:
            self._put(layer, encode_block(now, block, new_HN2BD))
        self.tokens += now.stored - now.layout.held
        self.allocated_bytes = self._arena.used
        if scale == len(tokens_S) - 1 and layer == self.geometry.layers - 1:
            self._arena = None
        return out_BHND

    def _step(self, layer: int, scale: int, q_BHND: Tensor) -> PackedStep:
        """What is worked out once a schedule; layers that store the same share it."""
        batch, _, _, dim = q_BHND.shape
        known, key = self.schedule.worked_out, (*self._tables[layer], scale, batch, q_BHND.dtype, q_BHND.device)
        found: PackedStep | None = known.get(key)
        if found is None:
            tokens_S = self.geometry.scales.tokens
            found = known[key] = packed_step(
                *self._tables[layer], tokens_S, scale, batch, dim, q_BHND.dtype, q_BHND.device
            )
        return found

    def _put(self, layer: int, block: Tensor) -> None:
        """Let go of what a layer holds and put ``block`` in its place."""
        assert self._arena is not None
        self._arena.free(self._block_L[layer][1])
        start = self._arena.room(len(block))
        self._block_L[layer] = start, len(block)
        first = 0
        for room in self._arena.runs(start, len(block)):
            room.copy_(block[first : first + len(room)])
            first += len(room)


def decode_block(now: PackedStep, block: Tensor, out_E2BD: Tensor) -> None:
    """All that a layer holds, in the compute dtype, as its layout numbers it."""
    parts = now.held.of(block)
    for section, codes, own in zip(now.sections, parts[::2], parts[1::2], strict=True):
        if not section.entries:
            continue
        step, low = section.form.steps(own)
        if section.range_of_E is not None:
            step, low = select(step, 0, section.range_of_E), select(low, 0, section.range_of_E)
        own_E2BD = out_E2BD[section.start : section.start + section.entries, section.planes]
        section.form.decode(codes, (step, low), own_E2BD)


def encode_block(now: PackedStep, block: Tensor, new_HN2BD: Tensor) -> Tensor:
    """What a layer holds next: of ``block`` what stays, and the new cells that are kept."""
    out = block.new_empty(now.next.bytes)
    held, after = now.held.of(block), now.next.of(out)
    for section, codes, own, next_codes, next_own in zip(
        now.sections, held[::2], held[1::2], after[::2], after[1::2], strict=True
    ):
        keep(codes, section.keep_E, next_codes[: section.kept_entries])
        keep(own, section.keep_R, next_own[: section.kept_ranges])
        if section.heads:
            new = new_HN2BD if section.heads_H is None else select(new_HN2BD, 0, section.heads_H)
            rooms = next_codes[section.kept_entries :], next_own[section.kept_ranges :]
            for part, room in zip(section.form.encode(new[:, :, section.planes], tokens=1), rooms, strict=True):
                room.view(part.shape).copy_(part)
    return out


def keep(rows: Tensor, which: Tensor | None, out: Tensor) -> None:
    """Write into ``out`` those that stay; None: all."""
    if which is None:
        out.copy_(rows)
    elif len(out):
        select(rows, 0, which, out=out)
