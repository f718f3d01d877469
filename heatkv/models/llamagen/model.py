"""A LlamaGen model ready to run: classes or text encoder, transformer, tokenizer and how to sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from heatkv.cache import KVCache
from heatkv.models import bundled
from heatkv.models.base import Noise, Sampling, ScaleTokens
from heatkv.models.bundled import FolderConfig
from heatkv.models.checkpoint import CheckpointError
from heatkv.models.infinity.text import TextEncoder
from heatkv.models.llamagen.sampling import generate_lines, read_image
from heatkv.models.llamagen.transformer import Condition, LlamaGenTransformer, set_positions
from heatkv.models.llamagen.vq import Vq
from heatkv.models.offload import Staged, Stages
from heatkv.models.var.classes import Classes


@dataclass
class LlamaGenModel(Staged):
    """A model that draws token by token, line by line (see ``GenerativeModel`` for the interface).

    ``reader`` makes a condition of a prompt: the classes of a class-conditional model, or a text encoder. With
    ``stages`` text encoder, transformer and decoder take turns on the device.
    """

    id: str
    reader: Classes | TextEncoder
    transformer: LlamaGenTransformer
    autoencoder: Vq
    sampling: Sampling
    examples: tuple[str, ...] = ()
    facts: dict[str, Any] | None = None
    stages: Stages | None = None

    @property
    def classes(self) -> Classes | None:
        """For pickers; None where a prompt is free text."""
        return self.reader if isinstance(self.reader, Classes) else None

    @property
    def text(self) -> TextEncoder | None:
        """The text encoder of a model that has one."""
        return None if isinstance(self.reader, Classes) else self.reader

    def check_prompt(self, prompt: str) -> str | None:
        return self.reader.read(prompt)[1] if isinstance(self.reader, Classes) else self.reader.check(prompt)

    def _condition(self, prompts: Sequence[str], guided: bool) -> Condition:
        if isinstance(self.reader, Classes):
            labels = [self.reader.read(prompt)[0] for prompt in prompts]
            nothing = [self.transformer.config.classes] * len(prompts) if guided else []
            self._use("transformer")
            return self.transformer.read_classes(torch.tensor(labels + nothing, device=self.device))
        text = self.reader.encode(prompts)
        self._use("transformer")
        return self.transformer.read_captions(text.features_BNC.to(self.device), text.mask_BN.to(self.device), guided)

    @torch.inference_mode()
    def run(self, prompts: Sequence[str], noise: Noise, cache: KVCache, sampling: Sampling) -> Iterator[ScaleTokens]:
        sampling.refuse("negative", "guidance_by_scale", "smooth", model=self.id)
        condition = self._condition(prompts, sampling.guided)
        codebook, last = self.autoencoder.quantize, self.transformer.config.grid
        for line in generate_lines(self.transformer, codebook, condition, cache, sampling, noise):
            yield line
            if line.scale < last:  # a preview may have had its turn
                self._use("transformer")

    @torch.inference_mode()
    def replay(self, prompts: Sequence[str], tokens_BN: Tensor, cache: KVCache, sampling: Sampling) -> Iterator[Tensor]:
        """Read given images: the guided logits ``[B, vocabulary]`` (float32) that each of their tokens is drawn from.

        With the tokens of another run, two caches are compared on the same history.
        """
        condition = self._condition(prompts, sampling.guided)
        tokens: list[Tensor] = []
        logits = read_image(self.transformer, condition, cache, sampling, tokens)
        for token_B, logits_BV in zip(tokens_BN.to(self.device).unbind(1), logits, strict=True):
            tokens.append(token_B)
            yield logits_BV

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Tensor:
        self._use("decoder")
        pixels = (127.5 * self.autoencoder.decode(latent) + 128).clamp(0, 255)
        # Cells that are not drawn yet have no code; what the decoder makes of that is no part of the picture.
        blank_B1HW = (latent == 0).all(1, keepdim=True).float()
        pixels.masked_fill_(F.interpolate(blank_B1HW, scale_factor=self.autoencoder.config.stride) > 0, 255)
        return pixels.permute(0, 2, 3, 1).to(torch.uint8).cpu()

    def about(self) -> dict[str, Any]:
        read = {"classes": self.reader.count} if isinstance(self.reader, Classes) else self.reader.about()
        return {**self.parameter_counts(), **read, **(self.facts or {})}


def load_folder(folder: Path, config: FolderConfig, device: torch.device, dtype: torch.dtype) -> LlamaGenModel:
    """Load a folder written by ``bundled.save_folder``. Raises ``CheckpointError``."""
    shape, tokenizer = config.transformer, config.autoencoder
    together = (shape.condition, shape.vocabulary) == ("caption", tokenizer.vocabulary)
    if not together or config.max_words > shape.condition_tokens:
        raise CheckpointError(f"{folder}: transformer, tokenizer and text do not go together")
    parts = bundled.load_parts(
        folder,
        {
            "text": bundled.words_reader(folder, config, shape.caption_width),
            "transformer": lambda: LlamaGenTransformer(shape),
            "autoencoder": lambda: Vq(tokenizer, with_encoder=False),
        },
        device,
        lambda name: dtype if name.startswith("transformer.") else torch.float32,
    )
    set_positions(parts["transformer"], device)
    return LlamaGenModel(reader=parts.pop("text"), **parts, **config.common)
