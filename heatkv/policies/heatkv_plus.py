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

    # Moment t * L + l is after layer l of scale t. A cell is held from moment source * L + layer on, until moment
    # (drop_at - 1) * L + layer.
    came = np.bincount(source_N * L + layer_N, tokens_N, minlength=(K - 1) * L).astype(np.int64)
    resident_M = np.cumsum(came)
    quantum = max(1, int(QUANTUM * geometry.full_peak_tokens))
    cells: list[npt.NDArray[np.int64]] = []
    times: list[npt.NDArray[np.int64]] = []
    peaks: list[int] = []
    while (peak := int(resident_M.max(initial=0))) > 0:
        scale, layer = divmod(int(resident_M.argmax()), L)
        split = (layer + 1) * H * (K - 1)
        # Layers up to this one hold cells for the next scale; the later ones still hold those for this scale.
        at_N = np.full(len(source_N), scale)
        at_N[:split] += 1
        before_N = np.concatenate([read_TN[scale + 1, :split], read_TN[scale, split:]])
        loss_N = np.where((drop_N > at_N) & (source_N < at_N), now_N - before_N, np.inf)
        few = np.argpartition(loss_N, min(quantum, len(loss_N) - 1))[: quantum + 1]
        chosen = few[np.argsort(loss_N[few], kind="stable")]
        chosen = chosen[np.isfinite(loss_N[chosen])]
        fits = np.cumsum(tokens_N[chosen]) <= quantum
        fits[0] = True
        chosen = chosen[fits]
        freed_M = np.zeros_like(resident_M)
        np.add.at(freed_M, (at_N[chosen] - 1) * L + layer_N[chosen], tokens_N[chosen])
        again = drop_N[chosen] < K  # the others would have been held until the end
        np.subtract.at(freed_M, ((drop_N[chosen] - 1) * L + layer_N[chosen])[again], tokens_N[chosen][again])
        resident_M -= np.cumsum(freed_M)
        drop_N[chosen] = at_N[chosen]
        now_N[chosen] = before_N[chosen]
        cells.append(chosen)
        times.append(at_N[chosen])
        peaks += [peak] * len(chosen)
    return np.concatenate(cells), np.concatenate(times), np.array([*peaks, 0])


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
