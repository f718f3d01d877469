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

from heatkv.models.infinity.words import Vocabulary, split_words
from heatkv.training import data, grounds, loop, pool, scenes, transformer
from heatkv.training.__main__ import STAGES, make_parser, settings_of
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


def test_a_white_page_stays_white_where_resizing_left_colours_above_their_opacity() -> None:
    picture = np.array([[[6, 5, 0, 4], [9, 9, 9, 9], [0, 0, 0, 0]]], np.uint8)
    assert data.on_white(picture).tolist() == [[[255, 255, 251], [255, 255, 255], [255, 255, 255]]]


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


LABELS = [("cat face", 3), ("red apple", 4), ("lion", 3), ("man", data.GROUP_PEOPLE), ("plus", 8), ("car", 5)]


def small_dataset(side: int = 32) -> data.Dataset:
    """Discs, each of a colour of its own, that leave the corners clear."""
    emoji, images = [], []
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    disc = x**2 + y**2 < (0.4 * side) ** 2
    for i, (label, group) in enumerate(LABELS):
        for style in data.STYLES:
            emoji.append(data.Emoji(label, ("tag", "round"), style, f"{i:x}", group))
            picture = np.zeros((side, side, 4), np.uint8)
            picture[disc] = (40 * i, 200 - 40 * i, 30, 255)
            images.append(picture)
    return data.Dataset(np.stack(images), tuple(emoji))


def drawn(mix: scenes.Mix, count: int = 200) -> list[scenes.Scene]:
    source = scenes.Scenes(small_dataset(), mix)
    return [source.draw(random.Random(seed)) for seed in range(count)]


def only(kind: str, **settings: float) -> scenes.Mix:
    none = dict.fromkeys(("single", "pair", "count", "three", "between", "pattern"), 0.0)
    return scenes.Mix(**{**none, kind: 1.0, "plain": 1.0, "repaint": 0.0, **settings})  # type: ignore[arg-type]


def test_the_seed_says_what_is_on_a_scene() -> None:
    one, same, other = (scenes.Scenes(small_dataset()).draw(random.Random(seed)) for seed in (1, 1, 2))
    assert (one.image == same.image).all() and one.prompt == same.prompt
    assert one.image.shape == (32, 32, 3) and one.image.dtype == np.uint8
    assert one.prompt != other.prompt or (one.image != other.image).any()


def blobs(image: np.ndarray) -> int:
    """Connected patches that are not white."""
    todo = {(int(y), int(x)) for y, x in np.argwhere((image < 200).any(-1))}
    found = 0
    while todo:
        found += 1
        edge = [todo.pop()]
        while edge:
            y, x = edge.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & todo
            todo -= near
            edge += near
    return found


def test_as_many_things_are_drawn_as_the_prompt_says() -> None:
    numbers = {"two": 2, "three": 3, "four": 4}
    told = [scene for scene in drawn(only("count")) if set(scene.prompt.split()) & set(numbers)]
    right = 0
    for scene in told:
        number = next(numbers[word] for word in scene.prompt.split() if word in numbers)
        assert len(scene.labels) == number and len(set(scene.labels)) == 1
        right += blobs(scene.image) == number
    assert len(told) > 100 and right > 0.9 * len(told), "things overlap rarely"


def test_left_is_left_and_above_is_above() -> None:
    colours = {label: (40 * i, 200 - 40 * i, 30) for i, (label, _) in enumerate(LABELS)}
    found: Counter[str] = Counter()
    for scene in drawn(only("pair", fluent=1e9), 300):
        for words, axis, sign in ((" left of ", 1, 1), (" right of ", 1, -1), (" above ", 0, 1), (" below ", 0, -1)):
            first, _, second = scene.prompt.removeprefix("fluent ").partition(words)
            if not second or first == second:
                continue
            centres = [np.argwhere((scene.image == colours[label]).all(-1)).mean(0) for label in (first, second)]
            assert sign * (centres[1][axis] - centres[0][axis]) > 0, scene.prompt
            found[words] += 1
    assert len(found) == 4 and min(found.values()) >= 5


def standing(kind: str, **settings: float) -> dict[str, set[tuple[int, ...]]]:
    """Where things of one size stand, by the word that says where: the first rows and columns that each covers."""
    found: dict[str, set[tuple[int, ...]]] = {}
    for scene in drawn(only(kind, **settings), 900):
        words = scene.prompt.split()
        where = next((word for word in words if word in (*scenes.SIDES, "above", "below")), "")
        covered = [np.argwhere(scene.owner == number) for number in range(1, len(scene.labels) + 1)]
        if all(len(cells) for cells in covered):
            corners = tuple(int(edge) for cells in covered for edge in cells.min(0))
            found.setdefault(where, set()).add(corners)
    return found


