"""What a calibration measures beside the attention mass: the change without a cell, and the spread over queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peers import scores_of
from strategies import random_scores
from test_cache import GEOMETRY, SCALES, play, random_qkv
from test_calibration import explicit_mass

from heatkv.calibration import CalibratingCache
from heatkv.scores import HeadScores


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


def test_what_is_measured_beside_the_mass_survives_files_and_merging(tmp_path: Path) -> None:
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
