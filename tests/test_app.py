"""The app without a browser: what comes in is checked, what goes out is complete, and errors change nothing."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_model

import heatkv
from heatkv.generate import generate_events
from heatkv.policies import REGISTRY
from heatkv.schedule import Schedule
from heatkv.scores import HeadScores, orders_to_json
from heatkv.views.explore import TYPES

gr = pytest.importorskip("gradio")

from app import charts, inputs, pictures  # noqa: E402
from app.__main__ import read_comparison, read_prompts, read_references  # noqa: E402
from app.cards import NAMES  # noqa: E402
from app.demo import _Demo, create_demo, launch_options  # noqa: E402
from app.inputs import InputError, read_link  # noqa: E402
from app.report import scorecard  # noqa: E402
from app.tabs.about import facts  # noqa: E402
from app.tour import STEPS  # noqa: E402
from app.workbench import Calibration, Workbench  # noqa: E402

REFERENCES = {
    "other_seed": {"psnr": 12.0, "psnr_foreground": 11.0, "ssim": 0.4, "bit_agreement": 0.6},
    "sinks_only": {"psnr": 14.0},
    "dtype_noise": {"psnr": "high"},
    "n": 128,
}


NUMBERS = {"psnr_foreground": 25.0, "ssim": 0.9, "bit_agreement": 0.95, "ci95": {"psnr": [27.0, 29.0]}}
COMPARISON = {
    "model": "tiny", "prompts": 64, "seeds": 2, "kv_bytes_full": 4000, "references": REFERENCES,
    "rows": [
        {"policy": "heatkv", "budget": 0.5, "psnr": 28.0, "kv_bytes_peak": 2000, **NUMBERS},
        {"policy": "heatkv", "budget": 0.3, "psnr": 24.0, "kv_bytes_peak": 1200, **NUMBERS},
        {"policy": "hack", "budget": 0.5, "psnr": 26.0, "kv_bytes_peak": 1900, **NUMBERS,
         "difference": {"to": "heatkv", "psnr": -2.0, "ci95": [-2.5, -1.5]}},
        {"policy": "hack", "budget": 0.3, "reason": "too small"},
        {"policy": "<b>gone</b>", "budget": 0.5, "psnr": 25.0, "kv_bytes_peak": 1950},
        {"policy": "heatkv", "budget": "half", "psnr": "high", "kv_bytes_peak": None},
        "nonsense",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def bench() -> Workbench:
    model = tiny_model()
    return Workbench(model, heatkv.calibrate(model, ["red apple", "blue cat"]), REFERENCES, ["red apple", "green tree"])


@pytest.fixture(scope="module")
def demo(bench: Workbench) -> _Demo:
    made = _Demo(bench, COMPARISON)
    made.build()
    return made


def last(steps: Iterator[Any]) -> Any:
    return list(steps)[-1]


def said(value: Any) -> str:
    """What a notice says; it must be an error."""
    assert value["kind"] == "error", value
    return value["text"]


def event(data: Any) -> Any:
    return SimpleNamespace(_data=data)


# --- what comes in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [None, "", "abc", float("nan"), float("inf"), True, 1, 101, -5, 1e300, [], {"a": 1}, "9" * 99]
)
def test_budgets_that_are_none_are_refused_with_the_range(value: Any) -> None:
    with pytest.raises(InputError, match="choose 10 % to 100 %"):
        inputs.read_percent(value, range(10, 101))


def test_a_budget_between_two_plans_is_the_one_that_the_page_draws() -> None:
    assert [inputs.read_percent(value, range(10, 101)) for value in (10, 35.0, "35.9", 99.99, 100)] == [
        10,
        35,
        35,
        99,
        100,
    ]


@pytest.mark.parametrize("value", [-1, 2**32, 1.5, "x", float("nan"), True, [1], 1e300])
def test_seeds_that_are_none_are_refused(value: Any) -> None:
    with pytest.raises(InputError, match="whole number from 0"):
        inputs.read_seed(value)


def test_an_empty_seed_field_means_any_seed() -> None:
    assert 0 <= inputs.read_seed(None) < 2**32 and inputs.read_seed(7.0) == 7


@pytest.mark.parametrize(
    ("value", "words"),
    [("", "empty"), (None, "empty"), ("  \n ", "empty"), (3, "empty"), ("x" * 10_000, "10000 characters")],
)
def test_prompts_that_are_none_are_refused(value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        inputs.read_prompt(value)


def test_prompts_are_read_a_line_each_and_counted() -> None:
    assert inputs.read_prompts("red apple\n\n  blue   cat \ntree\n", 2) == ["red apple", "blue cat"]
    for text, count in (("", 3), ("a", 0), ("a", 65), ("a", None), ("a\n" * 20_000, 3)):
        with pytest.raises(InputError):
            inputs.read_prompts(text, count)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        [],
        {"layer": 0},
        {"layer": 3, "head": 0},
        {"layer": -1, "head": 0},
        {"layer": "a", "head": 0},
        {"layer": 0.5, "head": 0},
    ],
)
def test_heads_that_there_are_not_are_refused(bench: Workbench, value: Any) -> None:
    with pytest.raises(InputError):
        inputs.read_head(value, bench.geometry)


def test_addresses_are_read_leniently(bench: Workbench) -> None:
    def read(**query: Any) -> inputs.Link:
        return read_link(query, bench.geometry, bench.percents, "heatkv", len(STEPS))

    good = read(budget="40", policy="reverse", prompt="red apple", seed="3", tab="compare", head="2.3", tour="1")
    assert good == inputs.Link(40, "reverse", "red apple", 3, "compare", (1, 2), 0)
    bad = dict(budget="nan", policy="<b>", prompt="x" * 5000, seed="-3", tab="admin", head="9.9.9", tour="99")
    assert read(**bad) == inputs.Link()
    assert read(head="99.1", budget=["40"], tour="x", seed=None) == inputs.Link()


def test_a_policy_without_sinks_goes_below_the_others(demo: _Demo, bench: Workbench) -> None:
    least = bench.percents("heatkv")[0]
    assert bench.percents("heatkv+")[0] == bench.percents()[0] == 1 < least
    low = {"budget": "2", "policy": "heatkv+"}
    link = read_link(low, bench.geometry, bench.percents, "heatkv", len(STEPS))
    assert (link.percent, link.policy) == (2, "heatkv+")
    assert read_link({"budget": "2"}, bench.geometry, bench.percents, "heatkv", len(STEPS)).percent is None
    opened = demo.open_address(SimpleNamespace(query_params=low))
    assert opened[0]["minimum"] == 1 and opened[0]["value"] == 2 and opened[1] == "heatkv+"
    table, _, slider, *_ = demo.refresh(None, "heatkv+", None, 2)
    assert table["percents"][0] == slider["minimum"] == 1 and "value" not in slider
    table, _, slider, *_ = demo.refresh(None, "heatkv", None, 2)
    assert table["percents"][0] == slider["minimum"] == slider["value"] == least


def test_an_address_sets_the_controls_and_a_tour_step_wins(demo: _Demo) -> None:
    plain = demo.open_address(SimpleNamespace(query_params={"budget": "50", "seed": "4", "head": "1.1"}))
    assert plain[0] == 50 and plain[3] == 4 and plain[5] == (0, 0)
    toured = demo.open_address(SimpleNamespace(query_params={"tour": "5"}))
    assert toured[1] == STEPS[4].policy and toured[-1]["at"] == 4


# --- plans and the table ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [name for name, policy in REGISTRY.items() if policy.static])
def test_the_table_holds_every_static_policy_and_real_bytes(bench: Workbench, policy: str) -> None:
    table = bench.table(None, policy)
    resident = np.frombuffer(base64.b64decode(table["resident"]), "<u4").reshape(len(table["percents"]), -1)
    full = heatkv.generate(bench.model, "red apple")
    assert table["fullResident"][-1] * table["bytesPerToken"] == full.kv_bytes_full == full.kv_bytes_peak
    assert resident[-1].max() == table["fullResident"][-1]
    at = table["percents"].index(50)
    less = heatkv.generate(bench.model, "red apple", schedule=bench.plan(None, 0.5, policy))
    assert resident[at].max() * table["heldBytesPerToken"] == less.kv_bytes_theoretical


@pytest.mark.parametrize("policy", [name for name, policy in REGISTRY.items() if not policy.static])
def test_the_table_of_a_dynamic_policy_says_so_and_bounds_its_bytes(bench: Workbench, policy: str) -> None:
    table = bench.table(None, policy)
    resident = np.frombuffer(base64.b64decode(table["resident"]), "<u4").reshape(len(table["percents"]), -1)
    assert not table["static"] and set(base64.b64decode(table["kept"])) <= {255, 15, 127, 63, 31, 7, 3, 1}
    at = table["percents"].index(50)
    less = heatkv.generate(bench.model, "red apple", policy=policy, budget=0.5, scores=bench.bundled.scores)
    assert less.kv_bytes_peak <= resident[at].max() * table["bytesPerToken"] <= 0.5 * less.kv_bytes_full


def test_orders_alone_plan_the_same_cells_but_know_no_types(bench: Workbench) -> None:
    assert bench.bundled.scores is not None
    orders = Calibration("orders", bench.bundled.scores.orders(bench.sink_scales))
    table, same = bench.table(orders, "heatkv"), bench.table(None, "heatkv")
    assert table["kept"] == same["kept"] and table["kind"] == "rank" and same["kind"] == "share"
    assert bench.profiles(orders) is None


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_compare_streams_pairs_and_ends_with_images_metrics_and_costs(demo: _Demo) -> None:
    steps = list(demo.compare.compare("red apple", 3, 40, "heatkv", None, None))
    frames = [len(step[0]["frames"]) for step in steps if step[0]]
    assert frames == [1, 2, 3, 4, 5, 6]
    wipe, card, _, (run, schedule), *_ = steps[-1]
    assert all(url.startswith("data:image/png;base64,") for url in wipe["frames"][-1].values())
    assert run.seed == 3 and schedule.budget == 0.4 and "seed 3" in card["run"]
    assert len(card["bits"]) == 6 and {"this pair", "another seed, same prompt"} <= {
        rung["name"] for rung in card["ladder"]
    }
    assert [row[0].split(",")[0] for row in card["cost"]] == ["KV cache", "KV cache", "Seconds"]
    json.dumps(card), json.dumps(wipe)


def test_a_policy_that_decides_while_it_draws_is_compared_but_has_no_schedule(demo: _Demo) -> None:
    _, card, _, (run, choice), *_ = last(demo.compare.compare("red apple", 3, 50, "headkv", None, None))
    assert run.policy == "headkv" and choice.schedule is None and "headkv at 50 %" in card["run"]
    assert 0 < run.kv_bytes_peak <= 0.5 * run.kv_bytes_full
    saved, note = demo.compare.schedule_file(50, "headkv", None, None)
    assert saved == gr.skip() and "no schedule" in said(note)
    assert demo.compare.image_file((run, choice))["name"] == "red-apple_seed3_headkv_50.png"


def test_head_types_are_those_of_the_policies(demo: _Demo) -> None:
    from heatkv.policies.hack import contextual_heads

    scores = demo.bench.bundled.scores
    assert scores is not None
    types = list(demo.heads.head_types("hack", "red apple", 0, 50, None, None))
    assert types[0]["heads"] == contextual_heads(scores).tolist() and len(types) == 1
    waiting, *_, found = demo.heads.head_types("headkv", "red apple", 0, 50, None, None)
    assert waiting["heads"] == [] and np.array(found["heads"]).shape == (3, 4)
    assert "red apple" in found["source"] and "local" in found["first"]
    cache = demo.bench.choose(None, 0.5, "headkv").make_cache()
    list(generate_events(demo.bench.model, "red apple", 0, cache))
    assert found["heads"] == [local[0].tolist() for local in cache.local_LBH]  # type: ignore[attr-defined]
    assert list(demo.heads.head_types("heatkv", "red apple", 0, 50, None, None)) == [None]
    assert "zeppelin" in last(demo.heads.head_types("headkv", "zeppelin", 0, 50, None, None))["text"].lower()


def test_a_contact_sheet_draws_every_policy_and_the_full_cache(demo: _Demo) -> None:
    steps = list(demo.methods.draw_all("red apple", 2, 50, None))
    sheet, progress, *_ = steps[-1]
    assert [tile["policy"] for tile in sheet["tiles"]] == ["full", *REGISTRY]
    assert all(tile["image"].startswith("data:image/png;base64,") for tile in sheet["tiles"])
    assert [step[1]["done"] for step in steps if step[1]] == list(range(len(REGISTRY) + 2))
    assert progress["text"] == f"{progress['of']} of {progress['of']} drawn" and "seed 2, 50 %" in sheet["head"]
    by_name = {tile["policy"]: tile for tile in sheet["tiles"]}
    assert "100.0%" in by_name["full"]["words"] and "dB" in by_name["headkv"]["words"]
    assert by_name["headkv"]["provenance"] == "adapted from next-token models"
    for arguments, words in (
        (("", 0, 50), "empty"),
        (("zeppelin", 0, 50), "zeppelin"),
        (("red apple", 0, 0), "budget"),
    ):
        (refused,) = demo.methods.draw_all(*arguments, None)
        assert refused[0] == gr.skip() and words in said(refused[2]).lower()


def test_a_policy_that_can_not_keep_to_the_budget_is_named_on_the_sheet(
    demo: _Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = demo.bench.choose

    def picky(calibration: Any, budget: float, policy: str) -> Any:
        if policy == "hack":
            raise ValueError("too little for HACK")
        return choose(calibration, budget, policy)

    monkeypatch.setattr(demo.bench, "choose", picky)
    tiles = {tile["policy"]: tile for tile in last(demo.methods.draw_all("red apple", 2, 50, None))[0]["tiles"]}
    assert tiles["hack"]["words"] == "too little for HACK" and not tiles["hack"]["image"]
    assert len(tiles) == 1 + len(REGISTRY)


def test_at_full_budget_the_two_images_are_identical(demo: _Demo) -> None:
    card = last(demo.compare.compare("red apple", 0, 100, "heatkv", None, None))[1]
    assert card["headline"][0][0] == "identical" and card["bits"] == [1.0] * 6


def test_the_seed_that_was_used_is_shown_where_none_was_given(demo: _Demo) -> None:
    _, card, _, (run, _), *_ = last(demo.compare.compare("red apple", None, 40, "heatkv", None, None))
    assert f"seed {run.seed}" in card["run"]


def test_words_that_the_model_does_not_know_are_named(demo: _Demo) -> None:
    assert "zeppelin" in last(demo.compare.compare("red zeppelin", 0, 40, "heatkv", None, None))[2]["text"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("", 0, 40, "heatkv"), "empty"),
        (("x" * 10_000, 0, 40, "heatkv"), "10000 characters"),
        (("zeppelin", 0, 40, "heatkv"), "zeppelin"),
        (("red apple", -1, 40, "heatkv"), "seed"),
        (("red apple", 0, float("nan"), "heatkv"), "budget"),
        (("red apple", 0, 1, "heatkv"), "budget"),
        (("red apple", 0, 40, "<img src=x>"), "policy"),
    ],
)
def test_what_can_not_be_compared_is_said_and_leaves_the_page_alone(demo: _Demo, arguments: Any, words: str) -> None:
    steps = list(demo.compare.compare(*arguments, None, None))
    assert len(steps) == 1
    wipe, card, note, result, *_ = steps[0]
    assert words in said(note).lower()
    assert wipe == card == result == gr.skip()


def test_a_stopped_job_lets_go_of_the_model(demo: _Demo) -> None:
    job = demo.compare.compare("red apple", 0, 40, "heatkv", None, None)
    next(job), next(job)
    waiting = threading.Thread(target=lambda: list(demo.compare.compare("red apple", 0, 40, "heatkv", None, None)))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive(), "two jobs ran beside each other"
    job.close()
    waiting.join(30)
    assert not waiting.is_alive()


def test_calibration_counts_prompts_and_ends_with_scores(demo: _Demo) -> None:
    steps = list(demo.calibrate.calibrate("red apple\nblue cat\ngreen tree", 3))
    assert [step[1]["done"] for step in steps if step[1]] == [0, 1, 2, 3]
    found = steps[-1][0]
    assert found.scores.count == 3 and all(step[0] == gr.skip() for step in steps[:-1])
    assert demo.bench.bundled.scores.count == 2, "the bundled calibration is everybody's"


def test_calibration_refuses_what_the_model_can_not_draw_before_it_starts(demo: _Demo) -> None:
    steps = list(demo.calibrate.calibrate("red apple\nzeppelin", 2))
    assert len(steps) == 1 and "zeppelin" in said(steps[0][2]) and steps[0][0] == gr.skip()


def test_a_head_card_says_what_kind_of_head_it_is_and_shows_its_maps(demo: _Demo) -> None:
    heads = demo.heads
    at_once, place = heads.show((1, 2), "red apple", 0, None, None)
    assert at_once["title"].startswith("Layer 2, head 3: ") and at_once["message"] and place == {"layer": 1, "head": 2}
    card, probe = last(heads.draw_card((1, 2), "red apple", 0, None, None))
    assert card["view"]["queries"] == [6, 6] and len(card["evidence"]) == 4 and not card["message"]
    assert sum(part["share"] for part in card["evidence"]) == pytest.approx(1)
    assert len(probe.attention) == 12, "all heads of one run are kept, so that the next one is there at once"
    assert heads.show((0, 0), "red apple", 0, None, probe)[0]["view"]
    assert last(heads.draw_card((0, 0), "red apple", 0, None, probe)) == (gr.skip(), gr.skip())
    assert "view" not in heads.show((0, 0), "blue cat", 0, None, probe)[0]
    failed, kept = last(heads.draw_card((0, 0), "zeppelin", 0, None, probe))
    assert failed["failed"] and "zeppelin" in failed["message"] and kept == gr.skip()


def test_a_large_model_is_probed_one_head_at_a_time(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.workbench.PROBE_NUMBERS", 10)
    assert bench.probed_heads((1, 1)) == [(1, 1)]


def test_events_from_a_page_are_not_trusted(demo: _Demo) -> None:
    for data in (None, {"layer": 10**9, "head": 0}, {"layer": "<b>", "head": 1}, "text"):
        assert demo.heads.open("red apple", 0, None, None, event(data)) == (gr.skip(),) * 3
        assert demo.tour.step(event(data)) == (gr.skip(),) * 4
    assert demo.tour.step(event({"index": 0}))[0] == 100


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_schedule_file_goes_out_and_comes_in(demo: _Demo, tmp_path: Path) -> None:
    saved, _ = demo.compare.schedule_file(40, "reverse", None, None)
    path = tmp_path / saved["name"]
    path.write_bytes(base64.b64decode(saved["data"]))
    schedule, note = demo.compare.take_schedule(str(path))
    assert schedule == demo.bench.plan(None, 0.4, "reverse") and "reverse" in note["text"]
    table, radio, slider, row, words = demo.refresh(None, "heatkv", schedule, 35)
    assert table["fixed"] and table["percents"] == [40.0]
    assert not radio["interactive"] and not slider["interactive"] and row["visible"] and words["text"]
    run = last(demo.compare.compare("red apple", 0, 90, "heatkv", None, schedule))[3][0]
    assert (run.policy, run.budget) == ("reverse", 0.4)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"not json", b"[]", b"{}", b'{"format": "heatkv-schedule", "version": 99}', b"\xff\xfe\x00",
        b'{"format": "<img src=x onerror=alert(1)>"}', b"[" * 100_000, b'{"format": "heatkv-schedule", "version": 1}',
    ],
)  # fmt: skip
def test_hostile_schedules_are_refused_with_a_message(demo: _Demo, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "schedule.json"
    path.write_bytes(content)
    schedule, note = demo.compare.take_schedule(str(path))
    assert schedule == gr.skip() and "not used" in said(note) and str(tmp_path) not in note["text"]


def test_a_schedule_of_another_model_is_refused(demo: _Demo, tmp_path: Path) -> None:
    other = tiny_model((1, 2, 3, 4, 5))
    heatkv.plan(heatkv.calibrate(other, ["red apple"]), 0.9).save(tmp_path / "s.json")
    assert "does not fit" in said(demo.compare.take_schedule(str(tmp_path / "s.json"))[1])


def test_scores_and_orders_go_out_and_come_in(demo: _Demo, tmp_path: Path) -> None:
    for saved, _ in (demo.calibrate.scores_file(None), demo.calibrate.orders_file(None)):
        path = tmp_path / saved["name"]
        path.write_bytes(base64.b64decode(saved["data"]))
        found, note = demo.calibrate.take_file(str(path))
        assert (
            note["kind"] == "info"
            and demo.bench.table(found, "heatkv")["kept"] == demo.bench.table(None, "heatkv")["kept"]
        )
    assert found.scores is None and "no scores" in said(demo.calibrate.scores_file(found)[1])


def test_scores_and_orders_that_do_not_fit_are_refused(demo: _Demo, tmp_path: Path) -> None:
    scores = demo.bench.bundled.scores
    assert scores is not None
    HeadScores("other", scores.geometry, scores.mass_sum_LHTS, (), scores.count).save(tmp_path / "other.safetensors")
    whole = (tmp_path / "other.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.safetensors").write_text("<script>")
    few = orders_to_json(scores.orders(3)[:1], scores.geometry)
    (tmp_path / "few.json").write_text(few)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for name in ("other.safetensors", "cut.safetensors", "text.safetensors", "few.json", "deep.json", "gone.json"):
        found, note = demo.calibrate.take_file(str(tmp_path / name))
        assert found == gr.skip() and "not used" in said(note) and str(tmp_path) not in note["text"], name


def test_the_image_file_says_how_to_draw_it_again(demo: _Demo) -> None:
    result = last(demo.compare.compare("red apple", 5, 40, "heatkv", None, None))[3]
    saved = demo.compare.image_file(result)
    image = Image.open(io.BytesIO(base64.b64decode(saved["data"])))
    assert {key: image.info[key] for key in ("prompt", "seed", "model", "policy", "budget")} == {
        "prompt": "red apple", "seed": "5", "model": "tiny", "policy": "heatkv", "budget": "0.4",
    }  # fmt: skip
    assert (np.asarray(image) == result[0].pixels).all(), "the file is lossless"
    assert saved["name"] == "red-apple_seed5_heatkv_40.png"
    assert demo.compare.image_file(None) == gr.skip()


def test_file_names_are_harmless() -> None:
    assert pictures.file_name("../../etc/<b>passwd", "a/b") == "etc-b-passwd_a-b"
    assert pictures.file_name("日本", "x") == "image_x"


# --- the report and the page ------------------------------------------------------------------------------------------


def test_references_stand_beside_the_numbers_and_are_left_out_where_absent(bench: Workbench) -> None:
    full = heatkv.generate(bench.model, "red apple")
    less = heatkv.generate(bench.model, "red apple", schedule=bench.plan(None, 0.4, "heatkv"))
    names = [rung["name"] for rung in scorecard(full, less, bench.geometry, REFERENCES)["ladder"]]
    assert set(names) == {"this pair", "another seed, same prompt", "only the sink scales kept"}
    alone = scorecard(full, less, bench.geometry, {})
    assert [rung["name"] for rung in alone["ladder"]] == ["this pair"] and alone["references_note"] == ""


def test_curves_hold_every_policy_the_front_and_the_references() -> None:
    figure = charts.curves(COMPARISON, "psnr")
    names = [trace.name for trace in figure.data]
    assert names == ["best at its bytes", "HeatKV", "HACK", "<b>gone</b>"]
    assert list(figure.data[0].y) == [24.0, 26.0, 28.0] and list(figure.data[1].y) == [24.0, 28.0]
    assert len({trace.marker.symbol for trace in figure.data[1:]}) == 3, "told apart without colour"
    assert {line.y0 for line in figure.layout.shapes} == {12.0, 14.0}
    assert [len(charts.curves(COMPARISON, m).data) for m in charts.METRICS.values()] == [4, 3, 3, 3]


def test_the_table_of_methods_groups_by_budget_best_first() -> None:
    value = charts.table(COMPARISON)
    assert [(g["budget"], [row[0] for row in g["rows"]]) for g in value["groups"]] == [
        ("50 %", ["HeatKV", "HACK", "<b>gone</b>"]), ("30 %", ["HeatKV"]),
    ]  # fmt: skip
    assert value["groups"][0]["rows"][1][1:3] == ["26.00 (27.00 to 29.00)", "-2.00 (-2.50 to -1.50)"]
    assert "64 prompts × 2 seeds" in value["what"] and len(value["policies"]) == len(REGISTRY)
    json.dumps(value)


@pytest.mark.parametrize("comparison", [{}, {"rows": 3, "references": None}, {"rows": [[]], "references": {"n": 1}}])
def test_without_a_comparison_the_tab_still_draws(bench: Workbench, comparison: Any) -> None:
    assert charts.table(comparison)["groups"] == []
    assert create_demo(bench.model, bench.bundled.scores, REFERENCES, (), comparison) is not None


def test_the_bundled_comparison_is_shown() -> None:
    found = read_comparison(Path(__file__).parents[1] / "assets" / "models" / "pocket" / "comparison.json")
    assert len(charts.table(found)["groups"]) >= 4 and len(charts.curves(found, "psnr").data) >= 4


def test_missing_or_broken_side_files_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text("[1")
    assert read_references(tmp_path / "comparison.json") == read_references(tmp_path / "none.json") == {}
    assert read_prompts(tmp_path / "none.txt") == []


def test_only_the_three_endpoints_are_public(bench: Workbench) -> None:
    made = create_demo(bench.model, bench.bundled.scores, REFERENCES)
    public = {fn.api_name for fn in made.fns.values() if fn.api_visibility == "public"}
    assert public == {"generate", "calibrate", "plan"}
    model_jobs = [fn for fn in made.fns.values() if fn.concurrency_id == "model"]
    assert len(model_jobs) > 5 and all(fn.concurrency_limit == 1 for fn in model_jobs)
    import inspect

    assert all(inspect.isgeneratorfunction(fn.fn) for fn in model_jobs), "a plain function can not be cancelled"


def test_templates_never_mention_a_value_and_scripts_never_write_markup() -> None:
    for path in (Path(__file__).parents[1] / "app" / "components").iterdir():
        text = path.read_text(encoding="utf-8") if path.suffix in (".html", ".css", ".js") else ""
        if path.suffix in (".html", ".css"):
            assert "${" not in text and "{{" not in text, path.name
        for writer in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert writer not in text, (path.name, writer)


def test_nothing_of_the_look_is_fetched_from_another_host() -> None:
    text = json.dumps({key: value for key, value in launch_options().items() if isinstance(value, str)})
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize(
    "command", [["-m", "app", "--model"], ["app/__main__.py", "--model"], ["-m", "app", "--device"]]
)
def test_an_unknown_model_or_device_ends_with_one_line_however_it_is_started(command: list[str]) -> None:
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, *command, "no-such"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 2 and "no-such" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_schedule_says_what_it_was_planned_from(bench: Workbench) -> None:
    assert Schedule.from_json(bench.plan(None, 0.4, "heatkv").to_json()).provenance["planned_from"] == "scores"


def test_about_tells_how_heads_differ_in_the_words_of_the_head_cards(bench: Workbench) -> None:
    rows = dict(facts(bench)["rows"])
    profiles = bench.profiles(None)
    assert profiles is not None
    kinds, counts = np.unique(profiles.type_LH, return_counts=True)
    for kind, count in zip(kinds, counts, strict=True):
        assert f"{NAMES[TYPES[kind]]} {count / profiles.type_LH.size:.0%}" in rows["What heads do"]
    assert rows["What heads do"].count("%") == len(kinds)
    assert "an even share" in rows["How uneven heads are"]
