"""What nobody should send to the app, and jobs that nobody reads: a sample of ``python tests/hostile/run.py``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")

sys.path.insert(0, str(Path(__file__).parent / "hostile"))

from api_cases import make_payload, violations  # noqa: E402
from served import call, payload  # noqa: E402
from tiny import tiny_model  # noqa: E402

import heatkv  # noqa: E402
from app.__main__ import check_address  # noqa: E402
from app.demo import create_demo, launch_options  # noqa: E402
from app.inputs import InputError, read_sampling, without_folder  # noqa: E402
from heatkv.models.base import Sampling  # noqa: E402
from heatkv.schedule import Schedule, ScheduleError  # noqa: E402


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, Any]]:
    model = tiny_model()
    demo = create_demo(model, heatkv.calibrate(model, ["red apple"]))
    _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options())
    yield url, demo
    demo.close()


def test_generated_payloads_are_answered_and_tell_no_path(served: tuple[str, Any]) -> None:
    url, _ = served
    with httpx.Client(timeout=60) as client:
        for number in range(24):
            name, body = make_payload(number, 2026)
            status, answer, seconds = call(client, url, name, body)
            assert violations(status, answer, seconds, most_seconds=60) == [], (number, name, body[:200], answer[-300:])
        status, answer, _ = call(client, url, "plan", payload(0.5, "heatkv"))
    assert status == 200 and "drop_at" in answer


def test_a_job_that_nobody_reads_ends(served: tuple[str, Any]) -> None:
    url, demo = served
    queue = demo._queue
    with httpx.Client(timeout=60) as client:
        asked = {"data": [["red apple"] * 64, 0]}
        client.post(f"{url}gradio_api/call/calibrate", json=asked).raise_for_status()
        deadline = time.monotonic() + 60
        while any(job for jobs in queue.active_jobs if jobs for job in jobs) or time.monotonic() < deadline - 58:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    waiting = max((messages.qsize() for messages in queue.pending_messages_per_session.values()), default=0)
    assert waiting < 40, "64 prompts say more than that"


def test_no_folder_of_this_machine_is_told_even_where_the_path_is_shortened(tmp_path: Path) -> None:
    folder = tmp_path / ("gradio" * 12) / "d41d8cd98f00b204e9800998ecf8427e"
    folder.mkdir(parents=True)
    path = folder / "mine.json"
    path.write_text("[]")
    with pytest.raises(ScheduleError) as caught:
        Schedule.load(path)
    said = without_folder(str(caught.value), str(path))
    assert "mine.json" in said and "/" not in said.replace("[height", "")


def test_sampling_from_outside_is_read_or_refused() -> None:
    usual = Sampling(guidance=3.0, temperature=0.5)
    assert read_sampling(usual, None, "", None, None) == usual
    assert read_sampling(usual, 2, "0.7", 5.0, 0.9) == Sampling(2.0, 0.7, 5, 0.9)
    for wrong in (
        (float("nan"), None, None, None),
        (None, 0, None, None),
        (None, None, 1.5, None),
        ([], None, None, 2),
    ):
        with pytest.raises(InputError):
            read_sampling(usual, *wrong)


@pytest.mark.parametrize("port", [-5, 0, 99_999_999])
def test_a_port_that_there_is_not_is_refused_in_words(port: int) -> None:
    with pytest.raises(ValueError, match="outside 1 to 65535"):
        check_address("127.0.0.1", port)


def test_a_busy_port_is_refused_in_words() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match=r"can not listen at '127\.0\.0\.1', port"):
            check_address("127.0.0.1", taken.getsockname()[1])
    check_address("127.0.0.1", None)
