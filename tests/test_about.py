"""The About tab: what it hands out."""

from __future__ import annotations

import base64
from pathlib import Path

from app.tabs.about import TEXT, bibtex


def test_the_references_are_the_bundled_file() -> None:
    file = bibtex()
    bundled = Path(__file__).parents[1] / "assets" / "references.bib"
    assert file["name"].endswith(".bib") and base64.b64decode(file["data"]) == bundled.read_bytes()


def test_it_names_the_authors_and_says_whose_work_it_is_not() -> None:
    text = TEXT.read_text(encoding="utf-8")
    for words in ("Jonathan Cederlund", "arm-research/heatkv", "not affiliated", "HeatKV+ is not theirs", "modified"):
        assert words in text
