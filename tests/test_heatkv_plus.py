"""HeatKV+: one sequence of steps down, the cheapest of the fullest moment first, cut where the budget says."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peers import LONG, SINKS, scores_of
from strategies import geometries, ordinary_problem

from heatkv.budget import MIXED, cell_cost, cost_limit, least_budget, resident_cost, token_cost
from heatkv.cache.seam import ScheduleCache
from heatkv.models import bundled_folders, bundled_scores
from heatkv.policies import heatkv_plus, plan
from heatkv.policies.heatkv_plus import NOISE
from heatkv.scales import Geometry, ScaleSchedule
from heatkv.schedule import Schedule
from heatkv.scores import HeadScores


def one_at_a_time(scores: HeadScores, limit: int, levels: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The plan by its definition, every moment counted anew: what the sequence must agree with."""
    geometry = scores.geometry
    L, H, K = geometry.layers, geometry.heads, len(geometry.scales)
    assert scores.change_LHTS is not None and scores.rounding_LHTS is not None
    cost_FS = np.array([cell_cost(geometry, name) for name in levels])
    drop_at_LHS, level_LHS = np.full((L, H, K), K), np.zeros((L, H, K), int)

    def resident() -> np.ndarray:
        cost_LHS = cost_FS[level_LHS, np.arange(K)]
        return resident_cost(drop_at_LHS, cost_LHS, geometry.scales, token_cost(geometry, levels[0]))

    def loss(cell: tuple[int, int, int], level: int, drop: int) -> float:
        i, head, s = cell
        rounded, gone = scores.rounding_LHTS[i, head, :, s], scores.change_LHTS[i, head, :, s]
        return (NOISE[levels[level]] if len(levels) > 1 else 0) * rounded[:drop].sum() + gone[drop:].sum()

    while (resident_TL := resident()[: None if geometry.scales.by_line else K - 1]).max(initial=0) > limit:
        t, layer = np.unravel_index(resident_TL.argmax(), resident_TL.shape)
        best: tuple[float, tuple[int, int, int], int, int] = (np.inf, (0, 0, 0), 0, 0)
        for cell in np.ndindex(L, H, K - 1):
            at = int(t) if geometry.scales.by_line else int(t) + 1 if cell[0] <= layer else int(t)
            drop, level = drop_at_LHS[cell], level_LHS[cell]
            if not cell[2] < at < drop:
                continue
            now, cost = loss(cell, level, drop), cost_FS[:, cell[2]]
            for lower in range(level + 1, len(levels)):
                if cost[lower] < cost[level]:
                    rate = (loss(cell, lower, drop) - now) / (cost[level] - cost[lower])
                    best = min(best, (rate, cell, drop, lower))
            best = min(best, ((loss(cell, level, at) - now) / cost[level], cell, at, level))
        drop_at_LHS[best[1]], level_LHS[best[1]] = best[2:]
    return drop_at_LHS, level_LHS


@pytest.mark.parametrize("scales", [ScaleSchedule.square((1, 2, 3, 4)), ScaleSchedule.lines(3, 4, 8)], ids=str)
@pytest.mark.parametrize("levels", [("compute",), ("int8", "int4", "int2")])
@pytest.mark.parametrize("seed", range(3))
def test_the_plan_is_the_one_of_its_definition(
    seed: int, levels: tuple[str, ...], scales: ScaleSchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heatkv_plus, "QUANTUM", 0)
    scores = scores_of(Geometry(3, 2, 8, scales), seed)
    storage = MIXED if len(levels) > 1 else levels[0]
    for budget in (0.5, 0.3) if scales.by_line else (0.5, 0.3, 0.1):
        schedule = plan(scores, budget, "heatkv+", storage=storage)
        drop_at_LHS, level_LHS = one_at_a_time(scores, cost_limit(budget, scores.geometry, storage), levels)
        assert (schedule.drop_at_LHS == drop_at_LHS).all()
        assert schedule.stored_as_LHS is None or (schedule.stored_as_LHS - 1 == level_LHS).all()


