"""What a generative model offers to the rest of the library, and the noise it samples with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from heatkv.cache.attention import pinned, to_device
from heatkv.cache.seam import KVCache
from heatkv.files import shown
from heatkv.scales import Geometry

# (scale, shape without the batch) -> uniform numbers in [0, 1), float32 on the CPU
Noise = Callable[[int, tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    ``guidance`` 1 is plain conditional generation (batch of 1 instead of 2); ``temperature`` divides
    the logits; ``top_k`` 0 and ``top_p`` 0 mean no cut. Models that draw token by token guide the first token and the
    ``guided_steps`` + 1 after it, all of them where that is -1 (published as ``cfg_interval``).
    """

    guidance: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0
    guided_steps: int = -1

    def __post_init__(self) -> None:
        if not 0 <= self.guidance <= 50:
            raise ValueError(f"guidance {self.guidance} is outside 0 to 50")
        if not 0 < self.temperature <= 50:
            raise ValueError(f"temperature {self.temperature} is outside 0 to 50 (0 excluded)")
        if self.guided_steps < -1:
            raise ValueError(f"guided_steps {self.guided_steps} must be -1 (all) or more")
        if type(self.top_k) is not int or self.top_k < 0 or not 0 <= self.top_p <= 1:
            raise ValueError(f"top_k {self.top_k} must be 0 or more and top_p {self.top_p} between 0 and 1")

    @classmethod
    def of(cls, stated: Mapping[str, Any]) -> Self:
        """From fields by name, as files state them. Raises ``ValueError`` for anything else."""
        names = {field.name for field in fields(cls)}
        for name, value in stated.items():
            if name not in names or type(value) not in (int, float):
                known = ", ".join(sorted(names))
                raise ValueError(f"sampling: {shown(name)} is {shown(value)}; known are numbers under {known}")
        return cls(**stated)

    @property
    def guided(self) -> bool:
        return self.guidance != 1.0


@dataclass(frozen=True)
class ScaleTokens:
    """What a model yields after each scale: what it drew there and the sum of all scales so far.

    ``tokens`` is ``[B, N, bits]`` (bool, bitwise models) or ``[B, N]`` (indices of a codebook);
    ``latent`` is ``[B, d, H, W]`` at the size of the last scale.
    """

    scale: int
    tokens: Tensor
    latent: Tensor


class GenerativeModel(Protocol):
    """A visual autoregressive model, ready to run."""

    @property
    def id(self) -> str: ...

    @property
    def geometry(self) -> Geometry: ...

    @property
    def sampling(self) -> Sampling:
        """How it is sampled unless asked otherwise."""
        ...

    @property
    def examples(self) -> tuple[str, ...]:
        """Prompts worth a try."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype, which is also the dtype of cached keys and values."""
        ...

    def check_prompt(self, prompt: str) -> str | None:
        """A note for the user (unknown words) or None. Raises ``PromptError`` where nothing can be made of it."""
        ...

    def run(self, prompts: Sequence[str], noise: Noise, cache: KVCache, sampling: Sampling) -> Iterator[ScaleTokens]:
        """Generate one image a prompt, scale by scale, with the given cache.

        The cache sees ``len(prompts)`` rows, twice as many with guidance (conditional rows first).
        """
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """Pixels ``[B, height, width, 3]`` (uint8, CPU) of a sum of scales, complete or not."""
        ...

    def about(self) -> dict[str, Any]:
        """Facts for people: parameters, licence, source."""
        ...


def upload(noise: Tensor, device: torch.device) -> Tensor:
    """Noise on the device that draws with it; nobody waits for the copy."""
    return to_device(pinned(noise, device), device)


def seeded_noise(seeds: Sequence[int]) -> Noise:
    """Noise that depends on a row's seed and the scale alone.

    Two runs with the same seeds draw the same numbers whatever their caches did in between, so their
    images differ by the cache only. Drawn on the CPU: the same on every device.
    """
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed {shown(seed)} is outside 0 to {2**32 - 1}")

    def noise(scale: int, shape: tuple[int, ...]) -> Tensor:
        rows = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + scale)
            rows.append(torch.rand(shape, generator=generator))
        return torch.stack(rows)

    return noise
