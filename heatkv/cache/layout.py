"""Where the keys and values of a layer lie while a scale runs, and which of them each head reads and keeps.

An *entry* is the keys and values of one token of one head, for all batch rows: ``[2, B, D]``. What a layer
holds lies head by head, oldest scale first. While scale t runs, the entries held and those of t itself stand
in one tensor, and all that attention and storage need to know are numbers of its entries: they follow from the
schedule alone, and are worked out once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from heatkv.cache.attention import Reading, on_host, plan_reading


@dataclass(frozen=True, eq=False)
class Layout:
    """The entries of one layer at target scale t: those that it holds and, behind them, those of t itself.

    Parameters
    ----------
    start_HS, length_HS
        Where the entries of each head and source scale start and how many there are, t's own last.
    held
        Entries that were stored before t ran.
    aligned
        Whether all heads hold equally many: then each head's new entries stand behind what it holds. Else the new
        entries of all heads stand behind all that is held.
    stays_HS
        The source scales that are stored once t has run.
    """

    start_HS: npt.NDArray[np.int64]
    length_HS: npt.NDArray[np.int64]
    held: int
    aligned: bool
    stays_HS: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, drop_at_HS: npt.NDArray[np.integer], tokens_S: Sequence[int], t: int) -> Layout:
        """``drop_at_HS``: the scale from which a head no longer reads a source scale (one layer of a schedule)."""
        length_HS = np.where(drop_at_HS[:, : t + 1] > t, tokens_S[: t + 1], 0)
        length_HS[:, t] = new = tokens_S[t]
        held_H = length_HS[:, :t].sum(1)
        aligned = bool((held_H == held_H[0]).all())
        start_HS = length_HS.cumsum().reshape(length_HS.shape) - length_HS
        if not aligned:
            heads = np.arange(len(held_H))
            start_HS -= new * heads[:, None]
            start_HS[:, t] = held_H.sum() + new * heads
        return cls(start_HS, length_HS, int(held_H.sum()), aligned, drop_at_HS[:, : t + 1] > t + 1)

    @cached_property
    def entries(self) -> int:
        return int(self.length_HS.sum())

    def entries_of(self, head: int) -> npt.NDArray[np.int64]:
        """What a head reads, oldest first."""
        return ranges(self.start_HS[head], self.length_HS[head])

    @property
    def kept(self) -> npt.NDArray[np.int64]:
        """What is stored once the scale has run, in the order in which it will lie."""
        return ranges(self.start_HS, self.length_HS * self.stays_HS)

    def by_head(self, entries: Tensor) -> Tensor:
        """Rows ``[heads * M, ...]`` as ``[heads, M, ...]`` if aligned; else as they are."""
        heads = len(self.start_HS)
        return entries.view(heads, len(entries) // heads, *entries.shape[1:]) if self.aligned else entries

    def held_and_new(self, entries: Tensor) -> tuple[Tensor, Tensor]:
        """Views of all entries: those held, `by_head`, and the new ones ``[H, N, ...]``."""
        heads, tokens = self.length_HS.shape[0], int(self.length_HS[0, -1])
        if self.aligned:
            entries = self.by_head(entries)
            return entries[:, :-tokens], entries[:, -tokens:]
        return entries[: self.held], entries[self.held :].view(heads, tokens, *entries.shape[1:])


def ranges(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The numbers ``start .. start + length - 1`` of every pair, end to end."""
    starts, lengths = starts.ravel(), lengths.ravel()
    ends = lengths.cumsum()
    return np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1] if len(ends) else 0)


@dataclass(frozen=True, eq=False)
class Step:
    """What a layer does at one scale: how its heads read, how many entries it leaves stored, and which (None: all)."""

    layout: Layout
    reading: Reading
    stored: int
    keep_E: Tensor | None


def step(
    drop_at: bytes,
    tokens_S: tuple[int, ...],
    t: int,
    batch: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Step:
    """The step of a layer, from its part of a schedule's int16 table."""
    layout = Layout.of(np.frombuffer(drop_at, np.int16).reshape(-1, len(tokens_S)), tokens_S, t)
    read = plan_reading(
        [layout.entries_of(head) for head in range(len(layout.start_HS))],
        layout.entries, batch * tokens_S[t], head_dim, dtype, device,
    )  # fmt: skip
    kept = layout.kept
    everything = len(kept) == layout.entries and bool((kept == np.arange(layout.entries)).all())
    return Step(layout, read, len(kept), None if everything else on_host(kept, device))


def scales_in_place(drop_at_LHS: npt.NDArray[np.integer]) -> int:
    """How many leading scales all heads of all layers store and still read when the scale behind them runs."""
    last = drop_at_LHS.shape[2] - 1
    return max(n for n in range(last + 1) if n == 0 or drop_at_LHS[..., :n].min() > n)


def scales_at_rest(drop_at_LHS: npt.NDArray[np.integer]) -> frozenset[int]:
    """Scales after which every layer stores what it held before them."""
    scales = range(drop_at_LHS.shape[2] - 1)
    return frozenset(
        t for t in scales if (drop_at_LHS[..., t] == t + 1).all() and not (drop_at_LHS[..., :t] == t + 1).any()
    )
