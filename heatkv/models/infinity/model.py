"""An Infinity model ready to run: text encoder, transformer, autoencoder and how to sample."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heatkv.cache.seam import KVCache
from heatkv.files import write_atomic
from heatkv.models.base import Noise, Sampling, ScaleTokens
from heatkv.models.checkpoint import load_state, save_shards
from heatkv.models.infinity.autoencoder import Autoencoder, AutoencoderConfig
from heatkv.models.infinity.sampling import Guidance, generate_scales
from heatkv.models.infinity.text import TextEncoder, Vocabulary, WordEncoder
from heatkv.models.infinity.transformer import InfinityTransformer, TextFeatures, TransformerConfig
from heatkv.models.infinity.words import Synonyms
from heatkv.models.offload import Staged, Stages
from heatkv.scales import ScaleSchedule


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
        scales = len(self.geometry.scales)
        guidance = Guidance((sampling.guidance,) * scales, (sampling.temperature,) * scales, sampling.top_p)
        text = self.text.encode(prompts)
        text = TextFeatures(text.features_BNC.to(self.device, torch.float32), text.mask_BN.to(self.device))
        self._use("transformer")
        for step in generate_scales(self.transformer, self.autoencoder.quantizer, text, None, cache, guidance, noise):
            yield step
            if step.scale < scales - 1:  # a preview may have had its turn
                self._use("transformer")

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


FORMAT, VERSION = "heatkv-model", 1
SYNONYMS = "synonyms.json"


def save_folder(model: InfinityModel, folder: Path) -> None:
    """Write ``config.json`` and float16 safetensors shards of less than 10 MB (decoder only).

    Raises ``ValueError`` for a model with an external text encoder.
    """
    if not isinstance(model.text, WordEncoder):
        raise ValueError(f"{model.id} reads text with {type(model.text).__name__}, which a model folder can not hold")
    config = {
        "format": FORMAT,
        "version": VERSION,
        "family": "infinity",
        "id": model.id,
        "scales": [list(size) for size in model.geometry.scales],
        "transformer": asdict(model.transformer.config),
        "autoencoder": asdict(model.autoencoder.config),
        "text": {"words": list(model.text.vocabulary.words), "max_words": model.text.max_words},
        "sampling": asdict(model.sampling),
        "examples": list(model.examples),
        "facts": model.facts or {},
    }
    state: dict[str, Tensor] = {}
    for part in ("text", "transformer", "autoencoder"):
        for name, tensor in getattr(model, part).state_dict().items():
            if not name.startswith("encoder."):
                state[f"{part}.{name}"] = tensor.to(torch.float16).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_shards(state, folder)
    write_atomic(folder / "config.json", (json.dumps(config, indent=1) + "\n").encode())


def load_folder(folder: Path, config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> InfinityModel:
    """Load a folder written by ``save_folder`` (``config`` is its parsed ``config.json``)."""
    scales = ScaleSchedule(tuple((int(h), int(w)) for h, w in config["scales"]))
    transformer = TransformerConfig(**{**config["transformer"], "rope_grid": tuple(config["transformer"]["rope_grid"])})
    lists = {key: tuple(config["autoencoder"][key]) for key in ("width_mult", "steps")}
    autoencoder = AutoencoderConfig(**{**config["autoencoder"], **lists})
    words = Vocabulary(tuple(config["text"]["words"]))
    text = WordEncoder(words, transformer.text_width, config["text"]["max_words"])
    if (folder / SYNONYMS).exists():
        text.synonyms = Synonyms.load(folder / SYNONYMS)
    model = InfinityModel(
        id=config["id"],
        text=text,
        transformer=InfinityTransformer(transformer, scales),
        autoencoder=Autoencoder(scales, autoencoder, with_encoder=False),
        sampling=Sampling(**config["sampling"]),
        examples=tuple(config["examples"]),
        facts=config["facts"],
    )
    state = load_state(folder)
    for part in ("text", "transformer", "autoencoder"):
        prefix = f"{part}."
        part_state = {k.removeprefix(prefix): v.float() for k, v in state.items() if k.startswith(prefix)}
        module = getattr(model, part)
        module.load_state_dict(part_state)
        module.eval().requires_grad_(False).to(device)
    model.transformer.blocks.to(dtype)
    return model
