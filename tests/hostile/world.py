"""Good files to start from, and hostile ones: made once in a folder, for cases to take their arguments from."""

from __future__ import annotations

import json
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "models")]

import official_files as official  # noqa: E402
from tiny import tiny_model  # noqa: E402

from heatkv import calibrate, plan  # noqa: E402
from heatkv.models.bundled import save_folder  # noqa: E402
from heatkv.scores import orders_to_json  # noqa: E402

DEEP = 100_000


@dataclass(frozen=True)
class World:
    """Paths of good files (``model`` and ``var`` are folders) and of hostile ones."""

    root: Path
    good: dict[str, Path]
    hostile: list[Path]

    @property
    def out(self) -> Path:
        """Where cases write; emptied between them."""
        return self.root / "out"


def make_world(root: Path) -> World:
    """Write all files into ``root``."""
    for name in ("out", "model", "var", "hostile"):
        (root / name).mkdir(parents=True)
    torch.set_num_threads(1)
    model = tiny_model((1, 2, 3, 4, 5), layers=2, heads=2)
    save_folder(model, root / "model")
    scores = calibrate(model, ["red apple", "blue cat"])
    scores.save(root / "model" / "scores.safetensors")
    scores.save(root / "scores.safetensors")
    plan(scores, 0.5).save(root / "schedule.json")
    (root / "orders.json").write_text(orders_to_json(scores.orders(3), scores.geometry))
    (root / "prompts.txt").write_text("green tree\n\na picture of a cat\n")
    official.write_var(root / "var")
    good = {
        "model": root / "model", "var": root / "var", "scores": root / "scores.safetensors",
        "schedule": root / "schedule.json", "orders": root / "orders.json", "prompts": root / "prompts.txt",
    }  # fmt: skip
    return World(root, good, hostile_files(root / "hostile"))


def hostile_files(folder: Path) -> list[Path]:
    """Files that are nothing that this program reads."""
    texts: dict[str, bytes] = {
        "empty": b"", "blank.txt": b"\n \n", "text.pth": b"this is a text\n" * 9, "zeros.safetensors": bytes(4096),
        "nul.json": b'{"format": "\x00"}', "latin.txt": b"caf\xe9\n", "utf16.json": "{}".encode("utf-16"),
        "deep.json": b"[" * DEEP + b"]" * DEEP, "deep_objects.json": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        "lists.json": b"[" + b"[]," * 5_000_000 + b"[]]", "infinite.json": b'{"version": 1e400}',
        "digits.json": b'{"version": ' + b"9" * 5000 + b"}", "null.json": b"null", "array.json": b"[1, 2, 3]",
        "nan.json": b'{"format": "heatkv-schedule", "version": NaN}', "twice.json": b'{"format": 1, "format": 2}',
        "long_line.txt": b"apple " * 3_000_000, "surrogate.json": b'{"format": "\\ud800"}',
        "header.safetensors": (1 << 62).to_bytes(8, "little") + b"{}", "pickle.pth": b"cos\nsystem\n(S'true'\ntR.",
        "lists.safetensors": (32 << 20).to_bytes(8, "little") + b'{"__metadata__": ' + b"[" + b"[]," * 11_000_000,
    }  # fmt: skip
    for name, data in texts.items():
        (folder / name).write_bytes(data)
    with open(folder / "sparse.txt", "wb") as file:
        file.truncate(2 << 30)
    with open(folder / "sparse.pth", "wb") as file:
        file.truncate(2 << 30)
    os.mkfifo(folder / "fifo.json")
    (folder / "loop.json").symlink_to(folder / "loop.json")
    (folder / "folder.json").mkdir()
    (folder / "locked.json").write_text("{}")
    (folder / "locked.json").chmod(0)
    special = [Path(name) for name in ("/dev/zero", "/dev/full", "/proc/self/mem", "/nowhere/at.all", "/")]
    return [*sorted(folder.iterdir()), *special, folder / ("x" * 300), folder / "e\x1b[31m.json"]


VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 1e308, -0.5, 0.5, "", "a", "\x00", "x" * 5000, [], {}, [[]], [0],
    [None], {"a": {}}, [[1, 1]] * 3, [10**9, 10**9], [0, 0], [1] * 2000, "\ud800", "../../etc/passwd", "<script>",
]  # fmt: skip


def mutated_json(text: str, rng: random.Random) -> bytes:
    """A JSON document with one thing in it changed, left out, repeated or nested too deeply."""
    value = json.loads(text)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = (
            list(node) if isinstance(node, dict) else list(range(min(len(node), 4))) if isinstance(node, list) else []
        )
        for key in keys:
            places.append((node, key))
            walk(node[key])

    walk(value)
    node, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind <= 2:
        node[key] = rng.choice(VALUES)
    elif kind == 3:
        del node[key]
    elif kind == 4 and isinstance(node, list):
        node.extend([node[key]] * rng.choice((1, 1000)))
    else:
        found = json.dumps(value)
        at = rng.randrange(len(found))
        junk = rng.choice(["1e400", "NaN", "[" * 50_000, "9" * 6000, '"', "\\u0000", "\xff", "-", "{}"])
        return (found[:at] + junk + found[at + rng.randrange(2) :]).encode("latin-1", "replace")
    return json.dumps(value).encode()


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """A binary file cut off, with flipped bytes, or with something in front or behind."""
    at = rng.randrange(len(data))
    flipped = bytearray(data)
    for _ in range(rng.choice((1, 8, 64))):
        flipped[rng.randrange(min(len(data), rng.choice((8, 600, len(data)))))] ^= 1 << rng.randrange(8)
    return rng.choice([data[:at], bytes(flipped), rng.randbytes(64) + data, data + bytes(64), data[at:]])
