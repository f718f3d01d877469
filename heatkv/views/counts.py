"""What the lessons' answers stand on: counted over several prompts of one model, not read off one lucky picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import heatkv
from heatkv.budget import least_budget
from heatkv.cache import ScheduleCache
from heatkv.generate import generate_events
from heatkv.models.base import GenerativeModel
from heatkv.schedule import Schedule
from heatkv.scores import HeadScores
from heatkv.study import metrics
from heatkv.study.statistics import rank_correlation
from heatkv.views.explore import head_profiles
from heatkv.views.knockout import KnockOut, knock_out_steps

SMALL = 0.35  # the budget at which rankings are compared
BUDGETS = (0.6, SMALL, 0.1)  # those at which it is counted how often a picture holds
OTHER = 1000  # what is added to a seed for another picture of the same prompt


CLOSE = 25.0  # dB: a picture as near as that is the same to the eye, or nearly so


def count_steps(
    model: GenerativeModel, scores: HeadScores, prompts: Sequence[str], knocked: int, other_seed: float | None = None
) -> Iterator[dict[str, Any] | str]:
    """Words on how far it is, then the counts.

    Parameters
    ----------
    prompts
        What is drawn, each with its number as the seed; none of the calibration's, to be fair.
    knocked
        For so many of them every head is knocked out as well.
    other_seed
        PSNR of another seed's picture of the same prompt, the median: what counts as close, but no more than `CLOSE`,
        as seeds of a small model may hardly differ. None: measured on these prompts.
    """
    scales = model.geometry.scales
    sinks = scales.default_sinks
    least = least_budget(scales, sinks)
    if other_seed is None:
        pairs = [
            [heatkv.generate(model, prompt, seed + other).pixels for other in (0, OTHER)]
            for seed, prompt in enumerate(prompts)
        ]
        other_seed = float(np.median([metrics.psnr(*pair) for pair in pairs]))
        yield f"another seed's picture is {other_seed:.1f} dB away"
    near = min(other_seed, CLOSE)
    falls, upright, formed = [], [], []
    for seed, prompt in enumerate(prompts):
        events = list(generate_events(model, prompt, seed, _cache(model, None), previews=True))
        full = events[-1].pixels
        assert full is not None
        close = [metrics.psnr(full, e.pixels) > near for e in events if e.pixels is not None]
        formed.append(1 + close.index(True))

        def at(budget: float, policy: str, prompt: str = prompt, seed: int = seed, full: Any = full) -> float:
            schedule = heatkv.plan(scores, max(least, budget), policy, sinks)
            return metrics.psnr(full, heatkv.generate(model, prompt, seed, schedule).pixels)

        right, wrong = at(SMALL, "heatkv"), at(SMALL, "reverse")
        upright.append(right - wrong)
        falls.append([right if b == SMALL else at(b, "heatkv") for b in BUDGETS])
        yield f"{seed + 1} of {len(prompts)} prompts"
    strongest, agree, worst = [], [], []
    maps: list[dict[str, Any]] = []
    profiles = head_profiles(scores, sinks)
    looking_back_LH = 1 - profiles.share_LHG[:, :, 0]
    for seed, prompt in enumerate(prompts[:knocked]):
        moved_LH, psnr_LH = np.zeros((2, model.geometry.layers, model.geometry.heads))
        for step in knock_out_steps(model, prompt, seed):
            if isinstance(step, KnockOut):
                moved_LH[step.layer, step.head], psnr_LH[step.layer, step.head] = step.moved, step.psnr
        maps.append({"moved": moved_LH.round(2).tolist(), "psnr": psnr_LH.round(2).tolist()})
        strongest.append([int(i) for i in np.unravel_index(int(moved_LH.argmax()), moved_LH.shape)])
        agree.append(rank_correlation(looking_back_LH, moved_LH))
        worst.append(float(moved_LH.max()))
        yield f"knock-out of {seed + 1} of {knocked} prompts"
    fall = np.array(falls)
    yield {
        "prompts": list(prompts),
        "small": SMALL,
        "other_seed": other_seed,
        "least": max(least, BUDGETS[-1]),
        "held": [int(n) for n in (fall > near).sum(axis=0)],  # at `BUDGETS`, the last no less than the least
        "formed": float(np.mean(formed)),
        "upright": int((np.array(upright) > 0).sum()),
        "upright_db": float(np.mean(upright)),
        "clearest": int(np.argmax(upright)),
        "moving": int((fall[:, 0] - fall[:, 2]).argmax()),
        "knocked": knocked,
        "strongest": strongest,
        "worst": worst,
        "agree": agree,
        "moved": maps[0] if maps else None,  # of the first prompt, to show
    }


def _cache(model: GenerativeModel, schedule: Schedule | None) -> ScheduleCache:
    return ScheduleCache(model.geometry, schedule or Schedule.full(model.geometry, model.id))
