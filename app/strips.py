"""Strips: one prompt at a few budgets, so that pictures move with the slider. For examples and lessons they ship.

``python -m app.strips --model pocket`` draws them: a PNG a prompt in the model's folder, pictures side by side, with
what they show in its text. Strips of other weights are passed over, as their pictures would be wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from app.lessons.chosen import Chosen
from app.pictures import Pixels, data_url, file_name, png
from heatkv.files import write_atomic

if TYPE_CHECKING:
    from app.recipes import Calibration, Recipe
    from app.workbench import Workbench

FOLDER = "strips"
# Where on the slider pictures are drawn, from its least to its most: denser where more is lost.
PLACES = (0, 0.07, 0.14, 0.21, 0.28, 0.45, 0.67, 1)
START_PERCENT = 35
START_PERCENT_BY_LINE = 30  # where the picture has begun to break
MAX_FILE_BYTES = 4 << 20


@dataclass(frozen=True, eq=False)
class Strip:
    """Pictures of one prompt, seed and policy, by ascending budget, and the one with the full cache."""

    prompt: str
    seed: int
    policy: str
    weights: str
    percents: tuple[int, ...]
    pixels: tuple[Pixels, ...]
    full: Pixels

    def to_png(self) -> bytes:
        facts = {
            "format": "heatkv-strip", "prompt": self.prompt, "seed": str(self.seed), "policy": self.policy,
            "weights": self.weights, "percents": json.dumps(self.percents),
        }  # fmt: skip
        return png(np.concatenate([*self.pixels, self.full], axis=1), facts)

    @classmethod
    def from_png(cls, data: bytes) -> Strip:
        """Raises ``ValueError`` for a file that is no strip."""
        try:
            image = Image.open(io.BytesIO(data))
            facts = {str(key): value for key, value in image.info.items()}
            percents = tuple(int(p) for p in json.loads(facts["percents"]))
            parts = np.split(np.asarray(image.convert("RGB")), len(percents) + 1, axis=1)
            return cls(
                facts["prompt"], int(facts["seed"]), facts["policy"], facts["weights"], percents, tuple(parts[:-1]),
                parts[-1],
            )  # fmt: skip
        except (KeyError, OSError, TypeError, ValueError) as error:
            raise ValueError("this is no strip of pictures") from error

    def value(self) -> dict[str, Any]:
        """For the page: the pictures by budget, and the one with the full cache."""
        pairs = zip(self.percents, self.pixels, strict=True)
        return {
            "prompt": self.prompt, "seed": self.seed, "policy": self.policy, "full": data_url(self.full),
            "pictures": [{"percent": percent, "image": data_url(pixels)} for percent, pixels in pairs],
        }  # fmt: skip


def strip_percents(bench: Workbench, recipe: Recipe, calibration: Calibration | None = None) -> tuple[int, ...]:
    """The budgets of a recipe's strip, ascending; the one that the page opens with is among them."""
    table = bench.table(calibration, recipe.policy, storage=recipe.storage)
    least, most = int(table["percents"][0]), int(table["most"])
    found = {round(least + place * (most - least)) for place in PLACES}
    if least < START_PERCENT < most:
        found -= {min(found, key=lambda p: abs(p - START_PERCENT))}
        found |= {START_PERCENT, least, most}
    return tuple(sorted(found))


def read_strips(folder: Path, weights: str) -> list[Strip]:
    """The strips that ship with a model, those of these very weights."""
    strips = []
    for path in sorted((folder / FOLDER).glob("*.png")):
        try:
            strip = Strip.from_png(path.read_bytes()) if path.stat().st_size <= MAX_FILE_BYTES else None
        except (OSError, ValueError):
            continue
        if strip is not None and strip.weights == weights:
            strips.append(strip)
    return strips


def bundled_fingerprint(model: str) -> str:
    """Of all that a strip's pictures depend on beside what it says itself: the weights and the calibration."""
    from heatkv.models import bundled_scores
    from heatkv.study.shards import weights_fingerprint

    scores = bundled_scores(model)
    orders = scores.orders(scores.geometry.scales.default_sinks)  # which is all that the shown policies plan from
    return f"{weights_fingerprint(model)[:16]}{hashlib.sha256(orders.astype('<i8').tobytes()).hexdigest()[:16]}"


def make_strip(bench: Workbench, prompt: str, seed: int, policy: str, weights: str) -> Strip:
    from app.recipes import Recipe

    percents = strip_percents(bench, Recipe(policy))
    plans = [bench.plan_of(Recipe(policy, percent)) for percent in percents]
    found = [
        step[1] for step in bench.jobs.strip(prompt, seed, [*plans, bench.plan_of(Recipe())]) if isinstance(step, tuple)
    ]
    pixels = [drawing.run.pixels for drawing in found]
    return Strip(prompt, seed, policy, weights, percents, tuple(pixels[:-1]), pixels[-1])


def write_strips(folder: Path, strips: Iterable[Strip]) -> list[Path]:
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    written = []
    for index, strip in enumerate(strips):
        path = folder / FOLDER / f"{index:02d}-{file_name(strip.prompt, strip.policy)}.png"
        write_atomic(path, strip.to_png())
        written.append(path)
    return written


def wanted(bench: Workbench, chosen: Chosen) -> list[tuple[str, int, str]]:
    """Prompt, seed and policy of every strip that should ship: the examples, then what lessons show."""
    policy = next(iter(bench.policies()))
    return list(dict.fromkeys([*((text, 0, policy) for text in bench.examples[:8]), *chosen.pictures(policy)]))


def main(arguments: Sequence[str] | None = None) -> None:
    from app.workbench import Workbench
    from heatkv.models import bundled_scores, find_folder, load

    parser = argparse.ArgumentParser(prog="python -m app.strips", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="pocket", help="a bundled model")
    options = parser.parse_args(arguments)
    bench = Workbench(load(options.model, "cpu", "float32"), bundled_scores(options.model))
    weights, folder = bundled_fingerprint(options.model), find_folder(options.model)
    strips = []
    for prompt, seed, policy in wanted(bench, Chosen.read(folder, weights)):
        strips.append(make_strip(bench, prompt, seed, policy, weights))
        print(f"{prompt}, seed {seed}, {policy}", flush=True)
    for path in (folder / FOLDER).glob("*.png"):  # those of before, once the new ones are drawn
        path.unlink()
    print(f"{len(write_strips(folder, strips))} strips in {folder / FOLDER}")


if __name__ == "__main__":
    main()
