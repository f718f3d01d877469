"""StreamingLLM (arXiv 2309.17453), by scales: the sinks and the newest scales, whatever the heads look at.

Adaptation: the paper keeps the first and the latest tokens of a sequence. Here the sinks are the sink scales, and the
rest of the budget goes to the newest scale, then to the one before it, and so on. Where a scale does not fit in all
heads, it stays in some of every layer. Needs no calibration.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from heatkv.policies.base import PlanInput, Policy
from heatkv.policies.fill import fill
from heatkv.scales import Geometry


def spread_out(geometry: Geometry) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for every slot so that the slots below any threshold are spread over all layers, ``(slots,)``.

    One head of each layer comes first, then another, starting with a different head in every layer.
    """
    layer_LH, head_LH = np.indices((geometry.layers, geometry.heads))
    turn_LH = (head_LH + layer_LH) % geometry.heads
    return ((turn_LH * geometry.layers + layer_LH) / geometry.head_count).ravel()


def drop_at(inputs: PlanInput) -> npt.NDArray[np.int64]:
    turn_N1 = spread_out(inputs.geometry)[:, None]
    return fill(lambda t: np.arange(inputs.sink_scales, t) - turn_N1, inputs)


POLICY = Policy(
    name="streaming",
    title="StreamingLLM",
    summary="Keeps the sinks and the newest scales, in every head alike.",
    provenance="adaptation",
    needs="nothing",
    drop_at=drop_at,
)
