"""Payloads for the endpoints that nobody should send, and what may not come back."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 0.5, 2, 64, 1e308, -1e308, 2**32, 2**64, 10**30, "", "a", "red apple", "\x00",
    "x" * 9000, "nan", "Infinity", "heatkv", "heatkv+", "headkv", "full", "../../etc/passwd", "<b>", "\u202e", "6.3",
    "s4", "99.99.99", ",,,,", [], {}, [[]], [1], ["red apple"], ["red apple"] * 65, [None], {"a": {}}, [["a"]],
    {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, {"__type__": "update"}, "🦊" * 300, "0.35", "1e400",
]  # fmt: skip
GOOD: dict[str, list[Any]] = {
    "plan": [0.5, "heatkv", ""],
    "generate": ["red apple", 0, 0.5, "heatkv"],
    "draw": ["red apple", 0, 0.5, "heatkv", 2.0, 0.7, 0, 0.0, ""],
    "compare": ["red apple", 0, "full", 1.0, "", "heatkv", 0.5, "", None, None, None, None, "", ""],
    "calibrate": [["red apple"], 0],
    "knockout": ["red apple", 0],
}
ROOT = Path(__file__).resolve().parents[2]
LEAKS = re.compile(
    r'Traceback|File "|/tmp/|/home/|/root/|site-packages|heatkv/\w+\.py|object at 0x|' + re.escape(str(ROOT))
)


def make_payload(number: int, seed: int) -> tuple[str, bytes]:
    """Endpoint and body of a case; the same for the same number and seed."""
    rng = random.Random(f"{seed}-{number}")
    name = rng.choice(list(GOOD))
    data = list(GOOD[name])
    for _ in range(rng.choice((1, 1, 2))):
        data[rng.randrange(len(data))] = rng.choice(VALUES)
    kind = rng.randrange(14)
    if kind == 0:
        data = data[: rng.randrange(len(data))]
    if kind == 1:
        data += [rng.choice(VALUES)] * rng.choice((1, 500))
    body: Any = {"data": data}
    if kind == 2:
        body = rng.choice([{}, {"data": "a"}, {"data": None}, [], "a", None, {"data": {"prompt": 1}}])
    if kind == 3:
        body |= {"session_hash": rng.choice(["a" * 5000, "../x", 5, None])}  # Gradio answers "" with status 500
    text = json.dumps(body)
    if kind == 4:
        text = rng.choice(
            ["", "{", "[" * 50_000, "nul", '{"data": [1e999]}', "\ufeff{}", text[: rng.randrange(len(text))]]
        )
    return name, text.encode("utf-8", "surrogatepass")


def violations(status: int, answer: str, seconds: float, most_seconds: float = 10.0) -> list[str]:
    """What is wrong with an answer; empty where all is well.

    Gradio itself refuses another number of values, and says no words on it: that passes here.
    """
    found = []
    if seconds > most_seconds:
        found.append(f"took {seconds:.1f} s")
    if status >= 500:
        found.append(f"status {status}")
    if LEAKS.search(answer):
        found.append("a path or a traceback")
    if status == 200 and not answer.strip():
        found.append("no answer")
    return found
