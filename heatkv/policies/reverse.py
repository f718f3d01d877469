"""Reverse: HeatKV's ranking upside down. Shows what is lost when the heads that need a scale most drop it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from heatkv.policies.base import PlanInput, Policy
from heatkv.policies.heatkv import strict_greedy


def drop_at(inputs: PlanInput) -> npt.NDArray[np.int64]:
    assert inputs.orders_SN is not None
    return strict_greedy(inputs.orders_SN[:, ::-1], inputs)


POLICY = Policy(
    name="reverse",
    title="HeatKV upside down",
    summary="HeatKV's schedule, but the heads that attend to a scale most are the first to drop it.",
    provenance="reference",
    needs="orders",
    drop_at=drop_at,
)
