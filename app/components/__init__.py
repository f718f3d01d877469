"""Custom parts of the page, each made of three files of one name: HTML, CSS and JavaScript.

The HTML is static: Gradio evaluates a template that mentions the value as code, so nothing from outside may ever get
into one. Values are plain JSON, and the JavaScript puts text on the page through ``textContent`` alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

FOLDER = Path(__file__).parent


class Component(gr.HTML):
    """The part of that name, with a JSON value; ``elem_id`` is its name unless told."""

    def __init__(self, name: str, value: Any = None, **kwargs: Any) -> None:
        kwargs.setdefault("elem_id", name)
        super().__init__(
            value,
            html_template=_read(name, "html"),
            css_template=_read(name, "css"),
            js_on_load=_read(name, "js"),
            apply_default_css=False,
            **kwargs,
        )

    def api_info(self) -> dict[str, Any]:
        return {"type": "object"}


def _read(name: str, kind: str) -> str:
    path = FOLDER / f"{name}.{kind}"
    return path.read_text(encoding="utf-8") if path.is_file() else ""
