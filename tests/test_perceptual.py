"""The distance of features: it is believed only as far as it orders pairs whose order is known."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from heatkv.study import perceptual
from heatkv.study.metrics import METRICS
from heatkv.study.shards import Outcome, Sample, Shard
from heatkv.study.statistics import add_measured
from heatkv.study.tables import markdown_table

SHEET = Path(__file__).parents[1] / "assets" / "models" / "pocket" / "samples.webp"
installed = pytest.mark.skipif(not perceptual.available(), reason="the extra `perceptual` is not installed")


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """The nine tiles of the sheet of samples with most in them, ``[9, 128, 128, 3]``."""
    sheet = np.asarray(Image.open(SHEET).convert("RGB"))
    rows, columns = sheet.shape[0] // 128, sheet.shape[1] // 128
    tiles = (
        sheet[: rows * 128, : columns * 128].reshape(rows, 128, columns, 128, 3).swapaxes(1, 2).reshape(-1, 128, 128, 3)
    )
    return tiles[np.argsort(-tiles.std((1, 2, 3)))[:9]]


@installed
def test_equal_pictures_are_at_no_distance_and_it_is_symmetric(pictures: np.ndarray) -> None:
    assert (perceptual.perceptual(pictures, pictures) == 0).all()
    there, back = perceptual.perceptual(pictures, pictures[::-1]), perceptual.perceptual(pictures[::-1], pictures)
    np.testing.assert_allclose(there, back, rtol=1e-5)
    assert perceptual.perceptual(pictures[:0], pictures[:0]).shape == (0,)


@installed
def test_more_noise_is_farther_and_another_picture_farther_than_a_shifted_one(pictures: np.ndarray) -> None:
    noise = np.random.default_rng(0).normal(size=pictures.shape)
    levels = [(pictures + sd * noise).round().clip(0, 255).astype(np.uint8) for sd in (2, 5, 10, 20, 40)]
    distances = [perceptual.perceptual(pictures, noised) for noised in levels]
    assert all((a < b).all() for a, b in pairwise(distances))
    shifted, others = np.roll(pictures, 1, 2), np.roll(pictures, 1, 0)
    assert (perceptual.perceptual(pictures, shifted) < perceptual.perceptual(pictures, others)).mean() > 0.8


@installed
def test_pictures_of_different_sizes_are_refused(pictures: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be of one size"):
        perceptual.perceptual(pictures, pictures[:, :32])


def test_nothing_of_it_is_imported_where_it_is_not_asked_for() -> None:
    code = "import sys, heatkv.study.compare; assert not any('efficientnet' in name for name in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_comparison_that_measured_it_has_one_more_column() -> None:
    row = {
        "policy": "heatkv", "budget": 0.5, "psnr": 30.0, "psnr_foreground": 29.0, "ssim": 0.9, "bit_agreement": 0.8,
        "kv_bytes_peak": 5, "ci95": {"psnr": [29.0, 31.0]},
    }  # fmt: skip
    result = {"rows": [row], "references": {}, "kv_bytes_full": 10}
    without = markdown_table(result).splitlines()
    add_measured(row, ("perceptual",), np.array([[1.0], [3.0]]), prompts=2)
    table = markdown_table(result).splitlines()
    assert [line.count("|") for line in table] == [line.count("|") + 1 for line in without]
    assert table[-1].endswith("| 2.000 (1.000 to 3.000) |") and "EfficientNet-Lite0" in table[0]


def test_a_shard_keeps_it_and_an_image_that_has_none_spoils_the_shard() -> None:
    facts = {"kv_bytes_peak": 1.0, "share_16bit": 1.0, "seconds": 1.0}
    shard = Shard("policy", 0, Sample(("a", "b"), (0, 1)), "heatkv", 0.5)
    good = Outcome(facts, np.ones((2, len(METRICS))), np.ones((2, 6)), perceptual_I=np.array([0.25, 0.5]))
    read = Outcome.from_bytes(good.to_bytes("x"), "x", shard)
    assert read is not None and read.perceptual_I.tolist() == [0.25, 0.5]
    bad = replace(good, perceptual_I=np.array([np.nan, 0.5]))
    assert Outcome.from_bytes(bad.to_bytes("x"), "x", shard) is None
