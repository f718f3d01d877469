"""What handlers of the page are called with: an event of a part, and whose page it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


def event(**data: Any) -> Any:
    """An event that brings ``data``, as Gradio hands it over."""
    return SimpleNamespace(_data=data)


def visitor(name: str = "one") -> Any:
    return SimpleNamespace(session_hash=name)
