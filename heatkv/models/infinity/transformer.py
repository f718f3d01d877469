"""The Infinity transformer: next-scale prediction of bits under a text condition.

Parameter names follow the published state dict, with ``block_chunks.{c}.module.{m}`` flattened to
``blocks.{i}`` (see ``checkpoint.py``). The same module trains the bundled model and runs the
official weights: self-attention goes through ``KVCache.attend`` and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatkv.cache import Attend
from heatkv.models.infinity.rope import RopeMode, rope_table, rotate
from heatkv.scales import Geometry, ScaleSchedule


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of an Infinity transformer.

    ``bits`` is the number of bits a token predicts; ``text_width`` and ``text_maxlen`` describe the
    text features; ``rope_grid`` is the grid to which rotary positions are normalised (the last
    scale of the full-size schedule, also for shorter ones), as ``rope_mode`` says (see ``rope_table``;
    2 in every released model). ``places``: whether every token has a learned position too, as in VAR; in no released
    model. Rotary ones say where a token is only once there are others to tell it from.
    """

    depth: int
    width: int
    heads: int
    bits: int
    text_width: int
    text_maxlen: int
    rope_grid: tuple[int, int]
    max_scales: int = 15
    mlp_ratio: float = 4.0
    rope_mode: RopeMode = 2
    places: bool = False

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for a shape that no transformer has."""
        if min(self.depth, self.width, self.heads, self.bits, self.text_width, self.text_maxlen, self.max_scales) < 1:
            raise ValueError(f"depth, width, heads and the others must be 1 or more, not {self}")
        if self.width % self.heads or self.head_dim % 4:
            raise ValueError(f"width {self.width} is not {self.heads} heads of a multiple of 4")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class TextFeatures:
    """Features of a batch of prompts, padded: ``features_BNC`` and ``mask_BN`` (True = a real token)."""

    features_BNC: Tensor
    mask_BN: Tensor


@dataclass(frozen=True)
class TextCondition:
    """What the blocks need of the text, computed once per image.

    Pooled vector, features, and for each block the modulation and the keys and values ``[B, heads, N, D]`` that its
    cross-attention makes of them.
    """

    pooled_BC: Tensor
    features_BNC: Tensor
    mask_B11N: Tensor | None
    modulations: tuple[Modulation, ...]
    keys_and_values: tuple[tuple[Tensor, Tensor], ...]

    def of(self, layer: int) -> BlockCondition:
        return BlockCondition(self.modulations[layer], *self.keys_and_values[layer], self.mask_B11N)


@dataclass(frozen=True)
class BlockCondition:
    """What one block needs of the text; alike for all blocks, so that compiling one compiles them all."""

    modulation: Modulation
    k_BHND: Tensor
    v_BHND: Tensor
    mask_B11N: Tensor | None


@dataclass(frozen=True)
class Modulation:
    """What a block's condition does to its two branches, each ``[B, 1, C]`` in float32: factors, shifts and gains."""

    factor1: Tensor
    shift1: Tensor
    gain1: Tensor
    factor2: Tensor
    shift2: Tensor
    gain2: Tensor

    @classmethod
    def of(cls, published_B16C: Tensor) -> Modulation:
        """From gains, scales (a factor of 1 is a scale of 0) and shifts, in the published order."""
        gain1, gain2, scale1, scale2, shift1, shift2 = published_B16C.float().unbind(2)
        return cls(1 + scale1, shift1, gain1, 1 + scale2, shift2, gain2)


def layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def modulated(x_BNC: Tensor, factor_B1C: Tensor, shift_B1C: Tensor, dtype: torch.dtype) -> Tensor:
    """What a branch of a block reads: the stream normalised, scaled and shifted, and only then rounded to ``dtype``."""
    return torch.addcmul(shift_B1C, layer_norm(x_BNC), factor_B1C).to(dtype)


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + 1e-6) * self.weight).to(x.dtype)


