"""What people look at in a model that draws by lines: heads by distance, and what a line has read of the picture.

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


def lines_json(scores: HeadScores, profiles: HeadProfiles) -> dict[str, Any]:
    """What a browser draws of a model by lines beside `heatkv.views.explore.cells_json`: distances and wide types."""
    return {
        "distance": distance_profiles(scores).to_json(),
        "types": packed(wide_types(profiles), "u1"),
        "typeNames": list(WIDE_TYPES),
    }


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
class LineView:
    """What the tokens of one line have read when they were fed: the picture so far, and the condition.

    Row 0 is the mean over the line, row 1 + i the token in column i.

    Parameters
    ----------
    line
        The line, counted from 0.
    picture_QHW
        Attention on every token of the map; NaN on what was not drawn yet. A token reads itself, too.
    condition_QT
        Attention on the tokens of the condition.
    """

    line: int
    picture_QHW: npt.NDArray[np.float64]
    condition_QT: npt.NDArray[np.float64]

    def to_json(self) -> dict[str, Any]:
        """Attention in 16 bits of a row's maximum, ``peaks``; 65535 stands for what was not drawn yet."""
        drawn = np.isfinite(self.picture_QHW)
        read = np.nan_to_num(self.picture_QHW)
        peak_Q = np.maximum(np.maximum(read.max(axis=(1, 2)), self.condition_QT.max(axis=1)), 1e-12)
        levels = np.where(drawn, np.rint(read / peak_Q[:, None, None] * 65534), 65535)
        return {
            "line": self.line,
            "queries": len(self.picture_QHW) - 1,
            "size": list(self.picture_QHW.shape[1:]),
            "picture": packed(levels, "u2"),
            "condition": packed(np.rint(self.condition_QT / peak_Q[:, None] * 65534), "u2"),
            "peaks": peak_Q.tolist(),
        }


def line_view(attention_NM: npt.NDArray[np.floating], scales: ScaleSchedule, segment: int) -> LineView:
    """The view of a line, from what `heatkv.cache.probe.ProbeCache` noted of it (``attention[head][segment]``).

    Raises ``ValueError`` for a segment that is no line. The last token of an image reads nothing: it is never fed.
    """
    if not (scales.by_line and segment in scales.drawn):
        raise ValueError(f"segment {segment} is no line of a picture drawn as {scales}")
    height, width = scales.picture
    line, condition = segment - 1, scales.tokens[0]
    read_QM = np.concatenate([attention_NM.mean(axis=0, keepdims=True), attention_NM], dtype=np.float64)
    picture_QC = np.full((len(read_QM), height * width), np.nan)
    ends = line * width + np.array([len(attention_NM), *range(1, len(attention_NM) + 1)])
    for read_M, picture_C, end in zip(read_QM, picture_QC, ends, strict=True):
        picture_C[:end] = read_M[condition : condition + end]
    return LineView(line, picture_QC.reshape(-1, height, width), read_QM[:, :condition])
