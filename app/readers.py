"""Whether anybody still listens to what a job says."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TypeVar

from gradio.context import LocalContext

T = TypeVar("T")
UNREAD = 24  # messages that may lie before a job ends: those of some seconds of waiting, or of a picture
UNREAD_SECONDS = 6.0  # or how long some may lie: who waits is sent some every two seconds at least


class Abandoned(RuntimeError):
    """Nobody takes what the job says."""


def unread() -> int:
    """Messages that wait to be fetched in the session whose request this thread serves; 0 outside of one.

    A visitor's browser fetches each at once. A program that asked and went away, or never listened, leaves them.
    """
    blocks, event_id = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    queue = getattr(blocks, "_queue", None)
    event = queue.event_ids_to_events.get(event_id) if queue is not None and event_id is not None else None
    if queue is None or event is None or event.session_hash not in queue.pending_messages_per_session:
        return 0
    waiting: int = queue.pending_messages_per_session[event.session_hash].qsize()
    return waiting


def while_read(steps: Generator[T, None, None]) -> Iterator[T]:
    """``steps`` as long as somebody takes them. Raises `Abandoned`; closes the job in any case, and at once.

    Nothing else would close it in time: an exception keeps the generators that it came through, and what keeps the
    exception may be a circle of references, which Python finds when it likes.
    """
    heard = time.monotonic()
    with closing(steps):
        for step in steps:
            waiting, now = unread(), time.monotonic()
            if waiting <= 2:
                heard = now
            if waiting > UNREAD or now - heard > UNREAD_SECONDS:
                raise Abandoned("Nobody has read what was drawn so far, so the job has ended.")
            yield step
