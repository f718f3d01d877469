"""The README's figure and table of results: how far images move from the full cache's, by the share of its bytes.

``python -m heatkv.study.figure COMPARISON.json [...] --out figure.svg`` draws one panel a comparison and prints their
table. Bytes are counted as if the model computed in 16 bits, so that 8-bit cells do not look half as
large in a model of 32.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from heatkv.files import write_atomic
from heatkv.study.tables import REFERENCE_NAMES, summary_table

WIDTH, HEIGHT = 500, 330  # of a panel
LEFT, TOP, BOTTOM = 44, 34, 40  # what its axes take
LETTER = 6.2  # width of a label's, about
COLOURS = {"heatkv+": "#c2410c", "heatkv+16": "#f59e0b", "heatkv": "#1d4ed8", "random": "#6b7280"}
OTHERS = "#b8bfca"
REFERENCES = ("dtype_noise", "other_seed")  # those that are drawn


@dataclass(frozen=True)
class Curve:
    """One policy: points ``(share of the full cache's bytes, PSNR in dB)``, from small to large."""

    name: str
    points: tuple[tuple[float, float], ...]

    @property
    def policy(self) -> str:
        """Its name without what was asked of it (``heatkv:sinks=1``)."""
        return self.name.partition(":")[0]


def curves(comparison: Mapping[str, Any]) -> list[Curve]:
    """The policies of a comparison (`heatkv.study.compare`), the most prominent last. Raises ``ValueError``."""
    found: dict[str, list[tuple[float, float]]] = {}
    try:
        for row in comparison["rows"]:
            if "psnr" in row:
                found.setdefault(row["policy"], []).append((float(row["share_16bit"]), float(row["psnr"])))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"this is no comparison, as `heatkv compare` writes it: {error!r}") from None
    if not found:
        raise ValueError("the comparison has no policy with a PSNR to draw")
    ranked = sorted(found, key=lambda name: -list(COLOURS).index(name) if name in COLOURS else -len(COLOURS))
    return [Curve(name, tuple(sorted(found[name]))) for name in ranked]


def panel(comparison: Mapping[str, Any], left: float) -> str:
    """One comparison as a group of SVG elements, ``left`` pixels from the edge."""
    lines = curves(comparison)
    references = {
        REFERENCE_NAMES[key]: float(comparison["references"][key]["psnr"])
        for key in REFERENCES
        if key in comparison.get("references", {})
    }
    end = WIDTH - 24 - max(12, *(len(line.name) for line in lines)) * LETTER
    shares = [share for line in lines for share, _ in line.points]
    levels = [*references.values(), *(psnr for line in lines for _, psnr in line.points)]
    low_x, high_x = math.log(min(shares)), math.log(max(*shares, 1.001 * min(shares)))
    low_y, high_y = 2 * math.floor(min(levels) / 2), 2 * math.ceil(max(levels) / 2 + 1e-9)

    def x(share: float) -> float:
        return LEFT + (math.log(share) - low_x) / (high_x - low_x) * (end - LEFT)

    def y(psnr: float) -> float:
        return TOP + (high_y - psnr) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text class="title" x="{LEFT}" y="16">{escape(str(comparison["model"]))}</text>']
    for level in range(low_y, high_y + 1, max(2, 2 * round((high_y - low_y) / 12))):
        parts.append(f'<path class="grid" d="M{LEFT} {y(level):.1f}H{end}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(level) + 4:.1f}" text-anchor="end">{level}</text>')
    for share in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0):
        if low_x - 1e-9 <= math.log(share) <= high_x + 1e-9:
            parts.append(f'<path class="grid" d="M{x(share):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
            parts.append(f'<text x="{x(share):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{share:.0%}</text>')
    for name, psnr in references.items():
        parts.append(f'<path class="reference" d="M{LEFT} {y(psnr):.1f}H{end}"/>')
        parts.append(f'<text class="quiet" x="{LEFT + 4}" y="{y(psnr) - 4:.1f}">{escape(name)}</text>')
    for line in lines:
        colour, width = COLOURS.get(line.policy, OTHERS), 2.4 if line.name in COLOURS else 1.2
        dashes = ' stroke-dasharray="6 3"' if line.name != line.policy else ""
        path = "L".join(f"{x(share):.1f} {y(psnr):.1f}" for share, psnr in line.points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dashes}/>')
        parts += [f'<circle cx="{x(s):.1f}" cy="{y(p):.1f}" r="{width:.1f}" fill="{colour}"/>' for s, p in line.points]
    for name, at in labels({line.name: y(line.points[-1][1]) for line in lines}).items():
        colour = COLOURS.get(name.partition(":")[0], "#6b7280")
        parts.append(f'<text x="{end + 8}" y="{at + 4:.1f}" style="fill:{colour}">{escape(name)}</text>')
    parts.append(f'<text class="quiet" x="{LEFT}" y="{HEIGHT - 8}">share of the full cache\'s bytes, in 16 bits</text>')
    parts.append(f'<text class="quiet" x="{LEFT - 6}" y="{TOP - 4}" text-anchor="end">dB</text>')
    return f'<g transform="translate({left:g} 0)">{"".join(parts)}</g>'


def labels(wanted: Mapping[str, float], gap: float = 12.5) -> dict[str, float]:
    """Heights for labels, at least ``gap`` apart and near the ``wanted`` ones, top to bottom."""
    placed: dict[str, float] = {}
    floor = -math.inf
    for name, at in sorted(wanted.items(), key=lambda item: item[1]):
        floor = placed[name] = max(at, floor + gap)
    over = max(0.0, floor - (HEIGHT - 6))
    ceiling = math.inf
    for name in reversed(placed):
        ceiling = placed[name] = min(placed[name] if over == 0 else placed[name] - over / 2, ceiling - gap, HEIGHT - 6)
    return placed


def figure(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """All comparisons side by side, as the text of an SVG file."""
    panels = [panel(each, WIDTH * i) for i, each in enumerate(comparisons)]
    return document("PSNR against the share of the cache that is kept", panels)


def document(label: str, panels: Sequence[str]) -> str:
    """An SVG file of panels, each `WIDTH` from the one before."""
    width = WIDTH * len(panels)
    style = (
        "text{font:11px system-ui,sans-serif;fill:#374151}.title{font-weight:600;font-size:13px}"
        ".quiet{fill:#6b7280}.grid{stroke:#eceff3}.reference{stroke:#9ca3af;stroke-dasharray:4 4}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}" '
        f'role="img" aria-label="{label}">'
        f'<style>{style}</style><rect width="{width}" height="{HEIGHT}" rx="8" fill="#fff"/>{"".join(panels)}</svg>\n'
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m heatkv.study.figure", description="PSNR against bytes as SVG, PSNR by budget as a table."
    )
    parser.add_argument("comparisons", nargs="+", type=Path, help="results of `heatkv compare --out`")
    parser.add_argument("--out", type=Path, required=True, help="SVG file to write")
    options = parser.parse_args(arguments)
    try:
        found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(options.comparisons)]
        write_atomic(options.out, figure(found).encode())
        print(summary_table(found))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
