"""Policies keep to the budget they are given, and HeatKV is the greedy schedule that the paper describes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from peers import scores_of
from strategies import (
    Problem,
    geometries,
    lines_only,
    ordinary_problem,
    problems,
    random_orders,
    random_scores,
    scales_only,
)

from heatkv import policies
from heatkv.budget import counted, counted_share, least_budget, token_limit
from heatkv.formats import FORMATS
from heatkv.policies import REGISTRY, plan
from heatkv.policies.base import PlanInput, Policy
from heatkv.policies.heatkv import removals
from heatkv.scales import Geometry, ScaleSchedule
from heatkv.schedule import Schedule, ScheduleError
from heatkv.scores import OrdersError, ScoresError

STATIC = [name for name, policy in REGISTRY.items() if policy.static]
SMALL = Geometry(3, 4, 8, ScaleSchedule(((1, 1), (1, 2), (3, 2), (3, 4), (5, 4), (6, 6))))


Cell = tuple[int, int, int]  # layer, head, source scale


def solve(problem: Problem, policy: str = "heatkv", budget: float | None = None) -> Schedule:
    calibration = problem.orders_SN
    if REGISTRY[policy].needs not in ("orders", "nothing"):
        calibration = scores_of(problem.geometry, seed=int(problem.orders_SN[:, :1].sum()))
    return plan(
        calibration,
        problem.budget if budget is None else budget,
        policy,
        problem.sink_scales,
        model="toy",
        geometry=problem.geometry,
    )


def simulate(schedule: Schedule) -> list[int]:
    """Cached tokens after every layer of every scale, as a cache would count them: one cell at a time."""
    geometry, drop_at_LHS = schedule.geometry, schedule.drop_at_LHS
    tokens, K = geometry.scales.tokens, len(geometry.scales)
    held: set[Cell] = set()
    sizes = []
    if geometry.scales.by_line:
        return simulate_lines(schedule)
    for t in range(K - 1):
        for layer in range(geometry.layers):
            for head in range(geometry.heads):
                held -= {(layer, head, s) for s in range(t) if drop_at_LHS[layer, head, s] == t + 1}
                if drop_at_LHS[layer, head, t] > t + 1:
                    held.add((layer, head, t))
            sizes.append(sum(tokens[s] for *_, s in held))
    return sizes


def simulate_lines(schedule: Schedule) -> list[int]:
    """The same after every layer of the last token of every line, the condition's call first; one token at a time."""
    geometry, drop_at_LHS = schedule.geometry, schedule.drop_at_LHS
    tokens, sizes = geometry.scales.tokens, []
    held: list[tuple[int, int, int]] = []  # a token of (layer, head, source)
    for t in range(len(tokens)):
        held = [(i, h, s) for i, h, s in held if drop_at_LHS[i, h, s] > t]
        for n in range(geometry.scales.tokens[t] // geometry.scales.tokens_a_call(t)):
            for layer in range(geometry.layers):
                if t:
                    held += [(layer, head, t) for head in range(geometry.heads)]
                else:
                    keep = [head for head in range(geometry.heads) if drop_at_LHS[layer, head, 0] > 1]
                    held += [(layer, head, 0) for head in keep for _ in range(tokens[0])]
                if n == geometry.scales.tokens[t] // geometry.scales.tokens_a_call(t) - 1:
                    sizes.append(len(held))
    return sizes


def lines_by_hand(problem: Problem) -> npt.NDArray[np.int64]:
    """HeatKV on lines in plain Python: what does not fit beside a line goes before it, in equally many heads."""
    geometry, sinks = problem.geometry, problem.sink_scales
    tokens, K = geometry.scales.tokens, len(geometry.scales)
    drop_at_NS = np.full((geometry.head_count, K), K)
    dropped = 0
    for t in range(sinks + 1, K):
        budget = problem.budget * geometry.head_count * geometry.scales.full_peak + 1e-6

        def held(count: int, t: int = t) -> int:
            kept = sum(tokens[:sinks]) * geometry.head_count + sum(tokens[sinks:t]) * (geometry.head_count - count)
            return kept + tokens[t] * geometry.head_count

        while held(dropped) > budget:
            dropped += 1
        for s in range(sinks, t):
            for slot in problem.orders_SN[s - sinks][:dropped]:
                drop_at_NS[slot, s] = min(drop_at_NS[slot, s], t)
    return drop_at_NS.reshape(geometry.layers, geometry.heads, K)


@given(problem=problems(lines_only))
def test_on_lines_heatkv_drops_as_few_heads_as_make_room_for_each_line(problem: Problem) -> None:
    assert (solve(problem).drop_at_LHS == lines_by_hand(problem)).all()


def greedy_by_hand(problem: Problem) -> npt.NDArray[np.int64]:
    """The paper's strict greedy schedule one cell and one layer at a time, in plain Python."""
    geometry, sinks = problem.geometry, problem.sink_scales
    L, H, K = geometry.layers, geometry.heads, len(geometry.scales)
    tokens, full_peak = geometry.scales.tokens, geometry.scales.full_peak
    threshold = problem.budget * geometry.head_count * full_peak + 1e-6  # doubles multiply so closely
    drop_at_LHS = np.full((L, H, K), K, np.int64)
    gone: set[Cell] = set()
    for t in range(sinks, K - 1):
        incoming = geometry.scales.bounds[t + 1][0]
        over = incoming - problem.budget * full_peak
        count = int(np.ceil(geometry.head_count * over / (incoming - sum(tokens[:sinks])))) if over > 0 else 0
        rank_of = {
            (int(slot) // H, int(slot) % H, s): rank
            for s in range(sinks, t + 1)
            for rank, slot in enumerate(problem.orders_SN[s - sinks][:count])
        }
        leaving = rank_of.keys() - gone
        queue = sorted((c for c in leaving if c[2] < t), key=lambda c, rank=rank_of: (-c[0], -c[2], rank[c]))  # type: ignore[misc]
        early: set[Cell] = set()
        for layer in range(L):
            written = {(i, h, s) for i in range(L) for h in range(H) for s in range(t + 1 if i <= layer else t)}
            held = written - gone - early - {cell for cell in leaving if cell[0] <= layer}
            while sum(tokens[s] for *_, s in held) > threshold:
                early.add(queue[0])
                held.discard(queue.pop(0))
        for cell in leaving:
            drop_at_LHS[cell] = t if cell in early else t + 1
        gone |= leaving
    return drop_at_LHS


@pytest.mark.parametrize("policy", STATIC)
@given(problem=problems())
def test_cache_never_exceeds_budget_after_any_layer(policy: str, problem: Problem) -> None:
    schedule = solve(problem, policy)
    if schedule.encoded:
        full_bytes = problem.geometry.kv_bytes(problem.geometry.full_peak_tokens, key_bytes=2, value_bytes=2)
        assert schedule.resident_bytes_TL.max() <= problem.budget * full_bytes + 1e-6
    else:
        assert max(simulate(schedule)) <= problem.budget * problem.geometry.full_peak_tokens + 1e-6
    by_line = problem.geometry.scales.by_line
    assert schedule.resident_tokens_TL[: None if by_line else -1].ravel().tolist() == simulate(schedule)


@pytest.mark.parametrize("policy", [name for name in STATIC if REGISTRY[name].sinks])
@given(problem=problems())
def test_sink_scales_are_never_dropped(policy: str, problem: Problem) -> None:
    schedule = solve(problem, policy)
    assert (schedule.drop_at_LHS[:, :, : problem.sink_scales] == len(problem.geometry.scales)).all()


@pytest.mark.parametrize("policy", STATIC)
@given(problem=problems())
def test_what_is_dropped_never_returns(policy: str, problem: Problem) -> None:
    schedule = solve(problem, policy)
    for t in range(1, len(problem.geometry.scales)):
        assert not (schedule.keep(t) & ~schedule.keep(t - 1))[:, :, :t].any()


@pytest.mark.parametrize("policy", STATIC)
@given(problem=problems(), share=st.floats(0, 1))
def test_a_larger_budget_keeps_all_that_a_smaller_one_keeps_at_the_last_scale(
    policy: str, problem: Problem, share: float
) -> None:
    larger = min(problem.budget + share * (1 - problem.budget), 1.0)
    last = len(problem.geometry.scales) - 1
    assert not (solve(problem, policy).keep(last) & ~solve(problem, policy, larger).keep(last)).any()


@pytest.mark.parametrize("policy", STATIC)
@given(problem=problems())
def test_full_budget_drops_nothing(policy: str, problem: Problem) -> None:
    schedule = solve(problem, policy, budget=1.0)
    assert (schedule.drop_at_LHS == len(problem.geometry.scales)).all()
    assert schedule.peak_tokens == problem.geometry.full_peak_tokens


@pytest.mark.parametrize("policy", STATIC)
@given(problem=problems())
def test_a_plan_is_a_function_of_its_input(policy: str, problem: Problem) -> None:
    assert solve(problem, policy) == solve(problem, policy)


@pytest.mark.parametrize("policy", STATIC)
@given(problem=problems())
def test_a_plan_survives_a_file(policy: str, problem: Problem) -> None:
    schedule = solve(problem, policy)
    assert Schedule.from_json(schedule.to_json()) == schedule


@pytest.mark.parametrize("seed", range(30))
def test_heatkv_is_the_greedy_schedule_done_by_hand(seed: int) -> None:
    problem = ordinary_problem(seed)
    assert (solve(problem).drop_at_LHS == greedy_by_hand(problem)).all()


@given(problem=problems(scales_only))
def test_heatkv_is_the_greedy_schedule_done_by_hand_in_odd_cases_too(problem: Problem) -> None:
    assert (solve(problem).drop_at_LHS == greedy_by_hand(problem)).all()


def test_the_ordinary_problems_are_pruned_early_at_several_layers() -> None:
    """Else the test above would prove little."""
    triggers = []
    for problem in map(ordinary_problem, range(30)):
        result = removals(problem.orders_SN, problem.budget, problem.geometry, problem.sink_scales)
        triggers.append(len(set(result.trigger_LHS[result.trigger_LHS >= 0].tolist())))
    assert np.mean([n >= 2 for n in triggers]) > 0.4


@given(problem=problems())
def test_heatkv_drops_every_prunable_scale_in_equally_many_heads(problem: Problem) -> None:
    prunable = solve(problem).removed_TS[-1, problem.sink_scales : -1]
    assert len(set(prunable.tolist())) <= 1


@given(problem=problems())
def test_heatkv_drops_the_lowest_ranks_of_every_scale(problem: Problem) -> None:
    schedule = solve(problem)
    for i, slots in enumerate(problem.orders_SN):
        s, last = problem.sink_scales + i, len(problem.geometry.scales) - 1
        kept = schedule.keep(last)[:, :, s].ravel()[slots]
        assert (np.sort(kept) == kept).all(), f"source scale {s}"


@given(problem=problems())
def test_early_pruning_goes_on_only_while_the_cache_overflows(problem: Problem) -> None:
    """At the last layer that prunes early, what had gone before it was not enough."""
    result = removals(problem.orders_SN, problem.budget, problem.geometry, problem.sink_scales)
    limit = problem.budget * problem.geometry.full_peak_tokens
    tokens = np.array(problem.geometry.scales.tokens)
    for t in range(1, len(tokens) - 1):
        early = (result.trigger_LHS >= 0) & (result.late_LHS == t + 1)
        if not early.any():
            continue
        trigger = result.trigger_LHS[early].max()
        layer = np.arange(problem.geometry.layers)[:, None, None]
        source = np.arange(len(tokens))
        held = np.where(
            layer <= trigger, (result.late_LHS > t + 1) & (source <= t), (result.late_LHS > t) & (source < t)
        )
        assert (held & ~(early & (result.trigger_LHS < trigger))).sum((0, 1)) @ tokens > limit


@given(geometry=scales_only, data=st.data())
def test_the_least_budget_is_feasible_and_keeps_only_the_sinks(geometry: Geometry, data: st.DataObject) -> None:
    sinks = data.draw(st.integers(1, len(geometry.scales) - 1))
    least = least_budget(geometry.scales, sinks)
    for budget in (least, float(f"{least:.12f}")):  # exactly, and as messages print it
        schedule = plan(random_orders(geometry, sinks, 0), budget, "heatkv", sinks, model="toy", geometry=geometry)
        assert (schedule.keep(len(geometry.scales) - 1)[:, :, sinks:-1]).sum() == 0
        assert schedule.peak_tokens == geometry.head_count * sum(geometry.scales.tokens[:sinks])


@given(geometry=lines_only, data=st.data())
def test_the_least_budget_of_lines_has_room_for_the_sinks_and_a_line(geometry: Geometry, data: st.DataObject) -> None:
    sinks = data.draw(st.integers(0, len(geometry.scales) - 1))
    least = least_budget(geometry.scales, sinks)
    schedule = plan(random_orders(geometry, sinks, 0), least, "heatkv", sinks, model="toy", geometry=geometry)
    assert schedule.peak_tokens == round(least * geometry.full_peak_tokens)


@pytest.mark.parametrize(
    ("tokens", "layers", "heads", "budget"),
    [
        ((30, 2, 55, 43, 19, 1), 1, 5, 30 / 149),  # the least budget; of 745 it is 149.99999999999997
        ((25, 52, 48, 37), 6, 1, 0.6),  # of 750 it is 449.99999999999994
        ((25, 31, 1, 19), 2, 6, 0.6),
        ((37, 6, 17, 26), 3, 2, 0.7),
    ],
)
def test_rounding_of_the_budget_costs_no_token(tokens: tuple[int, ...], layers: int, heads: int, budget: float) -> None:
    """The exact product is a whole number of tokens, and the cache may hold that many."""
    geometry = Geometry(layers, heads, 8, ScaleSchedule(tuple((1, n) for n in tokens)))
    assert token_limit(budget, geometry) == round(budget * geometry.full_peak_tokens)
    for seed in range(10):
        problem = Problem(geometry, 1, budget, random_orders(geometry, 1, seed))
        assert (solve(problem).drop_at_LHS == greedy_by_hand(problem)).all()


@pytest.mark.parametrize("storage", list(FORMATS))
@pytest.mark.parametrize("name", [name for name, policy in REGISTRY.items() if policy.drop_at and policy.sinks])
def test_the_least_budget_as_printed_is_feasible_in_every_storage(name: str, storage: str) -> None:
    scales = ScaleSchedule.square([1, 2, 3, 4, 5, 6, 8, 10, 12, 16])
    for geometry in (Geometry(8, 8, 32, scales), Geometry(3, 5, 16, ScaleSchedule.lines(4, 6, 5))):
        for sinks in (1, 2, 3, 5):
            least = least_budget(counted(geometry, storage).scales, sinks) * counted_share(geometry, storage)
            for budget in (least, float(f"{least:.12f}")):
                schedule = plan(
                    scores_of(geometry), budget, name, sinks, model="toy", geometry=geometry, storage=storage
                )
                assert schedule.peak_share == pytest.approx(least)


@pytest.mark.parametrize(
    "asked", ["line-ar:recent=99999999999999999999", "ams:extra=-99999999999", "snapkv:kernel=2000000"]
)
def test_options_out_of_proportion_are_refused_before_anything_runs(asked: str) -> None:
    policy, options = policies.variant(asked)
    geometry = Geometry(2, 2, 8, ScaleSchedule.lines(2, 4, 4))
    with pytest.raises(ValueError, match="it can be 1048576 at most"):
        policies.cache_factory(policy.name, geometry, 0.6, scores_of(geometry), **options)


@pytest.mark.parametrize("name", ["heatkv", "headkv"])
def test_scores_of_another_model_make_no_cache(name: str) -> None:
    geometry = Geometry(2, 2, 8, ScaleSchedule.square([1, 2, 3, 4]))
    with pytest.raises(ValueError, match="these scores are of toy, not of pocket"):
        policies.cache_factory(name, geometry, 0.6, scores_of(geometry), model="pocket")


def test_the_least_budget_of_a_large_model_is_feasible_as_printed() -> None:
    geometry = Geometry(40, 28, 128, ScaleSchedule.square([1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64]))
    schedule = plan(None, 0.003268482490, "random", model="infinity-8b", geometry=geometry)
    assert schedule.peak_tokens == 1120 * 21


@given(geometry=geometries, data=st.data())
def test_a_budget_below_the_sinks_is_refused_with_the_least_one(geometry: Geometry, data: st.DataObject) -> None:
    sinks = data.draw(st.integers(1, len(geometry.scales) - 1))
    budget = least_budget(geometry.scales, sinks) * data.draw(st.floats(1e-6, 0.999))
    with pytest.raises(ScheduleError, match=f"below the least feasible 0?.* for toy with {sinks} sink scales"):
        plan(random_orders(geometry, sinks, 0), budget, "heatkv", sinks, model="toy", geometry=geometry)


@example(budget=float("nan"))
@example(budget=float("inf"))
@example(budget=-0.1)
@example(budget=0.0)
@example(budget=1.0000001)
@example(budget=True)
@example(budget="0.5")
@example(budget=None)
@given(budget=st.floats(max_value=0) | st.floats(min_value=1, exclude_min=True))
def test_a_budget_that_is_no_share_is_refused(budget: float) -> None:
    with pytest.raises(ScheduleError, match="not a share of the full cache's peak"):
        plan(random_orders(SMALL, 3, 0), budget, model="toy", geometry=SMALL)


@pytest.mark.parametrize("sinks", [-1, 6, 7, True, 1.5])
def test_sink_scales_that_the_model_does_not_have_are_refused(sinks: int) -> None:
    with pytest.raises(ScheduleError, match="whole number from 0 to 5"):
        plan(None, 0.5, "random", sinks, model="toy", geometry=SMALL)


def test_a_model_of_one_scale_has_nothing_to_drop() -> None:
    geometry = Geometry(2, 2, 8, ScaleSchedule.square([4]))
    assert plan(None, 0.1, "random", 0, model="toy", geometry=geometry).peak_tokens == 0


def test_a_model_of_fewer_scales_than_there_are_sinks_keeps_all_but_the_last() -> None:
    geometry = Geometry(2, 2, 8, ScaleSchedule.square([1, 2, 4]))
    assert plan(None, 1.0, "streaming", model="toy", geometry=geometry).sink_scales == 2


def test_scores_and_the_orders_that_follow_from_them_give_the_same_plan() -> None:
    scores = random_scores(SMALL, seed=1)
    by_scores = plan(scores, 0.4)
    by_orders = plan(scores.orders(3), 0.4, model="toy", geometry=SMALL)
    assert (by_scores.drop_at_LHS == by_orders.drop_at_LHS).all()
    assert by_scores.model == "toy"
    assert by_scores.provenance == {"kind": "paper", "planned_from": "scores", "prompts": 1}
    assert by_orders.provenance == {"kind": "paper", "planned_from": "orders"}


def test_random_depends_on_the_seed_and_on_nothing_else() -> None:
    one = plan(None, 0.4, "random", model="toy", geometry=SMALL, seed=1)
    assert one == plan(random_scores(SMALL, seed=5), 0.4, "random", seed=1)
    assert (one.drop_at_LHS != plan(None, 0.4, "random", model="toy", geometry=SMALL, seed=2).drop_at_LHS).any()
    assert one.provenance["seed"] == 1


def test_reverse_drops_what_heatkv_keeps_at_half_the_heads() -> None:
    geometry = Geometry(2, 2, 8, ScaleSchedule(((1, 1), (2, 2), (3, 3))))
    orders_SN = np.array([[3, 1, 0, 2]])
    upright = plan(orders_SN, 0.6, "heatkv", 1, model="toy", geometry=geometry).keep(2)[:, :, 1]
    upside_down = plan(orders_SN, 0.6, "reverse", 1, model="toy", geometry=geometry).keep(2)[:, :, 1]
    assert upright.sum() == 2
    assert (upright == ~upside_down).all()


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no policy 'heatvk'; choose one of heatkv, random, reverse"):
        plan(random_scores(SMALL, seed=0), 0.5, "heatvk")


def test_a_policy_without_its_calibration_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the scores of a calibration, or head orders"):
        plan(None, 0.5, model="toy", geometry=SMALL)


def test_orders_without_a_geometry_are_refused() -> None:
    with pytest.raises(ValueError, match="pass model and geometry"):
        plan(random_orders(SMALL, 3, 0), 0.5)


def test_scores_of_another_model_or_geometry_are_refused() -> None:
    scores = random_scores(SMALL, seed=0)
    with pytest.raises(ValueError, match="these scores are of toy, not of pocket"):
        plan(scores, 0.5, model="pocket")
    with pytest.raises(ScoresError, match=r"3 layers x 4 heads.* and do not fit a model with 4 layers x 4 heads"):
        plan(scores, 0.5, geometry=Geometry(4, 4, 8, SMALL.scales))


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        (random_orders(SMALL, 2, 0), "they fit sink_scales=2"),
        (np.zeros((2, 12), np.int64), "rank each of the 12 heads"),
        (random_orders(SMALL, 3, 0)[:, :5], "rank each of the 12 heads"),
        (random_orders(SMALL, 3, 0) + 0.5, "expected whole numbers"),
        (np.arange(12), "expected whole numbers"),
    ],
)
def test_orders_that_do_not_rank_every_head_once_are_refused(orders: np.ndarray, message: str) -> None:
    with pytest.raises(OrdersError, match=message):
        plan(orders, 0.5, model="toy", geometry=SMALL)


