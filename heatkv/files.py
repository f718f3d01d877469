"""Files that people hand us: read within bounds, checked before use, written whole or not at all.

The loaders of schedules, scores and orders share these helpers. Each passes its own exception class, so that whatever
is wrong with a file arrives as one error that names the file's kind, the value and the remedy.
"""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import re
import reprlib
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from heatkv.scales import Geometry, ScaleSchedule

MAX_LAYERS = MAX_HEADS = 10_000
MAX_SCALES = 1_024
MAX_SIDE = 4_096
MAX_NESTING = 16
MAX_NAME = 200
MAX_TOKENS = 1 << 18  # of all scales of an image
MAX_MESSAGE = 900
MAX_SHOWN = 160  # of a value in a message

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 60
_repr.maxlevel = 2


def shown(value: object) -> str:
    """``value`` as a message may show it: short, on one line, without control characters."""
    return one_line(_repr.repr(value), MAX_SHOWN)


def program_root() -> Path:
    """The folder of ``assets/`` and ``app/``: a checkout, or ``heatkv/bundle`` where a wheel was installed."""
    package = Path(__file__).resolve().parent
    bundle = package / "bundle"
    return bundle if bundle.is_dir() else package.parent


def one_line(text: object, most: int = MAX_MESSAGE) -> str:
    """A message for people: on one line, of printable characters that any terminal takes, of bounded length."""
    words = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
    return line if len(line) <= most else f"{line[: most - 2]} …"


def read_bytes(path: str | os.PathLike[str], *, limit: int, error: type[ValueError]) -> bytes:
    """The whole file, or ``error`` if it can not be read or is larger than ``limit`` bytes.

    Reads what a pipe holds, too, but never waits for somebody to open its other end.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            if hasattr(os, "O_NONBLOCK"):
                os.set_blocking(file.fileno(), True)
            data = file.read(limit + 1)
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else problem
        raise error(f"cannot read {shown(os.fspath(path))}: {reason}") from problem
    if len(data) > limit:
        size = f"{limit >> 20} MB" if limit >> 20 else f"{limit >> 10} kB"
        raise error(f"{shown(os.fspath(path))} is larger than {size}: this is not such a file")
    return data


def read_json(path: str | os.PathLike[str], *, limit: int, error: type[ValueError]) -> Any:
    """What a JSON file holds; every problem is ``error`` and names the file."""
    data = read_bytes(path, limit=limit, error=error)
    try:
        return parse_json(data, error=error)
    except error as problem:
        raise error(f"{shown(os.fspath(path))}: {problem}") from problem


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` so that a reader sees the old file or the new one, never a part of it.

    What an earlier write left behind that was killed goes now. Raises ``OSError``.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a folder can not be replaced, a device should not be
        raise OSError(errno.EINVAL, "no ordinary file", str(path))
    sweep(path)
    with temporary_beside(path) as (file, temporary):
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        os.replace(temporary, path)


def check_writable(path: str | os.PathLike[str], room: int = 1 << 20) -> Path:
    """The path, if a file of ``room`` bytes can be written there; nothing is left behind, and nothing replaced.

    Raises ``ValueError``. For long work: fail before it, not after it.
    """
    path = Path(path)
    name = shown(os.fspath(path))
    try:
        if path.is_dir():
            raise ValueError(f"{name} is a folder; give a file name to write to")
        if not path.parent.is_dir():
            raise ValueError(f"there is no folder {shown(os.fspath(path.parent))} to write {shown(path.name)} into")
        if path.exists() and not path.is_file():
            raise ValueError(f"{name} is no ordinary file, and would be replaced by one; give another name")
        with temporary_beside(path) as (file, _):
            file.write(bytes(room))
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        raise ValueError(f"{name} can not be written: {problem.strerror or problem}") from problem
    return path


@contextmanager
def temporary_beside(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A hidden file in the same folder, to be moved to ``path`` or else removed; its name tells whose it is."""
    temporary = path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file, temporary
    finally:
        temporary.unlink(missing_ok=True)


def sweep(path: Path) -> None:
    """Remove temporary files for ``path`` whose process is no more."""
    theirs = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(_machine())}-(\d+)-[0-9a-f]+\.tmp")
    with suppress(OSError):
        for entry in os.scandir(path.parent):
            match = theirs.fullmatch(entry.name)
            if match and not _runs(int(match[1])):
                with suppress(OSError):
                    os.unlink(entry.path)


