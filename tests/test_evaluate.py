"""Evaluation of a model: what is measured is what is said to be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from heatkv import load
from heatkv.training import data, evaluate, export, tokenizer, transformer
from heatkv.training.evaluate import Evaluation
from heatkv.training.tokenizer import TokenizerRun
from heatkv.training.transformer import TransformerRun

CPU = torch.device("cpu")
FEW = Evaluation(names=3, draws=2, colours=2, batch=4)


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    """Discs of many colours with names, most of them of objects."""
    rng = np.random.default_rng(0)
    labels = [f"thing{i}" for i in range(90)] + ["red apple", "cat face"]
    emoji, images = [], []
    y, x = np.mgrid[:64, :64] - 31.5
    disc = (x**2 + y**2 < 24**2)[..., None]
    for i, label in enumerate(labels):
        group = data.GROUP_PEOPLE if i < 10 else 3
        for style in data.STYLES:
            emoji.append(data.Emoji(label, ("tag", "round"), style, f"{i:x}", group))
            images.append(np.where(disc, rng.integers(0, 256, 3), 255))
    return data.Dataset(np.stack(images).astype(np.uint8), tuple(emoji))


@pytest.fixture(scope="module")
def run(dataset: data.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    tokenizer.train(dataset, folder, TokenizerRun(steps=1, batch=2), CPU)
    small = TransformerRun(steps=1, batch=2, depth=1, width=32, heads=2, repaint=0, compile=False)
    transformer.train(dataset, folder, small, CPU)
    export.export(folder, folder / "m", "m")
    export.calibrate_bundled(load(folder / "m", "cpu"), ["cat face"], folder / "m")
    return folder


def test_everything_is_measured_and_told(run: Path, dataset: data.Dataset) -> None:
    from heatkv.models import bundled_scores

    model, said = load(run / "m", "cpu"), []
    autoencoder = tokenizer.load_trained(run / "tokenizer.pt")
    result = evaluate.evaluate(model, autoencoder, dataset, bundled_scores(run / "m"), FEW, said.append)
    assert said, "progress is reported"
    sent = json.loads(json.dumps(result, allow_nan=False))
    assert sent["tokenizer"].keys() == {"train", "held_out"}
    assert len(sent["bits"]["per_scale"]) == 8 and 0.3 < sent["bits"]["mean"] < 0.9
    assert sent["retrieval"]["objects"]["pool"].startswith("82 labels"), "people are left out"
    assert sent["retrieval"]["all"]["pool"].startswith("92 labels")
    for pool in sent["retrieval"].values():
        assert pool["chance"] == pytest.approx(1 / 3, abs=1e-3)
        assert len(pool["draws"]["pixels"]) == len(pool["draws"]["latents"]) == 2
    assert sent["colours"]["held_out"]["names"] == sent["colours"]["trained"]["names"] == 2
    assert sent["cost"]["kv_bytes"] == 2 * 1 * 32 * 140 * 2 * 4, "rows x width x tokens x (key, value) x float32"
    assert sent["specialisation"]["heads"] == 2
    card = evaluate.markdown(result)
    assert "82 labels of all groups but people and symbols" in card and "scale 8" in card and "entropy" in card
    result["specialisation"] = None
    assert "entropy" not in evaluate.markdown(result)


def perfect(monkeypatch: pytest.MonkeyPatch, answers: dict[str, np.ndarray]) -> None:
    """A model that draws what it was told to."""
    monkeypatch.setattr(evaluate, "draw", lambda model, prompts, seeds, batch: np.stack([answers[p] for p in prompts]))


def test_retrieval_finds_the_own_picture_and_not_another(
    run: Path, dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, autoencoder = load(run / "m", "cpu"), tokenizer.load_trained(run / "tokenizer.pt")
    many = Evaluation(names=20, draws=2)
    fluent = {e.label: dataset.images[i] for i, e in enumerate(dataset.emoji) if e.style == "fluent"}
    perfect(monkeypatch, fluent)
    found = evaluate.retrieval(model, autoencoder, dataset, "all", many)
    assert (found["pixels"], found["latents"], found["missed_by_latents"]) == (1, 1, [])
    perfect(monkeypatch, dict.fromkeys(fluent, fluent["red apple"]))
    found = evaluate.retrieval(model, autoencoder, dataset, "all", many)
    assert found["pixels"] <= 1 / 20 and found["latents"] <= 1 / 20
    assert len(found["missed_by_latents"]) >= 19


def test_colour_words_count_only_where_the_picture_had_another_colour(
    run: Path, dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, settings = load(run / "m", "cpu"), Evaluation(colours=20)
    for held_out in (False, True):
        painted = {name: (i, colour) for i, colour, name in transformer.repaintings(dataset, held_out)}
        perfect(
            monkeypatch, {n: data.repaint(dataset.images[i : i + 1], data.HUES[c])[0] for n, (i, c) in painted.items()}
        )
        found = evaluate.colour_words(model, dataset, held_out, settings)
        assert (found["share"], found["missed"]) == (1, [])
        perfect(monkeypatch, {name: dataset.images[i] for name, (i, _) in painted.items()})
        assert evaluate.colour_words(model, dataset, held_out, settings)["share"] == 0


def test_distances_are_squared_and_between_all_pairs() -> None:
    a, b = np.array([[[0, 0]], [[200, 0]]], np.uint8), np.array([[[0, 3]], [[0, 0]], [[200, 4]]], np.uint8)
    assert evaluate.distances(a, b).tolist() == [[9, 0, 40016], [40009, 40000, 16]]
