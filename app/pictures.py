"""Pixels as files and addresses: lossless PNG, with the facts of the run in its text."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

Pixels = npt.NDArray[np.uint8]
# Previews of single scales are sent at most this large; the final images always whole.
PREVIEW_SIDE = 256
_HEAT = np.array([[0, 0, 0], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]], float)


def png(pixels: Pixels, facts: Mapping[str, str] | None = None) -> bytes:
    """Encode ``pixels`` (grey or RGB); ``facts`` become text chunks, in any script."""
    info = PngInfo()
    for key, value in (facts or {}).items():
        info.add_itxt(key, value)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def data_url(pixels: Pixels, *, preview: bool = False) -> str:
    """``pixels`` as an address that a page can show without a request."""
    if preview and max(pixels.shape[:2]) > PREVIEW_SIDE:
        image = Image.fromarray(pixels)
        image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
        pixels = np.asarray(image)
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def heat(grey: Pixels) -> Pixels:
    """A grey map in colours from black over red to light yellow, stretched to its maximum."""
    at = grey.astype(float) / max(1, int(grey.max())) * (len(_HEAT) - 1)
    low = np.minimum(at.astype(int), len(_HEAT) - 2)
    part = (at - low)[..., None]
    colours: Pixels = (_HEAT[low] * (1 - part) + _HEAT[low + 1] * part).round().astype(np.uint8)
    return colours


def file_name(prompt: str, *parts: str) -> str:
    """A harmless file name that still says what it is."""
    words = re.findall(r"[A-Za-z0-9]+", prompt)[:6]
    return "_".join(["-".join(words)[:60] or "image", *(re.sub(r"[^A-Za-z0-9.-]", "-", part) for part in parts)])
