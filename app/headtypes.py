"""The heads as HACK and HeadKV see them: two kinds each, in plain words."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from heatkv.policies.hack import contextual_heads
from heatkv.policies.typed import LOCAL_ATTENTION, WINDOW_LINES
from heatkv.scales import ScaleSchedule
from heatkv.scores import HeadScores
from heatkv.views.explore import HeadProfiles
from heatkv.views.lines import types_of_image

POLICIES = ("hack", "headkv")
NEAR = {
    "scale": f"A local head spends {100 * LOCAL_ATTENTION:.0f} % of its attention on the scale being drawn and the one "
    "before, and keeps those. A global head looks further back, and keeps a sample of every scale.",
    "line": f"A local head spends {100 * LOCAL_ATTENTION:.0f} % of its attention within the last {WINDOW_LINES} lines' "
    "worth of tokens, and keeps those. A global head looks further back, and keeps a sample of all that was drawn.",
}


def hack_types(scores: HeadScores, label: str) -> dict[str, Any]:
    """The value of the ``headtypes`` part for HACK, from a calibration."""
    return _types(
        "HACK's head types",
        "All queries of a contextual head read much the same tokens, so a few tokens serve it. The queries of a "
        "structural head each read a place of their own, so it needs more.",
        "contextual: fewer tokens",
        "structural: more tokens",
        [("", contextual_heads(scores))],
        f"The same for every image; from: {label}.",
    )


def headkv_types(
    local_LH: npt.NDArray[np.bool_], when: str, about: str, scales: ScaleSchedule, profiles: HeadProfiles | None,
    label: str,
) -> dict[str, Any]:  # fmt: skip
    """The value of the ``headtypes`` part for HeadKV, from the image ``about``; beside it what a calibration says."""
    grids = [("In this image, by HeadKV", local_LH)]
    source = f"Found while {about} was drawn, {when}; another image can differ."
    if profiles is not None:
        both = types_of_image(local_LH, profiles)
        grids += [("On average, by calibration", both.calibrated_LH)]
        source += (
            f" By calibration ({label}) a head is local if it favours what is nearest. Both agree on "
            f"{both.agreement:.0%} of the heads."
        )
    return _types(
        "HeadKV's head types", NEAR[scales.word], "local: what is nearest", "global: a sample of all", grids, source
    )


def message(text: str) -> dict[str, Any]:
    """The part with nothing but a message."""
    return _types("Head types", text, "", "", [], "")


def _types(
    title: str, text: str, first: str, second: str, grids: list[tuple[str, npt.NDArray[np.bool_]]], source: str
) -> dict[str, Any]:
    return {
        "title": title, "text": text, "first": first, "second": second, "source": source,
        "grids": [{"name": name, "heads": first_LH.tolist()} for name, first_LH in grids],
    }  # fmt: skip