def test_a_small_thing_stands_at_any_cell_and_a_word_settles_one_way_only() -> None:
    found = standing("single", large=0.0)
    first = min(column for places in found.values() for _, column in places)
    assert {column - first for _, column in found[""]} == set(range(9)) == {row - first for row, _ in found[""]}
    assert {column - first for _, column in found["left"]} == {0} and len(found["left"]) == 9
    assert {row - first for row, _ in found["bottom"]} == {8} and len(found["bottom"]) == 9
    assert len(found["middle"]) == 1


def test_two_things_side_by_side_stand_at_heights_of_their_own() -> None:
    heights = {(corners[0], corners[2]) for corners in standing("pair")["left"]}
    assert len(heights) > 60, "of nine heights each, so that two seeds hardly ever agree"


def test_prompts_leave_something_open() -> None:
    prompts = [scene.prompt for scene in drawn(only("pair", plain=0.0), 300)]
    told = sum(any(word in prompt.split() for word in (*grounds.COLOURS, *grounds.PLACES)) for prompt in prompts)
    assert 0.5 < told / 300 < 0.9, "a background is named in part of the prompts"
    placed = sum(any(word in prompt.split() for word in ("left", "right", "above", "below")) for prompt in prompts)
    assert 0.5 < placed / 300 < 0.8, "and so is where the two stand"


def test_settled_grounds_always_look_alike() -> None:
    seen: dict[str, set[bytes]] = {}
    for seed in range(200):
        ground = grounds.draw_settled_ground(random.Random(seed), 32, white=0.3)
        assert ground.say(random.Random(seed + 1)) in ("", ground.words)
        seen.setdefault(ground.words, set()).add(ground.canvas.tobytes())
    assert set(seen) == {"", *grounds.SETTLED}
    assert all(len(canvases) == 1 for canvases in seen.values())


def test_every_word_of_every_prompt_is_known() -> None:
    vocabulary = Vocabulary(tuple(scenes.Scenes(small_dataset()).words))
    words = {word for scene in drawn(scenes.Mix(plain=0.2), 600) for word in split_words(scene.prompt)}
    assert {word for word in words if vocabulary.id(word) is None} == set()
    assert {"two", "left", "grass", "night", "checks", "small", "between"} <= words


def test_what_is_shown_grows_from_everyday_things_to_everything() -> None:
    course = scenes.Course(small_dataset(), grow=3, widen=5, steps=6)
    stages = ([course.at(step).draw(random.Random(i)) for i in range(100)] for step in (0, 4, 5))
    everyday, first, everything = ({label for scene in stage for label in scene.labels} for stage in stages)
    assert everyday == {"cat face", "red apple", "lion"}
    assert first == {"cat face", "red apple", "lion", "car"}
    assert everything >= {"man", "plus"}
    early = [course.at(4).draw(random.Random(i)).prompt for i in range(100)]
    assert not any("noto" in prompt or "twemoji" in prompt for prompt in early)


def test_a_model_of_everyday_things_knows_the_words_that_it_is_shown_and_no_others() -> None:
    course = scenes.Course(small_dataset(), grow=3, widen=5, steps=3)
    said = {word for i in range(3000) for word in split_words(course.last.draw(random.Random(i)).prompt)}
    known = {course.vocabulary.words[number - 1] for word in said if (number := course.vocabulary.id(word))}
    assert {word for word in said if course.vocabulary.id(word) is None} == set()
    assert set(course.vocabulary.words) - known == {"the", "a", "pattern"} - known, "articles are read over"


def test_every_cell_says_what_covers_it() -> None:
    for scene in drawn(only("pair", fluent=1e9), 50):
        opacity = (255 - scene.image[..., 2].astype(float)) / (255 - 30)  # all discs are as blue
        covered = opacity.reshape(16, 2, 16, 2).mean((1, 3))
        assert scene.owner.shape == (16, 16) and set(np.unique(scene.owner)) <= {0, 1, 2}
        assert ((scene.owner > 0) == (covered > scenes.COVERED)).mean() > 0.95
        for number, label in enumerate(scene.labels, 1):
            i = [known for known, _ in LABELS].index(label)
            here = np.repeat(np.repeat(scene.owner == number, 2, 0), 2, 1)
            if scene.labels.count(label) == 1:
                assert here[(scene.image == (40 * i, 200 - 40 * i, 30)).all(-1)].mean() > 0.9


