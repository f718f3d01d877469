"""Token allowances of the dynamic policies: how much each head may hold, settled so that the budget holds throughout.

An allowance is ``(scales - 1, layers, heads)``: tokens that a head may hold after each scale but the last. Also the
little geometry that token selection shares.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from heatkv.budget import resident_while_layers_run
from heatkv.policies.base import PlanInput
from heatkv.scales import Geometry

EMPTY = -1  # position of a slot that holds no token
Ints = npt.NDArray[np.int64]


def uniform(inputs: PlanInput) -> Ints:
    """The same for every head at every time."""
    geometry = inputs.geometry
    shape = len(geometry.scales) - 1, geometry.layers, geometry.heads
    return np.full(shape, inputs.limit // geometry.head_count, np.int64)


def held_tokens(allowance_TLH: npt.NDArray[np.integer], geometry: Geometry) -> Ints:
    """Tokens that every head holds after each scale under an allowance, same shape."""
    held_LH = np.zeros(allowance_TLH.shape[1:], np.int64)
    held = []
    for t, allowed_LH in enumerate(allowance_TLH):
        held_LH = np.minimum(allowed_LH, held_LH + geometry.scales.tokens[t])
        held.append(held_LH)
    return np.stack(held) if held else np.zeros(allowance_TLH.shape, np.int64)


def cuts(allowance_TLH: npt.NDArray[np.integer]) -> list[list[int]]:
    """Where the room of each layer is cut into pieces, ascending: at every allowance above 0 that a scale has in it."""
    return [sorted(set(allowance_TLH[:, layer].ravel().tolist()) - {0}) for layer in range(allowance_TLH.shape[1])]


def taken_tokens(allowance_TLH: npt.NDArray[np.integer], geometry: Geometry) -> Ints:
    """Tokens that every head has room taken for after each scale, same shape.

    Room is taken a piece at a time (`cuts`), as soon as a head of the layer reaches into it.
    """
    taken_TLH = np.zeros(allowance_TLH.shape, np.int64)
    reached_TL = held_tokens(allowance_TLH, geometry).max(2, initial=0)
    for layer, ends in enumerate(cuts(allowance_TLH)):
        for start, end in pairwise([0, *ends]):
            reaches_TH = (reached_TL[:, layer, None] > start) & (allowance_TLH[:, layer] >= end)
            taken_TLH[:, layer][reaches_TH] = end
    return taken_TLH


def resident(tokens_TLH: npt.NDArray[np.integer]) -> Ints:
    """Tokens of all layers after layer l of scale t has run: layers up to l are at t, the later ones at t - 1."""
    return resident_while_layers_run(tokens_TLH.astype(np.int64).sum(2))


def evenly(count: int, tokens: int, device: torch.device | None = None) -> Tensor:
    """``count`` of ``tokens`` indices, spread evenly; all of them if there are fewer."""
    count = min(count, tokens)
    return ((2 * torch.arange(count, device=device) + 1) * tokens) // (2 * max(1, count))


def patch_centres(height: int, width: int, side: int) -> Tensor:
    """Tokens at the centres of a ``side x side`` grid of patches of a map, ascending, each once."""

    def centres(length: int) -> Tensor:
        middle = ((2 * torch.arange(side) + 1) * length - side) // (2 * side)
        return torch.unique(middle.clamp(0, length - 1))

    return (centres(height)[:, None] * width + centres(width)).flatten()


def pooled(score_RU: Tensor, pos_RU: Tensor, kernel: int) -> Tensor:
    """Every score replaced by the highest among its neighbours in the sequence, ``kernel`` wide.

    Empty slots come first; their scores must be no higher than any token's.
    """
    order_RU = pos_RU.argsort(dim=1, stable=True)
    sorted_RU = score_RU.gather(1, order_RU)
    pooled_RU = torch.nn.functional.max_pool1d(sorted_RU[:, None], kernel, stride=1, padding=kernel // 2)[:, 0]
    return torch.empty_like(score_RU).scatter_(1, order_RU, pooled_RU)
