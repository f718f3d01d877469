"""How cached keys and values are stored: a format is a name, what a cell takes, and how it is written and read.

``compute`` leaves the numbers as the model computes them. The others round them to ``bits`` bits between the ends of a
range, of which there is one a token (``int8``), or one a channel over the tokens of a cell (``int4``, ``int2``): what a
channel of keys has in common, its mean and its spread, is then told once and not rounded with every token, which is
worth two bits and more (KIVI, arXiv 2402.02750; VAR-Q takes factors by channel too). For a few bits the range of a
token is too wide; for a few tokens a range a channel takes more than it saves.

A range takes two bytes: its width in eighths of an octave, and its centre in 32nds of that width. It covers the numbers
that it was made for, if they lie at most 60000 apart; what is beyond is cut off. Storages of others, re-implemented,
tell ranges in their own way. All bytes count, those of ranges too.

Keys and values of one head and scale are a cell. Tensors hold them by token, ``[..., N, D]``, codes as ``[..., N, Y]``
and ranges as ``[..., N, 2]`` (a token) or ``[..., 1, 2 * D]`` (a channel).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from heatkv.files import shown

OCTAVES, LEAST_OCTAVE = 8, -16  # steps of width in an octave, and the octave of the smallest width
CENTRES = 32  # steps of centre in a width
RANGE_BYTES = 2
BOTH, KEYS, VALUES = slice(0, 2), slice(0, 1), slice(1, 2)  # of a cell

# Most tensors here are small, and an operation with a Python number takes twice the time of one with a tensor.
HALF, EIGHT, EIGHTH, THIRTY_SECOND = (torch.tensor(x) for x in (0.5, OCTAVES, 1 / OCTAVES, 1 / CENTRES))
FIRST_OCTAVE = torch.tensor(float(OCTAVES * LEAST_OCTAVE))
WIDER, FOR_CENTRE = torch.tensor(CENTRES / (CENTRES - 1)), torch.tensor(CENTRES / 127)
SHARE_BITS = {bits: torch.tensor(bits, dtype=torch.uint8) for bits in (2, 4, 6)}
LOWEST = {bits: torch.tensor(2**bits - 1, dtype=torch.uint8) for bits in (2, 4)}
PART = {bits: torch.tensor(0.5**bits) for bits in (2, 4, 8)}
FIRST = {bits: torch.tensor(0.5 ** (bits + 1) - 0.5) for bits in (2, 4, 8)}


Steps = tuple[Tensor, Tensor]


class FormatError(ValueError):
    """A storage that there is not, or that does not fit a model's heads; the message says what to do."""


