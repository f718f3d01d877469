"""Two-dimensional rotary embedding with positions normalised to one reference grid."""

from __future__ import annotations

import torch
from torch import Tensor

from heatkv.scales import ScaleSchedule


def rope_table(scales: ScaleSchedule, head_dim: int, grid: tuple[int, int], base: float = 10000.0) -> Tensor:
    """Cosines and sines for every token of every scale, as ``[2, N, head_dim / 2]`` in float32.

    Token (i, j) of an h x w scale sits at (round(i H/h), round(j W/w)) of the reference grid
    H x W, so that tokens that cover the same part of the image share their position at every
    scale (Infinity, "normalised by height and width", mode 2: the one that every released model
    uses; modes 0 and 1 are not implemented). Half of the rotated pairs turn
    with y, half with x.
    """
    if head_dim % 4:
        raise ValueError(f"head_dim {head_dim} must be a multiple of 4 for a two-dimensional rotary embedding")
    half = head_dim // 2
    inv_freq = 1.0 / (base ** (torch.arange(0, half, 2).float() / half))
    angles = []
    for h, w in scales:
        y = torch.round(torch.arange(h).float() * (grid[0] / h))
        x = torch.round(torch.arange(w).float() * (grid[1] / w))
        angle_y = torch.outer(y, inv_freq)[:, None, :].expand(h, w, -1)
        angle_x = torch.outer(x, inv_freq)[None, :, :].expand(h, w, -1)
        angles.append(torch.cat([angle_y, angle_x], dim=-1).reshape(h * w, half))
    angle_N = torch.cat(angles)
    return torch.stack([angle_N.cos(), angle_N.sin()])


def rotate(x_BHND: Tensor, table: Tensor) -> Tensor:
    """Rotate interleaved pairs (even, odd) of the last axis by ``table`` ``[2, N, D/2]``."""
    cos, sin = table[0].to(x_BHND.dtype), table[1].to(x_BHND.dtype)
    even, odd = x_BHND[..., 0::2], x_BHND[..., 1::2]
    return torch.stack([cos * even - sin * odd, sin * even + cos * odd], dim=-1).flatten(-2)
