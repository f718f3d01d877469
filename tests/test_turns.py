"""Turns: one job at a time, short ones first, long ones in pieces; who waits knows the place; who leaves lets go."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from asyncio import Queue
from collections.abc import Iterator
from contextvars import ContextVar, copy_context
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio")

from app.readers import UNREAD, UNREAD_SECONDS, Abandoned, while_read
from app.turns import PATIENCE, SOON, Turns, Waiting


def job(log: list[str], name: str, steps: int) -> Iterator[str]:
    try:
        for i in range(steps):
            log.append(f"{name}{i}")
            yield f"{name}{i}"
    finally:
        log.append(f"{name} ends")


def test_a_job_alone_never_waits() -> None:
    log: list[str] = []
    turns = Turns()
    assert list(turns.take(job(log, "a", 3))) == ["a0", "a1", "a2"]
    assert log[-1] == "a ends" and not turns.busy


def test_a_step_that_takes_long_gives_a_sign_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.turns.SIGN_SECONDS", 0.02)
    go_on = threading.Event()

    def slow() -> Iterator[str]:
        go_on.wait(10)
        yield "done"

    turns = Turns()
    steps = turns.take(slow(), signs=True, piece=lambda step: True)
    assert [next(steps), next(steps)] == [Waiting(0)] * 2
    assert turns.busy, "a sign is not the end of a piece"
    go_on.set()
    assert [step for step in steps if step != Waiting(0)] == ["done"] and not turns.busy


def test_a_job_that_is_left_in_the_middle_of_a_step_ends_before_the_next_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.turns.SIGN_SECONDS", 0.02)
    log: list[str] = []
    go_on = threading.Event()

    def slow() -> Iterator[str]:
        try:
            go_on.wait(10)
            log.append("slow's step")
            yield "slow"
        finally:
            log.append("slow ends")

    turns = Turns()
    left = turns.take(slow(), signs=True)
    assert next(left) == Waiting(0)
    left.close()
    threading.Timer(0.05, go_on.set).start()
    assert [step for step in turns.take(job(log, "b", 1)) if step != Waiting(0)] == ["b0"]
    assert log == ["slow's step", "slow ends", "b0", "b ends"]


def test_who_waits_hears_the_place_and_comes_next() -> None:
    log: list[str] = []
    turns = Turns()
    first, second, third = (turns.take(job(log, name, 1)) for name in "abc")
    assert next(first) == "a0"
    assert next(second) == Waiting(1) and next(third) == Waiting(2)
    assert list(first) == []
    assert next(third) == Waiting(1), "the second comes first"
    assert next(second) == "b0" and list(second) == []
    assert next(third) == "c0"


def test_who_has_to_wait_hears_so_at_once_however_many_there_are() -> None:
    turns = Turns()
    queue = [turns.take(job([], str(i), 1)) for i in range(30)]
    next(queue[0])
    for before, waiting in enumerate(queue[1:], 1):
        started = time.monotonic()
        assert next(waiting) == Waiting(before) and time.monotonic() - started < 2 * SOON
    for one in queue:
        one.close()


def test_a_short_job_waits_for_one_piece_of_a_long_one_at_most() -> None:
    log: list[str] = []
    turns = Turns()
    long = turns.take(job(log, "long", 3), long=True, piece=lambda step: True)
    assert next(long) == "long0"  # the piece is done, and the turn given up
    short = turns.take(job(log, "s", 2))
    assert next(short) == "s0"
    assert isinstance(next(long), Waiting), "the long one stands back while somebody draws"
    assert list(short) == ["s1"]
    assert [step for step in long if isinstance(step, str)] == ["long1", "long2"]


def test_long_jobs_are_not_passed_over_for_ever() -> None:
    log: list[str] = []
    turns = Turns()
    holder = turns.take(job(log, "h", 1))
    next(holder)
    long = turns.take(job(log, "long", 1), long=True)
    assert next(long) == Waiting(1)
    shorts = [turns.take(job(log, f"s{i}-", 1)) for i in range(PATIENCE + 2)]
    for short in shorts:
        assert isinstance(next(short), Waiting)
    list(holder)
    for short in shorts[:PATIENCE]:
        assert isinstance(list(short)[-1], str)
    assert isinstance(next(shorts[PATIENCE]), Waiting), "now the long one"
    assert next(long) == "long0"
    long.close()
    assert [list(short)[-1][:1] for short in shorts[PATIENCE:]] == ["s", "s"]


def test_leaving_the_queue_or_stopping_lets_the_next_one_in() -> None:
    log: list[str] = []
    turns = Turns()
    first, second, third = (turns.take(job(log, name, 3)) for name in "abc")
    next(first), next(second), next(third)
    second.close()
    assert next(third) == Waiting(1)
    first.close()
    assert next(third) == "c0" and log.index("a ends") < log.index("c0")
    third.close()
    assert not turns.busy


def test_a_job_that_fails_lets_go() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise RuntimeError("no")

    turns = Turns()
    taken = turns.take(broken())
    next(taken)
    with contextlib.suppress(RuntimeError):
        next(taken)
    assert not turns.busy


def test_two_threads_never_hold_the_model_at_once() -> None:
    turns, inside, worst = Turns(), [0], [0]

    def work() -> Iterator[int]:
        inside[0] += 1
        worst[0] = max(worst[0], inside[0])
        yield from range(20)
        inside[0] -= 1

    threads = [
        threading.Thread(target=lambda long=long: list(turns.take(work(), long=long))) for long in (False, True) * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert worst[0] == 1 and not turns.busy


def test_a_job_that_nobody_reads_gives_its_turn_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not when Python finds what the error keeps: here somebody holds on to the error."""
    monkeypatch.setattr("app.readers.unread", lambda: UNREAD + 1)
    log: list[str] = []
    turns = Turns()
    with pytest.raises(Abandoned) as kept:
        list(while_read(turns.take(job(log, "a", 99))))
    assert not turns.busy and list(turns.take(iter([1]))) == [1]
    assert log == ["a0", "a ends"]
    assert kept.value.__traceback__ is not None


