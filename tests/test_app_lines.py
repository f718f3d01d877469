"""The page of a model that draws line by line: it opens, and speaks of lines, distances and the condition."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from events import event, visitor
from tiny import tiny_lines_model, tiny_model

import heatkv
from heatkv.formats import FORMATS
from heatkv.policies import REGISTRY
from heatkv.views.lines import distance_profiles, wide_types

pytest.importorskip("gradio")

from app.demo import Exhibit, _Demo, create_pages
from app.tabs.about import facts
from app.workbench import Workbench


@pytest.fixture(scope="module")
def bench() -> Workbench:
    model = tiny_lines_model()
    return Workbench(model, heatkv.calibrate(model, ["red apple", "blue cat"]), None, ["red apple"])


def everything_said(value: Any) -> str:
    """All texts of a value of the page, keys left out."""
    if isinstance(value, dict):
        return " ".join(map(everything_said, value.values()))
    if isinstance(value, (list, tuple)):
        return " ".join(map(everything_said, value))
    return value if isinstance(value, str) and len(value) < 2000 else ""


def test_the_page_opens_with_two_pictures_that_grow_by_lines(demo: _Demo) -> None:
    value, card = demo.explore.opening
    assert len(value["a"]["frames"]) == len(value["b"]["frames"]) == 6 and value["score"]["text"]
    assert card["bits_title"] == "Tokens that agree, by line" and len(card["bits"]) == 6 and card["unit"] == "tokens"
    assert 0 <= card["bit_agreement"] <= 1


def test_every_policy_draws_and_is_described_in_lines(demo: _Demo, bench: Workbench) -> None:
    said = everything_said([demo.dial(None, "heatkv"), demo.lessons, demo.explore.opening[1], facts(bench)])
    assert "line" in said and "by scales" not in said.replace("draws by scales", "")
    assert {group["name"]: [p["name"] for p in group["policies"]] for group in demo.dial(None, "heatkv")["groups"]}[
        "HeatKV"
    ] == ["heatkv"], "HeadKV is at home here, and still a peer"
    for text in (p["summary"] for group in demo.dial(None, "heatkv")["groups"] for p in group["policies"]):
        assert "scale" not in text.lower()
    steps = list(demo.methods.draw_all("red apple", {"seed": 2, "percent": 60}, None))
    tiles = {tile["policy"]: tile for tile in steps[-1][0]["tiles"]}
    assert set(tiles) == {"full", *REGISTRY} and all(tile["image"] for tile in tiles.values())
    assert tiles["headkv"]["provenance"] == "as in the paper"


@pytest.mark.parametrize("storage", ["int8", "int4", "int2"])
def test_lines_are_stored_in_every_format(demo: _Demo, storage: str) -> None:
    assert list(demo.dial(None, "heatkv")["storages"]) == list(FORMATS)
    table, dial = demo.refresh(None, None, {"policy": "heatkv", "storage": storage})
    assert table["storage"] == dial["storage"] == storage
    asked = event(id=1, prompt="red apple", seed=0, a={"policy": "full"}, b={"policy": "heatkv", "percent": 60})
    asked._data["b"]["storage"] = storage
    steps = list(demo.explore.draw(None, None, asked, visitor()))
    assert steps and not any("error" in step[0] for step in steps if isinstance(step[0], dict))


def test_the_table_has_distances_and_wide_types(bench: Workbench) -> None:
    table = bench.table(None, "heatkv")
    assert table["word"] == "line" and table["names"][:2] == ["condition", "line 1"]
    assert table["typeNames"] == ["local", "far", "condition", "spread"]
    types = np.frombuffer(base64.b64decode(table["types"]), "u1").reshape(3, 4)
    assert (types == wide_types(bench.profiles(None))).all()  # type: ignore[arg-type]
    expected = distance_profiles(bench.bundled.scores)  # type: ignore[arg-type]
    shares = np.frombuffer(base64.b64decode(table["distance"]["shares"]), "<u2").reshape(3, 4, 7) / 65535
    assert table["distance"]["names"][0] == "same line" and np.abs(shares - expected.share_LHD).max() < 1e-4
    assert all("distance" not in bench.table(None, policy) or policy for policy in ("h2o", "heatkv+"))
    scales = tiny_model()
    assert "distance" not in Workbench(scales, heatkv.calibrate(scales, ["red apple"])).table(None, "heatkv")
    json.dumps(table)


def test_a_head_card_shows_what_any_line_has_read(demo: _Demo, bench: Workbench) -> None:
    asked = {"layer": 1, "head": 2, "prompt": "red apple", "seed": 1}
    card = list(demo.explore.heads.draw_card(None, event(**asked), visitor()))[-1]
    assert card["drawing"] == "lines" and card["targets"] == [1, 2, 3, 4, 5, 6] and card["target"] == 4
    assert (card["view"]["line"], card["view"]["queries"], card["view"]["size"]) == (3, 6, [6, 6])
    assert demo.explore.heads.show(None, event(**asked, target=6), visitor())["view"]["queries"] == 5, (
        "the last token reads nothing"
    )
    early = demo.explore.heads.show(None, event(**asked, target=2), visitor())
    assert (early["view"]["line"], early["view"]["queries"]) == (1, 6)
    levels = np.frombuffer(base64.b64decode(early["view"]["picture"]), "<u2").reshape(7, 6, 6)
    assert (levels[0, :2] != 65535).all() and (levels[0, 2:] == 65535).all() and levels[1, 1, 1] == 65535
    assert demo.explore.heads.show(None, event(**asked, target=0), visitor())["target"] == 4, (
        "the condition is not drawn"
    )
    assert [part["name"] for part in card["evidence"]][1:] == [
        "the line above", "lines further up", "the condition: the prompt",
    ]  # fmt: skip
    assert "scale" not in everything_said({key: card[key] for key in ("title", "text", "source", "evidence")})
    json.dumps(card)


def test_headkvs_types_of_this_image_stand_beside_those_of_the_calibration(demo: _Demo, bench: Workbench) -> None:
    asked = event(policy="headkv", prompt="red apple", seed=0, percent=60)
    found = list(demo.explore.heads.head_types(None, None, asked, visitor()))[-1]
    assert [grid["name"] for grid in found["grids"]] == ["In this image, by HeadKV", "On average, by calibration"]
    assert found["grids"][1]["heads"] == (wide_types(bench.profiles(None)) == 0).tolist()  # type: ignore[arg-type]
    assert "tokens a head were cached" in found["source"] and "Both agree on" in found["source"]
    untyped = event(policy="headkv", prompt="red apple", seed=0, percent=100)
    assert "lower the budget" in list(demo.explore.heads.head_types(None, None, untyped, visitor()))[-1]["text"]


def test_both_ways_of_drawing_share_one_app(bench: Workbench) -> None:
    model = tiny_model()
    scores = heatkv.calibrate(model, ["red apple"])
    pages = create_pages([Exhibit(model, scores), Exhibit(bench.model, bench.bundled.scores)])  # type: ignore[arg-type]
    names = {name for fn in pages.fns.values() if (name := fn.api_name)}
    assert {"generate", "compare", "tiny-lines-generate", "tiny-lines-compare"} <= names
