"""Two models in one app, one that draws by scales and one by lines: the menu, the words, the maps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from pages import Both, Site, drawn, picture, release, set_budget, tab, visit
from playwright.sync_api import Page, expect


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    made = Both()
    yield made
    made.demo.close()


@pytest.fixture
def context_options() -> dict[str, Any]:
    return {"viewport": {"width": 1280, "height": 720}}


def test_the_menu_leads_to_the_other_model_and_keeps_prompt_seed_and_budget(page: Page, site: Site) -> None:
    visit(page, site, "?prompt=green+tree&seed=5&budget=60")
    assert page.locator("#ask .model option").all_inner_texts() == ["tiny: by scales", "tiny-lines: by lines"]
    for title in ("tiny-lines: by lines", "tiny: by scales"):
        page.locator("#ask .model select").select_option(label=title)
        there = "(name) => window.heatkv && heatkv.defaults && heatkv.table && heatkv.table.model === name"
        page.wait_for_function(there, arg=title.split(":")[0])
        drawn(page)
        seen = page.evaluate("[heatkv.table.model, heatkv.view.prompt, heatkv.view.seed, heatkv.budget]")
        assert seen == [title.split(":")[0], "green tree", 5, 60]
    for path in ("#stage figure.b", "#headmap .detail .field", "#budget-range"):
        found = page.locator(path).bounding_box()
        assert found and found["y"] + found["height"] <= 720, "still one screen"


def test_links_name_their_model_also_where_it_stands_at_the_root(page: Page, site: Site) -> None:
    for start, name in (("", "tiny"), ("tiny-lines", "tiny-lines")):
        visit(page, site, f"{start}?prompt=blue+cat&seed=8")
        link = page.evaluate("heatkv.link(true)")
        assert link.startswith(f"{site.url}{name}?") and page.evaluate("heatkv.home()") == f"{site.url}{name}"
        page.goto(link)
        page.wait_for_function("window.heatkv && heatkv.table && heatkv.defaults")
        drawn(page)
        assert page.evaluate("[heatkv.table.model, heatkv.view.prompt, heatkv.view.seed]") == [name, "blue cat", 8]
        assert page.evaluate("location.pathname") == f"/{start}"
    tab(page, "Learn")
    page.go_back()
    expect(page.get_by_role("tab", name="Explore", exact=True)).to_have_attribute("aria-selected", "true")
    assert page.evaluate("[heatkv.table.model, location.pathname]") == ["tiny-lines", "/tiny-lines"]


def test_nothing_speaks_of_scales_on_the_page_of_a_model_by_lines(page: Page, site: Site) -> None:
    visit(page, site, "tiny-lines")
    page.locator("#headcard").scroll_into_view_if_needed()
    expect(page.locator("#headcard .says")).to_contain_text("line 5")
    words = page.evaluate(
        """[...document.querySelectorAll(
            '#dial, #stage, #headmap, #heads, #headcard, #scorecard, #memory, .types')].map((node) =>
            [node.innerText, ...[...node.querySelectorAll('[title], [aria-label]')].map(
                (one) => `${one.title} ${one.getAttribute('aria-label')}`)].join(' ')).join(' ')
            .toLowerCase().replaceAll('scalekv', '')"""
    )
    assert "scale" not in words, words[max(0, words.find("scale") - 60) : words.find("scale") + 40]
    assert "cond" in page.locator("#headmap .detail .heads-row").inner_text()


def test_heads_are_seen_by_line_and_by_distance(page: Page, site: Site) -> None:
    visit(page, site, "tiny-lines?head=2.2")
    by_line = page.locator("#headmap .detail canvas").evaluate("(node) => node.toDataURL()")
    page.locator("#headmap [data-colour=distance]").click()
    assert page.locator("#headmap .detail canvas").evaluate("(node) => node.toDataURL()") != by_line
    field = page.locator("#headmap .detail .field")
    field.focus()
    expect(page.locator("#headmap .readout")).to_contain_text("head 2, condition:")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#headmap .readout")).to_contain_text("same line:")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#headmap .readout")).to_contain_text("1 line up:")
    page.keyboard.press("x")
    assert page.evaluate("heatkv.edits.count") == 0, "a distance is no cell"
    page.keyboard.press("h")
    assert page.evaluate("heatkv.edits.toText()") == "2.2"
    page.wait_for_function("location.search.includes('colour=distance')")


def test_what_a_token_of_any_line_has_read_is_painted_over_the_picture(page: Page, site: Site) -> None:
    visit(page, site, "tiny-lines?head=1.1")
    page.locator("#headcard").scroll_into_view_if_needed()
    sight = page.locator("#headcard .sight")
    expect(sight).to_be_visible()
    last = sight.evaluate("(node) => node.toDataURL()")
    area = page.locator("#headcard .image").bounding_box()
    assert area
    page.locator("#headcard .image").click(position={"x": area["width"] * 0.3, "y": area["height"] * 0.45})
    expect(page.locator("#headcard .says")).to_contain_text("Column 3 of line 4")
    expect(page.locator("#headcard .target")).to_have_value("4")
    assert sight.evaluate("(node) => node.toDataURL()") != last
    blank = "(node) => [...node.getContext('2d').getImageData(node.width - 5, node.height - 5, 1, 1).data].slice(0, 3)"
    assert min(sight.evaluate(blank)) > 215, "what was not drawn yet is grey"
    page.locator("#headcard .image").focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#headcard .says")).to_contain_text("Column 3 of line 5")
    page.keyboard.press("Escape")
    expect(page.locator("#headcard .says")).to_contain_text("line 5, mean over its tokens")


def test_headkvs_types_of_the_image_stand_beside_the_calibrations(page: Page, site: Site) -> None:
    visit(page, site, "tiny-lines?budget=50")
    page.locator("#dial .policies").select_option("headkv")
    expect(page.locator(".types .grid")).to_have_count(2)
    expect(page.locator(".types .source")).to_contain_text("Both agree on")


def test_how_tokens_are_drawn_is_chosen_shared_and_taken_back(page: Page, site: Site) -> None:
    visit(page, site)
    own, half = picture(page, "a"), page.evaluate("heatkv.memory().fullPeak")
    page.locator("#ask .sampling summary").click()
    assert page.locator("#ask .fields input").count() == 3, "bits have no top-k"
    field = page.locator("#ask [data-name=guidance]")
    assert field.get_attribute("placeholder") == "2"
    field.fill("-2")
    field.press("Tab")
    expect(page.locator("#ask .wrong")).to_contain_text("“-2” is not taken")
    expect(field).to_have_value("")
    field.fill("1")
    field.press("Tab")
    expect(page.locator("#ask .wrong")).to_be_empty()
    page.wait_for_function("heatkv.view.sampling.guidance === 1")
    drawn(page)
    assert picture(page, "a") != own and page.evaluate("heatkv.memory().fullPeak") == half / 2
    expect(page.locator("#ask .sampling summary")).to_have_text("Sampling: yours")
    changed = picture(page, "a")
    visit(page, site, "?" + page.evaluate("heatkv.link(true)").partition("?")[2])
    assert picture(page, "a") == changed and page.evaluate("heatkv.view.sampling") == {"guidance": 1}
    page.locator("#ask .sampling summary").click()
    page.locator("#ask .own").click()
    drawn(page)
    assert picture(page, "a") == own
    set_budget(page, 80)
    release(page)
    drawn(page)
    tab(page, "Methods")
