"""How good a model is by itself, with the full cache: what the model card reports.

Every number is measured on the finished model folder, and on the encoder of the run that it came from: the folder has
no encoder, and pictures are compared in its latents too.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from heatkv.generate import generate
from heatkv.models.infinity.autoencoder import Autoencoder
from heatkv.models.infinity.model import InfinityModel
from heatkv.models.infinity.text import WordEncoder
from heatkv.scores import HeadScores
from heatkv.training import data, tokenizer, transformer
from heatkv.training.sheet import draw
from heatkv.views.specialisation import LITTLE, MUCH, specialisation

SINK_SCALES = 3
BIT_PICTURES = 256
TIMED_IMAGES = 5
POOLS = {"objects": "all groups but people and symbols", "all": "all groups"}

Progress = Callable[[str], object]


@dataclass(frozen=True)
class Evaluation:
    """Settings of an evaluation.

    ``names`` are told apart in one draw of the retrieval, ``draws`` are averaged, ``colours`` is how many
    repaintings are asked for, of the trained and of the held-out ones; ``batch`` images are drawn at a time.
    """

    names: int = 64
    draws: int = 3
    colours: int = 64
    batch: int = 16
    seed: int = 0


def evaluate(
    model: InfinityModel,
    autoencoder: Autoencoder,
    dataset: data.Dataset,
    scores: HeadScores | None,
    settings: Evaluation,
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Measure all that is measured of a model. ``autoencoder`` is the model's own, with its encoder.

    Returns plain JSON values; without ``scores`` there is no ``specialisation``.
    """
    progress("tokenizer and bits")
    result: dict[str, Any] = {
        "model": model.id,
        "settings": asdict(settings),
        "tokenizer": reconstruction(autoencoder, dataset, model.device),
        "bits": bit_accuracy(model, autoencoder, dataset),
        "retrieval": {},
        "colours": {},
    }
    for pool in POOLS:
        progress(f"retrieval, {pool}: {settings.draws} draws of {settings.names} names")
        result["retrieval"][pool] = retrieval(model, autoencoder, dataset, pool, settings)
    for name in ("trained", "held_out"):
        progress(f"colours, {name}")
        result["colours"][name] = colour_words(model, dataset, name == "held_out", settings)
    progress("cost of an image")
    result["cost"] = cost(model)
    result["specialisation"] = specialisation(scores, SINK_SCALES).to_json() if scores else None
    return result


def reconstruction(autoencoder: Autoencoder, dataset: data.Dataset, device: torch.device) -> dict[str, float]:
    """Mean PSNR (dB) of pictures after encoder, bits and decoder: a sample of trained ones, all held-out ones."""
    return {name: round(value, 3) for name, value in tokenizer.evaluate(autoencoder, dataset, device, None).items()}


