"""Explore without a browser: pictures, strips, knock-out, head cards, files; what is wrong is said."""

from __future__ import annotations

import base64
import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from events import event, visitor
from PIL import Image
from tiny import tiny_model

import heatkv
from heatkv.models.base import Sampling
from heatkv.schedule import Schedule
from heatkv.study import metrics

gr = pytest.importorskip("gradio")

from app import strips  # noqa: E402
from app.demo import _Demo  # noqa: E402
from app.gallery import Gallery  # noqa: E402
from app.inputs import InputError  # noqa: E402
from app.jobs import DrawStep  # noqa: E402
from app.page import Newest  # noqa: E402
from app.readers import Abandoned  # noqa: E402
from app.recipes import FULL, Calibration, Recipe, basis_of  # noqa: E402
from app.turns import Waiting  # noqa: E402
from app.workbench import Workbench  # noqa: E402

REFERENCES = {"other_seed": {"psnr": 9.0}, "sinks_only": {"psnr": 11.0}, "dtype_noise": {"psnr": 80.0}, "n": 128}
A = {"policy": "full"}
B = {"policy": "heatkv", "percent": 40}


@pytest.fixture(scope="module")
def bench() -> Workbench:
    model = tiny_model()
    return Workbench(model, heatkv.calibrate(model, ["red apple", "blue cat"]), REFERENCES, ["red apple"])


def draw(demo: _Demo, prompt: Any = "red apple", seed: Any = 3, a: Any = A, b: Any = B, **more: Any) -> list[Any]:
    asked = event(id=more.pop("id", 1), prompt=prompt, seed=seed, a=a, b=b, **more)
    return list(demo.explore.draw(None, None, asked, visitor(f"{prompt}{seed}")))


def pixels(url: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))))


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_both_pictures_are_those_of_the_library_with_their_score_and_bytes(demo: _Demo, bench: Workbench) -> None:
    value, card = draw(demo)[-1]
    full = heatkv.generate(bench.model, "red apple", 3)
    less = heatkv.generate(bench.model, "red apple", 3, heatkv.plan(bench.bundled.scores, 0.4))
    assert (pixels(value["a"]["image"]) == full.pixels).all() and (pixels(value["b"]["image"]) == less.pixels).all()
    assert len(value["a"]["frames"]) == len(value["b"]["frames"]) == 6
    assert (value["b"]["peak"], value["a"]["peak"]) == (less.kv_bytes_peak, full.kv_bytes_peak)
    assert (
        value["score"]["psnr"] == pytest.approx(metrics.psnr(full.pixels, less.pixels)) == pytest.approx(card["psnr"])
    )
    assert value["score"]["words"] == "between rounding to 16 bits (80.0) and the sinks alone (11.0)"
    json.dumps([value, card])


def test_a_picture_that_the_page_has_is_not_sent_again_nor_drawn(demo: _Demo) -> None:
    first = draw(demo)[-1][0]
    steps = draw(demo, has=first["a"]["key"])
    assert len(steps) == 1, "both are in the gallery"
    again = steps[0][0]
    assert "image" not in again["a"] and "image" in again["b"] and again["score"] == first["score"]


def test_a_and_b_may_be_any_recipes(demo: _Demo, bench: Workbench) -> None:
    value = draw(demo, a={"policy": "reverse", "percent": 50}, b={"policy": "h2o", "percent": 50})[-1][0]
    assert value["a"]["label"] == "HeatKV upside down, 50 %" and not value["a"]["kept"] and value["b"]["kept"]
    same = draw(demo, a={"policy": "heatkv", "percent": 40}, b=B)[-1][0]
    assert same["score"]["text"] == "identical"


