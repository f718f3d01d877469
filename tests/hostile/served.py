"""The app with a small model, served to this machine alone in a process of its own, and plain requests to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
SERVER = """
import os, sys, threading, time
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
sys.path[:0] = [{root!r}, {tests!r}]
import torch
torch.set_num_threads(1)
import heatkv, heatkv.threads
from app.demo import Exhibit, create_pages, launch_options
heatkv.threads.share_freed_memory()  # as `python -m app` does
if {model!r} == "tiny":
    from tiny import tiny_model
    model = tiny_model()
    shown = Exhibit(model, heatkv.calibrate(model, ["red apple"]))
else:
    from app.__main__ import exhibit
    shown = exhibit({model!r}, "cpu", "float32")
demo = create_pages([shown])
_, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options())
print(url, flush=True)
time.sleep({seconds})
os._exit(0)
"""


@contextmanager
def served(seconds: int, model: str = "tiny") -> Iterator[tuple[str, int]]:
    """Address and process of a server of a bundled or the tiny model that ends by itself after so many seconds."""
    code = SERVER.format(root=str(ROOT), tests=str(ROOT / "tests"), seconds=seconds, model=model)
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise RuntimeError("the server did not start")
        yield url, process.pid
    finally:
        process.kill()
        process.wait()


def call(client: httpx.Client, url: str, name: str, body: bytes) -> tuple[int, str, float]:
    """Status, answer and seconds of a call: the request, and then what its event says.

    Once more where the server had just closed the connection, which it does with those that were idle for 5 s.
    """
    try:
        return _call(client, url, name, body)
    except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
        return _call(client, url, name, body)


def _call(client: httpx.Client, url: str, name: str, body: bytes) -> tuple[int, str, float]:
    started = time.monotonic()
    path = f"{url}gradio_api/call/{name}"
    first = client.post(path, content=body, headers={"content-type": "application/json"})
    if first.status_code != 200:
        return first.status_code, first.text, time.monotonic() - started
    try:
        event = first.json()["event_id"]
    except (ValueError, KeyError, TypeError):
        return first.status_code, first.text, time.monotonic() - started
    answer = client.get(f"{path}/{event}")
    return answer.status_code, answer.text, time.monotonic() - started


def resident(process: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def payload(*data: object) -> bytes:
    return json.dumps({"data": data}).encode()
