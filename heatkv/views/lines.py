"""What people look at in a model that draws by lines: heads by distance, and what a token has read of the picture.

Attention by absolute line is in `heatkv.views.explore`, which takes lines as it takes scales; but most heads are about
distance: the same line, one line up, two lines up, ..., the condition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from heatkv.scales import ScaleSchedule
from heatkv.scores import HeadScores
from heatkv.views.explore import HeadProfiles, even_attention, packed

# Groups of `heatkv.views.explore.GROUPS` (itself, previous, between, sinks) in wider terms, for both ways of drawing.
WIDE_TYPES = ("local", "far", "condition", "spread")
_WIDE_OF_TYPE = np.array([0, 0, 1, 2, 3])


def wide_types(profiles: HeadProfiles) -> npt.NDArray[np.intp]:
    """Types of heads as indices into `WIDE_TYPES`, ``(layers, heads)``.

    ``local`` heads favour what they draw and what came just before it (a scale, a line), ``far`` ones what came
    earlier, ``condition`` ones what always stays (the condition of lines, the sink scales), ``spread`` ones nothing.
    """
    wide_LH: npt.NDArray[np.intp] = _WIDE_OF_TYPE[profiles.type_LH]
    return wide_LH


@dataclass(frozen=True, eq=False)
class DistanceProfiles:
    """Where each head looks, by how far away it is; mean over calibration prompts and over the lines that see so far.

    Parameters
    ----------
    names
        What the distances are called: ``same line``, ``1 line up``, ..., and ``condition``, the last.
    share_LHD
        Share of a head's attention on each.
    even_D
        The same for a head that spreads its attention evenly over all tokens it sees.
    """

    names: tuple[str, ...]
    share_LHD: npt.NDArray[np.float64]
    even_D: npt.NDArray[np.float64]

    def to_json(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "shares": packed(np.rint(np.clip(self.share_LHD, 0, 1) * 65535), "u2"),
            "even": self.even_D.tolist(),
        }


def distance_profiles(scores: HeadScores) -> DistanceProfiles:
    """Sum up a calibration by distance. Raises ``ValueError`` for a model that does not draw by lines."""
    scales = scores.geometry.scales
    if not scales.by_line:
        raise ValueError(f"{scores.model} draws by scales: distance in lines is for models that draw by lines")
    lines = len(scales) - 1

    def by_distance(mass_TS: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        shares = [
            np.mean([mass_TS[..., t, t - distance] for t in range(distance + 1, lines + 1)], axis=0)
            for distance in range(lines)
        ]
        return np.stack([*shares, mass_TS[..., 1:, 0].mean(axis=-1)], axis=-1)

    ups = (f"{distance} line{'s' if distance > 1 else ''} up" for distance in range(1, lines))
    return DistanceProfiles(
        ("same line", *ups, "condition"), by_distance(scores.mass_LHTS), by_distance(even_attention(scales))
    )


@dataclass(frozen=True, eq=False)
class TypesOfImage:
    """HeadKV's types of one image beside those of a calibration: do heads that it finds local look local on average?

    Parameters
    ----------
    local_LH
        Heads that HeadKV found local in the image.
    calibrated_LH
        Heads that are ``local`` by `wide_types`.
    agreement
        Share of heads of which both say the same.
    """

    local_LH: npt.NDArray[np.bool_]
    calibrated_LH: npt.NDArray[np.bool_]
    agreement: float

    def to_json(self) -> dict[str, Any]:
        return {
            "local": packed(self.local_LH, "u1"),
            "calibrated": packed(self.calibrated_LH, "u1"),
            "agreement": self.agreement,
        }


def types_of_image(local_LH: npt.NDArray[np.bool_], profiles: HeadProfiles) -> TypesOfImage:
    """``local_LH``: of one row of `heatkv.policies.typed.TypedCache.local_LBH`."""
    calibrated_LH = wide_types(profiles) == WIDE_TYPES.index("local")
    return TypesOfImage(local_LH, calibrated_LH, float((local_LH == calibrated_LH).mean()))


@dataclass(frozen=True, eq=False)
class TokenView:
    """What one token has read when it was fed: the picture so far, and the condition.

    Parameters
    ----------
    line, column
        The token's place in the map, counted from 0.
    picture_HW
        Attention on every token of the map; NaN on what was not drawn yet. The token itself is the last one.
    condition_T
        Attention on the tokens of the condition.
    """

    line: int
    column: int
    picture_HW: npt.NDArray[np.float64]
    condition_T: npt.NDArray[np.float64]

    def to_json(self) -> dict[str, Any]:
        """Attention in 16 bits of its maximum, ``peak``; 65535 stands for what was not drawn yet."""
        peak = float(max(np.nanmax(self.picture_HW), self.condition_T.max(initial=0.0), 1e-12))
        drawn = np.isfinite(self.picture_HW)
        levels = np.where(drawn, np.rint(np.nan_to_num(self.picture_HW) / peak * 65534), 65535)
        return {
            "line": self.line,
            "column": self.column,
            "size": list(self.picture_HW.shape),
            "picture": packed(levels, "u2"),
            "condition": packed(np.rint(self.condition_T / peak * 65534), "u2"),
            "peak": peak,
            "onCondition": float(self.condition_T.sum()),
        }


def token_view(
    attention_NM: npt.NDArray[np.floating], scales: ScaleSchedule, line: int, column: int
) -> TokenView:  # fmt: skip
    """The view of a token, from what `heatkv.cache.probe.ProbeCache` noted of its line (``attention[head][line + 1]``).

    Raises ``ValueError`` for a token that was never read: the last one of the image, or none of the map.
    """
    height, width = scales.picture
    if not (scales.by_line and 0 <= line < height and 0 <= column < len(attention_NM)):
        raise ValueError(f"token {column} of line {line} was not read: the map has {height} lines of {width} tokens")
    read_M = attention_NM[column].astype(np.float64)
    condition = scales.tokens[0]
    picture = np.full(height * width, np.nan)
    seen = line * width + column + 1
    picture[:seen] = read_M[condition : condition + seen]
    return TokenView(line, column, picture.reshape(height, width), read_M[:condition])
