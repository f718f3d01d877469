"""The figure of what calibration prompts bring: how far images move, by how many prompts of which kind were read.

``python -m heatkv.study.calibrations_figure CALIBRATIONS.json [...] --out figure.svg`` draws one panel a model.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from heatkv.files import write_atomic
from heatkv.study.figure import BOTTOM, HEIGHT, LEFT, LETTER, TOP, WIDTH, document, labels

# Of the kinds, in the order of their files: told apart without their colours too.
STYLES = (("#1d4ed8", "", 3.2), ("#c2410c", "6 3", 2.2), ("#6b7280", "2 3", 1.6))
UNITS = {"psnr": "dB", "forced_kl": "nats"}


def level(measure: str, value: float) -> float:
    """Where a value lies on its axis: decibels as they are, nats by their logarithm."""
    return value if measure == "psnr" else math.log10(max(value, 1e-6))


def ticks(measure: str, low: float, high: float) -> list[tuple[float, str]]:
    """Levels to mark between two, and their words."""
    if measure == "psnr":
        step = 2 * max(1, round((high - low) / 16))
        return [(at, f"{at}") for at in range(math.ceil(low / step) * step, math.floor(high) + 1, step)]
    marks = [factor * 10.0**power for power in range(-6, 2) for factor in (1, 2, 5)]
    return [(level(measure, mark), f"{mark:g}") for mark in marks if low <= level(measure, mark) <= high]


def panel(study: Mapping[str, Any], left: float) -> str:
    """One model as a group of SVG elements, ``left`` pixels from the edge. Raises ``ValueError``."""
    try:
        measure, results = str(study["measure"]), study["results"]
        sizes = sorted({int(each["prompts"]) for each in results})
        kinds = list(dict.fromkeys(str(each["kind"]) for each in results))
        series: dict[str, dict[str, list[tuple[int, float]]]] = {}
        for each in results:
            for policy, budget, value in each["values"]:
                if value is not None:
                    name = f"{policy} at {budget:g}"
                    points = series.setdefault(name, {}).setdefault(str(each["kind"]), [])
                    points.append((int(each["prompts"]), level(measure, float(value))))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"these are no calibrations, as `heatkv.cli.calibrations` writes them: {error!r}") from None
    if not series or measure not in UNITS or len(kinds) > len(STYLES):
        raise ValueError(f"the calibrations have nothing to draw, or more than {len(STYLES)} kinds")
    end = WIDTH - 24 - max(map(len, series)) * LETTER
    levels = [at for by_kind in series.values() for points in by_kind.values() for _, at in points]
    margin = 0.06 * (max(levels) - min(levels)) or 1.0
    low, high = min(levels) - margin, max(levels) + margin

    def x(size: float) -> float:
        if len(sizes) == 1:
            return (LEFT + end) / 2
        share = math.log(size / sizes[0]) / math.log(sizes[-1] / sizes[0])
        return LEFT + 14 + share * (end - LEFT - 28)

    def y(at: float) -> float:
        return TOP + (high - at) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text class="title" x="{LEFT}" y="16">{escape(str(study["model"]))}</text>']
    for at, words in ticks(measure, low, high):
        parts.append(f'<path class="grid" d="M{LEFT} {y(at):.1f}H{end:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(at) + 4:.1f}" text-anchor="end">{words}</text>')
    for size in sizes:
        parts.append(f'<path class="grid" d="M{x(size):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x(size):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{size}</text>')
    for by_kind in series.values():
        parts += [curve(points, STYLES[kinds.index(kind)], x, y) for kind, points in by_kind.items()]
    ends = {name: y(means(by_kind[next(iter(by_kind))])[-1][1]) for name, by_kind in series.items()}
    parts += [f'<text x="{end + 8:.1f}" y="{at + 4:.1f}">{escape(name)}</text>' for name, at in labels(ends).items()]
    parts.append(f'<text class="quiet" x="{LEFT - 6}" y="{TOP - 4}" text-anchor="end">{UNITS[measure]}</text>')
    parts.append(f'<text class="quiet" x="{LEFT}" y="{HEIGHT - 8}">calibration prompts</text>')
    along = LEFT + 130.0
    for kind, (colour, dashes, _) in zip(kinds, STYLES, strict=False):
        parts.append(stroke(f"M{along:.0f} {HEIGHT - 12}h22", colour, dashes))
        parts.append(f'<text x="{along + 27:.0f}" y="{HEIGHT - 8}" style="fill:{colour}">{escape(kind)}</text>')
        along += 50 + len(kind) * LETTER
    return f'<g transform="translate({left:g} 0)">{"".join(parts)}</g>'


def means(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The mean level of every size, from few prompts to many."""
    sizes = sorted({size for size, _ in points})
    levels = [[at for other, at in points if other == size] for size in sizes]
    return [(size, sum(found) / len(found)) for size, found in zip(sizes, levels, strict=True)]


def curve(
    points: Sequence[tuple[int, float]], style: tuple[str, str, float],
    x: Callable[[float], float], y: Callable[[float], float],
) -> str:  # fmt: skip
    """A line through the means and a dot for every repeat."""
    colour, dashes, size = style
    path = "L".join(f"{x(count):.1f} {y(at):.1f}" for count, at in means(points))
    dots = (
        f'<circle cx="{x(count):.1f}" cy="{y(at):.1f}" r="{size}" fill="{colour}" fill-opacity=".55"/>'
        for count, at in points
    )
    return stroke(f"M{path}", colour, dashes) + "".join(dots)


def stroke(path: str, colour: str, dashes: str) -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dashed}/>'


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m heatkv.study.calibrations_figure", description="What calibration prompts bring, as SVG."
    )
    parser.add_argument("studies", nargs="+", type=Path, help="numbers that `heatkv.cli.calibrations` wrote")
    parser.add_argument("--out", type=Path, required=True, help="SVG file to write")
    options = parser.parse_args(arguments)
    try:
        found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(options.studies)]
        panels = [panel(study, WIDTH * i) for i, study in enumerate(found)]
        write_atomic(options.out, document("How far images move, by calibration prompts", panels).encode())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
