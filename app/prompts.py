"""Where a prompt is entered: a box for words, or a picker of classes for a class-conditional model."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.inputs import MAX_PROMPT, MAX_PROMPTS
from app.workbench import Workbench
from heatkv.models.var.classes import Classes

MAX_LABEL = 90


def prompt_field(bench: Workbench, label: str, **layout: Any) -> gr.Textbox | gr.Dropdown:
    """One prompt; of a class-conditional model one class, found by its number or any of its names."""
    first = next(iter(bench.examples), "")
    if bench.classes is None:
        return gr.Textbox(first, label=label, max_length=MAX_PROMPT, **layout)
    return gr.Dropdown(class_choices(bench.classes), value=first, label=label, **_PICKER, **layout)


def prompts_field(bench: Workbench, **layout: Any) -> gr.Textbox | gr.Dropdown:
    """Several prompts, one a line; of a class-conditional model several classes."""
    if bench.classes is None:
        return gr.Textbox(
            "\n".join(bench.prompts), label="Prompts, one a line", lines=10, max_lines=16, max_length=20_000, **layout
        )
    return gr.Dropdown(
        class_choices(bench.classes), value=list(bench.prompts[:MAX_PROMPTS]), label="Classes", multiselect=True,
        max_choices=MAX_PROMPTS, **_PICKER, **layout,
    )  # fmt: skip


# What is typed and not in the list is read as well, as a name or a number.
_PICKER: dict[str, Any] = {"allow_custom_value": True, "filterable": True, "num_choices_shown": None}


def class_choices(classes: Classes) -> list[tuple[str, str]]:
    """What the picker lists (and searches) for every class, and the value that it stands for."""
    return [(_listed(classes, i), classes.title(i)) for i in range(classes.count)]


def _listed(classes: Classes, index: int) -> str:
    label = ", ".join([classes.title(index), *(classes.names[index][1:] if classes.names else ())])
    return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1].rstrip(" ,") + "…"
