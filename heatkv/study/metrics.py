"""How close two images are: PSNR, foreground PSNR, SSIM, and agreement of the bits they were drawn from.

Images are uint8 arrays ``[height, width, 3]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

Image = npt.NDArray[np.uint8]
# What a comparison measures of every image, in the order of `heatkv.study.shards.Outcome`.
METRICS = ("psnr", "psnr_foreground", "ssim", "bit_agreement")
# Of models that draw token by token, measured on the full cache's own tokens: what the cache alone changes, without
# what follows from a first different token. Share of equal likeliest tokens, and KL of the next token in nats.
FORCED = ("forced_agreement", "forced_kl")
# A pixel counts as foreground where either image is darker than white by more than this.
BACKGROUND_SLACK = 12
# What identical images are reported as: finite, so that means over images exist.
IDENTICAL_PSNR = 99.0


def _checked(a: Image, b: Image) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if a.shape != b.shape:
        raise ValueError(f"images of shape {a.shape} and {b.shape} can not be compared: they must be of one size")
    return a.astype(np.float64), b.astype(np.float64)


def psnr(a: Image, b: Image) -> float:
    """Peak signal-to-noise ratio in dB, at most ``IDENTICAL_PSNR``."""
    x, y = _checked(a, b)
    error = float(np.square(x - y).mean())
    return IDENTICAL_PSNR if error == 0 else min(IDENTICAL_PSNR, 10 * math.log10(255**2 / error))


def foreground_psnr(a: Image, b: Image) -> float:
    """PSNR over the pixels that are not background (near white) in both images.

    A white background that both share inflates PSNR; here it does not count.
    """
    x, y = _checked(a, b)
    foreground = (np.minimum(x, y) < 255 - BACKGROUND_SLACK).any(-1)
    if not foreground.any():
        return IDENTICAL_PSNR
    error = float(np.square(x - y)[foreground].mean())
    return IDENTICAL_PSNR if error == 0 else min(IDENTICAL_PSNR, 10 * math.log10(255**2 / error))


def ssim(a: Image, b: Image) -> float:
    """Structural similarity (Wang et al. 2004): 11 x 11 Gaussian window of sigma 1.5, mean over pixels and channels."""
    x, y = _checked(a, b)
    side = min(11, x.shape[0] - (x.shape[0] + 1) % 2, x.shape[1] - (x.shape[1] + 1) % 2)
    offsets = torch.arange(side, dtype=torch.float64) - side // 2
    line = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = torch.outer(line, line)
    kernel = (window / window.sum()).expand(3, 1, side, side)

    def blur(image: torch.Tensor) -> torch.Tensor:
        return F.conv2d(image, kernel, groups=3)

    u, v = (torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0) for image in (x, y))
    mean_u, mean_v = blur(u), blur(v)
    var_u, var_v, cov = blur(u * u) - mean_u**2, blur(v * v) - mean_v**2, blur(u * v) - mean_u * mean_v
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    index = ((2 * mean_u * mean_v + c1) * (2 * cov + c2)) / ((mean_u**2 + mean_v**2 + c1) * (var_u + var_v + c2))
    return float(index.mean())


def bit_agreement(a: Sequence[npt.NDArray[np.generic]], b: Sequence[npt.NDArray[np.generic]]) -> list[float]:
    """Share of equal tokens (bits of bitwise models, indices of others) per scale."""
    if [x.shape for x in a] != [y.shape for y in b]:
        raise ValueError("the runs have different scales and can not be compared")
    return [float((x == y).mean()) for x, y in zip(a, b, strict=True)]


def token_difference(full_BV: torch.Tensor, other_BV: torch.Tensor) -> npt.NDArray[np.float64]:
    """How far the next token's log-probabilities move, ``[B, 2]``: whether the likeliest stays, and KL in nats.

    In the form ``sum p (log p - log q) - p + q``, no term of which is negative: the rounding of either side then counts
    squared, where in the plain sum it counts as it is, as much as a cache of half the size changes.
    """
    same_B = full_BV.argmax(-1) == other_BV.argmax(-1)
    p_BV = full_BV.exp()
    kl_B = ((p_BV * (full_BV - other_BV)).nan_to_num(0.0) - p_BV + other_BV.exp()).sum(-1).clamp_min(0)
    return torch.stack([same_B.double(), kl_B.double()], -1).numpy()


def mean_agreement(per_scale: Sequence[float], tokens: Sequence[int]) -> float:
    """Agreement over all tokens of the image."""
    return float(np.average(per_scale, weights=tokens))


def difference_map(a: Image, b: Image) -> Image:
    """Mean absolute difference of the channels, ``[height, width]``, 0 to 255."""
    x, y = _checked(a, b)
    return np.abs(x - y).mean(-1).round().astype(np.uint8)
