"""What training shows: repainted pictures and their names, how often which picture comes, the shape of the schedule."""

from __future__ import annotations

import colorsys
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from heatkv.training import data, loop, transformer
from heatkv.training.__main__ import make_parser, settings_of
from heatkv.training.tokenizer import TokenizerRun
from heatkv.training.transformer import TransformerRun

VAR_SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def picture(*colours: tuple[int, int, int], side: int = 12) -> np.ndarray:
    """Stripes of colours on a white page, with a border."""
    image = np.full((side, side, 3), 255, np.uint8)
    width = (side - 4) // len(colours)
    for i, colour in enumerate(colours):
        image[2:-2, 2 + i * width : 2 + (i + 1) * width] = colour
    return image


def hue_of(pixel: np.ndarray) -> float:
    return colorsys.rgb_to_hsv(*(pixel / 255))[0]


def circular(a: float, b: float) -> float:
    return abs((a - b + 0.5) % 1 - 0.5)


@pytest.mark.parametrize("colour", data.HUES)
def test_a_picture_of_one_colour_takes_on_the_asked_hue(colour: str) -> None:
    image = picture((200, 40, 30))
    painted = data.repaint(image[None], data.HUES[colour])[0]
    assert circular(hue_of(painted[6, 6]), data.HUES[colour]) < 0.01
    assert painted[6, 6].max() == 200, "as bright as before"
    assert (painted[0] == 255).all(), "the page stays white"
    assert data.nearest_colour(painted[None]) == [colour]


def test_black_and_white_stay_and_grey_takes_on_colour() -> None:
    painted = data.repaint(picture((0, 0, 0), (255, 255, 255), (120, 120, 120), (200, 0, 0))[None], data.HUES["blue"])[
        0
    ]
    assert (painted[6, 2] == 0).all() and (painted[6, 4] == 255).all()
    assert int(painted[6, 6, 2]) - int(painted[6, 6, 0]) > 40, "grey becomes blue"


def test_parts_of_different_hue_can_still_be_told_apart() -> None:
    image = picture((200, 30, 30), (200, 160, 30))
    painted = data.repaint(image[None], data.HUES["green"])[0]
    left, right = hue_of(painted[6, 3]), hue_of(painted[6, 8])
    before = circular(hue_of(image[6, 3]), hue_of(image[6, 8]))
    assert 0.2 * before < circular(left, right) < 0.3 * before
    assert data.nearest_colour(painted[None]) == ["green"]


def test_pictures_are_repainted_independently_of_each_other() -> None:
    a, b = picture((200, 30, 30)), picture((20, 60, 220))
    both = data.repaint(np.stack([a, b]), 0.5)
    assert (both[0] == data.repaint(a[None], 0.5)[0]).all() and (both[1] == data.repaint(b[None], 0.5)[0]).all()


def test_the_main_hue_is_that_of_the_coloured_pixels_and_wraps_around_red() -> None:
    grey_and_blue = picture((100, 100, 100), (90, 90, 90), (100, 100, 100), (0, 80, 255))
    around_red = picture((255, 0, 30), (255, 30, 0))
    assert data.nearest_colour(np.stack([grey_and_blue, around_red])) == ["blue", "red"]


@pytest.mark.parametrize(
    ("label", "colour", "name"),
    [
        ("red apple", "blue", "blue apple"),  # the colour of the label is exchanged
        ("cat face", "blue", "blue cat face"),
        ("red apple", "green", None),  # is a picture already
        ("red apple", "red", None),  # nothing changes
        ("large blue diamond", "red", None),  # which word would it replace?
        ("", "red", None),
    ],
)
def test_names_of_repainted_pictures(label: str, colour: str, name: str | None) -> None:
    assert data.repainted_label(label, colour, frozenset({"red apple", "green apple", "cat face"})) == name


def small_dataset() -> data.Dataset:
    emoji = [
        data.Emoji(label, ("tag",), style, f"{i:x}", group)
        for i, (label, group) in enumerate([("cat face", 3), ("red apple", 4), ("man", data.GROUP_PEOPLE), ("plus", 8)])
        for style in data.STYLES
    ]
    images = np.stack([picture((200, 40, 30))] * len(emoji))
    return data.Dataset(images, tuple(emoji))


