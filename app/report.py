"""The scorecard of a comparison as plain data: how close, compared with what, and at which cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.pictures import data_url, heat
from heatkv.generate import Generation
from heatkv.scales import Geometry
from heatkv.study import metrics

REFERENCE_NAMES = {
    "dtype_noise": "bf16 against fp32, full cache",
    "other_seed": "another seed, same prompt",
    "sinks_only": "nothing but the sinks kept",
}
SHORT_NAMES = {"dtype_noise": "rounding to 16 bits", "other_seed": "another seed", "sinks_only": "the sinks alone"}


def scorecard(
    full: Generation, less: Generation, geometry: Geometry, references: Mapping[str, Any], a: str = "full cache",
    b: str = "",
) -> dict[str, Any]:  # fmt: skip
    """The value of the ``scorecard`` part: ``less``, called ``b``, measured against ``full``, called ``a``."""
    agreement = metrics.bit_agreement(full.bits, less.bits)
    mean = metrics.mean_agreement(agreement, [len(bits) for bits in full.bits])
    this = {
        "psnr": metrics.psnr(full.pixels, less.pixels),
        "psnr_foreground": metrics.foreground_psnr(full.pixels, less.pixels),
        "ssim": metrics.ssim(full.pixels, less.pixels),
        "bit_agreement": mean,
    }
    difference = metrics.difference_map(full.pixels, less.pixels)
    known = _references(references)
    ladder = [_rung("this pair", this, this=True), *known]
    rows = less.rows
    bitwise = full.bits[0].ndim == 2
    return {
        "run": f"“{less.prompt}”, seed {less.seed}: {b or f'{less.policy} at {100 * less.budget:g} %'}",
        "against": a,
        "difference": data_url(heat(difference)),
        "difference_note": f"brightest {int(difference.max())} of 255, mean {difference.mean():.1f}",
        "headline": [
            [_db(this["psnr"]), f"PSNR against {a}"],
            [_db(this["psnr_foreground"]), "PSNR of the foreground"],
            [f"{this['ssim']:.3f}", "SSIM"],
            [f"{100 * mean:.1f} %", "bits that agree" if bitwise else "tokens that agree"],
        ],
        "references_note": _references_note(references) if known else "",
        "ladder": sorted(ladder, key=lambda rung: -rung["psnr"]),
        "bits": agreement,
        **this,
        "bits_title": f"{'Bits' if bitwise else 'Tokens'} that agree, by {geometry.scales.word}",
        "unit": "bits" if bitwise else "tokens",
        "bits_floor": 0.5 if bitwise else 0.0,
        "bits_note": "in percent; the bars start at 50, where two fair coins would be" if bitwise else "in percent",
        "cost": [
            ["KV cache, allocated at its peak", _mib(full.kv_bytes_peak), _mib(less.kv_bytes_peak),
             _share(less.kv_bytes_peak, full.kv_bytes_peak)],
            ["KV cache, by the schedule", _mib(full.kv_bytes_theoretical), _mib(less.kv_bytes_theoretical),
             _share(less.kv_bytes_theoretical, full.kv_bytes_theoretical)],
            ["Seconds", f"{full.seconds:.2f}", f"{less.seconds:.2f}", _share(less.seconds, full.seconds)],
        ],
        "cost_note": f"one image, {rows} batch {'row' if rows == 1 else 'rows (with and without the prompt)'}",
        "fine": _fine(less),
    }  # fmt: skip


def score(card: Mapping[str, Any]) -> dict[str, Any]:
    """The line under the pictures: how close, between which references."""
    ladder = list(card["ladder"])
    at = next(i for i, rung in enumerate(ladder) if rung["this"])
    above, below = ladder[at - 1] if at else None, ladder[at + 1] if at + 1 < len(ladder) else None
    near, far = (f"{r['short']} ({r['psnr_text'].removesuffix(' dB')})" if r else "" for r in (above, below))
    if card["psnr"] >= metrics.IDENTICAL_PSNR:
        words = "the same picture"
    elif near and far:
        words = f"between {near} and {far}"
    else:
        words = f"not as close as {near}" if near else f"closer than {far}" if far else ""
    return {
        "psnr": card["psnr"], "text": card["headline"][0][0], "words": words,
        "difference": card["difference"], "difference_note": card["difference_note"],
    }  # fmt: skip


def _fine(less: Generation) -> str:
    process = f"Peak of the whole program: {_mib(less.process_bytes_peak)}. " if less.process_bytes_peak else ""
    return (
        f"{process}Both runs draw the same noise, so the cache is all that differs. The two take turns on one machine; "
        f"the time is a single measurement."
    )


def usual_psnr(reference: Mapping[str, Any]) -> float:
    """PSNR of a reference: the median over its pairs, or of older files the mean."""
    median = reference.get("psnr_median")
    return float(median if isinstance(median, (int, float)) else reference["psnr"])


def _references(references: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rungs of the references that are there and whole; a file that says something else is passed over."""
    rungs = []
    for key, name in REFERENCE_NAMES.items():
        found = references.get(key)
        if isinstance(found, Mapping) and isinstance(found.get("psnr"), (int, float)):
            rung = _rung(name, {**found, "psnr": usual_psnr(found)})
            if rung["psnr"] >= metrics.IDENTICAL_PSNR:  # in the median
                rung["psnr_text"] = "mostly identical"
            rungs.append({**rung, "short": SHORT_NAMES[key]})
    return rungs


def _references_note(references: Mapping[str, Any]) -> str:
    """Over how many pairs the references were measured, where the file says so, as a whole or for each."""
    inner = [found.get("n") for found in references.values() if isinstance(found, Mapping)]
    counts = [n for n in (references.get("n"), *inner) if type(n) is int]
    of = f"of {counts[0]} pairs of images" if counts else "over many images"
    medians = any(isinstance(found, Mapping) and "psnr_median" in found for found in references.values())
    return f"references: {'PSNR is the median, the others means,' if medians else 'means'} {of}"


def _rung(name: str, values: Mapping[str, Any], this: bool = False) -> dict[str, Any]:
    def number(key: str) -> float | None:
        value = values.get(key)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    foreground, ssim, bits = number("psnr_foreground"), number("ssim"), number("bit_agreement")
    return {
        "name": name,
        "this": this,
        "psnr": float(values["psnr"]),
        "psnr_text": _db(float(values["psnr"])),
        "foreground_text": "" if foreground is None else _db(foreground),
        "ssim_text": "" if ssim is None else f"{ssim:.3f}",
        "bits_text": "" if bits is None else f"{100 * bits:.1f} %",
    }


def _db(value: float) -> str:
    return "identical" if value >= metrics.IDENTICAL_PSNR else f"{value:.1f} dB"


def _mib(count: int) -> str:
    return f"{count / 2**20:.2f} MiB" if count < 100 * 2**20 else f"{count / 2**20:.0f} MiB"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""
