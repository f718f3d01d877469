"""What a generative model offers to the rest of the library, and the noise it samples with."""

from __future__ import annotations

import operator
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
    """How tokens are drawn. What a model can not do it refuses, see `refuse`.

    Parameters
    ----------
    guidance
        Logits are ``guidance x conditional + (1 - guidance) x unconditional``; 1 is plain conditional generation (batch
        of 1 instead of 2). VAR: at the last scale, growing from 1 at the first, so that its published ``cfg`` of 4 is a
        guidance of 5.
    temperature
        Divides the logits.
    top_k, top_p
        Values that may be drawn: the so many likeliest, those that make up so much probability; 0 means no cut. Bits
        have two values, so that ``top_k`` says nothing to Infinity.
    guided_steps
        Models that draw token by token guide the first token and the ``guided_steps`` + 1 after it, all of them where
        that is -1 (published as ``cfg_interval``).
    guidance_by_scale
        Infinity: guidance of every scale instead of one for all; empty: one for all.
    negative
        Infinity: a prompt to move away from, in place of the learned empty one.
    smooth
        VAR: adds soft mixtures of codes instead of codes (published as ``more_smooth``: pleasing, not the model's own).
    """

    guidance: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0
    guided_steps: int = -1
    guidance_by_scale: tuple[float, ...] = ()
    negative: str = ""
    smooth: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "guidance_by_scale", tuple(self.guidance_by_scale))
        for strength in (self.guidance, *self.guidance_by_scale):
            if not 0 <= strength <= 50:
                raise ValueError(f"guidance {strength} is outside 0 to 50")
        if not 0 < self.temperature <= 50:
            raise ValueError(f"temperature {self.temperature} is outside 0 to 50 (0 excluded)")
        if self.guided_steps < -1:
            raise ValueError(f"guided_steps {self.guided_steps} must be -1 (all) or more")
        if type(self.top_k) is not int or self.top_k < 0 or not 0 <= self.top_p <= 1:
            raise ValueError(f"top_k {shown(self.top_k)} must be 0 or more and top_p {self.top_p} between 0 and 1")

    @classmethod
    def of(cls, stated: Mapping[str, Any]) -> Self:
        """From fields by name, as files state them. Raises ``ValueError`` for anything else."""
        kinds: dict[str, tuple[type, ...]] = {
            "top_k": (int,), "guided_steps": (int,), "negative": (str,), "smooth": (bool,), "guidance_by_scale": (list,)
        }  # fmt: skip
        names = [field.name for field in fields(cls)]
        for name, value in stated.items():
            numbers = value if isinstance(value, list) else []
            right = type(value) in kinds.get(name, (int, float)) and all(type(n) in (int, float) for n in numbers)
            if name not in names or not right:
                raise ValueError(f"sampling: {shown(name)} is {shown(value)}; known are {', '.join(names)}")
        return cls(**stated)

    @property
    def guided(self) -> bool:
        return any(strength != 1.0 for strength in self.guidance_by_scale or (self.guidance,))

    @property
    def rows(self) -> int:
        """Batch rows of one image: guidance draws one without the prompt beside it."""
        return 2 if self.guided else 1

    def refuse(self, *names: str, model: str) -> None:
        """Raise ``ValueError`` where it asks for one of these, which ``model`` has no use for."""
        for name in names:
            if getattr(self, name):
                raise ValueError(f"{model} has no {name.replace('_', ' ')}: leave it out")


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
    whole = []
    for seed in seeds:
        try:
            whole.append(operator.index(seed))
        except TypeError:
            raise ValueError(f"seed {shown(seed)} is no whole number") from None
        if not 0 <= whole[-1] < 2**32:
            raise ValueError(f"seed {shown(seed)} is outside 0 to {2**32 - 1}")

    def noise(scale: int, shape: tuple[int, ...]) -> Tensor:
        rows = []
        for seed in whole:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + scale)
            rows.append(torch.rand(shape, generator=generator))
        return torch.stack(rows)

    return noise
