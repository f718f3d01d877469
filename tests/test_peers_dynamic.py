"""The dynamic policies keep the tokens they say they keep, and find the head types they show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peers import LONG, SINKS, cache_of, held, scores_of, storage_bytes
from test_cache import play, random_qkv
from torch import Tensor

from heatkv.budget import token_limit
from heatkv.calibration import CalibratingCache
from heatkv.policies.allowance import evenly, held_tokens, patch_centres, resident
from heatkv.policies.base import PlanInput
from heatkv.policies.hack import HackCache, contextual_heads
from heatkv.policies.headkv import HeadKVCache, rank_within, softmax_within
from heatkv.policies.scalekv import ScaleKVCache, capacities, drafters, give_way, selectivity
from heatkv.policies.tokens import TokenCache
from heatkv.policies.typed import local_heads
from heatkv.scales import Geometry, ScaleSchedule
from heatkv.scores import HeadScores


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


@pytest.mark.parametrize("name", ["snapkv", "h2o", "scalekv", "hack"])
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


def test_snapkv_keeps_the_window_that_observed() -> None:
    cache = cache_of("snapkv", 0.3, LONG, window=6)
    for t, per_layer in enumerate(random_qkv(LONG, 2)[:-1]):
        for layer, qkv in enumerate(per_layer):
            cache.attend(layer, *qkv)
            start, end = LONG.scales.bounds[t]
            window = {start + i for i in evenly(6, end - start).tolist()}
            assert all(window <= positions for positions in held(cache, layer, 8))


def test_hack_tells_heads_by_the_variance_of_what_keys_receive() -> None:
    scores = scores_of(LONG)
    assert scores.spread_LH is not None
    contextual_LH = contextual_heads(scores, 0.25)
    assert contextual_LH.sum() == 4
    assert scores.spread_LH[contextual_LH].max() < scores.spread_LH[~contextual_LH].min()


def test_hack_keeps_few_tokens_in_contextual_heads_and_coarse_and_newest_scales_in_structural_ones() -> None:
    cache = cache_of("hack", 0.45, LONG, alpha=0.5, ratio=0.2)
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


def test_headkv_ranks_and_normalises_within_every_scale() -> None:
    p_RNU = torch.tensor([[[0.1, 0.3, 0.2, 0.4], [0.25, 0.25, 0.5, 0.0]]])
    group_RU = torch.tensor([[0, 0, 1, 1]])
    expected = [[0.25, 0.75, 1 / 3, 2 / 3], [0.5, 0.5, 1.0, 0.0]]
    torch.testing.assert_close(softmax_within(p_RNU, group_RU, 3), torch.tensor([expected]))
    valid_RU = torch.tensor([[True, True, True, True, False, True]])
    score_RU, group_RU = torch.tensor([[3.0, 5.0, 1.0, 2.0, 9.0, 4.0]]), torch.tensor([[0, 0, 1, 1, 0, 0]])
    assert rank_within(score_RU, group_RU, valid_RU).tolist() == [[2, 0, 1, 0, 3, 1]]


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


def test_scalekvs_selectivity_is_attention_on_itself_times_the_best_of_history() -> None:
    scores = scores_of(LONG)
    index_LT = selectivity(scores)
    for t in range(1, len(LONG.scales)):
        for layer in range(4):
            top = []
            for mass_S in scores.mass_LHTS[layer, :, t, :t]:
                per_token = [m / n for m, n in zip(mass_S, LONG.scales.tokens, strict=False) for _ in range(n)]
                top.append(np.mean(sorted(per_token, reverse=True)[:16]))
            expected = scores.mass_LHTS[layer, :, t, t].mean() * np.mean(top)
            assert index_LT[layer, t] == pytest.approx(expected)


def test_scalekv_makes_the_least_selective_layers_drafters() -> None:
    """A layer that reads history evenly is a drafter: here layer 2, and layer 1 at the last scale."""
    K = len(LONG.scales)
    mass_LHTS = np.zeros((4, 4, K, K))
    for t in range(K):
        mass_LHTS[:, :, t, 0] = 0.4 if t else 0
        mass_LHTS[:, :, t, t] += 0.6 if t else 1
        drafter = 2 if t < K - 1 else 1
        mass_LHTS[drafter, :, t, : t + 1] = np.array(LONG.scales.tokens[: t + 1]) / sum(LONG.scales.tokens[: t + 1])
    scores = HeadScores("toy", LONG, mass_LHTS, (), 1)
    assert drafters(scores, range(4, K)).sum(0).tolist() == [1] * (K - 4)
    assert drafters(scores, range(4, K)).argmax(0).tolist() == [2] * (K - 5) + [1]
    capacity_TL = capacities(PlanInput(LONG, 0.3, SINKS, 0, scores))
    base = token_limit(0.3, LONG) // LONG.head_count
    compressed = [t for t in range(K - 1) if LONG.scales.bounds[t][1] > base]
    assert len(compressed) == 2
    # What is cached after scale t is for scale t + 1.
    table = [[int(base * (600 - 70 * k) / 650)] * 4 for k in range(2)]
    for row, drafter in zip(table, (2, 1), strict=True):
        row[drafter] = base * 4 - 3 * row[0]
    assert (capacity_TL[compressed] == give_way(np.array(table))).all()
    assert (capacity_TL[: compressed[0] - 1] == base).all()


def test_scalekvs_refiners_get_what_drafters_have_no_tokens_for() -> None:
    inputs = PlanInput(LONG, 0.8, SINKS, 0, scores_of(LONG))
    base = token_limit(0.8, LONG) // LONG.head_count
    last_L = capacities(inputs)[-1]
    assert last_L.max() == LONG.scales.full_peak
    assert base * LONG.layers - LONG.layers < last_L.sum() <= base * LONG.layers


@given(st.lists(st.lists(st.integers(0, 40), min_size=3, max_size=3), min_size=2, max_size=6))
def test_scalekvs_capacities_never_add_up_to_more_than_the_limit(table: list[list[int]]) -> None:
    wanted_TL = np.array(table, np.int64)
    got_TL = give_way(wanted_TL)
    assert resident(got_TL[:, :, None])[1:].max() <= wanted_TL.sum(1).max()
    assert (got_TL <= wanted_TL).all() and (got_TL[-1] == wanted_TL[-1]).all()
    growing = (np.diff(wanted_TL, axis=0) >= 0).all(0)
    assert (got_TL == wanted_TL)[:, growing].all()


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


@pytest.mark.parametrize("budget", [0.15, 0.3, 0.5])
def test_room_that_is_taken_in_pieces_is_planned_in_pieces(budget: float) -> None:
    geometry = Geometry(8, 2, 4, ScaleSchedule.square([1, 2, 3, 4, 5, 6, 8, 10, 12]))
    cache = cache_of("scalekv", budget, geometry, 0)
    play(cache, random_qkv(geometry, 1))
    assert 0.95 * cache.planned_bytes(1, 4) <= cache.peak_bytes <= cache.planned_bytes(1, 4)
    assert cache.planned_share <= budget
