"""Every policy, static or dynamic, spends its budget through the one seam and never more; each does what it says."""

from __future__ import annotations

import time
from typing import Any

import example_policy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Problem, ordinary_problem, problems, random_scores
from test_cache import GEOMETRY, SCALES, play, random_qkv
from test_calibration import explicit_mass
from tiny import tiny_model
from torch import Tensor

from heatkv import policies
from heatkv.cache import KVCache, ScheduleCache, full_cache
from heatkv.calibration import CalibratingCache, calibrate
from heatkv.models.base import seeded_noise
from heatkv.models.infinity.model import InfinityModel
from heatkv.policies import REGISTRY, cache_factory, make_cache, plan
from heatkv.policies.allowance import evenly, held_tokens, patch_centres, resident
from heatkv.policies.ams import demanding_layers
from heatkv.policies.base import PlanInput
from heatkv.policies.fill import least_limits
from heatkv.policies.hack import HackCache, contextual_heads
from heatkv.policies.headkv import HeadKVCache, local_heads
from heatkv.policies.scalekv import ScaleKVCache, capacities, drafters, hold_back
from heatkv.policies.tokens import TokenCache
from heatkv.scales import Geometry, ScaleSchedule
from heatkv.schedule import ScheduleError, token_limit
from heatkv.scores import HeadScores

NAMES = [*REGISTRY, "tova"]
DYNAMIC = [name for name, policy in REGISTRY.items() if not policy.static] + ["tova"]
SINKS = 2
NO_MERGE = {"hack": {"merge": False}}
LONG = Geometry(4, 4, 8, ScaleSchedule.square((1, 2, 3, 4, 6, 7, 8)))


