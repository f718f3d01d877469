"""Several visitors at once: the short form of ``python tests/hostile/load.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio")
pytest.importorskip("httpx")
if not Path("/proc/self/statm").exists():
    pytest.skip("reads the server's memory from /proc", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent / "hostile"))

from load import GROWTH, Load
from served import served


def test_visitors_are_served_side_by_side_and_leave_nothing_behind() -> None:
    with served(120) as (url, process):
        report = Load(url, process).run(clients=8, seconds=15)
    assert report["wrong"] == report["refused"] == 0, report
    assert all(kind["asked"] for kind in report["kinds"].values()), report
    assert report["growth_after_start"] <= GROWTH, report
