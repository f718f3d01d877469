"""``python tests/hostile/load.py [--clients 50 --seconds 600]``: many visitors at once, on this machine alone.

Every client asks, in turn, for a plan, a picture, something wrong and a calibration that nobody reads. Reported: how
many were served, refused and wrong, how long each kind waited (median and 95 %), and the memory of the server over
time. Stops by itself; exit code 1 where an answer was wrong or memory grew by more than 10 % after the first minute.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import httpx
from served import call, payload, resident, served

GROWTH = 1.10


class Load:
    """What the clients saw: seconds by kind, refusals, wrong answers; and memory by time."""

    kinds: tuple[str, ...] = ("plan", "plan", "picture", "wrong", "wrong", "abandoned")

    def __init__(self, url: str, process: int) -> None:
        self.url, self.process = url, process
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.refused: dict[str, int] = defaultdict(int)
        self.wrong: list[str] = []
        self.memory: list[tuple[float, int]] = []
        self.pictures: dict[int, str] = {}
        self.lock = threading.Lock()

    def ask(self, client: httpx.Client, kind: str, rng: random.Random) -> None:
        """One request of a kind, and what came of it."""
        seed = rng.randrange(6)
        if kind == "abandoned":
            asked = {"data": [["red apple", "blue cat"] * 32, 0]}
            client.post(f"{self.url}gradio_api/call/calibrate", json=asked)
            return
        name, body = {
            "plan": ("plan", payload(0.5, "heatkv", "")),
            "picture": ("generate", payload("red apple", seed, 0.5, "heatkv")),
            "wrong": ("generate", payload("zeppelin", seed, 0.5, "heatkv")),
        }[kind]
        status, answer, seconds = call(client, self.url, name, body)
        with self.lock:
            self.seconds[kind].append(seconds)
            busy = status in (429, 503) or ("queue" in answer.lower() and "full" in answer.lower())
            if busy:
                self.refused[kind] += 1
            elif kind == "wrong":
                self.check(kind, "event: error" in answer and "zeppelin" in answer, answer)
            elif kind == "plan":
                self.check(kind, "event: complete" in answer and "drop_at" in answer, answer)
            else:
                found = answer.rpartition("compressed_png")[2][:20_000]
                self.check(kind, "event: complete" in answer and len(found) > 100, answer)
                self.check(kind, self.pictures.setdefault(seed, found) == found, f"another picture for seed {seed}")

    def check(self, kind: str, right: bool, answer: str) -> None:
        if not right:
            self.wrong.append(f"{kind}: {answer[-200:]!r}")

    def client(self, number: int, until: float) -> None:
        rng = random.Random(number)
        with httpx.Client(timeout=120) as client:
            while time.monotonic() < until:
                kind = rng.choice(self.kinds)
                try:
                    self.ask(client, kind, rng)
                except httpx.HTTPError as error:
                    with self.lock:
                        self.wrong.append(f"{kind}: {type(error).__name__}")
                time.sleep(rng.random())

    def run(self, clients: int, seconds: float) -> dict[str, Any]:
        """Let the clients ask for so long."""
        started = time.monotonic()
        threads = [
            threading.Thread(target=self.client, args=(i, started + seconds), daemon=True) for i in range(clients)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) and time.monotonic() < started + seconds + 130:
            self.memory.append((time.monotonic() - started, resident(self.process)))
            time.sleep(1)
        return self.report(seconds)

    def report(self, seconds: float) -> dict[str, Any]:
        settled = [size for at, size in self.memory if at >= min(60.0, seconds / 3)] or [1]
        kinds = {
            kind: {
                "asked": len(found),
                "refused": self.refused[kind],
                "median_seconds": round(sorted(found)[len(found) // 2], 2),
                "p95_seconds": round(sorted(found)[int(len(found) * 0.95)], 2),
            }
            for kind, found in self.seconds.items()
        }
        return {
            "seconds": seconds,
            "kinds": kinds,
            "served": sum(map(len, self.seconds.values())) - sum(self.refused.values()) - len(self.wrong),
            "refused": sum(self.refused.values()),
            "wrong": len(self.wrong),
            "first_wrong": self.wrong[:3],
            "memory_mb": [round(size / 2**20) for size in (self.memory[0][1], settled[0], max(settled), settled[-1])],
            "memory_mb_by_minute": [round(size / 2**20) for at, size in self.memory if int(at) % 60 == 0],
            "growth_after_start": round(settled[-1] / settled[0], 3),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=int, default=600)
    options = parser.parse_args()
    with served(options.seconds + 200) as (url, process):
        report = Load(url, process).run(min(options.clients, 200), min(options.seconds, 900))
    print(json.dumps(report, indent=1))
    return int(report["wrong"] != 0 or report["growth_after_start"] > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
