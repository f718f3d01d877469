"""Evaluation of a model: what is measured is what is said to be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from heatkv import generate, load
from heatkv.models import bundled_scores
from heatkv.training import blind, data, evaluate, export, scenes, sheet, tokenizer, transformer
from heatkv.training.evaluate import Evaluation
from heatkv.training.tokenizer import TokenizerRun
from heatkv.training.transformer import TransformerRun

CPU = torch.device("cpu")
FEW = Evaluation(names=3, draws=2, colours=2, pairs=1, batch=4)


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    """Bars of many colours and widths with names, most of them of objects."""
    rng = np.random.default_rng(0)
    labels = [f"thing{i}" for i in range(90)] + ["red apple", "cat face"]
    emoji, images = [], []
    for i, label in enumerate(labels):
        group = data.GROUP_PEOPLE if i < 10 else 3
        for style in data.STYLES:
            emoji.append(data.Emoji(label, ("tag", "round"), style, f"{i:x}", group))
            picture = np.zeros((32, 32, 4), np.uint8)
            picture[4:28, 15 - i % 12 : 16 + i % 11] = (*rng.integers(0, 200, 3), 255)
            images.append(picture)
    return data.Dataset(np.stack(images), tuple(emoji))


@pytest.fixture(scope="module")
def run(dataset: data.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    bits = TokenizerRun(
        side=32, scales=(1, 2, 3, 8), stride=4, width_mult=(1, 2), patch=2, base_width=8, steps=1, batch=2
    )
    tokenizer.train(scenes.Scenes(dataset), folder, bits, CPU)
    small = TransformerRun(
        steps=1,
        grow=0,
        widen=0,
        batch=2,
        start=4,
        short_scales=3,
        depth=1,
        width=32,
        heads=2,
        samples=0,
        compile=False,
    )
    transformer.train(dataset, folder, small, CPU)
    export.export(folder, folder / "m", "m")
    export.calibrate_bundled(load(folder / "m", "cpu"), ["cat face"], folder / "m")
    return folder


def test_everything_is_measured_and_told(run: Path, dataset: data.Dataset) -> None:
    from heatkv.models import bundled_scores

    model, said = load(run / "m", "cpu"), []
    result = evaluate.evaluate(model, dataset, ["red apple"], bundled_scores(run / "m"), FEW, said.append)
    assert said, "progress is reported"
    sent = json.loads(json.dumps(result, allow_nan=False))
    assert sent["retrieval"]["objects"]["pool"].startswith("82 labels"), "people are left out"
    assert sent["retrieval"]["all"]["pool"].startswith("92 labels")
    for pool in sent["retrieval"].values():
        assert pool["chance"] == pytest.approx(1 / 3, abs=1e-3) and len(pool["draws"]) == 2
    assert sent["colours"]["held_out"]["names"] == sent["colours"]["trained"]["names"] == 2
    assert sent["cost"]["kv_bytes"] == 1 * 1 * 32 * 14 * 2 * 4, "rows x width x tokens x (key, value) x float32"
    assert sent["places"]["prompts"] == 4 and set(sent["places"]["relations"]) == set(evaluate.RELATIONS)
    assert sent["specialisation"]["heads"] == 2 and sent["seeds"]["scenes"] == 1
    card = evaluate.markdown(result)
    assert "82 labels of all groups but people and symbols" in card and "Another seed" in card and "entropy" in card
    result["specialisation"] = result["seeds"] = None
    assert "entropy" not in evaluate.markdown(result)


def perfect(monkeypatch: pytest.MonkeyPatch, answers: dict[str, np.ndarray]) -> None:
    """A model that draws what it was told to."""
    monkeypatch.setattr(evaluate, "draw", lambda model, prompts, seeds, batch: np.stack([answers[p] for p in prompts]))


def placed(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture uint8 ``[32, 32, 4]`` somewhere on a larger sky, mirrored."""
    page = np.empty((48, 48, 3), np.uint8)
    page[:] = np.linspace((120, 180, 240), (220, 235, 250), 48)[:, None]
    top, left = rng.integers(0, 16, 2)
    part = page[top : top + 32, left : left + 32]
    opaque = picture[:, ::-1, 3:] > 0
    part[:] = np.where(opaque, picture[:, ::-1, :3], part)
    return page


@pytest.mark.parametrize(("obeyed", "share"), [(True, 1.0), (False, 0.0)])
def test_places_are_right_where_both_things_stand_as_asked_and_not_the_other_way_round(
    run: Path, dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch, obeyed: bool, share: float
) -> None:
    art = {e.label: dataset.images[i] for i, e in enumerate(dataset.emoji) if e.style == "fluent"}

    def paint(model: object, prompts: list[str], seeds: list[int], batch: int) -> np.ndarray:
        pages = np.full((len(prompts), 64, 64, 3), 255, np.uint8)
        for page, prompt in zip(pages, prompts, strict=True):
            relation = next(r for r in evaluate.RELATIONS if f" {r} " in prompt)
            one, two = (data.on_white(art[name]) for name in prompt.split(f" {relation} "))
            first, second = (one, two) if (relation in ("left of", "above")) == obeyed else (two, one)
            row, column = (0, 32) if relation in ("left of", "right of") else (32, 0)
            page[:32, :32], page[row : row + 32, column : column + 32] = first, second
        return pages

    monkeypatch.setattr(evaluate, "draw", paint)
    found = evaluate.place_words(load(run / "m", "cpu"), dataset, Evaluation(pairs=8))
    assert found["prompts"] == 32 and found["differ"] > 0.9
    assert found["share"] == pytest.approx(share, abs=0.1)


