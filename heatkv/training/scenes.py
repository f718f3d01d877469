"""Pictures worth remembering: things at random places on random grounds, and prompts that name a part of it.

What a prompt does not say (where a thing stands, how large it is, which way it looks, what is behind it) is decided
while the picture is drawn, so that two seeds differ and what was decided first must be remembered.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from heatkv.models.infinity.words import Vocabulary, split_words
from heatkv.training import data, grounds
from heatkv.training.grounds import Ground, draw_ground, draw_settled_ground

# Pixels, where the picture has 128. Things stand on the grid of the tokenizers' cells and have few sizes, which single
# things and scenes share: then a thing is written in the same tokens wherever it stands, and those are what has to be
# learned.
CELL = 8
SIZES = {"small": 64, "large": 112}
PAIR_SIZE = 64
COUNT_SIZES = {2: 64, 3: 40, 4: 64}
THREE_SIZE = 40
SAID = 0.35  # how often the size of a single thing is said, and its place
COVERED = 0.25  # a cell is of the thing that covers this much of it
# Along the room that a thing leaves: every cell of it for the small ones, so that two seeds hardly ever agree.
PLACES = tuple(i / 8 for i in range(9))

NUMBERS = ("two", "three", "four")
# Where a word puts a thing; along the other way it stands anywhere.
SIDES: dict[str, tuple[float | None, float | None]] = {
    "left": (0.0, None), "right": (1.0, None), "top": (None, 0.0), "bottom": (None, 1.0), "middle": (0.5, 0.5),
}  # fmt: skip
GRAMMAR = ("on", "at", "of", "and", "above", "below", "pattern", "the", "a")
WORDS = frozenset({*NUMBERS, *SIZES, *SIDES, *GRAMMAR, *data.HUES})

# CLDR's groups of things: animals and plants, food, places and vehicles, activities, objects.
THINGS = (3, 4, 5, 6, 7)
NOT_THINGS = ("o’clock", "-thirty", "button", "sign", "symbol", "moon phase")
FIRST_GROUPS = (3, 4, 5)
EVERYDAY = frozenset(
    """
