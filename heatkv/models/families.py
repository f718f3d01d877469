"""The families of models: one record each, which is all that the rest of the library asks which family it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from heatkv.models.bundled import FolderConfig
from heatkv.models.hub import Files
from heatkv.models.infinity import model as infinity_model
from heatkv.models.infinity import official as infinity
from heatkv.models.infinity.autoencoder import Autoencoder, AutoencoderConfig
from heatkv.models.infinity.transformer import InfinityTransformer, TransformerConfig
from heatkv.models.llamagen import model as llamagen_model
from heatkv.models.llamagen import official as llamagen
from heatkv.models.llamagen.transformer import LlamaGenConfig, LlamaGenTransformer
from heatkv.models.llamagen.vq import Vq, VqConfig
from heatkv.models.presets import Preset
from heatkv.models.var import official as var
from heatkv.models.var.transformer import VarTransformer
from heatkv.models.var.vqvae import Vqvae
from heatkv.scales import ScaleSchedule

Model = infinity.InfinityModel | var.VarModel | llamagen.LlamaGenModel


@dataclass(frozen=True)
class Family:
    """What the library has to know of a family.

    Parameters
    ----------
    title
        For people.
    transformer, autoencoder
        Modules of a configuration and scales; the autoencoder without what only encodes. The transformer's blocks are
        its ``blocks``.
    outputs
        How many numbers the transformer predicts a token.
    around_dtype, decoder_dtype
        Of what is around the blocks, and of the decoder; None: the compute dtype.
    build
        A model of its published files: preset, files, device, dtype, whether parts take turns.
    random_init
        A model of random weights: preset, device, dtype.
    marks
        Tensors that tell what a file holds, and which part that is.
    found_in
        The model that files of other names make up: folder, settings, transformer, autoencoder.
    load_folder
        A model of a folder in this program's own format; None where the family has none.
    configs
        What configures transformer and autoencoder in such a folder.
    """

    title: str
    transformer: Callable[[Any, ScaleSchedule], nn.Module]
    autoencoder: Callable[[Any, ScaleSchedule], nn.Module]
    outputs: Callable[[Any], int]
    build: Callable[[Preset, Files, torch.device, torch.dtype, bool], Model]
    random_init: Callable[[Preset, torch.device, torch.dtype], Model]
    marks: dict[str, str]
    found_in: Callable[[Path, dict[str, Any], Path, Path], tuple[Preset, Files]]
    load_folder: Callable[[Path, FolderConfig, torch.device, torch.dtype], Model] | None = None
    configs: tuple[type, type] | None = None
    around_dtype: torch.dtype | None = torch.float32
    decoder_dtype: torch.dtype | None = None


# A file is of the first family whose mark it bears.
FAMILIES = {
    "llamagen": Family(
        "LlamaGen",
        lambda config, scales: LlamaGenTransformer(config),
        lambda config, scales: Vq(config, with_encoder=False),
        lambda config: config.vocabulary,
        llamagen.build,
        llamagen.random_init,
        {"tok_embeddings.weight": "transformer", "decoder.conv_blocks.0.res.0.conv1.weight": "autoencoder"},
        llamagen.found_in,
        llamagen_model.load_folder,
        (LlamaGenConfig, VqConfig),
        around_dtype=None,
        decoder_dtype=torch.float32,
    ),
    "var": Family(
        "VAR",
        VarTransformer,
        lambda config, scales: Vqvae(scales, config, with_encoder=False),
        lambda config: config.vocabulary,
        var.build,
        var.random_init,
        {"class_emb.weight": "transformer", "quantize.embedding.weight": "autoencoder"},
        var.found_in,
    ),
    "infinity": Family(
        "Infinity",
        InfinityTransformer,
        lambda config, scales: Autoencoder(scales, config, with_encoder=False),
        lambda config: 2 * config.bits,
        infinity.build,
        infinity.random_init,
        {
            "text_proj_for_sos.ca.mat_q": "transformer",
            "decoder.conv_in.weight": "autoencoder",
            "decoder.conv_in.conv.weight": "autoencoder",
        },
        infinity.found_in,
        infinity_model.load_folder,
        (TransformerConfig, AutoencoderConfig),
    ),
}
