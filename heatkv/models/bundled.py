"""This program's own model folders: ``config.json``, words, and float16 safetensors shards of less than 10 MB."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heatkv.files import scales_json, write_atomic
from heatkv.models.base import Sampling
from heatkv.models.checkpoint import CheckpointError, load_state, save_shards
from heatkv.models.infinity.text import Vocabulary, WordEncoder
from heatkv.models.infinity.words import Synonyms

FORMAT, VERSION = "heatkv-model", 1
SYNONYMS = "synonyms.json"
PARTS = ("text", "transformer", "autoencoder")
NOT_NEEDED = ("encoder.", "quant_conv.")  # to draw pictures


def save_folder(model: Any, folder: Path, family: str = "infinity") -> None:
    """Write a model of a family, without what only encodes pictures.

    Raises ``ValueError`` for a model with an external text encoder.
    """
    if not isinstance(model.text, WordEncoder):
        raise ValueError(f"{model.id} reads text with {type(model.text).__name__}, which a model folder can not hold")
    config = {
        "format": FORMAT,
        "version": VERSION,
        "family": family,
        "id": model.id,
        **scales_json(model.geometry.scales),
        "transformer": asdict(model.transformer.config),
        "autoencoder": asdict(model.autoencoder.config),
        "text": {"words": list(model.text.vocabulary.words), "max_words": model.text.max_words},
        "sampling": asdict(model.sampling),
        "examples": list(model.examples),
        "facts": model.facts or {},
    }
    state: dict[str, Tensor] = {}
    for part in PARTS:
        for name, tensor in getattr(model, part).state_dict().items():
            if not name.startswith(NOT_NEEDED):
                state[f"{part}.{name}"] = tensor.to(torch.float16).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_shards(state, folder)
    write_atomic(folder / "config.json", (json.dumps(config, indent=1) + "\n").encode())


def read_words(folder: Path, config: dict[str, Any], width: int) -> WordEncoder:
    """The text encoder that ``config`` describes, with the folder's synonyms."""
    text = WordEncoder(Vocabulary(tuple(config["text"]["words"])), width, config["text"]["max_words"])
    if (folder / SYNONYMS).exists():
        text.synonyms = Synonyms.load(folder / SYNONYMS)
    return text


def read_common(config: dict[str, Any]) -> dict[str, Any]:
    """What models of all families have in common, by the names of their fields."""
    return {
        "id": config["id"],
        "sampling": Sampling(**config["sampling"]),
        "examples": tuple(config["examples"]),
        "facts": config["facts"],
    }


def fill(model: Any, folder: Path, device: torch.device) -> None:
    """Give the parts of a model the folder's weights, on ``device`` in float32."""
    state = load_state(folder)
    modules: dict[str, nn.Module] = {part: getattr(model, part) for part in PARTS}
    strangers = [name for name in state if name.partition(".")[0] not in modules]
    if strangers:
        raise CheckpointError(f"{folder} holds tensors that the model has no place for: {', '.join(strangers[:3])}")
    for part, module in modules.items():
        prefix = f"{part}."
        module.load_state_dict({k.removeprefix(prefix): v.float() for k, v in state.items() if k.startswith(prefix)})
        module.eval().requires_grad_(False).to(device)
