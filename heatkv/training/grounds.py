"""What is behind the things of a scene: a page, a colour, a gradient, a place or a pattern, and the words for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

COLOURS = {
    "red": (229, 72, 77), "orange": (248, 160, 80), "yellow": (250, 214, 90), "green": (96, 190, 110),
    "blue": (88, 140, 236), "purple": (160, 120, 220), "pink": (246, 160, 200), "black": (30, 30, 34),
    "grey": (160, 164, 170), "brown": (150, 108, 78), "white": (255, 255, 255),
}  # fmt: skip
WHITE = np.array(COLOURS["white"], np.float32)
NAMED, SETTLED_NAMED = 0.65, 0.5  # share of the grounds that a prompt names, of all and of the settled ones


@dataclass(frozen=True, eq=False)
class Ground:
    """A canvas float32 ``[side, side, 3]`` (0 to 255, painted on by who asked for it) and what may be said of it."""

    canvas: np.ndarray
    words: str
    named: float = NAMED

    def say(self, rng: random.Random) -> str:
        return self.words if rng.random() < self.named else ""


def colour(rng: random.Random, *without: str) -> tuple[str, np.ndarray]:
    name = rng.choice([c for c in COLOURS if c not in without])
    return name, np.array(COLOURS[name], np.float32)


def shade(rgb: tuple[int, int, int], rng: random.Random) -> np.ndarray:
    """A colour, a little lighter or darker."""
    return np.clip(np.array(rgb, np.float32) * rng.uniform(0.88, 1.08), 0, 255)


def filled(side: int, rgb: np.ndarray) -> np.ndarray:
    return np.broadcast_to(rgb, (side, side, 3)).astype(np.float32)


def two_bands(side: int, upper: np.ndarray, lower: np.ndarray, horizon: float) -> np.ndarray:
    canvas = filled(side, upper)
    canvas[round(horizon * side) :] = lower
    return canvas


def gradient(side: int, upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    share = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    return np.broadcast_to(upper * (1 - share) + lower * share, (side, side, 3)).copy()


def plain(side: int, rng: random.Random) -> Ground:
    name, rgb = colour(rng, "white")
    return Ground(filled(side, rgb), f"on {name}")


def fading(side: int, rng: random.Random) -> Ground:
    first, upper = colour(rng)
    second, lower = colour(rng, first)
    return Ground(gradient(side, upper, lower), f"on {first} and {second}")


def place(words: str, upper: tuple[int, int, int], lower: tuple[int, int, int]) -> Callable[..., Ground]:
    def draw(side: int, rng: random.Random) -> Ground:
        horizon = rng.uniform(0.45, 0.8)
        return Ground(two_bands(side, shade(upper, rng), shade(lower, rng), horizon), words)

    return draw


def night(side: int, rng: random.Random) -> Ground:
    canvas = gradient(side, shade((24, 26, 64), rng), shade((52, 48, 110), rng))
    for _ in range(rng.randint(6, 14)):
        y, x = rng.randrange(side - 2), rng.randrange(side - 2)
        canvas[y : y + 2, x : x + 2] = (250, 244, 200)
    return Ground(canvas, "at night")


def sky(side: int, rng: random.Random) -> Ground:
    return Ground(gradient(side, shade((120, 180, 244), rng), shade((206, 230, 252), rng)), "in the sky")


def sunset(side: int, rng: random.Random) -> Ground:
    return Ground(gradient(side, shade((250, 150, 80), rng), shade((200, 80, 130), rng)), "at sunset")


def pattern(words: str, marks: Callable[[np.ndarray, np.ndarray, float], np.ndarray]) -> Callable[..., Ground]:
    """Two colours, the second where ``marks`` (of rows, columns and a period in pixels) is true."""

    def draw(side: int, rng: random.Random) -> Ground:
        name, rgb = colour(rng, "white", "black")
        period = side / rng.choice([4, 8])
        rows, columns = np.mgrid[:side, :side] + 0.5
        canvas = np.where(marks(rows, columns, period)[..., None], rgb, rgb * 0.4 + WHITE * 0.6).astype(np.float32)
        return Ground(canvas, f"on {name} {words}")

    return draw


def checks(y: np.ndarray, x: np.ndarray, period: float) -> np.ndarray:
    return (y // (period / 2) + x // (period / 2)) % 2 == 0


def stripes(y: np.ndarray, x: np.ndarray, period: float) -> np.ndarray:
    return x // (period / 2) % 2 == 0


def dots(y: np.ndarray, x: np.ndarray, period: float) -> np.ndarray:
    return ((y % period - period / 2) ** 2 + (x % period - period / 2) ** 2) < (0.28 * period) ** 2


GROUNDS: tuple[tuple[float, Callable[[int, random.Random], Ground]], ...] = (
    (0.4, plain),
    (0.1, fading),
    (0.1, place("on grass", (168, 212, 248), (112, 190, 92))),
    (0.04, place("on snow", (168, 200, 232), (240, 246, 252))),
    (0.04, place("on sand", (160, 212, 248), (238, 212, 148))),
    (0.06, place("at sea", (190, 226, 250), (52, 122, 200))),
    (0.08, night),
    (0.03, sky),
    (0.03, sunset),
    (0.05, pattern("checks", checks)),
    (0.04, pattern("stripes", stripes)),
    (0.03, pattern("dots", dots)),
)
# A few that always look alike: for things that are still to be learned.
SETTLED = ("on yellow", "on blue", "on pink", "on grass", "at sea", "at night")
PLACES = ("grass", "snow", "sand", "sea", "night", "sky", "sunset", "checks", "stripes", "dots")
WORDS = frozenset({*COLOURS, *PLACES, "on", "and", "at", "in", "the"})


def draw_settled_ground(rng: random.Random, side: int, white: float) -> Ground:
    """A share ``white`` of the grounds is the white page, the others are of `SETTLED`."""
    if rng.random() < white:
        return Ground(filled(side, WHITE), "")
    words = rng.choice(SETTLED)
    name = words.removeprefix("on ")
    if name in COLOURS:
        return Ground(filled(side, np.array(COLOURS[name], np.float32)), words, SETTLED_NAMED)
    drawn = (draw(side, random.Random(0)) for _, draw in GROUNDS)
    return replace(next(ground for ground in drawn if ground.words == words), named=SETTLED_NAMED)


def draw_ground(rng: random.Random, side: int, white: float) -> Ground:
    """A share ``white`` of the grounds is the white page, of which nothing is said."""
    if rng.random() < white:
        return Ground(filled(side, WHITE), "")
    weights = [weight for weight, _ in GROUNDS]
    return rng.choices(GROUNDS, weights)[0][1](side, rng)
