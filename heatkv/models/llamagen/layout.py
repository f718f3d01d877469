"""Published LlamaGen state dicts: what is read off their names and shapes."""

from __future__ import annotations

import re
from typing import Literal

from torch import Tensor

from heatkv.models.infinity.layout import count
from heatkv.models.llamagen.transformer import LlamaGenConfig
from heatkv.models.llamagen.vq import VqConfig

# Buffers that follow from the configuration, a cache that was saved, and statistics of training.
DERIVED = re.compile(r"(^|\.)(freqs_cis|kv_cache\.[kv]_cache|codebook_used)$")
HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 3200: 32, 2560: 40, 2048: 32, 4096: 32}  # by width, as published
GRIDS = {"256": 16, "384": 24, "512": 32}  # by the image side that a file's name ends in


def transformer_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published transformer state dict as ``LlamaGenTransformer`` names it: without derived buffers."""
    return {key: tensor for key, tensor in state.items() if not DERIVED.search(key)}


def tokenizer_state(state: dict[str, Tensor], *, with_encoder: bool = True) -> dict[str, Tensor]:
    """A published tokenizer state dict as ``Vq`` names it."""
    left_out = () if with_encoder else ("encoder.", "quant_conv.")
    return {key: tensor for key, tensor in transformer_state(state).items() if not key.startswith(left_out)}


def grid_in_name(name: str) -> int | None:
    """The tokens of a side that a published file's name tells (``c2i_B_384.pt``); its tensors do not."""
    match = re.search(r"(?:^|_)(256|384|512)(?=\.|$)", name)
    return GRIDS[match[1]] if match else None


def transformer_config(state: dict[str, Tensor], grid: int, heads: int = 0) -> LlamaGenConfig:
    """Shape of the transformer a state dict is of. Raises ``KeyError`` for a state dict of something else.

    ``heads``, which tensors do not tell either, are by default those that are published for the width, or 64
    dimensions each.
    """
    vocabulary, width = state["tok_embeddings.weight"].shape
    condition: Literal["class", "caption"] = "class"
    classes, tokens, caption_width = 1000, 1, 2048
    if (table := state.get("cls_embedding.embedding_table.weight")) is not None:
        classes = len(table) - 1
    else:
        condition = "caption"
        tokens, caption_width = state["cls_embedding.uncond_embedding"].shape
    return LlamaGenConfig(
        depth=count(state, r"layers\.(\d+)\."),
        width=width,
        heads=heads or HEADS.get(width, max(1, width // 64)),
        grid=grid,
        condition=condition,
        classes=classes,
        caption_width=caption_width,
        condition_tokens=tokens,
        vocabulary=vocabulary,
    )


def tokenizer_config(state: dict[str, Tensor]) -> VqConfig:
    """Shape of the tokenizer a state dict is of. Raises ``KeyError`` for a state dict of something else."""
    vocabulary, code_width = state["quantize.embedding.weight"].shape
    base = state["decoder.conv_out.weight"].shape[1]
    levels = count(state, r"decoder\.conv_blocks\.(\d+)\.")
    widths = [state[f"decoder.conv_blocks.{i}.res.0.conv1.weight"].shape[0] for i in reversed(range(levels))]
    return VqConfig(
        base_width=base,
        width_mult=tuple(width // base for width in widths),
        inner_width=state["post_quant_conv.weight"].shape[0],
        code_width=code_width,
        vocabulary=vocabulary,
    )
