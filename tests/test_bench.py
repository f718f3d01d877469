"""The benchmark: a row for everything asked, memory that agrees with the schedule, models without weights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from tiny import tiny_lines_model, tiny_model

from heatkv.budget import token_cost
from heatkv.formats import COMPUTE
from heatkv.schedule import Schedule
from heatkv.study.bench import bench, bytes_read, markdown

CPU = torch.device("cpu")


def test_every_batch_and_budget_has_a_row_and_less_cache_means_fewer_operations() -> None:
    model = tiny_model()
    result = json.loads(json.dumps(bench(model, [1.0, 0.5], [1, 2], repeats=1, peak_side=64)))
    assert [(row["batch"], row["budget"]) for row in result["rows"]] == [(1, 1.0), (1, 0.5), (2, 1.0), (2, 0.5)]
    for full, half in (result["rows"][:2], result["rows"][2:]):
        assert full["kv_bytes_allocated"] == full["kv_bytes_theoretical"]
        assert half["kv_bytes_allocated"] == half["kv_bytes_theoretical"] <= full["kv_bytes_theoretical"] / 2
        assert half["operations"] <= full["operations"] and half["bytes_read"] < full["bytes_read"]
        assert full["speed_of_full"] == 1 and half["seconds"] > 0
    assert result["calibration_ratio"] > 0 and markdown(result).count("\n| ") == 5


def test_lines_are_read_in_what_they_are_stored_in() -> None:
    model = tiny_lines_model()
    whole = Schedule.full(model.geometry, "any")
    computed, encoded = (
        bytes_read(model, schedule, rows=1) - bytes_read(model, schedule, rows=0)
        for schedule in (whole, replace(whole, storage="int8"))
    )
    size = model.dtype.itemsize
    assert encoded * COMPUTE.cell_bytes(1, model.geometry.head_dim, size) == computed * token_cost(
        model.geometry, "int8"
    )


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="batches of 1"):
        bench(tiny_model(), [0.5], [0], peak_side=64)
