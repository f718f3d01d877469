"""The bitwise autoencoder of the Infinity family: convolutions and a multi-scale binary quantiser.

An image becomes a latent map; the quantiser writes it as a sum of +-1 codes, one small map of bits
per scale, coarse to fine, each scale coding what the coarser ones left (binary spherical
quantisation). No codebook is stored: a code is its bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatkv.scales import ScaleSchedule


@dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of an autoencoder.

    ``bits`` is the depth of the latent map, ``stride`` the pixels per latent cell (a power of two).
    ``patch`` packs patch x patch pixels into one before the first convolution and unpacks them after
    the last (1 as published; 2 makes a small model twice as fast).
    ``patchify`` packs 2 x 2 latent cells into one token (the published 8B models). ``steps`` is the
    size of a code at every scale relative to 1 / sqrt(bits); empty means 1 everywhere, as published.
    ``normalize`` scales every latent cell to unit length before it is quantised. ``norm_groups`` are
    the groups of every group norm (24 where the width is not divisible by them, as published); 0 normalises every
    cell by itself, with which a small model learns many times faster.
    """

    base_width: int
    width_mult: tuple[int, ...]
    bits: int
    stride: int
    patchify: bool = False
    steps: tuple[float, ...] = ()
    normalize: bool = False
    norm_groups: int = 32
    patch: int = 1

    @property
    def token_bits(self) -> int:
        return self.bits * 4 if self.patchify else self.bits

    @property
    def halvings(self) -> int:
        """Resolutions between the first convolution and the latent map."""
        return int(math.log2(self.stride // self.patch))


class CellNorm(nn.Module):
    """Every cell of a map brought to a root mean square of 1 over its channels, by itself, and weighted."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BHWC = x_BCHW.movedim(1, -1)
        return F.rms_norm(x_BHWC, x_BHWC.shape[-1:], self.weight.to(x_BHWC.dtype), 1e-6).movedim(-1, 1)


def group_norm(width: int, groups: int) -> nn.Module:
    if groups == 0:
        return CellNorm(width)
    return nn.GroupNorm(groups if width % groups == 0 else 24, width, eps=1e-6)


class ResidualBlock(nn.Module):
    def __init__(self, width_in: int, width_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(width_in, groups)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = group_norm(width_out, groups)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        if width_in != width_out:
            self.nin_shortcut = nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class Level(nn.Module):
    """One resolution: residual blocks, and a way to the next resolution where there is one."""

    block: nn.ModuleList

    def __init__(self, widths: list[int], groups: int) -> None:
        super().__init__()
        self.downsample: nn.Conv2d | None = None
        self.upsample: nn.Conv2d | None = None
        self.block = nn.ModuleList(ResidualBlock(a, b, groups) for a, b in pairwise(widths))

    def run_blocks(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x


class Middle(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(width, width, groups)
        self.block_2 = ResidualBlock(width, width, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.block_1(x))


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.base_width * m for m in config.width_mult]
        self.patch = config.patch
        self.conv_in = nn.Conv2d(3 * config.patch**2, config.base_width, 3, padding=1)
        self.down = nn.ModuleList()
        width_in = config.base_width
        for i, width in enumerate(widths):
            level = Level([width_in, width, width], config.norm_groups)
            if i < config.halvings:
                level.downsample = nn.Conv2d(width, width, 3, stride=2)
            self.down.append(level)
            width_in = width
        self.mid = Middle(width_in, config.norm_groups)
        self.norm_out = group_norm(width_in, config.norm_groups)
        self.conv_out = nn.Conv2d(width_in, config.bits, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(image, self.patch))
        for level in self.down:
            assert isinstance(level, Level)
            x = level.run_blocks(x)
            if level.downsample is not None:
                x = level.downsample(F.pad(x, (0, 1, 0, 1)))
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.base_width * m for m in config.width_mult]
        self.patch = config.patch
        self.conv_in = nn.Conv2d(config.bits, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config.norm_groups)
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            width_in = widths[min(i + 1, len(widths) - 1)]
            level = Level([width_in, width, width, width], config.norm_groups)
            if 1 <= i <= config.halvings:
                level.upsample = nn.Conv2d(width, width, 3, padding=1)
            self.up.append(level)
        self.norm_out = group_norm(widths[0], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[0], 3 * config.patch**2, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latent))
        for level in reversed(list(self.up)):
            assert isinstance(level, Level)
            x = level.run_blocks(x)
            if level.upsample is not None:
                x = level.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.patch)


def resize(x_BdHW: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Interpolate to ``size``; unchanged (bit for bit) where the size is already right."""
    if x_BdHW.shape[-2:] == size:
        return x_BdHW
    return F.interpolate(x_BdHW, size=size, mode=mode, align_corners=False if mode == "bilinear" else None)


class BitQuantizer(nn.Module):
    """Residual quantiser over scales: bit = sign, code = +-step / sqrt(bits), upsampled and summed.

    Works in token maps of the transformer (h x w) or, with ``patchify``, of twice that size.
    """

    code_size_S: Tensor

    def __init__(self, scales: ScaleSchedule, config: AutoencoderConfig) -> None:
        super().__init__()
        if config.steps and len(config.steps) != len(scales):
            raise ValueError(f"{len(config.steps)} code steps for {len(scales)} scales: give one a scale")
        self.scales = scales
        self.config = config
        factor = 2 if config.patchify else 1
        self.maps = tuple((h * factor, w * factor) for h, w in scales)
        steps = torch.tensor(config.steps or [1.0] * len(scales))
        self.register_buffer("code_size_S", steps / math.sqrt(config.bits), persistent=False)

    @property
    def final_map(self) -> tuple[int, int]:
        return self.maps[-1]

    def code(self, bits_BNd: Tensor, scale: int) -> Tensor:
        """Code map ``[B, d, H, W]`` of a scale's bits ``[B, N, token_bits]`` at the scale's own size."""
        h, w = self.scales[scale]
        values = (bits_BNd.to(self.code_size_S.dtype) * 2 - 1) * self.code_size_S[scale]
        values = values.transpose(1, 2).reshape(len(bits_BNd), -1, h, w)
        return F.pixel_shuffle(values, 2) if self.config.patchify else values

    def upsample(self, code_BdHW: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """A code map at the size of the sum of all scales, or another."""
        return resize(code_BdHW, size or self.final_map, "bilinear")

    def next_input(self, latent_BdHW: Tensor, scale: int) -> Tensor:
        """Tokens ``[B, N, token_bits]`` that the transformer reads at ``scale``, from the sum so far."""
        x = resize(latent_BdHW, self.maps[scale], "bilinear")
        if self.config.patchify:
            x = F.pixel_unshuffle(x, 2)
        return x.flatten(2).transpose(1, 2)

    def residual_bits(self, residual_BdHW: Tensor, scale: int) -> Tensor:
        """Bits ``[B, N, token_bits]`` (bool) of what is left, seen at the scale's size."""
        x = resize(residual_BdHW, self.maps[scale], "area")
        if self.config.patchify:
            x = F.pixel_unshuffle(x, 2)
        return (x > 0).flatten(2).transpose(1, 2)

    def quantize(self, latent_BdHW: Tensor) -> tuple[list[Tensor], Tensor]:
        """Bits of every scale and the sum of their codes ``[B, d, H, W]``, of the latent map's own size."""
        size = latent_BdHW.shape[-2], latent_BdHW.shape[-1]
        residual, total, bits = latent_BdHW, torch.zeros_like(latent_BdHW), []
        for k in range(len(self.scales)):
            bits.append(self.residual_bits(residual, k))
            code = self.upsample(self.code(bits[-1], k), size)
            total, residual = total + code, residual - code
        return bits, total


class Autoencoder(nn.Module):
    """Encoder, quantiser and decoder. ``encoder`` may be left out: generation needs the decoder alone."""

    def __init__(self, scales: ScaleSchedule, config: AutoencoderConfig, *, with_encoder: bool = True) -> None:
        super().__init__()
        self.config = config
        self.quantizer = BitQuantizer(scales, config)
        self.encoder = Encoder(config) if with_encoder else None
        self.decoder = Decoder(config)

    def encode(self, image_B3HW: Tensor) -> Tensor:
        """Latent map ``[B, bits, H / stride, W / stride]`` (float32) of images in [-1, 1]."""
        if self.encoder is None:
            raise ValueError("this autoencoder was loaded without its encoder: it can decode only")
        latent = self.encoder(image_B3HW).float()
        return F.normalize(latent, dim=1) if self.config.normalize else latent

    def decode(self, latent_BdHW: Tensor) -> Tensor:
        """Images in [-1, 1] (float32), clamped."""
        return self.decoder(latent_BdHW).float().clamp(-1, 1)
