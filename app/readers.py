"""Whether anybody still listens to what a job says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from gradio.context import LocalContext

T = TypeVar("T")
UNREAD = 24  # messages that may lie before a job ends: those of some seconds of waiting, or of a picture


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


def while_read(steps: Iterator[T]) -> Iterator[T]:
    """``steps`` as long as somebody takes them. Raises `Abandoned`, which closes the job and gives its turn up."""
    for step in steps:
        if unread() > UNREAD:
            raise Abandoned("Nobody has read what was drawn so far, so the job has ended.")
        yield step
