"""A class-conditional model in a real browser, and budgets of published models without weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from pages import Site, drawn, tab, visit
from playwright.sync_api import Page, expect

import heatkv
from heatkv.models import load
from heatkv.schedule import Schedule
from heatkv.scores import orders_to_json
from heatkv.views import budgets
from tests.models import official_files as files

WAIT = 120_000


expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The app with a tiny VAR of ImageNet's classes, from files in the published layout."""
    folder = tmp_path_factory.mktemp("var")
    files.write_var(folder, replace(files.VAR, classes=1000))
    made = Site(load(folder), ("golden retriever", "volcano", "macaw"))
    yield made
    made.demo.close()


def test_a_class_is_found_by_a_part_of_its_name_and_drawn(page: Page, site: Site) -> None:
    visit(page, site, "?prompt=golden+retriever")
    field = page.locator("#ask .prompt input")
    expect(field).to_have_value("207 golden retriever")  # drawn at once, and called what the model calls it
    assert page.locator("#ask datalist option").count() == 1000
    page.locator("#ask .draw").click()
    drawn(page)
    expect(page.locator("#scorecard .run")).to_contain_text("golden retriever", timeout=WAIT)
    field.fill("4 hammerhead")
    field.press("Enter")
    expect(page.locator("#scorecard .run")).to_contain_text("4 hammerhead", timeout=WAIT)
    drawn(page)
    expect(page.locator("#scorecard .bits-title")).to_have_text("Tokens that agree, by scale")
    page.wait_for_function("location.search.includes('prompt=4+hammerhead')")
    tab(page, "Calibrate")
    expect(page.locator("#calibrate-prompts")).to_contain_text("980 volcano")


def test_budgets_are_explored_from_an_orders_file_without_weights(page: Page, site: Site, tmp_path: Path) -> None:
    preset = budgets.choose_preset("infinity-8b")
    rows = len(preset.scales) - 1 - 3
    orders = np.stack([np.random.default_rng(i).permutation(preset.geometry.head_count) for i in range(rows)])
    path = tmp_path / "orders.json"
    path.write_text(orders_to_json(orders, preset.geometry))

    visit(page, site)
    tab(page, "Published models")
    page.wait_for_function("heatkvPublished.table && heatkvPublished.table.model === 'infinity-2b'", timeout=WAIT)
    expect(page.locator("#dial")).to_be_hidden()
    expect(page.locator("#pub-notice")).to_contain_text("needs a file")
    page.locator("#pub-model input").click()
    page.locator("[role=option]:visible", has_text="infinity-8b").last.click()
    page.wait_for_function("heatkvPublished.table.model === 'infinity-8b'", timeout=WAIT)
    page.locator("#pub-batch input").fill("8")
    page.wait_for_function("heatkvPublished.table.batch === 8", timeout=WAIT)

    def upload(name: str, content: bytes) -> None:
        with page.expect_file_chooser() as chooser:
            page.locator("#pub-upload").click()
        chooser.value.set_files([{"name": name, "mimeType": "application/json", "buffer": content}])

    upload("orders.json", b'"<img src=x onerror=window.hacked=1>"')
    expect(page.locator("#pub-notice")).to_contain_text("not used", timeout=WAIT)
    assert page.evaluate("heatkvPublished.table.kind") == "none" and page.evaluate("window.hacked") is None
    upload("orders.json", path.read_bytes())
    page.wait_for_function("heatkvPublished.table.kind === 'rank'", timeout=WAIT)

    slider = page.locator("#pub-budget input[type=range]")
    slider.focus()
    slider.press("End")
    page.wait_for_function("heatkvPublished.budget === 100")
    expect(page.locator("#ledger .papers")).to_have_text("84328 of 84328 MiB")
    expect(page.locator("#ledger .ours")).to_have_text("56219 of 56219 MiB")
    slider.press("Home")
    for _ in range(9):
        slider.press("ArrowRight")
    page.wait_for_function("heatkvPublished.budget === 10")
    schedule = heatkv.plan(orders, 0.1, model=preset.id, geometry=preset.geometry)
    drawn = np.array(page.evaluate("heatkvPublished.keptCells()"))
    assert (drawn == schedule.keep(12)[:, :, :12]).all()
    assert page.evaluate("heatkv.budget") != 10, "the loaded model's own budget is left alone"
    with page.expect_download() as saved:
        page.locator("#pub-save").click()
    assert Schedule.from_json(Path(saved.value.path()).read_text()) == schedule
    assert json.loads(Path(saved.value.path()).read_text())["model"] == "infinity-8b"
    assert page.locator("#published-memory path").count() == 5
    took = page.evaluate(
        """() => [12, 80, 35, 60, 20, 90, 45].map((percent) => { const start = performance.now();
            heatkvPublished.setBudget(percent); return performance.now() - start; })"""
    )
    assert min(took) < 16, (
        f"{took} ms for 1120 heads: a redraw fits a frame (the least of several: other work is noise)"
    )
    tab(page, "Explore")
    expect(page.locator("#dial")).to_be_visible()


@pytest.mark.parametrize(
    "context_options", [{"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}]
)
def test_published_models_fit_a_phone(page: Page, site: Site) -> None:
    visit(page, site)
    tab(page, "Published models")
    page.wait_for_function("heatkvPublished.table", timeout=WAIT)
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