def test_retrieval_finds_the_own_picture_wherever_it_stands_and_not_another(
    run: Path, dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rng = load(run / "m", "cpu"), np.random.default_rng(0)
    many = Evaluation(names=20, draws=2)
    fluent = {e.label: placed(dataset.images[i], rng) for i, e in enumerate(dataset.emoji) if e.style == "fluent"}
    perfect(monkeypatch, fluent)
    found = evaluate.retrieval(model, dataset, "all", many)
    assert found["share"] > 0.9
    perfect(monkeypatch, dict.fromkeys(fluent, fluent["red apple"]))
    found = evaluate.retrieval(model, dataset, "all", many)
    assert found["share"] <= 1 / 20 and len(found["missed"]) >= 19


def test_only_names_that_the_model_knows_are_asked_for(run: Path, dataset: data.Dataset) -> None:
    model = load(run / "m", "cpu")
    assert evaluate.knows(model, "red apple")
    assert not evaluate.knows(model, "red zeppelin") and not evaluate.knows(model, "zeppelin")
    unknown = data.Emoji("zeppelin", (), "fluent", "ff", 5)
    larger = data.Dataset(np.concatenate([dataset.images, dataset.images[:1]]), (*dataset.emoji, unknown))
    assert evaluate.candidates(model, larger, "all") == evaluate.candidates(model, dataset, "all")


def test_nothing_drawn_is_cut_out_as_nothing() -> None:
    assert (evaluate.cut_out(np.full((1, 20, 20, 3), 90, np.uint8)) == 255).all()


def test_colour_words_count_only_where_the_picture_had_another_colour(
    run: Path, dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, settings = load(run / "m", "cpu"), Evaluation(colours=20)
    for held_out in (False, True):
        painted = {name: (i, colour) for i, colour, name in scenes.repaintings(dataset, held_out)}
        right = {
            name: data.on_white(scenes.repainted(dataset.images[i], data.HUES[colour]))
            for name, (i, colour) in painted.items()
        }
        perfect(monkeypatch, right)
        assert evaluate.colour_words(model, dataset, held_out, settings)["share"] > 0.9
        perfect(monkeypatch, {name: data.on_white(dataset.images[i]) for name, (i, _) in painted.items()})
        assert evaluate.colour_words(model, dataset, held_out, settings)["share"] == 0


def test_distances_are_squared_and_between_all_pairs() -> None:
    a, b = np.array([[[0, 0]], [[200, 0]]], np.uint8), np.array([[[0, 3]], [[0, 0]], [[200, 4]]], np.uint8)
    assert evaluate.distances(a, b).tolist() == [[9, 0, 40016], [40009, 40000, 16]]


def test_blind_sheets_show_what_the_key_says_and_do_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, count in (("WORDS", 4), ("SCENES", 2), ("RANKINGS", 2)):
        monkeypatch.setattr(blind, name, count)
    model, scores = load("pocket"), bundled_scores("pocket")
    *_, rankings, key_path = blind.sheets(model, scores, tmp_path, seed=1)
    key = json.loads(key_path.read_text())
    assert (len(key["words"]), len(key["scenes"]), len(key["rankings"])) == (4, 2, 2)
    with Image.open(rankings) as page:
        assert page.size[0] == 2 * (3 * 129 + 2 * sheet.GAP), "two prompts: full cache, A and B"
        shown = np.asarray(page.convert("RGB")).astype(float)
    place = {"A": 1, "B": 2}
    for i, asked in enumerate(key["rankings"]):
        ranked = generate(model, asked["prompt"], 100 + i, policy="heatkv+16", budget=0.1, scores=scores)
        left = i * (3 * 129 + 2 * sheet.GAP) + sheet.GAP
        cells = [
            shown[sheet.GAP + sheet.LINE :][:128, left + place[letter] * 129 :][:, :128]
            for letter in (asked["heatkv+16"], "AB".replace(asked["heatkv+16"], ""))
        ]
        wanted = np.asarray(ranked.image).astype(float)
        ours, other = (np.abs(cell - wanted).mean() for cell in cells)
        assert ours < other and ours < 4, "the key names the picture of the ranking"
    monkeypatch.setattr(blind, "WORDS", 1000)
    with pytest.raises(ValueError, match="takes 1000"):
        blind.sheets(model, scores, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_pairs_of_one_picture_are_counted_beside_the_mean(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def paint(model: object, prompts: list[str], seeds: list[int], batch: int) -> np.ndarray:
        pages = np.full((len(prompts), 8, 8, 3), 255, np.uint8)
        for page, prompt, seed in zip(pages, prompts, seeds, strict=True):
            page[:] = 0 if prompt == "open" and seed else 255
        return pages

    monkeypatch.setattr(evaluate, "draw", paint)
    found = evaluate.another_seed(load(run / "m", "cpu"), ["open", "closed", "open"], Evaluation())
    assert (found["identical"], found["scenes"], found["median"]) == (1, 3, 0.0) and found["psnr"] > 30
    assert "1 of 3 pairs are one and the same picture" in evaluate.seeds_markdown(found)[0]


def test_pools_of_the_same_names_are_measured_once(run: Path, dataset: data.Dataset) -> None:
    model = load(run / "m", "cpu")
    assert evaluate.distinct_pools(model, dataset) == ["objects", "all"]
    objects = [i for i, e in enumerate(dataset.emoji) if e.group not in data.VARIANT_GROUPS]
    few = data.Dataset(dataset.images[objects], tuple(dataset.emoji[i] for i in objects))
    assert evaluate.distinct_pools(model, few) == ["objects"]
