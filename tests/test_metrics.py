"""Metrics: known values and limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from heatkv.study import metrics


def noise_image(seed: int, side: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_psnr_of_a_known_error() -> None:
    a = np.full((8, 8, 3), 100, np.uint8)
    b = np.full((8, 8, 3), 110, np.uint8)
    assert metrics.psnr(a, b) == pytest.approx(10 * math.log10(255**2 / 100))
    assert metrics.psnr(a, a) == metrics.IDENTICAL_PSNR


def test_white_background_does_not_count_in_the_foreground() -> None:
    a = np.full((10, 10, 3), 255, np.uint8)
    b = a.copy()
    a[:2], b[:2] = 100, 110
    assert metrics.foreground_psnr(a, b) == pytest.approx(10 * math.log10(255**2 / 100))
    assert metrics.psnr(a, b) > metrics.foreground_psnr(a, b) + 6
    white = np.full((4, 4, 3), 255, np.uint8)
    assert metrics.foreground_psnr(white, white) == metrics.IDENTICAL_PSNR


def test_ssim_is_one_for_equal_images_symmetric_and_low_for_noise() -> None:
    a, b = noise_image(0), noise_image(1)
    assert metrics.ssim(a, a) == pytest.approx(1.0)
    assert metrics.ssim(a, b) == pytest.approx(metrics.ssim(b, a))
    assert metrics.ssim(a, b) < 0.2


def test_ssim_equals_the_formula_on_one_window() -> None:
    a, b = noise_image(2, 11), noise_image(3, 11)
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window = (window / window.sum())[..., None]
    x, y = a.astype(float), b.astype(float)
    mx, my = (window * x).sum((0, 1)), (window * y).sum((0, 1))
    vx, vy = (window * x * x).sum((0, 1)) - mx**2, (window * y * y).sum((0, 1)) - my**2
    cov = (window * x * y).sum((0, 1)) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = ((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()
    assert metrics.ssim(a, b) == pytest.approx(expected)


def test_agreement_per_scale_and_overall() -> None:
    a = [np.array([[True, False]]), np.array([[True] * 4])]
    b = [np.array([[True, True]]), np.array([[True] * 4])]
    per_scale = metrics.bit_agreement(a, b)
    assert per_scale == [0.5, 1.0]
    assert metrics.mean_agreement(per_scale, [2, 4]) == pytest.approx(5 / 6)


def test_the_divergence_of_a_distribution_from_itself_is_nothing_however_rounded() -> None:
    """The full cache's log-probabilities are kept in half precision."""
    logits_BV = 3 * torch.randn(8, 2048, generator=torch.Generator().manual_seed(0))
    exact_BV = logits_BV.log_softmax(-1)
    same_kl_B2 = metrics.token_difference(exact_BV.half().float(), exact_BV)
    assert (same_kl_B2[:, 1] < 2e-6).all()
    other_BV = (logits_BV + 0.1 * torch.randn(8, 2048, generator=torch.Generator().manual_seed(1))).log_softmax(-1)
    expected_B = (exact_BV.exp() * (exact_BV - other_BV)).sum(-1).numpy()
    np.testing.assert_allclose(metrics.token_difference(exact_BV.half().float(), other_BV)[:, 1], expected_B, rtol=0.02)


def test_images_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="one size"):
        metrics.psnr(noise_image(0), noise_image(0, 12))
    with pytest.raises(ValueError, match="different scales"):
        metrics.bit_agreement([np.zeros(2)], [np.zeros(3)])


def test_difference_map_is_the_mean_over_channels() -> None:
    a = np.zeros((2, 2, 3), np.uint8)
    b = a.copy()
    b[0, 0] = (30, 60, 90)
    assert metrics.difference_map(a, b).tolist() == [[60, 0], [0, 0]]