def test_messages_may_lie_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = iter([0, 5, 5, 1, 5, 5, 5, 5])
    monkeypatch.setattr("app.readers.unread", lambda: next(waiting))
    monkeypatch.setattr("app.readers.time", SimpleNamespace(monotonic=count(0.0, UNREAD_SECONDS / 2).__next__))
    log: list[str] = []
    turns = Turns()
    with pytest.raises(Abandoned):
        list(while_read(turns.take(job(log, "a", 99))))
    assert list(turns.take(iter([1]))) == [1]
    assert log == [*(f"a{i}" for i in range(7)), "a ends"], "what was read in between counts"


def test_what_nobody_reads_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: Queue[str] = Queue()
    for _ in range(UNREAD + 1):
        waiting.put_nowait("a picture")
    monkeypatch.setattr("app.readers.messages", lambda: waiting)
    with pytest.raises(Abandoned):
        list(while_read(Turns().take(job([], "a", 99))))
    assert waiting.empty()


def test_those_who_wait_are_not_woken_by_every_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else 60 who wait would hear 60 times a picture that they still do."""
    monkeypatch.setattr("app.turns.SOON", 0.3)
    monkeypatch.setattr("app.turns.POLL_SECONDS", (0.3, 0.3))
    turns = Turns()
    holder, second = turns.take(job([], "a", 9)), turns.take(job([], "b", 9))
    next(holder)
    stirring = threading.Thread(target=lambda: [(time.sleep(0.02), turns._leave(object())) for _ in range(8)])
    started = time.monotonic()
    stirring.start()
    assert next(second) == Waiting(1)
    assert time.monotonic() - started >= 0.3
    stirring.join()


def test_all_jobs_run_in_one_thread_which_knows_what_the_asking_one_knows() -> None:
    asks: ContextVar[str] = ContextVar("asks")
    seen: list[tuple[str, str]] = []

    def asked(turns: Turns, name: str) -> None:
        asks.set(name)

        def steps() -> Iterator[int]:
            for i in range(3):
                seen.append((asks.get(), threading.current_thread().name))
                yield i

        assert [step for step in turns.take(steps()) if not isinstance(step, Waiting)] == [0, 1, 2]

    turns = Turns()
    threads = [threading.Thread(target=copy_context().run, args=(asked, turns, name)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for name, _ in seen) == sorted(3 * "abc") and len({where for _, where in seen}) == 1


def test_what_goes_wrong_in_a_job_is_heard_and_gives_the_turn_up() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("too much")

    turns = Turns()
    with pytest.raises(ValueError, match="too much"):
        list(turns.take(failing()))
    assert not turns.busy and list(turns.take(iter([1]))) == [1]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library of Linux keeps what is freed")
def test_what_a_job_freed_goes_back_to_the_system() -> None:
    """Little that stays between much that goes, as images and what is kept of them: 200 MB in blocks of 100 KB."""
    code = f"""
import ctypes, os, sys
sys.path[:0] = [{str(Path(__file__).parents[1])!r}]
from pathlib import Path
from app.turns import Turns
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

def job():
    blocks = [libc.malloc(100_000 if i % 2 == 0 else 64) for i in range(4000)]
    for block in blocks[::2]:
        ctypes.memset(block, 1, 100_000)
    yield resident()
    for block in blocks[::2]:
        libc.free(block)
    yield resident()

turns = Turns()
before = resident()
held, freed = turns.take(job())
turns._thread.shutdown()  # waits for what comes after the job
print(before, held, freed, resident())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, held, freed, after = map(float, done.stdout.split())
    assert held > before + 150 and freed > before + 150, "freeing alone gives little back"
    assert after < before + 20
