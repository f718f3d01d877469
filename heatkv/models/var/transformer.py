"""The VAR transformer: next-scale prediction of codebook indices under a class label.

Parameter names follow the published state dict. Self-attention goes through ``KVCache.attend`` and
nothing else; what tokens may attend to is decided by the cache alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatkv.cache import Attend
from heatkv.models.infinity.transformer import AdaptiveNorm, FeedForward, Modulation, modulated
from heatkv.scales import Geometry, ScaleSchedule


@dataclass(frozen=True)
class VarConfig:
    """Shape of a VAR transformer.

    ``vocabulary`` is the size of the codebook, ``code_width`` the length of one code and ``classes``
    the number of labels (one more row stands for "no class"). ``shared_modulation``: all blocks share
    one projection of the class (d36). ``cosine``: queries and keys are normalised (all published
    models).
    """

    depth: int
    width: int
    heads: int
    vocabulary: int = 4096
    code_width: int = 32
    classes: int = 1000
    shared_modulation: bool = False
    cosine: bool = True
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for a shape that no transformer has."""
        if min(self.depth, self.width, self.heads, self.vocabulary, self.code_width, self.classes) < 1:
            raise ValueError(f"depth, width, heads and the others must be 1 or more, not {self}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not {self.heads} heads of equal size")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class ClassCondition:
    """What the blocks need of the labels, computed once per image.

    ``class_BC`` is float32.
    """

    class_BC: Tensor
    modulations: tuple[Modulation, ...]


class SelfAttention(nn.Module):
    """Cosine attention with a learned temperature per head, or plain attention with a fixed one."""

    MAX_LOG_TEMPERATURE = math.log(100.0)

    def __init__(self, config: VarConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.cosine = config.cosine
        if config.cosine:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, config.heads, 1, 1), math.log(4.0)))
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x_BNC: Tensor, cache: Attend, layer: int) -> Tensor:
        B, N, C = x_BNC.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x_BNC, self.mat_qkv.weight, bias)
        q, k, v = qkv.view(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.cosine:
            temperature = self.scale_mul_1H11.float().clamp(max=self.MAX_LOG_TEMPERATURE).exp()
            # Norms in float32 whatever the compute dtype; the cache gets the compute dtype.
            q = (F.normalize(q.float(), dim=-1, eps=1e-12) * temperature).to(v.dtype)
            k = F.normalize(k.float(), dim=-1, eps=1e-12).to(v.dtype)
        else:
            q = q * (0.25 / math.sqrt(C // self.heads))
        out = cache.attend(layer, q, k, v)
        return self.proj(out.transpose(1, 2).reshape(B, N, C))


class Block(nn.Module):
    """Self-attention and feed-forward, both scaled, shifted and gated by the class.

    The stream that the two add to is float32, whatever the dtype of the weights: the published models run under
    autocast, which rounds what goes into a matrix product, but not the sum over the layers.
    """

    def __init__(self, config: VarConfig) -> None:
        super().__init__()
        width = config.width
        self.attn = SelfAttention(config)
        self.ffn = FeedForward(width, round(width * config.mlp_ratio))
        if config.shared_modulation:
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, width))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def modulation(self, class_BC: Tensor, shared_B16C: Tensor | None) -> Modulation:
        if shared_B16C is not None:
            return Modulation.of(self.ada_gss + shared_B16C)
        return Modulation.of(self.ada_lin(class_BC.to(self.attn.q_bias.dtype)).view(len(class_BC), 1, 6, -1))

    def forward(self, x_BNC: Tensor, m: Modulation, cache: Attend, layer: int) -> Tensor:
        dtype = self.attn.q_bias.dtype
        attended = self.attn(modulated(x_BNC, m.factor1, m.shift1, dtype), cache, layer)
        x_BNC = torch.addcmul(x_BNC, attended, m.gain1)
        return torch.addcmul(x_BNC, self.ffn(modulated(x_BNC, m.factor2, m.shift2, dtype)), m.gain2)


class VarTransformer(nn.Module):
    """Blocks, embeddings and the head over the codebook.

    ``forward`` runs the tokens of one or more consecutive scales: one scale at a time with a cache
    that generates, all scales with one that masks.
    """

    def __init__(self, config: VarConfig, scales: ScaleSchedule) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.scales = scales
        self.word_embed = nn.Linear(config.code_width, width)
        self.class_emb = nn.Embedding(config.classes + 1, width)
        self.pos_start = nn.Parameter(torch.randn(1, scales.tokens[0], width) * 0.02)
        self.pos_1LC = nn.Parameter(torch.randn(1, scales.total, width) * 0.02)
        self.lvl_embed = nn.Embedding(len(scales), width)
        if config.shared_modulation:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm = AdaptiveNorm(width)
        self.head = nn.Linear(width, config.vocabulary)

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.config.depth, self.config.heads, self.config.head_dim, self.scales)

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype of the blocks; embeddings and head are float32."""
        return next(self.blocks.parameters()).dtype

    def condition(self, labels_B: Tensor) -> ClassCondition:
        """Embed labels (``config.classes`` = no class) and project them for every block."""
        class_BC = self.class_emb(labels_B)
        shared = None
        if self.config.shared_modulation:
            shared = self.shared_ada_lin(class_BC).view(len(class_BC), 1, 6, -1)
        blocks = cast(Iterable[Block], self.blocks)
        return ClassCondition(class_BC, tuple(block.modulation(class_BC, shared) for block in blocks))

    def embed(self, codes_BNc: Tensor | None, condition: ClassCondition) -> Tensor:
        """First-scale tokens from the class (``codes_BNc`` is None), later ones from codes."""
        if codes_BNc is None:
            return condition.class_BC[:, None, :] + self.pos_start
        return self.word_embed(codes_BNc)

    def forward(self, x_BNC: Tensor, first_token: int, condition: ClassCondition, cache: Attend) -> Tensor:
        """Hidden states ``[B, N, C]`` of the tokens ``first_token .. first_token + N``."""
        span = slice(first_token, first_token + x_BNC.shape[1])
        # No index that would have to be sent to the device, and waited for.
        level_LC = torch.cat([self.lvl_embed.weight[k].expand(n, -1) for k, n in enumerate(self.scales.tokens)])
        x_BNC = (x_BNC + level_LC[span] + self.pos_1LC[:, span]).float()
        for layer, (block, modulation) in enumerate(zip(self.blocks, condition.modulations, strict=True)):
            x_BNC = block(x_BNC, modulation, cache, layer)
        return x_BNC

    def logits(self, hidden_BNC: Tensor, condition: ClassCondition) -> Tensor:
        """Logits ``[B, N, vocabulary]`` in float32."""
        return self.head(self.head_nm(hidden_BNC.float(), condition.class_BC))
