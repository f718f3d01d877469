"""LlamaGen models from published files, checked and loaded strictly, straight to the device."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from heatkv.models import hub
from heatkv.models.checkpoint import CheckpointError, load_state, place
from heatkv.models.hub import Files
from heatkv.models.infinity.t5 import T5Encoder, is_text_encoder, text_width
from heatkv.models.llamagen import layout
from heatkv.models.llamagen.captions import clean_caption
from heatkv.models.llamagen.model import LlamaGenModel
from heatkv.models.llamagen.transformer import LlamaGenConfig, LlamaGenTransformer, set_positions
from heatkv.models.llamagen.vq import Vq, VqConfig
from heatkv.models.mixups import check_pair, check_part, read_shape, right_name
from heatkv.models.offload import Stages
from heatkv.models.presets import PRESETS, T5_XL, Preset, Weights
from heatkv.models.untrained import RandomText, drawn, facts_of
from heatkv.models.var.classes import classes_for, first_classes

CPU = torch.device("cpu")
WHAT_TRANSFORMER, WHAT_TOKENIZER = "LlamaGen transformer", "LlamaGen tokenizer"


def build(preset: Preset, files: Files, device: torch.device, dtype: torch.dtype, offload: bool) -> LlamaGenModel:
    """Load a published model; transformer and cache are of ``dtype``, the tokenizer float32, as published.

    With ``offload`` the parts wait on the CPU and take turns on ``device``. Raises ``CheckpointError``.
    """
    if files.transformer is None or files.autoencoder is None:
        raise CheckpointError(f"{preset.id} needs a transformer and a tokenizer")
    shape = preset.transformer_config
    assert isinstance(shape, LlamaGenConfig)
    home = CPU if offload else device
    # The tokenizer first: it is small, and a wrong one should not cost minutes.
    autoencoder = load_tokenizer(preset, files.autoencoder, device)
    autoencoder.decoder.to(home)
    reader = classes_for(shape.classes) if preset.text is None else load_text(preset, shape, files, home, dtype)
    transformer = load_transformer(preset, files.transformer, home, dtype)
    stages = None
    if offload:
        parts: dict[str, nn.Module] = {"transformer": transformer, "decoder": autoencoder.decoder}
        if isinstance(reader, T5Encoder):
            parts = {"text": reader, **parts}
        stages = Stages(parts, device)
        if isinstance(reader, T5Encoder):
            reader.before_use = partial(stages.use, "text")
    facts = {
        "summary": preset.summary,
        "licence": preset.licence,
        "source": files.transformer.name,
        "staged_offload": offload,
        **preset.told,
    }
    return LlamaGenModel(preset.id, reader, transformer, autoencoder, preset.sampling, preset.examples, facts, stages)


def load_text(
    preset: Preset, shape: LlamaGenConfig, files: Files, device: torch.device, dtype: torch.dtype
) -> T5Encoder:
    """The text encoder, in the transformer's dtype as published."""
    if files.text is None or preset.text is None:
        raise CheckpointError(f"{preset.id} needs a text encoder")
    if (width := text_width(files.text)) != shape.caption_width:
        raise CheckpointError(
            f"the text encoder {files.text} gives features of {width} numbers, but {preset.id} reads "
            f"{shape.caption_width}: use {right_name(preset.text)}"
        )
    clean_twice = lambda text: clean_caption(clean_caption(text))  # noqa: E731  (as published)
    return T5Encoder(files.text, device, dtype, shape.condition_tokens, clean_twice)


def read_transformer_config(path: Path, grid: int, heads: int = 0) -> LlamaGenConfig:
    """Shape of the transformer in ``path``. Raises ``CheckpointError`` if it holds none."""
    return read_shape(lambda s: layout.transformer_config(s, grid, heads), load_state(path), path, WHAT_TRANSFORMER)


def read_tokenizer_config(path: Path) -> VqConfig:
    """Shape of the tokenizer in ``path``. Raises ``CheckpointError`` if it holds none."""
    return read_shape(layout.tokenizer_config, load_state(path), path, WHAT_TOKENIZER)


