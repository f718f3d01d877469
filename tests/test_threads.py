"""Threads: as many as the container's cores, and no opinion without a quota."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from heatkv.threads import cores_allowed, keep_to_own_cores


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
