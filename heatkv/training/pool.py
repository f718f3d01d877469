"""A ring of encoded pictures that a transformer learns from, renewed a little at every step."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from heatkv.training.scenes import Scene
from heatkv.training.tokenizer import to_model

HELD_OUT = -1_000_000


@dataclass(frozen=True)
class Batch:
    """Pictures as a tokenizer writes them, ``rows`` ``[B, ...]``, what is said of them, and what covers their cells.

    ``things_BHW`` counts from 1, in the order of the pool's ``things``; 0 is none of them.
    """

    rows: Tensor
    prompts: list[str]
    things_BHW: Tensor

    def things_seen_at(self, height: int, width: int) -> Tensor:
        """What covers the cells ``[B, height * width]`` of a map of another size: what covers their middles."""
        return F.interpolate(self.things_BHW[:, None].float(), (height, width), mode="nearest-exact").long().flatten(1)


class Pool:
    """The latest ``size`` pictures, as a tokenizer writes them.

    Pictures are numbered, and the number alone (with ``seed``) says what is on one: a run that goes on after a stop
    sees the pictures that it would have seen, as far as it draws those in the ring again.
    """

    def __init__(
        self, encode: Callable[[Tensor], Tensor], device: torch.device, size: int, things: Sequence[str], seed: int = 0
    ) -> None:
        self.encode, self.device, self.size, self.seed = encode, device, size, seed
        self.numbers = {label: number for number, label in enumerate(things, 1)}
        self.rows: list[Tensor] = []
        self.prompts: list[str] = []
        self.things: list[Tensor] = []
        self.next = 0

    @torch.no_grad()
    def add(self, draw: Callable[[random.Random], Scene], first: int, count: int) -> None:
        """Draw, encode and take in the pictures ``first`` to ``first + count``."""
        for start in range(first, first + count, 32):
            numbers = range(start, min(start + 32, first + count))
            drawn = [draw(random.Random(self.seed * 1_000_003 + number)) for number in numbers]
            encoded = self.encode(to_model(np.stack([scene.image for scene in drawn]), self.device))
            for row, scene in zip(encoded, drawn, strict=True):
                names = torch.tensor([0, *(self.numbers.get(label, 0) for label in scene.labels)])
                self.take(row.clone(), scene.prompt, names[torch.from_numpy(scene.owner).long()])

    def take(self, row: Tensor, prompt: str, things: Tensor) -> None:
        if len(self.rows) < self.size:
            self.rows.append(row)
            self.prompts.append(prompt)
            self.things.append(things)
        else:
            self.rows[self.next], self.prompts[self.next], self.things[self.next] = row, prompt, things
        self.next = (self.next + 1) % self.size

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        return self.batch(torch.randint(len(self.rows), (count,), generator=generator).tolist())

    def all(self) -> Batch:
        return self.batch(range(len(self.rows)))

    def batch(self, numbers: Sequence[int]) -> Batch:
        rows, things = (torch.stack([column[i] for i in numbers]) for column in (self.rows, self.things))
        return Batch(rows, [self.prompts[i] for i in numbers], things.to(self.device))