def load_transformer(preset: Preset, path: Path, device: torch.device, dtype: torch.dtype) -> LlamaGenTransformer:
    """The transformer of ``preset`` from its file."""
    shape = preset.transformer_config
    assert isinstance(shape, LlamaGenConfig)
    state = layout.transformer_state(load_state(path))
    found = read_shape(lambda s: layout.transformer_config(s, shape.grid, shape.heads), state, path, WHAT_TRANSFORMER)
    check_part(preset, "transformer", path, found)
    model, _ = place(lambda: LlamaGenTransformer(shape), state, path, device, lambda name: dtype)
    set_positions(model, device)
    return model


def load_tokenizer(preset: Preset, path: Path, device: torch.device) -> Vq:
    """Codebook and decoder of ``preset`` from the tokenizer's file (the encoder is left out)."""
    shape, config = preset.transformer_config, preset.autoencoder_config
    assert isinstance(shape, LlamaGenConfig)
    assert isinstance(config, VqConfig)
    state = layout.tokenizer_state(load_state(path), with_encoder=False)
    found = read_shape(layout.tokenizer_config, state, path, WHAT_TOKENIZER)
    predicts, codes = (f"{n} codes" for n in (shape.vocabulary, found.vocabulary))
    check_pair(preset, Path(preset.transformer.local_name), predicts, path, codes)
    check_part(preset, "autoencoder", path, found)
    model, _ = place(lambda: Vq(config, with_encoder=False), state, path, device)
    return model


def random_init(preset: Preset, device: torch.device, dtype: torch.dtype) -> LlamaGenModel:
    """``preset`` with random weights; transformer and cache of ``dtype``, the tokenizer float32."""
    shape, config = preset.transformer_config, preset.autoencoder_config
    assert isinstance(shape, LlamaGenConfig)
    assert isinstance(config, VqConfig)
    transformer = drawn(lambda: LlamaGenTransformer(shape), device, dtype, around=dtype)
    set_positions(transformer, device)
    autoencoder = drawn(lambda: Vq(config, with_encoder=False), device)
    facts = facts_of(preset)
    by_class = shape.condition == "class"
    reader = classes_for(shape.classes) if by_class else RandomText(shape.caption_width, shape.condition_tokens)
    return LlamaGenModel(facts["id"], reader, transformer, autoencoder, preset.sampling, preset.examples, facts)


def found_in(folder: Path, settings: dict[str, Any], transformer: Path, autoencoder: Path) -> tuple[Preset, Files]:
    """The model that files of other names than the published ones make up, with what ``settings`` state of it."""
    grid = settings.get("grid") or layout.grid_in_name(transformer.name)
    if grid is None:
        raise CheckpointError(
            f"{transformer} does not tell the size of its images: let its name end in _256, _384 or _512, or write a "
            'config.json next to it, {"format": "heatkv-official", "version": 1, "grid": 24} (tokens of a side)'
        )
    shape = read_transformer_config(transformer, grid, settings.get("heads", 0))
    captions = shape.condition == "caption"
    texts = [entry for entry in sorted(folder.iterdir()) if is_text_encoder(entry)]
    text = (texts[0] if texts else hub.find_weights(T5_XL, folder)) if captions else None
    if captions and text is None:
        raise CheckpointError(
            f"{folder} needs a text encoder of {shape.caption_width} features: put the folder {T5_XL.local_name} "
            f"({T5_XL.repo}) into it"
        )
    usual = PRESETS["llamagen-t2i-512" if captions else "llamagen-b-384"]
    preset = replace(
        usual,
        id=transformer.parent.name or "folder",
        summary=f"LlamaGen of depth {shape.depth}, from {transformer.name}",
        scales=shape.scales,
        transformer_config=shape,
        autoencoder_config=read_tokenizer_config(autoencoder),
        transformer=Weights("", transformer.name, 0),
        text=Weights("", text.name, 0) if texts and text else usual.text,
        text_parameters=0,
        examples=usual.examples if captions or shape.classes == 1000 else first_classes(shape.classes),
        licence="",
    )
    return preset, Files(transformer, autoencoder, text)
