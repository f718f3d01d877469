"""Whether anybody still listens to what a job says."""

from __future__ import annotations

import time
from asyncio import Queue
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, TypeVar

from gradio.context import LocalContext

T = TypeVar("T")
UNREAD = 24  # messages that may lie before a job ends: those of some seconds of waiting, or of a picture
UNREAD_SECONDS = 6.0  # or how long some may lie: who waits is sent some every two seconds at least


class Abandoned(RuntimeError):
    """Nobody takes what the job says."""


def messages() -> Queue[Any] | None:
    """What waits to be fetched in the session whose request this thread serves; None outside of one.

    A visitor's browser fetches each at once. A program that asked and went away, or never listened, leaves them.
    """
    blocks, event_id = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    calls = getattr(blocks, "_queue", None)
    event = calls.event_ids_to_events.get(event_id) if calls is not None and event_id is not None else None
    return calls.pending_messages_per_session.get(event.session_hash) if calls is not None and event else None


def unread() -> int:
    """How many messages wait to be fetched."""
    waiting = messages()
    return waiting.qsize() if waiting is not None else 0


def drop_unread() -> None:
    """Forget them: Gradio would keep what nobody fetches, pictures most of it, for its latest 2000 sessions."""
    waiting = messages()
    while waiting is not None and not waiting.empty():
        waiting.get_nowait()


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
                drop_unread()
                raise Abandoned("Nobody has read what was drawn so far, so the job has ended.")
            yield step
