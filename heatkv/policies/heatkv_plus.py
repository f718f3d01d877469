"""HeatKV+ (ours): let go, one by one, of the cells whose loss changes the model's layers least, wherever memory peaks.

Three things differ from HeatKV.

**What a cell is worth.** Not how much attention it gets but how much the attention output of its layer would change
without it: ``(o - m o_s) / (1 - m)`` in closed form, squared, as a share of the output of all heads
(`HeadScores.change_LHTS`). Values that agree with the rest of what a head reads can go at no cost, whatever attention
they get; and some heads say little whatever they read.

**What competes.** All cells of all heads, layers and scales with each other, by worth per token to the scales still to
come; not equally many heads a scale. No scale is a sink by decree: the first ones stay where they matter.

**How it is planned.** Start from the full cache and look for the moment (after some layer of some scale) at which it
holds most. Of the cells held at that moment, let the one go whose reading from then on loses least per token; repeat.
The evictions are one sequence, the same for every budget: a budget says how far along it to go. So plans are nested in
the budget, and they keep to it after every layer, not only between scales.

What stays is stored in 8 bits (`heatkv.cache.seam`), which leaves room for nearly twice the cells; ``heatkv+16`` does
without. Static and monotone; calibration is HeatKV's. Provenance: this repository, with its evidence in LOG.md.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from heatkv.policies.base import PlanInput, Policy
from heatkv.scales import Geometry
from heatkv.scores import HeadScores

# Evictions of one moment go together up to this share of the full peak: a bound on the memory left unused.
QUANTUM = 1 / 256

Evictions = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]


def drop_at(inputs: PlanInput) -> npt.NDArray[np.int64]:
    assert inputs.scores is not None
    cells, times, peaks = evictions(inputs.scores)
    L, H, K = inputs.geometry.layers, inputs.geometry.heads, len(inputs.geometry.scales)
    drop_at_LHS = np.full((L, H, K), K)
    # Peaks fall along the sequence; the first one within the limit ends it.
    taken = np.searchsorted(-peaks, -inputs.limit)
    prunable_N = np.full(L * H * (K - 1), K)
    np.minimum.at(prunable_N, cells[:taken], times[:taken])
    drop_at_LHS[:, :, : K - 1] = prunable_N.reshape(L, H, K - 1)
    return drop_at_LHS


@lru_cache(maxsize=8)
def evictions(scores: HeadScores) -> Evictions:
    """The whole sequence, from the full cache to an empty one.

    Returns
    -------
    cells, times, peaks
        Cell ``(layer * heads + head) * (scales - 1) + source`` is dropped at target scale ``times`` (an earlier one
        each time that it comes up again); ``peaks`` has an entry more: the peak in tokens before every eviction, and
        after the last.
    """
    if scores.change_LHTS is None:
        raise ValueError("these scores do not say how outputs change without a cell; calibrate again")
    geometry = scores.geometry
    L, H, K = geometry.layers, geometry.heads, len(geometry.scales)
    source_N = np.tile(np.arange(K - 1), L * H)
    layer_N = np.repeat(np.arange(L), H * (K - 1))
    tokens_N = np.array(geometry.scales.tokens[:-1])[source_N]
    # Worth per token up to and without target scale d, [K + 1, N]: differences say what dropping earlier loses.
    worth_TN = np.moveaxis(scores.change_LHTS[..., : K - 1], 2, 0).reshape(K, -1) / tokens_N
    read_TN = np.concatenate([np.zeros_like(worth_TN[:1]), np.cumsum(worth_TN, axis=0)])
    drop_N = np.full(len(source_N), K)
    now_N = read_TN[K].copy()

    own_M = lines_being_drawn(geometry)
    came_M = np.bincount(gone(source_N + 1, layer_N, geometry), tokens_N, minlength=len(own_M))
    resident_M = own_M + np.cumsum(came_M.astype(np.int64))
    quantum = max(1, int(QUANTUM * geometry.full_peak_tokens))
    cells: list[npt.NDArray[np.int64]] = []
    times: list[npt.NDArray[np.int64]] = []
    peaks: list[int] = []
    while (peak := int(resident_M.max(initial=0))) > 0:
        at_N = next_reader(int(resident_M.argmax()), layer_N, geometry)
        before_N = read_TN[at_N, np.arange(len(at_N))]
        loss_N = np.where((drop_N > at_N) & (source_N < at_N), now_N - before_N, np.inf)
        few = np.argpartition(loss_N, min(quantum, len(loss_N) - 1))[: quantum + 1]
        chosen = few[np.argsort(loss_N[few], kind="stable")]
        chosen = chosen[np.isfinite(loss_N[chosen])]
        if not len(chosen):  # what is left is the line that is being drawn
            break
        fits = np.cumsum(tokens_N[chosen]) <= quantum
        fits[0] = True
        chosen = chosen[fits]
        freed_M = np.zeros_like(resident_M)
        np.add.at(freed_M, gone(at_N[chosen], layer_N[chosen], geometry), tokens_N[chosen])
        again = chosen[drop_N[chosen] < K]  # the others would have been held until the end
        np.subtract.at(freed_M, gone(drop_N[again], layer_N[again], geometry), tokens_N[again])
        resident_M -= np.cumsum(freed_M)
        drop_N[chosen] = at_N[chosen]
        now_N[chosen] = before_N[chosen]
        cells.append(chosen)
        times.append(at_N[chosen])
        peaks += [peak] * len(chosen)
    nothing: npt.NDArray[np.int64] = np.zeros(0, np.int64)
    return np.concatenate([nothing, *cells]), np.concatenate([nothing, *times]), np.array([*peaks, peak])


# Moments of a run at which the cache may be fullest: with scales number t * L + l is after layer l of scale t, with
# lines number t is the end of line t, as cells go between lines.


def lines_being_drawn(geometry: Geometry) -> npt.NDArray[np.int64]:
    """What is held at every moment beside cells of earlier segments."""
    scales = geometry.scales
    if scales.by_line:
        return geometry.head_count * np.array(scales.open_tokens)
    return np.zeros((len(scales) - 1) * geometry.layers, np.int64)


def gone(drop_N: npt.NDArray[np.int64], layer_N: npt.NDArray[np.int64], geometry: Geometry) -> npt.NDArray[np.int64]:
    """The first moment at which a cell that is dropped at a target is no longer held (source + 1: at which it came)."""
    return drop_N if geometry.scales.by_line else (drop_N - 1) * geometry.layers + layer_N


def next_reader(moment: int, layer_N: npt.NDArray[np.int64], geometry: Geometry) -> npt.NDArray[np.int64]:
    """The target for which layers hold their cells at a moment: layers that a scale has passed, for the next one."""
    if geometry.scales.by_line:
        return np.full(len(layer_N), moment)
    scale, layer = divmod(moment, geometry.layers)
    return scale + (layer_N <= layer)


POLICY = Policy(
    name="heatkv+",
    title="HeatKV+",
    summary="Lets go of the cells, of any scale, that change the layers' output least; keeps the rest in 8 bits.",
    provenance="ours",
    needs="change",
    drop_at=drop_at,
    sinks=False,
    storage="int8",
)
POLICY_16 = replace(
    POLICY,
    name="heatkv+16",
    title="HeatKV+ without 8 bits",
    summary="The plan of HeatKV+ with keys and values stored as they are: what the ranking alone gains.",
    storage="compute",
)
