"""Random models, calibrations and planning problems for property tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from heatkv.budget import least_budget
from heatkv.scales import Geometry, ScaleSchedule
from heatkv.scores import HeadScores

sides = st.integers(1, 9)
scale_lists = st.lists(st.tuples(sides, sides), min_size=2, max_size=8)
line_lists = st.builds(ScaleSchedule.lines, st.integers(1, 5), st.integers(1, 6), st.integers(2, 6))


def geometries_of(scales: st.SearchStrategy[ScaleSchedule]) -> st.SearchStrategy[Geometry]:
    return st.builds(
        lambda layers, heads, scales: Geometry(layers, heads, 8, scales), st.integers(1, 6), st.integers(1, 5), scales
    )


lines_only = geometries_of(line_lists)
scales_only = geometries_of(scale_lists.map(lambda sizes: ScaleSchedule(tuple(sizes))))
geometries = scales_only | lines_only


@dataclass(frozen=True)
class Problem:
    """A feasible planning problem; ``orders_SN`` ranks the heads of every prunable source scale."""

    geometry: Geometry
    sink_scales: int
    budget: float
    orders_SN: npt.NDArray[np.int64]


def random_orders(geometry: Geometry, sink_scales: int, seed: int) -> npt.NDArray[np.int64]:
    sources = len(geometry.scales) - 1 - sink_scales
    return np.random.default_rng(seed).permuted(np.tile(np.arange(geometry.head_count), (sources, 1)), axis=1)


def random_scores(geometry: Geometry, seed: int, count: int = 1, model: str = "toy") -> HeadScores:
    """Scores as a calibration could give them: non-negative, causal in the scales, every row summing to ``count``."""
    K = len(geometry.scales)
    mass_LHTS = np.tril(np.random.default_rng(seed).random((geometry.layers, geometry.heads, K, K)) + 0.01)
    mass_LHTS *= count / mass_LHTS.sum(3, keepdims=True)
    return HeadScores(model, geometry, mass_LHTS, tuple(f"prompt {seed}.{i}" for i in range(count)), count)


@st.composite
def problems(draw: st.DrawFn, of: st.SearchStrategy[Geometry] = geometries) -> Problem:
    geometry = draw(of)
    sink_scales = draw(st.integers(0, len(geometry.scales) - 1))
    least = least_budget(geometry.scales, sink_scales)
    # The ends of the range, round shares and anything between.
    shares = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1, exclude_min=True)
    budget = draw(shares.map(lambda share: min(max(least + share * (1 - least), 1e-3), 1.0)))
    return Problem(geometry, sink_scales, budget, random_orders(geometry, sink_scales, draw(st.integers(0, 2**16))))


def ordinary_problem(seed: int) -> Problem:
    """A planning problem as models pose it: several layers, growing scales, a budget that bites."""
    rng = np.random.default_rng(seed)
    growth = np.cumsum(rng.integers(0, 3, (rng.integers(6, 9), 2)), axis=0) + 1
    geometry = Geometry(
        int(rng.integers(6, 13)), int(rng.integers(3, 7)), 8, ScaleSchedule(tuple((int(h), int(w)) for h, w in growth))
    )
    sink_scales = int(rng.integers(0, 4))
    least = least_budget(geometry.scales, sink_scales)
    budget = float(least + rng.uniform(0.05, 0.4) * (1 - least))
    return Problem(geometry, sink_scales, budget, random_orders(geometry, sink_scales, seed))
