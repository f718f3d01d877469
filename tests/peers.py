"""What the tests of policies share: models, scores, and ways to look into a cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from strategies import random_scores
from test_cache import GEOMETRY
from torch import Tensor

from heatkv.cache.by_line import LineMemory
from heatkv.cache.packed_lines import PackedLineMemory
from heatkv.cache.seam import KVCache, ScheduleCache
from heatkv.policies import make_cache
from heatkv.policies.tokens import TokenCache
from heatkv.scales import Geometry, ScaleSchedule
from heatkv.scores import HeadScores

SINKS = 2
LONG = Geometry(4, 4, 8, ScaleSchedule.square((1, 2, 3, 4, 6, 7, 8)))


def scores_of(geometry: Geometry, seed: int = 0) -> HeadScores:
    """Random scores with all that a calibration measures."""
    plain, rng = random_scores(geometry, seed), np.random.default_rng(seed + 1)
    change_LHTS = np.tril(rng.random(plain.mass_sum_LHTS.shape) ** 3, -1)
    spread_LH = rng.random((geometry.layers, geometry.heads))
    rounding_LHTS = change_LHTS * rng.random(change_LHTS.shape) * 1e-2
    return HeadScores(
        plain.model, geometry, plain.mass_sum_LHTS, plain.prompts, 1, {}, change_LHTS, spread_LH, rounding_LHTS
    )


def cache_of(
    name: str, budget: float, geometry: Geometry = GEOMETRY, sinks: int = SINKS, **options: Any
) -> KVCache:  # fmt: skip
    return make_cache(name, geometry, budget, scores_of(geometry), sinks, **options)


def held(cache: KVCache, layer: int, lanes: int, target: int = 0) -> list[set[int]]:
    """Positions that each lane of a layer holds: what it reads at scale ``target``, the next, beside its own scale."""
    if isinstance(cache, TokenCache):
        positions = cache.held_positions(layer)
        return [set(pos.tolist()) for pos in positions] or [set()] * lanes
    assert isinstance(cache, ScheduleCache)
    bounds = cache.geometry.scales.bounds
    keep_HS = cache.schedule.keep(target)[layer]
    per_head = [{p for s in range(target) if keep[s] for p in range(*bounds[s])} for keep in keep_HS]
    return per_head * (lanes // len(per_head))


def masked_attention(q: Tensor, keys: list[Tensor], values: list[Tensor], reads: list[set[int]]) -> Tensor:
    """Attention of every lane over its own scale and the positions that it holds, in float64."""
    k, v = (torch.cat(x, 2).flatten(0, 1).double() for x in (keys, values))
    own = q.shape[2]
    mask = torch.zeros(len(k), k.shape[1], dtype=torch.bool)
    mask[:, -own:] = True
    for lane, positions in enumerate(reads):
        mask[lane, list(positions)] = True
    logits = q.flatten(0, 1).double() @ k.transpose(1, 2)
    return (logits.masked_fill(~mask[:, None], -torch.inf).softmax(-1) @ v).view(q.shape).to(q.dtype)


def storage_bytes(cache: KVCache) -> int:
    """Bytes of all cached keys and values alive, counted from the tensors themselves."""
    if isinstance(cache, TokenCache):
        if cache._lines is not None:
            return sum(held.memory_2BED.untyped_storage().nbytes() for held in cache._lines.layers if held)
        holders: list[Any] = [piece for state in cache._layers if state for piece in state.pieces]
    else:
        assert isinstance(cache, ScheduleCache)
        memory = cache._memory
        if isinstance(memory, LineMemory | PackedLineMemory):
            return sum(held.memory.untyped_storage().nbytes() for held in memory.holders)
        return memory._arena.entries.nbytes if memory._arena else 0
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for c in holders for t in (c.k, c.v)}
    return sum(storages.values())