@pytest.mark.parametrize("name", ["heatkv+", "heatkv+16"])
@given(geometry=geometries, seed=st.integers(0, 99), shares=st.lists(st.floats(0.01, 1), min_size=2, max_size=4))
def test_plans_are_nested_in_the_budget_and_use_it(
    name: str, geometry: Geometry, seed: int, shares: list[float]
) -> None:
    scores, least = scores_of(geometry, seed), least_budget(geometry.scales, 0)
    budgets = [least + share * (1 - least) for share in shares]
    plans = [plan(scores, budget, name) for budget in sorted(budgets)]
    for small, large in itertools.pairwise(plans):
        assert (small.drop_at_LHS <= large.drop_at_LHS).all()
        assert (small.formats_LHS >= large.formats_LHS).all()  # as many bits, or more
    tokens = geometry.full_peak_tokens
    for schedule in plans:
        largest_cell = max(geometry.scales.tokens[:-1], default=0) / max(1, tokens)
        reachable = schedule.budget if name == "heatkv+16" else min(schedule.budget, plan(scores, 1.0, name).peak_share)
        assert reachable - schedule.peak_share <= heatkv_plus.QUANTUM + largest_cell + 1 / max(1, tokens)


def test_what_reads_most_keeps_most_bits_and_what_loses_nothing_goes_first() -> None:
    """Three heads alike but for what they lose: rounding hardly anything, a lot, and nothing even without its cells."""
    scores, K = scores_of(LONG), len(LONG.scales)
    change_LHTS = np.tile(np.tril(np.ones((K, K)), -1), (4, 4, 1, 1))
    rounding_LHTS = 1e-5 * change_LHTS
    rounding_LHTS[:, 1] *= 1000
    change_LHTS[:, 2] = rounding_LHTS[:, 2] = 0
    free = HeadScores("toy", LONG, scores.mass_sum_LHTS, (), 1, {}, change_LHTS, None, rounding_LHTS)
    schedule = plan(free, 0.2, "heatkv+")
    assert (schedule.formats_LHS[:, 0, : K - 1] > schedule.formats_LHS[:, 1, : K - 1]).any()
    assert (schedule.formats_LHS[:, 0, : K - 1] >= schedule.formats_LHS[:, 1, : K - 1]).all()
    assert not schedule.keep(K - 1)[:, 2, : K - 1].any() and schedule.keep(K - 1)[:, :2].all()


def test_less_of_the_output_is_lost_than_with_heatkv_at_the_same_budget() -> None:
    for seed in range(12):
        problem = ordinary_problem(seed)
        scores = scores_of(problem.geometry, seed)
        change_LHTS = scores.change_LHTS
        assert change_LHTS is not None
        lost = {}
        for name in ("heatkv", "heatkv+16"):
            schedule = plan(scores, problem.budget, name, problem.sink_scales)
            K = len(problem.geometry.scales)
            lost[name] = sum((change_LHTS[:, :, t, :t] * ~schedule.keep(t)[:, :, :t]).sum() for t in range(K))
        assert lost["heatkv+16"] < lost["heatkv"]


def test_cells_of_equal_worth_stay_where_they_take_the_fewest_tokens() -> None:
    K = len(LONG.scales)
    mass_LHTS = np.tile(np.tril(np.ones((K, K))) / np.arange(1, K + 1)[:, None], (4, 4, 1, 1))
    change_LHTS = np.tile(np.tril(np.ones((K, K)), -1), (4, 4, 1, 1))
    scores = HeadScores("toy", LONG, mass_LHTS, (), 1, {}, change_LHTS)
    kept_S = plan(scores, 0.3, "heatkv+16").keep(K - 1).sum((0, 1))
    assert kept_S[:4].tolist() == [16] * 4 and (np.diff(kept_S[:6]) <= 0).all() and kept_S[5] < 16


