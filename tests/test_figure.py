"""The figure of results: what it shows is what the comparison says."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from heatkv.study.figure import curves, figure, labels, main

SVG = "{http://www.w3.org/2000/svg}"


def comparison(name: str = "tiny") -> dict[str, Any]:
    psnr = {"heatkv": (20.0, 25.0, 30.0), "random": (20.0, 22.0, 28.0), "<h2o>": (24.0, 24.5, 26.0)}
    rows = [
        {"policy": policy, "budget": share, "share_16bit": share, "psnr": value}
        for policy, values in psnr.items()
        for share, value in zip((0.1, 0.2, 0.5), values, strict=True)
    ]
    rows.append({"policy": "heatkv", "budget": 0.05, "reason": "least feasible budget is 0.1"})
    return {"model": name, "rows": rows, "references": {"other_seed": {"psnr": 19.0}}}


def test_every_policy_is_a_curve_and_heatkv_lies_on_top() -> None:
    lines = curves(comparison())
    assert [line.name for line in lines] == ["<h2o>", "random", "heatkv"]
    assert lines[2].points == ((0.1, 20.0), (0.2, 25.0), (0.5, 30.0))


def test_higher_psnr_is_drawn_higher_and_more_bytes_to_the_right() -> None:
    root = ElementTree.fromstring(figure([comparison("a"), comparison("b")]))
    panels = root.findall(f"{SVG}g")
    assert [panel.find(f"{SVG}text").text for panel in panels] == ["a", "b"]
    dots = [(float(dot.get("cx", 0)), float(dot.get("cy", 0))) for dot in panels[0].iter(f"{SVG}circle")][-3:]
    assert [x for x, _ in dots] == sorted(x for x, _ in dots) and [y for _, y in dots] == sorted((y for _, y in dots))[
        ::-1
    ]
    texts = [text.text for text in panels[0].iter(f"{SVG}text")]
    assert {"heatkv", "random", "<h2o>", "another seed"} <= set(texts)


def test_labels_keep_their_order_and_their_distance() -> None:
    wanted = {f"policy {i}": 300.0 for i in range(12)} | {"top": 10.0}
    placed = labels(wanted, gap=12.0)
    heights = sorted(placed.values())
    assert placed["top"] == min(heights)
    assert all(b - a >= 12.0 - 1e-9 for a, b in pairwise(heights))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"model": "x", "rows": []}', '{"rows": [{"policy": "a", "psnr": "x"}]}']
)
def test_another_file_ends_with_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "c.json", tmp_path / "f.svg"
    path.write_text(text)
    assert main([str(path), "--out", str(out)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not out.exists()


def test_the_figure_of_the_readme_is_the_bundled_comparisons(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    files = sorted((root / "assets" / "models").glob("*/comparison.json"))
    assert main([*map(str, files), "--out", str(tmp_path / "f.svg")]) == 0
    made = (tmp_path / "f.svg").read_text()
    assert made == (root / "assets" / "figures" / "results.svg").read_text(), (
        "python -m heatkv.study.figure assets/models/*/comparison.json --out assets/figures/results.svg"
    )
    assert all(json.loads(file.read_text())["model"] in made for file in files)
