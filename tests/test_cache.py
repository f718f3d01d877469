"""The cache: what it computes equals masked attention, what it holds never exceeds its budget."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from strategies import Problem, problems
from torch import Tensor

from heatkv import attention
from heatkv.attention import Part, Piece, merge, part_weights, partial_attention, tiled_attention
from heatkv.cache import KVCache, ScheduleCache, Stored, full_cache
from heatkv.policies import plan
from heatkv.scales import Geometry, ScaleSchedule
from heatkv.schedule import Schedule, least_budget

SCALES = ScaleSchedule(((1, 1), (1, 2), (2, 2), (2, 3), (3, 4), (4, 4)))
GEOMETRY = Geometry(layers=3, heads=4, head_dim=8, scales=SCALES)


class MaskedReference(KVCache):
    """Keeps everything and hides what the schedule has dropped: slow, and obviously right."""

    def __init__(self, geometry: Geometry, schedule: Schedule) -> None:
        super().__init__(geometry)
        self.schedule = schedule
        self.k: dict[int, Tensor] = {}
        self.v: dict[int, Tensor] = {}

    def _attend(self, layer: int, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        if self.scale:
            k_BHND, v_BHND = torch.cat([self.k[layer], k_BHND], 2), torch.cat([self.v[layer], v_BHND], 2)
        self.k[layer], self.v[layer] = k_BHND, v_BHND
        keep_HS = torch.from_numpy(self.schedule.keep(self.scale)[layer])
        tokens = torch.tensor(self.geometry.scales.tokens)
        mask_HN = torch.repeat_interleave(keep_HS, tokens, dim=1)[:, : k_BHND.shape[2]]
        logits = q_BHND.double() @ k_BHND.double().transpose(-1, -2)
        return (logits.masked_fill(~mask_HN[None, :, None], -torch.inf).softmax(-1) @ v_BHND.double()).to(q_BHND.dtype)


def random_qkv(geometry: Geometry, batch: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    """[scale][layer] -> tensor [3, B, H, N, D]."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [
            torch.randn(3, batch, geometry.heads, n, geometry.head_dim, generator=generator).to(dtype)
            for _ in range(geometry.layers)
        ]
        for n in geometry.scales.tokens
    ]


def play(cache: KVCache, qkv: list[list[Tensor]]) -> list[Tensor]:
    return [cache.attend(layer, *tensors) for per_layer in qkv for layer, tensors in enumerate(per_layer)]


