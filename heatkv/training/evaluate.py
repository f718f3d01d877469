"""How good a model is by itself, with the full cache: what the model card reports.

Every number is measured on the finished model folder, whatever its family. What its tokenizer and transformer reached
in training is among the facts in the folder.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from heatkv.generate import generate
from heatkv.models.base import GenerativeModel
from heatkv.models.prompts import PromptError
from heatkv.scores import HeadScores
from heatkv.study.metrics import IDENTICAL_PSNR, psnr
from heatkv.training import data, scenes
from heatkv.training.sheet import draw
from heatkv.views.specialisation import LITTLE, MUCH, specialisation

RELATIONS = ("left of", "right of", "above", "below")
CUT_SIDE = 48  # pixels of a side of things that are compared
BACKGROUND = 40  # a pixel that differs by less from the left and right border of its row is background
TIMED_IMAGES = 5
POOLS = {"objects": "all groups but people and symbols", "all": "all groups"}

Progress = Callable[[str], object]


@dataclass(frozen=True)
class Evaluation:
    """Settings of an evaluation.

    ``names`` are told apart in one draw of the retrieval, ``draws`` are averaged, ``colours`` is how many
    repaintings are asked for, of the trained and of the held-out ones, ``pairs`` how many pairs for every word of
    ``RELATIONS``; ``batch`` images are drawn at a time.
    """

    names: int = 64
    draws: int = 3
    colours: int = 64
    pairs: int = 16
    batch: int = 16
    seed: int = 0


def evaluate(
    model: GenerativeModel,
    dataset: data.Dataset,
    scene_prompts: Sequence[str],
    scores: HeadScores | None,
    settings: Evaluation,
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Measure all that is measured of a model.

    Returns plain JSON values: no ``specialisation`` without ``scores``, no ``seeds`` without ``scene_prompts``.
    """
    result: dict[str, Any] = {
        "model": model.id, "settings": asdict(settings), "facts": dict(model.about()), "retrieval": {}, "colours": {},
    }  # fmt: skip
    for pool in distinct_pools(model, dataset):
        progress(f"retrieval, {pool}: {settings.draws} draws of {settings.names} names")
        result["retrieval"][pool] = retrieval(model, dataset, pool, settings)
    for name in ("trained", "held_out"):
        progress(f"colours, {name}")
        result["colours"][name] = colour_words(model, dataset, name == "held_out", settings)
    progress(f"places: {settings.pairs} pairs for each of {', '.join(RELATIONS)}")
    result["places"] = place_words(model, dataset, settings)
    progress(f"another seed: {len(scene_prompts)} scenes")
    result["seeds"] = another_seed(model, scene_prompts, settings) if scene_prompts else None
    progress("cost of an image")
    result["cost"] = cost(model)
    sinks = model.geometry.scales.default_sinks
    result["specialisation"] = specialisation(scores, sinks).to_json() if scores else None
    return result


