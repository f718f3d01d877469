"""The Methods tab's curves and table, from the plain data of ``python -m heatkv compare``.

The file may come from anywhere and be of an older version: rows that are not whole are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from app.report import REFERENCE_NAMES
from heatkv.formats import FORMATS
from heatkv.policies import REGISTRY
from heatkv.policies.base import Policy
from heatkv.scales import ScaleSchedule
from heatkv.study.metrics import IDENTICAL_PSNR
from heatkv.study.statistics import pareto


@dataclass(frozen=True)
class Metric:
    """What a comparison measures: its key in the file, what people read, and whether ``less`` of it is closer."""

    key: str
    name: str
    axis: str
    less: bool = False


FORCED = (
    Metric("forced_kl", "KL on given tokens", "KL on given tokens, nats: 0 is the same guess", less=True),
    Metric("forced_agreement", "Same guess on given tokens", "share of tokens that are guessed alike"),
)
CLOSE = (
    Metric("psnr", "PSNR", "PSNR, dB"),
    Metric("psnr_foreground", "PSNR of the foreground", "PSNR of the foreground, dB"),
    Metric("ssim", "SSIM", "SSIM"),
)
FORCED_WORDS = (
    "**Read KL first.** Drawn token by token, one other token changes all that follows, and a picture in which none "
    f"did is the same to the last bit, which counts as {IDENTICAL_PSNR:g} dB: the mean PSNR tells how many those were "
    "more than how near the others came. So every policy was also handed the *same* tokens, the full cache's, and "
    "asked what comes next. KL says how far its guess is from the full cache's (in nats; 0 is the same guess, less is "
    "closer), *same guess* how often both find the same token likeliest."
)
PROVENANCE = {
    "paper": "as in the paper",
    "re-implementation": "re-implementation, open constants are ours",
    "adaptation": "made for another kind of model, adapted",
    "reference": "a yardstick",
    "ours": "ours",
}
# Okabe and Ito's colours, told apart by colour-blind eyes; the marker differs from policy to policy as well.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a")
MARKERS = (
    "circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon", "hexagon", "bowtie", "hourglass",
)  # fmt: skip


def metrics(comparison: Mapping[str, Any], scales: ScaleSchedule) -> dict[str, Metric]:
    """The metrics that a comparison has, by name, the one to read first in front."""
    agree = Metric("bit_agreement", f"{'Tokens' if scales.by_line else 'Bits'} that agree", "share")
    return {metric.name: metric for metric in (*FORCED, *CLOSE, agree) if rows_of(comparison, metric.key)}


def rows_of(comparison: Mapping[str, Any], metric: str) -> list[Mapping[str, Any]]:
    """The rows that say what this metric came to, and at which bytes."""
    rows = comparison.get("rows")
    needed = ("budget", metric, "kv_bytes_peak")
    return [
        row
        for row in (rows if isinstance(rows, Sequence) else ())
        if isinstance(row, Mapping) and isinstance(row.get("policy"), str) and all(_number(row.get(k)) for k in needed)
    ]


def curves(comparison: Mapping[str, Any], metric: Metric) -> Any:
    """Quality against bytes as a Plotly figure: a line a policy, what nothing beats, and the references."""
    import plotly.graph_objects as go

    rows, key = rows_of(comparison, metric.key), metric.key
    figure = go.Figure()
    front = pareto(rows, key, less=metric.less)
    figure.add_scatter(
        x=[row["kv_bytes_peak"] / 2**20 for row in front], y=[row[key] for row in front], name="best at its bytes",
        mode="lines", line={"color": "rgba(128,128,128,0.35)", "width": 11}, hoverinfo="skip",
    )  # fmt: skip
    for i, policy in enumerate(dict.fromkeys(row["policy"] for row in rows)):
        own = sorted((row for row in rows if row["policy"] == policy), key=lambda row: row["kv_bytes_peak"])
        figure.add_scatter(
            x=[row["kv_bytes_peak"] / 2**20 for row in own],
            y=[row[key] for row in own],
            name=title(policy),
            mode="lines+markers",
            marker={"symbol": MARKERS[i % len(MARKERS)], "size": 9},
            line={"color": COLOURS[i % len(COLOURS)], "dash": "solid" if i < len(COLOURS) else "dash"},
            text=[f"budget {row['budget']:g}" for row in own],
            hovertemplate=f"%{{y:{'.5f' if metric.less else '.3f'}}} at %{{x:.2f}} MiB, %{{text}}",
        )
    for which, name in REFERENCE_NAMES.items():
        found = (comparison.get("references") or {}).get(which)
        if isinstance(found, Mapping) and _number(found.get(key)):
            side = "bottom right" if which == "sinks_only" else "top right"  # close to another seed, often
            figure.add_hline(
                y=found[key], line={"dash": "dot", "width": 1.5, "color": "#8a8a8a"},
                annotation={"text": name, "font": {"size": 11}, "xanchor": "right"}, annotation_position=side,
            )  # fmt: skip
            if metric.less and found[key] > 0:
                # On a logarithmic axis Plotly takes the logarithm for words, not for lines.
                figure.layout.annotations[-1].y = math.log10(found[key])
    figure.update_layout(
        height=520, margin={"l": 56, "r": 12, "t": 16, "b": 48}, hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font={"family": "system-ui, sans-serif"},
        # At the bottom of the whole figure, which makes room for it: on a phone it takes a line a policy.
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
        xaxis={"title": "peak KV cache of one image, MiB", "gridcolor": "rgba(128,128,128,0.25)", **_log_axis(
            [row["kv_bytes_peak"] / 2**20 for row in rows], (1, 2, 5))},
        yaxis={"title": metric.axis, "gridcolor": "rgba(128,128,128,0.25)", "zeroline": False,
               **(_log_axis([row[key] for row in rows], (1,)) if metric.less else {})},
    )  # fmt: skip
    return figure


def _log_axis(values: Sequence[float], steps: Sequence[int]) -> dict[str, Any]:
    """A logarithmic axis around ``values``, marked in plain numbers at these steps of every power of ten."""
    found = [math.log10(value) for value in values if value > 0] or [0.0]
    ends = min(found) - 0.1, max(found) + 0.1
    powers = range(math.floor(ends[0]), math.ceil(ends[1]) + 1)
    ticks = [float(f"{step}e{power}") for power in powers for step in steps]
    return {
        "type": "log",
        "range": ends,
        "tickvals": ticks,
        "ticktext": [f"{tick:.9f}".rstrip("0").rstrip(".") for tick in ticks],
    }


def table(comparison: Mapping[str, Any], scales: ScaleSchedule) -> dict[str, Any]:
    """The value of the ``methods`` part: the rows of every budget, the best policy first."""
    rows = rows_of(comparison, "psnr")
    full = comparison.get("kv_bytes_full")
    forced = bool(rows_of(comparison, FORCED[0].key))
    groups = []
    for budget in sorted({row["budget"] for row in rows}, reverse=True):
        of_budget = sorted((row for row in rows if row["budget"] == budget), key=_closest_first)
        groups.append({"budget": f"{100 * budget:g} %", "rows": [_cells(row, full, forced) for row in of_budget]})
    references = comparison.get("references") or {}
    known = [
        [name, *(_forced(references[key]) if forced else []), *_metrics(references[key]), ""]
        for key, name in REFERENCE_NAMES.items()
        if isinstance(references.get(key), Mapping) and _number(references[key].get("psnr"))
    ]
    counts = [comparison.get("prompts"), comparison.get("seeds")]
    seeds = "1 seed" if counts[1] == 1 else f"{counts[1]} seeds"
    what = f"{counts[0]} prompts × {seeds}, none used to calibrate" if all(map(_number, counts)) else ""
    base = title(str(comparison.get("baseline") or "heatkv"))
    unit = "tokens" if scales.by_line else "bits"
    return {
        "groups": groups,
        "references": known,
        "what": "; ".join(text for text in (what, str(comparison.get("machine", ""))[:200]) if text),
        "columns": [
            "",
            *(["KL, nats (95 % CI)", "same guess"] if forced else []),
            "PSNR (95 % CI)",
            f"minus {base} (95 % CI)",
            "foreground",
            "SSIM",
            unit,
            "peak KV cache",
        ],
        "policies": [[p.title, *about(p, scales)] for p in REGISTRY.values()],
    }


def about(policy: Policy, scales: ScaleSchedule) -> tuple[str, str]:
    """What a policy keeps, and where it is from, for a model that draws so."""
    return policy.summary_for(scales), PROVENANCE[policy.provenance_for(scales)]


def title(policy: str) -> str:
    """What people call a policy of a comparison, with what was asked of it: "HeatKV (no sinks)"."""
    name, _, asked = policy.partition(":")
    if name not in REGISTRY:
        return policy[:40]
    words = [_asked(*part.partition("=")[::2]) for part in asked[:80].split(",") if part]
    return REGISTRY[name].title + (f" ({', '.join(words)})" if words else "")


def _asked(key: str, value: str) -> str:
    if key == "sinks":
        return {"0": "no sinks", "1": "1 sink"}.get(value, f"{value} sinks")
    return FORMATS[value].words if key == "storage" and value in FORMATS else f"{key} {value}"[:40]


def _closest_first(row: Mapping[str, Any]) -> tuple[float, float]:
    forced = row.get(FORCED[0].key)
    return (float(forced) if _number(forced) else 0.0, -row["psnr"])


def _forced(row: Mapping[str, Any]) -> list[str]:
    kl, agreement = (row.get(metric.key) for metric in FORCED)
    ci = row.get("ci95")
    span = _interval(ci.get(FORCED[0].key) if isinstance(ci, Mapping) else None, ".5f")
    return [f"{kl:.5f}{span}" if _number(kl) else "", f"{100 * agreement:.1f} %" if _number(agreement) else ""]


def _cells(row: Mapping[str, Any], full: Any, forced: bool) -> list[str]:
    gap = row.get("difference")
    words = ""
    if isinstance(gap, Mapping) and _number(gap.get("psnr")):
        words = f"{gap['psnr']:+.2f}{_interval(gap.get('ci95'), '+.2f')}"
    size = f"{row['kv_bytes_peak'] / 2**20:.2f} MiB"
    if _number(full) and full > 0:
        size += f" ({100 * row['kv_bytes_peak'] / full:.1f} %)"
    return [title(row["policy"]), *(_forced(row) if forced else []), *_metrics(row, words), size]


def _metrics(row: Mapping[str, Any], gap: str = "") -> list[str]:
    ci = row.get("ci95")
    psnr = f"{row['psnr']:.2f}" + _interval(ci.get("psnr") if isinstance(ci, Mapping) else None, ".2f")
    rest = [(key, row.get(key)) for key in ("psnr_foreground", "ssim", "bit_agreement")]
    return [
        psnr,
        gap,
        *("" if not _number(v) else f"{v:.2f}" if key == "psnr_foreground" else f"{v:.3f}" for key, v in rest),
    ]


def _interval(ends: Any, form: str) -> str:
    whole = isinstance(ends, Sequence) and len(ends) == 2 and all(map(_number, ends))
    return f" ({ends[0]:{form}} to {ends[1]:{form}})" if whole else ""


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