def random_schedule(geometry: Geometry, budget: float, sinks: int, seed: int = 0) -> Schedule:
    return plan(None, budget, "random", sinks, model="test", geometry=geometry, seed=seed)


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("sinks", [0, 1, 3])
@pytest.mark.parametrize("batch", [1, 3])
def test_attention_equals_masked_attention(budget: float, sinks: int, batch: int) -> None:
    if budget < least_budget(SCALES, sinks):
        pytest.skip("below the least feasible budget")
    schedule = random_schedule(GEOMETRY, budget, sinks)
    qkv = random_qkv(GEOMETRY, batch)
    got, expected = play(ScheduleCache(GEOMETRY, schedule), qkv), play(MaskedReference(GEOMETRY, schedule), qkv)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("head_dim", [4, 20, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_equals_masked_attention_in_every_dtype_and_head_size(head_dim: int, dtype: torch.dtype) -> None:
    geometry = Geometry(2, 3, head_dim, SCALES)
    schedule = random_schedule(geometry, 0.5, 2)
    qkv = [
        [t * torch.tensor([head_dim**-0.5, 1, 1]).to(dtype).view(3, 1, 1, 1, 1) for t in s]
        for s in random_qkv(geometry, 2, 1, dtype)
    ]
    got, expected = play(ScheduleCache(geometry, schedule), qkv), play(MaskedReference(geometry, schedule), qkv)
    tolerance = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@given(problems())
@settings(max_examples=25)
def test_cache_never_exceeds_its_budget_after_any_layer(problem: Problem) -> None:
    geometry = problem.geometry
    schedule = plan(problem.orders_SN, problem.budget, "heatkv", problem.sink_scales, model="test", geometry=geometry)
    cache = ScheduleCache(geometry, schedule)
    full_bytes = geometry.kv_bytes(geometry.full_peak_tokens, batch=2)
    limit = max(problem.budget, least_budget(geometry.scales, problem.sink_scales)) * full_bytes * (1 + 1e-9)
    for t, per_layer in enumerate(random_qkv(geometry, 2)):
        for layer, tensors in enumerate(per_layer):
            cache.attend(layer, *tensors)
            assert cache.allocated_bytes <= limit
            if t < len(geometry.scales) - 1:
                assert cache.tokens == schedule.resident_tokens_TL[t, layer]
            if cache._prefix_scales <= t < len(geometry.scales) - 1:
                assert cache.allocated_bytes == geometry.kv_bytes(cache.tokens, batch=2)
    assert cache.allocated_bytes == 0 and cache.tokens == 0
    assert cache.peak_bytes <= limit


def test_bytes_counted_are_the_bytes_of_the_tensors_alive() -> None:
    """Count live storages the hard way, by walking everything the garbage collector knows."""
    schedule = random_schedule(GEOMETRY, 0.4, 1)
    cache = ScheduleCache(GEOMETRY, schedule)
    for per_layer in random_qkv(GEOMETRY, 2):
        for layer, tensors in enumerate(per_layer):
            inputs = {tensors.untyped_storage().data_ptr()}
            cache.attend(layer, *tensors)
            held = {}
            alive = [t for cells in cache._cells for cell in cells for t in cell.tensors]
            for tensor in alive + [t for prefix in cache._prefixes if prefix for t in (prefix.k, prefix.v)]:
                held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            assert not inputs & set(held), "the cache holds on to a projection instead of its own copy"
            assert sum(held.values()) == cache.allocated_bytes


def test_dropped_cells_are_really_freed() -> None:
    schedule = random_schedule(GEOMETRY, 0.4, 1)
    cache = ScheduleCache(GEOMETRY, schedule)
    qkv = random_qkv(GEOMETRY, 1)
    seen: list[tuple[int, int, weakref.ref[Tensor]]] = []
    for t, per_layer in enumerate(qkv):
        for layer, tensors in enumerate(per_layer):
            cache.attend(layer, *tensors)
        if t < len(SCALES) - 1:
            for layer, cells in enumerate(cache._cells):
                seen += [(layer, c.drop_at, weakref.ref(c.k.numbers)) for c in cells if c.source == t]
            del cells  # the test itself must not keep them
    gc.collect()
    assert seen and all(reference() is None for _, _, reference in seen)


def test_full_budget_equals_full_cache_bit_for_bit() -> None:
    qkv = random_qkv(GEOMETRY, 2)
    full = play(full_cache(GEOMETRY), qkv)
    for policy in ("random", "heatkv"):
        orders = None if policy == "random" else np.tile(np.arange(12), (3, 1))
        schedule = plan(orders, 1.0, policy, 2, model="test", geometry=GEOMETRY)
        for a, b in zip(full, play(ScheduleCache(GEOMETRY, schedule), qkv), strict=True):
            assert torch.equal(a, b)


def test_full_cache_peaks_at_all_scales_but_the_last() -> None:
    cache = full_cache(GEOMETRY)
    play(cache, random_qkv(GEOMETRY, 2))
    assert cache.peak_bytes == GEOMETRY.kv_bytes(GEOMETRY.full_peak_tokens, batch=2)


def test_a_schedule_of_another_geometry_is_refused() -> None:
    other = Geometry(3, 5, 8, SCALES)
    with pytest.raises(ValueError, match="does not fit"):
        ScheduleCache(GEOMETRY, random_schedule(other, 0.5, 1))


def test_attending_out_of_turn_or_beyond_the_last_scale_is_refused() -> None:
    qkv = random_qkv(GEOMETRY, 1)
    cache = full_cache(GEOMETRY)
    with pytest.raises(ValueError, match="layer 0 is next"):
        cache.attend(1, *qkv[0][0])
    play(cache, qkv)
    with pytest.raises(ValueError, match="use a new one"):
        cache.attend(0, *qkv[0][0])
    with pytest.raises(ValueError, match="do not fit"):
        full_cache(GEOMETRY).attend(0, *qkv[1][0])


def test_merged_parts_equal_attention_over_all_keys_and_weights_sum_to_one() -> None:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 4, n, 16, generator=generator) for n in (5, 9, 9))
    heads = torch.tensor([0, 2])
    parts = [
        Part(*partial_attention(q, k[:, :, :4], v[:, :, :4])),
        Part(*partial_attention(q[:, heads], k[:, heads, 4:], v[:, heads, 4:]), heads),
    ]
    whole = (q @ k.transpose(-1, -2)).softmax(-1) @ v
    first = (q @ k[:, :, :4].transpose(-1, -2)).softmax(-1) @ v[:, :, :4]
    merged = merge(parts)
    torch.testing.assert_close(merged[:, heads], whole[:, heads], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(merged[:, [1, 3]], first[:, [1, 3]], atol=1e-5, rtol=1e-5)
    weights = list(part_weights(parts))
    torch.testing.assert_close(weights[0][:, heads] + weights[1], torch.ones(2, 2, 5))


def test_tiled_attention_equals_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heatkv.attention.TILE_LOGITS", 2 * 3 * 7 * 2)  # two queries a tile
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator) for n in (5, 7, 7))
    for a, b in zip(tiled_attention(q, k, v), partial_attention(q, k, v), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_bits_are_off_by_less_than_a_step_whatever_the_size_of_the_numbers(dtype: torch.dtype) -> None:
    x = (torch.randn(2, 3, 50, 16) * torch.logspace(-6, 6, 50)[:, None]).to(dtype)
    stored = Stored.of(x, "int8")
    assert stored.factor is not None and sum(t.nbytes for t in stored.tensors) == 2 * 3 * 50 * (16 + 2)
    error = (stored.read(dtype).float() - x.float()).abs().amax(-1)
    step = x.float().abs().amax(-1) / 126
    assert (error <= 0.6 * step if dtype == torch.float32 else error <= 1.1 * step).all()
    assert int(stored.numbers.abs().max()) <= 127 and (Stored.of(x * 0, "int8").read(dtype) == 0).all()


def test_an_8_bit_schedule_allocates_what_its_tokens_take_and_stays_near_the_full_cache() -> None:
    qkv = random_qkv(GEOMETRY, 2)
    schedule = replace(Schedule.full(GEOMETRY, "any"), storage="int8")
    cache = ScheduleCache(GEOMETRY, schedule)
    for a, b in zip(play(full_cache(GEOMETRY), qkv), play(cache, qkv), strict=True):
        torch.testing.assert_close(a, b, atol=5e-2, rtol=0)
    per_token = 2 * (GEOMETRY.head_dim + 2)
    assert cache.peak_bytes == GEOMETRY.full_peak_tokens * 2 * per_token


def ragged_pieces(dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[Piece], Tensor]:
    """Queries, pieces that differ in their heads, and attention over them under a mask."""
    generator = torch.Generator().manual_seed(5)
    shapes = ((3, None), (7, (0, 2)), (5, (1, 2, 3)), (4, None))
    q, *kv = (torch.randn(2, 4, n, 16, generator=generator).to(dtype) for n in (4, *(n for n, _ in shapes)))
    k_all, v_all = torch.cat(kv, 2), torch.cat([-x.flip(2) for x in kv], 2)
    pieces, hidden, start = [], torch.ones(4, k_all.shape[2], dtype=torch.bool), 0
    for n, heads in shapes:
        index = list(heads or range(4))
        k, v = (x[:, index, start : start + n] for x in (k_all, v_all))
        pieces.append(Piece(k, v, heads))
        hidden[index, start : start + n] = False
        start += n
    logits = (q.double() @ k_all.double().transpose(2, 3)).masked_fill(hidden[:, None], -torch.inf)
    return q, pieces, logits.softmax(-1) @ v_all.double()


@pytest.mark.parametrize("split", [0, 60, 1 << 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ragged_attention_equals_masked_attention(
    monkeypatch: pytest.MonkeyPatch, split: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(attention, "SPLIT_PAIRS", split)
    attention.call_groups.cache_clear()
    q, pieces, expected = ragged_pieces(dtype)
    tolerance = 2e-5 if dtype == torch.float32 else 3e-2
    got = attention.ragged_attention(q, pieces)
    attention.call_groups.cache_clear()
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)


def test_heads_of_very_different_length_get_calls_of_their_own() -> None:
    assert attention.head_groups([100, 20, 100, 90], 1 << 14) == [[0, 2], [3], [1]]
    assert attention.head_groups([100, 20, 100, 90], 1) == [[0, 1, 2, 3]]


def test_what_variable_length_flash_attention_is_given_equals_masked_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel runs on CUDA only; here its definition, a loop over sequences, stands in for it."""

    def loop(q: Tensor, k: Tensor, v: Tensor, q_ends: Tensor, k_ends: Tensor, longest_q: int, longest_k: int) -> Tensor:
        assert q_ends.dtype == k_ends.dtype == torch.int32
        assert longest_q == int(q_ends.diff().max()) and longest_k == int(k_ends.diff().max())
        outs = []
        for a, b, c, d in zip(q_ends[:-1], q_ends[1:], k_ends[:-1], k_ends[1:], strict=True):
            p = torch.einsum("nhd,mhd->hnm", q[a:b], k[c:d]).softmax(-1)
            outs.append(torch.einsum("hnm,mhd->nhd", p, v[c:d]))
        return torch.cat(outs)

    monkeypatch.setattr(attention, "has_varlen", lambda q: True)
    monkeypatch.setattr(attention, "flash_varlen", loop)
    q, pieces, expected = ragged_pieces()
    torch.testing.assert_close(attention.ragged_attention(q, pieces).double(), expected, atol=2e-5, rtol=1e-5)
