"""Sheets for a reader who does not know the prompts, and the key to them.

Three questions: what is this (single words); which two things are these (scenes); and which of two pictures, drawn
under the same small budget by `heatkv+16` and by HeatKV's ranking upside down, is nearer to the full cache's.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np

from heatkv.files import write_atomic
from heatkv.generate import generate
from heatkv.models.base import GenerativeModel
from heatkv.scores import HeadScores
from heatkv.training import scenes, sheet
from heatkv.training.evaluate import knows

WORDS, SCENES, RANKINGS = 48, 36, 20
FIRST_SEED = 100  # not a seed that the page or the samples show
RANKING, REVERSE = "heatkv+16", "reverse"
BUDGET, BUDGET_BY_LINE = 0.1, 0.125  # by lines the condition alone takes a tenth
RELATIONS = ("left of", "right of", "above", "below", "and")


def sheets(model: GenerativeModel, scores: HeadScores, out: Path, seed: int = 2026) -> list[Path]:
    """Write ``words.webp``, ``scenes.webp``, ``rankings.webp`` (full cache, A, B) and ``key.json`` into a folder.

    What is asked for is drawn at random (``seed``) from the everyday things that the model knows, one picture each,
    none chosen or left out.

    Raises
    ------
    ValueError
        The model knows fewer than 48 of the everyday things.
    """
    rng = random.Random(seed)
    things = sorted(name for name in scenes.EVERYDAY if knows(model, name))
    if len(things) < WORDS:
        raise ValueError(f"{model.id} knows {len(things)} of the everyday things; a blind reading takes {WORDS}")
    words = rng.sample(things, WORDS)
    pairs = [rng.sample(things, 2) for _ in range(SCENES)]
    prompts = [f"{one} {rng.choice(RELATIONS)} {two}" for one, two in pairs]
    compared = rng.sample(things, RANKINGS)
    better = [rng.choice("AB") for _ in compared]
    budget = BUDGET_BY_LINE if model.geometry.scales.by_line else BUDGET
    rows = []
    for i, (word, letter) in enumerate(zip(compared, better, strict=True)):
        full = generate(model, word, FIRST_SEED + i)
        ranked, reverse = (
            generate(model, word, FIRST_SEED + i, policy=policy, budget=budget, scores=scores)
            for policy in (RANKING, REVERSE)
        )
        order = (ranked, reverse) if letter == "A" else (reverse, ranked)
        rows.append([full.image, *(run.image for run in order)])
    paths = [out / "words.webp", out / "scenes.webp", out / "rankings.webp", out / "key.json"]
    save_numbered(sheet.draw(model, words, seeds(words))[:, None], paths[0], 8)
    save_numbered(sheet.draw(model, prompts, seeds(prompts))[:, None], paths[1], 9)
    save_numbered(np.stack([np.stack([np.asarray(image) for image in row]) for row in rows]), paths[2], 4)
    key = {
        "model": model.id, "first_seed": FIRST_SEED, "words": words,
        "scenes": [{"prompt": prompt, "things": pair} for prompt, pair in zip(prompts, pairs, strict=True)],
        "rankings": [{"prompt": word, RANKING: letter} for word, letter in zip(compared, better, strict=True)],
        "ranked_by": RANKING, "against": REVERSE, "budget": budget,
    }  # fmt: skip
    write_atomic(paths[3], (json.dumps(key, indent=1) + "\n").encode())
    return paths


def seeds(prompts: list[str]) -> list[int]:
    return [FIRST_SEED + i for i in range(len(prompts))]


def save_numbered(pictures_NS: np.ndarray, path: Path, columns: int) -> None:
    labels = [str(i + 1) for i in range(len(pictures_NS))]
    zoom = max(1, 128 // pictures_NS.shape[2])
    sheet.save_picture(sheet.contact_sheet(labels, pictures_NS, columns, zoom), path)
