"""What the server remembers of visitors and calls stays small and bounded, and nobody loses what they put there."""

from __future__ import annotations

import asyncio
import datetime
import gc
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
gr = pytest.importorskip("gradio")

from tiny import tiny_model  # noqa: E402

import heatkv  # noqa: E402
from app.demo import create_demo  # noqa: E402
from app.sessions import EMPTY, UNFETCHED, Calls, Sessions  # noqa: E402


@pytest.fixture(scope="module")
def demo() -> Any:
    model = tiny_model()
    return create_demo(model, heatkv.calibrate(model, ["red apple"]))


@pytest.fixture
def sessions(demo: Any) -> Sessions:
    found = Sessions()
    demo.state_session_capacity = 50
    found.set_blocks(demo)
    return found


def test_the_app_uses_them(demo: Any) -> None:
    assert isinstance(demo._queue, Calls) and isinstance(demo.app.state_holder, Sessions)


def test_a_session_that_holds_nothing_is_small_and_soon_forgotten(sessions: Sessions) -> None:
    gc.collect()
    before = len(gc.get_objects())
    for number in range(300):
        sessions[f"call {number}"]
    gc.collect()
    assert len(sessions.session_data) == EMPTY
    assert (len(gc.get_objects()) - before) / EMPTY < 60, "Gradio's own have some 800 objects each"
    assert "call 299" in sessions and "call 0" not in sessions


def test_what_a_visitor_put_there_outlives_any_number_of_calls(demo: Any, sessions: Sessions) -> None:
    state = next(id for id, block in demo.blocks.items() if isinstance(block, gr.State))
    radio, found = next((id, block) for id, block in demo.blocks.items() if isinstance(block, gr.Radio))
    sessions["uploader"][state] = "a schedule"
    sessions["chooser"][radio] = gr.Radio(["a", "b"], render=False)
    for number in range(200):
        sessions[f"call {number}"]
    assert sessions["uploader"][state] == "a schedule"
    assert [name for name, _ in sessions["chooser"][radio].choices] == ["a", "b"]
    assert sessions["call 199"][radio] is found and sessions["call 199"][state] is None
    for number in range(80):
        sessions[f"visitor {number}"][state] = number
    assert len(sessions.session_data) <= 50 + EMPTY and "uploader" not in sessions
    assert sessions["visitor 79"][state] == 79
    sessions["visitor 79"][state] = None
    assert sessions["visitor 79"][state] is None


def test_a_page_whose_connection_broke_off_finds_its_states_again(demo: Any, sessions: Sessions) -> None:
    state = next(id for id, block in demo.blocks.items() if isinstance(block, gr.State))
    sessions["sleeper"][state] = "a calibration"
    session = sessions["sleeper"]
    session.is_closed = True  # as Gradio says of it, for good, when a laptop sleeps
    for id, (seconds, _) in list(session._state_ttl.items()):
        session._state_ttl[id] = seconds, datetime.datetime.now() - datetime.timedelta(days=2)
    sessions.delete_all_expired_state()
    assert sessions["sleeper"][state] == "a calibration"


def test_what_a_component_shows_is_not_kept(demo: Any, sessions: Sessions) -> None:
    """The pictures of everybody who ever drew."""
    stage = next(id for id, block in demo.blocks.items() if getattr(block, "elem_id", None) == "published-map")
    shown = {"image": "x" * 10**6}
    held = sys.getrefcount(shown)
    session = sessions["visitor"]
    session._update_value_in_config(stage, shown)
    session._update_config(stage)
    assert stage in session and session[stage] is demo.blocks[stage]
    assert sys.getrefcount(shown) == held and list(session.components) == [] and not session.holds_something


@pytest.fixture
def calls(demo: Any) -> Any:
    """A queue that nothing is taken from, and calls by name."""
    queue = Calls(True, 1, 1, None, demo, default_concurrency_limit=1)
    fn = next(fn for fn in demo.fns.values() if fn.api_name == "plan")

    def ask(session: str | None = None) -> Any:
        body: Any = SimpleNamespace(fn_index=fn._id, session_hash=session, event_id=None, api_name=None)
        with ThreadPoolExecutor(1) as thread:  # beside browser tests this thread has a running loop of its own
            pushed, event_id, _ = thread.submit(asyncio.run, queue.push(body, None, None)).result()
        assert pushed
        return queue.event_ids_to_events[event_id]

    def end(event: Any, fetched: bool) -> None:
        queue.event_queue_per_concurrency_id[event.concurrency_id].queue.remove(event)
        del queue.event_ids_to_events[event._id]
        if fetched:
            queue.pending_event_ids_session[event.session_hash].remove(event._id)

    return SimpleNamespace(queue=queue, ask=ask, end=end)


def test_calls_that_were_answered_are_dropped_and_those_that_wait_are_kept(calls: Any) -> None:
    waiting, page = calls.ask(), calls.ask("page")
    for _ in range(40):
        calls.end(calls.ask(), fetched=True)
    calls.end(calls.ask("another page"), fetched=True)
    calls.ask()
    kept = {waiting._id, "page"}
    assert kept < set(calls.queue.pending_event_ids_session) and len(calls.queue.pending_event_ids_session) == 3
    assert set(calls.queue.pending_messages_per_session) == set(calls.queue.pending_event_ids_session)
    assert page.alive and waiting.alive


def test_answers_that_nobody_fetches_wait_in_limited_number(calls: Any) -> None:
    page = calls.ask("page")
    for _ in range(UNFETCHED + 30):
        calls.end(calls.ask(), fetched=False)
    last = calls.ask()
    assert len(calls.queue.pending_event_ids_session) == UNFETCHED + 2
    assert {"page", last._id} < set(calls.queue.pending_messages_per_session)
    assert page._id in calls.queue.pending_event_ids_session["page"]


def test_statistics_do_not_pile_up(calls: Any) -> None:
    for _ in range(150):
        calls.end(calls.ask(), fetched=True)
    assert len(calls.queue.event_analytics) <= 100
    assert calls.queue.compute_analytics_summary([{"function": "plan"}]) == {"functions": {}}
