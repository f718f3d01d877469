"""Every policy, static or dynamic, spends its budget through the one seam and never more."""

from __future__ import annotations

from typing import Any

import example_policy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import LONG, SINKS, cache_of, held, masked_attention, scores_of, storage_bytes
from strategies import Problem, problems, random_scores
from test_cache import GEOMETRY, SCALES, play, random_qkv, read_back
from tiny import tiny_model
from torch import Tensor

from heatkv import policies
from heatkv.budget import token_limit
from heatkv.cache.seam import KVCache, ScheduleCache, full_cache
from heatkv.calibration import calibrate
from heatkv.formats import FORMATS
from heatkv.models.base import seeded_noise
from heatkv.models.infinity.model import InfinityModel
from heatkv.policies import REGISTRY, cache_factory, make_cache, plan
from heatkv.policies.tokens import TokenCache
from heatkv.scales import Geometry
from heatkv.schedule import ScheduleError
from heatkv.scores import HeadScores

NAMES = [*REGISTRY, "tova"]
DYNAMIC = [name for name, policy in REGISTRY.items() if not policy.static] + ["tova"]
NO_MERGE = {"hack": {"merge": False}}


@pytest.fixture(autouse=True)
def _example(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy of the README's example is one of the registry: one file, one line."""
    monkeypatch.setitem(policies.REGISTRY, example_policy.POLICY.name, example_policy.POLICY)


@pytest.mark.parametrize("budget", [0.12, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("name", NAMES)
def test_no_policy_ever_holds_more_bytes_than_its_budget(name: str, budget: float) -> None:
    cache, full_bytes = cache_of(name, budget), GEOMETRY.kv_bytes(GEOMETRY.full_peak_tokens, batch=2)
    storage, most = REGISTRY[name].storage, 0
    limit = min(token_limit(budget, GEOMETRY), GEOMETRY.full_peak_tokens)
    for t, per_layer in enumerate(random_qkv(GEOMETRY, 2)):
        for layer, qkv in enumerate(per_layer):
            cache.attend(layer, *qkv)
            assert cache.allocated_bytes <= storage_bytes(cache) <= budget * full_bytes * (1 + 1e-9)
            # A static policy's arena is there from the first scale on, as long as the peak needs.
            assert REGISTRY[name].static or cache.allocated_bytes == storage_bytes(cache)
            as_computed = GEOMETRY.kv_bytes(cache.tokens, batch=2)
            assert (as_computed if storage == "compute" else as_computed // 16) <= cache.allocated_bytes
            assert not {x.untyped_storage().data_ptr() for x in qkv} & _pointers(cache)
            most = max(most, cache.tokens)
        if t < len(SCALES) - 1:
            assert cache.tokens > 0
    assert cache.allocated_bytes == 0 and cache.tokens == 0
    assert cache.peak_bytes <= budget * full_bytes * (1 + 1e-9)
    assert most <= cache.planned_tokens and cache.peak_bytes <= cache.planned_bytes(2, 4)
    assert storage != "compute" or cache.planned_tokens <= limit
    used = most / limit if storage == "compute" else cache.planned_share / min(budget, 0.5)
    assert used >= 0.7, "a budget is there to be used"


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
            if isinstance(cache, ScheduleCache) and cache.schedule.encoded:
                names = [list(FORMATS)[i] for i in cache.schedule.formats_LHS[layer, :, t]]
                for kept in (keys, values):
                    own = [read_back(kept[layer][-1][:, head], form) for head, form in enumerate(names)]
                    kept[layer][-1] = torch.stack(own, 1)
            evicted |= any(len(read) < sum(x.shape[2] for x in keys[layer][:-1]) for read in reads)
    assert evicted or cache.planned_tokens == geometry.full_peak_tokens  # 8 bits hold everything at 0.8


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
        atol = 1e-5 if REGISTRY[name].storage == "compute" else 5e-2
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


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
@pytest.mark.parametrize("name", ["hack", "headkv", "line-ar", "scalekv", "snapkv", "ssd"])
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
    budget = 0.15 if name == "heatkv+" else 0.35  # its 8 bits alone flip no bit of this model
    cache = make_cache(name, model.geometry, budget, scores)
    pruned = bits_of(model, cache)
    assert cache.peak_bytes <= budget * model.geometry.kv_bytes(model.geometry.full_peak_tokens, batch=4)
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
        ("heatkv+", random_scores(GEOMETRY, 0), {}, "do not say how outputs change without a cell; calibrate again"),
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
def test_a_budget_below_the_sinks_is_refused_of_dynamic_policies_that_have_them(name: str) -> None:
    if policies.REGISTRY[name].sinks:
        with pytest.raises(ScheduleError, match="below the least feasible"):
            cache_of(name, 0.1)
    else:
        assert cache_of(name, 0.1).planned_tokens > 0
    with pytest.raises(ValueError, match="decides while it generates"):
        plan(scores_of(GEOMETRY), 0.5, name)


def test_options_are_part_of_a_schedules_provenance() -> None:
    schedule = plan(scores_of(GEOMETRY), 0.5, "ams", SINKS, demanding=0.25)
    assert schedule.provenance["options"] == {"demanding": 0.25, "extra": 1}
    assert schedule != plan(scores_of(GEOMETRY), 0.5, "ams", SINKS)
