"""Published Infinity state dicts: names translated to the modules here, and what is read off their shapes."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from heatkv.files import shown
from heatkv.models.infinity.autoencoder import AutoencoderConfig
from heatkv.models.infinity.transformer import TransformerConfig

# Buffers that published files may carry and that follow from the configuration.
DERIVED = re.compile(
    r"(^|\.)(zero_k_bias|lvl_1L|attn_bias_for_masking|Infinity_visible_kvlen|Infinity_invisible_qlen)$"
)


def transformer_state(state: dict[str, Tensor], text_maxlen: int | None = None) -> dict[str, Tensor]:
    """A published transformer state dict as ``InfinityTransformer`` names it.

    Flattens the chunks of blocks, drops derived buffers, brings both layouts of the temperatures to
    ``[1, heads, 1, 1]`` and cuts or pads the empty prompt to ``text_maxlen`` rows, if given.
    """
    chunked: dict[int, int] = {}
    for key in state:
        if match := re.match(r"block_chunks\.(\d+)\.module\.(\d+)\.", key):
            chunk, index = int(match[1]), int(match[2])
            chunked[chunk] = max(chunked.get(chunk, 0), index + 1)
    result = {}
    for key, tensor in state.items():
        if DERIVED.search(key):
            continue
        if match := re.match(r"block_chunks\.(\d+)\.module\.(\d+)\.(.+)", key):
            layer = sum(blocks for chunk, blocks in chunked.items() if chunk < int(match[1])) + int(match[2])
            key = f"blocks.{layer}.{match[3]}"
        if key.endswith("scale_mul_1H11"):
            tensor = tensor.reshape(1, -1, 1, 1)
        if key == "cfg_uncond" and text_maxlen is not None:
            tensor = resized_rows(tensor, text_maxlen)
        result[key] = tensor
    return result


def resized_rows(rows_NC: Tensor, n: int) -> Tensor:
    """The first ``n`` rows, with untrained ones behind where there are fewer (only longer prompts read those)."""
    missing = n - len(rows_NC)
    if missing <= 0:
        return rows_NC[:n]
    random = torch.randn(missing, rows_NC.shape[1], generator=torch.Generator().manual_seed(0))
    return torch.cat([rows_NC, (random / rows_NC.shape[1] ** 0.5).to(rows_NC.dtype)])


def autoencoder_state(state: dict[str, Tensor], *, with_encoder: bool = True) -> dict[str, Tensor]:
    """A published autoencoder state dict as ``Autoencoder`` names it; convolutions and norms may be wrapped."""
    parts = ("encoder.", "decoder.") if with_encoder else ("decoder.",)
    return {
        re.sub(r"(\.(conv|norm))+\.(weight|bias)$", r".\3", key): tensor
        for key, tensor in state.items()
        if key.startswith(parts)
    }


def count(state: dict[str, Tensor], pattern: str) -> int:
    """How many different numbers ``pattern`` (with one group) finds among the names.

    Raises ``ValueError`` unless they count from 0 on.
    """
    numbers = {int(match[1]) for match in (re.match(pattern, key) for key in state) if match}
    if numbers and max(numbers) != len(numbers) - 1:
        raise ValueError(f"names that should count to {len(numbers) - 1} go to {shown(max(numbers))}")
    return len(numbers)


def transformer_config(state: dict[str, Tensor], rope_grid: tuple[int, int]) -> TransformerConfig:
    """Shape of the transformer that a state dict (as ``transformer_state`` gives it) is of.

    Raises ``KeyError`` for a state dict of something else.
    """
    width, bits = state["word_embed.weight"].shape
    text_maxlen, text_width = state["cfg_uncond"].shape
    hidden = state["blocks.0.ffn.fc1.weight"].shape[0]
    usual = round(width * 4 / 256) * 256
    return TransformerConfig(
        depth=count(state, r"blocks\.(\d+)\."),
        width=width,
        heads=state["blocks.0.sa.scale_mul_1H11"].numel(),
        bits=bits,
        text_width=text_width,
        text_maxlen=text_maxlen,
        rope_grid=rope_grid,
        max_scales=state["lvl_embed.weight"].shape[0],
        mlp_ratio=4.0 if hidden == usual else hidden / width,
    )


def autoencoder_config(state: dict[str, Tensor], token_bits: int) -> AutoencoderConfig:
    """Shape of the autoencoder that a state dict (as ``autoencoder_state`` gives it) is of.

    Whether 2 x 2 cells make a token is no property of the file: it follows from the ``token_bits``
    that the transformer predicts. Raises ``KeyError`` for a state dict of something else.
    """
    levels = count(state, r"decoder\.up\.(\d+)\.")
    widths = [state[f"decoder.up.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
    bits, base = state["decoder.conv_in.weight"].shape[1], widths[0]
    out = state["decoder.conv_out.weight"].shape[0]
    patch = math.isqrt(out // 3)
    upsamples = sum(f"decoder.up.{i}.upsample.weight" in state for i in range(levels))
    return AutoencoderConfig(
        base_width=base,
        width_mult=tuple(width // base for width in widths),
        bits=bits,
        stride=patch * 2**upsamples,
        patchify=token_bits == 4 * bits,
        patch=patch,
    )
