"""One app and one browser for all tests, a fresh context for each, and no way out of this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pages import Site
    from playwright.sync_api import Browser, Page

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    from pages import Site

    made = Site()
    yield made
    made.demo.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install it to run the browser tests")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


@pytest.fixture
def context_options() -> dict[str, Any]:
    """Options of the test's browser context; a test module or a parameter overrides them."""
    return {"viewport": {"width": 1280, "height": 900}}


@pytest.fixture
def page(browser: Browser, site: Site, context_options: dict[str, Any]) -> Iterator[Page]:
    """An open page. Requests to other hosts are cut off and fail the test, as do errors in scripts."""
    site.model.seconds = 0.0
    context = browser.new_context(**context_options)
    strangers: list[str] = []
    problems: list[str] = []

    def guard(route: Any) -> None:
        url = route.request.url
        if url.startswith((site.url, "data:", "blob:")):
            route.continue_()
        else:
            strangers.append(url)
            route.abort()

    context.route("**/*", guard)
    made = context.new_page()
    made.set_default_timeout(60_000)
    made.on("pageerror", lambda error: problems.append(str(error)))
    yield made
    context.close()
    assert not strangers, f"the page asked other hosts: {strangers}"
    assert not problems, f"errors in scripts: {problems}"
