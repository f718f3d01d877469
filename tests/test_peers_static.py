"""The static policies beside HeatKV keep the cells they say they keep."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import LONG, SINKS, scores_of
from strategies import Problem, ordinary_problem, problems

from heatkv.policies import plan
from heatkv.policies.ams import demanding_layers
from heatkv.policies.base import PlanInput
from heatkv.policies.fill import drop_early, least_limits
from heatkv.scales import Geometry, ScaleSchedule
from heatkv.scores import HeadScores


@given(problem=problems(), seed=st.integers(0, 99))
def test_the_cells_that_fit_a_limit_fit_it_and_never_return(problem: Problem, seed: int) -> None:
    geometry, sinks = problem.geometry, problem.sink_scales
    rng = np.random.default_rng(seed)
    worth = {t: rng.random((geometry.slots, t - sinks)) for t in range(sinks, len(geometry.scales))}
    limits = least_limits(worth.__getitem__, geometry, sinks)
    tokens = np.array(geometry.scales.tokens)
    for t, limit_NS in limits.items():
        total_NS = np.broadcast_to(tokens[sinks:t], limit_NS.shape)
        order = np.argsort(limit_NS, axis=None)
        held_so_far = geometry.slots * tokens[:sinks].sum() + np.cumsum(total_NS.ravel()[order])
        distinct = np.append(np.diff(limit_NS.ravel()[order]) > 0, True)
        assert (held_so_far <= limit_NS.ravel()[order])[distinct].all()
        if t - 1 in limits:
            assert (limit_NS[:, :-1] >= limits[t - 1]).all()


def test_at_the_first_pruned_scale_the_cells_worth_most_per_token_stay() -> None:
    geometry = Geometry(2, 3, 8, ScaleSchedule(((1, 1), (2, 2), (4, 4), (5, 5))))
    rng = np.random.default_rng(0)
    worth_NS = rng.random((6, 1))
    limit_NS = least_limits(lambda t: worth_NS if t == 2 else rng.random((6, t - 1)), geometry, 1)[2]
    assert (np.argsort(limit_NS[:, 0]) == np.argsort(-worth_NS[:, 0])).all()
    assert np.sort(limit_NS[:, 0]).tolist() == [6 + 4 * i for i in range(1, 7)]


@pytest.mark.parametrize("importance", ["mass", "change"])
def test_heatkv_plus_keeps_more_of_what_matters_than_heatkv(importance: str) -> None:
    wins = []
    for seed in range(12):
        problem = ordinary_problem(seed)
        scores = scores_of(problem.geometry, seed)
        matters = scores.mass_LHTS if importance == "mass" else scores.change_LHTS
        assert matters is not None

        def kept(name: str, m: np.ndarray = matters, p: Problem = problem, s: HeadScores = scores, **o: Any) -> float:
            schedule = plan(s, p.budget, name, p.sink_scales, **o)
            K, sinks = len(p.geometry.scales), p.sink_scales
            return sum(float((m[:, :, t, sinks:t] * schedule.keep(t)[:, :, sinks:t]).sum()) for t in range(sinks, K))

        wins.append(kept("heatkv+", importance=importance) - kept("heatkv"))
    assert min(wins) >= 0
    assert np.mean(np.array(wins) > 0) > 0.8


def test_heatkv_plus_weighs_only_what_is_still_to_come() -> None:
    """A cell that was read a lot, but will not be, goes before one that will."""
    geometry = Geometry(1, 2, 8, ScaleSchedule(((1, 1), (3, 3), (3, 3), (3, 3), (3, 3))))
    mass_LHTS = np.tile(np.tril(np.full((5, 5), 1.0)), (1, 2, 1, 1))
    mass_LHTS[0, :, 2, 1] = 9.0, 1.0
    mass_LHTS[0, 0, 3:, 1] = 0.1
    mass_LHTS /= mass_LHTS.sum(3, keepdims=True)
    schedule = plan(HeadScores("toy", geometry, mass_LHTS, (), 1), (1 + 9 * 2) / 28, "heatkv+", 1)
    assert schedule.keep(4)[0, 1, 1] and not schedule.keep(4)[0, 0, 1]


def test_heatkv_plus_weighs_by_the_token() -> None:
    """Cells of equal mass: those of the fewest tokens stay, whatever the head."""
    K = len(LONG.scales)
    mass_LHTS = np.tile(np.tril(np.ones((K, K))) / np.arange(1, K + 1)[:, None], (4, 4, 1, 1))
    kept_S = plan(HeadScores("toy", LONG, mass_LHTS, (), 1), 0.3, "heatkv+", SINKS).keep(K - 1).sum((0, 1))
    assert kept_S[:4].tolist() == [16] * 4
    assert 0 < kept_S[4] < 16 and kept_S[5] == 0


@given(problem=problems(), seed=st.integers(0, 99))
def test_the_cheapest_cells_go_early_among_those_that_help(problem: Problem, seed: int) -> None:
    geometry, sinks = problem.geometry, problem.sink_scales
    ask = PlanInput(geometry, problem.budget, sinks, 0)
    rng = np.random.default_rng(seed)
    worth = {t: rng.random((geometry.slots, t - sinks)) for t in range(sinks, len(geometry.scales))}
    late_NS = np.full((geometry.slots, len(geometry.scales)), len(geometry.scales))
    for t, needed_NS in reversed(least_limits(worth.__getitem__, geometry, sinks).items()):
        late_NS[:, sinks:t][needed_NS > ask.limit] = t
    late_LHS = late_NS.reshape(geometry.layers, geometry.heads, -1)
    early_LHS = drop_early(late_LHS, worth.__getitem__, ask) < late_LHS
    assert (drop_early(late_LHS, worth.__getitem__, ask) >= late_LHS - 1).all()
    for t in range(sinks + 1, len(geometry.scales) - 1):
        loss_LHS = worth[t].reshape(geometry.layers, geometry.heads, -1)
        leaving = late_LHS[:, :, sinks:t] == t + 1
        gone, stays = leaving & early_LHS[:, :, sinks:t], leaving & ~early_LHS[:, :, sinks:t]
        for layer in range(geometry.layers):
            worst_gone = loss_LHS[layer][gone[layer]].max(initial=-1)
            assert worst_gone <= loss_LHS[layer:][stays[layer:]].min(initial=2)


def test_heatkv_plus_plans_the_largest_model_in_milliseconds() -> None:
    geometry = Geometry(40, 28, 128, ScaleSchedule.square([1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64]))
    scores = scores_of(geometry)
    plan(scores, 0.2, "heatkv+")
    seconds = []
    for budget in (0.05, 0.1, 0.2, 0.5):
        started = time.process_time()
        plan(scores, budget, "heatkv+")
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.1  # 0.02 on an idle core


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
