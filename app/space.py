"""``python -m app.space``: whether this checkout can be a Hugging Face Space, as far as that can be told from here.

Checks the front matter, the sizes of files, that nothing of the look comes from another host, and that the app starts
from another folder, in which time, and in how much memory.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "license")
MAX_FILE = 10 << 20  # a larger one would have to be in LFS
MAX_START_SECONDS = 120.0
MAX_MEMORY = 1.5 * 2**30
IGNORED = {".git", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", "node_modules", "runs"}
SOURCES = (".js", ".css", ".html")


def front_matter(text: str) -> dict[str, str]:
    """The ``key: value`` lines between the first two lines of dashes; empty where there are none."""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    pairs = (line.split(":", 1) for line in (found.group(1).splitlines() if found else ()) if ":" in line)
    return {key.strip(): value.strip().strip("\"'") for key, value in pairs}


def files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in IGNORED]
        yield from (Path(folder) / name for name in names)


def static_problems(root: Path = ROOT) -> list[str]:
    """What is wrong with the files, in words."""
    readme = root / "README.md"
    facts = front_matter(readme.read_text(encoding="utf-8")) if readme.is_file() else {}
    problems = [f"README.md: the front matter lacks {key}" for key in NEEDED if not facts.get(key)]
    if facts.get("app_file") and not (root / facts["app_file"]).is_file():
        problems.append(f"README.md: app_file {facts['app_file']} is not there")
    if not (root / "requirements.txt").is_file():
        problems.append("requirements.txt is not there")
    for path in files(root):
        if path.stat().st_size > MAX_FILE:
            problems.append(f"{path.relative_to(root)}: {path.stat().st_size / 2**20:.1f} MiB, more than 10: needs LFS")
        if path.suffix in SOURCES and "app" in path.relative_to(root).parts:
            for address in re.findall(
                r"(?:https?:)?//[a-z0-9][a-z0-9.-]+\.[a-z]{2,}[^\s'\"`)]*", path.read_text("utf-8")
            ):
                if "www.w3.org" not in address:
                    problems.append(f"{path.relative_to(root)}: names another host, {address[:80]}")
    return problems


def start(root: Path = ROOT, arguments: Sequence[str] = ()) -> tuple[float, int | None]:
    """Seconds until the page answers, and the memory that the program then holds, started as a Space starts it.

    Raises ``RuntimeError`` where it does not.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = root / front_matter((root / "README.md").read_text(encoding="utf-8")).get("app_file", "app/__main__.py")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="heatkv-") as elsewhere:
        command = [sys.executable, str(script), "--port", str(port), *arguments]
        run = subprocess.Popen(command, cwd=elsewhere, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            while time.monotonic() - begun < 5 * MAX_START_SECONDS:
                if run.poll() is not None:
                    raise RuntimeError(f"it ended: {(run.stderr.read() if run.stderr else '').strip()[-300:]}")
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                        answer.read()
                    return time.monotonic() - begun, memory(run.pid)
                except OSError:
                    time.sleep(0.5)
            raise RuntimeError("it does not answer")
        finally:
            run.terminate()
            run.wait(30)


def memory(pid: int) -> int | None:
    """Resident bytes of a process; None where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found.group(1)) * 1024 if found else None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m app.space", description="Check this checkout as a Space.")
    parser.add_argument("--files", action="store_true", help="look at the files only, do not start the app")
    options = parser.parse_args(arguments)
    problems = static_problems()
    if not options.files:
        try:
            seconds, size = start()
            held = "" if size is None else f", {size / 2**20:.0f} MiB"
            print(f"starts from another folder in {seconds:.1f} s{held}")
            if seconds > MAX_START_SECONDS:
                problems.append(f"takes {seconds:.0f} s to start, more than {MAX_START_SECONDS:.0f}")
            if size is not None and size > MAX_MEMORY:
                problems.append(f"holds {size / 2**30:.2f} GiB after the start, more than 1.5")
        except RuntimeError as error:
            problems.append(f"the app does not start: {error}")
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise SystemExit(1)
    print("ready to be a Space")


if __name__ == "__main__":
    main()