def _machine() -> str:
    return re.sub(r"[^A-Za-z0-9]", "", platform.node())[:20]


def _runs(process: int) -> bool:
    if os.name == "nt":  # where signal 0 is no question
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's
        return True
    return True


def parse_json(text: str | bytes, *, error: type[ValueError]) -> Any:
    """Strict JSON: no NaN or Infinity, at most ``MAX_NESTING`` levels, every problem as ``error``."""

    def refuse(constant: str) -> None:
        raise error(f"{constant} is not a number that JSON knows")

    try:
        value = json.loads(text, parse_constant=refuse)
    except error:
        raise
    except RecursionError:
        raise error("not usable: nested too deeply") from None
    except ValueError as problem:  # not JSON, not UTF-8, or a number of thousands of digits
        raise error(f"not valid JSON: {problem}") from problem
    if _too_deep(value):
        raise error(f"not usable: nested more than {MAX_NESTING} levels deep")
    return value


def plain_json(value: Mapping[str, Any], *, what: str, error: type[ValueError]) -> dict[str, Any]:
    """A private copy of ``value`` as it will come back from a file, or ``error`` if JSON can not hold it."""
    if not isinstance(value, Mapping):
        raise error(f"{what} must map names to plain values, not be {shown(value)}")
    try:
        text = json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as problem:
        raise error(f"{what} must hold nothing but plain JSON values: {problem}") from problem
    copy: dict[str, Any] = parse_json(text, error=error)
    return copy


def scales_json(scales: ScaleSchedule) -> dict[str, Any]:
    """The fields that `Fields.scales` reads back; files of next-scale models do not say how they draw."""
    drawing = {"drawing": scales.drawing} if scales.by_line else {}
    return {**drawing, "scales": [list(size) for size in scales]}


def geometry_json(geometry: Geometry) -> dict[str, Any]:
    """The fields that `Fields.geometry` reads back."""
    return {
        **scales_json(geometry.scales),
        "layers": geometry.layers,
        "heads": geometry.heads,
        "head_dim": geometry.head_dim,
    }


