"""What a walk through every tab and lesson found, at the sizes people use: words cut off, things that jump or hide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from pages import Both, Site, choose_policy, drawn, tab, visit
from playwright.sync_api import Page, expect

TABS = ("Explore", "Learn", "Methods", "Calibrate", "Published models", "About")
LAPTOP = {"viewport": {"width": 1280, "height": 720}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
DOUBLED = {"viewport": {"width": 640, "height": 360}, "device_scale_factor": 2}  # 1280 x 720 at 200 %

# Texts that are wider or higher than what shows them, or beside the screen; what scrolls by itself may be.
CUT = """() => {
    const found = [], range = document.createRange();
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const text = walker.currentNode, node = text.parentElement;
        if (!text.textContent.trim() || node.closest('script, style, option, svg')) continue;
        if (!node.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
        range.selectNodeContents(text);
        const area = range.getBoundingClientRect();
        if (area.width < 2 || area.height < 2) continue;
        for (let around = node; ; around = around.parentElement) {
            if (around === document.body) {
                if (area.right > innerWidth + 1) found.push(['beside', text.textContent]);
                break;
            }
            const style = getComputedStyle(around), room = around.getBoundingClientRect();
            if (style.clipPath !== 'none' && style.position === 'absolute') break; // for screen readers
            if (/auto|scroll/.test(style.overflowX) && around.scrollWidth > around.clientWidth) break;
            if (/hidden|clip/.test(style.overflowX) && (area.right > room.right + 1.5 || area.left < room.left - 1.5)) {
                found.push(['wide', text.textContent]); break; }
            if (/hidden|clip/.test(style.overflowY) && (area.bottom > room.bottom + 2.5 || area.top < room.top - 2.5)) {
                found.push(['high', text.textContent]); break; }
        }
    }
    for (const list of document.querySelectorAll('select')) {
        if (!list.checkVisibility() || !list.selectedOptions.length) continue;
        const style = getComputedStyle(list), pen = document.createElement('canvas').getContext('2d');
        pen.font = style.font;
        const room = list.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
        const word = list.selectedOptions[0].textContent;
        if (pen.measureText(word).width > room + 1) found.push(['list', word]);
    }
    return found;
}"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    made = Both()
    yield made
    made.demo.close()


@pytest.mark.parametrize("context_options", [LAPTOP, PHONE, DOUBLED], ids=["laptop", "phone", "200 %"])
@pytest.mark.parametrize("path", ["", "tiny-lines"], ids=["scales", "lines"])
def test_no_word_is_cut_off(page: Page, site: Site, path: str) -> None:
    visit(page, site, path)
    for name in TABS:
        tab(page, name)
        page.wait_for_timeout(300)
        assert (name, page.evaluate(CUT)) == (name, [])
    tab(page, "Learn")
    page.locator("#lessons .start").first.click()
    bar = page.locator("#lesson .lesson")
    for _ in range(page.locator("#lessons .start").count()):
        drawn(page)
        bar.locator(".options button").last.click()
        title = bar.locator(".title").inner_text()
        assert (title, page.evaluate(CUT)) == (title, [])
        bar.locator(".next").click()


@pytest.mark.parametrize("context_options", [LAPTOP])
def test_every_policy_is_named_and_explained_in_full(page: Page, site: Site) -> None:
    visit(page, site)
    for name in page.locator("#dial .policies option").evaluate_all("(found) => found.map((node) => node.value)"):
        choose_policy(page, name)
        assert (name, page.evaluate(CUT)) == (name, [])


@pytest.mark.parametrize("context_options", [LAPTOP])
@pytest.mark.parametrize("path", ["", "tiny-lines"], ids=["scales", "lines"])
def test_an_answer_moves_nothing_and_is_as_dark_as_other_words(page: Page, site: Site, path: str) -> None:
    visit(page, site, path)
    tab(page, "Learn")
    page.locator("#lessons .start").first.click()
    for _ in range(page.locator("#lessons .start").count() - 1):
        drawn(page)
        before = page.locator("#stage figure.a").bounding_box()
        page.locator("#lesson .options button").first.click()
        expect(page.locator("#lesson .answer")).not_to_be_empty()
        assert page.locator("#stage figure.a").bounding_box() == before
        assert page.locator("#lesson .right").evaluate("(node) => getComputedStyle(node).opacity") == "1"
        page.locator("#lesson .next").click()


@pytest.mark.parametrize("context_options", [LAPTOP])
def test_a_link_to_a_lesson_arrives_at_the_lesson(page: Page, site: Site) -> None:
    visit(page, site, "?lesson=2")
    page.wait_for_timeout(1500)
    top = page.locator("#lesson .lesson").bounding_box()
    bar = page.locator("#dial").bounding_box()
    assert top and bar and 0 <= top["y"] - (bar["y"] + bar["height"]) < 30


@pytest.mark.parametrize("context_options", [DOUBLED])
def test_at_two_hundred_percent_pictures_are_seen_and_lessons_are_led_by_keyboard(page: Page, site: Site) -> None:
    visit(page, site)
    bar = page.locator("#dial").bounding_box()
    first = page.locator("#stage figure.b").bounding_box()
    assert bar and first and bar["height"] < 60
    assert min(bar["y"], first["y"] + first["height"]) - first["y"] >= 100, "a third of the window is picture"
    tab(page, "Learn")
    page.locator("#lessons .start").first.click()
    drawn(page)
    page.locator("#lesson .options button").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#lesson .answer")).not_to_be_empty()
    for name in ("next", "leave"):
        page.keyboard.press("Tab")
        expect(page.locator(f"#lesson .{name}")).to_be_focused()
        page.wait_for_timeout(100)
        assert page.evaluate(
            """() => { const area = document.activeElement.getBoundingClientRect();
                const top = document.elementFromPoint(area.x + area.width / 2, area.y + area.height / 2);
                return top === document.activeElement; }"""
        ), "what has focus is not under the bar"


@pytest.mark.parametrize("context_options", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_no_room_is_lost_under_the_tabs(page: Page, site: Site) -> None:
    visit(page, site)
    for name in TABS:
        tab(page, name)
        page.wait_for_timeout(200)
        gap = page.evaluate(
            """() => { const tabs = document.querySelector('#tabs .tab-wrapper').getBoundingClientRect();
                const shown = [...document.querySelectorAll('#tabs > .tabitem')].find((node) => node.offsetParent);
                return shown.getBoundingClientRect().top - tabs.bottom; }"""
        )
        assert gap <= 2, name


def test_the_other_way_of_drawing_is_not_spoken_of_where_one_calibrates(page: Page, site: Site) -> None:
    visit(page, site, "tiny-lines")
    tab(page, "Calibrate")
    assert "scale" not in page.locator("#tab-calibrate").inner_text().lower()


def test_a_choice_of_one_colour_is_none(page: Page, site: Site, context_options: dict[str, Any]) -> None:
    visit(page, site)
    tab(page, "Published models")
    page.wait_for_function("heatkvPublished.table")
    expect(page.locator("#tab-published .choice")).to_be_hidden()
    field = page.locator("#published-map .detail .field")
    assert "forgets" not in field.get_attribute("aria-label") and field.get_attribute("aria-keyshortcuts") is None
