"""An Infinity model ready to run: text encoder, transformer, autoencoder and how to sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heatkv.cache.seam import KVCache
from heatkv.models import bundled
from heatkv.models.base import Noise, Sampling, ScaleTokens
from heatkv.models.bundled import FolderConfig
from heatkv.models.checkpoint import CheckpointError
from heatkv.models.infinity.autoencoder import Autoencoder, BitQuantizer
from heatkv.models.infinity.sampling import Guidance, generate_scales
from heatkv.models.infinity.text import TextEncoder
from heatkv.models.infinity.transformer import InfinityTransformer, TextFeatures, set_positions
from heatkv.models.offload import Staged, Stages


@dataclass
class InfinityModel(Staged):
    """A text-to-image model of the Infinity family (see ``GenerativeModel`` for the interface).

    With ``stages`` text encoder, transformer and decoder take turns on the device.
    """

    id: str
    text: TextEncoder
    transformer: InfinityTransformer
    autoencoder: Autoencoder
    sampling: Sampling
    examples: tuple[str, ...] = ()
    facts: dict[str, Any] | None = None
    stages: Stages | None = None

    def check_prompt(self, prompt: str) -> str | None:
        return self.text.check(prompt)

    @torch.inference_mode()
    def run(self, prompts: Sequence[str], noise: Noise, cache: KVCache, sampling: Sampling) -> Iterator[ScaleTokens]:
        sampling.refuse("smooth", model=self.id)
        scales = len(self.geometry.scales)
        by_scale = sampling.guidance_by_scale or (sampling.guidance,) * scales
        if len(by_scale) != scales:
            raise ValueError(f"{len(by_scale)} strengths of guidance for {scales} scales: give one, or one a scale")
        guidance = Guidance(by_scale, (sampling.temperature,) * scales, sampling.top_p)
        text = self._read(prompts)
        negative = self._read([sampling.negative] * len(prompts)) if sampling.negative and guidance.active else None
        self._use("transformer")
        quantizer = self.autoencoder.quantizer
        for step in generate_scales(self.transformer, quantizer, text, negative, cache, guidance, noise):
            yield step
            if step.scale < scales - 1:  # a preview may have had its turn
                self._use("transformer")

    def _read(self, prompts: Sequence[str]) -> TextFeatures:
        text = self.text.encode(prompts)
        return TextFeatures(text.features_BNC.to(self.device, torch.float32), text.mask_BN.to(self.device))

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Tensor:
        self._use("decoder")
        weight = next(self.autoencoder.decoder.parameters())
        pixels = (self.autoencoder.decode(latent.to(weight.dtype)) + 1) / 2 * 255
        return pixels.permute(0, 2, 3, 1).to(torch.uint8).cpu()

    def about(self) -> dict[str, Any]:
        return {
            **self.parameter_counts(),
            **self.text.about(),
            **(self.facts or {}),
        }


def load_folder(folder: Path, config: FolderConfig, device: torch.device, dtype: torch.dtype) -> InfinityModel:
    """Load a folder written by ``bundled.save_folder``. Raises ``CheckpointError``."""
    shape, image, scales = config.transformer, config.autoencoder, config.scales
    if shape.bits != image.token_bits:
        raise CheckpointError(f"{folder}: its transformer predicts {shape.bits} bits, not {image.token_bits}")
    if config.max_words > shape.text_maxlen:
        raise CheckpointError(f"{folder}: max_words is {config.max_words}, but text_maxlen {shape.text_maxlen}")
    parts = bundled.load_parts(
        folder,
        {
            "text": bundled.words_reader(folder, config, shape.text_width),
            "transformer": lambda: InfinityTransformer(shape, scales),
            "autoencoder": lambda: Autoencoder(scales, image, with_encoder=False),
        },
        device,
        lambda name: dtype if name.startswith("transformer.blocks.") else torch.float32,
    )
    set_positions(parts["transformer"], device)
    parts["autoencoder"].quantizer = BitQuantizer(scales, image).to(device)
    return InfinityModel(**parts, **config.common)
