"""What a budget allows and what cells take: the arithmetic that schedules are planned and checked with.

A budget is a share of what the full cache takes at its peak. Costs are counted in tokens as computed, else in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from heatkv.files import is_number, shown
from heatkv.formats import COMPUTE, OPEN_LINE, Format, FormatError, find_format
from heatkv.scales import Geometry, ScaleSchedule

MIXED = "mixed"  # the storage of a schedule that gives every cell a format of its own
_SLACK = 1e-12  # in budgets: what rounding may cost, and what printing with 12 decimals does


class ScheduleError(ValueError):
    """A schedule, a budget or a schedule file that can not be used; the message says what is wrong and what to do."""


def check_sinks(scales: ScaleSchedule, sink_scales: int) -> None:
    """Raise `ScheduleError` unless ``sink_scales`` of these scales can be sinks: the last one is never cached."""
    most = len(scales) - 1
    if isinstance(sink_scales, bool) or not isinstance(sink_scales, (int, np.integer)) or not 0 <= sink_scales <= most:
        there = f"the condition and {most} lines" if scales.by_line else f"{most + 1} scales"
        raise ScheduleError(
            f"sink_scales is {shown(sink_scales)}: with {there}, of which the last is never "
            f"{'let go' if scales.by_line else 'cached'}, it must be a whole number from 0 to {most}"
        )


@dataclass(frozen=True)
class CountedLines(ScaleSchedule):
    """Lines in what they take: cells ``cost_S`` once they are complete, and ``token_cost`` a token until then."""

    cost_S: tuple[int, ...] = ()
    token_cost: int = 1

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        return (*self.cost_S[:-1], self.open_tokens[-1])

    @cached_property
    def open_tokens(self) -> tuple[int, ...]:
        *before, last = (width for _, width in self.sizes[1:])
        return (0, *(self.token_cost * tokens for tokens in (*before, last - 1)))


def counted(geometry: Geometry, storage: str) -> Geometry:
    """The geometry in what its cells take: with bytes for tokens, where cells take other than so much a token.

    A plan for it is a plan in bytes, so that whoever plans in tokens plans for every storage; for a budget over
    `counted_share`.
    """
    if storage == MIXED or format_of(storage, geometry).ranges != "channel":
        return geometry
    cost_S = tuple(int(cost) for cost in cell_cost(geometry, storage))
    scales = geometry.scales
    if scales.by_line:
        return replace(geometry, scales=CountedLines(scales.sizes, "lines", cost_S, token_cost(geometry, storage)))
    return replace(geometry, scales=replace(scales, sizes=tuple((1, cost) for cost in cost_S)))


def token_cost(geometry: Geometry, storage: str) -> int:
    """What a token of a line takes while the line is being drawn, in the unit in which ``storage`` counts."""
    return 1 if storage == COMPUTE.name else OPEN_LINE.cell_bytes(1, geometry.head_dim)


def cell_cost(geometry: Geometry, storage: str) -> npt.NDArray[np.int64]:
    """What a cell of each scale takes: in tokens as computed; else in bytes, keys and values of one batch row."""
    if storage == COMPUTE.name:
        return np.array(geometry.scales.tokens)
    form = format_of(storage, geometry)
    return np.array([form.cell_bytes(tokens, geometry.head_dim) for tokens in geometry.scales.tokens])


def full_cost(geometry: Geometry, storage: str) -> int:
    """What the full cache takes at its peak, in the unit in which ``storage`` counts; bytes are those of 16 bits."""
    tokens = geometry.full_peak_tokens
    return tokens if storage == COMPUTE.name else tokens * COMPUTE.cell_bytes(1, geometry.head_dim)


def cost_limit(budget: float, geometry: Geometry, storage: str) -> int:
    """The most that ``budget`` lets the cache hold of one batch row, summed over heads: tokens, or bytes if encoded."""
    return int((budget + _SLACK) * full_cost(geometry, storage))


def token_limit(budget: float, geometry: Geometry) -> int:
    """The most tokens that ``budget`` lets the cache hold, summed over heads, for one batch row."""
    return cost_limit(budget, geometry, COMPUTE.name)


def counted_share(geometry: Geometry, storage: str) -> float:
    """What the full cache takes in ``storage``, as a share of what it takes in 16 bits (mixed: at most)."""
    full = full_cost(geometry, storage)
    if geometry.scales.by_line and storage == MIXED:
        storage = OPEN_LINE.name  # what the line that is being drawn takes
    if storage == MIXED or not full:
        return 1.0
    cost = int(cell_cost(geometry, storage)[:-1].sum())
    if geometry.scales.by_line:
        cost += geometry.scales.open_tokens[-1] * token_cost(geometry, storage)
    return geometry.head_count * cost / full


def counted_budget(budget: float, geometry: Geometry, storage: str) -> float:
    """The budget that allows a `counted` geometry exactly what ``budget`` allows in ``storage``, or all there is."""
    most = counted(geometry, storage).full_peak_tokens
    stored = round(counted_share(geometry, storage) * full_cost(geometry, storage))
    if storage == COMPUTE.name or not stored:
        return budget
    limit = cost_limit(budget, geometry, storage) * most // stored
    return min(1.0, (limit + 0.5) / most)  # half-way to the next one, so that no rounding changes it


def counted_scales(geometry: Geometry, storage: str) -> tuple[ScaleSchedule, float]:
    """Scales in what their cells take in ``storage``, and `counted_share`: what budgets are checked against."""
    return counted(geometry, storage).scales, counted_share(geometry, storage)


def least_budget(scales: ScaleSchedule, sink_scales: int, share: float = 1.0) -> float:
    """The share of the full peak that sinks, and a line while it is drawn, take at most: no budget can be below it.

    For encoded cells ``scales`` and ``share`` are `counted_scales`.
    """
    check_sinks(scales, sink_scales)
    held = (scales.bounds[min(sink_scales, t)][0] + own for t, own in enumerate(scales.open_tokens))
    return max(held) / scales.full_peak * share if scales.full_peak else 0.0


def check_budget(
    budget: float,
    scales: ScaleSchedule,
    sink_scales: int,
    *,
    model: str = "this model",
    share: float = 1.0,
    by_token: bool = False,
) -> None:
    """Raise `ScheduleError` unless ``budget`` is a feasible share of the full cache's peak.

    ``by_token``: who lets go of tokens, and not of whole lines, needs no room for all of a line. For encoded cells
    ``scales`` and ``share`` are `counted_scales`.
    """
    least = least_budget(scales, sink_scales, share)
    if by_token and scales.by_line:
        least = (scales.bounds[sink_scales][0] + 1) / scales.full_peak
    if not is_number(budget) or not 0 < budget <= 1:
        raise ScheduleError(
            f"budget {shown(budget)} is not a share of the full cache's peak; choose a number above 0 and up to 1"
        )
    if budget + _SLACK < least:
        raise ScheduleError(
            f"budget {budget:g} is below the least feasible {least:.12f} for {model} with {sink_scales} sink scales"
            f"{' and the line being drawn' if scales.by_line and not by_token else ''}; raise it or lower sink_scales"
        )


def stored_cost(drop_at_LHS: npt.NDArray[np.integer], cost_LHS: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """What each layer holds once target scale t is through it: of cells s <= t those with ``drop_at > t + 1``.

    In the unit of ``cost_LHS``, which says what each cell takes. Shape ``(targets, layers)``; the last target, which
    stores nothing, repeats the row before it.
    """
    L, _, K = drop_at_LHS.shape
    if K == 1:
        return np.zeros((1, L), np.int64)
    drop_at_LHS, cost_LHS = drop_at_LHS[:, :, :-1], cost_LHS[:, :, :-1]
    # A cell of scale s comes with scale s and is gone once scale drop_at - 1 is through. The last row, K - 1, only
    # collects the cells that are never dropped. Sums stay far below 2**53, so doubles count exactly.
    end_LHS = (drop_at_LHS.astype(np.int64) - 1) * L + np.arange(L)[:, None, None]
    ended_TL = np.bincount(end_LHS.ravel(), cost_LHS.astype(np.float64).ravel(), minlength=K * L).reshape(K, L)[:-1]
    stored_TL = np.cumsum(cost_LHS.sum(1).T - ended_TL.astype(np.int64), axis=0)
    return np.concatenate([stored_TL, stored_TL[-1:]])


def resident_cost(
    drop_at_LHS: npt.NDArray[np.integer], cost_LHS: npt.NDArray[np.integer], scales: ScaleSchedule, a_token: int = 1
) -> npt.NDArray[np.int64]:
    """What all layers hold after layer l of target scale t has run, ``(targets, layers)``, see `stored_cost`.

    Layers up to l already hold what is left after scale t, the later ones still what was left after t - 1. For a line
    that is after its last token: all layers hold what they read while it is drawn, those after l its tokens but one,
    each of which takes ``a_token``.
    """
    if scales.by_line:
        return _resident_by_line(drop_at_LHS, cost_LHS, a_token * np.array(scales.open_tokens), a_token)
    return resident_while_layers_run(stored_cost(drop_at_LHS, cost_LHS))


def resident_tokens(drop_at_LHS: npt.NDArray[np.integer], scales: ScaleSchedule) -> npt.NDArray[np.int64]:
    """`resident_cost` in tokens."""
    cost_LHS = np.broadcast_to(np.array(scales.tokens), drop_at_LHS.shape)
    if isinstance(scales, CountedLines):
        return _resident_by_line(drop_at_LHS, cost_LHS, np.array(scales.open_tokens), scales.token_cost)
    return resident_cost(drop_at_LHS, cost_LHS, scales)


def _resident_by_line(
    drop_at_LHS: npt.NDArray[np.integer], cost_LHS: npt.NDArray[np.integer], open_S: npt.NDArray[np.integer],
    a_token: int,
) -> npt.NDArray[np.int64]:  # fmt: skip
    L, H, K = drop_at_LHS.shape
    held_TL = np.stack([((drop_at_LHS[:, :, :t] > t) * cost_LHS[:, :, :t]).sum((1, 2)) for t in range(1, K)])
    in_layers_after_L = a_token * H * np.arange(L - 1, -1, -1)
    drawing_TL = held_TL.sum(1, keepdims=True) + L * H * open_S[1:, None] - in_layers_after_L
    resident_TL: npt.NDArray[np.int64] = np.concatenate([np.cumsum(held_TL[:1], axis=1), drawing_TL])
    return resident_TL


def resident_while_layers_run(after_TL: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """What all layers hold after layer l of scale t has run, from what each holds once scale t is through it."""
    before_TL = np.concatenate([np.zeros_like(after_TL[:1]), after_TL[:-1]])
    resident_TL: npt.NDArray[np.int64] = before_TL.sum(1, keepdims=True) + np.cumsum(after_TL - before_TL, axis=1)
    return resident_TL


def format_of(storage: str, geometry: Geometry) -> Format:
    """The format of that name, if the geometry's cells can be stored in it."""
    try:
        form = find_format(storage)
        form.check(geometry.head_dim)
    except FormatError as problem:
        raise ScheduleError(str(problem)) from problem
    return form