def test_every_policy_says_what_it_is() -> None:
    for name, policy in REGISTRY.items():
        assert policy.name == name
        assert policy.title and policy.summary.endswith(".")


def test_a_policy_defines_a_table_or_a_cache_but_not_both() -> None:
    with pytest.raises(TypeError, match="one of drop_at, stored and cache"):
        Policy("idle", "Idle", "Nothing.", "reference", "nothing")


def test_a_new_policy_takes_one_function_and_one_registry_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def sinks_only(inputs: PlanInput) -> npt.NDArray[np.int64]:
        K = len(inputs.geometry.scales)
        drop_at_S = np.array([K if s in (*range(inputs.sink_scales), K - 1) else s + 1 for s in range(K)])
        return np.tile(drop_at_S, (inputs.geometry.layers, inputs.geometry.heads, 1))

    policy = Policy("sinks", "Sinks only", "Keeps the sinks.", "reference", "nothing", drop_at=sinks_only)
    monkeypatch.setitem(policies.REGISTRY, policy.name, policy)
    schedule = plan(None, 0.3, "sinks", model="toy", geometry=SMALL)
    assert schedule.policy == "sinks"
    assert schedule.peak_tokens == 12 * (1 + 2 + 6)


def test_a_policy_that_breaks_the_budget_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def keep_all(inputs: PlanInput) -> npt.NDArray[np.int64]:
        return np.full(
            (inputs.geometry.layers, inputs.geometry.heads, len(inputs.geometry.scales)), len(inputs.geometry.scales)
        )

    policy = Policy("greedy", "Greedy", "Keeps everything.", "reference", "nothing", drop_at=keep_all)
    monkeypatch.setitem(policies.REGISTRY, policy.name, policy)
    with pytest.raises(ScheduleError, match="drop_at caches 492 tokens at its peak, more than the 246"):
        plan(None, 0.5, "greedy", model="toy", geometry=SMALL)


