"""Explore in a real browser: pictures, slider, map and policy on one screen, and what is turned is seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from gradio.server_messages import CloseStreamMessage
from pages import (
    Site,
    choose_policy,
    drawn,
    measure_slowly,
    picture,
    pixels,
    release,
    set_budget,
    strip_drawn,
    tab,
    upload,
    visit,
)
from playwright.sync_api import Page, expect

import heatkv
from heatkv.policies import REGISTRY
from heatkv.views.edits import cells_from_text, forget

HOSTILE = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
LAPTOP = {"viewport": {"width": 1280, "height": 720}}


def box(page: Page, path: str) -> dict[str, float]:
    found = page.locator(path).bounding_box()
    assert found is not None, path
    return dict(found)


def asked(page: Page) -> list[str]:
    """Requests from now on; addresses of data are none."""
    urls: list[str] = []
    page.on("request", lambda request: None if request.url.startswith("data:") else urls.append(request.url))
    return urls


# --- one screen -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context_options", [LAPTOP])
def test_pictures_budget_policy_and_map_are_on_one_screen_of_a_laptop(page: Page, site: Site) -> None:
    visit(page, site)
    for path in (
        "#stage figure.a",
        "#stage figure.b",
        "#budget-range",
        "#dial .policies",
        "#headmap .detail .field",
        "#headmap .overview .field",
    ):
        found = box(page, path)
        assert found["y"] >= 0 and found["y"] + found["height"] <= 720 and found["width"] > 80, path


@pytest.mark.parametrize("context_options", [PHONE])
def test_both_pictures_and_the_slider_are_on_one_screen_of_a_phone(page: Page, site: Site) -> None:
    visit(page, site)
    slider, b = box(page, "#budget-range"), box(page, "#stage figure.b")
    assert b["y"] + b["height"] <= box(page, "#dial")["y"] and slider["y"] + slider["height"] <= 844
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.wait_for_timeout(100)
    assert box(page, "#budget-range")["y"] > 600, "the slider stays at the bottom"
    for name in ("Learn", "Methods", "Calibrate", "Published models", "About", "Explore"):
        tab(page, name)
        page.wait_for_timeout(150)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name


@pytest.mark.parametrize(("context_options", "actions"), [(LAPTOP, 2), (PHONE, 3)])
def test_an_own_picture_under_an_own_budget_is_two_actions_away_or_three_on_a_phone(
    page: Page, site: Site, actions: int
) -> None:
    visit(page, site)
    page.locator("#ask .prompt input").fill("blue cat")  # what is written belongs to the first action
    taken = 1
    if actions == 2:
        page.keyboard.press("Enter")
    else:
        page.locator("#ask .draw").tap()
        taken += 1
    drawn(page)
    slider = box(page, "#budget-range")
    assert slider["y"] + slider["height"] <= page.viewport_size["height"], "nobody has to look for it"  # type: ignore[index]
    y, (start, end) = (
        slider["y"] + slider["height"] / 2,
        (slider["x"] + share * slider["width"] for share in (0.2, 0.7)),
    )
    page.mouse.move(start, y)
    page.mouse.down()
    page.mouse.move(end, y, steps=4)
    page.mouse.up()
    taken += 1
    percent = page.evaluate("heatkv.budget")
    assert percent > 50 and taken == actions
    drawn(page)
    expect(page.locator("#stage figure.b .tag")).to_have_text(f"B · HeatKV, {percent} %")
    exact = heatkv.generate(site.model.model, "blue cat", 0, heatkv.plan(site.scores, percent / 100))
    assert (pixels(page, "b") == exact.pixels).all()


def test_the_first_picture_is_there_within_two_seconds_and_a_half(page: Page, site: Site) -> None:
    page.add_init_script(
        """const look = () => { const seen = [...document.querySelectorAll('#stage figure img[src]')];
            const shown = seen.length === 2 && seen.every((image) => image.complete && image.checkVisibility());
            if (shown) window.firstPicture = performance.now(); else requestAnimationFrame(look); };
        requestAnimationFrame(look);"""
    )
    took = []
    for _ in range(3):
        visit(page, site)
        took.append(page.wait_for_function("window.firstPicture").json_value())
    assert min(took) < 2500, f"{took} ms after opening (the least of several: other work is noise)"


# --- the slider -------------------------------------------------------------------------------------------------------


def test_dragging_moves_map_memory_and_picture_without_a_request(page: Page, site: Site) -> None:
    visit(page, site)
    strip_drawn(page, site)
    map_before = page.locator("#headmap .detail canvas").evaluate("(node) => node.toDataURL()")
    words, b = page.locator("#dial .bytes").inner_text(), picture(page, "b")
    urls = asked(page)
    took = []
    for value in (40, 45, 50, 55, 60, 65, 70, 80, 90):
        set_budget(page, value)
        took.append(page.evaluate("heatkv.lastInput"))
    assert page.locator("#headmap .detail canvas").evaluate("(node) => node.toDataURL()") != map_before
    assert page.locator("#dial .bytes").inner_text() != words and picture(page, "b") != b
    assert urls == [] and min(took) < 16, "a redraw fits a frame (the least of several: other work is noise)"
    page.wait_for_function("location.search.includes('budget=90')")


def test_releasing_the_slider_draws_the_exact_picture(page: Page, site: Site) -> None:
    visit(page, site)
    set_budget(page, 47)
    release(page)
    drawn(page)
    expect(page.locator("#stage figure.b .tag")).to_have_text("B · HeatKV, 47 %")
    exact = heatkv.generate(site.model.model, "red apple", 0, heatkv.plan(site.scores, 0.47))
    assert (pixels(page, "b") == exact.pixels).all()


def test_nothing_stale_stands_unmarked_while_somebody_drags(page: Page, site: Site) -> None:
    visit(page, site, "?prompt=blue+cat")
    site.model.seconds = 0.25
    set_budget(page, 52)
    release(page)
    for value in (58, 31, 73):
        page.wait_for_timeout(150)
        set_budget(page, value)
        stale = page.evaluate(
            """[...document.querySelectorAll('#stage figure.b')].map(
                (f) => [f.classList.contains('stale'), f.querySelector('.tag').textContent])"""
        )
        assert stale[0][0] or stale[0][1] == f"B · HeatKV, {value} %"
        assert page.locator("#stage .line .figure").inner_text() == "", "no score of other pictures"
    release(page)
    site.model.seconds = 0.0
    drawn(page)
    expect(page.locator("#stage figure.b .tag")).to_have_text("B · HeatKV, 73 %")


def test_the_browser_shows_the_cells_that_are_planned(page: Page, site: Site) -> None:
    visit(page, site)
    last = len(site.model.geometry.scales) - 1
    for name, policy in REGISTRY.items():
        if not policy.static:
            continue
        choose_policy(page, name)
        for percent in (26, 33, 50):
            set_budget(page, percent)
            schedule = heatkv.plan(site.scores, percent / 100, name)
            assert (np.array(page.evaluate("heatkv.keptCells()")) == schedule.keep(last)[:, :, :last]).all(), name
            peak = page.evaluate("heatkv.memory().peak")
            held = schedule.resident_bytes_TL.max() if schedule.encoded else schedule.peak_tokens
            assert peak == held * page.evaluate("heatkv.table.heldBytesPerToken")


def test_the_slider_goes_where_the_policy_can_go(page: Page, site: Site) -> None:
    visit(page, site, "?policy=heatkv%2B&budget=2")
    page.wait_for_function("heatkv.table.policy === 'heatkv+' && heatkv.budget === 2")
    slider = page.locator("#budget-range")
    expect(slider).to_have_attribute("min", "1")
    most = page.evaluate("heatkv.table.most")
    assert most < 100, "8-bit cells keep everything long before"
    expect(slider).to_have_attribute("max", str(most))
    expect(page.locator("#dial .sentence")).to_contain_text(f"From {most} % on nothing is given up")
    choose_policy(page, "heatkv")
    page.wait_for_function("heatkv.budget === heatkv.table.percents[0]")
    assert page.evaluate("heatkv.table.percents[0]") > 2


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_b_is_pinned_as_a_and_compared_in_three_ways(page: Page, site: Site) -> None:
    visit(page, site)
    set_budget(page, 40)
    release(page)
    drawn(page)
    b = picture(page, "b")
    page.locator("#stage .pin").click()
    choose_policy(page, "reverse")
    drawn(page)
    assert picture(page, "a") == b and picture(page, "b") != b
    expect(page.locator("#stage figure.a .tag")).to_have_text("A · HeatKV, 40 %")
    page.locator("#stage [data-mode=wipe]").click()
    slide = page.locator("#stage .slide input")
    slide.focus()
    for _ in range(3):
        slide.press("ArrowRight")
    assert page.locator("#stage .pictures").evaluate("(node) => node.style.getPropertyValue('--cut')") == "53%"
    page.locator("#stage [data-mode=difference]").click()
    assert picture(page, "a") not in (b, picture(page, "b"))
    page.locator("#stage [data-mode=side]").click()
    expect(page.locator("#stage .frames button")).to_have_count(6)
    page.locator("#stage .frames button").first.focus()
    page.keyboard.press("Enter")
    assert picture(page, "a") != b
    expect(page.locator("#stage figure.a .tag")).to_contain_text("after scale 1")
    page.locator("#stage .unpin").click()
    drawn(page)
    expect(page.locator("#stage figure.a .tag")).to_have_text("A · full cache")


def test_cells_are_stored_in_few_bits_on_the_page_and_in_links(page: Page, site: Site) -> None:
    visit(page, site)
    before = picture(page, "b")
    page.locator("#stage .pin").click()
    page.locator("#dial .storages").select_option("int8")
    page.wait_for_function("heatkv.table.storage === 'int8'")
    drawn(page)
    expect(page.locator("#stage figure.b .tag")).to_have_text("B · HeatKV, 35 %, 8 bits")
    expect(page.locator("#stage figure.a .tag")).to_have_text("A · HeatKV, 35 %")
    exact = heatkv.generate(site.model.model, "red apple", 0, heatkv.plan(site.scores, 0.35, storage="int8"))
    assert (pixels(page, "b") == exact.pixels).all() and picture(page, "a") == before
    b, link = picture(page, "b"), page.evaluate("heatkv.link(true)")
    choose_policy(page, "h2o")
    drawn(page)
    expect(page.locator("#dial .storages")).to_be_disabled()
    expect(page.locator("#dial .sentence")).to_contain_text("stay as computed")
    visit(page, site, "?" + link.partition("?")[2])
    page.wait_for_function("heatkv.table.storage === 'int8'")
    drawn(page)
    assert picture(page, "b") == b and page.locator("#dial .storages").input_value() == "int8"
    visit(page, site, "?storage=int3")
    expect(page.locator("#dial .sentence")).to_contain_text("must be one of compute, int8")
    page.set_viewport_size({"width": 390, "height": 844})
    expect(page.locator("#dial .sentence")).to_be_in_viewport()
    assert page.locator("#dial .sentence").get_attribute("role") == "status"
    drawn(page)
    assert picture(page, "b") == before


def test_the_slider_comes_back_where_another_policy_or_storage_goes_as_far(page: Page, site: Site) -> None:
    visit(page, site)
    set_budget(page, 90)
    release(page)
    page.locator("#dial .storages").select_option("int8")
    page.wait_for_function("heatkv.table.storage === 'int8'")
    most = page.evaluate("heatkv.budget")
    assert most == page.evaluate("heatkv.table.most") < 90
    expect(page.locator("#budget-range")).to_have_value(str(most))
    page.locator("#dial .storages").select_option("")
    page.wait_for_function("heatkv.table.storage === 'compute' && heatkv.budget === 90")
    expect(page.locator("#budget-range")).to_have_value("90")
    drawn(page)
    expect(page.locator("#stage figure.b .tag")).to_have_text("B · HeatKV, 90 %")
    page.locator("#dial .storages").select_option("int8")
    page.wait_for_function("heatkv.table.storage === 'int8'")
    set_budget(page, most - 1)  # this is what is wanted now
    page.locator("#dial .storages").select_option("")
    page.wait_for_function("heatkv.table.storage === 'compute'")
    assert page.evaluate("heatkv.budget") == most - 1


def test_back_leads_to_the_tab_before(page: Page, site: Site) -> None:
    visit(page, site)
    set_budget(page, 60)
    release(page)
    drawn(page)
    for name in ("Learn", "Methods"):
        page.get_by_role("tab", name=name, exact=True).click()
        page.wait_for_function("(tab) => location.search.includes(`tab=${tab}`)", arg=name.lower())
    for name in ("About", "Calibrate"):  # faster than the address follows
        page.get_by_role("tab", name=name, exact=True).click()
    for name in ("About", "Methods", "Learn", "Explore"):
        page.go_back()
        expect(page.get_by_role("tab", name=name, exact=True)).to_have_attribute("aria-selected", "true")
    page.wait_for_function("location.search.includes('budget=60') && !location.search.includes('tab=')")
    assert page.evaluate("heatkv.budget") == 60, "Back changes what is looked at, not what is drawn"
    page.go_forward()
    expect(page.get_by_role("tab", name="Learn", exact=True)).to_have_attribute("aria-selected", "true")


def begin_slowly(page: Page, site: Site, seed: int) -> None:
    """Ask for a picture that is still being drawn when this returns."""
    visit(page, site)
    site.model.seconds = 0.4
    page.locator("#ask .seed input").fill(str(seed))
    page.locator("#ask .draw").click()
    expect(page.locator("#stage figure.b .mark")).to_contain_text("drawing, 1 of 6")


def test_a_job_can_be_cancelled_and_the_next_one_runs(page: Page, site: Site) -> None:
    begin_slowly(page, site, 77)
    page.locator("#stage .cancel").click()
    expect(page.locator("#stage .line")).to_contain_text("Cancelled")
    site.model.seconds = 0.0
    page.locator("#ask .draw").click()
    drawn(page)


def test_who_presses_draw_once_more_asks_anew_as_the_first_request_may_be_lost(page: Page, site: Site) -> None:
    begin_slowly(page, site, 78)
    with page.expect_request(lambda request: '"has"' in (request.post_data or ""), timeout=10_000):
        page.locator("#ask .draw").click()
    site.model.seconds = 0.0
    drawn(page)


def test_a_strip_that_another_one_ended_is_finished_when_its_picture_is_back(page: Page, site: Site) -> None:
    visit(page, site)
    pictures, whole = page.locator("#dial .strip img"), strip_drawn(page, site)
    site.model.seconds = 0.1
    for prompt in ("blue cat", "green tree", "blue cat"):
        page.locator("#ask .prompt input").fill(prompt)
        page.locator("#ask .seed input").fill("79")
        page.locator("#ask .draw").click()
        drawn(page)
        expect(pictures).not_to_have_count(0)
        if pictures.count() < whole:
            least = page.evaluate("heatkv.table.percents[0]")
            set_budget(page, 90)
            assert f"{least} %" not in page.locator("#stage figure.b .tag").inner_text(), "that is not near"
            set_budget(page, 35)
    site.model.seconds = 0.0
    expect(pictures).to_have_count(whole)


def test_a_wrong_prompt_is_said_and_what_was_there_is_marked(page: Page, site: Site) -> None:
    visit(page, site)
    for prompt, words in ((" ", "empty"), ("zeppelin", "zeppelin")):
        page.locator("#ask .prompt input").fill(prompt)
        expect(page.locator("#stage figure.b .mark")).to_contain_text("press Draw")
        page.locator("#ask .draw").click()
        expect(page.locator("#stage .line")).to_contain_text(words)
        assert page.locator("#stage figure.stale").count() >= 1


# --- forgetting -------------------------------------------------------------------------------------------------------


def test_cells_are_forgotten_by_key_and_taken_back(page: Page, site: Site) -> None:
    visit(page, site, "?head=2.3")
    b = picture(page, "b")
    field = page.locator("#headmap .detail .field")
    field.focus()
    page.keyboard.press("x")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("h")
    assert page.evaluate("heatkv.edits.toText()") == "2.3.1,2.4"
    drawn(page)
    schedule = forget(heatkv.plan(site.scores, 0.35), cells_from_text("2.3.1,2.4", site.model.geometry))
    last = len(site.model.geometry.scales) - 1
    assert (np.array(page.evaluate("heatkv.keptCells()")) == schedule.keep(last)[:, :, :last]).all()
    assert picture(page, "b") != b
    expect(page.locator("#stage figure.b .tag")).to_contain_text("edited")
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    assert page.evaluate("heatkv.edits.count") == 0
    drawn(page)
    assert picture(page, "b") == b
    page.keyboard.press("Control+Shift+z")
    assert page.evaluate("heatkv.edits.toText()") == "2.3.1"
    page.locator("#headmap .clear").click()
    for what, text in (("layer", "2"), ("source", "s1,2"), ("type", None)):
        page.locator(f"#headmap [data-forget={what}]").click()
        assert text is None or page.evaluate("heatkv.edits.toText()") == text
    drawn(page)


def test_forgotten_cells_rest_under_a_policy_without_a_plan(page: Page, site: Site) -> None:
    visit(page, site, "?forget=2.3")
    expect(page.locator("#stage figure.b .tag")).to_have_text("B · HeatKV, 35 %, edited")
    choose_policy(page, "h2o")
    drawn(page)
    expect(page.locator("#stage figure.b .tag")).to_have_text("B · H2O, 35 %")
    expect(page.locator("#headmap .dynamic")).to_contain_text("What was forgotten by hand rests")
    choose_policy(page, "heatkv")
    drawn(page)
    expect(page.locator("#stage figure.b .tag")).to_have_text("B · HeatKV, 35 %, edited")


def test_a_long_press_forgets_and_a_click_does_not(page: Page, site: Site) -> None:
    visit(page, site)
    found = box(page, "#headmap .detail .field")
    page.mouse.click(found["x"] + 5, found["y"] + 5)
    assert page.evaluate("heatkv.edits.count") == 0
    page.mouse.move(found["x"] + found["width"] - 5, found["y"] + 5)
    page.mouse.down()
    page.wait_for_timeout(800)
    page.mouse.up()
    assert page.evaluate("heatkv.edits.toText()").endswith(".1.5")
    drawn(page)


def test_an_edited_schedule_is_saved_loaded_and_removed(page: Page, site: Site) -> None:
    visit(page, site, "?forget=1.2,s5&policy=reverse&budget=60")
    page.locator("#stage .save summary").click()
    with page.expect_download() as found:
        page.locator("[data-save=schedule]").click()
    content = Path(found.value.path()).read_bytes()
    assert json.loads(content)["provenance"]["forgotten_by_hand"] == 5 + 11
    visit(page, site)
    upload(page, "#upload-schedule", "schedule.json", b'{"format": "' + HOSTILE.encode() + b'"}')
    expect(page.locator("#schedule-notice")).to_contain_text("not used")
    upload(page, "#upload-schedule", "schedule.json", content)
    page.wait_for_function("heatkv.fixed")
    drawn(page)
    expect(page.locator("#stage figure.b .tag")).to_have_text("B · your schedule")
    expect(page.locator("#budget-range")).to_be_disabled()
    page.locator("#ask .share").click()
    expect(page.locator("#ask .done")).to_contain_text("will show other pictures: your schedule file")
    page.locator("#uploaded-remove").click()
    page.wait_for_function("!heatkv.fixed")
    assert page.evaluate("window.hacked") is None


# --- looking ----------------------------------------------------------------------------------------------------------


def test_the_knock_out_is_measured_on_this_picture_and_can_be_stopped(page: Page, site: Site) -> None:
    visit(page, site)
    measure_slowly(page, site)
    page.locator("#headmap .stop").click()
    expect(page.locator("#headmap .measure")).to_be_visible()
    site.model.seconds = 0.0
    page.locator("#headmap .measure").click()
    expect(page.locator("#headmap .knock")).to_be_hidden()
    expect(page.locator("#headmap .readout")).to_contain_text("the picture moves by")


def test_the_map_shows_what_the_policy_goes_by(page: Page, site: Site) -> None:
    visit(page, site)
    expect(page.locator("#headmap [data-colour=attention]")).to_have_attribute("aria-pressed", "true")
    choose_policy(page, "heatkv+")
    expect(page.locator("#headmap [data-colour=change]")).to_have_attribute("aria-pressed", "true")
    choose_policy(page, "h2o")
    drawn(page)
    expect(page.locator("#headmap [data-colour=kept]")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#headmap .dynamic")).to_be_visible()
    expect(page.locator("#headmap .readout")).to_contain_text("tokens kept in this picture")
    page.locator("#headmap [data-colour=kept]").click()
    choose_policy(page, "heatkv")
    expect(page.locator("#headmap [data-colour=attention]")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#headmap .share-key")).to_contain_text("kept by few")
    page.evaluate("heatkv.look(1, 2, heatkv.table.cached - 1)")
    kept = page.evaluate("heatkv.keptCells()[1].filter((row) => row.at(-1)).length")
    expect(page.locator("#headmap .readout")).to_contain_text(f"Of this layer's 4 heads {kept} keep")


def test_the_types_of_heads_are_those_of_the_policy_in_use(page: Page, site: Site) -> None:
    visit(page, site, "?policy=hack")
    expect(page.locator(".types .title")).to_have_text("HACK's head types")
    tab(page, "Learn")
    page.locator("#lessons .start").first.click()
    expect(page.locator(".types")).to_be_hidden()
    page.locator("#lesson .options button").first.click()
    expect(page.locator("#lesson .answer")).to_contain_text(
        "No: " if page.locator("#lesson .wrong").count() else "Yes: "
    )
    page.locator("#lesson .leave").click()
    expect(page.locator(".types")).to_be_visible()
    for name in ("hack", "headkv", "snapkv", "headkv", "heatkv"):  # before the answers have come
        page.locator("#dial .policies").select_option(name)
    page.wait_for_function("heatkv.table.policy === 'heatkv'")
    page.wait_for_timeout(500)
    expect(page.locator(".types")).to_be_hidden()
    expect(page.locator("#dial .policies")).to_have_value("heatkv")


def test_map_and_card_work_by_mouse_and_keyboard(page: Page, site: Site) -> None:
    visit(page, site, "?head=1.1")
    page.locator("#headmap .overview .field").focus()
    for key in ("ArrowDown", "Enter", "ArrowDown", "ArrowDown", "ArrowRight", "PageDown", "ArrowUp"):
        page.keyboard.press(key)
    expect(page.locator("#headmap .readout")).to_contain_text("Layer 3, head 2, scale 2")
    page.keyboard.press("Enter")
    expect(page.locator("#headcard .title")).to_contain_text("Layer 3, head 2")
    expect(page.locator("#headcard .tile")).to_have_count(6)
    page.locator("#headcard .image").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#headcard .says")).to_contain_text("Row 4, column 3")
    page.locator("#headcard .target").select_option("2")
    expect(page.locator("#headcard .tile")).to_have_count(3)
    page.wait_for_function("location.search.includes('head=3.2')")


# --- addresses and what comes from outside ----------------------------------------------------------------------------


def test_a_shared_link_shows_the_same_pictures_in_a_fresh_browser(page: Page, site: Site, browser: Any) -> None:
    visit(page, site)
    page.locator("#ask .prompt input").fill("blue cat")
    page.locator("#ask .seed input").fill("7")
    page.keyboard.press("Enter")
    choose_policy(page, "random")
    set_budget(page, 60)
    release(page)
    page.locator("#headmap .detail .field").focus()
    page.keyboard.press("h")
    drawn(page)
    page.locator("#ask .share").click()
    link = page.locator("#ask .shared input").input_value()
    other = browser.new_context().new_page()
    other.goto(link)
    other.wait_for_function("window.heatkv && heatkv.table")
    drawn(other)
    for side in "ab":
        assert picture(other, side) == picture(page, side), side
    assert other.evaluate("heatkv.edits.toText()") == page.evaluate("heatkv.edits.toText()") != ""
    other.context.close()


def test_an_answer_that_gets_lost_is_asked_for_once_more(page: Page, site: Site) -> None:
    """Gradio's stream closes after its last event, even if another was just joined: nothing is heard of that one."""
    visit(page, site)
    site.model.seconds = 0.3
    page.locator("#ask .seed input").fill("70")
    page.keyboard.press("Enter")
    expect(page.locator("#stage figure.b .mark")).to_contain_text("drawing, 1 of")
    for messages in site.demo._queue.pending_messages_per_session.values():
        messages.put_nowait(CloseStreamMessage())
    site.model.seconds = 0.0
    page.wait_for_timeout(2000)
    expect(page.locator("#stage .line .text")).to_have_text("Drawing …")
    drawn(page)
    assert page.locator("#stage .line .text").inner_text() != "Drawing …"


