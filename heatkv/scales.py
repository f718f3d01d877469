"""Scales and geometry: the arithmetic that everything else slices by.

Tensor names carry their shape as a suffix. The letters, used in the whole package:

    B batch rows    L layers    H heads    N tokens (queries)    M tokens that are read (keys)    D head dimension
    S source scales    T target scales    K number of scales    C model width, or the positions of a map
    R heads of all batch rows, (row, head) pairs    U candidates of one of those: what it holds and what is new
    E entries of the cache: keys and values of one token of one head for all batch rows    Y bytes of a stored vector
    G groups of source scales    P budgets    Q positions that are looked at    I images    W width    V codes
    d bits of a token    c numbers of a code    a digit stands for itself
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

Drawing = Literal["scales", "lines"]


@dataclass(frozen=True)
class ScaleSchedule:
    """The segments of one image in the order of drawing: tokens that are cached and let go together.

    ``drawing`` says what a segment is, and with it what ``sizes[k] = (h_k, w_k)`` are:

    - ``scales``: token maps, coarse to fine. Each is handed to the cache whole, and the last is never cached.
    - ``lines``: the tokens of the condition, ``(1, T)``, and then the lines of one token map, ``(1, width)``, of which
      the cache is handed one token after the other. The line that is being drawn is cache, and counts; the last token
      of the last line never gets there, as nothing is drawn after it.

    Where names and comments say scale, read segment. Raises ``ValueError`` for sizes that are not of that form.
    """

    sizes: tuple[tuple[int, int], ...]
    drawing: Drawing = "scales"

    def __post_init__(self) -> None:
        if not self.sizes:
            raise ValueError("a scale schedule needs at least one scale")
        for h, w in self.sizes:
            if h < 1 or w < 1:
                raise ValueError(f"scale {h}x{w} is not a token map: height and width must be 1 or more")
        if self.drawing not in get_args(Drawing):
            raise ValueError(f"drawing is {self.drawing!r}: it must be one of {', '.join(get_args(Drawing))}")
        lines = self.sizes[1:]
        if self.by_line and (not lines or lines[0][1] < 2 or {*lines} != {(1, lines[0][1])} or self.sizes[0][0] != 1):
            raise ValueError(
                "a drawing by lines needs the condition's tokens, (1, T), and then lines of one width, (1, 2) or more: "
                f"not {', '.join(f'({h}, {w})' for h, w in self.sizes[:4])}"
            )

    @classmethod
    def lines(cls, condition: int, height: int, width: int) -> ScaleSchedule:
        """A map of ``height`` lines of ``width`` tokens, drawn token by token behind so many of a condition."""
        return cls(((1, condition), *((1, width),) * height), "lines")

    @classmethod
    def square(cls, sides: Iterable[int]) -> ScaleSchedule:
        return cls(tuple((side, side) for side in sides))

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.sizes)

    def __getitem__(self, k: int) -> tuple[int, int]:
        return self.sizes[k]

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of every scale that reach the cache, t_k = h_k w_k; of the last line one less."""
        tokens = [h * w for h, w in self.sizes]
        if self.by_line:
            tokens[-1] -= 1
        return tuple(tokens)

    @cached_property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """First token and one past the last of every scale in the concatenated sequence."""
        ends = [sum(self.tokens[: k + 1]) for k in range(len(self))]
        return tuple((end - n, end) for end, n in zip(ends, self.tokens, strict=True))

    @property
    def total(self) -> int:
        return self.bounds[-1][1]

    @property
    def full_peak(self) -> int:
        """Tokens a full cache holds per head at its peak: all lines, but not the last scale, which is never cached."""
        return self.bounds[-1][1 if self.by_line else 0]

    @property
    def by_line(self) -> bool:
        return self.drawing == "lines"

    @cached_property
    def open_tokens(self) -> tuple[int, ...]:
        """Tokens per head that are cache while a segment is being drawn, its own: those of a line."""
        return (0, *self.tokens[1:]) if self.by_line else (0,) * len(self)

    def tokens_a_call(self, k: int) -> int:
        """Tokens that the cache is handed at a time: a whole scale, the whole condition, one of a line."""
        return 1 if self.by_line and k else self.tokens[k]

    @property
    def drawn(self) -> range:
        """The segments that a model draws: all but the condition."""
        return range(1 if self.by_line else 0, len(self))

    @property
    def picture(self) -> tuple[int, int]:
        """Height and width of the token map that the image is decoded from."""
        return (len(self) - 1, self.sizes[-1][1]) if self.by_line else self.sizes[-1]

    @property
    def default_sinks(self) -> int:
        """How many leading segments always stay unless asked otherwise: HeatKV's three scales, or the condition."""
        return min(1 if self.by_line else 3, len(self) - 1)

    @property
    def word(self) -> str:
        """What people call a segment."""
        return "line" if self.by_line else "scale"

    def name(self, k: int) -> str:
        """A segment for people, who count scales and lines from 1."""
        if self.by_line:
            return f"line {k}" if k else "condition"
        return f"scale {k + 1}"

    def __str__(self) -> str:
        if self.by_line:
            height, width = self.picture
            return f"{self.sizes[0][1]} tokens of condition and {height} lines of {width}"
        return " ".join(f"{h}" if h == w else f"{h}x{w}" for h, w in self.sizes)


@dataclass(frozen=True)
class Geometry:
    """What a cache knows of a model: how many layers and heads of which size, and the scales."""

    layers: int
    heads: int
    head_dim: int
    scales: ScaleSchedule

    @property
    def head_count(self) -> int:
        """Heads of the whole model, layers x heads."""
        return self.layers * self.heads

    @property
    def full_peak_tokens(self) -> int:
        """Cached tokens at the full cache's peak, summed over all heads (one batch row)."""
        return self.head_count * self.scales.full_peak

    def kv_bytes(self, tokens: int, *, batch: int = 1, key_bytes: int = 4, value_bytes: int = 4) -> int:
        """Bytes of ``tokens`` cached tokens (summed over heads) for ``batch`` rows.

        ``key_bytes`` and ``value_bytes`` are bytes per element. Rows of classifier-free
        guidance count as rows: one guided image is a batch of 2.
        """
        return tokens * self.head_dim * (key_bytes + value_bytes) * batch