def test_repaintings_are_of_fluent_things_and_one_in_ten_is_held_out() -> None:
    labels = [f"thing {i}" for i in range(200)]
    emoji = tuple(data.Emoji(label, (), style, "f", 3) for label in labels for style in data.STYLES)
    dataset = data.Dataset(np.zeros((len(emoji), 1, 1, 3), np.uint8), emoji)
    trained, held_out = transformer.repaintings(dataset), transformer.repaintings(dataset, held_out=True)
    assert len(trained) + len(held_out) == 200 * len(data.HUES)
    assert 0.07 < len(held_out) / (len(trained) + len(held_out)) < 0.13
    assert not {name for *_, name in trained} & {name for *_, name in held_out}
    assert all(transformer.is_held_out_repainting(name) for *_, name in held_out)
    assert all(dataset.emoji[i].style == "fluent" for i, *_ in trained + held_out)
    colours = Counter(colour for _, colour, _ in held_out)
    assert set(colours) == set(data.HUES), "every colour is held out for some things, and trained for others"


def test_people_and_signs_are_not_repainted() -> None:
    dataset = small_dataset()
    both = transformer.repaintings(dataset) + transformer.repaintings(dataset, held_out=True)
    assert {dataset.emoji[i].label for i, *_ in both} == {"cat face", "red apple"}


def test_fluent_pictures_and_things_are_drawn_more_often() -> None:
    dataset = small_dataset()
    weights = transformer.draw_weights(dataset, TransformerRun(fluent_weight=5.0, variant_weight=0.3))
    found = {(e.label, e.style): float(w) for e, w in zip(dataset.emoji, weights, strict=True)}
    assert found["cat face", "fluent"] == 5 and found["cat face", "noto"] == 1
    assert found["man", "fluent"] == found["plus", "fluent"] == pytest.approx(1.5)
    assert found["man", "twemoji"] == pytest.approx(0.3)


def test_a_repainted_picture_goes_by_its_new_name() -> None:
    rng = random.Random(0)
    emoji = data.Emoji("red apple", ("fruit", "ripe"), "fluent", "f", 4)
    said = Counter(transformer.training_prompt(emoji, rng, "blue apple") for _ in range(400))
    assert set(said) == {"blue apple", "fluent blue apple"}
    assert 0.6 < said["blue apple"] / 400 < 0.8


def test_the_learning_rate_warms_up_stays_and_falls_to_nothing() -> None:
    rates = [loop.learning_rate(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01) and rates[99] == 1
    assert set(rates[99:600]) == {1.0}
    assert all(a > b for a, b in pairwise(rates[600:]))
    assert rates[800] == pytest.approx(0.5) and 0 < rates[-1] < 0.01


def test_a_run_can_be_prolonged_while_the_rate_is_constant() -> None:
    """Up to the step where the shorter run starts to fall, both runs have had the same rates."""
    assert [loop.learning_rate(s, 1000) for s in range(600)] == [loop.learning_rate(s, 5000) for s in range(600)]


def test_a_thinned_dataset_keeps_pictures_with_what_is_known_of_them() -> None:
    dataset = small_dataset()
    thin = dataset.thinned(5)
    assert len(thin.images) == len(thin.emoji) == 3
    assert [e.label for e in thin.emoji] == [dataset.emoji[i].label for i in (0, 5, 10)]
    assert transformer.make_vocabulary(thin) == transformer.make_vocabulary(dataset), "and all words"


def test_flags_and_lists_of_settings_reach_the_run() -> None:
    parsed = make_parser()
    base = ["transformer", "--folder", "f"]
    assert settings_of(parsed.parse_args(base), TransformerRun) == TransformerRun()
    assert settings_of(parsed.parse_args([*base, "--no-compile"]), TransformerRun) == TransformerRun(compile=False)
    assert settings_of(parsed.parse_args([*base, "--compile", "--depth", "10"]), TransformerRun).depth == 10
    finer = [
        "tokenizer",
        "--folder",
        "f",
        "--side",
        "128",
        "--scales",
        *["1", "2", "3", "4", "5", "6", "8", "10", "13", "16"],
    ]
    run = settings_of(parsed.parse_args(finer), TokenizerRun)
    assert run == TokenizerRun(side=128, scales=VAR_SIDES)
    assert len(run.config.steps) == 10
    with pytest.raises(SystemExit):
        parsed.parse_args([*base, "--compile", "yes"])


def test_missing_pictures_of_a_size_say_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"heatkv\.training data --folder .* --side 128"):
        data.load(data.pictures_path(tmp_path, 128))


def test_prompts_fill_as_many_places_whatever_their_length() -> None:
    from tiny import tiny_model

    encoder = tiny_model().text
    ids = transformer.word_ids(encoder, ["red apple", "nothing known"])
    assert ids.shape == (2, transformer.MAX_WORDS)
    assert (ids[0] > 0).sum() == 2 and torch.equal(ids[1, :2], torch.tensor([1, 0])), "an unknown prompt keeps a word"
