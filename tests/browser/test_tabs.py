"""The tabs beside Explore in a real browser: methods, calibration, and what they leave alone."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from pages import Site, drawn, pixels, tab, upload, visit
from playwright.sync_api import Page, expect

import heatkv
from heatkv.policies import REGISTRY

HOSTILE = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"

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
    expect(page.locator("#sheet")).to_contain_text("made for another kind of model, adapted")


# --- calibrating ------------------------------------------------------------------------------------------------------


def test_a_calibration_changes_the_map_of_this_session_only(page: Page, site: Site) -> None:
    visit(page, site)
    before = page.evaluate("heatkv.table.kept + heatkv.table.types.join()")
    tab(page, "Calibrate")
    page.locator("#calibrate-prompts textarea").fill("green tree\na picture of a cat")
    page.locator("#calibrate-start").click()
    expect(page.locator("#calibrate-notice")).to_contain_text("your calibration, 2 prompts")
    page.wait_for_function("(before) => heatkv.table.kept + heatkv.table.types.join() !== before", arg=before)
    expect(page.locator("#calibrate-notice")).to_contain_text("droppable cells otherwise")
    page.locator("#calibrate-compare").click()
    drawn(page)
    expect(page.locator("#stage figure.a .tag")).to_have_text("A · HeatKV, 35 %")
    expect(page.locator("#stage figure.b .tag")).to_have_text("B · HeatKV, 35 %, your calibration")
    tab(page, "Calibrate")
    with page.expect_download() as found:
        page.locator("#save-scores").click()
    assert heatkv.HeadScores.load(found.value.path()).prompts == ("green tree", "a picture of a cat")
    page.locator("#calibrate-reset").click()
    page.wait_for_function("(before) => heatkv.table.kept + heatkv.table.types.join() === before", arg=before)


def test_a_second_calibration_is_drawn_from_and_what_stood_on_the_first_is_no_longer_drawn(
    page: Page, site: Site
) -> None:
    visit(page, site)
    for prompt in ("green tree", "blue cat"):
        tab(page, "Calibrate")
        before = page.evaluate("heatkv.table.basis")
        page.locator("#calibrate-prompts textarea").fill(prompt)
        page.locator("#calibrate-start").click()
        page.wait_for_function("(before) => heatkv.table.basis !== before", arg=before)
        tab(page, "Explore")
        if prompt == "blue cat":  # A is pinned, and stands on the first
            expect(page.locator("#stage .line")).to_contain_text("Your calibration is not known any more")
            page.locator("#stage .unpin").click()
        drawn(page)
        expect(page.locator("#stage figure.b .tag")).to_have_text("B · HeatKV, 35 %, your calibration")
        plan = heatkv.plan(heatkv.calibrate(site.model.model, [prompt]), 0.35)
        assert (pixels(page, "b") == heatkv.generate(site.model.model, "red apple", 0, plan).pixels).all(), prompt
        if prompt == "green tree":
            page.locator("#stage .pin").click()
            expect(page.locator("#stage .line .figure")).to_have_text("identical")


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
