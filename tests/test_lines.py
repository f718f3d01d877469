"""Policies over images that are drawn by lines: the budget at every token, and what each of them keeps."""

from __future__ import annotations

import pytest
import torch
from peers import cache_of, masked_attention, scores_of, storage_bytes
from test_cache import play, random_qkv
from torch import Tensor

from heatkv.budget import token_limit
from heatkv.cache import KVCache, ScheduleCache, full_cache
from heatkv.policies import REGISTRY, cache_factory
from heatkv.policies.headkv import HeadKVCache
from heatkv.policies.tokens import TokenCache
from heatkv.policies.typed import tokens_needed
from heatkv.scales import Geometry, ScaleSchedule
from heatkv.schedule import ScheduleError

T, WIDTH = 3, 6
GEOMETRY = Geometry(3, 4, 8, ScaleSchedule.lines(condition=T, height=7, width=WIDTH))
FULL = T + 7 * WIDTH - 1
STATIC = [name for name, policy in REGISTRY.items() if policy.static]
DYNAMIC = [name for name, policy in REGISTRY.items() if not policy.static]
EXACT = [name for name, policy in REGISTRY.items() if policy.storage == "compute"]
PADDED = torch.tensor([[False, False, False], [True, True, False]])


def reads(cache: KVCache, layer: int, lanes: int) -> list[set[int]]:
    """Positions that each head of each row will read with the next token, beside that token."""
    if isinstance(cache, TokenCache):
        return [set(pos.tolist()) for pos in cache.held_positions(layer)]
    assert isinstance(cache, ScheduleCache)
    bounds, following = GEOMETRY.scales.bounds, (cache.scale, cache.first) if layer else cache._next_tokens()
    line, first = following
    keep_HS = cache.schedule.keep(line)[layer]
    start = bounds[line][0]
    own = set(range(start, start + first))
    return [own | {p for s in range(line) if keep[s] for p in range(*bounds[s])} for keep in keep_HS] * (lanes // 4)


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("name", REGISTRY)
def test_the_budget_holds_at_every_token_in_allocated_bytes(name: str, budget: float) -> None:
    cache, full_bytes = cache_of(name, budget, GEOMETRY, sinks=1), GEOMETRY.kv_bytes(GEOMETRY.full_peak_tokens, batch=2)
    limit, most = token_limit(budget, GEOMETRY), 0
    for per_layer in random_qkv(GEOMETRY, 2):
        for layer, qkv in enumerate(per_layer):
            cache.attend(layer, *qkv)
            assert cache.allocated_bytes == storage_bytes(cache) <= budget * full_bytes * (1 + 1e-9)
            if name in EXACT:
                assert GEOMETRY.kv_bytes(cache.tokens, batch=2) <= cache.allocated_bytes
            most = max(most, cache.tokens)
    assert cache.allocated_bytes == 0 and cache.tokens == 0
    assert most <= cache.planned_tokens
    if name in EXACT:
        assert 0.7 * limit <= most <= cache.planned_tokens <= limit


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("budget", [0.25, 0.6])
@pytest.mark.parametrize("name", EXACT)
def test_attention_equals_masked_attention_over_what_the_cache_says_it_holds(
    name: str, budget: float, padded: bool
) -> None:
    cache, evicted = cache_of(name, budget, GEOMETRY, sinks=1), False
    mask_BTT = ~PADDED[:, None] | torch.eye(T, dtype=torch.bool)
    keys: list[list[Tensor]] = [[] for _ in range(3)]
    values: list[list[Tensor]] = [[] for _ in range(3)]
    for call, per_layer in enumerate(random_qkv(GEOMETRY, 2)):
        for layer, (q, k, v) in enumerate(per_layer):
            read = reads(cache, layer, 8) if call else [set()] * 8
            if padded:
                hidden = [set(PADDED[row].nonzero().flatten().tolist()) for row in range(2) for _ in range(4)]
                read = [positions - unseen for positions, unseen in zip(read, hidden, strict=True)]
            keys[layer].append(k)
            values[layer].append(v)
            got = cache.attend(layer, q, k, v, mask_BTT if padded and not call else None)
            if call:
                expected = masked_attention(q, keys[layer], values[layer], read)
                torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)
                evicted |= any(len(positions) < call + T - 3 for positions in read)
    assert evicted


@pytest.mark.parametrize("name", EXACT)
def test_at_full_budget_every_policy_is_the_full_cache_bit_for_bit(name: str) -> None:
    qkv = random_qkv(GEOMETRY, 2)
    full = play(full_cache(GEOMETRY), qkv)
    got = play(cache_of(name, 1.0, GEOMETRY, sinks=1), qkv)
    assert all(torch.equal(a, b) for a, b in zip(full, got, strict=True))


@pytest.mark.parametrize("name", DYNAMIC)
def test_what_is_evicted_never_returns(name: str) -> None:
    cache = cache_of(name, 0.3, GEOMETRY, sinks=1)
    assert isinstance(cache, TokenCache)
    before: dict[int, list[set[int]]] = {}
    for per_layer in random_qkv(GEOMETRY, 2)[:-1]:
        for layer, qkv in enumerate(per_layer):
            cache.attend(layer, *qkv)
            newest = GEOMETRY.scales.bounds[cache.scale][0] + cache.first
            lists = cache.held_positions(layer)
            now = [set(pos.tolist()) for pos in lists]
            assert [len(a) for a in now] == [len(b) for b in lists]
            if layer in before:
                assert all(a - {newest} <= b for a, b in zip(now, before[layer], strict=True))
            before[layer] = now


