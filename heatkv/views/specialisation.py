"""How unlike each other the heads of a model are: the condition for head-specific budgets to be worth anything.

What type a head is of is defined in one place, `heatkv.views.explore.HeadProfiles`; this adds what can be said of
all heads at once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from heatkv.scores import HeadScores
from heatkv.views.explore import TYPES, even_attention, head_profiles

LITTLE, MUCH = 0.25, 2.0  # of what a head gives to a source scale that spreads evenly over all tokens it sees


@dataclass(frozen=True)
class SourceSpread:
    """How S-CAS on one prunable source scale differs over heads.

    Parameters
    ----------
    source
        The source scale, counted from 0.
    even
        S-CAS of a head that spreads its attention evenly over all tokens it sees.
    low, median, high
        10th, 50th and 90th percentile of S-CAS over heads.
    variation
        Standard deviation over heads by the mean: 0 where all heads are alike.
    little, much
        Shares of heads with less than `LITTLE` and with more than `MUCH` times ``even``.
    """

    source: int
    even: float
    low: float
    median: float
    high: float
    variation: float
    little: float
    much: float


@dataclass(frozen=True)
class Specialisation:
    """How heads differ, from one calibration.

    Parameters
    ----------
    heads
        How many heads that is.
    types
        Share of heads of every type of `heatkv.views.explore.TYPES`: a head favours a group of scales if it spends
        `heatkv.views.explore.TYPE_EXCESS` more on it than an even head would; ``spread`` are those that favour none.
    entropy_low, entropy_mean, entropy_high
        Of the entropy of heads, in bits: how evenly a head divides its attention over the scales it sees, mean over
        the target scales after the sinks. Calibration sums over the queries and tokens of a scale, so this says
        nothing of single tokens. The least, the mean and the greatest head.
    entropy_even
        The same for a head that spreads its attention evenly over all tokens it sees.
    sources
        One entry for every prunable source scale.
    little, much
        Shares of heads that give less than `LITTLE`, or more than `MUCH`, times the even share to a prunable source
        scale or more.
    """

    heads: int
    types: dict[str, float]
    entropy_low: float
    entropy_mean: float
    entropy_high: float
    entropy_even: float
    sources: tuple[SourceSpread, ...]
    little: float
    much: float

    @property
    def local(self) -> float:
        """Share of heads that favour their own scale or the one before it."""
        return self.types["itself"] + self.types["previous"]

    @property
    def coarse_or_global(self) -> float:
        """Share of heads that favour the sinks, or no scales at all."""
        return self.types["sinks"] + self.types["spread"]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "local": self.local, "coarse_or_global": self.coarse_or_global}


def specialisation(scores: HeadScores, sink_scales: int) -> Specialisation:
    """Sum up how heads differ. Raises ``ValueError`` for a model with a single scale."""
    profiles = head_profiles(scores, sink_scales)
    scales = scores.geometry.scales
    K = len(scales)
    counts = np.bincount(profiles.type_LH.ravel(), minlength=len(TYPES))
    targets = range(min(sink_scales + 1, K - 1), K)
    entropy_LH = np.mean([_entropy(scores.mass_LHTS[:, :, t, : t + 1]) for t in targets], axis=0)
    even_TS = even_attention(scales)
    entropy_even = np.mean([_entropy(even_TS[t, : t + 1]) for t in targets])
    ratio_LHS = (profiles.cell_LHS / profiles.cell_even_S)[:, :, sink_scales:]
    sources = []
    for s in range(sink_scales, K - 1):
        scas_LH, ratio_LH = profiles.cell_LHS[:, :, s], ratio_LHS[:, :, s - sink_scales]
        low, median, high = (float(value) for value in np.percentile(scas_LH, [10, 50, 90]))
        sources.append(
            SourceSpread(
                source=s,
                even=float(profiles.cell_even_S[s]),
                low=low,
                median=median,
                high=high,
                variation=float(scas_LH.std() / max(scas_LH.mean(), 1e-30)),
                little=float((ratio_LH < LITTLE).mean()),
                much=float((ratio_LH > MUCH).mean()),
            )
        )
    return Specialisation(
        heads=scores.geometry.head_count,
        types={name: float(count / scores.geometry.head_count) for name, count in zip(TYPES, counts, strict=True)},
        entropy_low=float(entropy_LH.min()),
        entropy_mean=float(entropy_LH.mean()),
        entropy_high=float(entropy_LH.max()),
        entropy_even=float(entropy_even),
        sources=tuple(sources),
        little=float((ratio_LHS < LITTLE).any(axis=2).mean()),
        much=float((ratio_LHS > MUCH).any(axis=2).mean()),
    )


def _entropy(share: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Entropy over the last axis in bits; shares in half precision need not sum to 1 exactly."""
    share = share / share.sum(axis=-1, keepdims=True)
    entropy: npt.NDArray[np.float64] = -(share * np.log2(np.maximum(share, 1e-30))).sum(axis=-1)
    return entropy