def test_how_tokens_are_drawn_is_a_visitors_choice(demo: _Demo, bench: Workbench) -> None:
    way = {"guidance": 1, "temperature": "0.9"}
    value = draw(demo, sampling=way)[-1][0]
    full = heatkv.generate(bench.model, "red apple", 3, sampling=Sampling(1.0, 0.9))
    assert (pixels(value["a"]["image"]) == full.pixels).all() and value["a"]["peak"] == full.kv_bytes_full
    own = draw(demo)[-1][0]
    assert own["a"]["key"] != value["a"]["key"] and own["a"]["peak"] == 2 * value["a"]["peak"], "a row less"
    assert draw(demo, sampling={"guidance": 2.0})[-1][0]["a"]["key"] == own["a"]["key"], "the model's own by its number"
    for wrong in ({"guidance": 99}, {"top_p": 2}, {"temperature": "x"}, {"top_k": 1.5}):
        assert draw(demo, sampling=wrong)[-1][0]["error"]
    card = list(
        demo.explore.heads.draw_card(None, event(layer=0, head=0, prompt="red apple", seed=3, sampling=way), visitor())
    )[-1]
    assert (pixels(card["image"]) == full.pixels).all(), "what a head reads is of the picture that is shown"
    (*_, last) = demo.explore.knock_out(
        event(id=9, prompt="red apple", seed=3, sampling=way, subject="x"), visitor("k")
    )
    assert last["subject"] == "x" and last["done"] == 12
    file, _ = saved(demo, what="png", b=B, sampling=way)
    image = Image.open(io.BytesIO(base64.b64decode(file["data"])))
    assert (image.info["guidance"], image.info["temperature"]) == ("1", "0.9")
    assert [field["name"] for field in bench.sampling_fields()] == ["guidance", "temperature", "top_p"], (
        "bits have no k"
    )


def test_forgotten_cells_change_picture_and_bytes(demo: _Demo, bench: Workbench) -> None:
    value = draw(demo, b={**B, "forget": "2.3,s2"})[-1][0]
    from heatkv.views.edits import cells_from_text, forget

    schedule = forget(heatkv.plan(bench.bundled.scores, 0.4), cells_from_text("2.3,s2", bench.geometry))
    less = heatkv.generate(bench.model, "red apple", 3, schedule)
    assert (pixels(value["b"]["image"]) == less.pixels).all() and value["b"]["peak"] == less.kv_bytes_peak
    assert value["b"]["label"] == "HeatKV, 40 %, edited"


def test_only_the_newest_request_of_a_visitor_is_finished(demo: _Demo) -> None:
    older = demo.explore.draw(None, None, event(id=5, prompt="blue cat", seed=8, a=A, b=B), visitor())
    next(older)
    newer = demo.explore.draw(None, None, event(id=6, prompt="green tree", seed=8, a=A, b=B), visitor())
    first, second = next(newer)[0], next(newer)[0]
    assert (first["id"], first["waiting"]) == (6, 1)
    assert second["waiting"] == 1 and first != second, "the page does not hear the same message twice"
    assert list(older) == []
    assert list(newer)[-1][0]["id"] == 6
    assert not demo.bench.jobs.turns.busy, "the older one has let go of the model"
    other = demo.explore.draw(None, None, event(id=1, prompt="blue cat", seed=9, a=A, b=B), visitor("two"))
    next(other)
    demo.explore.halt(event(id=7, kind="draw"), visitor())
    assert list(other)[-1][0]["id"] == 1, "another visitor's job goes on"


def test_who_waits_is_told_the_place(demo: _Demo) -> None:
    holder = demo.bench.jobs.draw("blue cat", 20, [demo.bench.plan_of(Recipe())])
    next(holder)
    waiting = demo.explore.draw(None, None, event(id=1, prompt="blue cat", seed=21, a=A, b=B), visitor("w"))
    assert next(waiting)[0]["waiting"] == 1
    holder.close()
    assert list(waiting)[-1][0]["score"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": "zeppelin"}, "zeppelin"),
        ({"prompt": None}, "empty"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"b": {"policy": "heatkv", "percent": 1}}, "budget"),
        ({"b": {"policy": "heatkv", "percent": "nan"}}, "budget"),
        ({"b": {"policy": "<b>", "percent": 40}}, "policy"),
        ({"b": {**B, "forget": "99"}}, "names no cell"),
        ({"b": {**B, "forget": ["1"]}}, "text"),
        ({"b": {"policy": "h2o", "percent": 50, "forget": "1"}}, "chooses tokens"),
        ({"b": {"policy": "h2o", "percent": 50, "storage": "int8"}}, "stay as computed"),
        ({"b": {**A, "storage": "int8"}}, "full cache stays"),
        ({"b": {**B, "storage": "int3"}}, "compute, int8, int4, int2"),
        ({"b": {**B, "storage": {}}}, "storage is"),
        ({"b": {**B, "source": "elsewhere"}}, "calibration"),
        ({"b": {"source": "uploaded"}}, "uploaded schedule"),
        ({"b": "text"}, "policy"),
    ],
)
def test_what_can_not_be_drawn_is_said_in_one_step(demo: _Demo, change: Any, words: str) -> None:
    steps = draw(demo, **change)
    assert len(steps) == 1 and words in steps[0][0]["error"].lower() and steps[0][1] == gr.skip()