red apple, banana, strawberry, cherries, grapes, lemon, pear, pineapple, watermelon, tomato, carrot, mushroom, broccoli,
ear of corn, avocado, pizza, hamburger, french fries, hot dog, doughnut, birthday cake, soft ice cream, croissant,
teapot, beer mug, wine glass, cat face, dog face, fox, tiger face, lion, panda, koala, penguin, baby chick, frog,
octopus, tropical fish, whale, turtle, snail, butterfly, honeybee, lady beetle, cow face, pig face, monkey face,
rabbit face, unicorn, elephant, owl, crab, sunflower, tulip, rose, cactus, palm tree, evergreen tree, potted plant,
automobile, bus, bicycle, airplane, rocket, flying saucer, sailboat, locomotive, house, castle, volcano, rainbow, sun,
star, cloud, snowman, umbrella, crescent moon, fire, droplet, alarm clock
""".strip()
    .replace("\n", " ")
    .split(", ")
)


@dataclass(frozen=True)
class Mix:
    """How often what is drawn.

    ``single``, ``pair``, ``count``, ``three``, ``between`` and ``pattern`` are weights. ``plain`` is the share of
    white pages, ``large`` that of single things that fill the picture. ``fluent`` is how often a fluent
    picture is drawn for one of another style, ``variant`` how often one of people or signs (many, and much alike)
    for one of anything else. A share ``repaint`` of the fluent things has another colour than the art; a share
    ``mirror`` of all looks the other way.
    ``first`` keeps to fluent animals, plants, food, places and vehicles, ``everyday`` to the plainest of
    them, on few grounds.
    """

    single: float = 0.5
    pair: float = 0.25
    count: float = 0.1
    three: float = 0.05
    between: float = 0.05
    pattern: float = 0.05
    plain: float = 0.55
    large: float = 0.5
    fluent: float = 6.0
    variant: float = 0.25
    repaint: float = 0.12
    mirror: float = 0.3
    first: bool = False
    everyday: bool = False


# What the CPU recipe shows: few things in few sizes, half of them in pairs, on few grounds.
EVERYDAY_SCENES = Mix(
    single=0.42, pair=0.46, count=0.08, three=0.0, between=0.0, pattern=0.04, plain=0.4, large=0.6, repaint=0.3,
    mirror=0.0, everyday=True,
)  # fmt: skip
FIRST = Mix(
    single=0.7, pair=0.18, count=0.06, three=0.02, between=0.02, pattern=0.02, plain=0.65, large=0.6, first=True
)


@dataclass(frozen=True, eq=False)
class Thing:
    """A picture to paste, uint8 ``[side, side, 4]``, what it is called here, and the label of the art it is made of."""

    name: str
    style: str
    picture: np.ndarray
    label: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """A picture, uint8 ``[side, side, 3]``, what is said of it, and the labels of what is on it.

    ``owner`` says of every cell, ``[side / CELL, side / CELL]``, which of ``labels`` covers it: 0 for none, else one
    more than its place there.
    """

    image: np.ndarray
    prompt: str
    labels: tuple[str, ...]
    owner: np.ndarray


class Scenes:
    """Draws scenes of a dataset. Colours that ``is_held_out_repainting`` names are never shown."""

    def __init__(self, dataset: data.Dataset, mix: Mix = Mix()) -> None:
        self.dataset, self.mix = dataset, mix
        emoji = dataset.emoji
        self.known = [i for i, e in enumerate(emoji) if is_shown(e, mix)]
        weights = [
            (mix.fluent if emoji[i].style == "fluent" else 1.0)
            * (mix.variant if emoji[i].group in data.VARIANT_GROUPS else 1.0)
            for i in self.known
        ]
        self.totals: list[float] = np.cumsum(weights).tolist()
        things = {
            style: [i for i in self.known if emoji[i].style == style and is_thing(emoji[i])] for style in data.STYLES
        }
        self.things = {style: found for style, found in things.items() if found}
        self.labels = frozenset(e.label for e in emoji)
        self.kinds: dict[Callable[[random.Random], Scene], float] = {
            self.single: mix.single, self.pair: mix.pair, self.count: mix.count, self.three: mix.three,
            self.between: mix.between, self.pattern: mix.pattern,
        }  # fmt: skip

    @property
    def side(self) -> int:
        return self.dataset.images.shape[1]

    @property
    def shown(self) -> frozenset[str]:
        """The labels of all that it may draw."""
        return frozenset(self.dataset.emoji[i].label for i in self.known)

    @property
    def words(self) -> frozenset[str]:
        """All words that its prompts can have."""
        entries = [self.dataset.emoji[i] for i in self.known]
        texts = [e.label for e in entries]
        if self.mix.everyday:
            texts += grounds.SETTLED
        else:
            texts += [*grounds.WORDS, *(tag for e in entries for tag in e.tags), "between"]
        texts += self.things if len(self.things) > 1 else ()
        return WORDS | {word for text in texts for word in split_words(text)}

    def draw(self, rng: random.Random) -> Scene:
        return rng.choices(list(self.kinds), list(self.kinds.values()))[0](rng)

    # What is drawn

    def single(self, rng: random.Random) -> Scene:
        thing = self.pick(rng)
        before = after = ""
        size = "large" if rng.random() < self.mix.large else "small"
        x, y = rng.choice(PLACES), rng.choice(PLACES)
        if rng.random() < SAID:
            before = size
        if size == "small" and rng.random() < SAID:
            side = rng.choice(list(SIDES))
            across, down = SIDES[side]
            x, y = x if across is None else across, y if down is None else down
            after = f"at {side}"
        ground = self.ground(rng)
        words = thing.name
        if thing.tags and not before and not after and not self.mix.everyday:
            words = named_by_keywords(thing, rng)
        prompt = say(self.style_word(thing.style, rng), before, words, after, ground.say(rng))
        return self.compose(ground, prompt, [(thing, SIZES[size], (x, y))])

    def pair(self, rng: random.Random) -> Scene:
        style = self.pick_style(rng)
        one, two = self.pick(rng, style), self.pick(rng, style)
        apart, across = (0.0, 1.0), (rng.choice(PLACES), rng.choice(PLACES))
        if rng.random() < 0.3:
            places, relation, opposite = list(zip(across, apart, strict=True)), "above", "below"
        else:
            places, relation, opposite = list(zip(apart, across, strict=True)), "left of", "right of"
        told = [(one.name, relation, two.name), (two.name, opposite, one.name), (one.name, "and", two.name)]
        told.append((two.name, "and", one.name))
        words = rng.choices(told, (0.4, 0.25, 0.175, 0.175))[0]
        ground = self.ground(rng)
        prompt = say(self.style_word(style, rng), *words, ground.say(rng))
        return self.compose(ground, prompt, [
            (thing, PAIR_SIZE, place) for thing, place in zip((one, two), places, strict=True)
        ])  # fmt: skip

    def count(self, rng: random.Random) -> Scene:
        thing, number = self.pick(rng, self.pick_style(rng)), rng.randint(2, 4)
        if number == 4:
            places = [(x, y) for y in (0.0, 1.0) for x in (0.0, 1.0)]
        else:
            places = [(i / (number - 1), rng.choice(PLACES)) for i in range(number)]
        ground = self.ground(rng)
        number_word = NUMBERS[number - 2] if rng.random() < 0.8 else ""
        prompt = say(self.style_word(thing.style, rng), number_word, plural(thing.name), ground.say(rng))
        return self.compose(ground, prompt, [(thing, COUNT_SIZES[number], place) for place in places])

    def three(self, rng: random.Random) -> Scene:
        style = self.pick_style(rng)
        things = [self.pick(rng, style) for _ in range(3)]
        ground = self.ground(rng)
        first, second, third = (t.name for t in (things if rng.random() < 0.7 else things[::-1]))
        prompt = say(self.style_word(style, rng), first, second, "and", third, ground.say(rng))
        return self.compose(ground, prompt, [
            (thing, THREE_SIZE, (x, rng.choice(PLACES))) for thing, x in zip(things, (0.0, 0.5, 1.0), strict=True)
        ])  # fmt: skip

    def between(self, rng: random.Random) -> Scene:
        style = self.pick_style(rng)
        inner, outer = self.pick(rng, style), self.pick(rng, style)
        height = rng.choice(PLACES)
        ground = self.ground(rng)
        prompt = say(self.style_word(style, rng), inner.name, "between two", plural(outer.name), ground.say(rng))
        placed = [
            (outer, THREE_SIZE, (0.0, height)),
            (inner, THREE_SIZE, (0.5, height)),
            (mirrored(outer), THREE_SIZE, (1.0, height)),
        ]
        return self.compose(ground, prompt, placed)

    def pattern(self, rng: random.Random) -> Scene:
        thing, across = self.pick(rng, self.pick_style(rng)), 3 if self.mix.everyday else rng.randint(3, 4)
        ground = self.ground(rng)
        prompt = say(self.style_word(thing.style, rng), "pattern of", plural(thing.name), ground.say(rng))
        line = [i / (across - 1) for i in range(across)]
        return self.compose(ground, prompt, [(thing, {3: 40, 4: 32}[across], (x, y)) for y in line for x in line])

    # How it is put together

    def pick(self, rng: random.Random, style: str | None = None) -> Thing:
        """A thing of a style, or any picture; some are repainted, some mirrored."""
        i = rng.choice(self.things[style]) if style else rng.choices(self.known, cum_weights=self.totals)[0]
        entry, picture = self.dataset.emoji[i], self.dataset.images[i]
        if not is_thing(entry):
            return Thing(entry.label, entry.style, picture, entry.label, entry.tags)
        name: str | None = None
        if entry.style == "fluent" and rng.random() < self.mix.repaint:
            colour = rng.choice(list(data.HUES))
            name = data.repainted_label(entry.label, colour, self.labels)
            if name is not None and is_held_out_repainting(name):
                name = None
            if name is not None:
                picture = repainted(picture, data.HUES[colour])
        thing = Thing(name or entry.label, entry.style, picture, entry.label, () if name else entry.tags)
        return mirrored(thing) if rng.random() < self.mix.mirror else thing

    def pick_style(self, rng: random.Random) -> str:
        weights = [self.mix.fluent if style == "fluent" else 1.0 for style in self.things]
        return rng.choices(list(self.things), weights)[0]

    def style_word(self, style: str, rng: random.Random) -> str:
        """Without a style word most pictures shown are fluent, so that is what a bare prompt will mean."""
        often = 0.0 if len(self.things) == 1 else 0.15 if style == "fluent" else 0.9
        return style if rng.random() < often else ""

    def ground(self, rng: random.Random) -> Ground:
        draw = draw_settled_ground if self.mix.everyday else draw_ground
        return draw(rng, self.side, self.mix.plain)

    def compose(self, ground: Ground, prompt: str, placed: list[tuple[Thing, int, tuple[float, float]]]) -> Scene:
        """Paste things of a size (pixels, where the picture has 128) where they go (0 to 1 of the room left)."""
        cell = max(1, CELL * self.side // 128)
        owner = np.zeros((self.side // cell, self.side // cell), np.int16)
        for number, (thing, wanted, (x, y)) in enumerate(placed, 1):
            size = max(1, wanted * self.side // 128)
            left, top = (round(along * (self.side - size) / cell) * cell for along in (x, y))
            picture = resized(thing.picture, size)
            part = ground.canvas[top : top + size, left : left + size]
            part *= 1 - picture[..., 3:] / np.float32(255)
            part += picture[..., :3]
            cells = size // cell
            covered = picture[: cells * cell, : cells * cell, 3].reshape(cells, cell, cells, cell).mean((1, 3))
            here = owner[top // cell : top // cell + cells, left // cell : left // cell + cells]
            here[covered > 255 * COVERED] = number
        image = (ground.canvas + 0.5).clip(0, 255).astype(np.uint8)
        return Scene(image, prompt, tuple(thing.label for thing, *_ in placed), owner)


class Course:
    """What is shown when: everyday things; from step ``grow`` on all first things, from ``widen`` on everything.

    A model knows the words and the things of ``last``, the scenes that are shown at the end of a run of ``steps``.
    """

    def __init__(self, dataset: data.Dataset, grow: int, widen: int, steps: int) -> None:
        self.starts = (grow, widen)
        self.scenes = [Scenes(dataset, mix) for mix in (EVERYDAY_SCENES, FIRST, Mix())]
        self.last = self.at(steps - 1)
        self.vocabulary = Vocabulary(tuple(sorted(self.last.words)))
        self.things = sorted(self.last.shown)

    @property
    def known(self) -> dict[str, list[str]]:
        """What a model of it knows, as its checkpoints say."""
        return {"words": list(self.vocabulary.words), "things": self.things}

    def at(self, step: int) -> Scenes:
        return self.scenes[sum(step >= start for start in self.starts)]


def repaintings(dataset: data.Dataset, held_out: bool = False) -> list[tuple[int, str, str]]:
    """Every (picture, colour, new name) that is shown, or with ``held_out`` that never is."""
    known = frozenset(e.label for e in dataset.emoji)
    return [
        (i, colour, name)
        for i, e in enumerate(dataset.emoji)
        if e.style == "fluent" and is_thing(e)
        for colour in data.HUES
        if (name := data.repainted_label(e.label, colour, known)) and is_held_out_repainting(name) == held_out
    ]


def is_thing(emoji: data.Emoji) -> bool:
    """Something that can stand in a scene with others: a picture of a thing, of a name of three words or less."""
    few = len(split_words(emoji.label)) <= 3
    return emoji.group in THINGS and few and not any(word in emoji.label for word in NOT_THINGS)


def is_shown(emoji: data.Emoji, mix: Mix) -> bool:
    if not mix.first and not mix.everyday:
        return True
    first = emoji.style == "fluent" and emoji.group in FIRST_GROUPS and is_thing(emoji)
    return first and (emoji.label in EVERYDAY or not mix.everyday)


def is_held_out_repainting(name: str) -> bool:
    """One repainted thing in ten is never shown, to see whether colour words compose."""
    return zlib.crc32(name.encode()) % 10 == 0


def mirrored(thing: Thing) -> Thing:
    return replace(thing, picture=thing.picture[:, ::-1])


def resized(picture: np.ndarray, size: int) -> np.ndarray:
    if size == len(picture):
        return picture
    whole = Image.frombytes("RGBa", picture.shape[1::-1], np.ascontiguousarray(picture).tobytes())
    small = whole.resize((size, size), Image.Resampling.BILINEAR)
    return np.frombuffer(small.tobytes(), np.uint8).reshape(size, size, 4)


def repainted(picture: np.ndarray, hue: float) -> np.ndarray:
    """``data.repaint`` of a picture with opacity."""
    opacity = picture[..., 3:].astype(np.float32)
    straight = (picture[..., :3] * (255 / np.maximum(opacity, 1))).clip(0, 255).astype(np.uint8)
    painted = data.repaint(straight[None], hue)[0] * (opacity / 255)
    return np.concatenate([np.rint(painted).astype(np.uint8), picture[..., 3:]], -1)


def named_by_keywords(thing: Thing, rng: random.Random) -> str:
    """Label, label and keyword, or keywords."""
    kind = rng.random()
    if kind < 0.7:
        return thing.name
    if kind < 0.88:
        return f"{thing.name} {rng.choice(thing.tags)}"
    return " ".join(rng.sample(thing.tags, min(len(thing.tags), rng.randint(2, 4))))


def plural(name: str) -> str:
    """As it is said; the vocabulary knows the singular."""
    return name if name.endswith("s") else f"{name}s"


def say(*words: str) -> str:
    return " ".join(word for word in words if word)
