"""What the server remembers of visitors and calls: little, and bounded.

Gradio keeps for everybody who ever called, programs that made a single call included, a copy of the configuration of
every component (0.3 MB a call) and all that it showed, and for calls what nobody fetched. Here a session holds what
differs from the page as built; sessions that hold nothing, and calls that have been answered, are soon forgotten.
Importing this module puts these two classes in the place of Gradio's, which offers no other way.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import gradio.queueing
import gradio.routes
from gradio.state_holder import SessionState, StateHolder

EMPTY = 32  # sessions that hold nothing, the latest; making one anew costs next to nothing
UNFETCHED = 64  # finished calls whose answers nobody has fetched, the latest
STATISTICS = 100  # calls that Gradio keeps statistics of


class Session(SessionState):
    """What a visitor's page has that the page as built has not: states, and components with other properties.

    Not what components show, which Gradio keeps for links to a page as it stands, and this app has none: of a visitor
    who draws that is both pictures with all that came before them.
    """

    def __init__(self, blocks: Any) -> None:
        nothing: Any = SimpleNamespace(default_config=blocks.default_config, blocks=())
        super().__init__(nothing)
        self.holds_something = False
        # Gradio takes a page whose connection broke off for closed, for good, and forgets its states an hour after they
        # were set; the page may be back within a second. How many are kept is bounded by `Sessions`.
        self.STATE_TTL_WHEN_CLOSED = sys.maxsize

    def __setitem__(self, key: int, value: Any) -> None:
        super().__setitem__(key, value)
        self.config_values.clear()
        self.holds_something |= value is not None

    def _update_config(self, key: int) -> None:
        pass

    def _update_value_in_config(self, key: int, value: Any) -> None:
        pass


class Sessions(StateHolder):
    """The sessions used last: as many as the app says of those that hold something, and `EMPTY` others."""

    def __getitem__(self, session_id: str) -> Session:
        with self.lock:
            found: Any = self.session_data.get(session_id) or Session(self.blocks)
            self.session_data[session_id] = found
            self.session_data.move_to_end(session_id)
            self._forget()
        return found

    def _forget(self) -> None:
        room = {True: self.capacity, False: EMPTY}
        sessions: list[tuple[str, Any]] = list(self.session_data.items())
        for session_id, session in reversed(sessions):
            room[session.holds_something] -= 1
            if room[session.holds_something] < 0:
                del self.session_data[session_id]


class Calls(gradio.queueing.Queue):
    """The queue, without what is over."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ANALYTICS_MAX_EVENTS = STATISTICS

    def compute_analytics_summary(self, records: Any) -> dict[str, Any]:
        """Statistics that nobody is shown: Gradio computes them anew, of all calls, after every call."""
        return {"functions": {}}

    async def push(self, *arguments: Any, **options: Any) -> Any:
        self._forget()
        return await super().push(*arguments, **options)

    def _forget(self) -> None:
        """Drop calls that were answered, and the oldest of those whose answers wait for somebody to fetch them."""
        unfetched = []
        for session_id, events in list(self.pending_event_ids_session.items()):
            if not events or session_id not in self.pending_messages_per_session:
                self._drop(session_id)
            elif session_id in events and not events & self.event_ids_to_events.keys():  # a single call, finished
                unfetched.append(session_id)
        for session_id in unfetched[:-UNFETCHED]:
            self._drop(session_id)

    def _drop(self, session_id: str) -> None:
        self.pending_event_ids_session.pop(session_id, None)
        self.pending_messages_per_session.pop(session_id, None)


gradio.queueing.Queue = Calls  # type: ignore[misc]
gradio.routes.StateHolder = Sessions  # type: ignore[misc]
