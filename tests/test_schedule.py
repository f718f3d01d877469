"""A schedule says what the cache holds and when, and a schedule that exists can be executed."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Problem, geometries, problems

from heatkv.budget import MIXED, check_budget, least_budget
from heatkv.formats import FORMATS
from heatkv.policies import plan
from heatkv.scales import Geometry, ScaleSchedule
from heatkv.schedule import Schedule, ScheduleError

GEOMETRY = Geometry(2, 2, 8, ScaleSchedule(((1, 1), (1, 2), (2, 3), (4, 4))))
K = 4
INFINITY_SCALES = ScaleSchedule.square([1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64])


def example(**changes: Any) -> Schedule:
    """Scale 2 (6 tokens) is never stored in one head; in another, scale 1 (2 tokens) is gone before scale 3."""
    drop_at_LHS = np.full((2, 2, K), K)
    drop_at_LHS[0, 1, 2] = 3
    drop_at_LHS[1, 0, 1] = 3
    fields: dict[str, Any] = {
        "model": "toy",
        "geometry": GEOMETRY,
        "sink_scales": 1,
        "policy": "by hand",
        "budget": 0.8,
        "drop_at_LHS": drop_at_LHS,
        "provenance": {"note": "an example"},
    }
    return Schedule(**{**fields, **changes})


def edited(**changes: Any) -> str:
    """The example's JSON with fields replaced, or removed where the change is ``...``."""
    value = {**json.loads(example().to_json()), **changes}
    return json.dumps({k: v for k, v in value.items() if v is not ...})


def with_cell(value: Any, layer: int = 0, head: int = 1, source: int = 2) -> str:
    table = json.loads(example().to_json())["drop_at"]
    table[layer][head][source] = value
    return edited(drop_at=table)


# What it says


def test_keep_marks_what_attention_reads_its_own_scale_included() -> None:
    schedule = example()
    assert schedule.keep(0).sum((0, 1)).tolist() == [4, 0, 0, 0]
    assert schedule.keep(2).sum((0, 1)).tolist() == [4, 4, 4, 0]
    assert schedule.keep(3).sum((0, 1)).tolist() == [4, 3, 3, 4]
    assert not schedule.keep(3)[1, 0, 1] and not schedule.keep(3)[0, 1, 2]


@pytest.mark.parametrize("target", [-1, 4])
def test_keep_knows_no_scale_outside_the_model(target: int) -> None:
    with pytest.raises(IndexError, match="scales count from 0 to 3"):
        example().keep(target)


def test_removed_counts_the_heads_that_do_without_a_scale() -> None:
    assert example().removed_TS.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]]


def test_resident_tokens_follow_the_cache_layer_by_layer() -> None:
    # 2 heads of 1, 2 and 6 tokens a layer; layer 0 never stores one head's 6, layer 1 lets 2 go when it stores scale 2.
    assert example().resident_tokens_TL.tolist() == [[2, 4], [8, 12], [18, 28], [28, 28]]


def test_the_peak_is_the_most_that_is_ever_resident() -> None:
    assert example().peak_tokens == 28


@given(geometry=geometries)
def test_the_full_schedule_keeps_everything(geometry: Geometry) -> None:
    schedule = Schedule.full(geometry, "toy")
    assert (schedule.policy, schedule.budget) == ("full", 1.0)
    assert schedule.peak_tokens == geometry.full_peak_tokens
    assert schedule.keep(len(geometry.scales) - 1).all()
    assert Schedule.from_json(schedule.to_json()) == schedule


def test_the_full_schedule_of_one_scale_caches_nothing() -> None:
    assert Schedule.full(Geometry(2, 2, 8, ScaleSchedule.square([4])), "toy").resident_tokens_TL.tolist() == [[0, 0]]


# What it promises


def test_the_table_is_a_private_read_only_copy() -> None:
    mine = np.full((2, 2, K), K)
    schedule = example(drop_at_LHS=mine, budget=1.0)
    mine[:] = 0
    assert (schedule.drop_at_LHS == K).all()
    with pytest.raises(ValueError, match="read-only"):
        schedule.drop_at_LHS[0, 0, 0] = 1


def test_provenance_is_what_a_file_would_give_back() -> None:
    assert example(provenance={"seeds": (1, 2)}).provenance == {"seeds": [1, 2]}


