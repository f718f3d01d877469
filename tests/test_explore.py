"""What the explorer draws is what the library does: the same cells, the same bytes, attention that adds up."""

from __future__ import annotations

import base64
import json
import time

import numpy as np
import numpy.typing as npt
import pytest
from peers import scores_of as measured_scores
from strategies import random_scores

from heatkv import plan
from heatkv.budget import least_budget
from heatkv.policies import REGISTRY
from heatkv.scales import Geometry, ScaleSchedule
from heatkv.schedule import Schedule, ScheduleError
from heatkv.scores import HeadScores
from heatkv.views import explore
from heatkv.views.explore import GROUPS, TYPES, attention_view, budget_percents, budget_table, head_profiles

STATIC = [name for name, policy in REGISTRY.items() if policy.static]
UNEVEN = Geometry(3, 5, 8, ScaleSchedule(((1, 1), (1, 2), (3, 2), (3, 4), (5, 4), (6, 6))))
INFINITY_8B = Geometry(40, 28, 128, ScaleSchedule.square((1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)))


def drawn_cells(sent: dict, at: int) -> npt.NDArray[np.bool_]:
    """The cells that a browser unpacks from what it is sent, in the arithmetic that the browser uses."""
    cached = len(sent["sizes"]) - 1
    prunable = cached - sent["sinkScales"]
    bits = base64.b64decode(sent["kept"])
    stride = -(-sent["layers"] * sent["heads"] * prunable // 8)
    cells = np.ones((sent["layers"], sent["heads"], cached), bool)
    for layer, head, s in np.ndindex(sent["layers"], sent["heads"], prunable):
        bit = (layer * sent["heads"] + head) * prunable + s
        cells[layer, head, sent["sinkScales"] + s] = bits[at * stride + (bit >> 3)] >> (bit & 7) & 1
    return cells


@pytest.mark.parametrize("policy", STATIC)
def test_the_browser_is_sent_the_cells_and_bytes_of_the_plan_at_every_budget(policy: str) -> None:
    scores = measured_scores(UNEVEN, seed=1)
    percents = budget_percents(UNEVEN.scales, 2)
    sent = json.loads(json.dumps(budget_table(lambda share: plan(scores, share, policy, 2), percents).to_json()))
    resident = np.frombuffer(base64.b64decode(sent["resident"]), "<u4").reshape(len(percents), -1)
    for at, percent in enumerate(percents):
        schedule = plan(scores, percent / 100, policy, 2)
        assert (drawn_cells(sent, at) == schedule.keep(5)[:, :, :5]).all(), f"{percent} %"
        expected_TL = schedule.resident_bytes_TL if schedule.encoded else schedule.resident_tokens_TL
        assert sent["storage"] == schedule.storage
        assert (resident[at] == expected_TL.max(axis=1)).all()
        assert resident[at].max() == (schedule.peak_bytes(1, 2) if schedule.encoded else schedule.peak_tokens)


def test_a_policy_that_is_not_nested_is_drawn_as_it_is() -> None:
    scores = random_scores(UNEVEN, seed=2)
    percents = budget_percents(UNEVEN.scales, 2)
    schedules = {percent: plan(scores, percent / 100, "random", 2, seed=percent) for percent in percents}
    table = budget_table(lambda share: schedules[round(100 * share)], percents)
    grows = (table.kept_PLHS[:-1] <= table.kept_PLHS[1:]).all()
    assert not grows, "these plans should not be nested, or the test shows nothing"
    for at, percent in enumerate(percents):
        assert (drawn_cells(table.to_json(), at) == schedules[percent].keep(5)[:, :, :5]).all()


def test_the_full_cache_is_the_last_step_and_the_base_of_every_share() -> None:
    table = budget_table(lambda share: plan(random_scores(UNEVEN, 3), share, sink_scales=2), [50, 100])
    assert table.kept_PLHS[-1].all()
    assert table.to_json()["fullResident"] == table.resident_PT[-1].tolist()
    assert table.peak_P[-1] == UNEVEN.full_peak_tokens


@pytest.mark.parametrize("sides", [(1, 2, 3, 4, 5, 6, 7, 8), (1, 2, 4, 6, 8, 12, 16), (1, 2, 3, 4), (1, 64)])
def test_the_first_budget_is_the_least_feasible_percent(sides: tuple[int, ...]) -> None:
    scales = ScaleSchedule.square(sides)
    sinks = min(3, len(sides) - 1)
    first = budget_percents(scales, sinks)[0]
    scores = random_scores(Geometry(2, 2, 8, scales), 0)
    assert plan(scores, first / 100, sink_scales=sinks).budget >= least_budget(scales, sinks) - 1e-9
    if first > 1:
        with pytest.raises(ScheduleError):
            plan(scores, (first - 1) / 100, sink_scales=sinks)


def test_an_uploaded_schedule_is_a_table_with_one_budget() -> None:
    schedule = plan(random_scores(UNEVEN, 4), 0.6, sink_scales=2)
    table = explore.schedule_table(schedule)
    assert table.percents == (60.0,)
    assert (drawn_cells(table.to_json(), 0) == schedule.keep(5)[:, :, :5]).all()
    full = explore.schedule_table(Schedule.full(UNEVEN, "toy"))
    assert drawn_cells(full.to_json(), 0).all()  # every cached scale a sink: nothing is prunable


def test_the_largest_published_model_fits_in_some_200_kilobytes_and_two_seconds() -> None:
    scores = random_scores(INFINITY_8B, 0)
    started = time.process_time()
    table = budget_table(lambda share: plan(scores, share), budget_percents(INFINITY_8B.scales, 3))
    sent = json.dumps({**table.to_json(), **explore.cells_json(head_profiles(scores, 3))})
    assert len(sent) < 230_000
    assert time.process_time() - started < 4  # 1.2 s where it was measured; slow machines get some room


def scores_of(geometry: Geometry, rows: dict[int, npt.NDArray[np.float64]]) -> HeadScores:
    """Scores whose head h attends as ``rows[h]`` says, ``(targets, sources)``."""
    mass = np.stack([rows[head] for head in range(geometry.heads)])[None]
    return HeadScores("toy", geometry, mass, (), 1)


def test_heads_are_named_after_what_they_favour() -> None:
    K = 7
    scales = ScaleSchedule.square(range(1, K + 1))
    even = np.tril(np.tile(np.array(scales.tokens, float), (K, 1)))
    even /= even.sum(1, keepdims=True)

    def towards(pick: npt.NDArray[np.float64], strength: float) -> npt.NDArray[np.float64]:
        return (1 - strength) * even + strength * pick

    own = np.eye(K)
    previous = np.eye(K, k=-1)
    previous[0, 0] = 1
    first = np.zeros((K, K))
    first[:, 0] = 1
    between = np.where(np.arange(K)[:, None] >= 5, np.eye(K)[3], first)
    rows = {0: own, 1: previous, 2: between, 3: first, 4: even}
    geometry = Geometry(1, 5, 8, scales)
    strong = head_profiles(scores_of(geometry, {h: towards(row, 0.8) for h, row in rows.items()}), 3)
    assert [TYPES[i] for i in strong.type_LH[0]] == ["itself", "previous", "between", "sinks", "spread"]
    weak = head_profiles(scores_of(geometry, {h: towards(row, 0.05) for h, row in rows.items()}), 3)
    assert {TYPES[i] for i in weak.type_LH[0]} == {"spread"}, "a slight preference is no type"
    assert strong.showcase[1] in (1, 2, 3), "the head to show first looks back"


def test_where_a_head_looks_adds_up_and_agrees_with_s_cas() -> None:
    scores = random_scores(UNEVEN, 5, count=3)
    found = head_profiles(scores, 2)
    assert found.share_LHG.shape == (3, 5, len(GROUPS))
    np.testing.assert_allclose(found.share_LHG.sum(-1), 1)
    np.testing.assert_allclose(found.even_G.sum(), 1)
    np.testing.assert_allclose(found.cell_LHS[:, :, 2:], scores.scas(2)[:, :, 2:-1])
    assert found.prompts == 3


@pytest.mark.parametrize(("scales", "sinks"), [(2, 1), (2, 0), (3, 2), (5, 4), (5, 0)])
def test_few_scales_and_any_number_of_sinks_still_add_up(scales: int, sinks: int) -> None:
    found = head_profiles(random_scores(Geometry(2, 2, 8, ScaleSchedule.square(range(1, scales + 1))), 0), sinks)
    np.testing.assert_allclose(found.share_LHG.sum(-1), 1)


def test_orders_alone_give_ranks() -> None:
    scores = random_scores(UNEVEN, 6)
    orders = scores.orders(2)
    ranks = explore.rank_share(orders, UNEVEN, 2)
    assert (ranks[:, :, :2] == 1).all()
    assert ranks.reshape(15, -1)[orders[0, 0], 2] == 0 and ranks.reshape(15, -1)[orders[0, -1], 2] == 1
    assert explore.cells_json(None, ranks)["kind"] == "rank"


def attention(scales: ScaleSchedule, every: int = 1) -> npt.NDArray[np.float32]:
    tokens = scales.tokens[-1]
    found = np.random.default_rng(0).random((len(range(0, tokens, every)), scales.total)).astype(np.float32)
    return found / found.sum(1, keepdims=True)


def test_small_maps_are_shown_token_by_token() -> None:
    scales = ScaleSchedule(((1, 1), (2, 3), (4, 6)))
    found = attention(scales)
    view = attention_view(found, scales)
    assert view.queries == (4, 6) and view.sizes == scales.sizes
    np.testing.assert_allclose(view.map_QC[0], found.mean(0), rtol=1e-5)
    np.testing.assert_allclose(view.map_QC[1:], found, rtol=1e-5)
    np.testing.assert_allclose(view.share_QS.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("every", [1, 7])
def test_large_maps_are_pooled_without_losing_attention(every: int) -> None:
    scales = ScaleSchedule(((1, 1), (9, 5), (40, 24)))
    found = attention(scales, every)
    view = attention_view(found, scales)
    assert max(view.queries) <= 16 and max(max(size) for size in view.sizes) <= 16
    assert len(view.map_QC) == 1 + view.queries[0] * view.queries[1]
    np.testing.assert_allclose(view.map_QC.sum(1), 1, rtol=1e-5)
    for s, (start, end) in enumerate(scales.bounds):
        np.testing.assert_allclose(view.share_QS[0, s], found[:, start:end].sum(1).mean(), rtol=1e-5)
    sent = view.to_json()
    assert len(base64.b64decode(sent["maps"])) == view.map_QC.size
    assert len(base64.b64decode(sent["shares"])) == 2 * view.share_QS.size
