"""How lines are cached in fewer bits than the model computes in, in exactly the bytes that the schedule plans.

A line that is being drawn is in 8 bits, a range a token. Once it is complete, what the schedule keeps of it is stored
in the format that each cell was given; what is in 8 bits stays as it is. The condition comes whole and is encoded once.
Each layer has one block of bytes, taken when a line begins: for what is in 8 bits, with the room of the line, and for
the cells of every other format.

What the running call needs is no part of the cache: the token at hand as computed, until all layers have read it and
all of them encode it in one go, and what a layer reads, as numbers. Entries in 8 bits are read as the whole numbers
that they are stored as. Their step and their first number, one each for all channels of a key, can wait until queries
have been multiplied with them, and likewise those of values: ``q (s c + f) = s (q c) + f sum(q)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from heatkv.cache.attention import entry_kinds, hiding, on_host, select
from heatkv.cache.packed import Parts
from heatkv.formats import FORMATS, OPEN_LINE, Format
from heatkv.scales import Geometry, ScaleSchedule
from heatkv.schedule import Schedule

Ints = npt.NDArray[np.integer]
BY_TOKEN = [i for i, form in enumerate(FORMATS.values()) if form is OPEN_LINE]


@dataclass(frozen=True, eq=False)
class Part:
    """Cells of one layer in one format, but for the one that goes token by token; all of so many tokens.

    Parameters
    ----------
    head_C, segment_C
        Whose every cell is, and of which segment.
    keep_C
        Which cells of the part before stay, in front (None: there was none).
    new_H
        The heads whose cell of the newest segment comes, behind them.
    """

    form: Format
    tokens: int
    head_C: Ints
    segment_C: Ints
    keep_C: Tensor | None
    new_H: Tensor


@dataclass(frozen=True, eq=False)
class LinePlan:
    """What a layer holds while a line is drawn.

    Parameters
    ----------
    parts
        Cells in other formats than 8 bits a range a token, by format and tokens of a cell.
    head_E, position_E
        Whose every entry is, and which token of the sequence: those of the parts, cell by cell, then those in 8
        bits, and of these the room of the line last, token by token.
    kind_E
        What hides each (`attention.hiding`).
    keep_E
        Which of the entries in 8 bits before, or of the condition, are held.
    room
        Tokens of the line, all heads alike.

    All of these are on the host: those of all lines and layers together take as much as what they number.
    """

    parts: dict[tuple[int, int], Part]
    head_E: Ints
    position_E: Ints
    kind_E: Tensor
    keep_E: Tensor
    room: int

    @cached_property
    def in_parts(self) -> int:
        """Entries in the parts."""
        return sum(part.tokens * len(part.head_C) for part in self.parts.values())

    def block(self, batch: int, dim: int) -> Parts:
        """How the block is divided: codes and ranges of all entries in 8 bits, then of each part."""
        form, entries = OPEN_LINE, (2, batch, len(self.head_E) - self.in_parts)
        shapes: list[tuple[int, ...]] = [(*entries, form.code_bytes(dim)), (*entries, form.range_bytes(1, dim))]
        for part in self.parts.values():
            for planes, form in part.form.sides:
                cells, by_cell = (planes.stop - planes.start, batch, len(part.head_C)), form.ranges == "channel"
                shapes.append((*cells, part.tokens, form.code_bytes(dim)))
                shapes.append((*cells, 1 if by_cell else part.tokens, form.range_bytes(1, dim)))
        return Parts(shapes)


def plan_line(
    drop_at_HS: npt.NDArray[np.integer], formats_HS: npt.NDArray[np.integer], scales: ScaleSchedule, line: int,
    before: LinePlan | None, device: torch.device,
) -> LinePlan:  # fmt: skip
    """Lay out what is held while a line is drawn; ``before`` is None where only the condition came before."""
    heads, newest = np.arange(len(drop_at_HS)), line - 1
    held_H = drop_at_HS[:, newest] > line
    old = before.parts if before else {}
    keys = {*old, *((int(form), scales.tokens[newest]) for form in formats_HS[held_H, newest] if form not in BY_TOKEN)}
    parts, head_E, position_E = {}, [], []
    for key in sorted(keys):
        part, keep_C = old.get(key), None
        new_H = heads[held_H & (formats_HS[:, newest] == key[0])] if key[1] == scales.tokens[newest] else heads[:0]
        head_C, segment_C = new_H, np.full(len(new_H), newest)
        if part is not None:
            kept = np.flatnonzero(drop_at_HS[part.head_C, part.segment_C] > line)
            keep_C = on_host(kept, device)
            head_C = np.concatenate([part.head_C[kept], head_C])
            segment_C = np.concatenate([part.segment_C[kept], segment_C])
        if not len(head_C):
            continue
        form = list(FORMATS.values())[key[0]]
        parts[key] = Part(form, key[1], head_C, segment_C, keep_C, on_host(new_H, device))
        first_S = np.array([first for first, _ in scales.bounds])
        head_E.append(np.repeat(head_C, key[1]))
        position_E.append((first_S[segment_C][:, None] + np.arange(key[1])).ravel())
    was_head_E: Ints = np.tile(heads, scales.tokens[0])
    was_position_E: Ints = np.repeat(np.arange(scales.tokens[0]), len(heads))
    if before is not None:
        was_head_E, was_position_E = before.head_E[before.in_parts :], before.position_E[before.in_parts :]
    segment_E = np.searchsorted([end for _, end in scales.bounds], was_position_E, side="right")
    stays_E = (drop_at_HS[was_head_E, segment_E] > line) & np.isin(formats_HS[was_head_E, segment_E], BY_TOKEN)
    keep_E, drawn = np.flatnonzero(stays_E), np.arange(*scales.bounds[line])
    head_E += [was_head_E[keep_E], np.tile(heads, len(drawn))]
    position_E += [was_position_E[keep_E], np.repeat(drawn, len(heads))]
    # Remembered for every line of every layer: in half the bytes.
    whose_E, which_E = (np.concatenate(x).astype(np.int32) for x in (head_E, position_E))
    kinds_E = entry_kinds(which_E, whose_E, scales.tokens[0], len(heads))
    return LinePlan(parts, whose_E, which_E, on_host(kinds_E, device), on_host(keep_E, device), len(drawn))


@lru_cache(maxsize=4)
def token_steps(device: torch.device) -> tuple[Tensor, Tensor]:
    """Step and first number of every range of two bytes, read as a number of 16 bits, from -32768 on: ``[65536]``."""
    ranges = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16, device=device)
    step, first = OPEN_LINE.steps(ranges[:, None].view(torch.uint8))
    return step.flatten(), first.flatten()


class HeldLines:
    """The memory of a layer while a line is drawn, and attention over it."""

    def __init__(
        self, plan: LinePlan, before: HeldLines | None, codes: Tensor, ranges: Tensor, newest_2BHND: Tensor
    ) -> None:
        """Take over what is kept of the entries ``codes`` and ``ranges``, of the parts before, and of ``newest``."""
        _, batch, self.heads, _, dim = newest_2BHND.shape
        self.plan, self.drawn = plan, 0
        block = plan.block(batch, dim)
        self.memory = codes.new_empty(block.bytes)
        self.codes, self.ranges, *stored = block.of(self.memory)
        self.parts: dict[tuple[int, int], list[Tensor]] = {}
        for key, part in plan.parts.items():
            self.parts[key], stored = stored[: 2 * len(part.form.sides)], stored[2 * len(part.form.sides) :]
            kept = 0
            if before is not None and part.keep_C is not None:
                kept = len(part.keep_C)
                for room, was in zip(self.parts[key], before.parts[key], strict=True):
                    room[:, :, :kept] = select(was, 2, part.keep_C)
            if len(part.new_H):
                new_2BHND = select(newest_2BHND, 2, part.new_H)
                encoded = [x for planes, form in part.form.sides for x in form.encode(new_2BHND[planes])]
                for room, came in zip(self.parts[key], encoded, strict=True):
                    room[:, :, kept:] = came
        self.held = len(plan.keep_E)
        self.codes[:, :, : self.held] = select(codes, 2, plan.keep_E)
        self.ranges[:, :, : self.held] = select(ranges, 2, plan.keep_E)

    @property
    def entries(self) -> int:
        """Entries that are stored, of all heads."""
        return self.plan.in_parts + self.held + self.drawn * self.heads

    def attend(self, q_BH1D: Tensor, k_BH1D: Tensor, v_BH1D: Tensor, hiding_BHX: Tensor) -> Tensor:
        """Attention ``[B, heads, 1, D]`` to all that is stored and the token at hand; ``hiding``: see there."""
        first, end = self.plan.in_parts, self.entries
        numbers_2BED, steps_2BE, firsts_2BE = self._numbers(k_BH1D, v_BH1D)
        keys, values = numbers_2BED.unbind()
        q_BHD = q_BH1D.squeeze(2).float()
        bias_BHE = select(hiding_BHX, 2, self.plan.kind_E[: end + self.heads])
        logits_BHE = torch.baddbmm(bias_BHE, q_BHD, keys.transpose(1, 2))
        by_token = logits_BHE[..., first:end]
        by_token.mul_(steps_2BE[0].unsqueeze(1)).baddbmm_(q_BHD.sum(-1, keepdim=True), firsts_2BE[0].unsqueeze(1))
        p_BHE = logits_BHE.softmax(-1)
        by_token = p_BHE[..., first:end]
        out_BH1 = torch.mul(by_token, firsts_2BE[1].unsqueeze(1)).sum(-1, keepdim=True)
        by_token.mul_(steps_2BE[1].unsqueeze(1))
        return torch.bmm(p_BHE, values).add_(out_BH1).unsqueeze(2).to(q_BH1D.dtype)

    def _numbers(self, k_BH1D: Tensor, v_BH1D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is read, the token at hand last: of entries in 8 bits the codes, steps and first numbers."""
        batch, heads, _, dim = k_BH1D.shape
        first, end = self.plan.in_parts, self.entries
        numbers_2BED = torch.empty(2, batch, end + heads, dim, device=self.memory.device)
        self._decode_parts(numbers_2BED[:, :, :first])
        numbers_2BED[:, :, first:end] = self.codes[:, :, : end - first]
        numbers_2BED[:, :, end:] = torch.stack((k_BH1D, v_BH1D)).squeeze(3)
        index_2BE = self.ranges[:, :, : end - first].view(torch.int16).squeeze(-1).int().add_(1 << 15)
        steps, firsts = (table.index_select(0, index_2BE.flatten()) for table in token_steps(self.memory.device))
        return numbers_2BED, steps.view(index_2BE.shape), firsts.view(index_2BE.shape)

    def _decode_parts(self, out_2BED: Tensor) -> None:
        """All cells of the parts, in their order."""
        first = 0
        for key, part in self.plan.parts.items():
            stored, cells = self.parts[key], (len(part.head_C), part.tokens)
            own = out_2BED[:, :, first : first + math.prod(cells)].unflatten(2, cells)
            for (planes, form), codes, ranges in zip(part.form.sides, stored[::2], stored[1::2], strict=True):
                form.decode(codes, form.steps(ranges), own[planes])
            first += math.prod(cells)

    def read(self) -> Tensor:
        """Keys and values of all that is stored, ``[2, B, E, D]`` in float32, in the order of the plan."""
        dim, first = self.codes.shape[-1], self.plan.in_parts
        out = torch.empty(*self.codes.shape[:2], self.entries, dim, device=self.memory.device)
        self._decode_parts(out[:, :, :first])
        codes, ranges = (x[:, :, : self.entries - first] for x in (self.codes, self.ranges))
        OPEN_LINE.decode(codes, OPEN_LINE.steps(ranges), out[:, :, first:])
        return out

    def line(self) -> Tensor:
        """Keys and values of the line that was drawn, ``[2, B, heads, tokens, D]`` in float32."""
        codes, ranges = (x[:, :, self.held :] for x in (self.codes, self.ranges))
        out = torch.empty(codes.shape, device=self.memory.device)
        OPEN_LINE.decode(codes, OPEN_LINE.steps(ranges), out)
        return out.unflatten(2, (-1, self.heads)).transpose(2, 3)

    def write(self, codes_2BHD: Tensor, ranges_2BH2: Tensor) -> None:
        """Store a token in the room of its line."""
        place = self.held + self.drawn * self.heads
        self.codes[:, :, place : place + self.heads] = codes_2BHD
        self.ranges[:, :, place : place + self.heads] = ranges_2BH2
        self.drawn += 1


