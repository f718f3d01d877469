"""QR codes of links: the modules that another encoder makes of the same text, and a class that can scan them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from pages import Site, tab, visit
from playwright.sync_api import Page, expect

QR = Path(__file__).parents[2] / "app" / "static" / "qr.js"
# SHA-256 of the rows of 0 and 1 that the package qrcode 8.2 makes (bytes, level M, its own choice of the mask).
VECTORS = [
    ("a", 21, "e8ab680854e4019c4ac89bd0e19dfe1f7e967f3cafd048091b3e3ec474b6f431"),
    ("https://example.org/spaces/heatkv-explorer/?lesson=8&class=1", 33,
     "9a7fe1c2e9847d131e1f539b95bedd3a5a44057ddabed707b5121fed657e591b"),
    ("http://127.0.0.1:7860/?prompt=red+apple&seed=5&budget=35&policy=heatkv&forget="
     + ",".join(f"{i}.{j}" for i in range(1, 9) for j in range(1, 8)), 69,
     "149b4daa5c935df728b048f6181ecd347751323b875f183cd78039174afa8abd"),
    ("x" * 700, 101, "8ad4806410186a3333f82af6462f3b396e3825fdae229f2cb83fb06ba6cab469"),
    ("z" * 2331, 177, "3df0b1f45eba120946e20ee862856d306aadad249e4b13cd12ed91792a6164e0"),
]  # fmt: skip


def test_codes_are_those_of_another_encoder(page: Page) -> None:
    page.add_script_tag(path=QR)
    for text, side, expected in VECTORS:
        rows = page.evaluate("(text) => window.heatkvQr.modules(text).map((row) => row.join(''))", text)
        assert len(rows) == side == len(rows[0])
        assert hashlib.sha256("\n".join(rows).encode()).hexdigest() == expected, text[:40]
    assert page.evaluate("window.heatkvQr.modules('z'.repeat(2332))") is None, "too long to hold"


def test_class_mode_has_a_code_for_every_lesson(page: Page, site: Site) -> None:
    visit(page, site, "?class=1")
    large = "document.documentElement.style.fontSize === '20px'"
    assert page.evaluate(large), "before anybody looks at the lessons"
    tab(page, "Learn")
    expect(page.locator("#lessons .here")).to_contain_text("--host")
    expect(page.locator("#lessons canvas.code")).to_have_count(0)  # no phone can open 127.0.0.1
    page.evaluate("heatkv.onlyHere = false")
    page.locator("#lessons .big input").uncheck()
    assert not page.evaluate(large)
    page.locator("#lessons .big input").check()
    expect(page.locator("#lessons .here")).to_be_hidden()
    codes = page.locator("#lessons canvas.code")
    expect(codes).to_have_count(page.locator("#lessons .start").count())
    assert codes.first.evaluate("(node) => node.width === node.height && node.width > 100")
    expect(codes.first).to_have_attribute("aria-label", "QR code of the link to lesson 1")
    page.locator("#ask .share").click()
    expect(page.locator("#ask .code")).to_be_visible()
    page.locator("#ask .close").click()
    page.locator("#lessons .big input").uncheck()
    page.locator("#ask .share").click()
    expect(page.locator("#ask .shared")).to_be_visible()
    expect(page.locator("#ask .code")).to_be_hidden()
    expect(codes).to_have_count(0)
