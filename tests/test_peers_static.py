"""The static policies beside HeatKV keep the cells they say they keep."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import LONG, SINKS, scores_of
from strategies import Problem, problems

from heatkv.policies import plan
from heatkv.policies.ams import demanding_layers
from heatkv.policies.base import PlanInput
from heatkv.policies.fill import drop_early, least_limits
from heatkv.scales import Geometry, ScaleSchedule


@given(problem=problems(), seed=st.integers(0, 99))
def test_the_cells_that_fit_a_limit_fit_it_and_never_return(problem: Problem, seed: int) -> None:
    geometry, sinks = problem.geometry, problem.sink_scales
    rng = np.random.default_rng(seed)
    worth = {t: rng.random((geometry.head_count, t - sinks)) for t in range(sinks, len(geometry.scales))}
    limits = least_limits(worth.__getitem__, geometry, sinks)
    tokens = np.array(geometry.scales.tokens)
    for t, limit_NS in limits.items():
        total_NS = np.broadcast_to(tokens[sinks:t], limit_NS.shape)
        order = np.argsort(limit_NS, axis=None)
        held_so_far = geometry.head_count * (tokens[:sinks].sum() + geometry.scales.open_tokens[t]) + np.cumsum(
            total_NS.ravel()[order]
        )
        distinct = np.append(np.diff(limit_NS.ravel()[order]) > 0, True)
        assert (held_so_far <= limit_NS.ravel()[order])[distinct].all()
        if t - 1 in limits:
            less = geometry.head_count * (geometry.scales.open_tokens[t - 1] - geometry.scales.open_tokens[t])
            assert (limit_NS[:, :-1] >= limits[t - 1] - max(0, less)).all()


def test_at_the_first_pruned_scale_the_cells_worth_most_per_token_stay() -> None:
    geometry = Geometry(2, 3, 8, ScaleSchedule(((1, 1), (2, 2), (4, 4), (5, 5))))
    rng = np.random.default_rng(0)
    worth_NS = rng.random((6, 1))
    limit_NS = least_limits(lambda t: worth_NS if t == 2 else rng.random((6, t - 1)), geometry, 1)[2]
    assert (np.argsort(limit_NS[:, 0]) == np.argsort(-worth_NS[:, 0])).all()
    assert np.sort(limit_NS[:, 0]).tolist() == [6 + 4 * i for i in range(1, 7)]


@given(problem=problems(), seed=st.integers(0, 99))
def test_the_cheapest_cells_go_early_among_those_that_help(problem: Problem, seed: int) -> None:
    geometry, sinks = problem.geometry, problem.sink_scales
    inputs = PlanInput(geometry, problem.budget, sinks, 0)
    rng = np.random.default_rng(seed)
    worth = {t: rng.random((geometry.head_count, t - sinks)) for t in range(sinks, len(geometry.scales))}
    late_NS = np.full((geometry.head_count, len(geometry.scales)), len(geometry.scales))
    for t, needed_NS in reversed(least_limits(worth.__getitem__, geometry, sinks).items()):
        late_NS[:, sinks:t][needed_NS > inputs.limit] = t
    late_LHS = late_NS.reshape(geometry.layers, geometry.heads, -1)
    early_LHS = drop_early(late_LHS, worth.__getitem__, inputs) < late_LHS
    assert (drop_early(late_LHS, worth.__getitem__, inputs) >= late_LHS - 1).all()
    for t in range(sinks + 1, len(geometry.scales) - 1):
        loss_LHS = worth[t].reshape(geometry.layers, geometry.heads, -1)
        leaving = late_LHS[:, :, sinks:t] == t + 1
        gone, stays = leaving & early_LHS[:, :, sinks:t], leaving & ~early_LHS[:, :, sinks:t]
        for layer in range(geometry.layers):
            worst_gone = loss_LHS[layer][gone[layer]].max(initial=-1)
            assert worst_gone <= loss_LHS[layer:][stays[layer:]].min(initial=2)


@pytest.mark.parametrize("budget", [0.3, 0.45, 0.6])
def test_streaming_keeps_the_newest_scales_in_all_layers_alike(budget: float) -> None:
    schedule = plan(None, budget, "streaming", SINKS, model="toy", geometry=LONG)
    last = len(LONG.scales) - 1
    kept_LS = schedule.keep(last)[:, :, :last].sum(1)
    assert (np.diff(kept_LS[:, SINKS:], axis=1) >= 0).all()
    assert np.ptp(kept_LS, axis=0).max() <= 1
    assert kept_LS[0, -1] > 0 and kept_LS[0, SINKS] == 0
    assert ((kept_LS > 0) & (kept_LS < LONG.heads)).any()


def test_ams_keeps_scales_longer_in_the_layers_that_read_them_more() -> None:
    scores = scores_of(LONG)
    demanding_L = demanding_layers(scores, SINKS)
    assert demanding_L.sum() == 2
    between_L = np.tril(scores.mass_LHTS, -1)[:, :, :, SINKS:].sum((1, 2, 3))
    assert between_L[demanding_L].min() > between_L[~demanding_L].max()
    kept_LS = plan(scores, 0.5, "ams", SINKS).keep(6)[:, :, SINKS:6].sum(1)
    assert kept_LS[demanding_L].sum(0).tolist() >= kept_LS[~demanding_L].sum(0).tolist()
    assert kept_LS[demanding_L].sum() > kept_LS[~demanding_L].sum()
    even = plan(scores, 0.5, "ams", SINKS, extra=0)
    assert (even.drop_at_LHS != plan(scores, 0.5, "ams", SINKS).drop_at_LHS).any()