class PackedLineMemory:
    """Executes a static schedule over lines whose cells are encoded.

    ``allocated_bytes`` is what has been taken, room of the line included; ``tokens`` counts what is held.
    """

    def __init__(self, geometry: Geometry, schedule: Schedule) -> None:
        self.geometry, self.schedule = geometry, schedule
        self.tokens = self.allocated_bytes = self.peak_bytes = 0
        self.holders: list[HeldLines] = []
        self._hiding_BHX: Tensor | None = None
        self._at_hand: list[Tensor] = []  # keys and values of the token that layers are reading

    def attend(self, layer: int, segment: int, first: int, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        """Attention of token ``first`` of a line, which is cached with it."""
        if first == 0 and layer == 0 and segment > 1:
            self._begin(segment)
        assert self._hiding_BHX is not None
        out_BHND = self.holders[layer].attend(q_BHND, k_BHND, v_BHND, self._hiding_BHX)
        self._at_hand.append(torch.stack((k_BHND, v_BHND)))
        if len(self._at_hand) == self.geometry.layers:
            codes, ranges = OPEN_LINE.encode(torch.stack(self._at_hand).squeeze(4))
            for held, own_codes, own_ranges in zip(self.holders, codes, ranges, strict=True):
                held.write(own_codes, own_ranges)
            self._at_hand.clear()
        self.tokens += self.geometry.heads
        return out_BHND

    def take_condition(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor, hidden_BT: Tensor | None) -> None:
        """Cache what the schedule keeps of a condition, and take the room of the first line."""
        newest_2BHND = torch.stack((k_BHTD, v_BHTD)).float()
        if layer == 0:
            self._hiding_BHX = hiding(hidden_BT, k_BHTD.shape[2], k_BHTD.shape[1], newest_2BHND)
        codes, ranges = (x.transpose(2, 3).flatten(2, 3) for x in OPEN_LINE.encode(newest_2BHND))
        plan = self._plan(layer, 1, None, k_BHTD.device)
        self.holders.append(HeldLines(plan, None, codes, ranges, newest_2BHND))
        self._count()

    def _begin(self, line: int) -> None:
        """Begin a line: every layer moves what it keeps into new memory, those that shrink first."""
        plans = [self._plan(layer, line, held.plan, held.memory.device) for layer, held in enumerate(self.holders)]
        growth_L = [
            plan.block(*held.codes.shape[1::2]).bytes - len(held.memory)
            for plan, held in zip(plans, self.holders, strict=True)
        ]
        for layer in sorted(range(len(plans)), key=lambda layer: growth_L[layer]):
            held = self.holders[layer]
            self.holders[layer] = HeldLines(plans[layer], held, held.codes, held.ranges, held.line())
        self._count()

    def _count(self) -> None:
        self.tokens = sum(held.entries for held in self.holders)
        self.allocated_bytes = sum(held.memory.nbytes for held in self.holders)
        self.peak_bytes = max(self.peak_bytes, self.allocated_bytes)

    def _plan(self, layer: int, line: int, before: LinePlan | None, device: torch.device) -> LinePlan:
        drop_at_HS, formats_HS = self.schedule.drop_at_LHS[layer], self.schedule.formats_LHS[layer]
        known, key = self.schedule.worked_out, ("packed", drop_at_HS.tobytes(), formats_HS.tobytes(), line, device)
        if key not in known:
            known[key] = plan_line(drop_at_HS, formats_HS, self.geometry.scales, line, before, device)
        found: LinePlan = known[key]
        return found

    def release(self) -> None:
        """Let go of everything: the image is drawn."""
        self.holders, self._hiding_BHX = [], None
        self.tokens = self.allocated_bytes = 0

    def entries(self, layer: int) -> PackedLineEntries:
        """What a layer has read at the end of a line."""
        held = self.holders[layer]
        read_2BED = held.read()
        if layer < len(self._at_hand):
            read_2BED = torch.cat([read_2BED, self._at_hand[layer].squeeze(3).float()], 2)
        return PackedLineEntries(read_2BED, held.plan)


@dataclass(frozen=True, eq=False)
class PackedLineEntries:
    """For those who look on (`heatkv.cache.seam.Entries`)."""

    read_2BED: Tensor
    plan: LinePlan

    def all_heads(self) -> tuple[Tensor, Tensor]:
        raise ValueError("entries of different formats have no order that heads share: look at them one by one")

    def of_head(self, head: int) -> tuple[Tensor, Tensor, Ints]:
        position_E = self.plan.position_E[: self.read_2BED.shape[2]]
        own = np.flatnonzero(self.plan.head_E[: len(position_E)] == head)
        own = own[np.argsort(position_E[own], kind="stable")]
        k, v = self.read_2BED[:, :, torch.from_numpy(own).to(self.read_2BED.device)].unbind()
        return k, v, position_E[own]
