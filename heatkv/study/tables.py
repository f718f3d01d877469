"""A comparison in Markdown: all of it, and one number by policy and budget for several models side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from heatkv.study.compare import BASELINE

REFERENCE_NAMES = {"other_seed": "another seed", "sinks_only": "sinks only", "dtype_noise": "bf16 against fp32"}
MEASURE_WORDS = {
    "psnr": "PSNR in dB against the full cache, more is better",
    "forced_kl": "KL in nats from the full cache's guesses on the same given tokens, less is better",
}


def markdown(result: dict[str, Any]) -> str:
    """A comparison in Markdown: what was compared and where, the table, and bytes at equal PSNR."""
    about = (
        f"{result['model']}: {result['prompts']} prompts x {result['seeds']} seeds, batch {result['batch']}, "
        f"{result['dtype']} on {result.get('machine', result['device'])}; `random` is the mean of "
        f"{result['random_orders']} orders. Calibrated on {result['calibration_prompts']} other prompts. Intervals are "
        f"bootstrapped over prompts; differences pair the same prompts and seeds. The full cache takes "
        f"{result['kv_bytes_full']} bytes an image."
    )
    if any("perceptual" in row for row in result["rows"]):
        about += " Distances of features are measured where the extra `perceptual` is installed."
    return "\n\n".join(filter(None, (about, summary_table([result]), markdown_table(result), iso_table(result))))


def measure_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the rows of a comparison are read by: KL under teacher forcing where it was measured, else PSNR."""
    return "forced_kl" if any("forced_kl" in row for row in rows) else "psnr"


def summary_table(results: Sequence[dict[str, Any]]) -> str:
    """One number by policy and budget, one model beside the other, as Markdown; the best policy first.

    The KL under teacher forcing where it was measured, as a picture drawn token by token is the same or another one;
    else PSNR. What is stored in other than a policy's own bits is left to `markdown_table`.
    """
    numbers: dict[tuple[int, float, str], float] = {}
    measures = [measure_of(r["rows"]) for r in results]
    for i, (result, measure) in enumerate(zip(results, measures, strict=True)):
        rows = (row for row in result["rows"] if measure in row and "storage=" not in row["policy"])
        numbers |= {(i, row["budget"], row["policy"]): row[measure] for row in rows}

    def loss(column: tuple[int, float], name: str) -> float:
        sign = 1 if measures[column[0]] == "forced_kl" else -1
        return sign * numbers.get((*column, name), sign * math.inf)

    columns = sorted({key[:2] for key in numbers}, key=lambda column: (column[0], -column[1]))
    policies = sorted({policy for *_, policy in numbers}, key=lambda name: [loss(column, name) for column in columns])
    heads = [
        f"{results[i]['model']}, {budget:g}" if j == 0 or columns[j - 1][0] != i else f"{budget:g}"
        for j, (i, budget) in enumerate(columns)
    ]
    lines = ["| policy | " + " | ".join(heads) + " |", "|---" * (len(columns) + 1) + "|"]

    def shown(i: int, value: float) -> str:
        if measures[i] == "psnr":
            return f"{value:.1f}"
        digits = 2 if value >= 0.1 else 3 if value >= 0.001 else 4 if value >= 0.0001 else 5
        return f"{value:.{digits}f}"

    for name in policies:
        cells = (f" {shown(c[0], numbers[*c, name])} |" if (*c, name) in numbers else "|" for c in columns)
        lines.append(f"| `{name}` |" + "".join(cells))
    known = [
        f"{result['model']}: {MEASURE_WORDS[measure]} ("
        + ", ".join(
            f"{REFERENCE_NAMES[k]} {shown(i, r[measure])}"
            for k, r in result.get("references", {}).items()
            if measure in r
        )
        + ")"
        for i, (result, measure) in enumerate(zip(results, measures, strict=True))
    ]
    return "\n".join(lines) + f"\n\n{'; '.join(known).replace(' ()', '')}."


