"""What the tabs share: the components above them and the state of a session."""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from app.components import Component
from app.workbench import Workbench

# The model does one job at a time, whoever asks.
MODEL_JOB: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


@dataclass
class Page:
    """Components that more than one tab reads or writes; tabs add theirs as they are built."""

    bench: Workbench
    budget: gr.Slider
    policy: gr.Radio
    knobs: Component
    tabs: gr.Tabs
    calibration: gr.State  # Calibration of this session, or None for the bundled one
    uploaded: gr.State  # Schedule to use instead of a plan, or None
    head: gr.State  # (layer, head) in view
    prompt: gr.Textbox | gr.Dropdown = field(init=False)
    seed: gr.Number = field(init=False)


def notice(text: str, kind: str = "info") -> dict[str, str]:
    """The value of a ``notice`` part."""
    return {"kind": kind, "text": text}


def saved_file(name: str, mime: str, data: bytes) -> dict[str, str]:
    """The value of a ``saver`` part: the browser saves the file, nothing stays on this machine."""
    return {"name": name, "type": mime, "data": base64.b64encode(data).decode(), "id": secrets.token_hex(8)}


def problem(error: Exception) -> str:
    """What to tell a person about ``error``."""
    if isinstance(error, (ValueError, RuntimeError, OSError)):
        text = str(error).strip() or type(error).__name__
        return text[:1].upper() + text[1:600]
    return f"Something went wrong ({type(error).__name__}); nothing was changed."
