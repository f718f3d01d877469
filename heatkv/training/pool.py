"""A ring of encoded pictures that a transformer learns from, renewed a little at every step."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from heatkv.training.tokenizer import to_model

# Draws a picture (uint8 [side, side, 3]) and says what is on it.
Draw = Callable[[random.Random], tuple[npt.NDArray[np.uint8], str]]
HELD_OUT = -1_000_000


class Pool:
    """The latest ``size`` pictures, as a tokenizer writes them, with their prompts.

    Pictures are numbered, and the number alone (with ``seed``) says what is on one: a run that goes on after a stop
    sees the pictures that it would have seen, as far as it draws those in the ring again.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], device: torch.device, size: int, seed: int = 0) -> None:
        self.encode, self.device, self.size, self.seed = encode, device, size, seed
        self.rows: list[Tensor] = []
        self.prompts: list[str] = []
        self.next = 0

    @torch.no_grad()
    def add(self, draw: Draw, first: int, count: int) -> None:
        """Draw, encode and take in the pictures ``first`` to ``first + count``."""
        for start in range(first, first + count, 32):
            numbers = range(start, min(start + 32, first + count))
            drawn = [draw(random.Random(self.seed * 1_000_003 + number)) for number in numbers]
            encoded = self.encode(to_model(np.stack([picture for picture, _ in drawn]), self.device))
            for row, (_, prompt) in zip(encoded, drawn, strict=True):
                self.take(row.clone(), prompt)

    def take(self, row: Tensor, prompt: str) -> None:
        if len(self.rows) < self.size:
            self.rows.append(row)
            self.prompts.append(prompt)
        else:
            self.rows[self.next], self.prompts[self.next] = row, prompt
        self.next = (self.next + 1) % self.size

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Rows ``[count, ...]`` and their prompts."""
        pick = torch.randint(len(self.rows), (count,), generator=generator).tolist()
        return torch.stack([self.rows[i] for i in pick]), [self.prompts[i] for i in pick]

    def all(self) -> tuple[Tensor, list[str]]:
        return torch.stack(self.rows), self.prompts
