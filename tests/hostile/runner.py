"""Runs one command line in a process of its own and says what it did wrong."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_SECONDS = 10.0  # of processor time, as the machine may be busy with other things
MAX_WAIT_SECONDS = 90.0  # in all
MAX_BYTES = 1_200_000_000  # on top of this process, of which a command is a fork: 1.5 GB with a fresh torch
MAX_LINE = 1_000


@dataclass(frozen=True)
class Outcome:
    """How a command ended, after so many seconds of processor time. ``code`` is None where it had to be killed.

    ``peak_bytes`` is what it held at most on top of the process that it was forked from.
    """

    code: int | None
    out: str
    err: str
    seconds: float
    peak_bytes: int
    left: list[str]


def run(arguments: Sequence[str], folder: Path) -> Outcome:
    """Run the command line in a fork of this process, which has imported what it needs; it may write in ``folder``."""
    logs = folder.parent / "logs"
    logs.mkdir(exist_ok=True)
    before = set(folder.iterdir())
    started, shared = time.monotonic(), _resident(os.getpid())
    child = os.fork()
    if child == 0:
        _live(arguments, logs)
    peak, status, seconds = 0, None, 0.0
    while status is None:
        found, code, used = os.wait4(child, os.WNOHANG)
        if found:
            status, peak, seconds = code, used.ru_maxrss * 1024 - shared, used.ru_utime + used.ru_stime
        elif time.monotonic() - started > MAX_WAIT_SECONDS or _resident(child) - shared > MAX_BYTES * 1.5:
            peak = _resident(child) - shared
            os.killpg(child, signal.SIGKILL)
            used = os.wait4(child, 0)[2]
            status, seconds = -1, used.ru_utime + used.ru_stime
        else:
            time.sleep(0.01)
    left = sorted(path.name for path in set(folder.iterdir()) - before)
    code = os.waitstatus_to_exitcode(status) if status != -1 else None
    out, err = ((logs / name).read_text(errors="replace") for name in ("out", "err"))
    return Outcome(code, out, err, seconds, peak, left)


def violations(outcome: Outcome) -> list[str]:
    """What is wrong with how a command ended; empty where all is well."""
    found = []
    if outcome.code is None:
        found.append("had to be killed")
    if outcome.seconds > MAX_SECONDS:
        found.append(f"took {outcome.seconds:.1f} s")
    if outcome.peak_bytes > MAX_BYTES:
        found.append(f"took {outcome.peak_bytes / 1e9:.2f} GB")
    if outcome.code not in (0, 2):
        found.append(f"exit code {outcome.code}")
    if "Traceback" in outcome.err or 'File "' in outcome.err or "site-packages" in outcome.err:
        found.append("a traceback")
    if any(name.startswith(".") for name in outcome.left):
        found.append(f"left {outcome.left}")
    if outcome.code == 2:
        lines = outcome.err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        if len(errors) != 1 or lines[-1] != errors[0] or not all(_is_progress(line) for line in lines[:-1]):
            found.append(f"{len(lines)} lines on stderr")
        if any(len(line) > MAX_LINE or not line.isprintable() for line in lines):
            found.append("a line that is too long, or not printable")
        if outcome.left:
            found.append(f"failed, but left {outcome.left}")
    return found


def _is_progress(line: str) -> bool:
    return line.startswith(("calibrated ", "note: ", "batch ", "calibration", "a worker ")) or " of " in line


def _live(arguments: Sequence[str], logs: Path) -> None:
    """The life of the forked process."""
    code = 1
    try:
        os.setsid()
        for number, name, flags in (
            (0, os.devnull, os.O_RDONLY),
            (1, logs / "out", os.O_WRONLY),
            (2, logs / "err", os.O_WRONLY),
        ):
            made = os.open(name, flags | (os.O_CREAT | os.O_TRUNC if number else 0), 0o600)
            os.dup2(made, number)
        sys.stdout = open(1, "w")  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
        from heatkv.cli import main

        code = main(list(arguments))
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def empty(folder: Path) -> None:
    """Remove what a case left."""
    shutil.rmtree(folder)
    folder.mkdir()
