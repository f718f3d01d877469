"""Calibration: where every head looks, measured while a few prompts generate with the full cache.

The cache keeps each source scale apart, and attention over the pieces is merged by log-sum-exp
(attention.py), so the mass on a source scale is the weight of its piece: exact, in one pass. Beyond
the full cache and one output per piece of the running layer (``scales + 1`` times the size of the
attention output) nothing is allocated; no array grows with queries x keys.

The pieces also tell what the layer's output would be without any one of them: ``(o - m o_s) / (1 - m)``
where o is the output, o_s that of the piece and m its mass. And a sample of the last scale's queries
tells whether a head's queries all read the same keys (see ``HeadScores``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from heatkv.attention import Part, merge, part_weights
from heatkv.cache import ScheduleCache
from heatkv.models.base import GenerativeModel, Sampling, seeded_noise
from heatkv.scales import Geometry
from heatkv.schedule import Schedule
from heatkv.scores import HeadScores

SPREAD_QUERIES = 256  # of the last scale, spread over its map
LEAST_REST = 1e-4  # a piece with more mass than 1 - LEAST_REST is taken as having that much


class CalibratingCache(ScheduleCache):
    """A full cache that sums up the softmax mass of every head on every source scale, and what follows from it.

    Parameters
    ----------
    geometry
        Of the model that runs.
    rows
        The first so many batch rows count: with classifier-free guidance the conditional half, as in
        the published accumulator. Default: all.
    """

    def __init__(self, geometry: Geometry, rows: int | None = None) -> None:
        super().__init__(geometry, Schedule.full(geometry, "any"), prefix_scales=0)
        self.rows = rows
        K = len(geometry.scales)
        self._mass_LHTS = torch.zeros(geometry.layers, geometry.heads, K, K, dtype=torch.float64)
        self._change_LHTS = torch.zeros_like(self._mass_LHTS)
        self._spread_LH = self._mass_LHTS.new_zeros(geometry.layers, geometry.heads)
        self._pending: list[tuple[Tensor, Tensor]] = []

    def _attend(self, layer: int, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        if self.last_scale:
            keys = [k_BHND, *(cell.k for cell in self._cells[layer])]
            self._pending.append((self._spread_LH[layer], spread(q_BHND[: self.rows], [k[: self.rows] for k in keys])))
        return super()._attend(layer, q_BHND, k_BHND, v_BHND)

    def _observe(self, layer: int, parts: list[Part]) -> None:
        # Float64 sums over rows, and no wait for the device inside a scale.
        sources = [self.scale, *(cell.source for cell in self._cells[layer])]
        out_BHND = merge(parts)[: self.rows].float()
        energy_B1 = out_BHND.square().sum((1, 3)).mean(1).clamp_min(1e-30).unsqueeze(1)
        for source, weight_BHN, part in zip(sources, part_weights(parts), parts, strict=True):
            weight_BHN = weight_BHN[: self.rows]
            mass_H = weight_BHN.mean(2, dtype=torch.float64).sum(0)
            self._pending.append((self._mass_LHTS[layer, :, self.scale, source], mass_H))
            if source != self.scale:
                factor_BHN = weight_BHN / (1 - weight_BHN).clamp_min(LEAST_REST)
                change_BHN = (part.out_BHND[: self.rows] - out_BHND).square().sum(3) * factor_BHN.square()
                change_H = (change_BHN.mean(2) / energy_B1).sum(0, dtype=torch.float64)
                self._pending.append((self._change_LHTS[layer, :, self.scale, source], change_H))

    def _settle(self, sums: Tensor) -> np.ndarray:
        for total, value in self._pending:
            total += value.cpu()
        self._pending.clear()
        return sums.numpy().copy()

    @property
    def mass_LHTS(self) -> np.ndarray:
        """Sum over rows of the mean mass of target scale t's queries on source scale s, float64."""
        return self._settle(self._mass_LHTS)

    @property
    def change_LHTS(self) -> np.ndarray:
        """Sum over rows of the share of the layer's output that changes at t without source scale s, float64."""
        return self._settle(self._change_LHTS)

    @property
    def spread_LH(self) -> np.ndarray:
        """Sum over rows of the variance over the last scale's queries of what keys receive, float64."""
        return self._settle(self._spread_LH)


def spread(q_BHND: Tensor, keys: list[Tensor]) -> Tensor:
    """Variance over queries of the attention that a key receives, summed over keys and rows, ``[H]`` float64.

    ``keys`` are pieces ``[B, H, M, D]``. Up to ``SPREAD_QUERIES`` queries count, in tiles whose
    probabilities are no larger than the queries.
    """
    batch, heads, queries, dim = q_BHND.shape
    q_BHND = q_BHND[:, :, torch.arange(0, queries, -(-queries // SPREAD_QUERIES), device=q_BHND.device)]
    total = sum(k.shape[2] for k in keys)
    received_BHM = q_BHND.new_zeros(batch, heads, total, dtype=torch.float32)
    square_BH = q_BHND.new_zeros(batch, heads, dtype=torch.float32)
    for q in q_BHND.split(max(1, queries * dim // total), dim=2):
        logits = torch.cat([q.float() @ k.float().transpose(-1, -2) for k in keys], dim=-1)
        p_BHNM = logits.softmax(-1)
        received_BHM += p_BHNM.sum(2)
        square_BH += p_BHNM.square_().sum((2, 3))
    n = q_BHND.shape[2]
    return (square_BH / n - (received_BHM / n).square().sum(2)).clamp_min(0).sum(0, dtype=torch.float64)


def calibrate_steps(
    model: GenerativeModel, prompts: Sequence[str], seed: int = 0, sampling: Sampling | None = None, batch: int = 1
) -> Iterator[HeadScores]:
    """Calibrate prompt by prompt; yields the scores so far after each ``batch`` of prompts.

    Prompt i generates with seed ``seed + i`` whatever the batch. Raises ``ValueError`` without
    prompts, and ``PromptError`` for a prompt the model can make nothing of, before anything runs.
    """
    if not prompts:
        raise ValueError("calibration needs at least one prompt")
    if batch < 1:
        raise ValueError(f"batch {batch} must be 1 or more")
    for prompt in prompts:
        model.check_prompt(prompt)
    sampling = sampling or model.sampling
    sums = [np.zeros(())] * 3
    for first in range(0, len(prompts), batch):
        chunk = prompts[first : first + batch]
        cache = CalibratingCache(model.geometry, rows=len(chunk))
        noise = seeded_noise([seed + first + i for i in range(len(chunk))])
        for _ in model.run(chunk, noise, cache, sampling):
            pass
        sums = [a + b for a, b in zip(sums, (cache.mass_LHTS, cache.change_LHTS, cache.spread_LH), strict=True)]
        mass, change, spread_sum = sums
        done = first + len(chunk)
        settings = {"seed": seed, "dtype": str(model.dtype), **asdict(sampling)}
        yield HeadScores(model.id, model.geometry, mass, tuple(prompts[:done]), done, settings, change, spread_sum)


def calibrate(
    model: GenerativeModel, prompts: Sequence[str], seed: int = 0, sampling: Sampling | None = None, batch: int = 1
) -> HeadScores:
    """Scores of all ``prompts`` (see ``calibrate_steps``)."""
    *_, scores = calibrate_steps(model, prompts, seed, sampling, batch)
    return scores
