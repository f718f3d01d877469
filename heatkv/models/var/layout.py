"""Published VAR state dicts: names translated to the modules here, and what they are read off their shapes."""

from __future__ import annotations

import re

from torch import Tensor

from heatkv.models.infinity.layout import count
from heatkv.models.var.transformer import VarConfig
from heatkv.models.var.vqvae import VqvaeConfig
from heatkv.scales import ScaleSchedule

# Image side in pixels -> scales; the published models are of the first two.
SCALES = {
    256: ScaleSchedule.square((1, 2, 3, 4, 5, 6, 8, 10, 13, 16)),
    512: ScaleSchedule.square((1, 2, 3, 4, 6, 9, 13, 18, 24, 32)),
    1024: ScaleSchedule.square((1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)),
}

# Buffers that follow from the configuration, and statistics of training.
DERIVED = re.compile(r"(^|\.)(zero_k_bias|lvl_1L|attn_bias_for_masking|ema_vocab_hit_SV)$")


def transformer_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published transformer state dict as ``VarTransformer`` names it: without derived buffers."""
    return {key: tensor for key, tensor in state.items() if not DERIVED.search(key)}


def autoencoder_state(state: dict[str, Tensor], *, with_encoder: bool = True) -> dict[str, Tensor]:
    """A published autoencoder state dict as ``Vqvae`` names it."""
    result = {}
    for key, tensor in state.items():
        if DERIVED.search(key) or (not with_encoder and key.startswith(("encoder.", "quant_conv."))):
            continue
        # Besides the published list: one convolution for all scales (no number) or one for each (no list's name).
        result[re.sub(r"quant_resi\.(?:qresi|(\d+))\.", lambda m: f"quant_resi.qresi_ls.{m[1] or 0}.", key)] = tensor
    return result


def transformer_config(state: dict[str, Tensor]) -> VarConfig:
    """Shape of the transformer a state dict is of. Raises ``KeyError`` for a state dict of something else."""
    width, code_width = state["word_embed.weight"].shape
    temperatures = state.get("blocks.0.attn.scale_mul_1H11")
    return VarConfig(
        depth=count(state, r"blocks\.(\d+)\."),
        width=width,
        heads=temperatures.numel() if temperatures is not None else max(1, width // 64),
        vocabulary=state["head.weight"].shape[0],
        code_width=code_width,
        classes=state["class_emb.weight"].shape[0] - 1,
        shared_modulation="shared_ada_lin.1.weight" in state,
        cosine=temperatures is not None,
        mlp_ratio=state["blocks.0.ffn.fc1.weight"].shape[0] / width,
    )


def tokens_and_levels(state: dict[str, Tensor]) -> tuple[int, int]:
    """How many positions and scales a state dict has. Raises ``KeyError`` for a state dict of something else."""
    return state["pos_1LC"].shape[1], state["lvl_embed.weight"].shape[0]


def transformer_scales(state: dict[str, Tensor]) -> ScaleSchedule | None:
    """The published scales with as many levels and tokens as the state dict has, or None."""
    matches = (s for s in SCALES.values() if (s.total, len(s)) == tokens_and_levels(state))
    return next(matches, None)


def autoencoder_config(state: dict[str, Tensor]) -> VqvaeConfig:
    """Shape of the autoencoder a state dict is of. Raises ``KeyError`` for a state dict of something else."""
    vocabulary, code_width = state["quantize.embedding.weight"].shape
    base = state["decoder.conv_out.weight"].shape[1]
    levels = count(state, r"decoder\.up\.(\d+)\.")
    widths = [state[f"decoder.up.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
    return VqvaeConfig(
        base_width=base,
        width_mult=tuple(width // base for width in widths),
        code_width=code_width,
        vocabulary=vocabulary,
        phis=max(1, count(state, r"quantize\.quant_resi\.(?:qresi_ls\.)?(\d+)\.")),
    )
