"""Schedules edited by hand: chosen cells are forgotten, on top of whatever a policy planned.

Which cells is a mask ``(layers, heads, sources)`` over the sources that may be cached, or a short text that fits into
an address: words joined by commas, counted from 1. ``6`` is layer 6, ``6.3`` its head 3, ``6.3.2`` that head's cell of
source 2, and ``s4`` source 4 in all heads.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from heatkv.files import shown
from heatkv.scales import Geometry
from heatkv.schedule import Schedule

Cells = npt.NDArray[np.bool_]
MAX_TEXT = 200_000


class EditsError(ValueError):
    """A text that names no cells of this model; the message says which word."""


def no_cells(geometry: Geometry) -> Cells:
    return np.zeros((geometry.layers, geometry.heads, len(geometry.scales) - 1), bool)


def forget(schedule: Schedule, cells_LHS: Cells) -> Schedule:
    """``schedule`` without some cells: they are never stored. Nothing else changes, and the peak can only fall.

    Sinks may be forgotten too; from the first one on, sources then no longer count as sinks. The budget stays what the
    plan was made for. Raises ``ValueError`` for a mask of another geometry.
    """
    drop_at_LHS = schedule.drop_at_LHS.copy()
    sources = drop_at_LHS.shape[2] - 1
    if cells_LHS.shape != (*drop_at_LHS.shape[:2], sources):
        raise ValueError(f"cells of shape {cells_LHS.shape} do not fit a schedule of shape {drop_at_LHS.shape}")
    if not cells_LHS.any():
        return schedule
    never_S = np.arange(1, sources + 1, dtype=drop_at_LHS.dtype)
    drop_at_LHS[:, :, :sources] = np.where(cells_LHS, never_S, drop_at_LHS[:, :, :sources])
    first = int(cells_LHS.any(axis=(0, 1)).argmax())
    return replace(
        schedule,
        sink_scales=min(schedule.sink_scales, first),
        drop_at_LHS=drop_at_LHS,
        provenance={**schedule.provenance, "forgotten_by_hand": int(cells_LHS.sum())},
    )


def cells_from_text(text: str, geometry: Geometry) -> Cells:
    """The mask that a text names. Raises `EditsError`."""
    cells_LHS = no_cells(geometry)
    if len(text) > MAX_TEXT:
        raise EditsError(f"the list of forgotten cells is longer than {MAX_TEXT} characters; save a schedule instead")
    for word in text.split(","):
        if word.strip():
            cells_LHS[_place(word.strip(), cells_LHS.shape)] = True
    return cells_LHS


def cells_to_text(cells_LHS: Cells) -> str:
    """The shortest words that name a mask: sources, then layers, then heads, then single cells."""
    left_LHS = cells_LHS.copy()
    words = []
    for s in np.flatnonzero(cells_LHS.all(axis=(0, 1))):
        words.append(f"s{s + 1}")
        left_LHS[:, :, s] = False
    for layer in range(len(cells_LHS)):
        if cells_LHS[layer].all() and left_LHS[layer].any():
            words.append(f"{layer + 1}")
            left_LHS[layer] = False
        for head in range(cells_LHS.shape[1]):
            if cells_LHS[layer, head].all() and left_LHS[layer, head].any():
                words.append(f"{layer + 1}.{head + 1}")
                left_LHS[layer, head] = False
            words += [f"{layer + 1}.{head + 1}.{s + 1}" for s in np.flatnonzero(left_LHS[layer, head])]
    return ",".join(words)


def _place(word: str, shape: tuple[int, ...]) -> tuple[slice | int, ...]:
    parts = word[1:].split(".") if word[0] == "s" else word.split(".")
    limits = shape[2:] if word[0] == "s" else shape
    if len(parts) > len(limits) or not all(p.isascii() and p.isdigit() and len(p) < 6 for p in parts):
        raise EditsError(f"{shown(word)} names no cell: write 6 for a layer, 6.3 for a head, 6.3.2 for a cell, s4")
    numbers = [int(part) - 1 for part in parts]
    if any(not 0 <= number < limit for number, limit in zip(numbers, limits, strict=False)):
        raise EditsError(
            f"{shown(word)} names no cell: there are {shape[0]} layers, {shape[1]} heads, {shape[2]} sources"
        )
    return (slice(None), slice(None), numbers[0]) if word[0] == "s" else tuple(numbers)
