"""S-CAS and the orders that follow from it equal the published accumulator's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from heatkv.scales import Geometry, ScaleSchedule
from heatkv.scores import HeadScores, orders_to_json

Vectors = tuple[HeadScores, dict[str, Any], npt.NDArray[np.float64]]


@pytest.fixture(scope="module")
def scas_tiny(conformance: Path) -> Vectors:
    """Calibrate from the attention probabilities of the vectors, prompt by prompt, then merged."""
    load_file = pytest.importorskip("safetensors.torch").load_file
    config = json.loads((conformance / "scas_tiny.json").read_text())
    tensors = load_file(conformance / "scas_tiny.safetensors")
    scales = ScaleSchedule(tuple((h, w) for _, h, w in config["scale_schedule"]))
    geometry = Geometry(config["num_layers"], config["num_heads"], 8, scales)
    prompts = []
    for p in range(config["num_prompts"]):
        mass_LHTS = np.zeros((geometry.layers, geometry.heads, len(scales), len(scales)))
        for t in range(len(scales)):
            for layer in range(geometry.layers):
                # Only the conditional row counts. The published accumulator adds keys and averages queries in float32
                # and everything else in float64; in float64 throughout, scores would differ by 4e-8.
                probs_HNN = tensors[f"probs.p{p}.t{t}.l{layer}"][0].float()
                for s, (first, end) in enumerate(scales.bounds[: t + 1]):
                    mass_LHTS[layer, :, t, s] = probs_HNN[:, :, first:end].sum(2).mean(1).numpy()
        prompts.append(HeadScores("tiny", geometry, mass_LHTS, (f"prompt {p}",), 1))
    return prompts[0].merge(prompts[1]), config, tensors["scores"].numpy()


def test_scas_is_the_published_one(scas_tiny: Vectors) -> None:
    scores, config, published_LHS = scas_tiny
    scas_LHS = scores.scas(config["sink_scales"])
    prunable = slice(config["sink_scales"], -1)
    np.testing.assert_allclose(scas_LHS[:, :, prunable], published_LHS[:, :, prunable], rtol=0, atol=1e-12)
    assert (np.isnan(scas_LHS) == (published_LHS == -1)).all()


def test_orders_are_the_published_ones_ties_included(scas_tiny: Vectors) -> None:
    scores, config, published_LHS = scas_tiny
    distinct = len(np.unique(published_LHS[:, :, 2:-1]))
    assert distinct < published_LHS[:, :, 2:-1].size, "the vectors are meant to hold ties"
    orders_SN = scores.orders(config["sink_scales"])
    assert json.loads(orders_to_json(orders_SN, scores.geometry)) == config["orders"]
