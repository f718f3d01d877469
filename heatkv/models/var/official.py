"""VAR models from published files, checked and loaded strictly, straight to the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from heatkv.models.checkpoint import CheckpointError, load_state, place
from heatkv.models.hub import Files
from heatkv.models.mixups import check_pair, check_part, read_shape
from heatkv.models.offload import Stages
from heatkv.models.presets import PRESETS, Preset, Weights
from heatkv.models.untrained import drawn, facts_of
from heatkv.models.var import layout
from heatkv.models.var.classes import classes_for, first_classes
from heatkv.models.var.model import VarModel
from heatkv.models.var.transformer import VarConfig, VarTransformer
from heatkv.models.var.vqvae import Vqvae, VqvaeConfig
from heatkv.scales import ScaleSchedule

CPU = torch.device("cpu")
WHAT_TRANSFORMER = "VAR transformer"


def build(preset: Preset, files: Files, device: torch.device, dtype: torch.dtype, offload: bool) -> VarModel:
    """Load a published model; blocks and cache are of ``dtype``, everything around them float32.

    With ``offload`` transformer and decoder wait on the CPU and take turns on ``device``. Raises
    ``CheckpointError``.
    """
    if files.transformer is None or files.autoencoder is None:
        raise CheckpointError(f"{preset.id} needs a transformer and an autoencoder")
    home = CPU if offload else device
    autoencoder = load_autoencoder(preset, files.autoencoder, device)
    autoencoder.decoder.to(home)
    transformer = load_transformer(preset, files.transformer, home, dtype)
    stages = Stages({"transformer": transformer, "decoder": autoencoder.decoder}, device) if offload else None
    facts = {
        "summary": preset.summary,
        "licence": preset.licence,
        "source": files.transformer.name,
        "staged_offload": offload,
        **preset.told,
    }
    classes = classes_for(transformer.config.classes)
    return VarModel(preset.id, classes, transformer, autoencoder, preset.sampling, preset.examples, facts, stages)


def read_transformer_config(path: Path) -> VarConfig:
    """Shape of the transformer in ``path``. Raises ``CheckpointError`` if it holds none."""
    return read_shape(layout.transformer_config, load_state(path), path, WHAT_TRANSFORMER)


def read_scales(path: Path) -> ScaleSchedule | None:
    """The published scales that the positions of the transformer in ``path`` are of, if any."""
    return read_shape(layout.transformer_scales, load_state(path), path, WHAT_TRANSFORMER)


def read_autoencoder_config(path: Path) -> VqvaeConfig:
    """Shape of the autoencoder in ``path``. Raises ``CheckpointError`` if it holds none."""
    return read_shape(layout.autoencoder_config, load_state(path), path, "VAR autoencoder")


def load_transformer(preset: Preset, path: Path, device: torch.device, dtype: torch.dtype) -> VarTransformer:
    """The transformer of ``preset`` from its file."""
    shape = preset.transformer_config
    assert isinstance(shape, VarConfig)
    state = load_state(path)
    check_part(preset, "transformer", path, read_shape(layout.transformer_config, state, path, WHAT_TRANSFORMER))
    tokens, levels = read_shape(layout.tokens_and_levels, state, path, WHAT_TRANSFORMER)
    if (tokens, levels) != (preset.scales.total, len(preset.scales)):
        raise CheckpointError(
            f"{path} has positions for {tokens} tokens in {levels} scales; {preset.id} has {preset.scales.total} in "
            f"{len(preset.scales)} ({preset.scales})"
        )
    model, _ = place(
        lambda: VarTransformer(shape, preset.scales), layout.transformer_state(state), path, device,
        lambda name: dtype if name.startswith("blocks.") else torch.float32,
    )  # fmt: skip
    return model


def load_autoencoder(preset: Preset, path: Path, device: torch.device) -> Vqvae:
    """Quantiser and decoder of ``preset`` from the autoencoder's file (the encoder is left out)."""
    shape, config = preset.transformer_config, preset.autoencoder_config
    assert isinstance(shape, VarConfig)
    assert isinstance(config, VqvaeConfig)
    state = load_state(path)
    found = read_shape(layout.autoencoder_config, state, path, "VAR autoencoder")
    predicts = f"{shape.vocabulary} codes of {shape.code_width} numbers"
    codes = f"{found.vocabulary} codes of {found.code_width} numbers"
    check_pair(preset, Path(preset.transformer.local_name), predicts, path, codes)
    check_part(preset, "autoencoder", path, found)
    state = layout.autoencoder_state(state, with_encoder=False)
    model, _ = place(lambda: Vqvae(preset.scales, config, with_encoder=False), state, path, device)
    return model


def random_init(preset: Preset, device: torch.device, dtype: torch.dtype) -> VarModel:
    """``preset`` with random weights; blocks and cache of ``dtype``, everything around them float32."""
    shape, config, scales = preset.transformer_config, preset.autoencoder_config, preset.scales
    assert isinstance(shape, VarConfig)
    assert isinstance(config, VqvaeConfig)
    transformer = drawn(lambda: VarTransformer(shape, scales), device, dtype)
    autoencoder = drawn(lambda: Vqvae(scales, config, with_encoder=False), device)
    classes, facts = classes_for(shape.classes), facts_of(preset)
    return VarModel(facts["id"], classes, transformer, autoencoder, preset.sampling, preset.examples, facts)


def found_in(folder: Path, settings: dict[str, Any], transformer: Path, autoencoder: Path) -> tuple[Preset, Files]:
    """The model that files of other names than the published ones make up, with what ``settings`` state of it."""
    scales = settings.get("scales") or read_scales(transformer)
    if scales is None:
        raise CheckpointError(
            f"{transformer} has none of the published scale lists: write a config.json next to it, "
            '{"format": "heatkv-official", "version": 1, "scales": [[1, 1], [2, 2], ...]}'
        )
    shape = read_transformer_config(transformer)
    usual = PRESETS["var-d16"]
    preset = replace(
        usual,
        id=transformer.parent.name or "folder",
        summary=f"VAR of depth {shape.depth}, from {transformer.name}",
        scales=scales,
        transformer_config=shape,
        autoencoder_config=read_autoencoder_config(autoencoder),
        transformer=Weights("", transformer.name, 0),
        examples=usual.examples if shape.classes == 1000 else first_classes(shape.classes),
        licence="",
    )
    return preset, Files(transformer, autoencoder)
