"""The app without a browser: what comes in is checked, what goes out is complete, and errors change nothing."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from events import event, visitor
from tiny import tiny_model

import heatkv
from heatkv.generate import generate_events
from heatkv.policies import REGISTRY
from heatkv.scales import ScaleSchedule
from heatkv.schedule import Schedule
from heatkv.scores import HeadScores, orders_to_json
from heatkv.views.explore import TYPES

gr = pytest.importorskip("gradio")

from app import charts, inputs, pictures  # noqa: E402
from app.__main__ import read_comparison, read_prompts, references_of  # noqa: E402
from app.cards import SCALES  # noqa: E402
from app.demo import Exhibit, _Demo, create_demo, create_pages, launch_options  # noqa: E402
from app.inputs import InputError  # noqa: E402
from app.recipes import Calibration, Plan, Recipe  # noqa: E402
from app.report import score, scorecard  # noqa: E402
from app.tabs.about import facts  # noqa: E402
from app.workbench import Workbench  # noqa: E402

REFERENCES = {
    "other_seed": {"psnr": 12.0, "psnr_foreground": 11.0, "ssim": 0.4, "bit_agreement": 0.6},
    "sinks_only": {"psnr": 14.0},
    "dtype_noise": {"psnr": "high"},
    "n": 128,
}


BY_SCALES = ScaleSchedule.square((1, 2, 3))
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


@pytest.mark.parametrize("value", [-1, 2**32, 1.5, "x", "1e3", float("nan"), True, [1], 1e300])
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


# --- plans and the table ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [name for name, policy in REGISTRY.items() if policy.static])
def test_the_table_holds_every_static_policy_and_real_bytes(bench: Workbench, policy: str) -> None:
    table = bench.table(None, policy)
    resident = np.frombuffer(base64.b64decode(table["resident"]), "<u4").reshape(len(table["percents"]), -1)
    full = heatkv.generate(bench.model, "red apple")
    assert table["fullResident"][-1] * table["bytesPerToken"] == full.kv_bytes_full == full.kv_bytes_peak
    if table["storage"] == "compute":  # else bytes, of which it takes fewer
        assert resident[-1].max() == table["fullResident"][-1]
    else:
        assert resident[-1].max() * table["heldBytesPerToken"] < full.kv_bytes_full
    at = table["percents"].index(50)
    less = heatkv.generate(bench.model, "red apple", schedule=heatkv.plan(bench.bundled.scores, 0.5, policy))
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


def test_head_types_are_those_of_the_policies(demo: _Demo) -> None:
    from heatkv.policies.hack import contextual_heads

    scores = demo.bench.bundled.scores
    assert scores is not None

    def types_of(policy: str, prompt: str = "red apple") -> list[Any]:
        return list(
            demo.explore.heads.head_types(
                None, None, event(policy=policy, prompt=prompt, seed=0, percent=50), visitor()
            )
        )

    types = types_of("hack")
    assert types[0]["grids"][0]["heads"] == contextual_heads(scores).tolist() and len(types) == 1
    waiting, *_, found = types_of("headkv")
    assert waiting["grids"] == [] and [np.array(grid["heads"]).shape for grid in found["grids"]] == [(3, 4), (3, 4)]
    assert "red apple" in found["source"] and "local" in found["first"]
    cache = demo.bench.plan_of(Recipe("headkv", 50)).make_cache()
    list(generate_events(demo.bench.model, "red apple", 0, cache))
    assert found["grids"][0]["heads"] == [local[0].tolist() for local in cache.local_LBH]  # type: ignore[attr-defined]
    assert types_of("heatkv") == [None]
    assert "zeppelin" in types_of("headkv", "zeppelin")[-1]["text"].lower()


def test_a_contact_sheet_draws_every_policy_and_the_full_cache(demo: _Demo) -> None:
    steps = list(demo.methods.draw_all("red apple", {"seed": 2, "percent": 50}, None))
    sheet, progress, *_ = steps[-1]
    assert [tile["policy"] for tile in sheet["tiles"]] == ["full", *REGISTRY]
    assert all(tile["image"].startswith("data:image/png;base64,") for tile in sheet["tiles"])
    assert [step[1]["done"] for step in steps if step[1]] == list(range(len(REGISTRY) + 2))
    assert progress["text"] == f"{progress['of']} of {progress['of']} drawn" and "seed 2, 50 %" in sheet["head"]
    by_name = {tile["policy"]: tile for tile in sheet["tiles"]}
    assert "100.0%" in by_name["full"]["words"] and "dB" in by_name["headkv"]["words"]
    assert by_name["headkv"]["provenance"] == "made for another kind of model, adapted"
    for arguments, words in (
        (("", {"seed": 0, "percent": 50}), "empty"),
        (("zeppelin", {"seed": 0, "percent": 50}), "zeppelin"),
        (("red apple", {"seed": 0, "percent": 0}), "budget"),
        (("red apple", "nonsense"), "budget"),
    ):
        (refused,) = demo.methods.draw_all(*arguments, None)
        assert refused[0] == gr.skip() and words in said(refused[2]).lower()


def test_the_button_and_enter_start_one_and_the_same_job(demo: _Demo) -> None:
    (run,) = (found for found in _Demo(demo.bench).build().fns.values() if found.name == "draw_all")
    assert [name for _, name in run.targets] == ["click", "submit"]


def test_a_policy_that_can_not_keep_to_the_budget_is_named_on_the_sheet(
    demo: _Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cache = Plan.make_cache

    def picky(plan: Plan) -> Any:
        if plan.policy == "hack":
            raise ValueError("too little for HACK")
        return make_cache(plan)

    monkeypatch.setattr(Plan, "make_cache", picky)
    tiles = {
        tile["policy"]: tile
        for tile in last(demo.methods.draw_all("red apple", {"seed": 2, "percent": 50}, None))[0]["tiles"]
    }
    assert tiles["hack"]["words"] == "too little for HACK" and not tiles["hack"]["image"]
    assert len(tiles) == 1 + len(REGISTRY)


def test_calibration_counts_prompts_and_ends_with_scores(demo: _Demo) -> None:
    steps = list(demo.calibrate.calibrate("red apple\nblue cat\ngreen tree", 3))
    assert [step[1]["done"] for step in steps if step[1]] == [0, 1, 2, 3]
    found = steps[-1][0]
    assert found.scores.count == 3 and all(step[0] == gr.skip() for step in steps[:-1])
    assert demo.bench.bundled.scores.count == 2, "the bundled calibration is everybody's"
    assert steps[0][2]["text"] == "", "what was said of the one before goes"


def test_calibration_ends_with_its_last_prompt_whoever_draws_by_then(demo: _Demo) -> None:
    """Buttons are free again: an event that was still open would swallow the next press."""
    running = demo.calibrate.calibrate("red apple", 1)
    assert next(step for step in running if isinstance(step[0], Calibration))
    holder = demo.bench.jobs.draw("blue cat", 61, [demo.bench.plan_of(Recipe())])
    next(holder)
    assert next(running, "over") == "over"
    holder.close()


def test_calibration_refuses_what_the_model_can_not_draw_before_it_starts(demo: _Demo) -> None:
    steps = list(demo.calibrate.calibrate("red apple\nzeppelin", 2))
    assert len(steps) == 1 and "zeppelin" in said(steps[0][2]) and steps[0][0] == gr.skip()


# --- files ------------------------------------------------------------------------------------------------------------


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
    schedule, note, _ = demo.explore.files.take_schedule(str(path))
    assert schedule == gr.skip() and "not used" in said(note) and str(tmp_path) not in note["text"]


def test_a_schedule_of_another_model_is_refused(demo: _Demo, tmp_path: Path) -> None:
    other = tiny_model((1, 2, 3, 4, 5))
    heatkv.plan(heatkv.calibrate(other, ["red apple"]), 0.9).save(tmp_path / "s.json")
    assert "does not fit" in said(demo.explore.files.take_schedule(str(tmp_path / "s.json"))[1])


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


def test_file_names_are_harmless() -> None:
    assert pictures.file_name("../../etc/<b>passwd", "a/b") == "etc-b-passwd_a-b"
    assert pictures.file_name("日本", "x") == "image_x"


# --- the report and the page ------------------------------------------------------------------------------------------


def test_references_stand_beside_the_numbers_and_are_left_out_where_absent(bench: Workbench) -> None:
    full = heatkv.generate(bench.model, "red apple")
    less = heatkv.generate(bench.model, "red apple", schedule=heatkv.plan(bench.bundled.scores, 0.4))
    names = [rung["name"] for rung in scorecard(full, less, bench.geometry, REFERENCES)["ladder"]]
    assert set(names) == {"this pair", "another seed, same prompt", "nothing but the sinks kept"}
    alone = scorecard(full, less, bench.geometry, {})
    assert [rung["name"] for rung in alone["ladder"]] == ["this pair"] and alone["references_note"] == ""
    halves = {
        "other_seed": {"psnr": 40.0, "psnr_median": 13.0, "n": 64},
        "sinks_only": {"psnr": 14.0, "psnr_median": "x"},
    }
    ladder = scorecard(full, less, bench.geometry, halves)
    assert {rung["psnr"] for rung in ladder["ladder"] if not rung["this"]} == {13.0, 14.0}
    rounding = {"dtype_noise": {"psnr": 71.6, "psnr_median": 99.0}}
    words = [score(scorecard(full, other, bench.geometry, rounding))["words"] for other in (less, full)]
    assert words == ["not as close as rounding to 16 bits (mostly identical)", "the same picture"], (
        "99 dB stand for that"
    )
    assert ladder["references_note"] == "references: PSNR is the median, the others means, of 64 pairs of images"


def test_curves_hold_every_policy_the_front_and_the_references() -> None:
    found = charts.metrics(COMPARISON, BY_SCALES)
    assert list(found) == ["PSNR", "PSNR of the foreground", "SSIM", "Bits that agree"]
    figure = charts.curves(COMPARISON, found["PSNR"])
    names = [trace.name for trace in figure.data]
    assert names == ["best at its bytes", "HeatKV", "HACK", "<b>gone</b>"]
    assert list(figure.data[0].y) == [24.0, 26.0, 28.0] and list(figure.data[1].y) == [24.0, 28.0]
    assert len({trace.marker.symbol for trace in figure.data[1:]}) == 3, "told apart without colour"
    assert {line.y0 for line in figure.layout.shapes} == {12.0, 14.0}
    assert [len(charts.curves(COMPARISON, m).data) for m in found.values()] == [4, 3, 3, 3]


def test_the_table_of_methods_groups_by_budget_best_first() -> None:
    value = charts.table(COMPARISON, BY_SCALES)
    assert [(g["budget"], [row[0] for row in g["rows"]]) for g in value["groups"]] == [
        ("50 %", ["HeatKV", "HACK", "<b>gone</b>"]), ("30 %", ["HeatKV"]),
    ]  # fmt: skip
    assert value["groups"][0]["rows"][1][1:3] == ["26.00 (27.00 to 29.00)", "-2.00 (-2.50 to -1.50)"]
    assert "64 prompts × 2 seeds" in value["what"] and len(value["policies"]) == len(REGISTRY)
    json.dumps(value)


def test_agreement_on_given_tokens_stands_first_where_it_was_measured() -> None:
    found = read_comparison(Path(__file__).parents[1] / "assets" / "models" / "pocket-lines" / "comparison.json")
    scales = ScaleSchedule.lines(1, 4, 4)
    metrics = charts.metrics(found, scales)
    assert list(metrics)[:3] == ["KL on given tokens", "Same guess on given tokens", "PSNR"]
    assert list(metrics)[-1] == "Tokens that agree"
    value = charts.table(found, scales)
    assert value["columns"][1].startswith("KL") and {len(row) for g in value["groups"] for row in g["rows"]} == {9}
    assert {len(row) for row in value["references"]} == {9} and "1 seeds" not in value["what"]
    for group in value["groups"]:
        divergences = [float(row[1].split()[0]) for row in group["rows"]]
        assert divergences == sorted(divergences) and divergences[0] > 0
    names = {row[0] for group in value["groups"] for row in group["rows"]}
    assert not any(":" in name for name in names) and "HeatKV (no sinks)" in names
    figure = charts.curves(found, metrics["KL on given tokens"])
    assert figure.layout.yaxis.type == "log"
    [sinks] = [note for note in figure.layout.annotations if "sinks" in note.text]
    assert figure.layout.yaxis.range[0] < sinks.y < figure.layout.yaxis.range[1], "words stand beside their line"
    assert sinks.y == pytest.approx(np.log10(found["references"]["sinks_only"]["forced_kl"]))
    assert all(".5f" in one.hovertemplate for one in figure.data[1:])
    assert [row[0] for row in value["references"] if row[1]] == [sinks.text], "only it was handed the same tokens"
    front = [float(y) for y in figure.data[0].y]
    assert front == sorted(front, reverse=True) and front[-1] == min(
        row["forced_kl"] for row in found["rows"] if "forced_kl" in row
    )


@pytest.mark.parametrize("comparison", [{}, {"rows": 3, "references": None}, {"rows": [[]], "references": {"n": 1}}])
def test_without_a_comparison_the_tab_still_draws(bench: Workbench, comparison: Any) -> None:
    assert charts.table(comparison, BY_SCALES)["groups"] == []
    assert create_demo(bench.model, bench.bundled.scores, REFERENCES, comparison=comparison) is not None


def test_the_bundled_comparison_is_shown() -> None:
    found = read_comparison(Path(__file__).parents[1] / "assets" / "models" / "pocket" / "comparison.json")
    assert len(charts.table(found, BY_SCALES)["groups"]) >= 4 and len(charts.curves(found, charts.CLOSE[0]).data) >= 4


def test_missing_or_broken_side_files_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text("[1")
    assert all(references_of(read_comparison(tmp_path / name)) == {} for name in ("comparison.json", "none.json"))
    assert read_prompts(tmp_path / "none.txt") == []


def test_only_the_endpoints_are_public(bench: Workbench) -> None:
    made = create_demo(bench.model, bench.bundled.scores, REFERENCES)
    public = {fn.api_name for fn in made.fns.values() if fn.api_visibility == "public"}
    assert public == {"generate", "calibrate", "plan", "compare", "draw", "knockout"}
    model_jobs = [fn for fn in made.fns.values() if fn.concurrency_id == "model"]
    assert len(model_jobs) > 5
    import inspect

    assert all(inspect.isgeneratorfunction(fn.fn) for fn in model_jobs), "a plain function can not be cancelled"


def test_several_models_have_a_page_each_and_share_one_queue(bench: Workbench) -> None:
    other = tiny_model((1, 2, 3, 4, 5))
    other.id = "other"
    scores = heatkv.calibrate(other, ["red apple"])
    pages = create_pages([Exhibit(bench.model, bench.bundled.scores), Exhibit(other, scores)])  # type: ignore[arg-type]
    assert [page[0] for page in pages.pages] == ["", "other"]
    asks = [block.value for block in pages.blocks.values() if getattr(block, "elem_id", None) == "ask"]
    assert [value["model"] for value in asks] == ["tiny", "other"]
    assert [model["path"] for model in asks[0]["models"]] == ["./", "./other"]
    assert asks[1]["models"][1]["title"] == "other: by scales"
    public = {fn.api_name for fn in pages.fns.values() if fn.api_visibility == "public"}
    assert {"generate", "other-generate", "knockout", "other-knockout"} <= public


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
    assert Schedule.from_json(heatkv.plan(bench.bundled.scores, 0.4).to_json()).provenance["planned_from"] == "scores"


def test_about_tells_how_heads_differ_in_the_words_of_the_head_cards(bench: Workbench) -> None:
    rows = dict(facts(bench)["rows"])
    profiles = bench.profiles(None)
    assert profiles is not None
    kinds, counts = np.unique(profiles.type_LH, return_counts=True)
    for kind, count in zip(kinds, counts, strict=True):
        assert f"{SCALES.names[TYPES[kind]]} {100 * count / profiles.type_LH.size:.0f} %" in rows["What heads do"]
    assert rows["What heads do"].count("%") == len(kinds)
    assert "an even share" in rows["How uneven heads are"]
