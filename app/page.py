"""What the tabs share: the components above them and the state of a session."""

from __future__ import annotations

import base64
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from app.components import Component
from app.inputs import capital
from app.readers import Abandoned
from app.workbench import Workbench
from heatkv.files import one_line

# Whose turn it is with the model is settled by `app.turns`, which tells people their place; Gradio only bounds how many
# may wait at a time.
MODEL_JOB: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 60}
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# Put in front of a handler: what the page shows now takes the place of the argument that stands for it.
WISH = "(...values) => values.map((value) => (value && value.wish ? window.heatkv.wish() : value))"


END_SECONDS, HEARD_SECONDS = 4.0, 0.5
MAX_VISITORS = 2000


@dataclass
class Page:
    """Components that more than one tab reads or writes; tabs add theirs as they are built."""

    bench: Workbench
    dial: Component  # budget and policy
    table: Component  # the table of budgets, for the page's store
    wish: (
        Component  # stands for what the page shows: {prompt, seed, policy, percent}, with WISH in front of the handler
    )
    mail: Component  # hands messages to the parts of the page
    tabs: gr.Tabs
    calibration: gr.State  # Calibration of this session, or None for the bundled one
    uploaded: gr.State  # Schedule to use instead of a plan, or None
    map: Component = field(init=False)


def cancelled_notice(bench: Workbench, text: str) -> dict[str, str]:
    """Say that a job was cancelled, once it has ended and the page has heard so: one that starts the next job sooner
    loses it. Jobs of others may keep the model busy, so there is an end to the waiting."""
    latest = time.monotonic() + END_SECONDS
    while bench.jobs.turns.busy and time.monotonic() < latest:
        time.sleep(0.05)
    time.sleep(HEARD_SECONDS)
    return notice(text)


def event_data(event: gr.EventData) -> Mapping[str, Any]:
    """What a part of the page sent with its event: untrusted, and empty where it is no mapping."""
    return event._data if isinstance(event._data, dict) else {}


def request_number(data: Mapping[str, Any]) -> int:
    """The number that a part of the page gave its request; 0 where it gave none."""
    value = data.get("id")
    return value if type(value) is int and 0 <= value < 2**53 else 0


class Newest:
    """The newest request of every visitor and kind: what is older need not be finished."""

    def __init__(self) -> None:
        self._newest: OrderedDict[tuple[str, str], int] = OrderedDict()

    def ask(self, visitor: str, kind: str, number: int) -> None:
        self._newest[visitor, kind] = max(number, self._newest.pop((visitor, kind), 0))
        while len(self._newest) > MAX_VISITORS:
            self._newest.popitem(last=False)

    def is_newest(self, visitor: str, kind: str, number: int) -> bool:
        return self._newest.get((visitor, kind), number) == number

    def asked(
        self, kind: str, event: gr.EventData, request: gr.Request
    ) -> tuple[Mapping[str, Any], int, Callable[[], bool]]:
        """What the page sent, the request's number, and whether that is still this visitor's newest of its kind."""
        data, visitor = event_data(event), str(request.session_hash)
        number = request_number(data)
        self.ask(visitor, kind, number)
        return data, number, lambda: self.is_newest(visitor, kind, number)


def notice(text: str, kind: str = "info") -> dict[str, str]:
    """The value of a ``notice`` part."""
    return {"kind": kind, "text": text}


def saved_file(name: str, mime: str, data: bytes) -> dict[str, str]:
    """The value of a ``saver`` part: the browser saves the file, nothing stays on this machine."""
    return {"name": name, "type": mime, "data": base64.b64encode(data).decode(), "id": secrets.token_hex(8)}


def problem(error: Exception) -> str:
    """What to tell a person about ``error``."""
    if isinstance(error, (ValueError, RuntimeError, OSError)):
        text = one_line(str(error) or type(error).__name__, 600)
        return capital(text)
    return f"Something went wrong ({type(error).__name__}); nothing was changed."


def refusal(error: Exception) -> gr.Error:
    """The same for a program. Only what nobody foresaw goes into the log of the server as well."""
    return gr.Error(problem(error), print_exception=not isinstance(error, (ValueError, Abandoned)))
