"""The heads as HACK and HeadKV see them: two kinds each, in plain words."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from heatkv.policies.hack import contextual_heads
from heatkv.policies.typed import LOCAL_ATTENTION
from heatkv.scores import HeadScores

POLICIES = ("hack", "headkv")


def hack_types(scores: HeadScores, label: str) -> dict[str, Any]:
    """The value of the ``headtypes`` part for HACK, from a calibration."""
    return _types(
        "HACK's head types",
        "All queries of a contextual head read much the same tokens, so a few tokens serve it. The queries of a "
        "structural head each read a place of their own, so it needs more.",
        "contextual: fewer tokens",
        "structural: more tokens",
        contextual_heads(scores),
        f"The same for every image; from: {label}.",
    )


def headkv_types(local_LH: npt.NDArray[np.bool_], scale: int, prompt: str, seed: int) -> dict[str, Any]:
    """The value of the ``headtypes`` part for HeadKV, from one image."""
    return _types(
        "HeadKV's head types in this image",
        f"A local head spends {100 * LOCAL_ATTENTION:.0f} % of its attention on the scale being drawn and the one "
        "before, and keeps those. A global head looks further back, and keeps a sample of every scale.",
        "local: newest scales",
        "global: a sample of all",
        local_LH,
        f"Found while “{prompt}”, seed {seed}, was drawn, at scale {scale + 1}; another image can differ.",
    )


def message(text: str) -> dict[str, Any]:
    """The part with nothing but a message."""
    return {"title": "Head types", "text": text, "first": "", "second": "", "heads": [], "source": ""}


def _types(
    title: str, text: str, first: str, second: str, first_LH: npt.NDArray[np.bool_], source: str
) -> dict[str, Any]:
    return {
        "title": title, "text": text, "first": first, "second": second, "heads": first_LH.tolist(), "source": source,
    }  # fmt: skip