@pytest.fixture(autouse=True)
def _example(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy of the README's example is one of the registry: one file, one line."""
    monkeypatch.setitem(policies.REGISTRY, example_policy.POLICY.name, example_policy.POLICY)


def scores_of(geometry: Geometry, seed: int = 0) -> HeadScores:
    """Random scores with all that a calibration measures."""
    plain, rng = random_scores(geometry, seed), np.random.default_rng(seed + 1)
    change_LHTS = np.tril(rng.random(plain.mass_sum_LHTS.shape) ** 3, -1)
    spread_LH = rng.random((geometry.layers, geometry.heads))
    return HeadScores(plain.model, geometry, plain.mass_sum_LHTS, plain.prompts, 1, {}, change_LHTS, spread_LH)


def cache_of(name: str, budget: float, geometry: Geometry = GEOMETRY, **options: Any) -> KVCache:
    return make_cache(name, geometry, budget, scores_of(geometry), SINKS, **options)


def held(cache: KVCache, layer: int, lanes: int, target: int = 0) -> list[set[int]]:
    """Positions that each lane of a layer holds: what it reads at scale ``target``, the next, beside its own scale."""
    if isinstance(cache, TokenCache):
        positions = cache.held_positions(layer)
        return [set(pos.tolist()) for pos in positions] or [set()] * lanes
    assert isinstance(cache, ScheduleCache)
    bounds = cache.geometry.scales.bounds
    keep_HS = cache.schedule.keep(target)[layer]
    per_head = [{p for s in range(target) if keep[s] for p in range(*bounds[s])} for keep in keep_HS]
    return per_head * (lanes // len(per_head))


def masked_attention(q: Tensor, keys: list[Tensor], values: list[Tensor], reads: list[set[int]]) -> Tensor:
    """Attention of every lane over its own scale and the positions that it holds, in float64."""
    k, v = (torch.cat(x, 2).flatten(0, 1).double() for x in (keys, values))
    own = q.shape[2]
    mask = torch.zeros(len(k), k.shape[1], dtype=torch.bool)
    mask[:, -own:] = True
    for lane, positions in enumerate(reads):
        mask[lane, list(positions)] = True
    logits = q.flatten(0, 1).double() @ k.transpose(1, 2)
    return (logits.masked_fill(~mask[:, None], -torch.inf).softmax(-1) @ v).view(q.shape).to(q.dtype)


def storage_bytes(cache: KVCache) -> int:
    """Bytes of all cached keys and values alive, counted from the tensors themselves."""
    if isinstance(cache, TokenCache):
        holders: list[Any] = [piece for state in cache._layers if state for piece in state.pieces]
    else:
        assert isinstance(cache, ScheduleCache)
        holders = [c for cells in cache._cells for c in cells] + [p for p in cache._prefixes if p]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for c in holders for t in (c.k, c.v)}
    return sum(storages.values())


# --- what holds of every policy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0.12, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("name", NAMES)
def test_no_policy_ever_holds_more_bytes_than_its_budget(name: str, budget: float) -> None:
    cache, full_bytes = cache_of(name, budget), GEOMETRY.kv_bytes(GEOMETRY.full_peak_tokens, batch=2)
    most = 0
    for t, per_layer in enumerate(random_qkv(GEOMETRY, 2)):
        for layer, qkv in enumerate(per_layer):
            cache.attend(layer, *qkv)
            assert cache.allocated_bytes == storage_bytes(cache) <= budget * full_bytes * (1 + 1e-9)
            assert GEOMETRY.kv_bytes(cache.tokens, batch=2) <= cache.allocated_bytes
            assert not {x.untyped_storage().data_ptr() for x in qkv} & _pointers(cache)
            most = max(most, cache.tokens)
        if t < len(SCALES) - 1:
            assert cache.tokens > 0
    assert cache.allocated_bytes == 0 and cache.tokens == 0
    assert cache.peak_bytes <= budget * full_bytes * (1 + 1e-9)
    assert most <= cache.planned_tokens <= token_limit(budget, GEOMETRY)
    assert most >= 0.7 * token_limit(budget, GEOMETRY), "a budget is there to be used"


def _pointers(cache: KVCache) -> set[int]:
    if not isinstance(cache, TokenCache):
        return set()
    pieces = [piece for state in cache._layers if state for piece in state.pieces]
    return {x.untyped_storage().data_ptr() for piece in pieces for x in (piece.k, piece.v)}


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("name", NAMES)
def test_attention_equals_masked_attention_over_what_the_cache_says_it_holds(name: str, budget: float) -> None:
    cache = cache_of(name, budget, LONG, **NO_MERGE.get(name, {}))
    check_against_masked(cache, random_qkv(LONG, 2), atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [4, 20])
@pytest.mark.parametrize("name", DYNAMIC)
def test_the_same_holds_in_every_dtype_and_head_size(name: str, head_dim: int, dtype: torch.dtype) -> None:
    geometry = Geometry(2, 3, head_dim, LONG.scales)
    qkv = [[x * torch.tensor([head_dim**-0.5, 1, 1]).view(3, 1, 1, 1, 1) for x in s] for s in random_qkv(geometry, 2)]
    qkv = [[x.to(dtype) for x in s] for s in qkv]
    cache = cache_of(name, 0.4, geometry, **NO_MERGE.get(name, {}))
    check_against_masked(cache, qkv, atol={torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype])


def check_against_masked(cache: KVCache, qkv: list[list[Tensor]], atol: float) -> None:
    geometry = cache.geometry
    keys: list[list[Tensor]] = [[] for _ in range(geometry.layers)]
    values: list[list[Tensor]] = [[] for _ in range(geometry.layers)]
    evicted = False
    for t, per_layer in enumerate(qkv):
        for layer, (q, k, v) in enumerate(per_layer):
            lanes = q.shape[0] * q.shape[1]
            reads = held(cache, layer, lanes, t)
            keys[layer].append(k)
            values[layer].append(v)
            expected = masked_attention(q, keys[layer], values[layer], reads)
            got = cache.attend(layer, q, k, v)
            assert got.dtype == q.dtype
            torch.testing.assert_close(got, expected, atol=atol, rtol=atol)
            evicted |= any(len(read) < sum(x.shape[2] for x in keys[layer][:-1]) for read in reads)
    assert evicted


@pytest.mark.parametrize("name", DYNAMIC)
def test_what_is_evicted_never_returns_and_nothing_is_held_twice(name: str) -> None:
    cache = cache_of(name, 0.3, LONG)
    before: dict[int, list[set[int]]] = {}
    for t, per_layer in enumerate(random_qkv(LONG, 2)[:-1]):
        own = set(range(*LONG.scales.bounds[t]))
        for layer, qkv in enumerate(per_layer):
            cache.attend(layer, *qkv)
            assert isinstance(cache, TokenCache)
            lists = cache.held_positions(layer)
            now = [set(pos.tolist()) for pos in lists]
            assert [len(a) for a in now] == [len(b) for b in lists]
            assert all(a - own <= b for a, b in zip(now, before.get(layer, now), strict=True)) or t == 0
            before[layer] = now


@pytest.mark.parametrize("name", NAMES)
def test_at_full_budget_every_policy_equals_the_full_cache(name: str) -> None:
    qkv = random_qkv(GEOMETRY, 2)
    for a, b in zip(play(full_cache(GEOMETRY), qkv), play(cache_of(name, 1.0), qkv), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_is_deterministic(name: str) -> None:
    make = cache_factory(name, LONG, 0.3, scores_of(LONG), SINKS)
    qkv = random_qkv(LONG, 2)
    assert all(torch.equal(a, b) for a, b in zip(play(make(), qkv), play(make(), qkv), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_batch_rows_are_independent(name: str) -> None:
    qkv = random_qkv(LONG, 3)
    together = play(cache_of(name, 0.3, LONG), qkv)
    for row in range(3):
        alone = play(cache_of(name, 0.3, LONG), [[x[:, row : row + 1] for x in per_layer] for per_layer in qkv])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[row : row + 1], b, atol=1e-5, rtol=1e-5)


@given(problem=problems(), seed=st.integers(0, 99))
@settings(max_examples=30)
@pytest.mark.parametrize("name", ["hack", "headkv", "scalekv", "snapkv"])
def test_odd_models_and_budgets_are_kept_to_as_well(name: str, problem: Problem, seed: int) -> None:
    geometry = problem.geometry
    cache = make_cache(name, geometry, problem.budget, scores_of(geometry, seed), problem.sink_scales)
    limit = geometry.kv_bytes(token_limit(problem.budget, geometry))
    for per_layer in random_qkv(geometry, 1, seed):
        for layer, qkv in enumerate(per_layer):
            assert cache.attend(layer, *qkv).isfinite().all()
            assert cache.allocated_bytes == storage_bytes(cache) <= limit
    assert cache.allocated_bytes == 0


@pytest.fixture(scope="module")
def tiny() -> tuple[InfinityModel, HeadScores]:
    model = tiny_model()
    return model, calibrate(model, ["blue cat"], seed=3)


def bits_of(model: InfinityModel, cache: KVCache) -> list[Tensor]:
    prompts = ["red apple", "green tree"]
    return [step.tokens for step in model.run(prompts, seeded_noise([1, 2]), cache, model.sampling)]


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_generates_with_a_model(name: str, tiny: tuple[InfinityModel, HeadScores]) -> None:
    model, scores = tiny
    full = bits_of(model, full_cache(model.geometry))
    same = bits_of(model, make_cache(name, model.geometry, 1.0, scores))
    agreement = [float((a == b).float().mean()) for a, b in zip(full, same, strict=True)]
    assert min(agreement) > 0.99
    cache = make_cache(name, model.geometry, 0.35, scores)
    pruned = bits_of(model, cache)
    assert cache.peak_bytes <= 0.35 * model.geometry.kv_bytes(model.geometry.full_peak_tokens, batch=4)
    assert any((a != b).any() for a, b in zip(full, pruned, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_generates_in_bfloat16(name: str, tiny: tuple[InfinityModel, HeadScores]) -> None:
    model = tiny_model()
    model.transformer.blocks.to(torch.bfloat16)
    cache = make_cache(name, model.geometry, 0.35, tiny[1])
    bits_of(model, cache)
    full = model.geometry.kv_bytes(model.geometry.full_peak_tokens, batch=4, key_bytes=2, value_bytes=2)
    assert 0 < cache.peak_bytes <= 0.35 * full


# --- the way in -------------------------------------------------------------------------------------------------------


def test_a_factory_makes_a_new_cache_for_every_batch() -> None:
    for name in ("heatkv", "snapkv"):
        make = cache_factory(name, GEOMETRY, 0.5, scores_of(GEOMETRY), SINKS)
        one, two = make(), make()
        play(one, random_qkv(GEOMETRY, 1))
        assert one is not two and two.scale == -1


@pytest.mark.parametrize(
    ("name", "scores", "options", "message"),
    [
        ("lru", None, {}, "there is no policy 'lru'"),
        ("snapkv", None, {"size": 3}, r"policy 'snapkv' has no option 'size'; its options: window, kernel"),
        ("heatkv", scores_of(GEOMETRY), {"window": 3}, r"policy 'heatkv' has no option 'window'; its options: none"),
        ("hack", None, {}, "needs the scores of a calibration; orders alone"),
        ("heatkv+", None, {}, "needs the scores of a calibration; orders alone"),
        ("heatkv+", scores_of(GEOMETRY), {"importance": "luck"}, "no importance 'luck'; choose one of mass, change"),
        ("heatkv+", random_scores(GEOMETRY, 0), {"importance": "change"}, "calibrate again, or choose importance"),
        ("hack", random_scores(GEOMETRY, 0), {}, "do not hold the variance that HACK tells heads by; calibrate again"),
        ("scalekv", scores_of(GEOMETRY), {"scoring": "best"}, "no scoring 'best'; choose one of paper, published"),
        ("scalekv", scores_of(LONG), {}, "do not fit a model with"),
        ("h2o", None, {"recent": -1}, "recent -1 is no share"),
        ("snapkv", None, {"kernel": 4}, "kernel 4 odd"),
        ("headkv", None, {"local_share": 0}, "local_share 0 must be above 0"),
        ("hack", scores_of(GEOMETRY), {"alpha": 2}, "alpha 2 is no share"),
        ("hack", scores_of(GEOMETRY), {"ratio": 0}, "ratio 0 must be above 0"),
        ("ams", scores_of(GEOMETRY), {"demanding": 2}, "demanding 2 must be a share"),
    ],
)  # fmt: skip
def test_what_can_not_be_run_is_refused_before_anything_runs(
    name: str, scores: HeadScores | None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cache_factory(name, GEOMETRY, 0.5, scores, SINKS, **options)


@pytest.mark.parametrize("name", DYNAMIC)
def test_a_budget_below_the_sinks_is_refused_of_dynamic_policies_too(name: str) -> None:
    with pytest.raises(ScheduleError, match="below the least feasible"):
        cache_of(name, 0.1)
    with pytest.raises(ValueError, match="decides while it generates"):
        plan(scores_of(GEOMETRY), 0.5, name)


def test_options_are_part_of_a_schedules_provenance() -> None:
    schedule = plan(scores_of(GEOMETRY), 0.5, "heatkv+", SINKS, importance="change")
    assert schedule.provenance["options"] == {"importance": "change"}
    assert schedule != plan(scores_of(GEOMETRY), 0.5, "heatkv+", SINKS)


# --- static policies --------------------------------------------------------------------------------------------------


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


def test_streaming_keeps_the_newest_scales_in_all_layers_alike() -> None:
    schedule = plan(None, 0.45, "streaming", SINKS, model="toy", geometry=LONG)
    last = len(LONG.scales) - 1
    kept_LS = schedule.keep(last)[:, :, :last].sum(1)
    assert (np.diff(kept_LS[:, SINKS:], axis=1) >= 0).all()
    assert np.ptp(kept_LS, axis=0).max() <= 1
    assert kept_LS[0, -1] > 0 and kept_LS[0, SINKS] == 0


def test_ams_keeps_scales_longer_in_the_layers_that_read_them_more() -> None:
    scores = scores_of(LONG)
    demanding_L = demanding_layers(scores, SINKS)
    assert demanding_L.sum() == 2
    kept_LS = plan(scores, 0.5, "ams", SINKS).keep(6)[:, :, SINKS:6].sum(1)
    assert kept_LS[demanding_L].sum(0).tolist() >= kept_LS[~demanding_L].sum(0).tolist()
    assert kept_LS[demanding_L].sum() > kept_LS[~demanding_L].sum()
    even = plan(scores, 0.5, "ams", SINKS, extra=0)
    assert (even.drop_at_LHS != plan(scores, 0.5, "ams", SINKS).drop_at_LHS).any()


# --- dynamic policies -------------------------------------------------------------------------------------------------


def planted(geometry: Geometry, position: int) -> list[list[Tensor]]:
    """Keys and queries of which one token gets nearly all attention of all that come after it."""
    qkv = random_qkv(geometry, 2)
    for t, per_layer in enumerate(qkv):
        start, end = geometry.scales.bounds[t]
        for x in per_layer:
            x[0, ..., 0] = 4.0  # all queries share a direction
            x[1, ..., 0] = -2.0
            if start <= position < end:
                x[1, :, :, position - start, 0] = 6.0
    return qkv


@pytest.mark.parametrize("name", ["snapkv", "h2o", "scalekv", "tova", "hack"])
@pytest.mark.parametrize("position", [2, 20, 40])
def test_a_token_that_everything_attends_to_is_kept(name: str, position: int) -> None:
    cache = cache_of(name, 0.3, LONG)
    for per_layer in planted(LONG, position)[:-1]:
        for layer, qkv in enumerate(per_layer):
            cache.attend(layer, *qkv)
    if name == "hack":
        # The structural heads' tiers may say otherwise.
        assert isinstance(cache, HackCache)
        lanes = [(i, r * 4 + int(h)) for i in range(4) for r in range(2) for h in cache.contextual_LH[i].nonzero()]
    else:
        lanes = [(i, lane) for i in range(4) for lane in range(8)]
    assert lanes and all(position in held(cache, i, 8)[lane] for i, lane in lanes)


def test_h2o_sums_up_the_attention_of_all_queries_since_a_token_came() -> None:
    cache, qkv = cache_of("h2o", 0.3, LONG), random_qkv(LONG, 2)
    assert isinstance(cache, TokenCache)
    total = torch.zeros(8, LONG.scales.full_peak)
    for t, per_layer in enumerate(qkv[:-1]):
        keys = torch.cat([qkv[s][0][1] for s in range(t + 1)], 2).flatten(0, 1)
        start, end = LONG.scales.bounds[t]
        logits = per_layer[0][0].flatten(0, 1) @ keys.transpose(1, 2)
        mask = torch.zeros(8, end, dtype=torch.bool)
        mask[:, start:] = True
        for lane, positions in enumerate(held(cache, 0, 8) if t else []):
            mask[lane, list(positions)] = True
        total[:, :end] += logits.masked_fill(~mask[:, None], -torch.inf).softmax(-1).sum(1)
        for layer, x in enumerate(per_layer):
            cache.attend(layer, *x)
        state = cache._layers[0]
        assert state is not None
        there = state.pos_RM >= 0
        torch.testing.assert_close(state.score_RM[there], total.gather(1, state.pos_RM.clamp_min(0))[there])


def test_h2o_keeps_half_for_the_newest_scale() -> None:
    cache = cache_of("h2o", 0.3, LONG)
    for t, per_layer in enumerate(planted(LONG, 0)[:-1]):
        for layer, qkv in enumerate(per_layer):
            cache.attend(layer, *qkv)
            newest = set(range(*LONG.scales.bounds[t]))
            for positions in held(cache, layer, 8):
                assert len(positions & newest) >= min(len(newest), len(positions) // 2)


def test_hack_tells_heads_by_the_variance_of_what_keys_receive() -> None:
    scores = scores_of(LONG)
    assert scores.spread_LH is not None
    contextual_LH = contextual_heads(scores, 0.25)
    assert contextual_LH.sum() == 4
    assert scores.spread_LH[contextual_LH].max() < scores.spread_LH[~contextual_LH].min()


def test_hack_keeps_few_tokens_in_contextual_heads_and_coarse_and_newest_scales_in_structural_ones() -> None:
    cache = cache_of("hack", 0.6, LONG, alpha=0.5, ratio=0.2)
    assert isinstance(cache, HackCache)
    for t, per_layer in enumerate(random_qkv(LONG, 1)[:-1]):
        for layer, qkv in enumerate(per_layer):
            cache.attend(layer, *qkv)
            for head, positions in enumerate(held(cache, layer, 4)):
                if not cache.contextual_LH[layer, head]:
                    assert set(range(5)) & set(range(LONG.scales.bounds[t][1])) <= positions
                    assert set(range(*LONG.scales.bounds[t])) <= positions
    sizes = {bool(c): {len(held(cache, i, 4)[h]) for i in range(4) for h in range(4) if cache.contextual_LH[i, h] == c}
             for c in (True, False)}  # fmt: skip
    assert len(sizes[True]) == len(sizes[False]) == 1
    assert sizes[True].pop() / sizes[False].pop() == pytest.approx(0.2, abs=0.02)


def test_hack_merges_what_contextual_heads_lose_last_into_the_most_similar_key() -> None:
    plain, merging = (cache_of("hack", 0.3, LONG, merge=merge) for merge in (False, True))
    qkv = random_qkv(LONG, 2)
    for t, per_layer in enumerate(qkv[:-1]):
        before = held(plain, 0, 8) if t else [set()] * 8
        for layer, x in enumerate(per_layer):
            plain.attend(layer, *x)
            merging.attend(layer, *x)
    assert isinstance(plain, HackCache) and isinstance(merging, HackCache)
    keys, values = (torch.cat([qkv[t][0][i] for t in range(len(qkv) - 1)], 2).flatten(0, 1) for i in (1, 2))
    newest = set(range(*LONG.scales.bounds[-2]))
    changed = 0
    for lane, (positions, old) in enumerate(zip(held(plain, 0, 8), before, strict=True)):
        states = plain._layers[0], merging._layers[0]
        assert states[0] and states[1] and torch.equal(states[0].pos_RM, states[1].pos_RM)
        pos = states[0].pos_RM[lane][states[0].pos_RM[lane] >= 0].tolist()
        expected_k, expected_v = keys[lane, pos].clone(), values[lane, pos].clone()
        if plain.contextual_LH[0, lane % 4]:
            groups: dict[int, list[int]] = {i: [p] for i, p in enumerate(pos)}
            for lost in sorted((old | newest) - positions):
                similarity = torch.nn.functional.cosine_similarity(keys[lane, pos], keys[lane, lost][None])
                groups[int(similarity.argmax())].append(lost)
            for i, members in groups.items():
                expected_k[i], expected_v[i] = keys[lane, members].mean(0), values[lane, members].mean(0)
                changed += len(members) > 1
        pieces = [p for p in states[1].pieces if p.row_R[lane] >= 0]
        got_k, got_v = (torch.cat([getattr(p, n)[p.row_R[lane], : p.filled] for p in pieces]) for n in "kv")
        torch.testing.assert_close(got_k, expected_k)
        torch.testing.assert_close(got_v, expected_v)
    assert changed > 3


def test_headkv_types_heads_in_the_image_itself_as_the_map_does() -> None:
    qkv = random_qkv(LONG, 3)
    for per_layer in qkv:
        for layer, x in enumerate(per_layer):
            x[0] *= 3
            x[0, 1] *= layer  # rows differ
            x[1, :, layer % 4, :, 0] += 1
    cache = cache_of("headkv", 0.4, LONG)
    play(cache, qkv)
    assert isinstance(cache, HeadKVCache)
    seen = set()
    for row in range(3):
        single = CalibratingCache(LONG)
        play(single, [[x[:, row : row + 1] for x in per_layer] for per_layer in qkv])
        expected_LH = local_heads(single.mass_LHTS, cache.typing_scale)
        got_LH = np.stack([types[row].numpy() for types in cache.local_LBH if types is not None])
        assert (got_LH == expected_LH).all()
        seen |= set(got_LH.ravel().tolist())
    assert seen == {False, True}


def test_headkv_gives_local_heads_the_newest_scales_and_global_heads_some_of_every_scale() -> None:
    qkv = random_qkv(LONG, 2)
    for per_layer in qkv:
        for x in per_layer:
            x[0] *= 4
    cache = cache_of("headkv", 0.4, LONG)
    assert isinstance(cache, HeadKVCache)
    bounds, kinds = LONG.scales.bounds, set()
    for t, per_layer in enumerate(qkv[:-1]):
        for layer, x in enumerate(per_layer):
            cache.attend(layer, *x)
            types = cache.local_LBH[layer]
            if t <= cache.typing_scale or types is None:
                continue
            for local, positions in zip(types.flatten().tolist(), held(cache, layer, 8), strict=True):
                counts = [len(positions & set(range(*bounds[s]))) for s in range(t + 1)]
                assert counts[:SINKS] == list(LONG.scales.tokens[:SINKS])
                rest = list(zip(counts, LONG.scales.tokens, strict=False))[SINKS:]
                if local:
                    oldest = next(i for i, (n, _) in enumerate(rest) if n)
                    assert all(n == full for n, full in rest[oldest + 1 :])
                else:
                    assert all(n == full or n >= max(counts[SINKS:]) - 1 for n, full in rest)
                kinds.add(local)
    assert kinds == {False, True}


def test_scalekv_makes_the_least_selective_layers_drafters() -> None:
    """A layer that reads history evenly and little of its own scale is a drafter at every scale."""
    K = len(LONG.scales)
    mass_LHTS = np.zeros((4, 4, K, K))
    for t in range(K):
        mass_LHTS[:, :, t, 0] = 0.4 if t else 0
        mass_LHTS[:, :, t, t] += 0.6 if t else 1
        mass_LHTS[2, :, t, : t + 1] = np.array(LONG.scales.tokens[: t + 1]) / sum(LONG.scales.tokens[: t + 1])
    scores = HeadScores("toy", LONG, mass_LHTS, (), 1)
    assert drafters(scores, range(4, K)).sum(0).tolist() == [1] * (K - 4)
    assert drafters(scores, range(4, K))[2].all()
    capacity_TL = capacities(PlanInput(LONG, 0.3, SINKS, 0, scores))
    base = token_limit(0.3, LONG) // LONG.slots
    compressed = [t for t in range(K - 1) if LONG.scales.bounds[t][1] > base]
    for k, t in enumerate(compressed):
        refiner = int(base * (600 - 70 * k) / 650)
        assert capacity_TL[t, [0, 1, 3]].tolist() == [refiner] * 3
        assert capacity_TL[t, 2] > base
    assert (capacity_TL[: compressed[0]] == base).all()


@given(
    st.lists(st.lists(st.integers(0, 40), min_size=3, max_size=3), min_size=2, max_size=6),
    st.integers(60, 120),
)
def test_scalekvs_capacities_never_add_up_to_more_than_the_limit(table: list[list[int]], limit: int) -> None:
    wanted_TL = np.array(table, np.int64)
    wanted_TL[0] = np.minimum(wanted_TL[0], limit // 3)
    got_TL = hold_back(wanted_TL, limit)
    assert resident(got_TL[:, :, None]).max() <= limit
    assert (got_TL <= wanted_TL).all() and (got_TL >= 0).all()
    assert (hold_back(wanted_TL, 10**6) == wanted_TL).all()


def test_scalekv_frees_what_a_shrinking_layer_gives_up() -> None:
    """And a layer may grow again, into pieces of its own."""
    capacity_TL = np.array([[9], [9], [9], [7], [3], [8]])
    geometry = Geometry(1, 2, 8, LONG.scales)
    cache = ScaleKVCache(geometry, capacity_TL)
    for t, ((x,), capacity) in enumerate(zip(random_qkv(geometry, 2), capacity_TL[:, 0], strict=False)):
        cache.attend(0, *x)
        assert {len(p) for p in held(cache, 0, 4)} == {min(capacity, LONG.scales.bounds[t][1])}
        if t >= 2:
            assert cache.allocated_bytes == storage_bytes(cache) == geometry.kv_bytes(2 * int(capacity), batch=2)


# --- parts ------------------------------------------------------------------------------------------------------------


def test_held_tokens_and_what_all_layers_hold() -> None:
    geometry = Geometry(2, 1, 8, ScaleSchedule(((1, 1), (2, 2), (3, 3), (3, 3))))
    allowance_TLH = np.array([[[3], [9]], [[3], [9]], [[2], [12]]])
    assert held_tokens(allowance_TLH, geometry)[:, :, 0].tolist() == [[1, 1], [3, 5], [2, 12]]
    assert resident(held_tokens(allowance_TLH, geometry)).tolist() == [[1, 2], [4, 8], [7, 14]]


def test_even_samples_and_patch_centres() -> None:
    assert evenly(3, 9).tolist() == [1, 4, 7]
    assert evenly(5, 3).tolist() == [0, 1, 2]
    assert evenly(0, 3).tolist() == []
    assert patch_centres(2, 6, 2).tolist() == [1, 4, 7, 10]
    assert patch_centres(1, 3, 4).tolist() == [0, 1, 2]


# --- what calibration measures beside the mass ------------------------------------------------------------------------


def test_change_is_the_squared_change_of_the_output_without_the_cell() -> None:
    qkv, K = random_qkv(GEOMETRY, 2), len(SCALES)
    cache = CalibratingCache(GEOMETRY, rows=1)
    play(cache, qkv)
    expected = np.zeros((GEOMETRY.layers, GEOMETRY.heads, K, K))
    for t in range(1, K):
        for layer in range(GEOMETRY.layers):
            q = qkv[t][layer][0][0].double()
            k, v = (torch.cat([qkv[s][layer][i][0] for s in range(t + 1)], 1).double() for i in (1, 2))
            logits = q @ k.transpose(1, 2)
            out = logits.softmax(-1) @ v
            energy = out.square().sum((0, 2)).mean()
            for s, (start, end) in enumerate(SCALES.bounds[:t]):
                without = logits.clone()
                without[..., start:end] = -torch.inf
                change_H = (out - without.softmax(-1) @ v).square().sum(2).mean(1)
                expected[layer, :, t, s] = (change_H / energy).numpy()
    np.testing.assert_allclose(cache.change_LHTS, expected, atol=1e-5, rtol=1e-3)
    np.testing.assert_allclose(cache.mass_LHTS, explicit_mass(qkv, 1), atol=1e-6)


def test_spread_is_the_variance_over_queries_of_what_keys_receive() -> None:
    qkv = random_qkv(GEOMETRY, 2)
    cache = CalibratingCache(GEOMETRY)
    play(cache, qkv)
    for layer in range(GEOMETRY.layers):
        k = torch.cat([qkv[s][layer][1] for s in range(len(SCALES))], 2)
        p = (qkv[-1][layer][0] @ k.transpose(-1, -2)).softmax(-1)
        expected = p.var(dim=2, correction=0).sum(2).sum(0)
        np.testing.assert_allclose(cache.spread_LH[layer], expected.numpy(), atol=1e-5)


def test_what_is_measured_beside_the_mass_survives_files_and_merging(tmp_path: Any) -> None:
    pytest.importorskip("safetensors")
    one, two, old = scores_of(GEOMETRY, 1), scores_of(GEOMETRY, 2), random_scores(GEOMETRY, 3)
    one.save(tmp_path / "scores.safetensors")
    assert HeadScores.load(tmp_path / "scores.safetensors") == one != old
    merged = one.merge(two)
    assert merged.spread_LH is not None and merged.change_LHTS is not None
    np.testing.assert_allclose(merged.spread_LH, (one.spread_LH + two.spread_LH) / 2)
    np.testing.assert_allclose(merged.change_LHTS, (one.change_LHTS + two.change_LHTS) / 2)
    assert one.merge(old).spread_LH is None
    with pytest.raises(ValueError, match="spread_sum_LH holds NaN"):
        HeadScores("toy", GEOMETRY, one.mass_sum_LHTS, (), 1, spread_sum_LH=np.full((3, 4), np.nan))
    with pytest.raises(ValueError, match=r"change_sum_LHTS is .* expected floats of shape \(3, 4, 6, 6\)"):
        HeadScores("toy", GEOMETRY, one.mass_sum_LHTS, (), 1, change_sum_LHTS=np.zeros((3, 4)))