@dataclass(frozen=True)
class Format:
    """A way to store cells.

    Parameters
    ----------
    name
        What schedules and commands call it.
    words
        What people read.
    bits
        Of a number; 0: as computed.
    ranges
        What a range is for: the numbers of a token, or a channel of a cell.
    range_size
        Bytes of a range.
    """

    name: str
    words: str
    bits: int = 0
    ranges: Literal["", "token", "channel"] = ""
    range_size: int = RANGE_BYTES

    @property
    def sides(self) -> tuple[tuple[slice, Format], ...]:
        """How keys (0) and values (1) of a cell are stored: both alike, or each in a format of its own."""
        return ((BOTH, self),)

    def check(self, head_dim: int) -> None:
        """Raise `FormatError` unless heads of that size can be stored so (0: size not stated)."""
        if not self.bits:
            return
        if not head_dim:
            raise FormatError(f"storage {self.name} needs a geometry that states its head_dim: sizes follow from it")
        unit = 2 if self.bits == 8 else 8 // self.bits
        if head_dim % unit:
            raise FormatError(f"storage {self.name} needs a head_dim that {unit} divides, not {head_dim}")

    def code_bytes(self, head_dim: int, itemsize: int = 2) -> int:
        """Bytes of the numbers of one vector; ``itemsize`` is what a computed number takes."""
        return head_dim * self.bits // 8 if self.bits else head_dim * itemsize

    def range_bytes(self, tokens: int, head_dim: int) -> int:
        """Bytes of the ranges of so many vectors of a cell."""
        return self.range_size * {"": 0, "token": tokens, "channel": head_dim if tokens else 0}[self.ranges]

    def cell_bytes(self, tokens: int, head_dim: int, itemsize: int = 2) -> int:
        """Bytes of keys and values of a cell of so many tokens, of one batch row."""
        taken = 0
        for planes, form in self.sides:
            a_plane = tokens * form.code_bytes(head_dim, itemsize) + form.range_bytes(tokens, head_dim)
            taken += (planes.stop - planes.start) * a_plane
        return taken

    def encode(self, x: Tensor, tokens: int = -2) -> tuple[Tensor, Tensor]:
        """Codes and ranges (uint8) of cells ``[..., N, D]``, or with the tokens in another dimension."""
        x = x.float()
        dim = -1 if self.ranges == "token" else tokens
        # Apart, as amin and amax are faster than aminmax.
        ranges, (step, first) = self.fit(x.amin(dim, keepdim=True), x.amax(dim, keepdim=True))
        return self._packed(torch.sub(x, first).div_(step).round_().clamp_(0, 2**self.bits - 1)), ranges

    def fit(self, low: Tensor, high: Tensor) -> tuple[Tensor, Steps]:
        """Ranges (uint8) that cover what lies between two ends, all widths, then all centres; and their `steps`."""
        middle = torch.add(low, high).mul_(HALF)
        # Wide enough with its centre rounded, and for a centre that 7 bits can tell.
        width = torch.maximum(torch.sub(high, low).mul_(WIDER), middle.abs().mul_(FOR_CENTRE))
        octave = width.clamp_min_(2.0**LEAST_OCTAVE).log2_().mul_(EIGHT).ceil_()
        octave.clamp_max_(255 + OCTAVES * LEAST_OCTAVE)
        width = torch.mul(octave, EIGHTH).exp2_()
        centre = middle.div_(torch.mul(width, THIRTY_SECOND)).round_().clamp_(-128, 127)
        told = octave.sub_(FIRST_OCTAVE).to(torch.uint8), centre.to(torch.int8).view(torch.uint8)
        return torch.cat(told, -1), self._steps(width, centre)

    def steps(self, ranges: Tensor) -> Steps:
        """Of every range the distance of neighbouring numbers, and the one that code 0 stands for (float32)."""
        octave, centre = ranges.chunk(2, -1)
        return self._steps(octave.float().add_(FIRST_OCTAVE).mul_(EIGHTH).exp2_(), centre.view(torch.int8).float())

    def _steps(self, width: Tensor, centre: Tensor) -> Steps:
        # Numbers lie in the middle of 2^bits equal parts of the width.
        return torch.mul(width, PART[self.bits]), centre.mul_(THIRTY_SECOND).add_(FIRST[self.bits]).mul_(width)

    def decode(self, codes: Tensor, steps: Steps, out: Tensor) -> None:
        """Write into ``out`` ``[..., N, D]`` what `encode` made codes of: off by half a step at most.

        ``steps``: of the ranges, of any shape that fits ``out``.
        """
        wide = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
        if self.bits == 8:
            wide.copy_(codes)
        else:
            # Bytes first, whole, as rows of few numbers keep a processor from taking many at a time.
            shares = [codes >> SHARE_BITS[shift] if shift else codes for shift in range(0, 8, self.bits)]
            wide.copy_(torch.cat([*(share & LOWEST[self.bits] for share in shares[:-1]), shares[-1]], -1))
        if self.ranges == "token":  # where one addcmul takes five times the time, and else two thirds
            wide.mul_(steps[0]).add_(steps[1])
        else:
            torch.addcmul(steps[1], wide, steps[0], out=wide)
        if wide is not out:
            out.copy_(wide)

    def _packed(self, codes: Tensor) -> Tensor:
        """Codes ``[..., D]`` as bytes: the first share of the channels in the lowest bits.

        They come as float32, in which sums are exact, and vectorised like nothing on bytes; from there to bytes the
        way over 16 bits is the fast one.
        """
        first, *others = codes.chunk(8 // self.bits, -1)
        for i, part in enumerate(others, start=1):
            first = torch.add(first, part, alpha=2 ** (self.bits * i))
        return first.to(torch.int16).to(torch.uint8)


def two_bytes(ranges: Tensor) -> Tensor:
    """Ranges that can be read as numbers of 16 bits: a block may have them at an odd byte."""
    return ranges.contiguous() if ranges.storage_offset() % 2 == 0 else ranges.clone()


class Symmetric(Format):
    """Of VAR-Q (re-implementation): a factor a channel of a cell, bfloat16, and whole multiples of it around 0."""

    def fit(self, low: Tensor, high: Tensor) -> tuple[Tensor, Steps]:
        factor = torch.maximum(high, -low) / (2 ** (self.bits - 1) - 0.5)
        ranges = factor.clamp_min_(2.0**LEAST_OCTAVE).bfloat16().view(torch.uint8)
        return ranges, self.steps(ranges)

    def steps(self, ranges: Tensor) -> Steps:
        factor = two_bytes(ranges).view(torch.bfloat16).float()
        return factor, factor * -(2 ** (self.bits - 1))


class Ends(Format):
    """Of KIVI (re-implementation): codes lie evenly from the least number to the greatest, which float16 tells."""

    def fit(self, low: Tensor, high: Tensor) -> tuple[Tensor, Steps]:
        step = torch.sub(high, low).div_(2**self.bits - 1).clamp_min_(2.0**LEAST_OCTAVE)
        ranges = torch.cat((step, low), -1).half().contiguous().view(torch.uint8)
        return ranges, self.steps(ranges)

    def steps(self, ranges: Tensor) -> Steps:
        step, first = two_bytes(ranges).view(torch.float16).float().chunk(2, -1)
        return step, first


class Kivi(Format):
    """KIVI's storage (arXiv 2402.02750, section 3): keys a channel, values a token, ends and steps in 16 bits.

    A group of tokens, theirs 32, is a cell here, and one of channels, also 32, a head. Without their window of the 128
    newest tokens in full: the whole cache of the bundled model has 140 a head. What is being drawn is read as in
    all formats: a scale as computed, a line in 8 bits.
    """

    @property
    def sides(self) -> tuple[tuple[slice, Format], ...]:
        keys = Ends(f"{self.name} keys", self.words, self.bits, "channel", 4)
        return (KEYS, keys), (VALUES, replace(keys, name=f"{self.name} values", ranges="token"))


COMPUTE = Format("compute", "as computed")
FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        COMPUTE,
        Format("int8", "8 bits", 8, "token"),
        Format("int4", "4 bits", 4, "channel"),
        Format("int2", "2 bits", 2, "channel"),
        Symmetric("varq4", "VAR-Q's 4 bits", 4, "channel"),
        Kivi("kivi4", "KIVI's 4 bits", 4, "channel"),
        Kivi("kivi2", "KIVI's 2 bits", 2, "channel"),
    )
}

OPEN_LINE = FORMATS["int8"]  # of a line that is being drawn, where its cells will be encoded: a range a token


def find_format(name: object) -> Format:
    """The format of that name, or `FormatError` with the names there are."""
    form = FORMATS.get(name) if isinstance(name, str) else None
    if form is None:
        raise FormatError(f"storage is {shown(name)}: it must be one of {', '.join(FORMATS)}")
    return form
