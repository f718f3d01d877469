"""Random: HeatKV's schedule with the heads of every scale ranked by chance. What does the ranking itself gain?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from heatkv.policies.base import PlanInput, Policy
from heatkv.policies.heatkv import strict_greedy


def drop_at(inputs: PlanInput) -> npt.NDArray[np.int64]:
    sources = len(inputs.geometry.scales) - 1 - inputs.sink_scales
    in_order_SN = np.tile(np.arange(inputs.geometry.head_count), (sources, 1))
    return strict_greedy(np.random.default_rng(inputs.seed).permuted(in_order_SN, axis=1), inputs)


POLICY = Policy(
    name="random",
    title="Random heads",
    summary="HeatKV's schedule, but chance decides which heads drop a scale.",
    provenance="reference",
    needs="nothing",
    drop_at=drop_at,
    seeded=True,
)
