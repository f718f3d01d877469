"""A VAR model ready to run: classes, transformer, autoencoder and how to sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatkv.cache.seam import KVCache
from heatkv.models.base import Noise, Sampling, ScaleTokens
from heatkv.models.offload import Staged, Stages
from heatkv.models.var.classes import Classes
from heatkv.models.var.sampling import generate_scales
from heatkv.models.var.transformer import VarTransformer
from heatkv.models.var.vqvae import Vqvae


@dataclass
class VarModel(Staged):
    """A class-conditional model of the VAR family (see ``GenerativeModel`` for the interface).

    A prompt is the name or the number of a class. ``classes`` is there for pickers. With ``stages``
    transformer and decoder take turns on the device.
    """

    id: str
    classes: Classes
    transformer: VarTransformer
    autoencoder: Vqvae
    sampling: Sampling
    examples: tuple[str, ...] = ()
    facts: dict[str, Any] | None = None
    stages: Stages | None = None

    def check_prompt(self, prompt: str) -> str | None:
        return self.classes.read(prompt)[1]

    @torch.inference_mode()
    def run(self, prompts: Sequence[str], noise: Noise, cache: KVCache, sampling: Sampling) -> Iterator[ScaleTokens]:
        sampling.refuse("negative", "guidance_by_scale", model=self.id)
        labels = torch.tensor([self.classes.read(prompt)[0] for prompt in prompts], device=self.device)
        last = len(self.geometry.scales) - 1
        self._use("transformer")
        for step in generate_scales(self.transformer, self.autoencoder.quantize, labels, cache, sampling, noise):
            yield step
            if step.scale < last:  # a preview may have had its turn
                self._use("transformer")

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Tensor:
        self._use("decoder")
        pixels = (self.autoencoder.decode(latent) + 1) / 2 * 255
        return pixels.permute(0, 2, 3, 1).to(torch.uint8).cpu()

    def about(self) -> dict[str, Any]:
        return {
            **self.parameter_counts(),
            "classes": self.classes.count,
            **(self.facts or {}),
        }
