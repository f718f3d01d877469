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


@dataclass(frozen=True)
class ScaleSchedule:
    """The token maps of one image, coarse to fine: ``sizes[k] = (h_k, w_k)``.

    Raises ``ValueError`` for an empty list or a size that is not positive.
    """

    sizes: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if not self.sizes:
            raise ValueError("a scale schedule needs at least one scale")
        for h, w in self.sizes:
            if h < 1 or w < 1:
                raise ValueError(f"scale {h}x{w} is not a token map: height and width must be 1 or more")

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
        """Tokens of every scale, t_k = h_k w_k."""
        return tuple(h * w for h, w in self.sizes)

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
        """Tokens a full cache holds per head at its peak: the last scale is never cached."""
        return self.bounds[-1][0]

    def __str__(self) -> str:
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
