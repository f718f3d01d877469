"""The cache: what it computes equals masked attention, what it holds never exceeds its budget."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Problem, lines_only, problems
from torch import Tensor

from heatkv.budget import MIXED, least_budget
from heatkv.cache import attention
from heatkv.cache.arena import Arena
from heatkv.cache.attention import PartialAttention, merge, partial_attention, partial_weights, tiled_attention
from heatkv.cache.by_line import LineMemory
from heatkv.cache.by_scale import ScaleMemory
from heatkv.cache.layout import Layout
from heatkv.cache.packed_lines import PackedLineMemory
from heatkv.cache.seam import Entries, KVCache, ScheduleCache, full_cache, full_schedule
from heatkv.formats import FORMATS, Ends, Format, Symmetric
from heatkv.policies import plan
from heatkv.scales import Geometry, ScaleSchedule
from heatkv.schedule import Schedule

LINES = Geometry(layers=3, heads=4, head_dim=8, scales=ScaleSchedule.lines(condition=3, height=5, width=4))
SCALES = ScaleSchedule(((1, 1), (1, 2), (2, 2), (2, 3), (3, 4), (4, 4)))
GEOMETRY = Geometry(layers=3, heads=4, head_dim=8, scales=SCALES)


def read_back(x: Tensor, name: str, plane: int = 0) -> Tensor:
    """Keys (0) or values (1) of cells ``[..., N, D]`` as they are read after they were stored in a format."""
    form = next(side for planes, side in FORMATS[name].sides if planes.start <= plane < planes.stop)
    read = torch.empty_like(x)
    if not form.bits:
        return x
    codes, ranges = form.encode(x)
    form.decode(codes, form.steps(ranges), read)
    return read


def mixed(schedule: Schedule, seed: int = 0) -> Schedule:
    """The schedule with a random format for every cell: what it keeps stays within its budget."""
    table_LHS = np.random.default_rng(seed).integers(1, len(FORMATS), schedule.drop_at_LHS.shape)
    return replace(schedule, storage=MIXED, stored_as_LHS=table_LHS, budget=1.0)


def stored_in(schedule: Schedule, storage: str) -> Schedule:
    return mixed(schedule) if storage == MIXED else replace(schedule, storage=storage, budget=1.0)


def farthest(x: Tensor, form: Format) -> Tensor:
    """How far the numbers of cells ``[..., N, D]`` are from themselves, at the most, once a format has rounded them."""
    low, high = x.aminmax(dim=-1 if form.ranges == "token" else -2, keepdim=True)
    # An eighth of an octave and the centre's rounding wider than the numbers; or as wide as their centre needs.
    width = torch.maximum(high - low, (low + high).abs() / 2 * 32 / 127) * 2 ** (1 / 8) * 32 / 31
    if isinstance(form, Symmetric):
        width = 2 * torch.maximum(high, -low) * 8 / 7.5 * 1.05  # the factor, in bfloat16, is off by 2^-8
    if isinstance(form, Ends):  # half a step more beyond either end, which is off by 2^-11
        off = torch.maximum(low.abs(), high.abs()) * 2**-10
        width = ((high - low) * 1.001 / (2**form.bits - 1) + off) * 2**form.bits
    return 0.51 * width / 2**form.bits


class LookedAt(ScheduleCache):
    """Remembers what every head has read of every segment."""

    def __init__(self, geometry: Geometry, schedule: Schedule) -> None:
        super().__init__(geometry, schedule)
        self.read: dict[tuple[int, int, int], tuple[Tensor, Tensor, np.ndarray]] = {}

    def look(self, layer: int, q_BHND: Tensor, entries: Entries) -> None:
        for head in range(self.geometry.heads):
            self.read[layer, head, self.scale] = entries.of_head(head)


class MaskedReference(KVCache):
    """Keeps everything, rounded as it is stored, and hides what the schedule has dropped: slow, and obviously right.

    Numbers of a line in 8 bits often lie in the middle between two of fewer bits, and a rounding error in the last
    digit decides. So for cells of complete lines in fewer bits it takes what ``cache`` has read, once that was seen to
    be as near as the format can come.
    """

    def __init__(self, geometry: Geometry, schedule: Schedule, cache: LookedAt | None = None) -> None:
        super().__init__(geometry)
        self.schedule, self.cache = schedule, cache
        self.kv: dict[int, Tensor] = {}  # [2, B, H, N, D] of a layer

    def _attend(self, layer: int, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        own = torch.stack((k_BHND, v_BHND))
        by_line, encoded = self.geometry.scales.by_line, self.schedule.encoded
        if by_line and encoded and self.scale and not self.first:
            self._complete(layer, self.scale - 1)
        earlier = self.kv.get(layer, own[:, :, :, :0])
        k_BHND, v_BHND = torch.cat([earlier, own], 3)
        if not by_line:
            own = self._as_stored(layer, own)
        elif encoded and self.scale:  # in 8 bits, until the line is complete; a condition comes complete
            own = read_back(own, "int8")
        self.kv[layer] = torch.cat([earlier, own], 3)
        keep_HS = torch.from_numpy(self.schedule.keep(self.scale)[layer])
        tokens = torch.tensor(self.geometry.scales.tokens)
        mask_BHN = torch.repeat_interleave(keep_HS, tokens, dim=1)[None, :, : k_BHND.shape[2]]
        if self.hidden_BT is not None and self.scale:
            mask_BHN = mask_BHN & ~F.pad(self.hidden_BT, (0, k_BHND.shape[2] - self.hidden_BT.shape[1]))[:, None]
        mask_BHNN = mask_BHN[:, :, None] if self.mask_BNN is None else self.mask_BNN[:, None]
        logits = q_BHND.double() @ k_BHND.double().transpose(-1, -2)
        return (logits.masked_fill(~mask_BHNN, -torch.inf).softmax(-1) @ v_BHND.double()).to(q_BHND.dtype)

    def _formats(self, layer: int, scale: int) -> list[str]:
        return [list(FORMATS)[i] for i in self.schedule.formats_LHS[layer, :, scale]]

    def _as_stored(self, layer: int, x_2BHND: Tensor) -> Tensor:
        heads = [
            torch.stack([read_back(x_BND, name, plane) for plane, x_BND in enumerate(x_2BND)])
            for name, x_2BND in zip(self._formats(layer, self.scale), x_2BHND.unbind(2), strict=True)
        ]
        return torch.stack(heads, 2)

    def _complete(self, layer: int, segment: int) -> None:
        """What is kept of a segment is now stored in the format of its cell."""
        start, end = self.geometry.scales.bounds[segment]
        for head, name in enumerate(self._formats(layer, segment)):
            x_2BND = self.kv[layer][:, :, head, start:end]
            if name == "int8":  # as the tokens of a line are already
                x_2BND.copy_(x_2BND if segment else read_back(x_2BND, name))
            elif self.schedule.drop_at_LHS[layer, head, segment] > self.scale:
                assert self.cache is not None
                k_BMD, v_BMD, position_M = self.cache.read[layer, head, self.scale]
                own = torch.from_numpy((start <= position_M) & (position_M < end))
                stored_2BND = torch.stack((k_BMD, v_BMD))[:, :, own]
                for planes, form in FORMATS[name].sides:
                    off = (stored_2BND - x_2BND)[planes].abs()
                    assert (off <= farthest(x_2BND[planes], form) + 2e-6).all()
                x_2BND.copy_(stored_2BND)


def calls(scales: ScaleSchedule) -> list[int]:
    """The segment of every call of ``attend``."""
    return [k for k in range(len(scales)) for _ in range(scales.tokens[k] // scales.tokens_a_call(k))]


def random_qkv(geometry: Geometry, batch: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    """[call][layer] -> tensor [3, B, H, N, D]."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [
            torch.randn(3, batch, geometry.heads, n, geometry.head_dim, generator=generator).to(dtype)
            for _ in range(geometry.layers)
        ]
        for n in map(geometry.scales.tokens_a_call, calls(geometry.scales))
    ]


