"""The head card: what kind of head it is, in plain words and with the evidence, and what it reads in an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.inputs import capital
from app.jobs import Probe
from app.pictures import data_url
from app.workbench import Workbench
from heatkv.scales import ScaleSchedule
from heatkv.views.explore import TYPE_EXCESS, TYPES, HeadProfiles, attention_view
from heatkv.views.lines import WIDE_TYPES, line_view, wide_types


@dataclass(frozen=True)
class Kinds:
    """The types of heads as people read about them: ``names`` complete "this head ...", ``words`` say what that means.

    ``groups`` are what the evidence of a type is given for, in the order of `heatkv.views.explore.GROUPS`.
    """

    names: Mapping[str, str]
    words: Mapping[str, str]
    groups: tuple[str, ...]

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(self.names)

    def of(self, profiles: HeadProfiles) -> npt.NDArray[np.intp]:
        """Every head's type as an index into `types`, ``(layers, heads)``."""
        return profiles.type_LH if self.types == TYPES else wide_types(profiles)


SCALES = Kinds(
    {
        "itself": "looks at its own scale",
        "previous": "looks at the previous scale",
        "between": "looks at earlier scales",
        "sinks": "looks at the coarse scales",
        "spread": "spreads its attention",
    },
    {
        "itself": "It mostly attends to tokens of the scale that is being drawn. That makes earlier scales candidates "
        "to drop; attention alone does not say whether the picture misses them.",
        "previous": "It reads the scale drawn just before, as if refining it. Older ones get little of its attention.",
        "between": "It reaches back to scales well before the last one, so a ranking by attention drops those late.",
        "sinks": "It reads the first, coarsest scales. Most policies keep those in every head.",
        "spread": "It favours no group of scales: its attention lies about as it would if all tokens counted the same.",
    },
    ("its own scale", "the previous scale", "scales in between", "the first scales, the sinks"),
)
LINES = Kinds(
    {
        "local": "looks near",
        "far": "looks far up",
        "condition": "looks at the prompt",
        "spread": "spreads its attention",
    },
    {
        "local": "It reads the line that is being drawn and the one above. That makes lines further up candidates to "
        "drop; attention alone does not say whether the picture misses them.",
        "far": "It reaches back over more than a line, so a ranking by attention drops what it reads late.",
        "condition": "It reads the words of the prompt, or the class. Most policies keep those in every head.",
        "spread": "It favours nothing: its attention lies about as it would if all tokens counted the same.",
    },
    ("its own line", "the line above", "lines further up", "the condition: the prompt"),
)
assert SCALES.types == TYPES and LINES.types == WIDE_TYPES


def kinds_of(scales: ScaleSchedule) -> Kinds:
    """The types of heads of a model that draws so."""
    return LINES if scales.by_line else SCALES


def head_card(
    bench: Workbench, profiles: HeadProfiles | None, label: str, head: tuple[int, int], probe: Probe | None = None,
    target: Any = None,
) -> dict[str, Any]:  # fmt: skip
    """The value of the ``headcard`` part; without a probe it says that the maps are still to come.

    ``target`` is the scale or line whose queries are shown: the last or, of lines, the middle one unless it is another.
    """
    layer, number = head
    card: dict[str, Any] = {
        "layer": layer,
        "head": number,
        "title": f"Layer {layer + 1}, head {number + 1}",
        "text": "Head orders alone do not tell where a head looks; its attention maps do, for one image.",
        "source": f"From: {label}.",
        "evidence": [],
        "message": ""
        if probe
        else "What it reads in this picture: it is drawn again to see that, with the full cache. A moment …",
        "failed": False,
    }
    if profiles is not None:
        kinds = kinds_of(bench.geometry.scales)
        kind = kinds.types[kinds.of(profiles)[layer, number]]
        card["kind"] = kinds.names[kind]
        card["text"] = kinds.words[kind]
        card["evidence"] = [
            {"name": name, "share": float(profiles.share_LHG[(*head, g)]), "even": float(profiles.even_G[g])}
            for g, name in enumerate(kinds.groups)
        ]
        card["source"] = (
            f"Share of its attention, mean over {bench.counted(profiles.prompts)} ({label}). The tick is what even "
            f"attention would give; {100 * TYPE_EXCESS:.0f} points above it make a type."
        )
    if probe is not None:
        card |= _reading(bench, head, probe, target)
    return card


def _reading(bench: Workbench, head: tuple[int, int], probe: Probe, target: Any) -> dict[str, Any]:
    """What the head reads in the probed picture: a map a scale, or one over the picture where lines are drawn."""
    scales = bench.geometry.scales
    usual = (
        scales.drawn[len(scales.drawn) // 2] if scales.by_line else scales.drawn[-1]
    )  # above a line there is to read
    at = target if type(target) is int and target in scales.drawn else usual
    attention = probe.attention[head][at]
    view = line_view(attention, scales, at) if scales.by_line else attention_view(attention, scales, target=at)
    return {
        "target": at,
        "targets": list(scales.drawn),
        "image": data_url(probe.pixels),
        "view": view.to_json(),
        "drawing": scales.drawing,
        "about": f"“{probe.prompt}”, seed {probe.seed}, full cache",
        "message": capital(probe.note or ""),
    }


def failed(card: dict[str, Any], message: str) -> dict[str, Any]:
    return {**card, "message": message, "failed": True}
