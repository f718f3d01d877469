"""The app on published kinds of models, and on published models without weights (the Budgets tab)."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import heatkv
from heatkv.models import load
from heatkv.models.infinity import official
from heatkv.schedule import Schedule
from heatkv.scores import orders_to_json
from heatkv.views import budgets
from tests.models import official_files as tiny

gr = pytest.importorskip("gradio")

from app.__main__ import calibrated, own_scores  # noqa: E402
from app.demo import _Demo  # noqa: E402
from app.prompts import class_choices  # noqa: E402
from app.recipes import Recipe  # noqa: E402
from app.tabs.budgets import BudgetsTab  # noqa: E402
from app.workbench import Workbench  # noqa: E402


def last(steps: Iterator[Any]) -> Any:
    return list(steps)[-1]


def said(value: Any) -> str:
    assert value["kind"] == "error", value
    return value["text"]


# --- a class-conditional model ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> _Demo:
    """A tiny VAR of ImageNet's classes from files in the published layout, without a calibration beside it."""
    folder = tmp_path_factory.mktemp("var")
    tiny.write_var(folder, replace(tiny.VAR, classes=1000))
    model = load(folder)
    assert own_scores(folder) is None
    made = _Demo(Workbench(model, calibrated(model), prompts=["golden retriever", "strawberry", "8"]))
    made.build()
    return made


def test_the_picker_finds_every_class_by_any_name_and_every_choice_is_read_back(demo: _Demo) -> None:
    bench = demo.bench
    assert bench.classes is not None
    choices = class_choices(bench.classes)
    assert len(choices) == 1000
    assert [bench.classes.read(value)[0] for _, value in choices] == list(range(1000))
    assert choices[207] == ("207 golden retriever", "207 golden retriever")
    assert "white shark" in choices[2][0] and choices[2][1] == "2 great white shark"


def test_prompts_become_classes_everywhere(demo: _Demo) -> None:
    bench = demo.bench
    assert bench.examples[0] == "207 golden retriever" and len(bench.examples) == 6
    assert bench.prompts[0] == "207 golden retriever" and bench.prompts[-1] == "8 hen"
    blocks = [block for block in demo.build().blocks.values() if getattr(block, "elem_id", None)]
    pickers = {block.elem_id: block for block in blocks if isinstance(block, gr.Dropdown)}
    assert {"methods-prompt", "calibrate-prompts"} <= set(pickers)
    assert pickers["calibrate-prompts"].multiselect and len(pickers["methods-prompt"].choices) == 1000
    assert len(demo.ask()["examples"]) == 1000


def asked(prompt: Any, seed: int = 0, **more: Any) -> Any:
    data = {"id": 1, "layer": 0, "head": 0, "prompt": prompt, "seed": seed, **more}
    return SimpleNamespace(_data=data, session_hash=f"{prompt}{seed}")


def drawn(demo: _Demo, prompt: Any, seed: int = 0) -> list[Any]:
    wanted = asked(prompt, seed, a={"policy": "full"}, b={"policy": "heatkv", "percent": 60})
    return list(demo.explore.draw(None, None, wanted, wanted))


@pytest.mark.parametrize("prompt", ["207 golden retriever", "golden retriever", "207", 207])
def test_a_class_is_drawn_by_title_name_or_number(demo: _Demo, prompt: Any) -> None:
    value, card = drawn(demo, prompt, 3)[-1]
    assert value["prompt"] == "207 golden retriever" and value["note"] == ""
    assert len(value["b"]["frames"]) == len(demo.bench.geometry.scales)
    assert [rung["name"] for rung in card["ladder"]] == ["this pair"], "references are absent"
    assert any(words == "tokens that agree" for _, words in card["headline"])
    plan = demo.bench.plan_of(Recipe("heatkv", 60))
    assert value["b"]["peak"] == heatkv.generate(demo.bench.model, "207", 3, plan.schedule).kv_bytes_peak


def test_an_ambiguous_name_is_drawn_and_said(demo: _Demo) -> None:
    assert "517 crane" in drawn(demo, "crane")[-1][0]["note"]


@pytest.mark.parametrize(
    ("prompt", "words"), [("", "no class is chosen"), (None, "no class is chosen"), ("1000", "0 to 999"),
                          ("goldn retriever", "did you mean"), (["1"], "empty"), ("<b>", "none of them")],
)  # fmt: skip
def test_what_is_no_class_is_said(demo: _Demo, prompt: Any, words: str) -> None:
    steps = drawn(demo, prompt)
    assert len(steps) == 1 and words in steps[0][0]["error"].lower() and steps[0][1] == gr.skip()
    assert demo.explore.heads.show(None, asked(prompt), asked(prompt)) == gr.skip()


