"""One block of memory for the cache of all layers."""

from __future__ import annotations

import torch
from torch import Tensor


class Arena:
    """Rows in a ring: those that were put first are the first to be freed.

    Layers take turns, scale after scale in the same order, and each lets go of all it has before it puts what it
    keeps. So a ring that is as long as the most entries ever held needs no more than that: no gaps, no lists of free
    blocks, nothing moved to make room. ``used`` counts the entries held.
    """

    def __init__(self, entries: Tensor) -> None:
        """``entries``: the memory, ``[capacity, ...]``."""
        self.entries = entries
        self.entry_bytes = entries[0].nbytes if len(entries) else 0
        self.used = 0
        self._first = 0

    def free(self, count: int) -> None:
        """Let go of the oldest entries."""
        self.used -= count
        self._first = self._wrapped(self._first + count)

    def room(self, count: int) -> int:
        """Where the newest entries are to be put. Raises ``ValueError`` if they do not fit."""
        if self.used + count > len(self.entries):
            raise ValueError(f"{count} entries do not fit: {self.used} of {len(self.entries)} are in use")
        self.used += count
        return self._wrapped(self._first + self.used - count)

    def runs(self, start: int, count: int) -> list[Tensor]:
        """So many entries from ``start``: one view, or two where the ring starts over."""
        over = start + count - len(self.entries)
        return [self.entries[start : start + count]] if over <= 0 else [self.entries[start:], self.entries[:over]]

    def read(self, start: int, count: int) -> Tensor:
        """The same as one tensor."""
        runs = self.runs(start, count)
        return runs[0] if len(runs) == 1 else torch.cat(runs)

    def _wrapped(self, entry: int) -> int:
        return entry - len(self.entries) if entry >= len(self.entries) else entry