def test_cells_can_be_stored_in_fewer_bits(demo: _Demo, bench: Workbench) -> None:
    for storage in ("int8", "int4", "int2"):
        value, _ = draw(demo, a={**B, "storage": "compute"}, b={**B, "storage": storage})[-1]
        schedule = heatkv.plan(bench.bundled.scores, 0.4, storage=storage)
        less = heatkv.generate(bench.model, "red apple", 3, schedule)
        assert (pixels(value["b"]["image"]) == less.pixels).all() and value["b"]["peak"] == less.kv_bytes_peak
        labels = [value[side]["label"] for side in "ab"]
        assert labels == ["HeatKV, 40 %, as computed", f"HeatKV, 40 %, {storage[3:]} bits"]
        table, dial = demo.refresh(None, None, {"policy": "heatkv", "storage": storage})
        assert table["storage"] == table["asked"] == dial["storage"] == storage and not dial["refused"]
        assert table["percents"] == list(bench.percents("heatkv", storage))
        heatkv.plan(bench.bundled.scores, table["percents"][0] / 100, storage=storage)
        with pytest.raises(ValueError, match="least feasible"):
            heatkv.plan(bench.bundled.scores, (table["percents"][0] - 1) / 100, storage=storage)
    assert demo.refresh(None, None, {"policy": "heatkv"})[0]["asked"] == ""


def test_a_storage_that_does_not_fit_is_refused_in_words_and_the_page_goes_on(demo: _Demo) -> None:
    for policy, storage, words in (("h2o", "int8", "H2O chooses tokens"), ("heatkv", "int3", "must be one of")):
        table, dial = demo.refresh(None, None, {"policy": policy, "storage": storage})
        assert words in dial["refused"] and dial["storage"] == table["asked"] == "" and table["policy"] == policy


def test_a_strip_goes_along_the_budgets_and_shipped_ones_come_at_once(demo: _Demo, bench: Workbench) -> None:
    asked = event(id=1, prompt="red apple", seed=1, b=B, key="here")
    steps = list(demo.explore.strip(None, None, asked, visitor("s")))
    percents = strips.strip_percents(bench, Recipe("heatkv"))
    assert [step["pictures"][-1]["percent"] for step in steps] == list(percents)
    assert [len(step["pictures"]) for step in steps[:-1]] == [1] * (len(percents) - 1)
    assert [one["percent"] for one in steps[-1]["pictures"]] == list(percents), "the last has what a busy page missed"
    assert 35 in percents and percents[0] == bench.percents("heatkv")[0] and percents[-1] == 100
    strip = strips.make_strip(bench, "red apple", 1, "heatkv", "weights")
    shipped = _Demo(bench, None, [strips.Strip.from_png(strip.to_png())])
    shipped.build()
    (once,) = shipped.explore.strip(None, None, asked, visitor("s"))
    assert (pixels(once["full"]) == heatkv.generate(bench.model, "red apple", 1).pixels).all()
    other = event(id=2, prompt="red apple", seed=2, b=B, key="there", shipped=True)
    assert list(shipped.explore.strip(None, None, other, visitor("s"))) == [], "that one would have to be drawn"
    stored = event(id=3, prompt="red apple", seed=1, b={**B, "storage": "int8"}, key="there", shipped=True)
    assert list(shipped.explore.strip(None, None, stored, visitor("s"))) == []
    assert once["key"] == "here" and [p["percent"] for p in once["pictures"]] == list(percents)
    assert [p["image"] for p in once["pictures"]] == [step["pictures"][-1]["image"] for step in steps]


