"""One block of memory for the cache of all layers, and how an entry of it is stored."""

from __future__ import annotations

import torch
from torch import Tensor

from heatkv.schedule import INT8_FACTOR_BYTES, Storage


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


def memory_for(capacity: int, k_BHND: Tensor, storage: Storage) -> Tensor:
    """Memory for so many entries of such keys, ``[capacity, 2, B, D]``; of bytes, two more a vector, for int8."""
    batch, _, _, dim = k_BHND.shape
    if storage == "compute":
        return k_BHND.new_empty(capacity, 2, batch, dim)
    return k_BHND.new_empty(capacity, 2, batch, dim + INT8_FACTOR_BYTES, dtype=torch.uint8)


def encode(x: Tensor, out: Tensor) -> None:
    """Write vectors ``[..., D]`` as bytes ``[..., D + 2]``: int8 numbers and the factor that they are multiplied with.

    The factor is bfloat16: of float32's range, and what it rounds is made up for by the numbers it multiplies.
    """
    x, dim = x.float(), x.shape[-1]
    # 126.5, so that the largest number is still below 127.5 where the factor is rounded down.
    factor = (x.abs().amax(-1, keepdim=True) / 126.5).clamp_min_(1e-30).bfloat16()
    out[..., :dim].view(torch.int8).copy_((x / factor).round_())
    out[..., dim:].view(torch.bfloat16).copy_(factor)


def decode(stored: Tensor, out: Tensor) -> None:
    """Write into ``out`` what `encode` made bytes of, off by half a step of 1/126 of each vector's largest number."""
    dim = out.shape[-1]
    factor = stored[..., dim:].view(torch.bfloat16).to(out.dtype)
    torch.mul(stored[..., :dim].view(torch.int8), factor, out=out)
