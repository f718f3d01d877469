"""Whose turn it is: the model serves one job at a time, short ones first, and long ones step back between pieces.

All jobs run in one thread. Libraries keep buffers for every thread that ever computed, a MB or so, and threads of its
own for each; a server has a thread for everybody who waits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

from heatkv.threads import give_back_memory

T = TypeVar("T")
SOON = 0.2  # seconds after which who has to wait first hears so
POLL_SECONDS = (0.4, 2.0)  # how often the first who waits hears the place, and those far behind, who are many
PATIENCE = 4  # so many short jobs may go before a long one that waits
SIGN_SECONDS = 2.0  # who waits for a step hears so often that it still goes on
GIVE_BACK_SECONDS = 5.0  # what jobs have freed goes back to the system so often; it takes as long as a step


@dataclass(frozen=True)
class Waiting:
    """The job stands in the queue; so many are before it, the running one included. 0: a step of it takes long."""

    before: int


class Turns:
    """First come, first served among short jobs (a picture), and among long ones (many pictures, step by step).

    A short job goes before the long ones that wait, but no more than `PATIENCE` times in a row. A long job gives the
    model up after each of its pieces, so that a short one waits for a single piece at most.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._short: deque[object] = deque()
        self._long: deque[object] = deque()
        self._holder: object | None = None
        self._passed = 0
        self._gave_back = -GIVE_BACK_SECONDS
        self._thread = ThreadPoolExecutor(1, "model")

    @property
    def busy(self) -> bool:
        return self._holder is not None or bool(self._short or self._long)

    def take(
        self,
        job: Iterator[T],
        *,
        long: bool = False,
        signs: bool = False,
        piece: Callable[[T], bool] = lambda step: False,
    ) -> Generator[T | Waiting, None, None]:
        """``job``'s steps when its turn has come, and `Waiting` now and then until it has, more often near the front.

        With ``signs`` also while a step takes long, so that who hears nothing at all knows that something was lost.
        After a step that is the end of a piece the turn goes to whoever waits. Closing this iterator, in the queue or
        in the middle of a step, closes the job and gives the turn up.
        """
        ticket = object()
        try:
            yield from self._wait(ticket, long)
            for step in self._steps(job, SIGN_SECONDS if signs else None):
                if isinstance(step, Waiting) or not piece(step):
                    yield step
                    continue
                self._leave(ticket)
                yield step
                yield from self._wait(ticket, long)
        finally:
            # Before the next job's first step, as the thread takes one thing after the other. Not waited for: this may
            # be Python's collector at work in the very thread.
            try:
                self._thread.submit(self._end, job)
            except RuntimeError:  # the program ends
                self._end(job)
            self._leave(ticket)

    def _steps(self, job: Iterator[T], patience: float | None) -> Iterator[T | Waiting]:
        """``job``'s steps, each run in the model's thread with what is known of the request here."""
        context, end = copy_context(), object()
        while True:
            running = self._thread.submit(context.run, lambda: next(job, end))
            while not wait([running], patience).done:
                yield Waiting(0)
            step: Any = running.result()
            if step is end:
                return
            yield step

    def _end(self, job: Iterator[T]) -> None:
        """Close ``job``; now and then, what the jobs before have freed goes back to the system."""
        close = getattr(job, "close", None)
        if close is not None:
            close()
        if time.monotonic() >= self._gave_back + GIVE_BACK_SECONDS:
            give_back_memory()
            self._gave_back = time.monotonic()

    def _wait(self, ticket: object, long: bool) -> Iterator[Waiting]:
        with self._changed:
            (self._long if long else self._short).append(ticket)
        often, seldom = POLL_SECONDS
        pause = SOON
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._starts(ticket), pause):
                    return
                before = self._before(ticket, long)
            yield Waiting(before)
            pause = min(often + 0.1 * (before - 1), seldom)

    def _starts(self, ticket: object) -> bool:
        """Take the turn if it is this ticket's."""
        if self._holder is not None:
            return False
        passing = bool(self._short) and not (self._long and self._passed >= PATIENCE)
        queue = self._short if passing else self._long
        if queue[0] is not ticket:
            return False
        self._passed = self._passed + 1 if passing and self._long else 0
        queue.popleft()
        self._holder = ticket
        return True

    def _before(self, ticket: object, long: bool) -> int:
        ahead = list(self._short).index(ticket) if not long else len(self._short) + list(self._long).index(ticket)
        return ahead + (self._holder is not None)

    def _leave(self, ticket: object) -> None:
        with self._changed:
            if self._holder is ticket:
                self._holder = None
            for queue in (self._short, self._long):
                if ticket in queue:
                    queue.remove(ticket)
            self._changed.notify_all()
