"""Threads: as many as the container's cores, and no opinion without a quota; memory from one place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from heatkv.threads import cores_allowed, keep_to_own_cores

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def _threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("text", "cores"), [("200000 100000\n", 2), ("150000 100000", 1.5), ("max 100000", None), ("", None)]
)
def test_the_quota_of_a_container_is_read(tmp_path: Path, text: str, cores: float | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cores_allowed(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("300000", 3), ("-1", None)])
def test_so_is_that_of_an_older_one(tmp_path: Path, quota: str, cores: float | None) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores_allowed(tmp_path) == cores


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize(
    ("text", "threads"), [("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 4), ("max 100000", 4)]
)
def test_threads_keep_to_the_quota(tmp_path: Path, text: str, threads: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    keep_to_own_cores(tmp_path)
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("_threads")
def test_who_sets_the_number_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    (tmp_path / "cpu.max").write_text("100000 100000")
    keep_to_own_cores(tmp_path)
    assert torch.get_num_threads() == 4


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="arenas are of the C library of Linux")
def test_threads_take_memory_from_one_place(tmp_path: Path) -> None:
    """Counted by the C library itself, while eight threads hold memory: it would be nine places."""
    code = f"""
import ctypes, threading
from heatkv.threads import share_freed_memory
share_freed_memory()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.fopen.restype = ctypes.c_void_p, ctypes.c_void_p
together = threading.Barrier(9)
def hold():
    together.wait()
    libc.malloc(50_000)  # not through Python's own pools
    together.wait()
threads = [threading.Thread(target=hold) for _ in range(8)]
for thread in threads:
    thread.start()
together.wait(), together.wait()
file = ctypes.c_void_p(libc.fopen({str(tmp_path / "arenas.xml")!r}.encode(), b"w"))
assert libc.malloc_info(0, file) == 0
libc.fclose(file)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "arenas.xml").read_text().count("<heap nr=") == 1
