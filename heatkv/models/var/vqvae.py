"""The autoencoder of the VAR family: convolutions and a residual quantiser over scales with one codebook.

A latent map is written as a sum over scales, coarse to fine: the codes of a scale are brought to full
size (bicubic) and passed through a mild convolution (``phi``); each scale codes what the coarser ones
left. Parameter names follow the published state dict.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatkv.models.infinity.autoencoder import ResidualBlock, group_norm
from heatkv.scales import ScaleSchedule

GROUPS = 32
PHI_SHARE = 0.5  # how much of phi's output is the convolution


@dataclass(frozen=True)
class VqvaeConfig:
    """Shape of an autoencoder; ``phis`` convolutions are shared among the scales."""

    base_width: int = 160
    width_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    code_width: int = 32
    vocabulary: int = 4096
    phis: int = 4

    @property
    def stride(self) -> int:
        return 2 ** (len(self.width_mult) - 1)


class SpatialAttention(nn.Module):
    """Attention of every cell of a map to all cells, one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = group_norm(width, GROUPS)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        B, C, H, W = x_BCHW.shape
        q, k, v = self.qkv(self.norm(x_BCHW)).view(B, 3, C, H * W).transpose(2, 3).unbind(1)
        out = F.scaled_dot_product_attention(q, k, v)  # scale C^-0.5
        return x_BCHW + self.proj_out(out.transpose(1, 2).reshape(B, C, H, W))


class Level(nn.Module):
    """One resolution: residual blocks, at the coarsest each followed by attention."""

    downsample: nn.Module
    upsample: nn.Module

    def __init__(self, widths: list[int], attend: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(a, b, GROUPS) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(SpatialAttention(width) for width in widths[1:] if attend)

    def run_blocks(self, x: Tensor) -> Tensor:
        for j, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[j](x)
        return x


class Middle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(width, width, GROUPS)
        self.attn_1 = SpatialAttention(width)
        self.block_2 = ResidualBlock(width, width, GROUPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


def named_conv(width: int, stride: int) -> nn.Sequential:
    """A 3 x 3 convolution under the published name ``conv``; with stride 2 the caller pads."""
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(width, width, 3, stride, padding=1 if stride == 1 else 0)))


class Encoder(nn.Module):
    def __init__(self, config: VqvaeConfig) -> None:
        super().__init__()
        widths = [config.base_width * m for m in config.width_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.base_width, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (before, width) in enumerate(zip([config.base_width, *widths], widths, strict=False)):
            level = Level([before, width, width], attend=i == last)
            if i < last:
                level.downsample = named_conv(width, stride=2)
            self.down.append(level)
        self.mid = Middle(widths[-1])
        self.norm_out = group_norm(widths[-1], GROUPS)
        self.conv_out = nn.Conv2d(widths[-1], config.code_width, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(image)
        for level in self.down:
            assert isinstance(level, Level)
            x = level.run_blocks(x)
            if hasattr(level, "downsample"):
                x = level.downsample(F.pad(x, (0, 1, 0, 1)))
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, config: VqvaeConfig) -> None:
        super().__init__()
        widths = [config.base_width * m for m in config.width_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.code_width, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level([widths[min(i + 1, last)], width, width, width], attend=i == last)
            if i > 0:
                level.upsample = named_conv(width, stride=1)
            self.up.append(level)
        self.norm_out = group_norm(widths[0], GROUPS)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latent))
        for level in reversed(list(self.up)):
            assert isinstance(level, Level)
            x = level.run_blocks(x)
            if hasattr(level, "upsample"):
                x = level.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(x)))


def phi_index(scale: int, scales: int, phis: int) -> int:
    """Which of the ``phis`` convolutions a scale uses: the one whose tick is nearest to scale / (scales - 1).

    The lower one on ties, which rounding decides: the ticks are computed as published.
    """
    margin = 1 / 3 / phis if phis == 4 else 1 / 2 / phis
    ticks = np.linspace(margin, 1 - margin, phis)
    return int(np.argmin(np.abs(ticks - scale / max(1, scales - 1))))