def bit_accuracy(model: InfinityModel, autoencoder: Autoencoder, dataset: data.Dataset) -> dict[str, Any]:
    """Share of bits predicted right from true earlier scales (`transformer.evaluate`); trained pictures."""
    pick = np.arange(0, len(dataset.images), max(1, len(dataset.images) // BIT_PICTURES))[:BIT_PICTURES]
    sample = data.Dataset(dataset.images[pick], tuple(dataset.emoji[i] for i in pick))
    latents = transformer.encode_all(autoencoder, sample.images, model.device)
    assert isinstance(model.text, WordEncoder)
    parts = transformer.TextToBits(model.text.vocabulary, model.transformer.config, model.geometry.scales)
    parts.text, parts.transformer = model.text, model.transformer
    per_scale, mean = transformer.evaluate(parts, autoencoder.quantizer, latents, sample, len(pick))
    return {"pictures": len(pick), "mean": round(mean, 4), "per_scale": [round(share, 4) for share in per_scale]}


def candidates(dataset: data.Dataset, pool: str) -> list[int]:
    """The fluent pictures whose names are drawn from."""
    left_out = data.VARIANT_GROUPS if pool == "objects" else ()
    return [i for i, e in enumerate(dataset.emoji) if e.style == "fluent" and e.group not in left_out]


def retrieval(
    model: InfinityModel, autoencoder: Autoencoder, dataset: data.Dataset, pool: str, settings: Evaluation
) -> dict[str, Any]:
    """How often an image generated from a bare label is nearest to the fluent picture of that label.

    Nearest among the pictures of the names of one draw, by mean squared error of pixels and of the
    encoder's latents; chance is 1 / names. Every draw has its own names and seeds.
    """
    found = candidates(dataset, pool)
    count = min(settings.names, len(found))
    shares: dict[str, list[float]] = {"pixels": [], "latents": []}
    missed: set[str] = set()
    for number in range(settings.draws):
        rng = np.random.default_rng([settings.seed, number])
        pick = rng.choice(found, count, replace=False)
        labels = [dataset.emoji[i].label for i in pick]
        seeds = [1_000 * number + i for i in range(count)]
        pictures = draw(model, labels, seeds, settings.batch), dataset.images[pick]
        latents = [transformer.encode_all(autoencoder, p, model.device).cpu().numpy() for p in pictures]
        for space, distance in {"pixels": distances(*pictures), "latents": distances(*latents)}.items():
            right = distance.argmin(1) == np.arange(count)
            shares[space].append(round(float(right.mean()), 4))
            if space == "latents":
                missed |= {label for label, hit in zip(labels, right, strict=True) if not hit}
    return {
        "pool": f"{len(found)} labels of {POOLS[pool]}",
        "names": count,
        "chance": round(1 / count, 4),
        **{space: round(float(np.mean(values)), 4) for space, values in shares.items()},
        "draws": shares,
        "missed_by_latents": sorted(missed),
    }


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distance between every row of ``a`` and every row of ``b``."""
    x, y = (v.reshape(len(v), -1).astype(np.float64) for v in (a, b))
    squared: np.ndarray = (x**2).sum(1)[:, None] - 2 * x @ y.T + (y**2).sum(1)[None]
    return squared


def colour_words(model: InfinityModel, dataset: data.Dataset, held_out: bool, settings: Evaluation) -> dict[str, Any]:
    """How often an image asked for in another colour has that colour: its main hue is nearest to the word's.

    Asked for are names that were trained in this colour, or ones that were not (the thing and the colour
    only apart from each other). Pictures that have the colour anyway are left out; chance is 1 / 7.
    """
    rng = np.random.default_rng(settings.seed)
    painted = transformer.repaintings(dataset, held_out)
    painted = [painted[i] for i in rng.permutation(len(painted))[: 3 * settings.colours]]
    before = data.nearest_colour(dataset.images[[i for i, _, _ in painted]])
    asked = [p for p, colour in zip(painted, before, strict=True) if p[1] != colour][: settings.colours]
    drawn = draw(model, [name for _, _, name in asked], list(range(len(asked))), settings.batch)
    right = [a == colour for a, (_, colour, _) in zip(data.nearest_colour(drawn), asked, strict=True)]
    return {
        "names": len(asked),
        "chance": round(1 / len(data.HUES), 4),
        "share": round(float(np.mean(right)), 4),
        "missed": [name for (_, _, name), hit in zip(asked, right, strict=True) if not hit],
    }


def cost(model: InfinityModel) -> dict[str, Any]:
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
    bits, cost_of = result["bits"], result["cost"]
    lines = [
        f"Reconstruction by the tokenizer: {result['tokenizer']['train']:.2f} dB on trained pictures, "
        f"{result['tokenizer']['held_out']:.2f} dB on held-out emoji. Bits predicted right "
        f"({bits['pictures']} trained pictures, true earlier scales):",
        "",
        *table(
            ["all bits", *(f"scale {k + 1}" for k in range(len(bits["per_scale"])))],
            [[f"{share:.3f}" for share in (bits["mean"], *bits["per_scale"])]],
        ),
        "",
    ]
    rows = []
    for pool in result["retrieval"].values():
        shares = [
            f"{percent(pool[space])} ({percent(min(draws))} to {percent(max(draws))})"
            for space, draws in pool["draws"].items()
        ]
        rows.append([pool["pool"], f"1 in {pool['names']}", *shares])
    lines += [*table(["nearest to the picture of its own name", "chance", "in pixels", "in latents"], rows), ""]
    trained, held_out = result["colours"]["trained"], result["colours"]["held_out"]
    lines += [
        f"Asked for in a colour that the thing does not have, {percent(trained['share'])} of {trained['names']} images "
        f"have it where that pair was trained, {percent(held_out['share'])} of {held_out['names']} where it was not "
        f"(chance {percent(trained['chance'])}).",
        "",
        f"An image takes {cost_of['seconds']:.2f} s ({cost_of['device']}, {cost_of['dtype']}, {cost_of['threads']} "
        f"threads, torch {cost_of['torch']}) and {cost_of['kv_bytes']} bytes of keys and values with the full cache.",
    ]
    if result["specialisation"]:
        lines += ["", *heads_markdown(result["specialisation"])]
    return "\n".join(lines)


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