@pytest.mark.parametrize("provenance", [{"x": float("nan")}, {"x": np.zeros(2)}, ["x"], {("a", "b"): 1}])
def test_provenance_that_no_file_can_hold_is_refused(provenance: Any) -> None:
    with pytest.raises(ScheduleError, match="provenance must"):
        example(provenance=provenance)


def test_a_table_over_budget_is_refused_with_the_budget_it_needs() -> None:
    with pytest.raises(ScheduleError, match=r"caches 28 tokens at its peak, more than the 27 .* budget of 0\.777778"):
        example(budget=0.75)


@pytest.mark.parametrize("table", [np.full((2, 2, 3), 3), np.full((2, 2, K), 4.0), [[1, 2], [3]], "table", None])
def test_a_table_of_another_shape_or_kind_is_refused(table: Any) -> None:
    with pytest.raises(ScheduleError, match="drop_at"):
        example(drop_at_LHS=table)


def test_schedules_with_the_same_content_are_equal() -> None:
    assert example() == example()
    assert example() != example(budget=0.9)
    assert example() != "schedule"


def test_a_schedule_fits_the_geometry_it_was_planned_for() -> None:
    example().check_matches(GEOMETRY)


@pytest.mark.parametrize(
    "other",
    [
        Geometry(3, 2, 8, GEOMETRY.scales),
        Geometry(2, 3, 8, GEOMETRY.scales),
        Geometry(2, 2, 16, GEOMETRY.scales),
        Geometry(2, 2, 8, ScaleSchedule.square([1, 2, 3, 4])),
    ],
)
def test_a_schedule_fits_no_other_geometry_and_says_both(other: Geometry) -> None:
    with pytest.raises(ScheduleError, match=r"2 layers x 2 heads of size 8, scales 1 1x2 2x3 4\).*with . layers x"):
        example().check_matches(other)


# Budgets


def test_the_least_budget_is_the_share_of_the_sinks() -> None:
    assert least_budget(INFINITY_SCALES, 3) == 21 / 6425
    assert least_budget(INFINITY_SCALES, 0) == 0
    assert least_budget(INFINITY_SCALES, 12) == 1


def test_an_infeasible_budget_is_named_with_the_remedy() -> None:
    message = (
        "budget 0.002 is below the least feasible 0.003268482490 for infinity-2b with 3 sink scales; "
        "raise it or lower sink_scales"
    )
    with pytest.raises(ScheduleError) as caught:
        check_budget(0.002, INFINITY_SCALES, 3, model="infinity-2b")
    assert str(caught.value) == message


def test_the_least_budget_as_printed_is_feasible() -> None:
    check_budget(0.003268482490, INFINITY_SCALES, 3)


# Files


@given(problem=problems())
def test_a_file_gives_back_the_schedule(tmp_path_factory: pytest.TempPathFactory, problem: Problem) -> None:
    path = tmp_path_factory.mktemp("schedules") / "schedule.json"
    schedule = plan(
        problem.orders_SN, problem.budget, "heatkv", problem.sink_scales, model="toy", geometry=problem.geometry
    )
    schedule.save(path)
    assert Schedule.load(path) == schedule


def test_the_file_is_the_documented_format() -> None:
    value = json.loads(example().to_json())
    assert {k: v for k, v in value.items() if k != "drop_at"} == {
        "format": "heatkv-schedule",
        "version": 1,
        "model": "toy",
        "scales": [[1, 1], [1, 2], [2, 3], [4, 4]],
        "layers": 2,
        "heads": 2,
        "head_dim": 8,
        "sink_scales": 1,
        "policy": "by hand",
        "budget": 0.8,
        "provenance": {"note": "an example"},
        "storage": "compute",
    }
    assert value["drop_at"] == [[[4, 4, 4, 4], [4, 4, 3, 4]], [[4, 3, 4, 4], [4, 4, 4, 4]]]


def test_storage_may_be_left_out_and_is_kept() -> None:
    assert Schedule.from_json(edited(storage=...)) == example()
    compact = Schedule.from_json(edited(storage="int8", budget=0.5))
    assert compact.storage == "int8" and compact != example()
    assert compact.peak_share == pytest.approx(example().peak_share * (8 + 2) / 16)
    assert Schedule.from_json(compact.to_json()) == compact


