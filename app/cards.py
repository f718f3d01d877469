"""The head card: what kind of head it is, in plain words and with the evidence, and what it reads in an image."""

from __future__ import annotations

from typing import Any

from app.jobs import Probe
from app.pictures import data_url
from app.workbench import Workbench
from heatkv.views.explore import GROUPS, TYPE_EXCESS, TYPES, HeadProfiles, attention_view

NAMES = {
    "itself": "looks at its own scale",
    "previous": "looks at the previous scale",
    "between": "looks at earlier scales",
    "sinks": "looks at the coarse scales",
    "spread": "spreads its attention",
}
WORDS = {
    "itself": "It mostly attends to tokens of the scale that is being drawn. That makes its earlier scales candidates "
    "to drop; attention alone does not say whether the picture misses them.",
    "previous": "It reads the scale drawn just before, as if refining it. Older scales get little of its attention.",
    "between": "It reaches back to scales well before the last one, so a ranking by attention drops those late.",
    "sinks": "It reads the first, coarsest scales. Most policies keep those in every head.",
    "spread": "It favours no group of scales: its attention lies about as it would if all tokens counted the same.",
}


def head_card(
    bench: Workbench, profiles: HeadProfiles | None, label: str, head: tuple[int, int], probe: Probe | None = None,
    target: Any = None,
) -> dict[str, Any]:  # fmt: skip
    """The value of the ``headcard`` part; without a probe it says that the maps are still to come.

    ``target`` is the scale whose queries are shown, the last one unless it is a number of another.
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
        else "What it reads in this picture comes once the picture is drawn with the full cache.",
        "failed": False,
    }
    if profiles is not None:
        kind = TYPES[profiles.type_LH[layer, number]]
        card["title"] += f": {NAMES[kind]}"
        card["text"] = WORDS[kind]
        card["evidence"] = _evidence(bench, profiles, head)
        prompts = "1 prompt" if profiles.prompts == 1 else f"{profiles.prompts} prompts"
        card["source"] = (
            f"Share of its attention, mean over {prompts} ({label}). The tick is what even attention would give; "
            f"{100 * TYPE_EXCESS:.0f} points above it make a type."
        )
    if probe is not None:
        scales = bench.geometry.scales
        targets = len(probe.attention[head])
        at = target if type(target) is int and 0 <= target < targets else targets - 1
        view = attention_view(probe.attention[head][at], scales, target=at)
        card |= {
            "target": at,
            "targets": targets,
            "image": data_url(probe.pixels),
            "view": view.to_json(),
            "about": f"“{probe.prompt}”, seed {probe.seed}, full cache",
            "message": (probe.note or "").capitalize(),
        }
    return card


def failed(card: dict[str, Any], message: str) -> dict[str, Any]:
    return {**card, "message": message, "failed": True}


def _evidence(bench: Workbench, profiles: HeadProfiles, head: tuple[int, int]) -> list[dict[str, Any]]:
    names = {
        "itself": "its own scale",
        "previous": "the previous scale",
        "between": "scales in between",
        "sinks": f"scales 1 to {bench.sink_scales}, the sinks",
    }
    return [
        {"name": names[group], "share": float(profiles.share_LHG[(*head, g)]), "even": float(profiles.even_G[g])}
        for g, group in enumerate(GROUPS)
    ]
