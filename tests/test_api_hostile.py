"""What nobody should send to the app, and jobs that nobody reads: a sample of ``python tests/hostile/run.py``."""

from __future__ import annotations

import inspect
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
gr = pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")

sys.path.insert(0, str(Path(__file__).parent / "hostile"))

from api_cases import LEAKS, make_payload, violations  # noqa: E402
from served import call, payload, resident  # noqa: E402
from tiny import tiny_model  # noqa: E402

import heatkv  # noqa: E402
from app.__main__ import main  # noqa: E402
from app.demo import create_demo, launch_options  # noqa: E402
from app.inputs import InputError, read_sampling, without_folder  # noqa: E402
from heatkv import schedule, scores  # noqa: E402
from heatkv.models.base import Sampling  # noqa: E402
from heatkv.models.bundled import save_folder  # noqa: E402
from heatkv.schedule import Schedule, ScheduleError  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


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
        status, answer, _ = call(client, url, "plan", payload(0.5, "heatkv", ""))
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


# --- uploads ----------------------------------------------------------------------------------------------------------


def upload(client: httpx.Client, url: str, name: str, data: bytes) -> dict[str, Any]:
    """An uploaded file, as Gradio's page refers to it."""
    found = client.post(f"{url}gradio_api/upload", files={"files": (name, data)})
    found.raise_for_status()
    return {"path": found.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def run_upload(client: httpx.Client, url: str, demo: Any, handler: str, file: Any) -> str:
    """What the page is told once a handler has taken a file."""
    fn = next(fn for fn in demo.fns.values() if getattr(fn.fn, "__qualname__", "").endswith(handler))
    values = [file, *(None if isinstance(one, gr.State) else one.value for one in fn.inputs[1:])]
    body = {"data": values, "fn_index": fn._id, "session_hash": "uploader", "event_data": None}
    done = client.post(f"{url}gradio_api/run/predict", json=body, timeout=120)
    assert done.status_code == 200, done.text
    return done.text


UPLOADS = [("Files.take_schedule", "mine.json"), ("BudgetsTab.take_file", "mine.json"),
           ("BudgetsTab.take_file", "mine.safetensors"), ("CalibrateTab.take_file", "mine.safetensors")]  # fmt: skip


@pytest.mark.parametrize(("handler", "name"), UPLOADS)
def test_the_page_answers_while_an_upload_is_read(
    served: tuple[str, Any], handler: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that takes: here until the page has answered."""
    url, demo = served
    reading, answered = threading.Event(), threading.Event()

    def slow(read: Any) -> Any:
        def slowly(*arguments: Any, **options: Any) -> Any:
            reading.set()
            assert answered.wait(60), "the page is deaf while a file is read"
            return read(*arguments, **options)

        return slowly

    for module, function in ((schedule, "read_bytes"), (scores, "read_bytes"), (scores, "_read_safetensors")):
        monkeypatch.setattr(module, function, slow(getattr(module, function)))
    with httpx.Client(timeout=120) as client:
        file = upload(client, url, name, b"[]")
        said: list[str] = []
        uploading = threading.Thread(target=lambda: said.append(run_upload(client, url, demo, handler, file)))
        uploading.start()
        assert reading.wait(60)
        with httpx.Client(timeout=50) as other:
            assert other.get(url).status_code == 200
            status, answer, _ = call(other, url, "plan", payload(0.5, "heatkv", ""))
        answered.set()
        uploading.join()
    assert status == 200 and "drop_at" in answer
    assert len(said) == 1 and "error" in said[0]


@pytest.mark.parametrize(("handler", "name"), UPLOADS)
def test_an_upload_out_of_proportion_is_refused_before_it_is_parsed(
    served: tuple[str, Any], handler: str, name: str
) -> None:
    """30 MB of lists in lists took 8 s and a gigabyte."""
    lists = b"[" + b"[]," * 10_000_000 + b"[]]"
    head = (len(lists) - 8).to_bytes(8, "little") + b'{"__metadata__": ' if name.endswith("safetensors") else b""
    url, demo = served
    with httpx.Client(timeout=120) as client:
        file = upload(client, url, name, (head + lists)[: 30 << 20])
        before = resident(os.getpid())
        with ThreadPoolExecutor(1) as pool, httpx.Client(timeout=60) as other:
            started, answer = time.monotonic(), pool.submit(run_upload, client, url, demo, handler, file)
            status, _, waited = call(other, url, "plan", payload(0.5, "heatkv", ""))
            assert "error" in answer.result() and not LEAKS.search(answer.result())
    assert status == 200 and waited < 5 and time.monotonic() - started < 5
    assert resident(os.getpid()) - before < 150 << 20


@pytest.mark.parametrize("junk", [-1, "x\x00y", {"a": [1]}, [[{}]]], ids=repr)
def test_the_pages_own_endpoints_answer_junk_in_words(served: tuple[str, Any], junk: Any) -> None:
    """They are not for programs, but nobody can keep one from calling them. Files and generators Gradio refuses."""
    url, demo = served
    silent = []
    handlers = [
        fn for fn in demo.fns.values()
        if fn.fn is not None and fn.api_visibility == "private" and not inspect.isgeneratorfunction(fn.fn)
        and not any(isinstance(one, gr.File | gr.UploadButton) for one in fn.inputs)
    ]  # fmt: skip
    assert len(handlers) > 9
    with httpx.Client(timeout=120) as client:
        for fn in handlers:
            states = [isinstance(one, gr.State) for one in fn.inputs]
            data = [None if state else junk for state in states]
            body = {"data": data, "fn_index": fn._id, "session_hash": "junk", "event_data": junk}
            answer = client.post(f"{url}gradio_api/run/predict", json=body)
            said = answer.json()
            if LEAKS.search(answer.text) or not (answer.status_code < 400 or said.get("error") or said.get("detail")):
                silent.append((fn.fn.__qualname__, answer.status_code, answer.text[:300]))
    assert silent == []


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


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "-5"], "port -5 is outside 1 to 65535"),
        (["--port", "99999999"], "port 99999999 is outside 1 to 65535"),
        (["--port", "abc"], "invalid int value"),
        (["--port", "BUSY"], "can not listen at '127.0.0.1', port"),
        (["--host", "no.such.host.invalid"], "can not listen at 'no.such.host.invalid'"),
        (["--host", "x" * 3000], "can not listen at"),
        (["--device", "nope"], "device 'nope'"),
        (["--device", "meta"], "device 'meta' is not one of"),
        (["--device", "cuda:99"], "device 'cuda:99' can not be used here"),
        (["--model", "nope"], "nope"),
        (["--dtype", "int3"], "invalid choice"),
        (["--scores", "/nowhere/scores.safetensors"], "/nowhere/scores.safetensors"),
    ],
)
def test_the_app_says_in_one_line_why_it_does_not_start(
    arguments: list[str], words: str, busy_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([word.replace("BUSY", str(busy_port)) for word in arguments])
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == ""
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and len(said.err) < 600
    assert words in said.err


def test_a_busy_port_ends_the_program(busy_port: int) -> None:
    arguments = [sys.executable, "-m", "app", "--port", str(busy_port)]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert f"port {busy_port}" in done.stderr


def test_ctrl_c_ends_the_program_while_it_computes(tmp_path: Path) -> None:
    """And takes the uploads along: a calibration of 64 prompts runs, and somebody reads what it says."""
    save_folder(tiny_model((1, 3, 5, 7, 9, 11, 13)), tmp_path / "model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, uploads = f"http://127.0.0.1:{port}/", tmp_path / "uploads"
    command = [sys.executable, "-m", "app", "--model", str(tmp_path / "model"), "--port", str(port)]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(uploads)}
    program = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        with httpx.Client(timeout=120) as client:
            while True:
                assert program.poll() is None
                try:
                    client.get(url)
                    break
                except httpx.TransportError:
                    time.sleep(0.2)
            upload(client, url, "mine.json", b"[]")
            assert list(uploads.rglob("mine.json"))
            path = f"{url}gradio_api/call/calibrate"
            event = client.post(path, json={"data": [["red apple"] * 64, 0]}).json()["event_id"]
            with client.stream("GET", f"{path}/{event}") as stream:
                next(line for line in stream.iter_lines() if "prompts" in line)
                program.send_signal(signal.SIGINT)
                started = time.monotonic()
                said = program.communicate(timeout=20)[1]
                seconds = time.monotonic() - started
    finally:
        program.kill()
        program.wait()
    assert program.returncode == 130 and said.splitlines()[-1] == "stopping" and "Traceback" not in said
    assert seconds < 3 and not list(uploads.rglob("mine.json"))
