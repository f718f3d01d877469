"""Calibration: where every head looks, measured while a few prompts generate with the full cache.

The cache keeps each source scale apart, and attention over the pieces is merged by log-sum-exp
(attention.py), so the mass on a source scale is the weight of its piece: exact, in one pass. Beyond
the full cache and one output per piece of the running layer (``scales + 1`` times the size of the
attention output) nothing is allocated; no array grows with queries x keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from heatkv.attention import Part, part_weights
from heatkv.cache import ScheduleCache
from heatkv.models.base import GenerativeModel, Sampling, seeded_noise
from heatkv.scales import Geometry
from heatkv.schedule import Schedule
from heatkv.scores import HeadScores


class CalibratingCache(ScheduleCache):
    """A full cache that sums up the softmax mass of every head on every source scale.

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
        self._pending: list[tuple[int, int, int, Tensor]] = []

    def _observe(self, layer: int, parts: list[Part]) -> None:
        sources = [self.scale, *(cell.source for cell in self._cells[layer])]
        for source, weight_BHN in zip(sources, part_weights(parts), strict=True):
            # Float64 sums over rows, and no wait for the device inside a scale.
            mass_H = weight_BHN[: self.rows].mean(2, dtype=torch.float64).sum(0)
            self._pending.append((layer, self.scale, source, mass_H))

    @property
    def mass_LHTS(self) -> np.ndarray:
        """Sum over rows of the mean mass of target scale t's queries on source scale s, float64."""
        for layer, target, source, mass_H in self._pending:
            self._mass_LHTS[layer, :, target, source] += mass_H.cpu()
        self._pending.clear()
        return self._mass_LHTS.numpy().copy()


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
    total = np.zeros((model.geometry.layers, model.geometry.heads, *(2 * [len(model.geometry.scales)])))
    for first in range(0, len(prompts), batch):
        chunk = prompts[first : first + batch]
        cache = CalibratingCache(model.geometry, rows=len(chunk))
        noise = seeded_noise([seed + first + i for i in range(len(chunk))])
        for _ in model.run(chunk, noise, cache, sampling):
            pass
        total += cache.mass_LHTS
        done = first + len(chunk)
        yield HeadScores(
            model.id, model.geometry, total, tuple(prompts[:done]), done,
            {"seed": seed, "guidance": sampling.guidance, "temperature": sampling.temperature, "dtype": str(model.dtype)},
        )  # fmt: skip


def calibrate(
    model: GenerativeModel, prompts: Sequence[str], seed: int = 0, sampling: Sampling | None = None, batch: int = 1
) -> HeadScores:
    """Scores of all ``prompts`` (see ``calibrate_steps``)."""
    scores = None
    for scores in calibrate_steps(model, prompts, seed, sampling, batch):
        pass
    assert scores is not None
    return scores