@pytest.mark.parametrize("name", DYNAMIC)
def test_batch_rows_are_independent_and_runs_repeat(name: str) -> None:
    qkv, make = random_qkv(GEOMETRY, 3), cache_factory(name, GEOMETRY, 0.3, scores_of(GEOMETRY), 1)
    together = play(make(), qkv)
    assert all(torch.equal(a, b) for a, b in zip(together, play(make(), qkv), strict=True))
    alone = play(make(), [[x[:, 1:2] for x in per_layer] for per_layer in qkv])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1:2], b, atol=1e-5, rtol=1e-5)


def test_a_window_is_short_where_few_tokens_take_most_of_the_attention() -> None:
    pos_RU = torch.tensor([[0, 1, -1, 2, 3], [0, 1, 2, 3, 4]])
    p_RU = torch.tensor([[0.0, 0.05, 0.0, 0.35, 0.6], [0.5, 0.1, 0.1, 0.1, 0.2]])
    assert tokens_needed(p_RU, pos_RU).tolist() == [2, 5]


def test_headkv_keeps_a_window_in_local_heads_and_thins_both_halves_of_the_history_in_global_ones() -> None:
    geometry = Geometry(2, 4, 8, ScaleSchedule.lines(condition=T, height=12, width=8))
    qkv = random_qkv(geometry, 2)
    for call, per_layer in enumerate(qkv):
        for x in per_layer:
            x[0, :, :, :, 0] = 3.0
            x[1, :, ::2, :, 0] += 0.4 * call  # every other head looks at what is new
    cache = cache_of("headkv", 0.5, geometry, sinks=1)
    assert isinstance(cache, HeadKVCache)
    kinds, thinned = set(), 0
    for per_layer in qkv[:-1]:
        for layer, x in enumerate(per_layer):
            before = [set(p.tolist()) for p in cache.held_positions(layer)] if cache.scale >= 0 else []
            cache.attend(layer, *x)
            types, end = cache.local_LBH[layer], geometry.scales.bounds[cache.scale][0] + cache.first
            if types is None:
                continue
            for lane, positions in enumerate(cache.held_positions(layer)):
                now, local = set(positions.tolist()), bool(types.flatten()[lane])
                kinds.add(local)
                assert set(range(T)) <= now
                history = sorted(now - set(range(T)))
                if local:
                    assert history == list(range(history[0], end + 1))
                    continue
                gone = sorted(before[lane] - now)
                if gone:
                    window = min(cache.window, len(now) // 2)
                    old = [p for p in sorted(before[lane]) if T <= p <= end - window]
                    older = [p in old[: len(old) // 2] for p in gone]
                    assert not set(gone) & set(range(end - window + 1, end + 1))
                    assert abs(2 * sum(older) - len(gone)) <= 1
                    thinned += 1
    assert kinds == {False, True} and thinned > 3


def test_line_ar_keeps_anchors_and_the_latest_lines() -> None:
    cache = cache_of("line-ar", 0.7, GEOMETRY, sinks=1)
    assert isinstance(cache, TokenCache)
    for per_layer in random_qkv(GEOMETRY, 2)[:-1]:
        for layer, x in enumerate(per_layer):
            cache.attend(layer, *x)
            end = GEOMETRY.scales.bounds[cache.scale][0] + cache.first
            always = {*range(min(end + 1, T + WIDTH)), *range(max(0, end - 2 * WIDTH + 1), end + 1)}
            if cache.last_tokens:
                assert all(always <= set(positions.tolist()) for positions in cache.held_positions(layer))


def test_h2o_and_snapkv_keep_what_everything_attends_to_and_the_latest() -> None:
    for name in ("h2o", "snapkv", "ssd"):
        qkv = random_qkv(GEOMETRY, 2)
        for per_layer in qkv:
            for x in per_layer:
                x[0, ..., 0], x[1, ..., 0] = 4.0, -2.0
        for x in qkv[9]:  # a token of the second line
            x[1, ..., 0] = 6.0
        cache = cache_of(name, 0.4, GEOMETRY, sinks=1)
        assert isinstance(cache, TokenCache)
        for per_layer in qkv[:-1]:
            for layer, x in enumerate(per_layer):
                cache.attend(layer, *x)
        end = FULL - 1
        for layer in range(3):
            for positions in cache.held_positions(layer):
                assert end - 1 in positions
                assert T + 8 in positions or name == "ssd"


def test_what_has_no_room_for_a_line_is_refused_in_one_sentence() -> None:
    with pytest.raises(ScheduleError, match=r"least feasible .* with 1 sink scales and the line being drawn"):
        cache_of("heatkv", 0.1, GEOMETRY, sinks=1)


@pytest.mark.parametrize("name", DYNAMIC)
def test_what_lets_go_of_tokens_needs_no_room_for_a_line(name: str) -> None:
    budget = 5 / FULL
    cache = cache_of(name, budget, GEOMETRY, sinks=1)
    play(cache, random_qkv(GEOMETRY, 2))
    assert 0 < cache.peak_bytes <= budget * GEOMETRY.kv_bytes(GEOMETRY.full_peak_tokens, batch=2) * (1 + 1e-9)


def test_provenance_depends_on_how_a_model_draws() -> None:
    scales = ScaleSchedule.square([1, 2])
    assert REGISTRY["headkv"].provenance_for(GEOMETRY.scales) == "paper"
    assert REGISTRY["headkv"].provenance_for(scales) == "adaptation"
    assert REGISTRY["scalekv"].provenance_for(GEOMETRY.scales) == "adaptation"
    assert REGISTRY["line-ar"].provenance_for(GEOMETRY.scales) == "re-implementation"
    assert REGISTRY["heatkv+"].provenance_for(GEOMETRY.scales) == "ours"
