"""What can be told of other devices without one: tables wait pinned on the host, and all is where it is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from heatkv.cache import attention
from heatkv.models.base import upload

ROOT = Path(__file__).resolve().parents[1]


def on_fake_card(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tests" / "fake_card.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_caches_and_calibration_never_mix_devices() -> None:
    done = on_fake_card()
    assert done.returncode == 0 and done.stdout == "all on the card\n", done.stderr[-2000:]


def test_a_table_that_is_left_on_the_host_is_found() -> None:
    """The yardstick itself."""
    done = on_fake_card("--mixed")
    assert done.returncode == 1 and "at least two devices, card:0 and cpu" in done.stderr, done.stderr[-2000:]


@pytest.mark.parametrize("varlen", [False, True])
def test_tables_for_a_card_wait_on_the_host_where_it_can_fetch_them(
    monkeypatch: pytest.MonkeyPatch, varlen: bool
) -> None:
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda x: pinned.append(x) or x)
    monkeypatch.setattr(attention, "capability", lambda device: (9, 0))
    monkeypatch.setattr(attention, "CALL_PAIRS", 0)
    monkeypatch.setattr(attention, "REORDER_PAIRS", 0)
    heads = [np.arange(35), np.arange(40, 44), np.arange(20, 47), np.arange(66, 100)]
    dtype, card = torch.bfloat16 if varlen else torch.float32, torch.device("cuda")
    reading = attention.plan_reading(heads, 100, 8, 16, dtype, card)
    tables = [reading.index_E, reading.ends, reading.order_H, reading.place_H]
    found = [x for x in (*tables, *(call.bias_1H1M for call in reading.calls)) if x is not None]
    assert len(found) == 2 if varlen else len(found) >= 5
    assert all(x.device.type == "cpu" for x in found)
    assert {x.data_ptr() for x in found} <= {x.data_ptr() for x in pinned}
    pinned.clear()
    assert upload(torch.zeros(3), torch.device("cpu")).device.type == "cpu" and pinned == []
