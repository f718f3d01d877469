"""About: method, limits, memory accounting, snippets, licences."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import gradio as gr

from app.cards import kinds_of
from app.components import Component
from app.page import PRIVATE, saved_file
from app.workbench import Workbench
from heatkv.files import program_root
from heatkv.views.specialisation import specialisation

TEXT = Path(__file__).parents[1] / "about.md"


def build(bench: Workbench) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=8, min_width=320):
            gr.Markdown(TEXT.read_text(encoding="utf-8"), elem_classes="prose-narrow")
        with gr.Column(scale=4, min_width=280):
            Component("facts", facts(bench))
            save = gr.Button("BibTeX of every method", size="md", elem_id="about-bibtex")
            save.click(bibtex, None, Component("saver", elem_id="about-saver"), queue=False, **PRIVATE)


def bibtex() -> dict[str, str]:
    """A file with a reference for every method and model family, for the browser to save."""
    path = program_root() / "assets" / "references.bib"
    return saved_file("heatkv-references.bib", "application/x-bibtex", path.read_bytes())


def facts(bench: Workbench) -> dict[str, Any]:
    """What is loaded, as pairs of words."""
    geometry, model = bench.geometry, bench.model
    known = {key: value for key, value in model.about().items() if isinstance(value, (str, int, float))}
    full = geometry.full_peak_tokens * bench.bytes_per_token
    least, least_ours = (bench.percents(policy)[0] for policy in ("heatkv", "heatkv+"))
    sinks = "the condition and a line" if geometry.scales.by_line else f"scales 1 to {bench.sink_scales}"
    rows = [
        ("Model", model.id),
        (f"{geometry.scales.word.capitalize()}s", str(geometry.scales)),
        ("Heads", f"{geometry.layers} layers × {geometry.heads} heads of size {geometry.head_dim}"),
        ("Full KV cache", f"{geometry.full_peak_tokens} tokens, {full / 2**20:.2f} MiB, one image"),
        ("Least budget", f"{least} %: {sinks} alone; {least_ours} % for HeatKV+"),
        *_head_rows(bench),
        ("Device", f"{model.device}, {str(model.dtype).removeprefix('torch.')}"),
        *((key.replace("_", " ").capitalize(), _plain(value)) for key, value in known.items()),
    ]
    return {"title": "What is loaded", "rows": [[name, text[:300]] for name, text in rows]}


def _head_rows(bench: Workbench) -> list[tuple[str, str]]:
    """How heads differ, in the words of the head cards."""
    profiles = bench.profiles(None)
    if bench.bundled.scores is None or profiles is None:
        return []
    found, kinds = specialisation(bench.bundled.scores, bench.sink_scales), kinds_of(bench.geometry.scales)
    shares = Counter(kinds.types[i] for i in kinds.of(profiles).flat).most_common()
    uneven = (
        f"{100 * found.little:.0f} % give some droppable {bench.geometry.scales.word} less than a quarter of an even "
        f"share, {100 * found.much:.0f} % more than twice"
    )
    return [
        ("What heads do", ", ".join(f"{kinds.names[kind]} {100 * n / found.heads:.0f} %" for kind, n in shares)),
        ("How uneven heads are", uneven),
    ]


def _plain(value: str | int | float) -> str:
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else str(value)