def play(cache: KVCache, qkv: list[list[Tensor]], mask_BTT: Tensor | None = None) -> list[Tensor]:
    """What ``attend`` returns, call by call; the first comes with a mask."""
    return [
        cache.attend(layer, *tensors, mask_BNN=mask_BTT if call == 0 else None)
        for call, per_layer in enumerate(qkv)
        for layer, tensors in enumerate(per_layer)
    ]


def random_schedule(geometry: Geometry, budget: float, sinks: int, seed: int = 0) -> Schedule:
    return plan(None, budget, "random", sinks, model="test", geometry=geometry, seed=seed)


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("sinks", [0, 1, 3])
@pytest.mark.parametrize("batch", [1, 3])
def test_attention_equals_masked_attention(budget: float, sinks: int, batch: int) -> None:
    schedule = random_schedule(GEOMETRY, budget, sinks)
    qkv = random_qkv(GEOMETRY, batch)
    got, expected = play(ScheduleCache(GEOMETRY, schedule), qkv), play(MaskedReference(GEOMETRY, schedule), qkv)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("storage", [*list(FORMATS)[1:], MIXED])
@pytest.mark.parametrize("budget", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_attention_equals_masked_attention_over_what_was_rounded(storage: str, budget: float, batch: int) -> None:
    """Whatever cells are stored in, their bytes are read back as they were written, and never written twice."""
    schedule = random_schedule(GEOMETRY, budget, 0)
    schedule = stored_in(schedule, storage)
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
    for per_layer in random_qkv(geometry, 2):
        for layer, tensors in enumerate(per_layer):
            cache.attend(layer, *tensors)
            assert cache.allocated_bytes <= limit
            if cache.last_tokens and not cache.last_scale:
                assert cache.tokens == schedule.resident_tokens_TL[cache.scale, layer]
            held = geometry.kv_bytes(cache.tokens, batch=2)
            # The room of a line is taken when it begins.
            assert held <= cache.allocated_bytes if geometry.scales.by_line else held == cache.allocated_bytes
    assert cache.allocated_bytes == 0 and cache.tokens == 0
    assert cache.peak_bytes <= limit and cache.peak_bytes == cache.planned_bytes(2, 4)


@contextmanager
def live_bytes() -> Iterator[Callable[[], int]]:
    """Counts, the hard way, the bytes of all tensors that came to life in here: by what the garbage collector knows."""
    before = set(live_storages())
    gc.freeze()  # what there was before need not be gone through after every call
    try:
        yield lambda: sum(size for pointer, size in live_storages().items() if pointer not in before)
    finally:
        gc.unfreeze()


def live_storages() -> dict[int, int]:
    gc.collect()
    found = [x.untyped_storage() for x in gc.get_objects() if issubclass(type(x), Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


@pytest.mark.parametrize("storage", [*FORMATS, MIXED])
def test_the_cache_takes_the_planned_bytes_at_its_peak_and_nothing_in_the_end(storage: str) -> None:
    """What the tensors alive take, and not what the cache says of itself."""
    schedule = random_schedule(GEOMETRY, 0.4, 1)
    schedule = stored_in(schedule, storage)
    qkv = random_qkv(GEOMETRY, 2)
    play(ScheduleCache(GEOMETRY, schedule), qkv)  # what is worked out once a schedule is kept, and not part of a cache
    with live_bytes() as alive:
        cache = ScheduleCache(GEOMETRY, schedule)
        for t, per_layer in enumerate(qkv):
            for layer, tensors in enumerate(per_layer):
                cache.attend(layer, *tensors)
            assert alive() == (cache.planned_bytes(2, 4) if t < len(SCALES) - 1 else 0)
    assert cache.peak_bytes == cache.planned_bytes(2, 4)


@given(problems())
@settings(max_examples=25)
def test_the_arena_is_full_at_the_peak_and_never_fuller(problem: Problem) -> None:
    geometry = problem.geometry
    schedule = plan(problem.orders_SN, problem.budget, "heatkv", problem.sink_scales, model="test", geometry=geometry)
    cache, most = ScheduleCache(geometry, schedule), 0
    for per_layer in random_qkv(geometry, 1):
        for layer, tensors in enumerate(per_layer):
            cache.attend(layer, *tensors)
            if isinstance(cache._memory, ScaleMemory) and cache._memory._arena:
                most = max(most, cache._memory._arena.used)
    assert geometry.scales.by_line or most == schedule.peak_tokens


def test_rows_of_a_ring_survive_until_they_are_freed_and_no_more_fit_than_it_has() -> None:
    ring = Arena(torch.zeros(7, 1))
    queue: list[tuple[int, int, int]] = []  # start, count, value
    random = np.random.default_rng(0)
    for value in range(1, 200):
        count = int(random.integers(0, 5))
        while ring.used + count > 7:
            with pytest.raises(ValueError, match="of 7 are in use"):
                ring.room(count)
            start, oldest, expected = queue.pop(0)
            assert (ring.read(start, oldest) == expected).all() and len(ring.read(start, oldest)) == oldest
            ring.free(oldest)
        start = ring.room(count)
        for run in ring.runs(start, count):
            run.fill_(value)
        queue.append((start, count, value))


@pytest.mark.parametrize("t", range(len(SCALES)))
def test_a_layout_numbers_every_row_once_and_keeps_what_the_schedule_stores(t: int) -> None:
    schedule = random_schedule(GEOMETRY, 0.5, 1)
    for layer, drop_at_HS in enumerate(schedule.drop_at_LHS):
        layout = Layout.of(drop_at_HS, SCALES.tokens, t)
        rows = np.concatenate([layout.entries_of(head) for head in range(GEOMETRY.heads)])
        assert sorted(rows) == list(range(layout.entries))
        assert (
            len(layout.kept) == schedule.keep(t + 1)[layer, :, : t + 1] @ SCALES.tokens[: t + 1] @ np.ones(4)
            if (t < len(SCALES) - 1)
            else len(layout.kept) == 0
        )


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


@given(problems(lines_only), st.sampled_from([*FORMATS, MIXED]), st.booleans())
@settings(max_examples=60)
def test_lines_attend_to_what_masked_attention_reads(problem: Problem, storage: str, padded: bool) -> None:
    geometry, batch = problem.geometry, 2
    schedule = plan(problem.orders_SN, problem.budget, "heatkv", problem.sink_scales, model="test", geometry=geometry)
    schedule = stored_in(schedule, storage)
    cache = LookedAt(geometry, schedule)
    reference = MaskedReference(geometry, schedule, cache)
    hidden_BT = torch.zeros(batch, geometry.scales.tokens[0], dtype=torch.bool)
    if padded:
        hidden_BT[1, : geometry.scales.tokens[0] - 1] = True
    # Every token of the condition reads itself, and those that are not hidden.
    mask_BTT = (~hidden_BT[:, None]) | torch.eye(hidden_BT.shape[1], dtype=torch.bool)
    mask_BTT[:, -1] = ~hidden_BT
    qkv = random_qkv(geometry, batch)
    for a, b in zip(play(cache, qkv, mask_BTT), play(reference, qkv, mask_BTT), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("storage", [*FORMATS, MIXED])
def test_lines_take_the_planned_bytes_and_a_token_copies_nothing(storage: str) -> None:
    """What the tensors alive take after every call; memory of a layer moves at the beginning of a line only."""
    schedule = stored_in(random_schedule(LINES, 0.6, 1), storage)
    qkv = random_qkv(LINES, 2)
    play(ScheduleCache(LINES, schedule), qkv)  # what is worked out once a schedule is kept, and not part of a cache
    one_token = 2 * 2 * 8 * 4 * LINES.layers * LINES.heads
    with live_bytes() as alive:
        cache = ScheduleCache(LINES, schedule)
        memory, peak, places = cache._memory, 0, 0
        assert isinstance(memory, LineMemory | PackedLineMemory)
        for per_layer in qkv:
            for layer, tensors in enumerate(per_layer):
                places = [held.memory.data_ptr() for held in memory.holders]
                cache.attend(layer, *tensors)
                if cache.scale and cache.first and cache.allocated_bytes:
                    assert places == [held.memory.data_ptr() for held in memory.holders]
                assert cache.allocated_bytes <= alive() <= cache.allocated_bytes + one_token
            peak = max(peak, cache.allocated_bytes)
        assert peak == cache.peak_bytes == cache.planned_bytes(2, 4)
        assert cache.allocated_bytes == cache.tokens == 0 and alive() == 0


def test_nothing_changes_where_a_call_is_refused() -> None:
    qkv = random_qkv(LINES, 1)
    cache = full_cache(LINES)
    for wrong in (qkv[1][0], qkv[0][0][:, :, :3]):
        with pytest.raises(ValueError, match="do not fit"):
            cache.attend(0, *wrong)
        assert (cache.scale, cache.first) == (-1, 0)
    expected = play(full_cache(LINES), qkv)
    assert all(torch.equal(a, b) for a, b in zip(play(cache, qkv), expected, strict=True))
    cache = full_cache(LINES)
    play(cache, qkv[:1])
    with pytest.raises(ValueError, match="line 1 came with a mask"):
        cache.attend(0, *qkv[1][0], mask_BNN=torch.ones(1, 1, 1, dtype=torch.bool))


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
        PartialAttention(*partial_attention(q, k[:, :, :4], v[:, :, :4])),
        PartialAttention(*partial_attention(q[:, heads], k[:, heads, 4:], v[:, heads, 4:]), heads),
    ]
    whole = (q @ k.transpose(-1, -2)).softmax(-1) @ v
    first = (q @ k[:, :, :4].transpose(-1, -2)).softmax(-1) @ v[:, :, :4]
    merged = merge(parts)
    torch.testing.assert_close(merged[:, heads], whole[:, heads], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(merged[:, [1, 3]], first[:, [1, 3]], atol=1e-5, rtol=1e-5)
    weights = list(partial_weights(parts))
    torch.testing.assert_close(weights[0][:, heads] + weights[1], torch.ones(2, 2, 5))


def test_tiled_attention_equals_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heatkv.cache.attention.TILE_LOGITS", 2 * 3 * 7 * 2)  # two queries a tile
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator) for n in (5, 7, 7))
    for a, b in zip(tiled_attention(q, k, v), partial_attention(q, k, v), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_bits_are_off_by_less_than_a_step_whatever_the_size_of_the_numbers(dtype: torch.dtype) -> None:
    x = (torch.randn(2, 3, 50, 16) * torch.logspace(-3, 4, 50)[:, None]).to(dtype)
    error = (read_back(x, "int8").float() - x.float()).abs().amax(-1)
    step = x.float().abs().amax(-1) / 126
    assert (error <= 0.6 * step if dtype == torch.float32 else error <= 1.1 * step).all()
    assert read_back(x * 0, "int8").abs().max() < 1e-7


@pytest.mark.parametrize("name", list(FORMATS)[1:])
@pytest.mark.parametrize("tokens", [1, 2, 25])
@pytest.mark.parametrize("offset", [0.0, -3.0, 1000.0])
def test_rounding_is_off_by_half_a_step_and_takes_the_bytes_that_a_format_says(
    name: str, tokens: int, offset: float
) -> None:
    dim, taken = 16, 0
    x = torch.randn(3, tokens, dim, generator=torch.Generator().manual_seed(tokens)) + offset
    for planes, form in FORMATS[name].sides:
        codes, ranges = form.encode(x)
        taken += (planes.stop - planes.start) * (codes.nbytes + ranges.nbytes)
        error = (read_back(x, name, planes.start) - x).abs()
        assert (error <= farthest(x, form) + 2e-6 * (1 + abs(offset))).all()
    assert taken == 3 * FORMATS[name].cell_bytes(tokens, dim)


def test_keys_and_values_may_differ_in_what_a_range_is_for() -> None:
    """KIVI's finding, on which its storage rests: one channel of keys is far from the others in every token."""
    keys = torch.randn(2, 30, 16, generator=torch.Generator().manual_seed(0))
    keys[..., 3] += 50
    error = [(read_back(keys, "kivi4", plane) - keys).square().mean() for plane in (0, 1)]
    assert error[1] > 100 * error[0]


@pytest.mark.parametrize("name", ["varq4", "kivi4", "kivi2"])
@pytest.mark.parametrize("scales", [ScaleSchedule.square([1, 3, 3, 4]), ScaleSchedule.lines(3, 3, 5)])
def test_ranges_of_two_bytes_may_lie_at_an_odd_one(name: str, scales: ScaleSchedule) -> None:
    geometry = Geometry(1, 1, 12 if name == "kivi2" else 6, scales)
    stored = ScheduleCache(geometry, stored_in(full_schedule(geometry), name))
    qkv = random_qkv(geometry, 1)
    for a, b in zip(play(stored, qkv), play(full_cache(geometry), qkv), strict=True):
        assert (a - b).abs().mean() < 1.5  # in few bits, but of these numbers


def test_more_bits_are_closer() -> None:
    x = torch.randn(4, 30, 32, generator=torch.Generator().manual_seed(0))
    error = [(read_back(x, name) - x).square().mean().item() for name in ("int2", "int4", "int8", "compute")]
    assert error[0] > 8 * error[1] > 64 * error[2] > error[3] == 0


def test_an_8_bit_schedule_allocates_what_its_tokens_take_and_stays_near_the_full_cache() -> None:
    qkv = random_qkv(GEOMETRY, 2)
    schedule = replace(Schedule.full(GEOMETRY, "any"), storage="int8")
    cache = ScheduleCache(GEOMETRY, schedule)
    for a, b in zip(play(full_cache(GEOMETRY), qkv), play(cache, qkv), strict=True):
        torch.testing.assert_close(a, b, atol=5e-2, rtol=0)
    per_token = 2 * (GEOMETRY.head_dim + 2)
    assert cache.peak_bytes == GEOMETRY.full_peak_tokens * 2 * per_token


def ragged_rows(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, list[np.ndarray], Tensor]:
    """Queries, rows, which of them each head reads, and attention over these in float64."""
    generator = torch.Generator().manual_seed(5)
    q = torch.randn(2, 4, 4, 16, generator=generator).to(dtype)
    rows = torch.randn(100, 2, 2, 16, generator=generator).to(dtype)
    chosen = torch.randperm(100, generator=generator).numpy()
    own = [chosen[:35], chosen[35:39], chosen[39:66], chosen[66:]]
    outs = []
    for head, index in enumerate(own):
        k, v = rows[torch.from_numpy(index)].double().permute(1, 2, 0, 3)
        outs.append((q[:, head].double() @ k.transpose(1, 2)).softmax(-1) @ v)
    return q, rows, own, torch.stack(outs, 1)


@pytest.mark.parametrize(("call_pairs", "calls"), [(0, 3), (200, 2), (1 << 30, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ragged_attention_equals_attention_over_each_heads_own_rows(
    monkeypatch: pytest.MonkeyPatch, call_pairs: int, calls: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(attention, "CALL_PAIRS", call_pairs)
    monkeypatch.setattr(attention, "REORDER_PAIRS", 0)
    q, rows, own, expected = ragged_rows(dtype)
    reading = attention.plan_reading(own, len(rows), 8, 16, dtype, q.device)
    assert len(reading.calls) == calls
    tolerance = 2e-5 if dtype == torch.float32 else 3e-2
    got = attention.ragged_attention(q, rows, reading)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)


def test_heads_share_a_call_unless_calls_of_their_own_save_more() -> None:
    assert attention.head_groups([96, 16, 96, 80], 1 << 9) == [[0, 2, 3], [1]]
    assert attention.head_groups([96, 16, 96, 80], 1 << 12) == [[0, 2], [3], [1]]
    assert attention.head_groups([96, 16, 96, 80], 1) == [[0, 1, 2, 3]]
    assert attention.head_groups([96, 90, 96, 85], 1 << 20) == [[0, 1, 2, 3]]  # of equal length once padded


def loop_over_sequences(
    q: Tensor, k: Tensor, v: Tensor, q_ends: Tensor, k_ends: Tensor, longest_q: int, longest_k: int
) -> Tensor:
    """The definition of variable-length attention; the kernel itself runs on CUDA only."""
    assert q_ends.dtype == k_ends.dtype == torch.int32
    assert longest_q == int(q_ends.diff().max()) and longest_k == int(k_ends.diff().max())
    outs = []
    for a, b, c, d in zip(q_ends[:-1], q_ends[1:], k_ends[:-1], k_ends[1:], strict=True):
        p = torch.einsum("nhd,mhd->hnm", q[a:b], k[c:d]).softmax(-1)
        outs.append(torch.einsum("hnm,mhd->nhd", p, v[c:d]))
    return torch.cat(outs)


@pytest.fixture
def _varlen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What runs on CUDA, except for the kernel."""
    monkeypatch.setattr(attention, "has_varlen", lambda *_: True)
    monkeypatch.setattr(attention, "flash_varlen", loop_over_sequences)
    full_schedule.cache_clear()
    yield
    full_schedule.cache_clear()


@pytest.mark.usefixtures("_varlen")
def test_what_variable_length_flash_attention_is_given_equals_attention() -> None:
    q, rows, own, expected = ragged_rows()
    reading = attention.plan_reading(own, len(rows), 8, 16, q.dtype, q.device)
    torch.testing.assert_close(attention.ragged_attention(q, rows, reading).double(), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.usefixtures("_varlen")
@pytest.mark.parametrize("budget", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("storage", ["compute", "int8"])
def test_the_cache_reads_the_same_through_variable_length_attention(budget: float, storage: str) -> None:
    schedule = random_schedule(GEOMETRY, budget, 1)
    qkv = random_qkv(GEOMETRY, 2)
    got = play(ScheduleCache(GEOMETRY, replace(schedule, storage=storage)), qkv)
    reference = MaskedReference(GEOMETRY, replace(schedule, storage=storage))
    for a, b in zip(got, play(reference, qkv), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)
