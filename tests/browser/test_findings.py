"""What a trial of an earlier page found, as far as no other file has a test of it: each fails on that page."""

from __future__ import annotations

import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from pages import Site, drawn, picture, tab, visit
from playwright.sync_api import Browser, Page, expect


def test_who_waits_for_somebodys_calibration_sees_a_place_and_a_cancel_and_is_served_in_between(
    page: Page, site: Site, browser: Browser
) -> None:
    visit(page, site)
    other = visit(browser.new_context().new_page(), site)
    tab(other, "Calibrate")
    other.locator("#calibrate-prompts textarea").fill("red apple\nblue cat\ngreen tree\n" * 8)
    other.locator("#calibrate-count input[type=number]").fill("24")
    site.model.seconds = 0.25
    other.locator("#calibrate-start").click()
    expect(other.locator("#tab-calibrate, body").first).to_contain_text("of 24 prompts")
    page.locator("#ask .prompt input").fill("green tree")
    page.locator("#ask .seed input").fill("4711")
    page.locator("#ask .draw").click()
    expect(page.locator("#stage .line")).to_contain_text("In the queue: 1 before you")
    expect(page.locator("#stage .cancel")).to_be_visible()
    drawn(page)
    expect(other.locator("#calibrate-cancel")).to_be_enabled()  # it goes on
    site.model.seconds = 0.0
    other.locator("#calibrate-cancel").click()
    expect(other.locator("#calibrate-notice")).to_contain_text("Cancelled")
    other.context.close()


@pytest.mark.parametrize("name", ["Explore", "Methods"])
def test_nothing_shines_through_the_bar_that_stays_on_top(page: Page, site: Site, name: str) -> None:
    visit(page, site)
    tab(page, name)
    page.evaluate("window.scrollTo(0, 500)")
    page.wait_for_timeout(300)
    through = page.evaluate(
        """() => { const bar = document.querySelector('#dial'); const area = bar.getBoundingClientRect();
            const found = [];
            for (let x = area.left + 4; x < area.right; x += 12)
            for (let y = area.top + 4; y < area.bottom - 2; y += 8) {
                const top = document.elementFromPoint(x, y);
                if (!bar.contains(top)) found.push([x, y, top && top.outerHTML.slice(0, 80)]); }
            return found; }"""
    )
    assert through == []
    style = "(node) => getComputedStyle(node).backgroundColor"
    assert not page.locator("#dial .dial").evaluate(style).startswith("rgba(0, 0, 0, 0")


def test_maps_of_a_head_share_one_measure_unless_asked_otherwise(page: Page, site: Site) -> None:
    visit(page, site, "?head=1.1")
    page.locator("#headcard").scroll_into_view_if_needed()
    expect(page.locator("#headcard .tile")).to_have_count(6)
    darkest = """(tile) => { const c = tile.querySelector('canvas');
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        let least = 255; for (let i = 2; i < d.length; i += 4) least = Math.min(least, d[i]); return least; }"""
    shares = [float(text.split()[0]) for text in page.locator("#headcard .tile b").all_inner_texts()]
    shared = [tile.evaluate(darkest) for tile in page.locator("#headcard .tile").all()]
    page.locator("#headcard .stretch input").check()
    stretched = [tile.evaluate(darkest) for tile in page.locator("#headcard .tile").all()]
    assert max(stretched) < 120, "each is dark somewhere"
    assert max(shared) > max(stretched) and abs(min(shared) - min(stretched)) < 8, shares
    page.locator("#headcard .tile").first.click()
    expect(page.locator("#headcard .tile.large")).to_have_count(1)


def test_the_card_is_of_the_head_that_the_map_marks(page: Page, site: Site) -> None:
    visit(page, site, "?head=1.1")
    page.locator("#headmap .detail .field").focus()
    for key in ("ArrowDown", "ArrowDown", "PageDown"):
        page.keyboard.press(key)
    expect(page.locator("#headcard .title")).to_contain_text("Layer 2, head 3")
    expect(page.locator("#headmap .names .on")).to_contain_text("3")
    expect(page.locator("#headmap .readout")).to_contain_text("Layer 2, head 3")


@pytest.mark.parametrize("seed", ["-5", "1.5", "4294967296", "x"])
def test_a_seed_that_is_none_is_said_in_words(page: Page, site: Site, seed: str) -> None:
    visit(page, site)
    before = picture(page, "b")
    page.locator("#ask .seed input").fill(seed)
    page.locator("#ask .draw").click()
    expect(page.locator("#stage .line")).to_contain_text("choose a whole number from 0 to 4294967295")
    expect(page.locator("#stage .line")).to_contain_text(seed)
    assert picture(page, "b") == before and page.locator("#stage figure.b.stale").count() == 1


def test_heatkv_can_be_seen_on_a_published_model_without_a_file(page: Page, site: Site) -> None:
    visit(page, site)
    tab(page, "Published models")
    page.wait_for_function("heatkvPublished.table")
    page.locator("#pub-play").click()
    page.wait_for_function("heatkvPublished.table.policy === 'heatkv' && heatkvPublished.table.kind === 'rank'")
    expect(page.locator("#pub-notice")).to_contain_text("of no model")
    expect(page.locator("#published-policy")).to_contain_text("HeatKV upside down")
