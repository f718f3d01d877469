"""Tiny random models, one that draws by scales and one by lines, for tests that need a model but no pictures."""

from __future__ import annotations

import torch

from heatkv.models.base import Sampling
from heatkv.models.infinity.autoencoder import Autoencoder, AutoencoderConfig
from heatkv.models.infinity.model import InfinityModel
from heatkv.models.infinity.text import Vocabulary, WordEncoder
from heatkv.models.infinity.transformer import InfinityTransformer, TransformerConfig
from heatkv.models.llamagen.model import LlamaGenModel
from heatkv.models.llamagen.transformer import LlamaGenConfig, LlamaGenTransformer
from heatkv.models.llamagen.vq import Vq, VqConfig
from heatkv.scales import ScaleSchedule

WORDS = ("a", "apple", "blue", "cat", "green", "of", "picture", "red", "tree")


def tiny_model(
    sides: tuple[int, ...] | ScaleSchedule = (1, 2, 3, 4, 5, 6), *, layers: int = 3, heads: int = 4, head_dim: int = 16,
    seed: int = 0,
) -> InfinityModel:  # fmt: skip
    """Random weights; sharp heads, so that attention is uneven and dropping cells changes the result."""
    torch.manual_seed(seed)
    scales = sides if isinstance(sides, ScaleSchedule) else ScaleSchedule.square(sides)
    width = heads * head_dim
    config = TransformerConfig(
        depth=layers, width=width, heads=heads, bits=6, text_width=16, text_maxlen=8, rope_grid=scales[len(scales) - 1]
    )
    model = InfinityModel(
        id="tiny",
        text=WordEncoder(Vocabulary(WORDS), 16, 8),
        transformer=InfinityTransformer(config, scales),
        autoencoder=Autoencoder(
            scales, AutoencoderConfig(8, (1, 2), bits=6, stride=2, norm_groups=4), with_encoder=False
        ),
        sampling=Sampling(guidance=2.0, temperature=0.7),
        examples=("red apple",),
    )
    with torch.no_grad():
        for module in (model.text, model.transformer, model.autoencoder):
            for parameter in module.eval().requires_grad_(False).parameters():
                parameter.normal_(std=0.3)
        for block in model.transformer.blocks:
            block.sa.scale_mul_1H11.uniform_(0.5, 2.5)
            block.sa.proj.weight.normal_(std=1.0)
            block.ada_gss[:, :, 0].fill_(2.0)
    return model


def tiny_lines_model(
    grid: int = 6, *, layers: int = 3, heads: int = 4, head_dim: int = 16, readable: bool = True, seed: int = 0
) -> LlamaGenModel:
    """Random weights of the LlamaGen family with sharp heads: ``grid`` lines of as many tokens behind four of text."""
    torch.manual_seed(seed)
    config = LlamaGenConfig(
        layers, heads * head_dim, heads, grid, "caption", caption_width=16, condition_tokens=4, vocabulary=32,
        readable=readable,
    )  # fmt: skip
    tokenizer = VqConfig(base_width=8, width_mult=(1, 2), inner_width=8, code_width=4, vocabulary=32, norm_groups=4)
    model = LlamaGenModel(
        id="tiny-lines",
        reader=WordEncoder(Vocabulary(WORDS), 16, 4),
        transformer=LlamaGenTransformer(config),
        autoencoder=Vq(tokenizer, with_encoder=False),
        sampling=Sampling(guidance=2.0, temperature=0.7),
        examples=("red apple",),
    )
    with torch.no_grad():
        for module in (model.reader, model.transformer, model.autoencoder):
            for parameter in module.eval().requires_grad_(False).parameters():
                parameter.normal_(std=0.3)
        for layer in model.transformer.layers:
            layer.attention_norm.weight.fill_(1.0)
    return model
