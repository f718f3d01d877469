"""Who can use the page: keyboard alone, both themes, a still layout, and lessons that cover nothing."""

from __future__ import annotations

import io
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from pages import Site, drawn, picture, release, set_budget, tab, visit
from PIL import Image
from playwright.sync_api import Browser, Page, expect

TABS = ("Explore", "Learn", "Methods", "Calibrate", "Published models", "About")
# A control of each kind on every tab.
CONTROLS = {
    "Explore": (
        "#budget-range", "#dial .policies", "#dial .storages", "#ask .prompt input", "#ask .draw", "#ask .share",
        "#stage .pin", "#stage [data-mode=wipe]", "#headmap .detail .field", "#headmap [data-colour=change]",
        "#tab-learn-button", "#headcard .image", "#headcard .mean", "#heads .type", "#heads .grid button",
    ),
    "Learn": ("#lessons .start", "#lessons .link", "#lessons .big input"),
    "Methods": ("#metric input", "#methods-draw"),
    "Calibrate": ("#calibrate-prompts textarea", "#calibrate-count input[type=number]", "#calibrate-start"),
    "Published models": ("#pub-batch input", "#pub-budget input[type=range]", "#pub-play"),
    "About": ("#about-bibtex",),
}  # fmt: skip
# Controls that can not be reached, or whose focus no outline of two pixels shows.
BARE = """() => [...document.querySelectorAll('button, input, select, textarea, summary, a[href], [tabindex]')]
    .filter((node) => node.checkVisibility({ visibilityProperty: true }) && !node.disabled && node.type !== 'file'
        && !node.closest('.strip, h2, .visually-hidden, footer, .js-plotly-plot'))
    .filter((node) => {
        node.focus();
        const outlined = [node, node.type === 'radio' && node.closest('label')].some((one) => {
            const style = one && getComputedStyle(one);
            return style && style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2; });
        const roving = node.closest('#heads .grid')?.querySelector('[tabindex="0"]'); // arrows reach the others
        return !outlined || (node.tabIndex < 0 && !roving); })
    .map((node) => node.outerHTML.slice(0, 120))"""
SHIFT = """window.shifted = 0;
new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifted += entry.value;
}).observe({type: 'layout-shift', buffered: true});"""


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """axe-core from npm, by name; skipped where it can not be had."""
    if shutil.which("npm") is None:
        pytest.skip("no npm on this machine: install it to check with axe-core")
    folder = tmp_path_factory.mktemp("axe")
    command = ["npm", "install", "axe-core", "--no-audit", "--no-fund", "--silent"]
    try:
        subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=True)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("axe-core does not install from npm here")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "context_options",
    [
        *({"viewport": {"width": 1280, "height": 720}, "color_scheme": scheme} for scheme in ("light", "dark")),
        {"viewport": {"width": 640, "height": 360}, "device_scale_factor": 2},  # 200 %
    ],
    ids=["light", "dark", "200 %"],
)
def test_axe_finds_nothing_serious_on_any_tab(page: Page, site: Site, axe: str) -> None:
    visit(page, site)
    page.locator("#headcard").scroll_into_view_if_needed()
    expect(page.locator("#headcard .tile")).not_to_have_count(0)
    page.evaluate(axe)
    for name in TABS:
        tab(page, name)
        page.wait_for_timeout(600)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        grave = [v for v in found["violations"] if v["impact"] != "minor"]
        assert [(name, v["id"], v["nodes"][0]["target"]) for v in grave] == []


def test_the_page_opens_without_jumping(page: Page, site: Site) -> None:
    page.add_init_script(SHIFT)
    visit(page, site)
    page.wait_for_timeout(1500)
    assert page.evaluate("window.shifted") < 0.1


@pytest.mark.parametrize(
    "context_options",
    [{"viewport": {"width": 1280, "height": 720}, "color_scheme": scheme} for scheme in ("light", "dark")],
)
def test_focus_is_seen_in_pixels(page: Page, site: Site) -> None:
    """As WCAG 2.4.13 measures it: an area of two pixels around the part changes by a contrast of 3 or more."""
    visit(page, site)
    page.locator("#headcard").scroll_into_view_if_needed()
    expect(page.locator("#headcard .tile")).not_to_have_count(0)
    for name, paths in CONTROLS.items():
        tab(page, name)
        page.wait_for_timeout(300)
        for path in paths:
            changed, around = _changed_by_focus(page, path)
            assert changed >= 2 * around * 0.95, (name, path, changed)


def _changed_by_focus(page: Page, path: str) -> tuple[int, float]:
    """How many pixels change by a contrast of 3 when a control has focus, and how long its outline is."""
    target = page.locator(path).first
    target.scroll_into_view_if_needed()
    labelled = target.locator("xpath=ancestor::label[.//input[@type='radio']]")  # the whole choice is outlined
    shown = labelled if labelled.count() else target
    page.evaluate("document.activeElement.blur()")
    target.focus()  # which may scroll it into sight
    page.evaluate("document.activeElement.blur()")
    found = shown.bounding_box()
    assert found is not None, path
    area = {"x": found["x"] - 6, "y": found["y"] - 6, "width": found["width"] + 12, "height": found["height"] + 12}

    def look() -> Any:
        image = Image.open(io.BytesIO(page.screenshot(clip=area, animations="disabled", caret="hide"))).convert("RGB")
        linear = (np.asarray(image) / 255) ** 2.2
        return linear @ np.array([0.2126, 0.7152, 0.0722])

    before = look()
    page.keyboard.press("Shift")  # the keyboard is in use, so focus is shown
    target.focus()
    after = look()
    contrast = (np.maximum(before, after) + 0.05) / (np.minimum(before, after) + 0.05)
    return int((contrast >= 3).sum()), 2 * (found["width"] + found["height"])


