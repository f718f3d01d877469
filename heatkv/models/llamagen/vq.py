"""The tokenizer of the LlamaGen family: convolutions around one codebook, one code a cell of the map.

An image becomes a map of vectors; each is replaced by the code that points the same way (both are brought to unit
length, so that only directions are compared). Parameter names follow the published state dict.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from heatkv.models.infinity.autoencoder import ResidualBlock, group_norm


@dataclass(frozen=True)
class VqConfig:
    """Shape of a tokenizer; the defaults are the published VQ-16.

    ``width_mult`` are the widths of the resolutions, finest first, in units of ``base_width``; each but the last
    halves the map. ``inner_width`` is what the convolutions hand over, ``code_width`` what a code has. ``patch``
    packs patch x patch pixels into one before the first convolution and unpacks them after the last (1 as
    published; 2 makes a small model several times as fast).

    ``light`` is another structure for a small tokenizer: the encoder sees one cell at a time, the decoder unpacks each
    into 2 x 2, there is no attention and no ``inner_width``.
    """

    base_width: int = 128
    width_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    inner_width: int = 256
    code_width: int = 8
    vocabulary: int = 16384
    norm_groups: int = 32
    patch: int = 1
    light: bool = False

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.base_width * mult for mult in self.width_mult)

    @property
    def stride(self) -> int:
        """Pixels along the side of a cell."""
        return self.patch * 2 ** (len(self.width_mult) - 1)


class SpatialAttention(nn.Module):
    """Attention of every cell of a map to all cells, one head."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(width, groups)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        normed = self.norm(x_BCHW)
        q, k, v = (conv(normed).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))
        out_BNC = F.scaled_dot_product_attention(q, k, v)  # scale C^-0.5
        return x_BCHW + self.proj_out(out_BNC.transpose(1, 2).reshape(x_BCHW.shape))


class Level(nn.Module):
    """One resolution: residual blocks, at the coarsest each followed by attention, and a way to the next."""

    downsample: nn.Module
    upsample: nn.Module

    def __init__(self, widths: tuple[int, ...], groups: int, attend: bool) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResidualBlock(a, b, groups) for a, b in pairwise(widths))
        if attend:
            self.attn = nn.ModuleList(SpatialAttention(width, groups) for width in widths[1:])

    def forward(self, x: Tensor) -> Tensor:
        for j, block in enumerate(self.res):
            x = block(x)
            if hasattr(self, "attn"):
                x = self.attn[j](x)
        if hasattr(self, "downsample"):
            x = self.downsample(F.pad(x, (0, 1, 0, 1)))
        if hasattr(self, "upsample"):
            x = self.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


def middle(width: int, groups: int) -> nn.Sequential:
    parts = (ResidualBlock(width, width, groups), SpatialAttention(width, groups), ResidualBlock(width, width, groups))
    return nn.Sequential(*parts)


def named_conv(width: int, stride: int) -> nn.Sequential:
    """A 3 x 3 convolution under the published name ``conv``; with stride 2 the caller pads."""
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(width, width, 3, stride, padding=1 if stride == 1 else 0)))


class Encoder(nn.Module):
    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        widths, groups = config.widths, config.norm_groups
        last = len(widths) - 1
        self.patch = config.patch
        self.conv_in = nn.Conv2d(3 * config.patch**2, config.base_width, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        for i, (before, width) in enumerate(zip((config.base_width, *widths), widths, strict=False)):
            level = Level((before, width, width), groups, attend=i == last)
            if i < last:
                level.downsample = named_conv(width, stride=2)
            self.conv_blocks.append(level)
        self.mid = middle(widths[-1], groups)
        self.norm_out = group_norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], config.inner_width, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(image, self.patch))
        for level in self.conv_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Levels in order of execution, coarsest first."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        widths, groups = config.widths[::-1], config.norm_groups
        last = len(widths) - 1
        self.patch = config.patch
        self.conv_in = nn.Conv2d(config.inner_width, widths[0], 3, padding=1)
        self.mid = middle(widths[0], groups)
        self.conv_blocks = nn.ModuleList()
        for i, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            level = Level((before, width, width, width), groups, attend=i == 0)
            if i < last:
                level.upsample = named_conv(width, stride=1)
            self.conv_blocks.append(level)
        self.norm_out = group_norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], 3 * config.patch**2, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latent))
        for level in self.conv_blocks:
            x = level(x)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.patch)


