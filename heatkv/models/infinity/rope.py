"""Two-dimensional rotary embedding: where the tokens of every scale sit, and how far they turn."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from heatkv.scales import ScaleSchedule

RopeMode = Literal[0, 1, 2]
TABLE_SIDE = 128  # of the published table of positions


def rope_table(
    scales: ScaleSchedule, head_dim: int, grid: tuple[int, int], base: float = 10000.0, mode: RopeMode = 2
) -> Tensor:
    """Cosines and sines for every token of every scale, as ``[2, N, head_dim / 2]`` in float32.

    Half of the rotated pairs turn with y, half with x. ``mode`` is Infinity's ``rope2d_normalized_by_hw``:

    - 2, of every released model: token (i, j) of an h x w scale sits at (round(i H/h), round(j W/w)) of the
      reference grid H x W, so that tokens that cover the same part of the image share their position at every scale;
    - 1: the table of ``TABLE_SIDE`` positions on the longer side, resized to every scale (bilinear, corners aligned);
    - 0: the position in the scale itself.
    """
    if head_dim % 4:
        raise ValueError(f"head_dim {head_dim} must be a multiple of 4 for a two-dimensional rotary embedding")
    if mode not in (0, 1, 2):
        raise ValueError(f"rotary mode {mode!r} must be 0, 1 or 2")
    half = head_dim // 2
    inv_freq = 1.0 / (base ** (torch.arange(0, half, 2).float() / half))

    def turns(y: Tensor, x: Tensor) -> Tensor:
        angle_y = torch.outer(y, inv_freq)[:, None, :].expand(len(y), len(x), -1)
        angle_x = torch.outer(x, inv_freq)[None, :, :].expand(len(y), len(x), -1)
        angle_HWC = torch.cat([angle_y, angle_x], dim=-1)
        return torch.stack([angle_HWC.cos(), angle_HWC.sin()])

    tables = []
    for h, w in scales:
        y, x = torch.arange(h).float(), torch.arange(w).float()
        if mode == 2:
            y, x = torch.round(y * (grid[0] / h)), torch.round(x * (grid[1] / w))
        if mode == 1:
            longer = max(grid)
            rows, columns = (int(TABLE_SIDE / longer * side) for side in grid)
            table = turns(torch.arange(rows).float(), torch.arange(columns).float()).permute(0, 3, 1, 2)
            table = F.interpolate(table, size=(h, w), mode="bilinear", align_corners=True).permute(0, 2, 3, 1)
        else:
            table = turns(y, x)
        tables.append(table.reshape(2, h * w, half))
    return torch.cat(tables, 1)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Rotate interleaved pairs (even, odd) of the last axis of ``x [..., D]`` (float32).

    ``turn`` holds (cos, sin) of every pair's angle and broadcasts to ``[..., D / 2, 2]``. A pair is multiplied as the
    complex number that it is, which reads and writes memory once.
    """
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    if torch.compiler.is_compiling():  # fuses real numbers, but not complex ones
        (even, odd), (cos, sin) = pairs.unbind(-1), turn.unbind(-1)
        return torch.stack((cos * even - sin * odd, sin * even + cos * odd), -1).flatten(-2)
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turn)).flatten(-2)