def test_every_control_of_every_tab_is_reached_and_outlined(page: Page, site: Site) -> None:
    visit(page, site)
    page.locator("#headcard").scroll_into_view_if_needed()
    expect(page.locator("#headcard .tile")).not_to_have_count(0)
    for name in TABS:
        tab(page, name)
        page.wait_for_timeout(300)
        page.keyboard.press("Shift")
        for _ in range(2):  # a list that is left makes Gradio draw its neighbours anew
            found = page.evaluate(BARE)
            if not found:
                break
            page.wait_for_timeout(500)
        assert (name, found) == (name, [])


def test_the_controls_are_few_stops_away_and_all_by_keyboard(page: Page, site: Site) -> None:
    visit(page, site)
    page.locator("#ask .prompt input").focus()
    seen = []
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
            )
        )
    assert "budget-range" in seen and seen.index("budget-range") < 8
    assert seen.count("policies") == seen.count("storages") == 1, "a stop each, not one an option"


@pytest.mark.parametrize("context_options", [{"viewport": {"width": 640, "height": 360}}])
def test_nothing_is_lost_at_two_hundred_percent(page: Page, site: Site) -> None:
    """A window of 1280 x 720 at 200 % is one of 640 x 360."""
    visit(page, site)
    assert page.evaluate("document.documentElement.scrollWidth") <= 640
    for path in ("#stage figure.b", "#headmap .detail .field", "#dial .policies"):
        page.locator(path).scroll_into_view_if_needed()
        expect(page.locator(path)).to_be_visible()


@pytest.mark.parametrize(
    "context_options",
    [
        {"viewport": {"width": 1366, "height": 768}},
        {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
    ],
)
def test_a_lesson_arrives_drawn_covers_nothing_and_puts_the_controls_back(page: Page, site: Site) -> None:
    visit(page, site, "?budget=60")
    before = picture(page, "b")
    tab(page, "Learn")
    page.locator("#lessons .start").first.click()
    bar = page.locator("#lesson .lesson")
    expect(bar).to_be_visible()
    page.wait_for_function("heatkv.budget === 100")
    drawn(page)
    page.wait_for_function("document.activeElement.classList.contains('title')")
    covered = bar.evaluate(
        """(node) => [...node.querySelectorAll('.title, .text, .question')].some((part) => {
            const area = part.getBoundingClientRect();
            const top = document.elementFromPoint(area.x + 5, area.y + area.height / 2);
            return !node.contains(top) || area.y < 0 || area.bottom > innerHeight; })"""
    )
    assert not covered
    expect(bar.locator(".answer")).to_be_empty()
    if page.viewport_size["width"] > 1000:  # type: ignore[index]
        seen = """(node) => { const area = node.getBoundingClientRect();
            return [area.top, Math.min(area.bottom, area.top + 90)]; }"""
        for _ in range(page.locator("#lessons .start").count() - 1):
            top, end = page.locator(".lesson-target").evaluate(seen)
            assert top >= -5 and end <= 768, f"{bar.locator('.title').inner_text()}: what it speaks of is on the screen"
            bar.locator(".next").click()
            page.wait_for_function("document.activeElement.classList.contains('title')")
        while bar.locator(".back").is_enabled():
            bar.locator(".back").click()
        drawn(page)
    bar.locator(".options button").first.click()
    expect(bar.locator(".answer")).not_to_be_empty()
    expect(bar.locator(".options .right")).to_have_count(1)
    page.wait_for_function("location.search.includes('lesson=1')")
    page.keyboard.press("Escape")
    expect(bar).to_be_hidden()
    page.wait_for_function("heatkv.budget === 60")
    drawn(page)
    assert picture(page, "b") == before


def test_the_walk_of_a_newcomer(page: Page, site: Site, browser: Browser) -> None:
    """Open, read, drag, forget a head, reveal one guess, share; the link shows the same in a fresh browser."""
    visit(page, site)
    expect(page.locator("#stage .hello")).to_contain_text("Drag it")
    set_budget(page, 30)
    release(page)
    drawn(page)
    page.locator("#headmap [data-forget=head]").click()
    drawn(page)
    expect(page.locator("#stage figure.b .tag")).to_contain_text("edited")
    tab(page, "Learn")
    page.locator("#lessons .start").nth(1).click()
    page.locator("#lesson .options button").last.click()
    expect(page.locator("#lesson .answer")).not_to_be_empty()
    page.locator("#lesson .leave").click()
    page.wait_for_function("heatkv.budget === 30 && heatkv.edits.count > 0")
    drawn(page)
    page.locator("#ask .share").click()
    link = page.locator("#ask .shared input").input_value()
    assert "budget=30" in link and "forget=" in link
    other = browser.new_context().new_page()
    other.goto(link)
    other.wait_for_function("window.heatkv && heatkv.table")
    drawn(other)
    assert [picture(other, side) for side in "ab"] == [picture(page, side) for side in "ab"]
    other.context.close()
