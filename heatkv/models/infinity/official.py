"""Infinity models from published files: every key layout, checked pairing, straight to the device."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from heatkv.models.checkpoint import CheckpointError, load_state, place
from heatkv.models.hub import Files
from heatkv.models.infinity import layout
from heatkv.models.infinity.autoencoder import Autoencoder, AutoencoderConfig, BitQuantizer
from heatkv.models.infinity.model import InfinityModel
from heatkv.models.infinity.t5 import T5Encoder, text_width
from heatkv.models.infinity.transformer import InfinityTransformer, TransformerConfig, positions
from heatkv.models.memory import text_dtype
from heatkv.models.mixups import check_pair, check_part, read_shape, right_name
from heatkv.models.offload import Stages
from heatkv.models.presets import Preset

CPU = torch.device("cpu")
WHAT_TRANSFORMER, WHAT_AUTOENCODER = "Infinity transformer", "Infinity autoencoder"


def build(preset: Preset, files: Files, device: torch.device, dtype: torch.dtype, offload: bool) -> InfinityModel:
    """Load a published model; blocks and cache are of ``dtype``, everything around them float32.

    With ``offload`` the parts wait on the CPU and take turns on ``device``. Raises ``CheckpointError``.
    """
    if files.transformer is None or files.autoencoder is None or files.text is None or preset.text is None:
        raise CheckpointError(f"{preset.id} needs a transformer, an autoencoder and a text encoder")
    shape = preset.transformer_config
    assert isinstance(shape, TransformerConfig)
    if (width := text_width(files.text)) != shape.text_width:
        raise CheckpointError(
            f"the text encoder {files.text} gives features of {width} numbers, but {preset.id} reads "
            f"{shape.text_width}: use {right_name(preset.text)}"
        )
    home = CPU if offload else device
    # The autoencoder first: it is small, and a wrong one should not cost minutes.
    autoencoder = load_autoencoder(preset, files.autoencoder, home)
    autoencoder.quantizer.to(device)
    transformer, ignored = load_transformer(preset, files.transformer, home, dtype)
    text = T5Encoder(files.text, home, text_dtype(device, dtype))
    stages = None
    if offload:
        stages = Stages({"text": text, "transformer": transformer, "decoder": autoencoder.decoder}, device)
        text.before_use = partial(stages.use, "text")
    facts = {
        "summary": preset.summary,
        "licence": preset.licence,
        "source": files.transformer.name,
        "staged_offload": offload,
        **({"tensors_ignored": list(ignored)} if ignored else {}),
    }
    return InfinityModel(preset.id, text, transformer, autoencoder, preset.sampling, preset.examples, facts, stages)


def read_transformer_config(path: Path, rope_grid: tuple[int, int]) -> TransformerConfig:
    """Shape of the transformer in ``path``. Raises ``CheckpointError`` if it holds none."""
    state = layout.transformer_state(load_state(path))
    return read_shape(lambda s: layout.transformer_config(s, rope_grid), state, path, WHAT_TRANSFORMER)


def read_autoencoder_config(path: Path, token_bits: int) -> AutoencoderConfig:
    """Shape of the autoencoder in ``path``. Raises ``CheckpointError`` if it holds none."""
    state = layout.autoencoder_state(load_state(path), with_encoder=False)
    return read_shape(lambda s: layout.autoencoder_config(s, token_bits), state, path, WHAT_AUTOENCODER)


def load_transformer(
    preset: Preset, path: Path, device: torch.device, dtype: torch.dtype
) -> tuple[InfinityTransformer, tuple[str, ...]]:
    """The transformer of ``preset`` from its file or folder, and names of tensors that it has no place for."""
    shape = preset.transformer_config
    assert isinstance(shape, TransformerConfig)
    state = layout.transformer_state(load_state(path), shape.text_maxlen)
    found = read_shape(lambda s: layout.transformer_config(s, shape.rope_grid), state, path, WHAT_TRANSFORMER)
    check_part(preset, "transformer", path, found)
    model, ignored = place(
        lambda: InfinityTransformer(shape, preset.scales), state, path, device,
        lambda name: dtype if name.startswith("blocks.") else torch.float32, allow_unused=True,
    )  # fmt: skip
    set_positions(model, device)
    return model, ignored


def set_positions(model: InfinityTransformer, device: torch.device) -> None:
    """Set the buffers that follow from the scales, of a model made on the meta device."""
    for name, buffer in positions(model.config, model.scales).items():
        setattr(model, name, buffer.to(device))


def load_autoencoder(preset: Preset, path: Path, device: torch.device) -> Autoencoder:
    """Quantiser and decoder of ``preset`` from the autoencoder's file (the encoder is left out)."""
    shape, config = preset.transformer_config, preset.autoencoder_config
    assert isinstance(shape, TransformerConfig)
    assert isinstance(config, AutoencoderConfig)
    state = layout.autoencoder_state(load_state(path), with_encoder=False)
    found = read_shape(lambda s: layout.autoencoder_config(s, shape.bits), state, path, WHAT_AUTOENCODER)
    predicts, codes = (f"{n} bits a token" for n in (shape.bits, found.token_bits))
    check_pair(preset, Path(preset.transformer.local_name), predicts, path, codes)
    check_part(preset, "autoencoder", path, found)
    model, _ = place(lambda: Autoencoder(preset.scales, config, with_encoder=False), state, path, device)
    model.quantizer = BitQuantizer(preset.scales, config)
    return model
