"""Pictures of a model for people: drawn in batches, and laid out on a contact sheet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from heatkv.cache.seam import full_cache
from heatkv.files import write_atomic
from heatkv.models.base import GenerativeModel, Sampling, seeded_noise

SAMPLING = Sampling(guidance=1.0, temperature=1.0)  # of the bundled model by scales: guidance burned bare words
GAP, LINE = 3, 14  # pixels between pictures, and for a line of text


def draw(model: GenerativeModel, prompts: Sequence[str], seeds: Sequence[int], batch: int = 16) -> np.ndarray:
    """One picture a prompt and seed, uint8 ``[n, height, width, 3]``, with the full cache."""
    for prompt in prompts:
        model.check_prompt(prompt)
    pictures = []
    for first in range(0, len(prompts), batch):
        chunk, noise = prompts[first : first + batch], seeded_noise(seeds[first : first + batch])
        *_, last = model.run(chunk, noise, full_cache(model.geometry), model.sampling)
        pictures.append(model.decode(last.latent).numpy())
    return np.concatenate(pictures)


def contact_sheet(labels: Sequence[str], pictures_NS: np.ndarray, columns: int, zoom: int) -> Image.Image:
    """A cell for every label with its pictures ``[N, S, height, width, 3]`` (S seeds) side by side below it."""
    seeds, height, width = pictures_NS.shape[1:4]
    height, width = height * zoom, width * zoom
    cell_width, cell_height = seeds * (width + 1) + 2 * GAP, height + LINE + 2 * GAP
    columns = min(columns, len(labels))
    rows = -(-len(labels) // columns)
    page = Image.new("RGB", (columns * cell_width, rows * cell_height), "white")
    pen = ImageDraw.Draw(page)
    for i, (label, pictures) in enumerate(zip(labels, pictures_NS, strict=True)):
        x, y = i % columns * cell_width + GAP, i // columns * cell_height + GAP
        letters = len(label)
        while pen.textlength(label[:letters]) > cell_width - 2 * GAP:
            letters -= 1
        pen.text((x, y), label[:letters], fill="black")
        for s, pixels in enumerate(pictures):
            picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
            page.paste(picture, (x + s * (width + 1), y + LINE))
    return page


def sample_sheet(
    model: GenerativeModel, prompts: Sequence[str], seeds: Sequence[int], path: Path, columns: int = 8, zoom: int = 0
) -> None:
    """Draw every prompt at every seed, failures included. ``zoom`` 0 makes a picture about 128 pixels wide."""
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    pictures = draw(model, [p for p, _ in pairs], [s for _, s in pairs])
    zoom = zoom or max(1, 128 // pictures.shape[2])
    save_picture(
        contact_sheet(prompts, pictures.reshape(len(prompts), len(seeds), *pictures.shape[1:]), columns, zoom), path
    )


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture in the format of its name, atomically; a WebP is a third of a PNG for pictures of 128 pixels."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in ("PNG", "WEBP", "JPEG"):
        raise ValueError(f"{path.name} must end in .png, .webp or .jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    picture.save(data, kind, optimize=True, quality=92)
    write_atomic(path, data.getvalue())