def test_only_formats_that_cells_have_must_fit_the_heads() -> None:
    geometry = Geometry(2, 2, 6, GEOMETRY.scales)  # int2 needs a head_dim that 4 divides
    in_8_bits = np.full((2, 2, K), list(FORMATS).index("int8"), np.int8)
    schedule = example(geometry=geometry, storage=MIXED, stored_as_LHS=in_8_bits, budget=1.0)
    assert 0 < schedule.peak_share < 1
    with pytest.raises(ScheduleError, match="storage int2 needs a head_dim that 4 divides"):
        replace(schedule, stored_as_LHS=np.full((2, 2, K), list(FORMATS).index("int2"), np.int8))


def test_a_file_without_head_dim_fits_heads_of_any_size() -> None:
    schedule = Schedule.from_json(edited(head_dim=...))
    assert schedule.geometry.head_dim == 0
    schedule.check_matches(GEOMETRY)


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "schedule.json"
    example().save(path)

    def full_disk(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        example(budget=0.9).save(path)
    assert Schedule.load(path) == example()
    assert os.listdir(tmp_path) == ["schedule.json"]


def test_a_file_that_is_absent_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.json", "nul\0"):
        with pytest.raises(ScheduleError, match="cannot read"):
            Schedule.load(path)


def test_a_problem_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(ScheduleError, match=r"mine\.json.*format is None"):
        Schedule.load(tmp_path / "mine.json")


def test_a_file_beyond_the_size_limit_is_refused_unread(tmp_path: Path) -> None:
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate(5 << 20)
    with pytest.raises(ScheduleError, match="larger than 4 MB"):
        Schedule.load(tmp_path / "huge.json")
    with pytest.raises(ScheduleError, match="longer than 4 MB"):
        Schedule.from_json(" " * (5 << 20))


HOSTILE = {
    "empty": ("", "not valid JSON"),
    "no JSON": ("drop everything", "not valid JSON"),
    "cut short": (example().to_json()[:-20], "not valid JSON"),
    "not UTF-8": (b'{"model": "\xff"}', "not valid JSON"),
    "a list": ("[]", "holds one JSON object"),
    "nested deeply": ("[" * 100_000, "nested too deeply"),
    "nested objects": ('{"a":' * 50_000 + "1" + "}" * 50_000, "nested too deeply"),
    "nested provenance": (edited(provenance={"a": json.loads("[" * 40 + "]" * 40)}), "nested more than 16 levels"),
    "a number of 5000 digits": ('{"layers": ' + "9" * 5000 + "}", "not valid JSON"),
    "NaN": (edited(budget=float("nan")), "NaN is not a number"),
    "Infinity": (edited(budget=float("inf")), "Infinity is not a number"),
    "an overflowing number": (edited().replace("0.8", "1e999"), "budget is inf"),
    "unknown storage": (
        edited(storage="int3"),
        "storage is 'int3': it must be one of compute, int8, int4",
    ),
    "mixed storage of an unknown format": (
        edited(storage="mixed", formats=["int99"], stored_as=[[[0] * 4] * 2] * 2),
        "storage is 'int99': it must be one of",
    ),
    "storage of no kind": (edited(storage=[8]), "storage is .8.: it must be one of"),
    "8 bits of heads of unknown size": (edited(storage="int8", head_dim=...), "states its head_dim"),
    "8 bits of heads of odd size": (edited(storage="int8", head_dim=7), "needs a head_dim that 2 divides, not 7"),
    "another format": (edited(format="heatkv-scores"), "format is 'heatkv-scores'"),
    "no format": (edited(format=...), "format is None"),
    "a later version": (edited(version=2), "version 2 is not supported"),
    "version true": (edited(version=True), "version True is not supported"),
    "version 1.0": (edited(version=1.0), "version 1.0 is not supported"),
    "no model": (edited(model=...), "'model' is missing"),
    "a model of two lines": (edited(model="toy\nerror: all is lost"), "model is 'toy.*one line"),
    "an endless model": (edited(model="x" * 201), "one line of 1 to 200"),
    "a policy that is no text": (edited(policy=3), "policy is 3"),
    "no policy name": (edited(policy=""), "policy is ''"),
    "layers true": (edited(layers=True), "layers is True"),
    "layers as text": (edited(layers="2"), "layers is '2'"),
    "no layers": (edited(layers=0), "layers is 0"),
    "billions of layers": (edited(layers=10**12), "layers is 1000000000000"),
    "another number of layers": (edited(layers=3), "holds 2 layers, but layers is 3"),
    "another number of heads": (edited(heads=3), "must be a list of 3 heads"),
    "heads 2.0": (edited(heads=2.0), "heads is 2.0"),
    "head_dim true": (edited(head_dim=True), "head_dim is True"),
    "no scales": (edited(scales=[]), "lists 0 scales"),
    "too many scales": (edited(scales=[[1, 1]] * 2000), "lists 2000 scales"),
    "another number of scales": (edited(scales=[[1, 1]] * 5), "must be a list of 5 scales"),
    "scales that are no list": (edited(scales={"0": [1, 1]}), "scales is .* must be a list"),
    "a scale without width": (edited(scales=[[1], [1, 2], [2, 3], [4, 4]]), r"scales\[0\] is \[1\]"),
    "a scale of size zero": (edited(scales=[[1, 1], [0, 2], [2, 3], [4, 4]]), r"scales\[1\] is \[0, 2\]"),
    "a scale of size true": (edited(scales=[[1, True], [1, 2], [2, 3], [4, 4]]), r"scales\[0\] is \[1, True\]"),
    "a scale beyond any model": (edited(scales=[[1, 1], [1, 2], [2, 3], [10**30, 1]]), r"scales\[3\]"),
    "budget zero": (edited(budget=0), "budget 0.0 is not a share"),
    "a negative budget": (edited(budget=-0.5), "budget -0.5 is not a share"),
    "a budget above one": (edited(budget=1.5), "budget 1.5 is not a share"),
    "budget true": (edited(budget=True), "budget is True"),
    "budget as text": (edited(budget="0.8"), "budget is '0.8'"),
    "a budget below the sinks": (edited(budget=0.01), "below the least feasible 0.1111"),
    "a budget that the table exceeds": (edited(budget=0.5), "28 tokens at its peak, more than the 18"),
    "negative sinks": (edited(sink_scales=-1), "sink_scales is -1"),
    "as many sinks as scales": (edited(sink_scales=4, budget=1.0), "from 0 to 3"),
    "a sink that is dropped": (edited(sink_scales=2), r"drop_at\[1\]\[0\]\[1\] is 3, but scale 1 is one of 2 sink"),
    "provenance that is no object": (edited(provenance=[1]), "provenance is"),
    "no provenance": (edited(provenance=...), "'provenance' is missing"),
    "no table": (edited(drop_at=...), "'drop_at' is missing"),
    "a table that is no list": (edited(drop_at="4"), "drop_at is '4'"),
    "a ragged table": (edited(drop_at=[[[4] * 4, [4] * 3], [[4] * 4] * 2]), r"drop_at\[0\]\[1\] is .* 4 scales"),
    "a flat table": (edited(drop_at=[4, 4]), r"drop_at\[0\] is 4"),
    "a cell of no number": (with_cell(None), r"drop_at\[0\]\[1\]\[2\] is None"),
    "a cell of true": (with_cell(True), r"drop_at\[0\]\[1\]\[2\] is True"),
    "a cell of 3.0": (with_cell(3.0), r"is 3\.0: it must be a whole number"),
    "a cell dropped before it exists": (with_cell(2), r"is 2: it must be a whole number from 3 \(never stored\)"),
    "a cell dropped after the end": (with_cell(5), r"is 5: .* to 4 \(never dropped\)"),
    "a cell beyond any integer": (with_cell(10**400), r"drop_at\[0\]\[1\]\[2\] is 1000"),
    "a last scale that is dropped": (with_cell(3, source=3), r"drop_at\[0\]\[1\]\[3\] is 3"),
}


@pytest.mark.parametrize(("text", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_with_a_reason(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "hostile.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ScheduleError, match=message) as caught:
        Schedule.load(path)
    assert len(str(caught.value)) < 800
    assert str(caught.value).isprintable()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(data=st.data())
def test_whatever_a_field_holds_loading_succeeds_or_says_why(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(json.loads(example().to_json()))))
    text = edited(**{key: data.draw(json_values)})
    try:
        Schedule.from_json(text)
    except ScheduleError as refusal:
        assert str(refusal).isprintable()


@given(data=st.data())
def test_whatever_bytes_are_damaged_loading_succeeds_or_says_why(data: st.DataObject) -> None:
    good = bytearray(example().to_json().encode())
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        Schedule.from_json(bytes(good))
    except ScheduleError as refusal:
        assert str(refusal).isprintable()


@given(text=st.binary(max_size=200) | st.text(max_size=200))
def test_any_other_content_is_refused(text: str | bytes) -> None:
    with pytest.raises(ScheduleError):
        Schedule.from_json(text)
