"""Published scale lists of Infinity: four sizes for every aspect ratio.

The smaller sizes are the beginning of the largest list, and rotary positions are always normalised to
the largest list's last scale.
"""

from __future__ import annotations

import math
from contextlib import suppress

from heatkv.files import shown
from heatkv.scales import ScaleSchedule

# Scales of each size, by its approximate number of pixels.
SIZES = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}

_TALL = {
    "1.25": "1x1 2x2 3x3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56",
    "1.333": "1x1 2x2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54",
    "1.5": "1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52",
    "1.75": "1x1 2x2 3x3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48",
    "2.0": "1x1 2x2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45",
    "2.5": "1x1 2x2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40",
    "3.0": "1x1 2x2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37",
}
_WIDE = {"0.8": "1.25", "0.75": "1.333", "0.666": "1.5", "0.571": "1.75", "0.5": "2.0", "0.4": "2.5", "0.333": "3.0"}


def _parse(text: str) -> ScaleSchedule:
    return ScaleSchedule(tuple((int(h), int(w)) for h, w in (size.split("x") for size in text.split())))


def _turned(scales: ScaleSchedule) -> ScaleSchedule:
    return ScaleSchedule(tuple((w, h) for h, w in scales))


# Height / width -> the list of size 1M.
FULL: dict[str, ScaleSchedule] = {
    "1.0": ScaleSchedule.square((1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)),
    **{ratio: _parse(text) for ratio, text in _TALL.items()},
    **{ratio: _turned(_parse(_TALL[tall])) for ratio, tall in _WIDE.items()},
}


def find_ratio(ratio: str) -> str:
    """The published aspect ratio (height / width) nearest to another: ``1.5`` for ``3:2``, ``1.75`` for ``16:9``.

    Raises ``ValueError`` for what is no ratio, or too far from all.
    """
    with suppress(ValueError, ZeroDivisionError):
        height, _, width = ratio.partition(":")
        value = float(height) / float(width or 1)
        if 0.3 <= value <= 3.4:
            return min(FULL, key=lambda known: abs(math.log(float(known) / value)))
    raise ValueError(
        f"aspect ratio {shown(ratio)} (height / width) is near none of {', '.join(sorted(FULL, key=float))}"
    )


def is_published(ratio: str) -> bool:
    """Whether a ratio is one of the published ones, and not only near one."""
    height, _, width = ratio.partition(":")
    return abs(float(find_ratio(ratio)) - float(height) / float(width or 1)) < 0.005


def published_scales(size: str = "1M", ratio: str = "1.0") -> ScaleSchedule:
    """Scales of a published size and aspect ratio. Raises ``ValueError`` for others."""
    if size not in SIZES:
        raise ValueError(f"size {shown(size)} is not one of {', '.join(SIZES)}")
    return ScaleSchedule(FULL[find_ratio(ratio)].sizes[: SIZES[size]])


def rope_grid(ratio: str = "1.0") -> tuple[int, int]:
    """The grid that rotary positions are normalised to, whatever the size."""
    scales = FULL[find_ratio(ratio)]
    return scales[len(scales) - 1]
