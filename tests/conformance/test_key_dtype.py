"""What it costs to keep keys in bfloat16, where the published cache keeps them in float32 (measured on the vectors).

Values are bfloat16 in both. The published attention itself runs in bfloat16 (Infinity) or TF32 (HeatKV's kernel), so
rounding the keys alone, in an otherwise float32 run, shows the most that their dtype can change.
"""

from __future__ import annotations

from pathlib import Path

import torch
from test_published_infinity import LONG, load, make_transformer, run_end_to_end, text_of
from torch import Tensor

from heatkv.cache.seam import ScheduleCache
from heatkv.schedule import Schedule


class RoundedKeys(ScheduleCache):
    """The full cache with keys rounded to bfloat16."""

    def attend(self, layer: int, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        return super().attend(layer, q_BHND, k_BHND.bfloat16().float(), v_BHND)


def test_bfloat16_keys_change_few_bits(conformance: Path) -> None:
    tiny, expected = load(conformance, "infinity_tiny"), load(conformance, "heatkv_e2e_tiny")
    geometry = make_transformer(tiny, LONG).geometry
    cache = RoundedKeys(geometry, Schedule.full(geometry, "any"))
    logits, bits = run_end_to_end(tiny, text_of(expected, "text", [7]), cache)
    official = [expected[f"full.bits_s{k}"].bool() for k in range(len(LONG))]
    total = sum(float((a == b).sum()) for a, b in zip(bits, official, strict=True)) / sum(b.numel() for b in official)
    error = max(float((logits[k] - expected[f"full.logits_s{k}"]).abs().max()) for k in range(len(LONG)))
    spread = float(expected[f"full.logits_s{len(LONG) - 1}"].std())
    print(f"bfloat16 keys: {total:.2%} of bits agree, largest change of a logit {error:.4f} (deviation {spread:.2f})")
    # Measured: all bits agree and no logit changes by more than 0.013 at a standard deviation of 2.2.
    assert total > 0.99
    assert error < 0.1 * spread


def test_keys_in_the_compute_dtype_take_two_thirds_of_the_published_bytes() -> None:
    published, ours = 4 + 2, torch.bfloat16.itemsize * 2
    assert ours / published == 2 / 3
