"""Knock-out: how far one picture moves when a single head may remember nothing.

What attention and calibration can only suggest, measured on this very picture: one run a head, with everything cached
but that head's cells, against the run with everything. The head still reads the scale that is being drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from heatkv.cache import ScheduleCache
from heatkv.generate import generate_events
from heatkv.models.base import GenerativeModel, Sampling
from heatkv.schedule import Schedule
from heatkv.study import metrics
from heatkv.views.edits import forget, no_cells


@dataclass(frozen=True)
class KnockOut:
    """One head's measurement: ``moved`` is the root mean square difference of the pixels, 0 to 255, ``psnr`` in dB."""

    layer: int
    head: int
    moved: float
    psnr: float


def without_head(geometry_schedule: Schedule, layer: int, head: int) -> Schedule:
    """A schedule in which one head stores nothing."""
    cells_LHS = no_cells(geometry_schedule.geometry)
    cells_LHS[layer, head] = True
    return forget(geometry_schedule, cells_LHS)


def moved(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> float:
    """Root mean square difference of two pictures' pixels, 0 to 255."""
    return float(np.sqrt(np.square(a.astype(np.float64) - b.astype(np.float64)).mean()))


def knock_out_steps(
    model: GenerativeModel, prompt: str, seed: int, sampling: Sampling | None = None
) -> Iterator[KnockOut | None]:
    """Every head in turn; None after every scale and once for the full picture, so that it can be stopped anywhere."""
    full = Schedule.full(model.geometry, model.id)
    reference = None
    for event in generate_events(model, prompt, seed, ScheduleCache(model.geometry, full), sampling):
        reference = event.pixels
        yield None
    assert reference is not None
    for layer in range(model.geometry.layers):
        for head in range(model.geometry.heads):
            pixels = None
            cache = ScheduleCache(model.geometry, without_head(full, layer, head))
            for event in generate_events(model, prompt, seed, cache, sampling):
                pixels = event.pixels
                if pixels is None:
                    yield None
            assert pixels is not None
            yield KnockOut(layer, head, moved(reference, pixels), metrics.psnr(reference, pixels))
