"""HeatKV+ (ours): wherever memory peaks, spend fewer bits on the cell that loses least by it, and in the end none.

A cell, the keys and values of one head and scale, can be stored in 8, 4 or 2 bits (formats.py) or be gone. For each of
these steps down calibration tells the loss, and the format tells the bytes. So:

**Plan.** Start with every cell in 8 bits. Look for the moment (after some layer of some scale) at which the cache holds
most bytes. Of all steps that the cells held at that moment could take, to fewer bits for as long as they are held or to
nothing from then on, take the one that loses least per byte; repeat. The steps are the same for every budget: a budget
says how many of them to take. So plans are nested in the budget, and they keep to it after every layer,
not only between scales. No scale is a sink by decree: the first ones stay where they matter.

**Loss.** How much the attention output of a cell's layer changes, squared, as a share of the output of all heads,
summed over the scales that read the cell. Without the cell that is ``(o - m o_s) / (1 - m)`` in closed form
(`HeadScores.change_LHTS`): values that agree with the rest of what a head reads can go at no cost, whatever attention
they get. With the cell in 4 bits it is measured as well (`HeadScores.rounding_LHTS`); other formats lose in proportion
(`NOISE`), as an error of rounding is squared.

Asked for a storage, it drops cells and leaves their bits alone: ``heatkv+16`` is the plan of cells as computed. All
cells are in 8 bits where calibration has not measured what fewer bits lose, as in older files. Static and monotone.
Provenance: this repository, with its evidence in LOG.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from heatkv.budget import MIXED, cell_cost, token_cost
from heatkv.formats import FORMATS
from heatkv.policies.base import PlanInput, Policy, Tables
from heatkv.scales import Geometry
from heatkv.scores import HeadScores

LEVELS = ("int8", "int4", "int2")
# Loss of a format as a multiple of that of int4: measured on the bundled model, where cells differ little in it.
NOISE = {"int8": 1 / 57, "int4": 1.0, "int2": 17.0}
# Steps of one moment are taken together up to this share of the peak: a bound on the memory left unused.
QUANTUM = 1 / 256
TOGETHER = 256  # and so many at most

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Steps:
    """Steps down, in the order in which they are taken.

    ``cells``, counted as ``(layer * heads + head) * (scales - 1) + source``, are from then on stored in ``levels`` and
    dropped at the target scales ``times`` (the number of scales: never). Of each cell the last step counts.
    ``peaks``, in the unit of `heatkv.budget.cell_cost`, has an entry more: the peak before every step, and after all.
    """

    cells: Ints
    times: Ints
    levels: Ints
    peaks: Ints


def stored(inputs: PlanInput) -> Tables:
    assert inputs.scores is not None
    mixed = inputs.storage == MIXED
    levels = LEVELS if mixed else (inputs.storage,)
    steps = steps_down(inputs.scores, levels)
    L, H, K = inputs.geometry.layers, inputs.geometry.heads, len(inputs.geometry.scales)
    # Peaks fall; the first one within the limit ends the way down.
    taken = np.searchsorted(-steps.peaks, -inputs.limit)
    cells = steps.cells[:taken]
    drop_N, level_N = np.full(L * H * (K - 1), K), np.zeros(L * H * (K - 1), np.int64)
    np.minimum.at(drop_N, cells, steps.times[:taken])
    np.maximum.at(level_N, cells, steps.levels[:taken])
    drop_at_LHS, level_LHS = np.full((L, H, K), K), np.zeros((L, H, K), np.int64)
    drop_at_LHS[:, :, : K - 1] = drop_N.reshape(L, H, K - 1)
    level_LHS[:, :, : K - 1] = level_N.reshape(L, H, K - 1)
    return drop_at_LHS, np.array([list(FORMATS).index(name) for name in levels])[level_LHS] if mixed else None


@lru_cache(maxsize=8)
def steps_down(scores: HeadScores, levels: tuple[str, ...]) -> Steps:
    """All of them, from every cell in the first of ``levels`` to an empty cache."""
    state = _State(scores, levels)
    quantum = int(QUANTUM * state.resident_M.max(initial=0))
    nothing = np.zeros(0, np.int64)
    found, peaks = [(nothing, nothing, nothing)], []
    while (peak := int(state.resident_M.max(initial=0))) > 0:
        taken = state.take(int(state.resident_M.argmax()), quantum)
        if not len(taken[0]):  # what is left is the line that is being drawn
            break
        found.append(taken)
        peaks += [peak] * len(taken[0])
    cells, times, levels_down = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Steps(cells, times, levels_down, np.array([*peaks, peak]))


class _State:
    """Where the way down has come to: when each cell N goes and in which level it is, and what every moment M holds."""

    def __init__(self, scores: HeadScores, levels: tuple[str, ...]) -> None:
        self.geometry = geometry = scores.geometry
        L, H, K = geometry.layers, geometry.heads, len(geometry.scales)
        self.source_N, self.layer_N = np.tile(np.arange(K - 1), L * H), np.repeat(np.arange(L), H * (K - 1))
        self.cost_FN = np.stack([cell_cost(geometry, name)[self.source_N] for name in levels])
        self.gone_TN, self.round_TN = losses(scores, levels)
        self.noise_F = np.array([NOISE[name] if len(levels) > 1 else 0.0 for name in levels])
        self.drop_N, self.level_N = np.full(L * H * (K - 1), K), np.zeros(L * H * (K - 1), np.int64)
        self.came_N = gone(self.source_N + 1, self.layer_N, geometry)
        own_M = lines_being_drawn(geometry, levels[0])
        arrived_M = np.bincount(self.came_N, self.cost_FN[0], minlength=len(own_M)).astype(np.int64)
        self.resident_M: Ints = own_M + np.cumsum(arrived_M)

    def take(self, moment: int, quantum: int) -> tuple[Ints, Ints, Ints]:
        """Take the cheapest steps of cells that are held at a moment: which cells, with their new times and levels."""
        at_N = next_reader(moment, self.layer_N, self.geometry)
        rate_FN, save_FN = self.prices(at_N)
        best_N, all_N = rate_FN.argmin(0), np.arange(len(at_N))
        cells = cheapest(rate_FN[best_N, all_N], save_FN[best_N, all_N], quantum)
        lower, level = best_N[cells] + 1, self.level_N[cells]
        goes = lower == len(self.cost_FN)
        times, levels = np.where(goes, at_N[cells], len(self.geometry.scales)), np.where(goes, level, lower)
        drop = np.minimum(self.drop_N[cells], times)
        self.recount(cells, drop, levels)
        self.drop_N[cells], self.level_N[cells] = drop, levels
        return cells, times, levels

    def prices(self, at_N: Ints) -> tuple[Floats, Ints]:
        """Of every cell and step, to each level below the first and at the end to nothing: loss a byte, and bytes."""
        all_N, noise_N = np.arange(len(at_N)), self.noise_F[self.level_N]
        cost_N = self.cost_FN[self.level_N, all_N]
        until_N, before_N = self.round_TN[self.drop_N, all_N], self.round_TN[at_N, all_N]
        rounded_FN = (self.noise_F[1:, None] - noise_N) * until_N
        gone_N = self.gone_TN[self.drop_N, all_N] - self.gone_TN[at_N, all_N] - noise_N * (until_N - before_N)
        loss_FN = np.concatenate([rounded_FN, gone_N[None]])
        save_FN = np.concatenate([cost_N - self.cost_FN[1:], cost_N[None]])
        held_N = (self.drop_N > at_N) & (self.source_N < at_N)
        return np.where(held_N & (save_FN > 0), loss_FN / np.maximum(save_FN, 1), np.inf), save_FN

    def recount(self, cells: Ints, drop: Ints, levels: Ints) -> None:
        """What moments hold when cells are dropped at ``drop`` and stored in ``levels``."""
        moments, layers = len(self.resident_M), self.layer_N[cells]
        before, after = self.cost_FN[self.level_N[cells], cells], self.cost_FN[levels, cells]
        changed_M = np.zeros(moments + 1, np.int64)
        np.add.at(changed_M, self.came_N[cells], after - before)
        for end, cost in ((self.drop_N[cells], before), (drop, -after)):
            np.add.at(changed_M, np.minimum(gone(end, layers, self.geometry), moments), cost)
        self.resident_M += np.cumsum(changed_M[:-1])


def losses(scores: HeadScores, levels: tuple[str, ...]) -> tuple[Floats, Floats]:
    """What is lost, over all target scales before each, of every cell that is gone, or stored in 4 bits.

    Each ``[scales + 1, cells]``: differences say what it costs from one target scale to another.
    """
    if scores.change_LHTS is None:
        raise ValueError("these scores do not say how outputs change without a cell; calibrate again")
    rounding_LHTS = scores.rounding_LHTS
    if rounding_LHTS is None:
        if len(levels) > 1:
            raise ValueError("these scores do not say how outputs change with a cell in fewer bits; calibrate again")
        rounding_LHTS = np.zeros_like(scores.change_LHTS)  # one level: what it loses decides nothing
    K = len(scores.geometry.scales)
    sums = []
    for change_LHTS in (scores.change_LHTS, rounding_LHTS):
        change_TN = np.moveaxis(change_LHTS[..., : K - 1], 2, 0).reshape(K, -1)
        sums.append(np.concatenate([np.zeros_like(change_TN[:1]), np.cumsum(change_TN, axis=0)]))
    return sums[0], sums[1]


def cheapest(rate_N: Floats, save_N: Ints, quantum: int) -> Ints:
    """The cells whose steps lose least, one or as many as free ``quantum`` together."""
    few = np.argpartition(rate_N, min(TOGETHER, len(rate_N) - 1))[: TOGETHER + 1]
    chosen = few[np.argsort(rate_N[few], kind="stable")]
    chosen = chosen[np.isfinite(rate_N[chosen])]
    fits = np.cumsum(save_N[chosen]) <= quantum
    fits[:1] = True
    return chosen[fits]


# Moments of a run at which the cache may be fullest: with scales number t * L + l is after layer l of scale t, with
# lines number t is the end of line t, as cells go between lines.


def lines_being_drawn(geometry: Geometry, storage: str) -> Ints:
    """What is held at every moment beside cells of earlier segments."""
    scales = geometry.scales
    if scales.by_line:
        return token_cost(geometry, storage) * geometry.head_count * np.array(scales.open_tokens)
    return np.zeros((len(scales) - 1) * geometry.layers, np.int64)


def gone(drop_N: Ints, layer_N: Ints, geometry: Geometry) -> Ints:
    """The first moment at which a cell that is dropped at a target is no longer held (source + 1: at which it came)."""
    return drop_N if geometry.scales.by_line else (drop_N - 1) * geometry.layers + layer_N


def next_reader(moment: int, layer_N: Ints, geometry: Geometry) -> Ints:
    """The target for which layers hold their cells at a moment: layers that a scale has passed, for the next one."""
    if geometry.scales.by_line:
        return np.full(len(layer_N), moment)
    scale, layer = divmod(moment, geometry.layers)
    return scale + (layer_N <= layer)


POLICY = Policy(
    name="heatkv+",
    title="HeatKV+",
    summary="Takes bits, and in the end the cell, where the layers' output changes least: 8, 4, 2 bits or none.",
    provenance="ours",
    needs="change",
    stored=stored,
    sinks=False,
    storage=MIXED,
)
POLICY_16 = replace(
    POLICY,
    name="heatkv+16",
    title="HeatKV+ without fewer bits",
    summary="HeatKV+ with keys and values stored as they are: what its choice of cells gains by itself.",
    storage="compute",
)
