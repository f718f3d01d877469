"""ScaleKV's token selection equals the published code's, with its scoring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from heatkv.policies.allowance import EMPTY, patch_centres
from heatkv.policies.scalekv import ScaleKVCache
from heatkv.policies.tokens import Candidates, Priority
from heatkv.scales import Geometry, ScaleSchedule

SIDES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
FIRST_PRUNED = 7

Vectors = tuple[dict[str, Any], dict[str, Tensor]]


@pytest.fixture(scope="module")
def scalekv_select(conformance: Path) -> Vectors:
    load_file = pytest.importorskip("safetensors.torch").load_file
    config = json.loads((conformance / "scalekv_select.json").read_text())
    return config, load_file(conformance / "scalekv_select.safetensors")


def geometry_of(config: dict[str, Any]) -> Geometry:
    """One layer; a scale of one token at the end, because the published code cuts after the last scale too."""
    return Geometry(1, config["heads"], config["head_dim"], ScaleSchedule.square([*SIDES, 1]))


def capacities_of(config: dict[str, Any]) -> np.ndarray:
    kept = [after for _, _, after in config["len_before_after_per_scale"]]
    base = [config["base_capacity"]] * FIRST_PRUNED
    return np.array([*base, *kept[FIRST_PRUNED:]])[:, None]


def play(cache: ScaleKVCache, tensors: dict[str, Tensor], scale: int) -> None:
    q, k = tensors[f"q_s{scale}"].float(), tensors[f"k_s{scale}"].float()
    cache.attend(0, q, k, torch.zeros_like(k))


def test_the_published_capacities_are_those_of_the_budget_table(scalekv_select: Vectors) -> None:
    assert capacities_of(scalekv_select[0])[FIRST_PRUNED:, 0].tolist() == [632, 594, 526, 420, 465, 465]


@pytest.mark.parametrize("side", [4, 8, 12, 16, 20, 24, 32, 40, 48, 64])
def test_the_window_is_the_published_grid_of_patch_centres(side: int) -> None:
    patch = side // 4
    line = [a * patch + (patch - 1) // 2 for a in range(4)]
    assert patch_centres(side, side, 4).tolist() == [y * side + x for y in line for x in line]


class FollowPublished(ScaleKVCache):
    """Notes what it would keep, and then keeps what was published, so that a tie at one cut does not spread."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__(geometry_of(config), capacities_of(config), "published")
        self.tensors = tensors
        self.ours: dict[int, Tensor] = {}
        self.scores: dict[int, Tensor] = {}

    def rank(self, candidates: Candidates) -> Priority:
        pos_HU = candidates.pos_RU
        chosen_HU = super().rank(candidates).best(candidates.keep_R, pos_HU != EMPTY)
        self.ours[self.scale] = torch.stack([pos[c].sort().values for pos, c in zip(pos_HU, chosen_HU, strict=True)])
        self.scores[self.scale] = cut_scores(candidates, self.geometry, self.scale)
        published_HM = self.tensors[f"kept_pos_s{self.scale}"][0].long()
        return Priority((pos_HU[:, :, None] == published_HM[:, None]).any(2).float())


def cut_scores(candidates: Candidates, geometry: Geometry, scale: int) -> Tensor:
    """Pooled score by position, ``[H, tokens so far]``, written out: inf in the window, NaN where not cached."""
    (start, end), (height, width) = geometry.scales.bounds[scale], geometry.scales[scale]
    window = patch_centres(height, width, 4)
    logits_HU = candidates.logits(candidates.q_RND)[:, window].sum(1) / geometry.head_dim**0.5
    scores_HN = torch.full((len(logits_HU), end), torch.nan)
    for head, (pos, logits) in enumerate(zip(candidates.pos_RU, logits_HU, strict=True)):
        there = (pos != EMPTY).nonzero().flatten()
        there = there[pos[there].argsort()]
        row = logits[there].masked_fill(torch.isin(pos[there], start + window), -torch.inf)
        neighbours = torch.nn.functional.pad(row, (2, 2), value=-torch.inf).unfold(0, 5, 1).amax(1)
        scores_HN[head, pos[there]] = neighbours
        scores_HN[head, start + window] = torch.inf
    return scores_HN


def test_each_scale_keeps_the_published_tokens(scalekv_select: Vectors) -> None:
    config, tensors = scalekv_select
    cache = FollowPublished(config, tensors)
    for t in range(len(SIDES)):
        play(cache, tensors, t)
        published_HM = tensors[f"kept_pos_s{t}"][0].long()
        assert torch.equal(torch.stack(cache.held_positions(0)), published_HM), f"scale {t}"
    assert sorted(cache.ours) == list(range(FIRST_PRUNED, len(SIDES)))
    for t, ours_HM in cache.ours.items():
        published_HM = tensors[f"kept_pos_s{t}"][0].long()
        assert ours_HM.shape == published_HM.shape
        for ours, theirs, score in zip(ours_HM, published_HM, cache.scores[t], strict=True):
            # Max-pooling makes exact ties: what differs must tie with the lowest score that was kept.
            cut = score[theirs].min()
            differ = score[ours[~torch.isin(ours, theirs)]]
            assert torch.allclose(score[ours].sort().values, score[theirs].sort().values, atol=1e-5), f"scale {t}"
            assert torch.allclose(differ, cut.expand(len(differ)), atol=1e-5), f"scale {t}"


def test_attention_from_the_window_is_what_the_paper_scores_by(scalekv_select: Vectors) -> None:
    """The two scorings differ on these vectors: the test above would notice the wrong one."""
    config, tensors = scalekv_select
    kept = {}
    for scoring in ("paper", "published"):
        cache = ScaleKVCache(geometry_of(config), capacities_of(config), scoring)
        for t in range(FIRST_PRUNED + 1):
            play(cache, tensors, t)
        kept[scoring] = [set(pos.tolist()) for pos in cache.held_positions(0)]
    assert kept["paper"] != kept["published"]
    published = [set(pos.tolist()) for pos in tensors[f"kept_pos_s{FIRST_PRUNED}"][0]]
    agree = np.mean([len(a & b) / len(b) for a, b in zip(kept["published"], published, strict=True)])
    assert agree > 0.99
