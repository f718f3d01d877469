"""AMS-KV (arXiv 2511.16047): condensed and local scales, and more of the local ones where a layer demands them.

The paper keeps the coarsest ("condensed") scales and the newest ("local") ones, and lets cache-demanding layers keep
more local scales than cache-efficient ones. It tells the layers apart by how similar keys and values of neighbouring
scales are.

Re-implementation. One thing is an approximation: which layers are demanding is told by their attention (below), as no
calibration records the similarity of keys and values. What the reachable text leaves open is ours:

- the condensed scales are the sink scales;
- demanding are the ``demanding`` share of layers (default: half) that spend most of their attention on scales other
  than their own and the sinks;
- an efficient layer keeps a scale ``extra`` scales (default: 1) less long than a demanding one; the budget decides how
  long that is. Where a scale does not fit in all heads of its kind of layer, it stays in some of every such layer.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from heatkv.policies.base import PlanInput, Policy
from heatkv.policies.fill import fill
from heatkv.policies.streaming import spread_out
from heatkv.scores import HeadScores


def demanding_layers(scores: HeadScores, sink_scales: int, share: float = 0.5) -> npt.NDArray[np.bool_]:
    """The ``share`` of layers that read the scales between the sinks and their own most, ``(layers,)``."""
    mass_LTS = np.tril(scores.mass_LHTS.mean(axis=1), -1)[:, :, sink_scales:]
    demand_L = mass_LTS.sum((1, 2))
    demanding_L = np.zeros(len(demand_L), bool)
    demanding_L[np.argsort(-demand_L, kind="stable")[: round(share * len(demand_L))]] = True
    return demanding_L


def drop_at(inputs: PlanInput, demanding: float = 0.5, extra: int = 1) -> npt.NDArray[np.int64]:
    assert inputs.scores is not None
    if not 0 <= demanding <= 1 or extra < 0:
        raise ValueError(f"demanding {demanding} must be a share of the layers, 0 to 1, and extra {extra} 0 or more")
    efficient_L = ~demanding_layers(inputs.scores, inputs.sink_scales, demanding)
    behind_N1 = (np.repeat(extra * efficient_L, inputs.geometry.heads) + 0.5 * spread_out(inputs.geometry))[:, None]
    # At equal age, demanding layers come first: ages are whole, and 0.5 * spread_out + 0.5 stays below 1.
    behind_N1 += 0.5 * np.repeat(efficient_L, inputs.geometry.heads)[:, None]
    return fill(lambda t: np.arange(inputs.sink_scales, t) - behind_N1, inputs)


POLICY = Policy(
    name="ams",
    title="AMS-KV",
    summary="Keeps the sinks and the newest scales, and keeps scales longer in layers that read them more.",
    provenance="re-implementation",
    needs="scores",
    drop_at=drop_at,
    options={"demanding": 0.5, "extra": 1},
)