class SelfAttention(nn.Module):
    """Cosine attention with a learned temperature per head and rotary positions."""

    MAX_LOG_TEMPERATURE = math.log(100.0)

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))
        self.proj = nn.Linear(width, width)

    def forward(self, x_BNC: Tensor, turn: Tensor, cache: Attend, layer: int) -> Tensor:
        B, N, C = x_BNC.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x_BNC, self.mat_qkv.weight, bias.to(self.mat_qkv.weight.dtype))
        qkv_BN3HD = qkv.view(B, N, 3, self.heads, C // self.heads)
        temperature_H1 = self.scale_mul_1H11.float().clamp(max=self.MAX_LOG_TEMPERATURE).exp().view(-1, 1)
        # Norm and rotation of both in float32 whatever the compute dtype; the cache gets the compute dtype.
        qk_BN2HD = F.normalize(qkv_BN3HD[:, :, :2].float(), dim=-1, eps=1e-12)
        qk_BN2HD = qk_BN2HD * torch.stack((temperature_H1, torch.ones_like(temperature_H1)))
        q, k = rotate(qk_BN2HD, turn).to(qkv.dtype).permute(2, 0, 3, 1, 4).unbind()
        out = cache.attend(layer, q, k, qkv_BN3HD[:, :, 2].transpose(1, 2))
        return self.proj(out.transpose(1, 2).reshape(B, N, C))


class CrossAttention(nn.Module):
    """Attention from image tokens to the text of their own prompt."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mat_q = nn.Linear(width, width)
        self.mat_kv = nn.Linear(width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def read(self, features_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the text, which are the same at every scale."""
        return keys_and_values(features_BNC, self.mat_kv.weight, self.v_bias, self.heads)

    def forward(self, x_BNC: Tensor, text: BlockCondition) -> Tensor:
        B, N, C = x_BNC.shape
        q = self.mat_q(x_BNC).view(B, N, self.heads, -1).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, text.k_BHND, text.v_BHND, attn_mask=text.mask_B11N)
        return self.proj(out.transpose(1, 2).reshape(B, N, C))


