"""What the explorer draws, worked out ahead and packed small enough to send to a browser.

Three things: which cells every budget keeps (`BudgetTable`), where each head looks (`HeadProfiles`), and what the
positions of an image read (`AttentionView`). Numpy only; the app turns them into pictures and adds no maths of its own.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from heatkv.budget import least_budget
from heatkv.formats import COMPUTE
from heatkv.scales import Geometry, ScaleSchedule
from heatkv.schedule import Schedule
from heatkv.scores import HeadScores

# A head has a type if it spends this much more of its attention on one group of scales than a head would that spreads
# its attention evenly over all tokens it sees: 0.1 is ten points of a hundred.
TYPE_EXCESS = 0.10
GROUPS = ("itself", "previous", "between", "sinks")
TYPES = (*GROUPS, "spread")
# Attention maps are sent at this many tokens a side at most.
MAX_SIDE = 16


def packed(array: npt.NDArray[Any], dtype: str) -> str:
    """Little-endian bytes as base64: what a browser's typed array reads directly."""
    return base64.b64encode(np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<")).tobytes()).decode()


# --- which cells every budget keeps -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class BudgetTable:
    """The plans of one policy at many budgets.

    Nothing is assumed of the policy: a cell kept at a small budget may be gone at a larger one, so every budget has
    its own bit mask.

    Parameters
    ----------
    geometry, sink_scales, policy
        What the plans are for.
    percents
        The budgets P, in percent of the full cache's peak, ascending.
    kept_PLHS
        Whether the last target scale still reads a prunable cell (sources ``sink_scales .. K - 2``).
    resident_PT
        The most that is cached at any time while target scale t runs, one batch row: tokens, or bytes where cells are
        stored in fewer bits than the model computes in.
    static
        False for a policy that chooses tokens while it draws: no cell is given up as a whole, ``kept_PLHS`` holds
        nothing but true, and ``resident_PT`` is the most that it can be.
    storage
        How what is kept is stored (`heatkv.schedule.Schedule.storage`).
    """

    geometry: Geometry
    sink_scales: int
    policy: str
    percents: tuple[float, ...]
    kept_PLHS: npt.NDArray[np.bool_]
    resident_PT: npt.NDArray[np.int64]
    static: bool = True
    storage: str = "compute"

    @cached_property
    def peak_P(self) -> npt.NDArray[np.int64]:
        peak_P: npt.NDArray[np.int64] = self.resident_PT.max(axis=1)
        return peak_P

    def unit_bytes(self, rows: int, itemsize: int) -> int:
        """What one of ``resident_PT`` takes in so many batch rows, ``itemsize`` bytes a computed number."""
        return rows * (COMPUTE.cell_bytes(1, self.geometry.head_dim, itemsize) if self.storage == COMPUTE.name else 1)

    @property
    def most_percent(self) -> float:
        """The budget from which on nothing is given up: more changes nothing. 100 where something always is."""
        everything = self.kept_PLHS.reshape(len(self.percents), -1).all(axis=1) & (self.peak_P == self.peak_P.max())
        least = len(self.percents) - int(np.argmin(everything[::-1])) if not everything.all() else 0
        return self.percents[least] if self.static and everything[-1] else 100

    def to_json(self) -> dict[str, Any]:
        """Plain values for a browser; about a bit a cell and budget."""
        scales = self.geometry.scales
        bits = np.packbits(self.kept_PLHS.reshape(len(self.percents), -1), axis=1, bitorder="little")
        return {
            "layers": self.geometry.layers,
            "heads": self.geometry.heads,
            "sizes": [list(size) for size in scales],
            "sinkScales": self.sink_scales,
            "policy": self.policy,
            "static": self.static,
            "storage": self.storage,
            "percents": list(self.percents),
            "kept": packed(bits, "u1"),
            "resident": packed(self.resident_PT, "u4"),
            "fullResident": full_resident(self.geometry),
        }


def full_resident(geometry: Geometry) -> list[int]:
    """Tokens that a full cache holds after every target scale; the last one adds nothing."""
    ends = [end for _, end in geometry.scales.bounds]
    return [geometry.head_count * min(end, geometry.scales.full_peak) for end in ends]


def budget_percents(scales: ScaleSchedule, sink_scales: int, share: float = 1.0) -> tuple[int, ...]:
    """Whole percents from the least feasible budget, rounded up, to 100; ``scales`` and ``share`` as `check_budget`."""
    least = math.ceil(least_budget(scales, sink_scales, share) * 100 - 1e-9)
    return tuple(range(max(1, least), 101))


def budget_table(plan: Callable[[float], Schedule], percents: Sequence[float]) -> BudgetTable:
    """Plan every budget and keep what a map of the cells needs. ``plan`` takes a budget as a share."""
    return _table([plan(percent / 100) for percent in percents], percents)


def schedule_table(schedule: Schedule) -> BudgetTable:
    """A single schedule as a table with one budget."""
    return _table([schedule], [round(100 * schedule.budget, 2)])


def dynamic_table(
    geometry: Geometry, sink_scales: int, policy: str, percents: Sequence[float], planned_P: Sequence[int]
) -> BudgetTable:
    """What is known ahead of a policy without a schedule: the most tokens it will hold at every budget."""
    prunable = len(geometry.scales) - 1 - sink_scales
    kept = np.ones((len(percents), geometry.layers, geometry.heads, prunable), bool)
    resident_PT = np.minimum(np.array(full_resident(geometry))[None], np.array(planned_P)[:, None])
    return BudgetTable(geometry, sink_scales, policy, tuple(percents), kept, resident_PT, static=False)


def _table(schedules: list[Schedule], percents: Sequence[float]) -> BudgetTable:
    first = schedules[0]
    last = len(first.geometry.scales) - 1
    kept = [schedule.keep(last)[:, :, first.sink_scales : last] for schedule in schedules]
    resident = [(s.resident_bytes_TL if s.encoded else s.resident_tokens_TL).max(axis=1) for s in schedules]
    return BudgetTable(
        first.geometry, first.sink_scales, first.policy, tuple(percents), np.stack(kept), np.stack(resident),
        storage=first.storage,
    )  # fmt: skip


# --- where heads look -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class HeadProfiles:
    """Where each head looks, over all calibration prompts.

    Target scales up to the sinks are left out (they see nothing else). The scales that a target sees fall into the
    groups of `GROUPS`: its own, the one before it, the sinks, and those between.

    Parameters
    ----------
    share_LHG
        Share of a head's attention on every group, mean over target scales and prompts; sums to 1.
    even_G
        The same for a head that spreads its attention evenly over all tokens it sees.
    cell_LHS
        Mean share of the attention of later target scales on every cached source scale: S-CAS, for the sinks too.
    cell_even_S
        The same for the even head.
    prompts
        How many prompts that is.
    """

    share_LHG: npt.NDArray[np.float64]
    even_G: npt.NDArray[np.float64]
    cell_LHS: npt.NDArray[np.float64]
    cell_even_S: npt.NDArray[np.float64]
    prompts: int

    @cached_property
    def type_LH(self) -> npt.NDArray[np.intp]:
        """Index into `TYPES`: the group that a head favours by `TYPE_EXCESS` or more, or ``spread``."""
        excess_LHG = self.share_LHG - self.even_G
        favoured_LH = excess_LHG.argmax(axis=2)
        return np.where(excess_LHG.max(axis=2) >= TYPE_EXCESS, favoured_LH, len(GROUPS))

    @property
    def showcase(self) -> tuple[int, int]:
        """The (layer, head) that favours earlier scales most: the one to show first."""
        excess_LH = (self.share_LHG - self.even_G)[:, :, 1:].max(axis=2)
        layer, head = np.unravel_index(int(excess_LH.argmax()), excess_LH.shape)
        return int(layer), int(head)


def even_attention(scales: ScaleSchedule) -> npt.NDArray[np.float64]:
    """Attention of a head that spreads it evenly over all tokens it sees, ``(targets, sources)``."""
    even_TS = np.zeros((len(scales), len(scales)))
    for t, (start, _) in enumerate(scales.bounds):
        # Tokens of a line see it up to themselves; those of a scale or a condition, all of it.
        own_N = np.arange(1, scales.open_tokens[t] + 1) if scales.open_tokens[t] else np.array([scales.tokens[t]])
        even_TS[t, :t] = np.array(scales.tokens[:t]) * np.mean(1 / (start + own_N))
        even_TS[t, t] = np.mean(own_N / (start + own_N))
    return even_TS


def head_profiles(scores: HeadScores, sink_scales: int) -> HeadProfiles:
    """Sum up a calibration. Needs two scales at least."""
    scales = scores.geometry.scales
    K = len(scales)
    if K < 2:
        raise ValueError("a model with a single scale caches nothing: there is nothing to see")
    even_TS = even_attention(scales)
    mass_LHTS = scores.mass_LHTS
    targets = range(min(sink_scales + 1, K - 1), K)
    groups_TG = [_group_slices(t, sink_scales) for t in targets]

    def by_group(mass: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        rows = [
            np.stack([mass[..., t, part].sum(axis=-1) for part in parts], axis=-1)
            for t, parts in zip(targets, groups_TG, strict=True)
        ]
        mean: npt.NDArray[np.float64] = np.mean(rows, axis=0)
        return mean

    return HeadProfiles(
        by_group(mass_LHTS), by_group(even_TS), _later_mean(mass_LHTS), _later_mean(even_TS), scores.count
    )  # fmt: skip


def _group_slices(target: int, sink_scales: int) -> tuple[slice, slice, slice, slice]:
    """Source scales of every group of `GROUPS` as ``target`` sees them; the previous scale is no sink."""
    sinks_end = min(sink_scales, max(target - 1, 0))
    return (
        slice(target, target + 1),
        slice(max(target - 1, 0), target),
        slice(sinks_end, max(target - 1, sinks_end)),
        slice(0, sinks_end),
    )


def _later_mean(mass_TS: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over the target scales after s of the mass on s, for every cached scale; axes before them are kept."""
    K = mass_TS.shape[-1]
    return np.stack([mass_TS[..., s + 1 :, s].mean(axis=-1) for s in range(K - 1)], axis=-1)


def change_ranks(scores: HeadScores) -> npt.NDArray[np.float64] | None:
    """Where every cell stands by how much outputs change without it, a token: 0 the least of all cells, 1 the most.

    Summed over the later target scales, which is what HeatKV+ weighs; ``(layers, heads, K - 1)``. None where the
    calibration did not measure it.
    """
    change_LHTS = scores.change_LHTS
    if change_LHTS is None:
        return None
    tokens_S = np.array(scores.geometry.scales.tokens[:-1])
    loss_LHS = change_LHTS.sum(axis=2)[..., : len(tokens_S)] / tokens_S
    rank_N = loss_LHS.ravel().argsort().argsort()
    return (rank_N / max(1, rank_N.size - 1)).reshape(loss_LHS.shape)


def rank_share(orders_SN: npt.NDArray[np.integer], geometry: Geometry, sink_scales: int) -> npt.NDArray[np.float64]:
    """What orders alone tell of a cell, ``(layers, heads, K - 1)``: its rank in its source scale, 0 to 1 (sinks: 1)."""
    rank_SN = np.empty(orders_SN.shape)
    np.put_along_axis(rank_SN, orders_SN, np.arange(geometry.head_count, dtype=float)[None], axis=1)
    share_LHS = np.ones((geometry.layers, geometry.heads, len(geometry.scales) - 1))
    by_number = rank_SN.T.reshape(geometry.layers, geometry.heads, -1)
    share_LHS[:, :, sink_scales:] = by_number / max(geometry.head_count - 1, 1)
    return share_LHS


def cells_json(profiles: HeadProfiles | None, rank_LHS: npt.NDArray[np.float64] | None = None) -> dict[str, Any]:
    """Scores of the cells and types of the heads for a browser, from a calibration, from ranks, or from neither."""
    if profiles is not None:
        return {
            "kind": "share",
            "cells": packed(np.rint(profiles.cell_LHS * 65535), "u2"),
            "even": profiles.cell_even_S.tolist(),
            "types": packed(profiles.type_LH, "u1"),
            "typeNames": list(TYPES),
        }
    kind, cells = ("none", "") if rank_LHS is None else ("rank", packed(np.rint(rank_LHS * 65535), "u2"))
    return {"kind": kind, "cells": cells, "even": [], "types": "", "typeNames": []}


# --- what the positions of an image read ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AttentionView:
    """What one head reads at the last scale, pooled to `MAX_SIDE` tokens a side.

    Row 0 is the mean over all positions, row 1 + i position i (row by row) of the ``queries`` grid.

    Parameters
    ----------
    queries
        Height and width of the grid of positions.
    sizes
        Height and width of the map of every source scale, the last scale itself included.
    map_QC
        The maps, one after the other: attention of a row on every (pooled) token.
    share_QS
        Share of a row's attention on every source scale; sums to 1.
    pooled
        How many tokens one place of every map stands for, on average.
    """

    queries: tuple[int, int]
    sizes: tuple[tuple[int, int], ...]
    map_QC: npt.NDArray[np.float64]
    share_QS: npt.NDArray[np.float64]
    pooled: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Every map is scaled to its own maximum, in 8 bits; ``peaks`` says what that is, as attention on one token, so
        that maps can be shaded alike, and ``shares`` how much a map counts as a whole."""
        starts = np.cumsum([0, *(h * w for h, w in self.sizes)])
        peak_QS = np.maximum.reduceat(self.map_QC, starts[:-1], axis=1)
        peak_QC = np.repeat(peak_QS, np.diff(starts), axis=1)
        return {
            "queries": list(self.queries),
            "sizes": [list(size) for size in self.sizes],
            "maps": packed(np.rint(255 * self.map_QC / np.maximum(peak_QC, 1e-12)), "u1"),
            "peaks": packed(peak_QS / np.array(self.pooled), "f4"),
            "shares": packed(np.rint(self.share_QS * 65535), "u2"),
        }


def attention_view(
    attention_NC: npt.NDArray[np.floating], scales: ScaleSchedule, max_side: int = MAX_SIDE, target: int | None = None
) -> AttentionView:
    """Pool the attention of one target scale's queries, ``(queries, tokens so far)``; the last scale's unless told.

    Every n-th query is enough (`heatkv.cache.probe.ProbeCache` thins them out where they are many): the grid of
    positions becomes coarser until every position has a query.
    """
    attention_NC = attention_NC.astype(np.float64)
    target = len(scales) - 1 if target is None else target
    height, width = scales[target]
    step = -(-height * width // len(attention_NC))
    row_N, col_N = np.divmod(np.arange(len(attention_NC)) * step, width)
    side = max_side
    while True:
        grid = min(height, side), min(width, side)
        bin_N = row_N * grid[0] // height * grid[1] + col_N * grid[1] // width
        count_Q = np.bincount(bin_N, minlength=grid[0] * grid[1])
        if count_Q.all():
            break
        side -= 1
    pooled_QC = np.zeros((len(count_Q), attention_NC.shape[1]))
    np.add.at(pooled_QC, bin_N, attention_NC)
    rows_QC = np.concatenate([attention_NC.mean(axis=0, keepdims=True), pooled_QC / count_Q[:, None]])

    maps, shares, sizes = [], [], []
    for (h, w), (start, end) in list(zip(scales, scales.bounds, strict=True))[: target + 1]:
        scale_QHW = rows_QC[:, start:end].reshape(-1, h, w)
        shares.append(scale_QHW.sum(axis=(1, 2)))
        size = min(h, max_side), min(w, max_side)
        small_QHW = np.einsum("yh,qhw,xw->qyx", _pooling(h, size[0]), scale_QHW, _pooling(w, size[1]))
        maps.append(small_QHW.reshape(len(rows_QC), -1))
        sizes.append(size)
    pooled = tuple(h * w / (a * b) for (h, w), (a, b) in zip(list(scales)[: target + 1], sizes, strict=True))
    return AttentionView(grid, tuple(sizes), np.concatenate(maps, axis=1), np.stack(shares, axis=1), pooled)


def _pooling(length: int, pooled: int) -> npt.NDArray[np.float64]:
    """``(pooled, length)`` matrix that sums neighbours."""
    matrix = np.zeros((pooled, length))
    matrix[np.arange(length) * pooled // length, np.arange(length)] = 1
    return matrix