def test_a_strip_says_how_many_pictures_it_has_and_goes_on_while_others_ask_for_what_ships(
    demo: _Demo, bench: Workbench
) -> None:
    strip = demo.explore.strip(None, None, event(id=1, prompt="blue cat", seed=41, b=B, key="k"), visitor("of"))
    first = next(strip)
    ready = event(id=2, prompt="green tree", seed=41, b=B, key="l", shipped=True)
    assert list(demo.explore.strip(None, None, ready, visitor("of"))) == []
    rest = list(strip)
    assert (
        {step["of"] for step in [first, *rest]}
        == {1 + len(rest)}
        == {len(strips.strip_percents(bench, Recipe("heatkv")))}
    )
    older = demo.explore.strip(None, None, event(id=3, prompt="blue cat", seed=42, b=B, key="k"), visitor("of"))
    next(older)
    next(demo.explore.strip(None, None, event(id=4, prompt="blue cat", seed=43, b=B, key="l"), visitor("of")))
    assert list(older) == [], "another strip ends it"


def test_strips_of_other_weights_or_no_strips_at_all_are_passed_over(bench: Workbench, tmp_path: Path) -> None:
    strip = strips.make_strip(bench, "red apple", 1, "heatkv", "weights")
    strips.write_strips(tmp_path, [strip])
    (tmp_path / "strips" / "zz.png").write_bytes(b"no picture")
    assert len(strips.read_strips(tmp_path, "weights")) == 1
    assert strips.read_strips(tmp_path, "others") == [] == strips.read_strips(tmp_path / "none", "weights")


def test_the_page_opens_with_pictures(demo: _Demo) -> None:
    value, card = demo.explore.opening
    assert value["opening"]["b"]["policy"] == "heatkv" and value["a"]["image"] and value["b"]["image"] and card


# --- looking into one picture -----------------------------------------------------------------------------------------


def test_the_knock_out_counts_heads_and_can_be_stopped(demo: _Demo) -> None:
    steps = list(demo.explore.knock_out(event(id=1, prompt="red apple", seed=2), visitor()))
    assert [step["done"] for step in steps] == list(range(1, 13)) and steps[-1]["of"] == 12
    assert all(value is not None and value >= 0 for row in steps[-1]["moved"] for value in row)
    job = demo.explore.knock_out(event(id=2, prompt="red apple", seed=2), visitor())
    next(job)
    demo.explore.halt(event(id=3, kind="knock"), visitor())
    assert list(job) == [] and not demo.bench.jobs.turns.busy
    (wrong,) = demo.explore.knock_out(event(id=4, prompt="zeppelin", seed=2), visitor())
    assert "zeppelin" in wrong["error"].lower()


def test_a_head_card_says_what_kind_of_head_it_is_and_shows_any_target(demo: _Demo) -> None:
    asked = {"layer": 1, "head": 2, "prompt": "red apple", "seed": 11}
    at_once = demo.explore.heads.show(None, event(**asked), visitor())
    assert at_once["title"] == "Layer 2, head 3" and at_once["kind"] and at_once["message"] and "view" not in at_once
    assert sum(part["share"] for part in at_once["evidence"]) == pytest.approx(1)
    card = list(demo.explore.heads.draw_card(None, event(**asked), visitor()))[-1]
    assert (
        card["view"]["queries"] == [6, 6]
        and (card["target"], card["targets"]) == (5, [*range(6)])
        and not card["message"]
    )
    early = demo.explore.heads.show(None, event(**{**asked, "head": 0, "target": 2}), visitor())
    assert early["view"]["queries"] == [3, 3] and len(early["view"]["sizes"]) == 3, "all heads of a run are kept"
    assert list(demo.explore.heads.draw_card(None, event(**asked), visitor())) == [card], (
        "drawn for somebody since the card was shown"
    )
    assert list(demo.explore.heads.draw_card(None, event(**{**asked, "prompt": "zeppelin"}), visitor()))[-1]["failed"]


