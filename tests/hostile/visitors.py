"""People on the Explore page: ``python tests/hostile/visitors.py [--visitors 30 --seconds 300 --model pocket]``.

No browser: every visitor sends what the page sends, over the page's own events. Each opens the page, draws, drags (asks
for another picture before the first has come), lets strips be drawn in the background, looks into heads; now and then
one calibrates, or closes the tab in the middle. Reported: how long each waited for a first word (a place in the queue,
or a picture in growing) and for the picture, and the server's memory over time. Stops by itself; exit code 1 where
somebody got neither a picture nor a place, or memory grew by more than 10 % after the first minute.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import httpx
from load import GROWTH, Load
from served import served

PROMPTS = {
    "tiny": ("red apple", "blue cat", "green tree"),
    "pocket": ("red apple", "fox", "rainbow", "umbrella", "panda", "mushroom", "house", "lion"),
}
PATIENCE = 120.0  # seconds after which a visitor counts as left without an answer


class Visitors(Load):
    kinds = ("draw",) * 6 + ("drag",) * 3 + ("head", "head", "leave")
    first: list[float]

    def __init__(self, url: str, process: int, model: str) -> None:
        super().__init__(url, process)
        self.prompts = PROMPTS[model]
        self.first = []  # seconds until a first word
        self.places = 0  # how often that was a place in the queue
        config = httpx.get(f"{url}config", timeout=60).json()
        ids = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
        self.events = {
            name: next(d["id"] for d in config["dependencies"] if [ids[part], event] in map(list, d["targets"]))
            for name, part, event in (
                ("draw", "stage", "draw"), ("strip", "stage", "strip"), ("head", "headcard", "probe"),
                ("calibrate", "calibrate-start", "click"),
            )
        }  # fmt: skip

    def send(self, client: httpx.Client, event: str, session: str, data: list[Any], **asked: Any) -> Iterator[str]:
        """What the page hears of one event, message by message."""
        body = {"fn_index": self.events[event], "data": data, "session_hash": session, "event_data": asked or None}
        answer = client.post(f"{self.url}gradio_api/queue/join", json=body)
        if answer.status_code != 200:
            yield f"refused {answer.status_code} {answer.text}"
            return
        name = answer.json()["event_id"]
        with client.stream("GET", f"{self.url}gradio_api/queue/data", params={"session_hash": session}) as stream:
            for line in stream.iter_lines():
                if name in line:
                    yield line
                    if '"process_completed"' in line:
                        return

    def ask(self, client: httpx.Client, kind: str, rng: random.Random) -> None:
        """One thing that a visitor does."""
        session = f"{id(client)}{rng.randrange(10**9)}"
        view = {"prompt": rng.choice(self.prompts), "seed": rng.randrange(40), "sampling": {}}
        b = {"policy": rng.choice(("heatkv", "heatkv", "heatkv+", "h2o")), "percent": rng.randrange(35, 95)}
        wanted = {"id": 1, **view, "a": {"policy": "full"}, "b": {**b, "source": "bundled"}}
        if kind == "head":
            self.wait(kind, self.send(client, kind, session, [None], layer=0, head=rng.randrange(4), **view), '"view"')
            return
        if kind == "leave":
            for line in self.send(client, "draw", session, [None, None], **wanted):
                if "generating" in line:
                    break  # the tab is closed
            return
        if kind == "drag":  # one picture is asked for, and at once another
            self.post(client, session, [None, None], wanted)
            wanted = {**wanted, "id": 2, "b": {**wanted["b"], "percent": 97}}
        self.wait(kind, self.send(client, "draw", session, [None, None], **wanted), '"score"')
        if kind == "draw" and rng.random() < 0.3:
            self.post(client, session, [None, None], {**wanted, "key": "k"}, "strip")
        if rng.random() < 0.01:
            lines = "\n".join(self.prompts)
            self.wait("calibrate", self.send(client, "calibrate", session, [lines, len(self.prompts)]), "In use")

    def post(
        self, client: httpx.Client, session: str, data: list[Any], asked: dict[str, Any], event: str = "draw"
    ) -> None:
        """Send an event and do not listen."""
        body = {"fn_index": self.events[event], "data": data, "session_hash": session, "event_data": asked}
        client.post(f"{self.url}gradio_api/queue/join", json=body)

    def wait(self, kind: str, lines: Iterator[str], sign: str) -> None:
        """Listen until ``sign`` has come; note when the first word came and when the end."""
        started = time.monotonic()
        first, place, found, last = None, False, False, ""
        for line in lines:
            if first is None and '"process_generating"' in line:
                first, place = time.monotonic() - started, '"waiting"' in line or "In the queue" in line
            found, last = found or sign in line, line
            if time.monotonic() - started > PATIENCE:
                break
        with self.lock:
            self.seconds[kind].append(time.monotonic() - started)
            if first is not None:
                self.first.append(first)
                self.places += place
            if "refused" in last:
                self.refused[kind] += 1
            else:
                self.check(kind, found, last)

    def report(self, seconds: float) -> dict[str, object]:
        words = sorted(self.first) or [0.0]
        return {
            **super().report(seconds),
            "first_word_seconds": [round(words[int(len(words) * share)], 2) for share in (0.5, 0.95)],
            "first_word_was_a_place": round(self.places / max(1, len(self.first)), 2),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--visitors", type=int, default=30)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--model", choices=sorted(PROMPTS), default="pocket")
    options = parser.parse_args()
    with served(options.seconds + 300, options.model) as (url, process):
        visitors = Visitors(url, process, options.model)
        report = visitors.run(min(options.visitors, 100), min(options.seconds, 900))
    print(json.dumps(report, indent=1))
    return int(report["wrong"] != 0 or float(str(report["growth_after_start"])) > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
