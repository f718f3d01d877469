"""The explorer in a real browser: what it draws, how it is operated, and that it asks nobody else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from pages import Site, tab, visit
from playwright.sync_api import Page, expect

import heatkv
from heatkv.policies import REGISTRY

HOSTILE = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"


def set_slider(page: Page, value: int) -> None:
    slider = page.locator("#budget input[type=range]")
    slider.focus()
    slider.evaluate(
        """(node, value) => {
            node.value = value;
            for (const kind of ['input', 'change']) node.dispatchEvent(new Event(kind, {bubbles: true}));
        }""",
        value,
    )
    page.wait_for_function("(value) => heatkv.budget === value", arg=value)


def upload(page: Page, where: str, name: str, content: bytes) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator(where).click()
    chooser.value.set_files([{"name": name, "mimeType": "application/octet-stream", "buffer": content}])


def generate(page: Page) -> None:
    page.locator("#generate").click()
    expect(page.locator("#scorecard .score")).to_be_visible()


# --- the map ----------------------------------------------------------------------------------------------------------


def test_the_first_page_is_alive(page: Page, site: Site) -> None:
    visit(page, site)
    expect(page.locator("#knobs .amount")).to_contain_text("of")
    expect(page.locator("#headcard .title")).to_contain_text("Layer")
    assert page.locator("#headmap .memory path").count() == 3


def test_the_slider_moves_map_and_memory_without_a_request(page: Page, site: Site) -> None:
    visit(page, site)
    page.wait_for_timeout(500)
    before = page.locator("#headmap .detail canvas").evaluate("(node) => node.toDataURL()")
    words = page.locator("#knobs .amount").inner_text()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    slider = page.locator("#budget input[type=range]")
    slider.focus()
    for _ in range(5):
        slider.press("ArrowRight")
    page.wait_for_function("heatkv.budget === 40")
    slider.press("End")
    page.wait_for_function("heatkv.budget === 100")
    assert page.locator("#headmap .detail canvas").evaluate("(node) => node.toDataURL()") != before
    assert page.locator("#knobs .amount").inner_text() != words
    page.wait_for_timeout(600)
    assert [url for url in asked if not url.startswith("data:")] == []
    assert "budget=100" in page.url


def test_the_browser_draws_the_cells_that_are_planned(page: Page, site: Site) -> None:
    visit(page, site)
    last = len(site.model.geometry.scales) - 1
    for name, policy in REGISTRY.items():
        if not policy.static:
            continue
        page.locator("#policy").get_by_label(policy.title, exact=True).check()
        page.wait_for_function("(name) => heatkv.table.policy === name", arg=name)
        for percent in (26, 33, 50, 77, 100):
            set_slider(page, percent)
            drawn = np.array(page.evaluate("heatkv.keptCells()"))
            schedule = heatkv.plan(site.scores, percent / 100, name)
            assert (drawn == schedule.keep(last)[:, :, :last]).all(), (name, percent)
            assert page.evaluate("heatkv.memory().peak") == schedule.peak_tokens * page.evaluate(
                "heatkv.table.heldBytesPerToken"
            )


def test_the_slider_starts_where_the_policys_sinks_fit(page: Page, site: Site) -> None:
    visit(page, site, "?policy=heatkv%2B&budget=2")
    page.wait_for_function("heatkv.table.policy === 'heatkv+' && heatkv.budget === 2")
    slider = page.locator("#budget input[type=range]")
    expect(slider).to_have_attribute("min", "1")
    page.locator("#policy").get_by_label("HeatKV", exact=True).check()
    page.wait_for_function("heatkv.table.policy === 'heatkv' && heatkv.budget === heatkv.table.percents[0]")
    least = page.evaluate("heatkv.table.percents[0]")
    assert least > 2
    expect(slider).to_have_attribute("min", str(least))
    page.wait_for_function("(least) => location.search.includes('budget=' + least)", arg=least)


def test_map_and_card_work_by_mouse(page: Page, site: Site) -> None:
    visit(page, site)
    overview = page.locator("#headmap .overview .field").bounding_box()
    assert overview is not None
    page.mouse.click(overview["x"] + 5, overview["y"] + overview["height"] * 0.5)
    expect(page.locator("#headmap .title")).to_contain_text("Layer 2")
    detail = page.locator("#headmap .detail .field").bounding_box()
    assert detail is not None
    page.mouse.click(detail["x"] + detail["width"] - 5, detail["y"] + detail["height"] - 5)
    expect(page.locator("#headcard .title")).to_contain_text("Layer 2, head 4")
    expect(page.locator("#headmap .readout")).to_contain_text("scale 5")
    page.locator("#headcard .image").click(position={"x": 5, "y": 5})
    expect(page.locator("#headcard .says")).to_contain_text("Row 1, column 1")
    page.wait_for_function("location.search.includes('head=2.4')")


def test_map_and_card_work_by_keyboard(page: Page, site: Site) -> None:
    visit(page, site, "?head=1.1")
    expect(page.locator("#headcard .title")).to_contain_text("Layer 1, head 1")
    page.locator("#headmap .overview .field").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "PageDown", "ArrowUp"):
        page.keyboard.press(key)
    expect(page.locator("#headmap .readout")).to_contain_text("Layer 3, head 2, scale 2")
    page.keyboard.press("Enter")
    expect(page.locator("#headcard .title")).to_contain_text("Layer 3, head 2")
    page.locator("#headcard .image").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#headcard .says")).to_contain_text("Row 4, column 3")
    page.keyboard.press("Escape")
    expect(page.locator("#headcard .says")).to_contain_text("mean over all positions")


# --- comparing --------------------------------------------------------------------------------------------------------


def test_a_comparison_gives_two_images_metrics_and_a_wipe_for_the_keyboard(page: Page, site: Site) -> None:
    visit(page, site)
    tab(page, "Compare")
    generate(page)
    expect(page.locator("#wipe .frames button")).to_have_count(6)
    urls = [page.locator(f"#wipe .stage img.{side}").get_attribute("src") for side in ("full", "less")]
    assert all(url and url.startswith("data:image/png;base64,") for url in urls) and urls[0] != urls[1]
    card = page.locator("#scorecard")
    for words in ("PSNR", "SSIM", "another seed", "bf16 against fp32", "allocated", "seed 0"):
        expect(card).to_contain_text(words)
    assert card.locator(".bits > div").count() == 6
    slider = page.locator("#wipe input[type=range]")
    slider.focus()
    for _ in range(3):
        slider.press("ArrowRight")
    assert page.locator("#wipe .stage").evaluate("(node) => node.style.getPropertyValue('--cut')") == "53%"
    page.locator("#wipe .frames button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#wipe .stage img.full").get_attribute("src") != urls[0]


def test_a_job_can_be_cancelled_and_the_next_one_runs(page: Page, site: Site) -> None:
    visit(page, site)
    tab(page, "Compare")
    site.model.seconds = 0.4
    page.locator("#generate").click()
    expect(page.locator("#compare-notice")).to_contain_text("scale 1 of 6")
    page.locator("#generate-cancel").click()
    expect(page.locator("#compare-notice")).to_contain_text("Cancelled")
    site.model.seconds = 0.0
    generate(page)


def test_downloads_carry_what_they_are_made_of(page: Page, site: Site) -> None:
    visit(page, site)
    tab(page, "Compare")
    generate(page)
    for button, ending in (("#save-image", ".png"), ("#save-schedule", ".json")):
        with page.expect_download() as found:
            page.locator(button).click()
        assert found.value.suggested_filename.endswith(ending)
    schedule = json.loads(Path(found.value.path()).read_text())
    assert schedule["budget"] == 0.35 and schedule["model"] == "tiny"


@pytest.mark.parametrize(
    "content", [b"{", b'{"format": "' + HOSTILE.encode() + b'"}', b"\x00" * 100], ids=["cut", "markup", "binary"]
)
def test_a_hostile_schedule_is_refused_in_words(page: Page, site: Site, content: bytes) -> None:
    visit(page, site)
    tab(page, "Compare")
    upload(page, "#upload-schedule", "schedule.json", content)
    expect(page.locator("#compare-notice")).to_contain_text("This schedule is not used")
    assert page.evaluate("window.hacked") is None
    generate(page)


def test_an_uploaded_schedule_rules_until_it_is_removed(page: Page, site: Site) -> None:
    visit(page, site)
    tab(page, "Compare")
    schedule = heatkv.plan(site.scores, 0.6, "reverse")
    upload(page, "#upload-schedule", "schedule.json", schedule.to_json().encode())
    expect(page.locator("#uploaded-notice")).to_contain_text("reverse at 60 %")
    page.wait_for_function("heatkv.fixed")
    assert (np.array(page.evaluate("heatkv.keptCells()")) == schedule.keep(5)[:, :, :5]).all()
    generate(page)
    expect(page.locator("#scorecard .run")).to_contain_text("reverse at 60 %")
    page.locator("#uploaded-remove").click()
    page.wait_for_function("!heatkv.fixed")
    expect(page.locator("#budget input[type=range]")).to_be_enabled()


def test_a_hostile_prompt_stays_text_everywhere(page: Page, site: Site) -> None:
    visit(page, site, "?prompt=" + HOSTILE.replace("<", "%3C").replace(">", "%3E") + " red apple")
    expect(page.locator("#headcard .about")).to_contain_text("<img src=x")
    tab(page, "Compare")
    generate(page)
    expect(page.locator("#scorecard .run")).to_contain_text("<img src=x")
    expect(page.locator("#compare-notice")).to_contain_text("onerror")
    tab(page, "Calibrate")
    page.locator("#calibrate-prompts textarea").fill(HOSTILE)
    page.locator("#calibrate-start").click()
    expect(page.locator("#calibrate-notice")).to_contain_text("does not know")
    assert page.evaluate("window.hacked") is None


def test_a_wrong_prompt_is_said_and_what_was_there_stays(page: Page, site: Site) -> None:
    visit(page, site)
    tab(page, "Compare")
    generate(page)
    before = page.locator("#wipe .stage img.less").get_attribute("src")
    for prompt, words in (("", "empty"), ("zeppelin", "zeppelin")):
        page.locator("#prompt textarea, #prompt input").fill(prompt)
        page.locator("#generate").click()
        expect(page.locator("#compare-notice")).to_contain_text(words)
    assert page.locator("#wipe .stage img.less").get_attribute("src") == before


# --- methods ----------------------------------------------------------------------------------------------------------


def test_the_methods_tab_shows_curves_table_and_one_prompt_under_every_policy(page: Page, site: Site) -> None:
    visit(page, site)
    tab(page, "Methods")
    plot = page.locator("#methods-plot")
    expect(plot.locator(".legend")).to_contain_text("HACK")
    expect(page.locator("#methods")).to_contain_text("64 prompts × 2 seeds")
    page.locator("#metric").get_by_label("SSIM", exact=True).check()
    expect(plot).to_contain_text("SSIM")
    site.model.seconds = 0.2
    page.locator("#methods-draw").click()
    expect(page.locator("#methods-progress")).to_contain_text("1 of")
    page.locator("#methods-cancel").click()
    expect(page.locator("#methods-notice")).to_contain_text("Cancelled")
    site.model.seconds = 0.0
    page.locator("#methods-draw").click()
    expect(page.locator("#sheet img")).to_have_count(1 + len(REGISTRY))
    expect(page.locator("#sheet")).to_contain_text("adapted from next-token models")


def test_a_dynamic_policy_shows_head_types_instead_of_a_schedule(page: Page, site: Site) -> None:
    visit(page, site)
    for title, words in (("HeadKV", "local"), ("HACK", "contextual")):
        page.locator("#policy").get_by_label(title, exact=True).check()
        expect(page.locator("#headtypes")).to_contain_text(words)
        expect(page.locator("#headtypes .grid i")).to_have_count(12)
        expect(page.locator("#headmap .dynamic")).to_be_visible()
    page.locator("#policy").get_by_label("HeatKV", exact=True).check()
    expect(page.locator("#headtypes .types")).to_be_hidden()
    expect(page.locator("#headmap .dynamic")).to_be_hidden()


# --- calibrating ------------------------------------------------------------------------------------------------------


def test_a_calibration_changes_the_map_of_this_session_only(page: Page, site: Site) -> None:
    visit(page, site)
    before = page.evaluate("heatkv.table.kept + heatkv.table.types.join()")
    tab(page, "Calibrate")
    page.locator("#calibrate-prompts textarea").fill("green tree\na picture of a cat")
    page.locator("#calibrate-start").click()
    expect(page.locator("#calibrate-notice")).to_contain_text("your calibration, 2 prompts")
    page.wait_for_function("(before) => heatkv.table.kept + heatkv.table.types.join() !== before", arg=before)
    with page.expect_download() as found:
        page.locator("#save-scores").click()
    assert heatkv.HeadScores.load(found.value.path()).prompts == ("green tree", "a picture of a cat")
    page.locator("#calibrate-reset").click()
    page.wait_for_function("(before) => heatkv.table.kept + heatkv.table.types.join() === before", arg=before)


def test_a_calibration_can_be_cancelled_and_changes_nothing(page: Page, site: Site) -> None:
    visit(page, site)
    tab(page, "Calibrate")
    site.model.seconds = 0.3
    page.locator("#calibrate-start").click()
    expect(page.locator("#progress")).to_contain_text("1 of 3 prompts")
    page.locator("#calibrate-cancel").click()
    expect(page.locator("#calibrate-notice")).to_contain_text("Cancelled. In use: bundled calibration")


def test_orders_and_hostile_scores_files(page: Page, site: Site) -> None:
    from heatkv.scores import orders_to_json

    visit(page, site)
    tab(page, "Calibrate")
    upload(page, "#upload-scores", "scores.safetensors", b"\xff" * 64)
    expect(page.locator("#calibrate-notice")).to_contain_text("This file is not used")
    orders = site.scores.orders(3)[:, ::-1]
    upload(page, "#upload-scores", "orders.json", orders_to_json(orders, site.model.geometry).encode())
    expect(page.locator("#calibrate-notice")).to_contain_text("ranks only")
    page.wait_for_function("heatkv.table.kind === 'rank'")
    drawn = np.array(page.evaluate("heatkv.keptCells()"))
    assert (drawn == heatkv.plan(site.scores, 0.35, "reverse").keep(5)[:, :, :5]).all()


# --- addresses, tour, looks -------------------------------------------------------------------------------------------


def test_an_address_brings_back_the_view_and_nonsense_is_ignored(page: Page, site: Site) -> None:
    visit(page, site, "?budget=60&policy=random&prompt=blue+cat&seed=7&tab=compare&head=2.3")
    page.wait_for_function("heatkv.budget === 60 && heatkv.table.policy === 'random'")
    expect(page.locator("#prompt textarea, #prompt input")).to_have_value("blue cat")
    expect(page.locator("#seed input")).to_have_value("7")
    expect(page.get_by_role("tab", name="Compare")).to_have_attribute("aria-selected", "true")
    assert page.evaluate("[heatkv.cell.layer, heatkv.cell.head]") == [1, 2]
    link = page.evaluate("heatkv.link(true)")
    assert all(
        part in link for part in ("budget=60", "policy=random", "prompt=blue+cat", "seed=7", "tab=compare", "head=2.3")
    )
    visit(page, site, "?budget=1e999&policy=%3Cb%3E&seed=-1&tab=admin&head=x&tour=77")
    assert page.evaluate("[heatkv.budget, heatkv.table.policy]") == [35, "heatkv"]


def test_the_tour_drives_the_real_controls(page: Page, site: Site) -> None:
    visit(page, site)
    bar = page.locator("#tourbar")
    bar.get_by_role("button", name="Take the tour").click()
    page.wait_for_function("heatkv.budget === 100")
    for _ in range(4):
        bar.get_by_role("button", name="Next").click()
    page.wait_for_function("heatkv.budget === 35 && heatkv.table.policy === 'reverse'")
    expect(page.get_by_role("tab", name="Compare")).to_have_attribute("aria-selected", "true")
    page.wait_for_function("location.search.includes('tour=5')")
    page.reload()
    expect(bar).to_contain_text("5 of")
    bar.get_by_role("button", name="Leave the tour").click()
    expect(bar.locator(".tour")).to_be_hidden()


@pytest.mark.parametrize(
    "context_options", [{"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}]
)
def test_nothing_overflows_a_phone_and_the_slider_stays_in_reach(page: Page, site: Site) -> None:
    visit(page, site)
    for name in ("Tour", "Heads", "Compare", "Methods", "Calibrate", "About"):
        tab(page, name)
        page.wait_for_timeout(150)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    tab(page, "Heads")
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.wait_for_timeout(100)
    box = page.locator("#budget").bounding_box()
    assert box is not None and 0 <= box["y"] < 300


@pytest.mark.parametrize("context_options", [{"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"}])
def test_the_map_follows_the_dark_theme(page: Page, site: Site, context_options: dict[str, Any]) -> None:
    visit(page, site)
    assert page.evaluate("heatkv.dark")
    colour = page.locator("#headmap .overview canvas").evaluate(
        "(node) => [...node.getContext('2d').getImageData(1, 0, 1, 1).data].slice(0, 3)"
    )
    assert max(colour) < 120 or colour[0] > colour[2], "the light palette on a dark page"