def markdown_table(result: dict[str, Any]) -> str:
    """The comparison as a Markdown table: references first, then budget by budget, the best policy first."""
    lines = [
        f"| budget | policy | PSNR (95 % CI) | PSNR minus {result.get('baseline', BASELINE)}'s (95 % CI) | "
        "foreground PSNR | SSIM | bit agreement | peak KV bytes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    forced = any("forced_kl" in row for row in result["rows"])
    if forced:
        lines = [lines[0] + " equal tokens, teacher-forced | KL, teacher-forced (95 % CI) |", lines[1] + "---|---|"]
    perceptual = any("perceptual" in row for row in result["rows"])
    if perceptual:
        lines = [lines[0] + " distance of EfficientNet-Lite0's features (95 % CI) |", lines[1] + "---|"]

    def line(budget: str, label: str, row: dict[str, Any], size: str) -> str:
        low, high = row["ci95"]["psnr"]
        gap = ""
        if found := row.get("difference"):
            gap = f"{found['psnr']:+.2f} ({found['ci95'][0]:+.2f} to {found['ci95'][1]:+.2f})"
        return (
            f"| {budget} | {label} | {row['psnr']:.2f} ({low:.2f} to {high:.2f}) | {gap} | "
            f"{row['psnr_foreground']:.2f} | {row['ssim']:.3f} | {row['bit_agreement']:.3f} | {size} |"
            + (forced_cells(row) if forced else "")
            + (perceptual_cell(row) if perceptual else "")
        )

    for key, row in result["references"].items():
        lines.append(line("", f"*{REFERENCE_NAMES[key]}*", row, ""))
    budget = None
    impossible: dict[tuple[str, str], list[str]] = {}
    for row in sorted(result["rows"], key=lambda r: (-r["budget"], r.get("forced_kl", 0.0), -r.get("psnr", -1.0))):
        if "reason" in row:
            below = "below the least feasible" in row["reason"]
            why = "Below what their sinks take" if below else f"Not run ({row['reason']})"
            impossible.setdefault((why, f"{row['budget']:g}"), []).append(row["policy"])
            continue
        first = f"**{row['budget']:g}**" if row["budget"] != budget else ""
        budget = row["budget"]
        share = row["kv_bytes_peak"] / result["kv_bytes_full"]
        lines.append(line(first, row["policy"], row, f"{row['kv_bytes_peak']} ({share:.1%})"))
    lines += [f"\n{why} at {budget}: {', '.join(names)}." for (why, budget), names in impossible.items()]
    return "\n".join(lines)


def forced_cells(row: dict[str, Any]) -> str:
    """Two more columns of `markdown_table`."""
    if "forced_kl" not in row:
        return "  |  |"
    low, high = row["ci95"]["forced_kl"]
    return f" {row['forced_agreement']:.3f} | {row['forced_kl']:.5f} ({low:.5f} to {high:.5f}) |"


def perceptual_cell(row: dict[str, Any]) -> str:
    """One more column of `markdown_table`."""
    if "perceptual" not in row:
        return "  |"
    low, high = row["ci95"]["perceptual"]
    return f" {row['perceptual']:.3f} ({low:.3f} to {high:.3f}) |"


def iso_table(result: dict[str, Any]) -> str:
    """Bytes at equal PSNR as a Markdown table; empty where no two policies meet."""
    if not result["iso_psnr"]:
        return ""
    baseline = result.get("baseline", BASELINE)
    lines = [f"| policy | bytes it takes for the PSNR of {baseline}, as a share of {baseline}'s |", "|---|---|"]
    for found in result["iso_psnr"]:
        at = ", ".join(
            f"{level['ratio']:.2f} at {level['psnr']:.1f} dB"
            + ("" if abs(level["ratio"] - level["share_ratio"]) < 0.01 else f" ({level['share_ratio']:.2f} in 16 bit)")
            for level in found["levels"]
        )
        lines.append(f"| {found['policy']} | {at} |")
    return "\n".join(lines)