def test_first_scales_go_where_they_do_not_matter() -> None:
    scores = scores_of(LONG)
    change_LHTS = np.array(scores.change_LHTS)
    change_LHTS[:, :, 1:, 0] = 1
    change_LHTS[0, :, :, 0] = 0
    free = HeadScores("toy", LONG, scores.mass_sum_LHTS, (), 1, {}, change_LHTS)
    schedule = plan(free, 0.5, "heatkv+16", SINKS)
    assert schedule.sink_scales == 0
    assert not schedule.keep(6)[0, :, 0].any() and schedule.keep(6)[1:, :, 0].all()


def test_fewer_bits_make_room_for_more_cells() -> None:
    scores = scores_of(LONG)
    plans = [plan(scores, 0.2, "heatkv+", storage=storage) for storage in ("compute", "int8", None)]
    assert [schedule.storage for schedule in plans] == ["compute", "int8", MIXED]
    assert plans[0].peak_tokens < plans[1].peak_tokens < plans[2].peak_tokens
    assert all(0.18 < schedule.peak_share <= 0.2 for schedule in plans)
    assert (plan(scores, 0.2, "heatkv+16").drop_at_LHS == plans[0].drop_at_LHS).all()


def test_scores_that_do_not_know_rounding_are_planned_in_eight_bits() -> None:
    """Of files of before it was measured."""
    known = scores_of(LONG)
    before = HeadScores("toy", LONG, known.mass_sum_LHTS, (), 1, {}, known.change_sum_LHTS)
    assert plan(before, 0.2, "heatkv+").storage == "int8"
    with pytest.raises(ValueError, match="with a cell in fewer bits; calibrate again"):
        plan(before, 0.2, "heatkv+", storage=MIXED)


@pytest.mark.parametrize("model", bundled_folders())
def test_the_scores_of_the_bundled_models_know_rounding(model: str) -> None:
    schedule = plan(bundled_scores(model), 0.125, "heatkv+")
    assert schedule.storage == MIXED and schedule.peak_share <= 0.125
    assert len(np.unique(schedule.formats_LHS)) == 3


def test_budgets_far_below_the_sinks_of_other_policies_can_be_met() -> None:
    assert plan(scores_of(LONG), 0.01, "heatkv+").peak_share <= 0.01


def test_a_schedule_of_the_first_heatkv_plus_still_runs_in_the_bytes_that_it_planned() -> None:
    """All its cells are in 8 bits, and its file knows of no formats. Written by the code of before there were any."""
    schedule = Schedule.load(Path(__file__).parent / "data" / "heatkv_plus_first.json")
    assert (schedule.policy, schedule.storage, schedule.budget) == ("heatkv+", "int8", 0.3)
    assert Schedule.from_json(schedule.to_json()) == schedule
    cache = ScheduleCache(schedule.geometry, schedule)
    for tokens in schedule.geometry.scales.tokens:
        for layer in range(schedule.geometry.layers):
            assert cache.attend(layer, *torch.randn(3, 4, 2, tokens, 8)).isfinite().all()
            assert cache.allocated_bytes <= cache.peak_bytes
    # A token takes 8 bytes and 2 of range, of keys and of values; so do the 4 rows.
    assert cache.peak_bytes == 4 * 2 * 10 * schedule.peak_tokens == schedule.peak_bytes(4, 4)


def test_scores_of_attention_alone_are_refused() -> None:
    scores = scores_of(LONG)
    plain = HeadScores("toy", LONG, scores.mass_sum_LHTS, (), 1)
    with pytest.raises(ValueError, match="do not say how outputs change without a cell; calibrate again"):
        plan(plain, 0.5, "heatkv+")


def test_after_the_first_plan_of_some_scores_others_are_lookups() -> None:
    """The sequence does not depend on the budget: a slider asks for a hundred plans."""
    scores = scores_of(LONG)
    heatkv_plus.steps_down.cache_clear()
    for budget in (0.1, 0.4, 0.8):
        plan(scores, budget, "heatkv+")
    assert heatkv_plus.steps_down.cache_info().misses == 1
