"""Random: HeatKV's schedule with the heads of every scale ranked by chance. What does the ranking itself gain?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from heatkv.policies.base import PlanInput, Policy
from heatkv.policies.heatkv import strict_greedy


def drop_at(ask: PlanInput) -> npt.NDArray[np.int64]:
    sources = len(ask.geometry.scales) - 1 - ask.sink_scales
    in_order_SN = np.tile(np.arange(ask.geometry.slots), (sources, 1))
    return strict_greedy(np.random.default_rng(ask.seed).permuted(in_order_SN, axis=1), ask)


POLICY = Policy(
    name="random",
    title="Random heads",
    summary="HeatKV's schedule, but chance decides which heads drop a scale.",
    provenance="reference",
    needs="nothing",
    drop_at=drop_at,
    seeded=True,
)