def test_heads_are_probed_and_classes_calibrated(demo: _Demo) -> None:
    card = last(demo.explore.heads.draw_card(None, asked("macaw"), asked("macaw")))
    assert card["view"] and "88 macaw" in card["about"]
    known = list(demo.explore.heads.draw_card(None, asked("88"), asked("88")))
    assert known == [card], "the same class is not drawn again: its card is at hand"
    found = last(demo.calibrate.calibrate(["macaw", "volcano", "7"], 1))[0]
    assert found.scores.prompts == ("88 macaw", "980 volcano", "7 cock")
    assert "3 classes" in demo.calibrate.in_use(found)["text"]
    for wrong in ([], "macaw", ["macaw"] * 65, ["nonsense"]):
        steps = list(demo.calibrate.calibrate(wrong, 1))
        assert len(steps) == 1 and said(steps[0][2])


# --- an Infinity model ------------------------------------------------------------------------------------------------


def test_an_infinity_model_from_published_files_runs_in_the_app(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(official, "T5Encoder", tiny.StandInText)
    tiny.write_infinity(tmp_path, "sharded bin")
    model = load(tmp_path)
    made = _Demo(Workbench(model, calibrated(model)))
    assert made.bench.classes is None and made.bench.prompts == ("a cat",)
    value = drawn(made, "a red fox", 1)[-1][0]
    assert value["b"]["peak"] <= 0.6 * value["a"]["peak"]
    assert last(made.explore.heads.draw_card(None, asked("a red fox", 1), asked("a red fox", 1)))["view"]
    assert last(made.calibrate.calibrate("a cat\na dog", 2))[0].scores.count == 2


# --- without weights --------------------------------------------------------------------------------------------------

SKIPPED = gr.skip()


@pytest.fixture(scope="module")
def tab() -> BudgetsTab:
    return BudgetsTab()


def orders_file(folder: Path, name: str) -> tuple[Path, np.ndarray]:
    preset = budgets.choose_preset(name)
    rows = len(preset.scales) - 1 - preset.scales.default_sinks
    orders = np.stack([np.random.default_rng(i).permutation(preset.geometry.head_count) for i in range(rows)])
    path = folder / f"{name}.json"
    path.write_text(orders_to_json(orders, preset.geometry))
    return path, orders


def test_without_a_file_the_tab_says_which_file_it_needs(tab: BudgetsTab) -> None:
    size, ratio, policy, slider, table, note, remove = tab.show("var-d16", "", "", 1, "bfloat16", "heatkv", 10, None)
    assert "heatkv" not in dict(policy["choices"]).values() and policy["value"] in ("streaming", "random")
    assert "256 [head, layer] pairs" in note["text"] and "calibrate --model var-d16" in note["text"]
    assert table["kind"] == "none" and not size["interactive"] and not ratio["interactive"]
    assert not remove["interactive"] and 10 >= slider["minimum"] == table["percents"][0]
    assert "value" not in slider, "said once more it would undo where somebody has moved it meanwhile"
    again = tab.show("var-d16", "", "", 1, "bfloat16", policy["value"], 0.5, None)
    assert "value" not in again[2] and again[3]["value"] >= again[3]["minimum"]
    json.dumps(table)


def test_orders_are_used_saved_and_removed(tab: BudgetsTab, tmp_path: Path) -> None:
    path, orders = orders_file(tmp_path, "infinity-125m")
    ranking, *shown = tab.take_file(str(path), "infinity-125m", "0.06M", "1.0", 8, "bfloat16", 30)
    table, note = shown[4], shown[5]
    assert shown[2]["value"] == "heatkv" and table["kind"] == "rank" and "infinity-125m.json" in note["text"]
    saved, _ = tab.schedule_file("infinity-125m", "0.06M", "1.0", "heatkv", 30, ranking)
    schedule = Schedule.from_json(base64.b64decode(saved["data"]).decode())
    preset = budgets.choose_preset("infinity-125m")
    assert schedule == heatkv.plan(orders, 0.3, model="infinity-125m", geometry=preset.geometry)
    assert saved["name"].endswith(".json")

    elsewhere = tab.choose("var-d16", 8, "bfloat16", "heatkv", 30, ranking)
    assert "rests" in elsewhere[5]["text"] and elsewhere[4]["kind"] == "none" and elsewhere[6]["interactive"]
    back = tab.choose("infinity-125m", 8, "bfloat16", "heatkv", 30, ranking)
    assert back[4] == table


def test_a_made_up_ranking_shows_heatkv_without_a_file_and_says_what_it_is(tab: BudgetsTab) -> None:
    ranking = tab.made_up("infinity-125m", "0.06M", "1.0")
    shown = tab.show("infinity-125m", "0.06M", "1.0", 1, "bfloat16", None, 30, ranking)
    assert shown[2]["value"] == "heatkv" and shown[4]["kind"] == "rank" and shown[6]["interactive"]
    assert "made-up" in shown[5]["text"] and "of no model" in shown[5]["text"]
    elsewhere = tab.choose("llamagen-b-256", 1, "bfloat16", "heatkv", 30, ranking)
    assert elsewhere[4]["kind"] == "rank" and elsewhere[4]["word"] == "line" and "line" in elsewhere[2]["info"]
    assert tab.choose("llamagen-b-256", 1, "bfloat16", "heatkv", 30, ranking)[4] == elsewhere[4], "planned once"
    assert "lines 1 to" in elsewhere[5]["text"]
    assert "good for nothing" in said(tab.schedule_file("infinity-125m", "0.06M", "1.0", "heatkv", 30, ranking)[1])
    assert tab.schedule_file("infinity-125m", "0.06M", "1.0", "streaming", 30, ranking)[0]["data"]
    again = budgets.made_up_ranking(budgets.choose_preset("infinity-125m", "0.06M", "1.0"))
    assert (again.source == ranking.source).all()


def test_batch_and_dtype_change_bytes_alone(tab: BudgetsTab) -> None:
    one = tab.show("var-d16", "", "", 1, "bfloat16", "streaming", 30, None)[4]
    eight = tab.show("var-d16", "", "", 8, "float32", "streaming", 30, None)[4]
    assert eight["bytesPerToken"] == 16 * one["bytesPerToken"]
    assert eight["paperBytesPerToken"] == 8 * one["paperBytesPerToken"]
    assert eight["kept"] == one["kept"]


@pytest.mark.parametrize(
    "content", [b"", b"not json", b"{}", b"[[[0,0]]]", b"\xff\xfe", b"[" * 100_000, b'"<img src=x onerror=alert(1)>"']
)
def test_files_that_are_no_ranking_change_nothing(tab: BudgetsTab, tmp_path: Path, content: bytes) -> None:
    for name in ("orders.json", "scores.safetensors"):
        path = tmp_path / name
        path.write_bytes(content)
        ranking, *shown = tab.take_file(str(path), "var-d16", "", "", 1, "bfloat16", 30)
        assert ranking == SKIPPED and "not used" in said(shown[5]) and str(tmp_path) not in shown[5]["text"]
        assert [value for i, value in enumerate(shown) if i != 5] == [SKIPPED] * 6
    assert tab.take_file(None, "var-d16", "", "", 1, "bfloat16", 30) == (SKIPPED,) * 8


def test_orders_of_another_model_are_refused(tab: BudgetsTab, tmp_path: Path) -> None:
    path, _ = orders_file(tmp_path, "infinity-125m")
    ranking, *shown = tab.take_file(str(path), "infinity-2b", "1M", "1.0", 1, "bfloat16", 30)
    assert ranking == SKIPPED and "sink" in said(shown[5])


@pytest.mark.parametrize(
    ("model", "batch", "dtype", "words"),
    [("pocket", 1, "bfloat16", "no published model"), (None, 1, "bfloat16", "no published model"),
     ("var-d16", 0, "bfloat16", "images"), ("var-d16", None, "bfloat16", "images"),
     ("var-d16", 10**9, "bfloat16", "images"),
     ("var-d16", 1, "int3", "dtype")],
)  # fmt: skip
def test_nonsense_in_the_controls_is_said(tab: BudgetsTab, model: Any, batch: Any, dtype: Any, words: str) -> None:
    shown = tab.show(model, "", "", batch, dtype, "streaming", 30, None)
    assert words in said(shown[5]) and [value for i, value in enumerate(shown) if i != 5] == [SKIPPED] * 6
    for percent in (0, None, float("nan"), "x"):
        assert "budget" in said(tab.schedule_file("var-d16", "", "", "streaming", percent, None)[1]).lower()
    assert "policy" in said(tab.schedule_file("var-d16", "", "", "heatkv", 30, None)[1])