class Phis(nn.Module):
    """Keeps the published key ``quant_resi.qresi_ls``."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(count))


class CodeQuantizer(nn.Module):
    """Residual quantiser over scales with one codebook."""

    def __init__(self, scales: ScaleSchedule, config: VqvaeConfig) -> None:
        super().__init__()
        self.scales = scales
        self.embedding = nn.Embedding(config.vocabulary, config.code_width)
        self.quant_resi = Phis(config.phis, config.code_width)
        self.phi_of_scale = tuple(phi_index(k, len(scales), config.phis) for k in range(len(scales)))

    @property
    def final_map(self) -> tuple[int, int]:
        return self.scales[len(self.scales) - 1]

    def code(self, index_BN: Tensor, scale: int) -> Tensor:
        """What the codes of a scale add to the latent map, ``[B, code_width, H, W]``."""
        return self.add_to_map(self.embedding(index_BN), scale)

    def add_to_map(self, codes_BNc: Tensor, scale: int) -> Tensor:
        """The same for codes at hand."""
        h, w = self.scales[scale]
        x = codes_BNc.transpose(1, 2).reshape(len(codes_BNc), -1, h, w)
        if (h, w) != self.final_map:
            x = F.interpolate(x, size=self.final_map, mode="bicubic", align_corners=False)
        phi = self.quant_resi.qresi_ls[self.phi_of_scale[scale]]
        return (1 - PHI_SHARE) * x + PHI_SHARE * phi(x)

    def next_map(self, latent_BcHW: Tensor, scale: int) -> Tensor:
        """The sum so far at the size of ``scale``, ``[B, code_width, h, w]``."""
        size = self.scales[scale]
        return latent_BcHW if size == self.final_map else F.interpolate(latent_BcHW, size=size, mode="area")

    def next_input(self, latent_BcHW: Tensor, scale: int) -> Tensor:
        """Codes ``[B, N, code_width]`` that the transformer reads at ``scale``, from the sum so far."""
        return self.next_map(latent_BcHW, scale).flatten(2).transpose(1, 2)

    def nearest(self, x_BcHW: Tensor) -> Tensor:
        """Indices ``[B, N]`` of the codes nearest to every cell."""
        cells = x_BcHW.flatten(2).transpose(1, 2)
        codes = self.embedding.weight
        distance = cells.square().sum(-1, keepdim=True) + codes.square().sum(1) - 2 * cells @ codes.T
        return distance.argmin(-1)

    def quantize(self, latent_BcHW: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Indices ``[B, N]`` of every scale and the sum of all scales so far after each."""
        if tuple(latent_BcHW.shape[-2:]) != self.final_map:
            h, w = self.final_map
            raise ValueError(f"the latent map is {tuple(latent_BcHW.shape[-2:])}, not {h} x {w}: encode {h}:{w} images")
        residual, total = latent_BcHW, torch.zeros_like(latent_BcHW)
        indices, totals = [], []
        for k in range(len(self.scales)):
            indices.append(self.nearest(self.next_map(residual, k)))
            code = self.code(indices[-1], k)
            total, residual = total + code, residual - code
            totals.append(total)
        return indices, totals


class Vqvae(nn.Module):
    """Encoder, quantiser and decoder. ``encoder`` may be left out: generation needs the decoder alone."""

    def __init__(self, scales: ScaleSchedule, config: VqvaeConfig, *, with_encoder: bool = True) -> None:
        super().__init__()
        self.config = config
        if with_encoder:
            self.encoder = Encoder(config)
            self.quant_conv = nn.Conv2d(config.code_width, config.code_width, 3, padding=1)
        self.quantize = CodeQuantizer(scales, config)
        self.post_quant_conv = nn.Conv2d(config.code_width, config.code_width, 3, padding=1)
        self.decoder = Decoder(config)

    def encode(self, image_B3HW: Tensor) -> Tensor:
        """Latent map ``[B, code_width, H / stride, W / stride]`` of images in [-1, 1]."""
        if not hasattr(self, "encoder"):
            raise ValueError("this autoencoder was loaded without its encoder: it can decode only")
        return self.quant_conv(self.encoder(image_B3HW))

    def decode(self, latent_BcHW: Tensor) -> Tensor:
        """Images in [-1, 1] (float32), clamped."""
        latent_BcHW = self.post_quant_conv(latent_BcHW).to(next(self.decoder.parameters()).dtype)
        return self.decoder(latent_BcHW).float().clamp(-1, 1)