def test_a_step_that_takes_long_is_waited_for(page: Page, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.turns.SIGN_SECONDS", 0.2)
    page.clock.install()
    visit(page, site)
    page.wait_for_timeout(1500)  # its strip
    site.model.seconds = 2.0
    joined: list[str] = []
    page.on("request", lambda request: joined.append(request.url) if "/queue/join" in request.url else None)
    page.locator("#ask .seed input").fill("72")
    page.locator("#ask .draw").click()
    page.wait_for_timeout(500)
    before = len(joined)
    for _ in range(4):  # 20 s for the page, 2 s for the model: less than a step of two pictures
        page.clock.run_for(5000)
        page.wait_for_timeout(500)
    assert len(joined) == before > 0, "asked for once"
    site.model.seconds = 0.0
    drawn(page)


def test_a_server_that_stays_silent_is_told_of(page: Page, site: Site) -> None:
    page.clock.install()
    visit(page, site)
    page.route("**/queue/join*", lambda route: None)  # asked for, and never heard of
    page.locator("#ask .seed input").fill("71")
    page.locator("#ask .draw").click()
    for seconds in (9, 17, 33):
        expect(page.locator("#stage .line .text")).to_have_text("Drawing …")
        page.clock.run_for(1000 * seconds)
    expect(page.locator("#stage .line .text")).to_contain_text("does not answer")
    expect(page.locator("#stage .cancel")).to_be_hidden()
    page.unroute("**/queue/join*")
    page.locator("#ask .draw").click()
    drawn(page)


def test_an_address_opens_its_tab(page: Page, site: Site) -> None:
    visit(page, site, "?tab=methods&budget=50")
    expect(page.get_by_role("tab", name="Methods", exact=True)).to_have_attribute("aria-selected", "true")
    assert page.evaluate("heatkv.budget") == 50


def test_an_empty_seed_is_drawn_and_shared_as_the_seed_it_was(page: Page, site: Site) -> None:
    visit(page, site, "?seed=5")
    page.locator("#ask .seed input").fill("")
    page.locator("#ask .draw").click()
    drawn(page)
    seed = page.locator("#ask .seed input").input_value()
    assert seed.isdigit()
    assert f"seed={seed}" in page.evaluate("heatkv.link(true)")


def test_nonsense_in_an_address_is_ignored(page: Page, site: Site) -> None:
    visit(page, site, "?budget=1e999&policy=%3Cb%3E&seed=-1&tab=admin&head=x&lesson=77&forget=99,zz&a=%3Cb%3E&mode=x")
    assert page.evaluate("[heatkv.budget, heatkv.table.policy, heatkv.edits.count, heatkv.view.a.policy]") == [
        35,
        "heatkv",
        0,
        "full",
    ]


def test_a_hostile_prompt_stays_text_everywhere(page: Page, site: Site) -> None:
    visit(page, site, "?prompt=" + HOSTILE.replace("<", "%3C").replace(">", "%3E") + " red apple")
    expect(page.locator("#scorecard .run")).to_contain_text("<img src=x")
    expect(page.locator("#stage .line")).to_contain_text("onerror")
    page.locator("#headcard").scroll_into_view_if_needed()
    assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize("context_options", [{**LAPTOP, "color_scheme": "dark"}])
def test_the_map_follows_the_dark_theme(page: Page, site: Site, context_options: dict[str, Any]) -> None:
    visit(page, site)
    assert page.evaluate("heatkv.dark")
    colour = page.locator("#headmap .overview canvas").evaluate(
        "(node) => [...node.getContext('2d').getImageData(8, 8, 1, 1).data].slice(0, 3)"
    )
    assert min(colour) > 150, "what all heads keep is light on a dark page, and dark on a light one"
