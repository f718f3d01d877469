"""Infinity models from published files: every key layout, checked pairing, straight to the device."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from heatkv.models import hub
from heatkv.models.checkpoint import CheckpointError, load_state, place
from heatkv.models.hub import Files
from heatkv.models.infinity import layout
from heatkv.models.infinity.autoencoder import Autoencoder, AutoencoderConfig, BitQuantizer
from heatkv.models.infinity.model import InfinityModel
from heatkv.models.infinity.scales import SIZES, published_scales, rope_grid
from heatkv.models.infinity.t5 import T5Encoder, is_text_encoder, text_dtype, text_width
from heatkv.models.infinity.transformer import InfinityTransformer, TransformerConfig, set_positions
from heatkv.models.mixups import check_pair, check_part, differences, read_shape, right_name
from heatkv.models.offload import Stages
from heatkv.models.presets import INFINITY_EXAMPLES, INFINITY_SAMPLING, PRESETS, T5_XL, Preset, Weights
from heatkv.models.untrained import RandomText, drawn, facts_of

CPU = torch.device("cpu")
SIZE_MARKS = {"256x256": "0.06M", "512x512": "0.25M", "1024x1024": "1M", **{f"_{size}": size for size in SIZES}}
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
        **preset.told,
        **({"tensors_ignored": list(ignored)} if ignored else {}),
    }
    return InfinityModel(preset.id, text, transformer, autoencoder, preset.sampling, preset.examples, facts, stages)


def read_transformer_config(path: Path, rope_grid: tuple[int, int]) -> TransformerConfig:
    """Shape of the transformer in ``path``. Raises ``CheckpointError`` if it holds none."""
    return read_shape(
        lambda state: layout.transformer_config(layout.transformer_state(state), rope_grid),
        load_state(path), path, WHAT_TRANSFORMER,
    )  # fmt: skip


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
    state = read_shape(
        lambda state: layout.transformer_state(state, shape.text_maxlen), load_state(path), path, WHAT_TRANSFORMER
    )
    found = read_shape(lambda s: layout.transformer_config(s, shape.rope_grid), state, path, WHAT_TRANSFORMER)
    check_part(preset, "transformer", path, found)
    model, ignored = place(
        lambda: InfinityTransformer(shape, preset.scales), state, path, device,
        lambda name: dtype if name.startswith("blocks.") else torch.float32, allow_unused=True,
    )  # fmt: skip
    set_positions(model, device)
    return model, ignored


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


def random_init(preset: Preset, device: torch.device, dtype: torch.dtype) -> InfinityModel:
    """``preset`` with random weights; blocks and cache of ``dtype``, everything around them float32."""
    shape, config, scales = preset.transformer_config, preset.autoencoder_config, preset.scales
    assert isinstance(shape, TransformerConfig)
    assert isinstance(config, AutoencoderConfig)
    transformer = drawn(lambda: InfinityTransformer(shape, scales), device, dtype)
    set_positions(transformer, device)
    autoencoder = drawn(lambda: Autoencoder(scales, config, with_encoder=False), device)
    autoencoder.quantizer = BitQuantizer(scales, config).to(device)
    text, facts = RandomText(shape.text_width, shape.text_maxlen), facts_of(preset)
    return InfinityModel(facts["id"], text, transformer, autoencoder, preset.sampling, preset.examples, facts)


def found_in(folder: Path, settings: dict[str, Any], transformer: Path, autoencoder: Path) -> tuple[Preset, Files]:
    """The model that files of other names than the published ones make up, with what ``settings`` state of it."""
    size = "" if "scales" in settings else settings.get("asked_size") or size_of(transformer)
    scales = settings["scales"] if "scales" in settings else published_scales(size)
    grid = settings.get("rope_grid") or (scales.sizes[-1] if "scales" in settings else rope_grid())
    shape = read_transformer_config(transformer, grid)
    if scales.by_line or len(scales) < 2 or scales.sizes[0] != (1, 1) or len(scales) > shape.max_scales:
        where = folder / "config.json" if "scales" in settings else folder
        raise CheckpointError(
            f"{where}: its scales are not for {transformer.name}, which draws by scales, 2 to "
            f"{shape.max_scales} of them, the first of 1x1"
        )
    texts = [entry for entry in sorted(folder.iterdir()) if is_text_encoder(entry)]
    text = texts[0] if texts else hub.find_weights(T5_XL, folder)
    if text is None:
        raise CheckpointError(
            f"{folder} needs a text encoder of {shape.text_width} features: put the folder {T5_XL.local_name} "
            f"({T5_XL.repo}) into it"
        )
    preset = Preset(
        id=transformer.parent.name or "folder",
        family="infinity",
        summary=f"Infinity of depth {shape.depth}, from {transformer.name}, square",
        scales=scales,
        transformer_config=shape,
        autoencoder_config=read_autoencoder_config(autoencoder, shape.bits),
        transformer=Weights("", transformer.name, 0),
        autoencoder=Weights("", right_autoencoder(shape.bits, autoencoder), 0),
        text=Weights("", text.name, 0) if texts else T5_XL,
        text_parameters=0,
        sampling=INFINITY_SAMPLING,
        examples=INFINITY_EXAMPLES,
        size=size,
        ratio="1.0",
    )
    return preset, Files(transformer, autoencoder, text)


def size_of(transformer: Path) -> str:
    """The size that a renamed transformer draws: its tensors do not say, but of some shapes only one is published.

    Raises ``CheckpointError`` where there are more, or none: at another size than it has learnt it draws nonsense.
    """
    for mark, size in SIZE_MARKS.items():
        if mark in transformer.name:
            return size
    found = read_transformer_config(transformer, rope_grid())
    published = [p for p in PRESETS.values() if p.size and not differences(found, p.transformer_config)]
    if len({preset.size for preset in published}) != 1:
        raise CheckpointError(
            f"{transformer} does not tell the size of its images: give it after the path, {transformer}:1M (or "
            f"{', '.join(size for size in SIZES if size != '1M')}), or state scales in a config.json next to it"
        )
    return published[0].size


def right_autoencoder(bits: int, given: Path) -> str:
    """The published autoencoder for a transformer that predicts so many bits a token."""
    for preset in PRESETS.values():
        config = preset.autoencoder_config
        if isinstance(config, AutoencoderConfig) and config.token_bits == bits and preset.transformer.repo:
            return preset.autoencoder.name
    return given.name
