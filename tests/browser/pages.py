"""The app under test, and the steps that most tests take."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page, TimeoutError, expect
from tiny import tiny_lines_model, tiny_model

import heatkv
from app.demo import Exhibit, create_demo, create_pages, launch_options
from app.recipes import Recipe
from app.strips import strip_percents
from app.workbench import Workbench

REFERENCES = {
    "other_seed": {"psnr": 9.0, "psnr_foreground": 8.0, "ssim": 0.2, "bit_agreement": 0.6},
    "sinks_only": {"psnr": 11.0, "psnr_foreground": 10.0, "ssim": 0.4, "bit_agreement": 0.7},
    "dtype_noise": {"psnr": 40.0, "psnr_foreground": 38.0, "ssim": 0.9, "bit_agreement": 0.99},
    "n": 128,
}


COMPARISON = {
    "prompts": 64, "seeds": 2, "kv_bytes_full": 4000, "references": REFERENCES,
    "rows": [
        {"policy": policy, "budget": budget, "psnr": 20 + 10 * budget + i, "ssim": 0.5 + budget / 2 - i / 10,
         "kv_bytes_peak": 4000 * budget}
        for i, policy in enumerate(("heatkv", "hack"))
        for budget in (0.3, 0.5)
    ],
}  # fmt: skip


expect.set_options(timeout=30_000)  # a busy machine


class Paced:
    """A model that takes its time over every scale, so that a test can press Cancel in between."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def run(self, *arguments: Any) -> Iterator[Any]:
        for step in self.model.run(*arguments):
            time.sleep(self.seconds)
            yield step


class Site:
    """The running app: its address, its model and the calibration it opened with."""

    def __init__(self, model: Any = None, prompts: tuple[str, ...] = ("red apple", "blue cat", "green tree")) -> None:
        self.model = Paced(model or tiny_model())
        self.scores = heatkv.calibrate(self.model.model, prompts[:2])
        self.demo = create_demo(self.model, self.scores, REFERENCES, prompts, comparison=COMPARISON)  # type: ignore[arg-type]
        _, self.url, _ = self.demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())


class Both(Site):
    """The running app with two models, by scales at the root and by lines at ``tiny-lines``."""

    def __init__(self) -> None:
        self.model = Paced(tiny_model())
        self.lines = tiny_lines_model(8)
        exhibits: list[Any] = [Exhibit(m, heatkv.calibrate(m, ["blue cat"])) for m in (self.model.model, self.lines)]
        self.demo = create_pages(exhibits, "tiny")
        _, self.url, _ = self.demo.launch(prevent_thread_lock=True, quiet=True, **launch_options("tiny"))


def visit(page: Page, site: Site, query: str = "") -> Page:
    """Open the app and wait until it is alive: the table is there and, on a model that draws unasked, both pictures."""
    page.goto(site.url + query)
    page.wait_for_function("window.heatkv && heatkv.table && heatkv.defaults", timeout=120_000)
    if page.evaluate("heatkv.defaults.auto"):
        drawn(page)
    return page


def drawn(page: Page) -> None:
    """Wait until both pictures are what the controls say; a failure tells what stands there instead."""
    try:
        page.wait_for_function(
            """() => document.querySelectorAll('#stage figure img[src]').length === 2
                && !document.querySelector('#stage figure.stale') && document.querySelector('#stage .cancel').hidden""",
            timeout=120_000,
        )
    except TimeoutError as error:
        raise AssertionError(f"not drawn: {page.locator('#stage').inner_text()!r}") from error


def strip_drawn(page: Page, site: Site) -> int:
    """Wait until the strip along the slider is whole; how many pictures it has."""
    count = len(strip_percents(Workbench(site.model.model, site.scores), Recipe("heatkv")))
    expect(page.locator("#dial .strip img")).to_have_count(count)
    return count


def set_budget(page: Page, value: int) -> None:
    """Move the slider as a drag does, without letting go."""
    page.locator("#budget-range").evaluate(
        "(node, value) => { node.value = value; node.dispatchEvent(new Event('input', {bubbles: true})); }", value
    )
    page.wait_for_function("(value) => heatkv.budget === value", arg=value)


def release(page: Page) -> None:
    page.locator("#budget-range").dispatch_event("change")


def measure_slowly(page: Page, site: Site) -> None:
    """Begin a knock-out that takes long enough for something to happen in between."""
    page.locator("#headmap [data-colour=knockout]").click()
    site.model.seconds = 0.15
    page.locator("#headmap .measure").click()
    expect(page.locator("#headmap .knock .text")).to_contain_text("of 12 heads")


def choose_policy(page: Page, name: str) -> None:
    page.locator("#dial .policies").select_option(name)
    page.wait_for_function("(name) => heatkv.table.policy === name", arg=name)


def picture(page: Page, side: str) -> str:
    url = page.locator(f"#stage figure.{side} img").get_attribute("src")
    assert url and url.startswith("data:image/png;base64,")
    return url


def pixels(page: Page, side: str) -> Any:
    """A picture as the browser has decoded it."""
    content = picture(page, side).partition(",")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))


def upload(page: Page, where: str, name: str, content: bytes) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator(where).click()
    chooser.value.set_files([{"name": name, "mimeType": "application/octet-stream", "buffer": content}])


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()