def test_what_heads_read_is_drawn_once_for_all_who_wait_and_no_more_for_who_has_moved_on(
    demo: _Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, probes = demo.bench.jobs, []
    draw_probe = jobs._probe_job
    monkeypatch.setattr(jobs, "_probe_job", lambda *given: probes.append(given) or draw_probe(*given))
    holder = jobs.draw("blue cat", 50, [demo.bench.plan_of(Recipe())])
    next(holder)
    asked = {"layer": 1, "head": 2, "prompt": "red apple", "seed": 51}
    cards = [demo.explore.heads.draw_card(None, event(id=7, **asked), visitor(name)) for name in "xyz"]
    assert all("In the queue" in next(card)["message"] for card in cards)
    demo.explore.heads.show(None, event(id=8, **{**asked, "seed": 52}), visitor("x"))
    holder.close()
    moved_on, *waited = [list(card) for card in cards]
    assert moved_on == [gr.skip()] and len(probes) == 2, "a step for who has moved on, a picture for both others"
    assert waited[0][-1]["view"] and waited[0][-1] == waited[1][-1]
    assert not jobs.turns.busy


def test_types_of_heads_are_those_of_the_policy_asked_for_last(demo: _Demo) -> None:
    asked = {"prompt": "red apple", "seed": 0, "percent": 50}
    older = demo.explore.heads.head_types(None, None, event(id=1, policy="headkv", **asked), visitor("types"))
    assert "Drawing" in next(older)["text"]
    newer = demo.explore.heads.head_types(None, None, event(id=2, policy="heatkv", **asked), visitor("types"))
    assert list(newer) == [None] and list(older) == [gr.skip()]


def test_what_was_asked_before_takes_back_what_it_said(demo: _Demo) -> None:
    """Gradio sends a handler's last message once more when it returns: over the answer to what was asked since."""
    holder = demo.bench.jobs.draw("blue cat", 40, [demo.bench.plan_of(Recipe())])
    next(holder)
    heads = demo.explore.heads
    about = {"prompt": "blue cat", "seed": 41}
    card = heads.draw_card(None, event(id=1, layer=0, head=1, **about), visitor("card"))
    types = heads.head_types(None, None, event(id=1, policy="headkv", percent=50, **about), visitor("card"))
    assert "In the queue" in next(card)["message"] and "Drawing" in next(types)["text"]
    list(heads.head_types(None, None, event(id=2, policy="hack", percent=50, **about), visitor("card")))
    demo.explore.newest.ask("card", "probe", 2)
    assert list(card) == [gr.skip()] and list(types) == [gr.skip()]
    holder.close()


def test_a_pinned_recipe_of_the_bundled_calibration_outlives_one_that_knows_less(bench: Workbench) -> None:
    assert bench.bundled.scores is not None
    orders = Calibration("orders", bench.bundled.scores.orders(bench.sink_scales))
    pinned = {"policy": "heatkv+", "percent": 60, "source": "bundled"}
    assert bench.read_plan(pinned, orders, None).policy == "heatkv+"
    with pytest.raises(InputError, match=r"heatkv\+"):
        bench.read_plan({**pinned, "source": "session"}, orders, None)


def test_a_card_promises_nothing_where_the_page_draws_nothing_unasked(demo: _Demo) -> None:
    promised, said = (demo.explore.heads.opening(unasked)["message"] for unasked in (True, False))  # type: ignore[index]
    assert "A moment" in promised and "moment" not in said and "choose a head" in said


def test_a_large_model_is_probed_one_head_at_a_time(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.jobs.PROBE_NUMBERS", 10)
    assert bench.jobs.probed_heads((1, 1)) == [(1, 1)]


def test_events_from_a_page_are_not_trusted(demo: _Demo) -> None:
    for data in (None, {"layer": 10**9, "head": 0}, {"layer": "<b>", "head": 1}, "text", {"id": "x"}):
        sent = event()
        sent._data = data
        assert demo.explore.heads.show(None, sent, visitor()) == gr.skip()
        assert list(demo.explore.heads.draw_card(None, sent, visitor())) == []
        assert list(demo.explore.strip(None, None, sent, visitor())) == []
        assert "error" in next(iter(demo.explore.draw(None, None, sent, visitor())))[0]
        assert demo.explore.halt(sent, visitor()) is None


def test_visitors_are_forgotten_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.page.MAX_VISITORS", 3)
    newest = Newest()
    for number in range(10):
        newest.ask(f"visitor {number}", "draw", 1)
    assert len(newest._newest) == 3 and newest.is_newest("visitor 0", "draw", 1)


# --- jobs and recipes -------------------------------------------------------------------------------------------------


def test_what_goes_to_a_job_and_comes_back_can_be_sent_to_another_process(bench: Workbench) -> None:
    jobs = bench.jobs
    plans = [bench.plan_of(Recipe()), bench.plan_of(Recipe("h2o", 50)), bench.plan_of(Recipe("heatkv", 40, forget="1"))]
    runs: list[tuple[Any, tuple[Any, ...]]] = [
        (jobs._draw_steps, ("red apple", 0, plans, True)),
        (jobs._probe_steps, (("red apple", 0, Sampling(1.5)), (0, 0))),
        (jobs._calibrate_steps, (["red apple"], 0)),
        (jobs._sheet_steps, ("red apple", 0, bench.bundled, 0.5, [FULL, "heatkv"])),
        (jobs._local_heads_steps, (("red apple", 0, None), 0.5)),
    ]
    for job, arguments in runs:
        for step in job(*pickle.loads(pickle.dumps(arguments))):
            pickle.loads(pickle.dumps(step))


def test_the_gallery_keeps_what_was_used_last_within_its_limit(bench: Workbench) -> None:
    drawings = [
        step.drawings[0]
        for seed in (1, 2, 3)
        for step in bench.jobs.draw("green tree", seed, [bench.plan_of(Recipe())])
        if isinstance(step, DrawStep) and step.drawings
    ]
    gallery = Gallery(2 * drawings[0].size + 100)
    for name, picture in zip("abc", drawings, strict=True):
        gallery.keep(name, picture)
        gallery.find("a")
    assert gallery.find("a") is not None and gallery.find("b") is None and gallery.find("c") is not None


def test_a_strip_decodes_no_more_than_it_shows_and_a_picture_to_watch_is_drawn_whole(bench: Workbench) -> None:
    jobs, plan = bench.jobs, bench.plan_of(Recipe("heatkv", 70))
    along = [step[1] for step in jobs.strip("blue cat", 31, [plan]) if isinstance(step, tuple)]
    assert [len(picture.frames) for picture in along] == [1]
    for _ in range(2):  # drawn, then from the gallery
        last = list(jobs.draw("blue cat", 31, [plan]))[-1]
        assert isinstance(last, DrawStep) and last.drawings is not None
        assert len(last.drawings[0].frames) == 6 and last.drawings[0].frames[-1] == along[0].frames[0]
    assert list(jobs.draw("blue cat", 31, [plan]))[:-1] == []
    again = [step[1] for step in jobs.strip("blue cat", 31, [plan]) if isinstance(step, tuple)]
    assert again[0] is last.drawings[0]


def test_calibrations_that_differ_do_not_share_pictures(bench: Workbench) -> None:
    mine = Calibration("mine", heatkv.calibrate(bench.model, ["green tree"]))
    keys = {bench.plan_of(Recipe("heatkv", 40, source), mine).key for source in ("bundled", "session")}  # type: ignore[arg-type]
    assert len(keys) == 2
    same = Calibration("mine again", heatkv.calibrate(bench.model, ["green tree"]))
    assert bench.plan_of(Recipe("heatkv", 40, "session"), same).key in keys


def test_what_stands_on_a_calibration_or_schedule_of_before_is_refused(bench: Workbench) -> None:
    mine, other = (Calibration("mine", heatkv.calibrate(bench.model, [text])) for text in ("green tree", "blue cat"))
    schedules = [heatkv.plan(scores, 0.4) for scores in (mine.scores, other.scores)]  # type: ignore[arg-type]
    wanted = {**B, "source": "session", "basis": bench.table(mine, "heatkv")["basis"]}
    assert bench.read_plan(wanted, mine, None).calibration is mine
    again = Calibration("the same", mine.source)
    assert bench.read_plan(wanted, again, None).calibration is again
    for known in (None, other):
        with pytest.raises(InputError, match="not known any more"):
            bench.read_plan(wanted, known, None)
    with pytest.raises(InputError, match="not known any more"):
        bench.read_plan({**B, "source": "session"}, None, None)
    tables = [bench.table(None, "heatkv", schedule) for schedule in schedules]
    uploaded = {"source": "uploaded", "basis": tables[0]["basis"]}
    assert bench.read_plan(uploaded, None, schedules[0]).schedule == schedules[0]
    with pytest.raises(InputError, match="no uploaded schedule any more"):
        bench.read_plan(uploaded, None, schedules[1])
    assert bench.table(None, "heatkv")["basis"] == "" and len({basis_of(mine), basis_of(other)}) == 2


def test_recipes_are_read_with_care(bench: Workbench) -> None:
    assert bench.read_recipe({"policy": "full", "percent": 7}) == Recipe()
    assert bench.read_recipe({**B, "forget": "1.1.1,1.1.2,1.1.3,1.1.4,1.1.5"}).forget == "1.1"
    with pytest.raises(InputError):
        bench.read_recipe(None)


# --- files ------------------------------------------------------------------------------------------------------------


def saved(demo: _Demo, uploaded: Schedule | None = None, **asked: Any) -> Any:
    return list(demo.explore.files.save(None, uploaded, event(id=1, prompt="red apple", seed=5, **asked)))[-1]


def test_the_picture_file_is_lossless_and_says_how_to_draw_it_again(demo: _Demo, bench: Workbench) -> None:
    file, _ = saved(demo, what="png", b={**B, "forget": "1.2"})
    image = Image.open(io.BytesIO(base64.b64decode(file["data"])))
    facts = {key: image.info[key] for key in ("prompt", "seed", "model", "policy", "budget", "forgotten")}
    assert facts == {
        "prompt": "red apple", "seed": "5", "model": "tiny", "policy": "heatkv", "budget": "0.4", "forgotten": "1.2",
    }  # fmt: skip
    plan = bench.plan_of(Recipe("heatkv", 40, forget="1.2"))
    assert (np.asarray(image) == heatkv.generate(bench.model, "red apple", 5, plan.schedule).pixels).all()
    assert file["name"] == "red-apple_seed5_heatkv_40.png"


def test_the_picture_file_names_what_the_plan_was_made_from(demo: _Demo, bench: Workbench) -> None:
    def facts(uploaded: Schedule | None = None, **b: Any) -> dict[str, str]:
        file, _ = saved(demo, uploaded, what="png", b=b)
        found = Image.open(io.BytesIO(base64.b64decode(file["data"]))).info
        return {key: found[key] for key in ("policy", "calibration", "schedule") if key in found}

    assert facts(**B) == {"policy": "heatkv", "calibration": "bundled calibration"}
    assert facts(policy="h2o", percent=50) == {"policy": "h2o"} and facts(**A) == {"policy": "full"}
    schedule = heatkv.plan(bench.bundled.scores, 0.4, "reverse")
    assert facts(schedule, source="uploaded") == {"policy": "reverse", "schedule": "from a file"}


def test_a_schedule_goes_out_with_its_edits_and_comes_in(demo: _Demo, bench: Workbench, tmp_path: Path) -> None:
    file, _ = saved(demo, what="schedule", b={"policy": "reverse", "percent": 40, "forget": "2.1"})
    path = tmp_path / file["name"]
    path.write_bytes(base64.b64decode(file["data"]))
    schedule, note, remove = demo.explore.files.take_schedule(str(path))
    assert schedule == bench.plan_of(Recipe("reverse", 40, forget="2.1")).schedule
    assert "reverse" in note["text"] and remove["visible"]
    table, dial = demo.refresh(None, schedule, {"policy": "heatkv"})
    assert table["fixed"] and table["source"] == "uploaded" and dial["policy"] == "heatkv"
    value = list(
        demo.explore.draw(
            None, schedule, event(id=1, prompt="red apple", seed=0, a=A, b={"source": "uploaded"}), visitor("up")
        )
    )
    assert value[-1][0]["b"]["label"] == "your schedule"
    assert (pixels(value[-1][0]["b"]["image"]) == heatkv.generate(bench.model, "red apple", 0, schedule).pixels).all()
    nothing, said = saved(demo, what="schedule", b={"policy": "h2o", "percent": 50})
    assert nothing == gr.skip() and "no schedule" in said["said"]


def test_waiting_is_plain_data() -> None:
    assert pickle.loads(pickle.dumps(Waiting(2))) == Waiting(2)


def test_a_page_that_was_too_busy_to_read_is_told_that_it_may_ask_again(
    demo: _Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(*asked: object) -> Iterator[object]:
        raise Abandoned("Nobody has read it.")
        yield

    monkeypatch.setattr(demo.bench.jobs, "draw", unread)
    ((value, _),) = draw(demo, seed=77)
    assert value["again"] and "Nobody has read it" in value["error"]
    monkeypatch.setattr(demo.bench.jobs, "draw", lambda *asked: iter(lambda: 1 / 0, 1))
    ((value, _),) = draw(demo, seed=77)
    assert "again" not in value