def test_a_bare_prompt_mostly_means_fluent() -> None:
    source = scenes.Scenes(small_dataset())
    bare: Counter[str] = Counter()
    for seed in range(600):
        rng = random.Random(seed)
        style = source.pick_style(rng)
        bare[style] += not source.style_word(style, rng)
    assert bare["fluent"] > 8 * (bare["noto"] + bare["twemoji"])


def test_repaintings_are_of_fluent_things_and_one_in_ten_is_held_out() -> None:
    labels = [f"thing {i}" for i in range(200)]
    emoji = tuple(data.Emoji(label, (), style, "f", 3) for label in labels for style in data.STYLES)
    dataset = data.Dataset(np.zeros((len(emoji), 1, 1, 4), np.uint8), emoji)
    trained, held_out = scenes.repaintings(dataset), scenes.repaintings(dataset, held_out=True)
    assert len(trained) + len(held_out) == 200 * len(data.HUES)
    assert 0.07 < len(held_out) / (len(trained) + len(held_out)) < 0.13
    assert not {name for *_, name in trained} & {name for *_, name in held_out}
    assert all(dataset.emoji[i].style == "fluent" for i, *_ in trained + held_out)
    colours = Counter(colour for _, colour, _ in held_out)
    assert set(colours) == set(data.HUES), "every colour is held out for some things, and trained for others"


def test_what_is_held_out_is_never_drawn() -> None:
    held_out = {name for *_, name in scenes.repaintings(small_dataset(), held_out=True)}
    shown = {name for *_, name in scenes.repaintings(small_dataset())}
    asked = " ; ".join(scene.prompt for scene in drawn(only("single", repaint=1.0, large=1.0), 400))
    assert held_out and not [name for name in held_out if f" {name} " in f" {asked} "]
    assert sum(name in asked for name in shown) > 5


def test_a_repainted_thing_keeps_its_outline() -> None:
    picture = small_dataset().images[0]
    painted = scenes.repainted(picture, data.HUES["blue"])
    assert (painted[..., 3] == picture[..., 3]).all()
    assert data.nearest_colour(data.on_white(painted)[None]) == ["blue"]


def test_grounds_are_drawn_as_they_are_called() -> None:
    seen: dict[str, np.ndarray] = {}
    for seed in range(400):
        ground = grounds.draw_ground(random.Random(seed), 64, 0.1)
        assert ground.canvas.shape == (64, 64, 3) and ground.canvas.min() >= 0 and ground.canvas.max() < 256
        seen[ground.words] = ground.canvas
    assert (seen[""] == 255).all()
    assert (seen["on red"] == grounds.COLOURS["red"]).all()
    grass = seen["on grass"]
    assert grass[-1, 0, 1] > grass[-1, 0, 2] and grass[0, 0, 2] > grass[0, 0, 1], "green below, sky above"
    assert seen["at night"].mean() < 90
    checks = next(canvas for words, canvas in seen.items() if words.endswith("checks"))
    assert len(np.unique(checks.reshape(-1, 3), axis=0)) == 2
    assert {word for words in seen for word in words.split()} <= grounds.WORDS


def test_a_pool_draws_the_same_pictures_after_a_stop() -> None:
    source = scenes.Scenes(small_dataset())
    whole, later = (pool.Pool(lambda x: x.mean((2, 3)), torch.device("cpu"), 6, ["lion"]) for _ in range(2))
    whole.add(source.draw, 0, 4)
    for first in (4, 6):
        whole.add(source.draw, first, 2)
    later.add(source.draw, 2, 6)
    assert sorted(whole.prompts) == sorted(later.prompts) and len(whole.rows) == 6
    both = (torch.stack(sorted(p.rows, key=lambda row: row.tolist())) for p in (whole, later))
    torch.testing.assert_close(*both)


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
    assert len(thin.images) == len(thin.emoji) == 4
    assert [e.label for e in thin.emoji] == [dataset.emoji[i].label for i in (0, 5, 10, 15)]


def test_flags_and_lists_of_settings_reach_the_run() -> None:
    parsed = make_parser()
    base = ["transformer", "--folder", "f"]
    for stage, (_, settings) in STAGES.items():
        assert settings_of(parsed.parse_args([stage, "--folder", "f"]), settings) == settings()
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
