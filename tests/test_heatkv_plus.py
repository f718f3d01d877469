"""HeatKV+: one sequence of evictions, the cheapest cell of the fullest moment first, cut where the budget says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import LONG, SINKS, scores_of
from strategies import geometries, ordinary_problem

from heatkv.policies import heatkv_plus, plan
from heatkv.scales import Geometry, ScaleSchedule
from heatkv.schedule import least_budget, resident_tokens, token_cost
from heatkv.scores import HeadScores


def one_at_a_time(scores: HeadScores, limit: int) -> np.ndarray:
    """The plan by its definition, every moment counted anew: what the sequence must agree with."""
    geometry = scores.geometry
    L, H, K = geometry.layers, geometry.heads, len(geometry.scales)
    assert scores.change_LHTS is not None
    worth_LHTS = scores.change_LHTS / np.array(geometry.scales.tokens)
    drop_at_LHS = np.full((L, H, K), K)
    while (resident_TL := resident_tokens(drop_at_LHS, geometry.scales)[: K - 1]).max(initial=0) > limit:
        t, layer = np.unravel_index(resident_TL.argmax(), resident_TL.shape)
        best = (np.inf, (0, 0, 0), 0)
        for cell in np.ndindex(L, H, K - 1):
            at = int(t) + 1 if cell[0] <= layer else int(t)
            if cell[2] < at < drop_at_LHS[cell]:
                loss = worth_LHTS[cell[0], cell[1], at : drop_at_LHS[cell], cell[2]].sum()
                best = min(best, (loss, cell, at))
        drop_at_LHS[best[1]] = best[2]
    return drop_at_LHS


@pytest.mark.parametrize("seed", range(4))
def test_the_plan_is_the_one_of_its_definition(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heatkv_plus, "QUANTUM", 0)
    scores = scores_of(Geometry(3, 2, 8, ScaleSchedule.square((1, 2, 3, 4))), seed)
    for budget in (0.7, 0.4, 0.1):
        schedule = plan(scores, budget, "heatkv+16")
        assert (schedule.drop_at_LHS == one_at_a_time(scores, int(budget * scores.geometry.full_peak_tokens))).all()


@given(geometry=geometries, seed=st.integers(0, 99), shares=st.lists(st.floats(0.01, 1), min_size=2, max_size=4))
def test_plans_are_nested_in_the_budget_and_use_it(geometry: Geometry, seed: int, shares: list[float]) -> None:
    scores, least = scores_of(geometry, seed), least_budget(geometry.scales, 0)
    budgets = [least + share * (1 - least) for share in shares]
    plans = [plan(scores, budget, "heatkv+16") for budget in sorted(budgets)]
    for small, large in itertools.pairwise(plans):
        assert (small.drop_at_LHS <= large.drop_at_LHS).all()
    largest_cell = max(geometry.scales.tokens[:-1], default=0)
    for schedule in plans:
        quantum = heatkv_plus.QUANTUM * geometry.full_peak_tokens
        spare = schedule.budget * geometry.full_peak_tokens - schedule.peak_tokens
        assert spare <= 1 + quantum + largest_cell


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


def test_eight_bits_make_room_for_nearly_twice_the_tokens() -> None:
    scores = scores_of(LONG)
    compact, plain = (plan(scores, 0.3, name) for name in ("heatkv+", "heatkv+16"))
    assert compact.storage == "int8" and plain.storage == "compute"
    assert token_cost("int8", LONG) == (8 + 2) / 16
    assert plain.peak_tokens < compact.peak_tokens <= 0.3 * LONG.full_peak_tokens * 16 / 10
    assert 0.28 < compact.peak_share <= 0.3 and plain.peak_share <= 0.3


def test_budgets_far_below_the_sinks_of_other_policies_can_be_met() -> None:
    assert plan(scores_of(LONG), 0.01, "heatkv+").peak_share <= 0.01


def test_scores_of_attention_alone_are_refused() -> None:
    scores = scores_of(LONG)
    plain = HeadScores("toy", LONG, scores.mass_sum_LHTS, (), 1)
    with pytest.raises(ValueError, match="do not say how outputs change without a cell; calibrate again"):
        plan(plain, 0.5, "heatkv+")


def test_after_the_first_plan_of_some_scores_others_are_lookups() -> None:
    """The sequence does not depend on the budget: a slider asks for a hundred plans."""
    scores = scores_of(LONG)
    heatkv_plus.evictions.cache_clear()
    for budget in (0.1, 0.4, 0.8):
        plan(scores, budget, "heatkv+")
    assert heatkv_plus.evictions.cache_info().misses == 1
