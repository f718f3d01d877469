"""The About tab: what it hands out."""

from __future__ import annotations

import base64
from pathlib import Path

from tiny import tiny_lines_model, tiny_model

import heatkv
from app.tabs.about import TEXT, bibtex, facts
from app.workbench import Workbench


def test_the_references_are_the_bundled_file() -> None:
    file = bibtex()
    bundled = Path(__file__).parents[1] / "assets" / "references.bib"
    assert file["name"].endswith(".bib") and base64.b64decode(file["data"]) == bundled.read_bytes()


def test_it_names_the_authors_and_says_whose_work_it_is_not() -> None:
    text = TEXT.read_text(encoding="utf-8")
    for words in ("Jonathan Cederlund", "arm-research/heatkv", "not affiliated", "HeatKV+ is not theirs", "modified"):
        assert words in text


def test_the_least_budgets_are_those_that_the_slider_has() -> None:
    for model in (tiny_model(), tiny_lines_model(4, layers=2, heads=2)):
        bench = Workbench(model, heatkv.calibrate(model, ["blue cat"]))
        words = dict(facts(bench)["rows"])["Least budget"]
        for policy, before in (("heatkv", ""), ("heatkv+", "alone; ")):
            assert f"{before}{bench.table(None, policy)['percents'][0]} %" in words