def keys_and_values(text_BNC: Tensor, weight: Tensor, v_bias: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Project text to keys (no bias by design) and values, each ``[B, heads, N, D]``."""
    bias = torch.cat([torch.zeros_like(v_bias), v_bias]).to(weight.dtype)
    kv = F.linear(text_BNC, weight, bias)
    k, v = kv.view(*kv.shape[:2], 2, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return k, v


class AttentionPool(nn.Module):
    """Pool the text to one vector with learned queries (the published ``text_proj_for_sos.ca``)."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.heads = max(1, text_width // (64 if width > 4096 else 128))
        self.mat_q = nn.Parameter(torch.randn(1, self.heads, width // self.heads) * 0.02)
        self.mat_kv = nn.Linear(text_width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, text_BNC: Tensor, mask_B11N: Tensor | None) -> Tensor:
        B = text_BNC.shape[0]
        k, v = keys_and_values(text_BNC, self.mat_kv.weight, self.v_bias, self.heads)
        q = self.mat_q.to(k.dtype).expand(B, -1, -1).unsqueeze(2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B11N)
        return self.proj(out.reshape(B, -1))


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward; the text modulates the first and the last.

    The stream that the three add to stays in the dtype it comes in, float32 when generating: the published models run
    under autocast, which rounds what goes into a matrix product, but not the sum over the layers.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, width))
        self.sa = SelfAttention(width, config.heads)
        self.ca_norm = nn.LayerNorm(width, eps=1e-6)
        self.ca = CrossAttention(width, config.heads)
        self.ffn = FeedForward(width, round(width * config.mlp_ratio / 256) * 256)

    def forward(self, x_BNC: Tensor, turn: Tensor, text: BlockCondition, cache: Attend, layer: int) -> Tensor:
        m, dtype = text.modulation, self.sa.mat_qkv.weight.dtype
        attended = self.sa(modulated(x_BNC, m.factor1, m.shift1, dtype), turn, cache, layer)
        x_BNC = torch.addcmul(x_BNC, attended, m.gain1)
        weight, bias = (part.to(x_BNC.dtype) for part in (self.ca_norm.weight, self.ca_norm.bias))
        normed = F.layer_norm(x_BNC, weight.shape, weight, bias, self.ca_norm.eps)
        x_BNC = x_BNC + self.ca(normed.to(dtype), text)
        return torch.addcmul(x_BNC, self.ffn(modulated(x_BNC, m.factor2, m.shift2, dtype)), m.gain2)


class AdaptiveNorm(nn.Module):
    """Norm in front of the head, scaled and shifted by the pooled text."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x_BNC: Tensor, pooled_BC: Tensor) -> Tensor:
        scale, shift = self.ada_lin(pooled_BC).view(len(pooled_BC), 1, 2, -1).unbind(2)
        return layer_norm(x_BNC) * (1 + scale) + shift


class TextPoolHolder(nn.Module):
    """Keeps the published key ``text_proj_for_sos.ca``."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.ca = AttentionPool(text_width, width)


def positions(config: TransformerConfig, scales: ScaleSchedule) -> dict[str, Tensor]:
    """The buffers that follow from the scales: rotary table, and the scale of every token."""
    rope = rope_table(scales, config.head_dim, config.rope_grid, mode=config.rope_mode)
    return {"rope": rope, "level": torch.cat([torch.full((n,), k) for k, n in enumerate(scales.tokens)])}


class InfinityTransformer(nn.Module):
    """Blocks, embeddings and the bitwise head of the Infinity family.

    ``forward`` runs the tokens of one or more consecutive scales; what they may attend to is
    decided by the cache alone (one scale at a time when generating, all scales under a
    block-causal mask when training).
    """

    rope: Tensor
    level: Tensor

    def __init__(self, config: TransformerConfig, scales: ScaleSchedule) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.scales = scales
        self.cfg_uncond = nn.Parameter(torch.randn(config.text_maxlen, config.text_width) / config.text_width**0.5)
        self.pos_start = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.text_norm = RMSNorm(config.text_width)
        self.text_proj_for_sos = TextPoolHolder(config.text_width, width)
        self.text_proj_for_ca = nn.Sequential(
            nn.Linear(config.text_width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.lvl_embed = nn.Embedding(config.max_scales, width)
        self.place_embed = nn.Embedding(sum(scales.tokens), width) if config.places else None
        self.word_embed = nn.Linear(config.bits, width)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm = AdaptiveNorm(width)
        self.head = nn.Linear(width, 2 * config.bits)
        for name, buffer in positions(config, scales).items():
            self.register_buffer(name, buffer, persistent=False)

    @property
    def layers(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype: that of the blocks."""
        return self.layers[0].sa.mat_qkv.weight.dtype

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.config.depth, self.config.heads, self.config.head_dim, self.scales)

    def unconditional(self, mask_BN: Tensor) -> TextFeatures:
        """Learned features of "no prompt", with the lengths of the given prompts."""
        rows, n = mask_BN.shape
        return TextFeatures(self.cfg_uncond[:n].expand(rows, -1, -1), mask_BN)

    def condition(self, text: TextFeatures) -> TextCondition:
        """Normalise, pool and project text features once for all scales."""
        mask = None if bool(text.mask_BN.all()) else text.mask_BN[:, None, None, :]
        features = self.text_norm(text.features_BNC)
        pooled = self.text_proj_for_sos.ca(features, mask)
        modulation = self.shared_ada_lin(pooled.float()).view(len(pooled), 1, 6, -1)
        features = self.text_proj_for_ca(features)
        # The features are float32; the blocks read them in their own dtype.
        read = tuple(block.ca.read(features.to(self.dtype)) for block in self.layers)
        modulations = tuple(Modulation.of(block.ada_gss + modulation) for block in self.layers)
        return TextCondition(pooled, features, mask, modulations, read)

    def embed(self, codes_BNd: Tensor | None, text: TextCondition) -> Tensor:
        """First-scale token from the pooled text (``codes_BNd`` is None), later ones from codes."""
        if codes_BNd is None:
            return text.pooled_BC[:, None, :] + self.pos_start
        return self.word_embed(codes_BNd)

    def forward(
        self,
        x_BNC: Tensor,
        first_token: int,
        text: TextCondition,
        cache: Attend,
        after_layer: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Hidden states ``[B, N, C]`` of the tokens ``first_token .. first_token + N``.

        ``after_layer(layer, hidden)`` may replace the hidden states between blocks (guidance on
        hidden states).
        """
        span = slice(first_token, first_token + x_BNC.shape[1])
        where_NC = self.lvl_embed(self.level[span])
        if self.place_embed is not None:
            where_NC = where_NC + self.place_embed.weight[span]
        x_BNC = x_BNC + where_NC.to(x_BNC.dtype)
        turn_N11d2 = self.rope[:, span].permute(1, 2, 0).contiguous()[:, None, None]
        for layer, block in enumerate(self.layers):
            x_BNC = block(x_BNC, turn_N11d2, text.of(layer), cache, layer)
            if after_layer is not None:
                x_BNC = after_layer(layer, x_BNC)
        return x_BNC

    def logits(self, hidden_BNC: Tensor, text: TextCondition) -> Tensor:
        """Logits ``[B, N, bits, 2]`` in float32; the last axis is (bit = 0, bit = 1)."""
        out = F.linear(
            self.head_nm(hidden_BNC.float(), text.pooled_BC.float()), self.head.weight.float(), self.head.bias.float()
        )
        return out.view(*out.shape[:2], self.config.bits, 2)


def set_positions(model: InfinityTransformer, device: torch.device) -> None:
    """Set the buffers that follow from the scales, of a model made on the meta device."""
    for name, buffer in positions(model.config, model.scales).items():
        setattr(model, name, buffer.to(device))