class CellBlock(nn.Module):
    """A residual block that mixes the channels of every cell by itself."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(width, groups)
        self.conv1 = nn.Conv2d(width, 2 * width, 1)
        self.conv2 = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(self.norm(x))))


def light_encoder(config: VqConfig) -> nn.Sequential:
    """Pixels to codes; a cell's code follows from the pixels of that cell alone.

    So a thing that moves by cells is written in the same codes, and a plain page in one.
    """
    width, groups = 2 * config.widths[-1], config.norm_groups
    parts: list[nn.Module] = [nn.PixelUnshuffle(config.stride), nn.Conv2d(3 * config.stride**2, width, 1)]
    parts += [CellBlock(width, groups) for _ in range(2)]
    return nn.Sequential(*parts, group_norm(width, groups), nn.SiLU(), nn.Conv2d(width, config.code_width, 1))


def light_decoder(config: VqConfig) -> nn.Sequential:
    """Codes to pixels, of residual blocks and unpacked cells: a cell follows from the codes around it too."""
    widths, groups = config.widths[::-1], config.norm_groups
    first = widths[0] * 4 // 3
    parts: list[nn.Module] = [nn.Conv2d(config.code_width, first, 3, padding=1)]
    parts += [ResidualBlock(first, first, groups) for _ in range(3)]
    for before, width in pairwise((first, *widths[1:])):
        parts += [nn.Conv2d(before, 4 * width, 1), nn.PixelShuffle(2), ResidualBlock(width, width, groups)]
    parts += [group_norm(widths[-1], groups), nn.SiLU(), nn.Conv2d(widths[-1], 3 * config.patch**2, 3, padding=1)]
    return nn.Sequential(*parts, nn.PixelShuffle(config.patch))


class Codebook(nn.Module):
    """One list of directions; a cell is the index of the nearest."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.code_width)

    @property
    def directions_Vc(self) -> Tensor:
        """The codes at unit length; the stored ones may have any."""
        return F.normalize(self.embedding.weight, dim=-1)

    def nearest(self, latent_BcHW: Tensor) -> Tensor:
        """Indices ``[B, N]`` of the codes nearest in direction, rows of the map one after the other."""
        cells_BNc = F.normalize(latent_BcHW, dim=1).flatten(2).transpose(1, 2)
        return (cells_BNc @ self.directions_Vc.T).argmax(-1)

    def code(self, index_BN: Tensor) -> Tensor:
        """Unit vectors ``[B, N, code_width]`` of indices."""
        return F.normalize(self.embedding(index_BN), dim=-1)

    def map(self, index_BN: Tensor, size: tuple[int, int]) -> Tensor:
        """The map ``[B, code_width, H, W]`` of the indices of its first cells; zeros for cells that are missing."""
        height, width = size
        codes_BcN = self.code(index_BN).transpose(1, 2)
        codes_BcN = F.pad(codes_BcN, (0, height * width - index_BN.shape[1]))
        return codes_BcN.unflatten(2, size)


class Vq(nn.Module):
    """Encoder, codebook and decoder. ``encoder`` may be left out: generation needs the rest alone."""

    def __init__(self, config: VqConfig, *, with_encoder: bool = True) -> None:
        super().__init__()
        self.config = config
        if with_encoder:
            self.encoder = light_encoder(config) if config.light else Encoder(config)
            self.quant_conv = nn.Identity() if config.light else nn.Conv2d(config.inner_width, config.code_width, 1)
        self.quantize = Codebook(config)
        self.post_quant_conv = nn.Identity() if config.light else nn.Conv2d(config.code_width, config.inner_width, 1)
        self.decoder = light_decoder(config) if config.light else Decoder(config)

    def encode(self, image_B3HW: Tensor) -> Tensor:
        """Map of unit vectors ``[B, code_width, H / stride, W / stride]`` (float32) of images in [-1, 1]."""
        if not hasattr(self, "encoder"):
            raise ValueError("this tokenizer was loaded without its encoder: it can decode only")
        return F.normalize(self.quant_conv(self.encoder(image_B3HW)).float(), dim=1)

    def decode(self, latent_BcHW: Tensor) -> Tensor:
        """Images, nominally in [-1, 1] (float32) and not clamped, of a map of codes (see ``Codebook.map``)."""
        dtype = next(self.decoder.parameters()).dtype
        return self.decoder(self.post_quant_conv(latent_BcHW).to(dtype)).float()