class Fields:
    """Typed, bounded access to the fields of an untrusted JSON object.

    ``format`` and ``version`` are what the object must state of itself; those inside another (`part`) state neither.
    """

    def __init__(self, value: Any, *, error: type[ValueError], format: str = "", version: int = 0) -> None:
        self.error = error
        if not isinstance(value, dict):
            raise error(f"a {format} file holds one JSON object, not {shown(value)}")
        self.value: dict[str, Any] = value
        if not format:
            return
        if value.get("format") != format:
            raise error(f"format is {shown(value.get('format'))}, not {format!r}: this is another kind of file")
        found = value.get("version")
        if type(found) is not int or found != version:
            raise error(f"{format} version {shown(found)} is not supported; this program reads version {version}")

    def part(self, key: str) -> Fields:
        """Access to an object inside this one."""
        return Fields(self.mapping(key), error=self.error)

    def get(self, key: str) -> Any:
        if key not in self.value:
            raise self.error(f"{key!r} is missing")
        return self.value[key]

    def integer(self, key: str, low: int, high: int) -> int:
        return self._whole(key, self.get(key), low, high)

    def integers(self, key: str, low: int, high: int, most: int) -> tuple[int, ...]:
        """A list of 1 to ``most`` whole numbers."""
        values = self.sequence(key)
        if not 1 <= len(values) <= most:
            raise self.error(f"{key} lists {len(values)} numbers: it must list 1 to {most}")
        return tuple(self._whole(f"{key}[{i}]", value, low, high) for i, value in enumerate(values))

    def _whole(self, name: str, value: Any, low: int, high: int) -> int:
        if type(value) is not int or not low <= value <= high:  # bool is an int to Python, not to us
            raise self.error(f"{name} is {shown(value)}: it must be a whole number from {low} to {high}")
        return value

    def number(self, key: str, low: float = -1e300, high: float = 1e300) -> float:
        value = self.get(key)
        if type(value) not in (int, float) or not low <= value <= high:
            bounds = "" if high == 1e300 else f" from {low:g} to {high:g}"
            raise self.error(f"{key} is {shown(value)}: it must be a finite number{bounds}")
        return float(value)

    def numbers(self, key: str, most: int) -> tuple[float, ...]:
        """A list of at most ``most`` finite numbers."""
        values = self.sequence(key)
        if len(values) > most or not all(is_number(value) and type(value) in (int, float) for value in values):
            raise self.error(f"{key} is {shown(values)}: it must be a list of at most {most} finite numbers")
        return tuple(float(value) for value in values)

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if type(value) is not bool:
            raise self.error(f"{key} is {shown(value)}: it must be true or false")
        return value

    def texts(self, key: str, most: int) -> tuple[str, ...]:
        """A list of at most ``most`` texts."""
        values = self.sequence(key)
        if len(values) > most or not all(isinstance(value, str) for value in values):
            raise self.error(f"{key} is {shown(values)}: it must be a list of at most {most} texts")
        return tuple(values)

    def name(self, key: str) -> str:
        return checked_name(self.get(key), what=key, error=self.error)

    def sequence(self, key: str) -> list[Any]:
        value = self.get(key)
        if not isinstance(value, list):
            raise self.error(f"{key} is {shown(value)}: it must be a list")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.get(key)
        if not isinstance(value, dict):
            raise self.error(f"{key} is {shown(value)}: it must be a JSON object")
        return value

    def size(self, key: str) -> tuple[int, int]:
        """``[height, width]``."""
        value = self.sequence(key)
        if len(value) != 2 or not all(type(side) is int and 1 <= side <= MAX_SIDE for side in value):
            raise self.error(f"{key} is {shown(value)}: it must be [height, width], each 1 to {MAX_SIDE}")
        return value[0], value[1]

    def scales(self) -> ScaleSchedule:
        sizes = self.sequence("scales")
        if not 1 <= len(sizes) <= MAX_SCALES:
            raise self.error(f"scales lists {len(sizes)} scales: it must list 1 to {MAX_SCALES}")
        for k, size in enumerate(sizes):
            good = isinstance(size, list) and len(size) == 2
            if not good or not all(type(side) is int and 1 <= side <= MAX_SIDE for side in size):
                raise self.error(f"scales[{k}] is {shown(size)}: it must be [height, width], each 1 to {MAX_SIDE}")
        drawing = self.value.get("drawing", "scales")  # absent from files of next-scale models
        try:
            scales = ScaleSchedule(tuple((h, w) for h, w in sizes), drawing)
        except (ValueError, TypeError) as problem:
            raise self.error(str(problem)) from None
        if sum(scales.tokens) > MAX_TOKENS:
            raise self.error(f"scales hold {sum(scales.tokens)} tokens: an image has at most {MAX_TOKENS}")
        return scales

    def geometry(self) -> Geometry:
        """Layers, heads and scales; ``head_dim`` may be absent, which reads as 0: not stated."""
        head_dim = self.integer("head_dim", 0, 65_536) if "head_dim" in self.value else 0
        layers = self.integer("layers", 1, MAX_LAYERS)
        return Geometry(layers, self.integer("heads", 1, MAX_HEADS), head_dim, self.scales())


def checked_name(value: Any, *, what: str, error: type[ValueError]) -> str:
    """``value`` if it is a name: one printable line, not empty, not endless."""
    if not isinstance(value, str) or not value.isprintable() or not 1 <= len(value) <= MAX_NAME:
        raise error(f"{what} is {shown(value)}: it must be a name on one line of 1 to {MAX_NAME} characters")
    return value


def describe(geometry: Geometry) -> str:
    """A geometry in words, for messages."""
    size = f" of size {geometry.head_dim}" if geometry.head_dim else ""
    drawn = f"{geometry.scales}" if geometry.scales.by_line else f"scales {geometry.scales}"
    return f"{geometry.layers} layers x {geometry.heads} heads{size}, {drawn}"


def same_geometry(a: Geometry, b: Geometry) -> bool:
    """Equal, where a ``head_dim`` of 0 (not stated) agrees with any."""
    sizes_agree = a.head_dim == b.head_dim or 0 in (a.head_dim, b.head_dim)
    return (a.layers, a.heads, a.scales) == (b.layers, b.heads, b.scales) and sizes_agree


def as_array(value: npt.ArrayLike, *, what: str, error: type[ValueError]) -> npt.NDArray[Any]:
    """``value`` as an array, whatever it holds; ``error`` if it is ragged."""
    try:
        return np.asarray(value)
    except ValueError as problem:
        raise error(f"{what} can not be an array: {problem}") from problem


def is_number(value: object) -> bool:
    """A finite real number; ``True`` is none, numpy's scalars are."""
    try:
        return not isinstance(value, bool) and math.isfinite(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_NESTING + 1):
        containers = [item for item in level if isinstance(item, (dict, list))]
        if not containers:
            return False
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
    return True