def cut_out(pictures: np.ndarray) -> np.ndarray:
    """What stands on the background of pictures uint8 ``[n, side, side, 3]``: cropped, white around, one size.

    The background of a row is taken to be what its borders show, so that a thing may stand anywhere on a page, a
    gradient or grass; on checks, stripes or among stars the cut is only as good as that.
    """
    things = []
    for picture in pictures.astype(np.int16):
        border = np.concatenate([picture[:, :3], picture[:, -3:]], 1)
        background = np.median(border, 1, keepdims=True)
        drawn = np.abs(picture - background).max(-1) > BACKGROUND
        rows, columns = (np.flatnonzero(drawn.sum(axis) > 1) for axis in (1, 0))
        thing = np.where(drawn[..., None], picture, 255).astype(np.uint8)
        if len(rows) and len(columns):
            thing = thing[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        side = max(thing.shape[:2])
        page = np.full((side, side, 3), 255, np.uint8)
        top, left = ((side - edge) // 2 for edge in thing.shape[:2])
        page[top : top + thing.shape[0], left : left + thing.shape[1]] = thing
        things.append(np.asarray(Image.fromarray(page).resize((CUT_SIDE, CUT_SIDE), Image.Resampling.BOX)))
    return np.stack(things)


def knows(model: GenerativeModel, name: str) -> bool:
    """Whether a name is taken as it is: every word known, none read otherwise."""
    try:
        return model.check_prompt(name) is None
    except PromptError:
        return False


def was_shown(model: GenerativeModel, label: str) -> bool:
    """Whether a thing was among those that the model learned from, where its folder lists them."""
    things = model.about().get("things")
    return things is None or label in things


def candidates(model: GenerativeModel, dataset: data.Dataset, pool: str) -> list[int]:
    """The fluent pictures whose names are drawn from: those that the model was shown and knows."""
    left_out = data.VARIANT_GROUPS if pool == "objects" else ()
    found = [i for i, e in enumerate(dataset.emoji) if e.style == "fluent" and e.group not in left_out]
    found = [i for i in found if was_shown(model, dataset.emoji[i].label)]
    return [i for i in found if knows(model, dataset.emoji[i].label)]


def distinct_pools(model: GenerativeModel, dataset: data.Dataset) -> list[str]:
    """`POOLS` whose names are not those of the one before: a model may have been shown none that they differ in."""
    found = [(pool, candidates(model, dataset, pool)) for pool in POOLS]
    return [pool for i, (pool, names) in enumerate(found) if not i or names != found[i - 1][1]]


def retrieval(model: GenerativeModel, dataset: data.Dataset, pool: str, settings: Evaluation) -> dict[str, Any]:
    """How often an image generated from a bare label is nearest to the fluent picture of that label.

    Nearest among the pictures of the names of one draw (or their mirror images), by mean squared error of what is cut
    out of the background; chance is 1 / names. Every draw has its own names and seeds.
    """
    found = candidates(model, dataset, pool)
    count = min(settings.names, len(found))
    shares: list[float] = []
    missed: set[str] = set()
    for number in range(settings.draws):
        rng = np.random.default_rng([settings.seed, number])
        pick = rng.choice(found, count, replace=False)
        labels = [dataset.emoji[i].label for i in pick]
        seeds = [1_000 * number + i for i in range(count)]
        drawn, art = cut_out(draw(model, labels, seeds, settings.batch)), cut_out(data.on_white(dataset.images[pick]))
        distance = distances_either_way(drawn, art)
        right = distance.argmin(1) == np.arange(count)
        shares.append(round(float(right.mean()), 4))
        missed |= {label for label, hit in zip(labels, right, strict=True) if not hit}
    return {
        "pool": f"{len(found)} labels of {POOLS[pool]}",
        "names": count, "chance": round(1 / count, 4),
        "share": round(float(np.mean(shares)), 4), "draws": shares, "missed": sorted(missed),
    }  # fmt: skip


def another_seed(model: GenerativeModel, prompts: Sequence[str], settings: Evaluation) -> dict[str, Any]:
    """PSNR (dB) between the pictures of two seeds of a scene: low where the prompt leaves much open.

    ``identical`` pairs, the very same picture twice, count as `IDENTICAL_PSNR` in the mean.
    """
    first, second = (draw(model, prompts, [seed] * len(prompts), settings.batch) for seed in (0, 1))
    values = [psnr(a, b) for a, b in zip(first, second, strict=True)]
    mean, median = (round(float(of(values)), 3) for of in (np.mean, np.median))
    identical = sum(value >= IDENTICAL_PSNR for value in values)
    return {"scenes": len(prompts), "psnr": mean, "median": median, "identical": identical}


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distance between every row of ``a`` and every row of ``b``."""
    x, y = (v.reshape(len(v), -1).astype(np.float64) for v in (a, b))
    squared: np.ndarray = (x**2).sum(1)[:, None] - 2 * x @ y.T + (y**2).sum(1)[None]
    return squared


def distances_either_way(drawn: np.ndarray, art: np.ndarray) -> np.ndarray:
    """`distances`, of pictures to ``art`` or to its mirror image, whichever is nearer."""
    nearest: np.ndarray = np.minimum(distances(drawn, art), distances(drawn, art[:, :, ::-1]))
    return nearest


def colour_words(model: GenerativeModel, dataset: data.Dataset, held_out: bool, settings: Evaluation) -> dict[str, Any]:
    """How often an image asked for in another colour has that colour: its main hue is nearest to the word's.

    Asked for are names that were trained in this colour, or ones that were not (the thing and the colour
    only apart from each other). Pictures that have the colour anyway are left out; chance is 1 / 7.
    """
    rng = np.random.default_rng(settings.seed)
    painted = [p for p in scenes.repaintings(dataset, held_out) if was_shown(model, dataset.emoji[p[0]].label)]
    painted = [p for p in painted if knows(model, p[2])]
    painted = [painted[i] for i in rng.permutation(len(painted))[: 3 * settings.colours]]
    before = data.nearest_colour(cut_out(data.on_white(dataset.images[[i for i, _, _ in painted]])))
    asked = [p for p, colour in zip(painted, before, strict=True) if p[1] != colour][: settings.colours]
    drawn = cut_out(draw(model, [name for _, _, name in asked], list(range(len(asked))), settings.batch))
    right = [a == colour for a, (_, colour, _) in zip(data.nearest_colour(drawn), asked, strict=True)]
    return {
        "names": len(asked),
        "chance": round(1 / len(data.HUES), 4),
        "share": round(float(np.mean(right)), 4),
        "missed": [name for (_, _, name), hit in zip(asked, right, strict=True) if not hit],
    }


def place_words(model: GenerativeModel, dataset: data.Dataset, settings: Evaluation) -> dict[str, Any]:
    """How often two things stand as the prompt says ("fox left of bus").

    What is cut out of each half of the picture is nearest to the picture of one of the two: ``share`` is how often to
    the right one in both, ``differ`` how often not to the same one. Half of those that differ are right by chance, and
    about a third differ where neither thing is there: it does not say that both are.
    """
    rng = np.random.default_rng([settings.seed, 1])
    found = candidates(model, dataset, "objects")
    right: dict[str, float] = {}
    differ: list[bool] = []
    for relation in RELATIONS:
        picks = [rng.choice(found, 2, replace=False) for _ in range(settings.pairs)]
        prompts = [f"{dataset.emoji[a].label} {relation} {dataset.emoji[b].label}" for a, b in picks]
        pictures = draw(model, prompts, list(range(len(prompts))), settings.batch)
        axis = 2 if relation in ("left of", "right of") else 1
        halves = np.split(pictures, 2, axis)[:: 1 if relation in ("left of", "above") else -1]
        nearest = np.stack([nearest_of(half, dataset.images[np.array(picks)]) for half in halves], 1)
        right[relation] = round(float((nearest == (0, 1)).all(1).mean()), 4)
        differ += (nearest[:, 0] != nearest[:, 1]).tolist()
    return {
        "prompts": len(differ),
        "share": round(float(np.mean(list(right.values()))), 4),
        "differ": round(float(np.mean(differ)), 4),
        "relations": right,
    }


def nearest_of(drawn: np.ndarray, art: np.ndarray) -> np.ndarray:
    """Which picture of its own row of ``art`` ``[n, k, side, side, 4]``, mirrored or not, each is nearest to."""
    things = cut_out(drawn)
    best = []
    for thing, choices in zip(things, art, strict=True):
        best.append(distances_either_way(thing[None], cut_out(data.on_white(choices)))[0].argmin())
    return np.array(best)


def cost(model: GenerativeModel) -> dict[str, Any]:
    """Median seconds of one image at a time, warm, and the bytes of its full cache."""
    prompt = model.examples[0]
    generate(model, prompt, 0)
    runs = [generate(model, prompt, seed) for seed in range(TIMED_IMAGES)]
    return {
        "seconds": round(statistics.median(run.seconds for run in runs), 4),
        "kv_bytes": runs[0].kv_bytes_peak,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


# --- for the model card -----------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def markdown(result: dict[str, Any]) -> str:
    """The result as the tables of the model card."""
    cost_of = result["cost"]
    rows = [
        [pool["pool"], f"1 in {pool['names']}",
         f"{percent(pool['share'])} ({percent(min(pool['draws']))} to {percent(max(pool['draws']))})"]
        for pool in result["retrieval"].values()
    ]  # fmt: skip
    lines = [*table(["nearest to the picture of its own name", "chance", "share (least to greatest draw)"], rows), ""]
    trained, held_out, places = result["colours"]["trained"], result["colours"]["held_out"], result["places"]
    lines += [
        f"Asked for in a colour that the thing does not have, {percent(trained['share'])} of {trained['names']} images "
        f"have it where that pair was trained, {percent(held_out['share'])} of {held_out['names']} where it was not "
        f"(chance {percent(trained['chance'])}).",
        "",
        f"Of {places['prompts']} pairs asked for left of, right of, above or below one another, "
        f"{percent(places['share'])} stand so (the two halves look like different ones of the two in "
        f"{percent(places['differ'])}, half of which would be right by chance).",
        "",
        *(seeds_markdown(result["seeds"]) if result["seeds"] else []),
        f"An image takes {cost_of['seconds']:.2f} s ({cost_of['device']}, {cost_of['dtype']}, {cost_of['threads']} "
        f"threads, torch {cost_of['torch']}) and {cost_of['kv_bytes']} bytes of keys and values with the full cache.",
    ]
    if result["specialisation"]:
        lines += ["", *heads_markdown(result["specialisation"])]
    return "\n".join(lines)


def seeds_markdown(found: dict[str, Any]) -> list[str]:
    same = (
        f"; {found['identical']} of {found['scenes']} pairs are one and the same picture" if found["identical"] else ""
    )
    return [
        f"Another seed of a scene: {found['psnr']:.1f} dB in the mean, {found['median']:.1f} in the median{same}.",
        "",
    ]


def heads_markdown(found: dict[str, Any]) -> list[str]:
    """How heads differ (see ``Specialisation``)."""
    lines = table(
        ["heads", *found["types"], "entropy, bits (least to greatest; even)", f"< {LITTLE:g} even", f"> {MUCH:g} even"],
        [
            [
                str(found["heads"]),
                *(percent(share) for share in found["types"].values()),
                f"{found['entropy_mean']:.2f} ({found['entropy_low']:.2f} to {found['entropy_high']:.2f}; "
                f"{found['entropy_even']:.2f})",
                percent(found["little"]),
                percent(found["much"]),
            ]
        ],
    )
    head = ["source scale", "even", "10 % of heads below", "median", "10 % above", "std / mean"]
    spread = [
        [str(s["source"] + 1), *(f"{s[key]:.3f}" for key in ("even", "low", "median", "high", "variation"))]
        for s in found["sources"]
    ]
    return [*lines, "", *table(head, spread)]
