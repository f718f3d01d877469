"""Calibration: the attention mass is exact, adds up, and needs no memory that grows with queries x keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_cache import GEOMETRY, SCALES, play, random_qkv, stored_in
from tiny import tiny_model

from heatkv import calibration
from heatkv.cache.probe import ProbeCache
from heatkv.cache.seam import full_cache, full_schedule
from heatkv.calibration import CalibratingCache, calibrate, calibrate_steps
from heatkv.formats import FORMATS
from heatkv.models.infinity.text import PromptError
from heatkv.scales import Geometry, ScaleSchedule

PROMPTS = ("red apple", "blue cat", "green tree")


def explicit_mass(qkv: list[list[torch.Tensor]], rows: int) -> np.ndarray:
    """Attention mass from full probability matrices."""
    K = len(SCALES)
    mass_LHTS = np.zeros((GEOMETRY.layers, GEOMETRY.heads, K, K))
    for t in range(K):
        for layer in range(GEOMETRY.layers):
            q = qkv[t][layer][0].double()
            k = torch.cat([qkv[s][layer][1] for s in range(t + 1)], 2).double()
            p = (q @ k.transpose(-1, -2)).softmax(-1)[:rows]
            for s, (start, end) in enumerate(SCALES.bounds[: t + 1]):
                mass_LHTS[layer, :, t, s] = p[..., start:end].sum(-1).mean(-1).sum(0).numpy()
    return mass_LHTS


@pytest.mark.parametrize("rows", [1, 2])
def test_mass_equals_the_sum_of_the_probabilities(rows: int) -> None:
    qkv = random_qkv(GEOMETRY, 2)
    cache = CalibratingCache(GEOMETRY, rows=rows)
    play(cache, qkv)
    np.testing.assert_allclose(cache.mass_LHTS, explicit_mass(qkv, rows), atol=1e-6)
    np.testing.assert_allclose(cache.mass_LHTS.sum(-1), rows, atol=1e-6)


def test_attention_under_calibration_equals_the_full_cache() -> None:
    qkv = random_qkv(GEOMETRY, 2)
    for a, b in zip(play(CalibratingCache(GEOMETRY), qkv), play(full_cache(GEOMETRY), qkv), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_calibration_forms_no_array_of_queries_times_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor made while looking at 300 queries and 500 keys is hardly larger than the keys in float32."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for item in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(item, torch.Tensor):
                    largest = max(largest, item.numel())
            return result

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 8, generator=generator) for n in (300, 500, 500))
    bounds = ((0, 30), (30, 200), (200, 500))
    monkeypatch.setattr(calibration, "TILE_PRODUCTS", k.numel())
    with Watch():
        calibration.observe(q, k, v, bounds)
    assert largest <= k.numel() * 10 // 8 < q.shape[2] * k.shape[2]  # values with two columns more


@pytest.mark.parametrize("tile", [1, 200, 1 << 18])
def test_neither_tiles_nor_samples_change_the_mass(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    qkv = random_qkv(GEOMETRY, 2)
    monkeypatch.setattr(calibration, "TILE_PRODUCTS", tile)
    cache = CalibratingCache(GEOMETRY)
    play(cache, qkv)
    np.testing.assert_allclose(cache.mass_LHTS, explicit_mass(qkv, 2), atol=1e-6)
    monkeypatch.setattr(calibration, "SAMPLE_QUERIES", 5)
    sampled = CalibratingCache(GEOMETRY)
    play(sampled, qkv)
    np.testing.assert_allclose(sampled.mass_LHTS, cache.mass_LHTS, atol=1e-5)
    few = [n <= 5 for n in SCALES.tokens]
    np.testing.assert_allclose(sampled.change_LHTS[:, :, few], cache.change_LHTS[:, :, few], atol=1e-6)
    assert not np.allclose(sampled.change_LHTS, cache.change_LHTS, atol=1e-6)


def test_calibration_is_deterministic_and_merges() -> None:
    model = tiny_model()
    together = calibrate(model, PROMPTS, seed=5)
    again = calibrate(model, PROMPTS, seed=5)
    assert np.array_equal(together.mass_sum_LHTS, again.mass_sum_LHTS)
    first, second = calibrate(model, PROMPTS[:1], seed=5), calibrate(model, PROMPTS[1:], seed=6)
    merged = first.merge(second)
    assert merged.prompts == together.prompts
    np.testing.assert_allclose(merged.mass_sum_LHTS, together.mass_sum_LHTS, atol=1e-9)


def test_calibration_does_not_depend_on_the_batch() -> None:
    model = tiny_model()
    one, all_at_once = calibrate(model, PROMPTS), calibrate(model, PROMPTS, batch=3)
    np.testing.assert_allclose(one.mass_sum_LHTS, all_at_once.mass_sum_LHTS, atol=1e-4)


def test_calibration_reports_each_prompt_and_refuses_bad_ones_before_running() -> None:
    model = tiny_model()
    assert [scores.count for scores in calibrate_steps(model, PROMPTS)] == [1, 2, 3]
    with pytest.raises(PromptError, match="zebra"):
        next(calibrate_steps(model, ["red apple", "zebra"]))
    with pytest.raises(ValueError, match="at least one prompt"):
        calibrate(model, [])


def test_probed_attention_sums_to_the_calibrated_mass() -> None:
    qkv = random_qkv(GEOMETRY, 2)
    calibrating = CalibratingCache(GEOMETRY, rows=1)
    probe = ProbeCache(GEOMETRY, [(1, 2), (2, 0)])
    play(calibrating, qkv)
    for a, b in zip(play(probe, qkv), play(full_cache(GEOMETRY), qkv), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    for layer, head in probe.heads:
        for t, p_QN in enumerate(probe.attention[layer, head]):
            mass = [float(p_QN[:, start:end].sum(-1).mean()) for start, end in SCALES.bounds[: t + 1]]
            np.testing.assert_allclose(mass, calibrating.mass_LHTS[layer, head, t, : t + 1], atol=1e-5)


def test_a_probe_looks_at_cells_in_fewer_bits_too() -> None:
    probe = ProbeCache(GEOMETRY, [(1, 2)], stored_in(full_schedule(GEOMETRY), "int4"))
    play(probe, random_qkv(GEOMETRY, 2))
    assert [tuple(p.shape) for p in probe.attention[1, 2]] == [(b - a, b) for a, b in SCALES.bounds]
    for p_QN in probe.attention[1, 2]:
        torch.testing.assert_close(p_QN.sum(1), torch.ones(len(p_QN)))


def test_a_probe_of_a_masked_condition_sees_what_each_token_may_read() -> None:
    geometry = Geometry(1, 2, 4, ScaleSchedule.lines(3, 2, 2))
    probe = ProbeCache(geometry, [(0, 1)])
    (q, k, v), mask_1NN = torch.randn(3, 1, 2, 3, 4), torch.ones(1, 3, 3, dtype=torch.bool).tril()
    out = probe.attend(0, q, k, v, mask_1NN)
    seen_NN = probe.attention[0, 1][0]
    assert (seen_NN.triu(1) == 0).all()
    torch.testing.assert_close(seen_NN @ v[0, 1], out[0, 1])


def test_lines_of_more_tokens_than_are_sampled_are_calibrated_whole() -> None:
    geometry = Geometry(1, 1, 4, ScaleSchedule.lines(1, 2, calibration.SAMPLE_QUERIES + 40))
    cache = CalibratingCache(geometry)
    play(cache, random_qkv(geometry, 1))
    np.testing.assert_allclose(cache.mass_LHTS[0, 0].sum(-1), 1, atol=1e-5)


def test_probing_a_head_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no head 9"):
        ProbeCache(GEOMETRY, [(0, 9)])


@pytest.mark.parametrize("tile", [1, 3, 6])
def test_rounding_counts_every_query_once_whatever_the_tiles(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    generator = torch.Generator().manual_seed(1)
    q_BHND = torch.randn(1, 2, 1, 16, generator=generator).expand(-1, -1, 6, -1)  # all alike: any sample tells all
    k, v = (torch.randn(1, 2, 30, 16, generator=generator) for _ in range(2))
    seen = []
    for queries in (tile, 6):
        monkeypatch.setattr(calibration, "TILE_PRODUCTS", 2 * 2 * 16 * queries)
        seen.append(calibration.observe(q_BHND, k, v, ((0, 10), (10, 30)), spread=False).rounding_HS)
    torch.testing.assert_close(*seen)


def test_what_rounding_changes_is_what_it_was_computed_to_change() -> None:
    """The expectation to first order against attention with a source scale really stored in 4 bits, over many draws."""
    generator = torch.Generator().manual_seed(1)
    bounds, form = ((0, 16), (16, 48), (48, 64)), FORMATS["int4"]
    expected, found = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    for _ in range(20):
        q, k, v = (torch.randn(1, 2, n, 16, generator=generator) for n in (64, 64, 64))
        q = q * 16**-0.5
        rounding_HS = calibration.observe(q, k, v, bounds, spread=False).rounding_HS
        assert rounding_HS is not None
        expected += rounding_HS
        plain = (q @ k.transpose(2, 3)).softmax(-1) @ v
        for s, (start, end) in enumerate(bounds[:-1]):
            rounded = []
            for x in (k, v):
                read = x.clone()
                codes, ranges = form.encode(x[:, :, start:end])
                form.decode(codes, form.steps(ranges), read[:, :, start:end])
                rounded.append(read)
            change = (q @ rounded[0].transpose(2, 3)).softmax(-1) @ rounded[1] - plain
            found[:, s] += change.square().sum((0, 2, 3)) / plain.square().sum()
    torch.testing.assert_close(expected, found, rtol=0.2, atol=0)