def test_a_dynamic_policy_has_no_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy("online", "Online", "Decides as it goes.", "adaptation", "nothing", cache=object)
    monkeypatch.setitem(policies.REGISTRY, policy.name, policy)
    with pytest.raises(ValueError, match="decides while it generates and has no schedule"):
        plan(None, 0.5, "online", model="toy", geometry=SMALL)


def test_a_policy_can_be_named_with_what_is_asked_of_it() -> None:
    policy, asked = policies.variant("heatkv:sinks=1,storage=int4")
    assert (policy.name, asked) == ("heatkv", {"sink_scales": 1, "storage": "int4"})
    assert policies.variant("h2o:recent=0.25")[1] == {"recent": 0.25}
    assert policies.variant("hack:merge=False,ratio=0.5")[1] == {"merge": False, "ratio": 0.5}
    assert policies.variant("random")[1] == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("heatvk:sinks=1", "no policy 'heatvk'"),
        ("heatkv:sink=1", "asks for 'sink=1': of heatkv can be asked sinks=, storage="),
        ("heatkv:sinks", "asks for 'sinks'"),
        ("heatkv:sinks=many", "sinks is 'many'"),
        ("hack:merge=no", "merge is 'no', and must be like True"),
    ],
)
def test_what_can_not_be_asked_is_said(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policies.variant(text)


@pytest.mark.parametrize("storage", ["int3", "", "8", "mixed"])
def test_a_storage_that_there_is_not_is_refused(storage: str) -> None:
    orders = random_orders(SMALL, 1, 0)
    with pytest.raises(ValueError, match=r"storage (is '|mixed is not for it)"):
        plan(orders, 0.5, "heatkv", 1, model="toy", geometry=SMALL, storage=storage)


def test_token_policies_store_as_computed() -> None:
    with pytest.raises(ValueError, match="'h2o' chooses tokens, not cells"):
        policies.cache_factory("h2o", SMALL, 0.5, storage="int8")


@pytest.mark.parametrize(
    "geometry", [SMALL, Geometry(3, 4, 16, ScaleSchedule.lines(5, 16, 8))], ids=["scales", "lines"]
)
@pytest.mark.parametrize("storage", ["compute", "int8", "int4", "int2"])
@pytest.mark.parametrize("name", [name for name in STATIC if REGISTRY[name].needs in ("orders", "nothing")])
def test_every_static_policy_keeps_to_its_budget_in_bytes_in_every_storage(
    name: str, storage: str, geometry: Geometry
) -> None:
    full_bytes = geometry.kv_bytes(geometry.full_peak_tokens, key_bytes=2, value_bytes=2)
    for sinks in (0, 1):
        source = None if REGISTRY[name].needs == "nothing" else random_orders(geometry, sinks, 0)
        schedule = plan(source, 0.25, name, sinks, model="toy", geometry=geometry, storage=storage)
        assert schedule.peak_bytes(1, 2) <= 0.25 * full_bytes
        assert schedule.peak_share >= 0.2  # and uses it
        assert (schedule.drop_at_LHS[:, :, :sinks] == len(geometry.scales)).all()
