"""Calibration: where every head looks, measured while a few prompts generate with the full cache.

Generation itself runs as ever. Beside it the queries of the counted rows are looked at, up to
``SAMPLE_QUERIES`` of a scale spread over its map, in tiles of ``TILE_PRODUCTS`` probabilities, so that
no array grows with queries x keys. A tile's probabilities p tell

- the mass m that each query puts on a source scale, summed into S-CAS;
- what the layer's output o would be without a source scale: its share of the output is u = p v over
  the scale's keys, and the change is (u - m o) / (1 - m); and what it would be with the scale in 4 bits
  (``rounding``);
- at the last scale, whether a head's queries all read the same keys (see ``HeadScores``).

The mass is exact: where a scale has more queries than that, it is taken of all of them by the
log-sum-exp of each source scale (attention.py), which forms no probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from heatkv.cache.attention import PartialAttention, partial_attention, partial_weights
from heatkv.cache.seam import Entries, ScheduleCache, full_schedule
from heatkv.files import shown
from heatkv.formats import FORMATS
from heatkv.models.base import GenerativeModel, Sampling, seeded_noise
from heatkv.models.memory import check_batch
from heatkv.scales import Geometry
from heatkv.scores import HeadScores

SAMPLE_QUERIES = 256  # of a scale, spread over its map
TILE_PRODUCTS = 1 << 18  # probabilities at a time: what fits the cache of a processor
EVERY = 4  # of these queries, for what rounding changes
ROUNDED_TO = FORMATS["int4"]
LEAST_REST = 1e-4  # a source scale with more mass than 1 - LEAST_REST is taken as having that much


@dataclass(frozen=True)
class Observation:
    """One layer at one target scale, summed over rows, float64.

    ``mass_HS`` is the mean mass of the queries on each source scale, its own last; ``change_HS`` the share
    of the layer's output that changes without an earlier source scale, ``rounding_HS`` with it in 4 bits;
    ``spread_H`` the variance over queries of what a key receives, summed over keys.
    """

    mass_HS: Tensor
    change_HS: Tensor
    rounding_HS: Tensor | None = None
    spread_H: Tensor | None = None


def observe(
    q_BHND: Tensor,
    k_BHMD: Tensor,
    v_BHMD: Tensor,
    bounds: Sequence[tuple[int, int]],
    *,
    unseen_BNM: Tensor | None = None,
    spread: bool = True,
    rounded: bool = True,
) -> Observation:
    """What the queries of a scale do with the keys of the source scales at ``bounds``, the last of them their own.

    ``unseen_BNM``: keys that a query may not read (of one line's queries, ``B`` may be 1). ``spread``, ``rounded``:
    whether to measure these too.
    """
    batch, heads, queries, dim = q_BHND.shape
    sources, keys = len(bounds), k_BHMD.shape[2]
    if sources == 1 and not spread:  # a scale that is alone reads itself
        return Observation(torch.full((heads, 1), batch, dtype=torch.float64), torch.empty(heads, 0))
    # One dimension R for the heads of all batch rows, which takes fewer operations.
    every = -(-queries // SAMPLE_QUERIES) if unseen_BNM is None else 1  # what each may not read goes with it
    q_RND = q_BHND[:, :, ::every].float().flatten(0, 1)
    k_RDM, v_RMD = k_BHMD.float().flatten(0, 1).transpose(1, 2), v_BHMD.float().flatten(0, 1)
    of_source_SM = keys_of_sources(tuple(bounds), q_RND.device)
    if rounded:
        with_square_RME = torch.cat([v_RMD, v_RMD.square().sum(-1, True), torch.ones_like(v_RMD[..., :1])], -1)
        variances_RSD = rounding_variance(k_RDM.transpose(1, 2), bounds), rounding_variance(v_RMD, bounds)
    sums: list[Tensor] = []
    tile, first = max(1, TILE_PRODUCTS // (batch * heads * max(keys, sources * dim))), 0
    for tile_RND in q_RND.split(tile, dim=1):
        logits_RNM = torch.bmm(tile_RND, k_RDM)
        if unseen_BNM is not None:
            unseen_B1NM = unseen_BNM[:, None, first : first + tile]
            logits_RNM.view(batch, heads, -1, keys).masked_fill_(unseen_B1NM, -torch.inf)
            first += tile
        p_RNM = logits_RNM.softmax(-1)
        mass_RSN = of_source_SM @ p_RNM.transpose(1, 2)
        share_SRND = q_RND.new_empty(sources, *tile_RND.shape)
        for share_RND, (start, end) in zip(share_SRND.unbind(), bounds, strict=True):
            torch.bmm(p_RNM[:, :, start:end], v_RMD[:, start:end], out=share_RND)
        out_RND = share_SRND.sum(0)
        earlier_SRN1 = mass_RSN[:, :-1].transpose(0, 1).unsqueeze(-1)
        lost_SRN = torch.addcmul(share_SRND[:-1], earlier_SRN1, out_RND, value=-1).square_().sum(-1)
        rest_SRN = (1 - earlier_SRN1.squeeze(-1)).clamp_min_(LEAST_REST)
        change_SR = (lost_SRN / rest_SRN.square_()).sum(2)
        of_tile = [mass_RSN.sum(2), out_RND.square().sum((1, 2)), change_SR]
        if rounded:
            of_tile.append(rounding(tile_RND, p_RNM, out_RND, with_square_RME, *variances_RSD, bounds))
        if spread:
            of_tile += [p_RNM.sum(1), p_RNM.square_().sum((1, 2))]
        sums = [a + b for a, b in zip(sums, of_tile, strict=True)] if sums else of_tile
    mass_RS, energy_R, change_SR = sums[:3]
    mass_BHS = mass_RS.view(batch, heads, sources)
    n = q_RND.shape[1]
    if n < queries:
        pieces = [PartialAttention(*partial_attention(q_BHND, k_BHMD[:, :, a:b], v_BHMD[:, :, a:b])) for a, b in bounds]
        mass_BHS = torch.stack([weight_BHN.sum(2) for weight_BHN in partial_weights(pieces)], -1)
    energy_B = energy_R.view(batch, heads).sum(1).clamp_min(1e-30)

    # Sums in float64 are taken on the host, as not every device has it.
    def share_of_output(sum_SR: Tensor) -> Tensor:
        return (sum_SR.T.view(batch, heads, -1) / energy_B[:, None, None]).cpu().sum(0, dtype=torch.float64)

    mass_HS = mass_BHS.cpu().sum(0, dtype=torch.float64) / queries
    spread_H = None
    if spread:
        received_RM, square_R = sums[-2:]
        spread_R = (square_R / n - (received_RM / n).square().sum(1)).clamp_min(0)
        spread_H = spread_R.view(batch, heads).cpu().sum(0, dtype=torch.float64)
    rounding_HS = share_of_output(sums[3]) if rounded else None
    return Observation(mass_HS, share_of_output(change_SR), rounding_HS, spread_H)


def rounding_variance(x_RMD: Tensor, bounds: Sequence[tuple[int, int]]) -> Tensor:
    """Variance of the error of keys or values of the earlier source scales in `ROUNDED_TO`, ``[R, S, D]``."""
    ends = [x_RMD[:, start:end].aminmax(dim=1) for start, end in bounds[:-1]]
    if not ends:
        return x_RMD.new_empty(len(x_RMD), 0, x_RMD.shape[2])
    _, (step, _) = ROUNDED_TO.fit(torch.stack([e.min for e in ends], 1), torch.stack([e.max for e in ends], 1))
    return step.square() / 12


def rounding(
    q_RND: Tensor, p_RNM: Tensor, out_RND: Tensor, with_square_RME: Tensor, key_RSD: Tensor,
    value_RSD: Tensor, bounds: Sequence[tuple[int, int]],
) -> Tensor:  # fmt: skip
    """Expected squared change of the output with each earlier source scale rounded, summed over queries, ``[S, R]``.

    To first order: the logit of a key is off by a variance of sum_d q_d^2 var_d, which moves the output by p (v - o),
    and a value is off by p times its own error. Errors of different tokens are independent. Of every `EVERY`-th query.
    """
    queries = q_RND.shape[1]
    q_RND, p_RNM, out_RND = (x[:, ::EVERY] for x in (q_RND, p_RNM, out_RND))
    square_RNM, dim = p_RNM.square(), q_RND.shape[-1]
    logits_RNS = torch.bmm(q_RND.square(), key_RSD.transpose(1, 2))
    values_RS = value_RSD.sum(-1)
    changes = []
    for s, (start, end) in enumerate(bounds[:-1]):
        moments_RNE = torch.bmm(square_RNM[:, :, start:end], with_square_RME[:, start:end])
        square_RN = moments_RNE[..., dim + 1]
        cross_RN = (moments_RNE[..., :dim] * out_RND).sum(-1)
        away_RN = moments_RNE[..., dim] - 2 * cross_RN + square_RN * out_RND.square().sum(-1)
        changes.append((away_RN.clamp_min_(0) * logits_RNS[..., s] + square_RN * values_RS[:, s, None]).sum(1))
    # Each stands for as many as there are, which is fewer than `EVERY` at the end of a tile.
    return torch.stack(changes) * (queries / q_RND.shape[1]) if changes else q_RND.new_empty(0, len(q_RND))


@lru_cache(maxsize=64)
def keys_of_sources(bounds: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """1 where a key is of a source scale, ``[sources, keys]``."""
    of_key = np.repeat(np.arange(len(bounds)), [end - start for start, end in bounds])
    return F.one_hot(torch.from_numpy(of_key), len(bounds)).float().T.to(device)


class CalibratingCache(ScheduleCache):
    """A full cache that sums up the softmax mass of every head on every source scale, and what follows from it.

    Parameters
    ----------
    geometry
        Of the model that runs.
    rows
        The first so many batch rows count: with classifier-free guidance the conditional half, as in
        the published accumulator. Default: all.
    """

    def __init__(self, geometry: Geometry, rows: int | None = None) -> None:
        super().__init__(geometry, full_schedule(geometry))
        self.rows = rows
        K = len(geometry.scales)
        self._mass_LHTS = torch.zeros(geometry.layers, geometry.heads, K, K, dtype=torch.float64)
        self._change_LHTS = torch.zeros_like(self._mass_LHTS)
        self._rounding_LHTS = torch.zeros_like(self._mass_LHTS)
        self._spread_LH = self._mass_LHTS.new_zeros(geometry.layers, geometry.heads)
        self._pending: list[tuple[int, int, Observation]] = []

    def look(self, layer: int, q_BHND: Tensor, entries: Entries) -> None:
        q, k, v = (x[: self.rows] for x in (q_BHND, *entries.all_heads()))
        bounds = self.geometry.scales.bounds[: self.scale + 1]
        seen = observe(
            q, k, v, bounds, unseen_BNM=self._unseen(len(q), q.device), spread=self.last_scale
        )  # fmt: skip
        self._pending.append((layer, self.scale, seen))

    def _unseen(self, rows: int, device: torch.device) -> Tensor | None:
        """Which of the tokens so far the queries of a line do not see: what comes after them, hidden condition."""
        if not self.geometry.scales.by_line or self.scale == 0:
            return None
        start, end = self.geometry.scales.bounds[self.scale]
        position_M = torch.arange(end, device=device)
        unseen_BNM = (position_M > position_M[start:, None])[None]
        if self.hidden_BT is not None:
            hidden_BT = self.hidden_BT[:rows]
            unseen_BNM = unseen_BNM | F.pad(hidden_BT, (0, end - hidden_BT.shape[1]))[:, None]
        return unseen_BNM

    def _flushed(self, sums: Tensor) -> np.ndarray:
        # Only now, so that there is no wait for the device inside a scale.
        for layer, t, seen in self._pending:
            self._mass_LHTS[layer, :, t, : t + 1] += seen.mass_HS.cpu()
            self._change_LHTS[layer, :, t, :t] += seen.change_HS.cpu()
            if seen.rounding_HS is not None:
                self._rounding_LHTS[layer, :, t, :t] += seen.rounding_HS.cpu()
            if seen.spread_H is not None:
                self._spread_LH[layer] += seen.spread_H.cpu()
        self._pending.clear()
        return sums.numpy().copy()

    @property
    def mass_LHTS(self) -> np.ndarray:
        """Sum over rows of the mean mass of target scale t's queries on source scale s, float64."""
        return self._flushed(self._mass_LHTS)

    @property
    def change_LHTS(self) -> np.ndarray:
        """Sum over rows of the share of the layer's output that changes at t without source scale s, float64."""
        return self._flushed(self._change_LHTS)

    @property
    def rounding_LHTS(self) -> np.ndarray:
        """Sum over rows of the share of the layer's output that changes at t with source scale s in 4 bits, float64."""
        return self._flushed(self._rounding_LHTS)

    @property
    def spread_LH(self) -> np.ndarray:
        """Sum over rows of the variance over the last scale's queries of what keys receive, float64."""
        return self._flushed(self._spread_LH)


def calibrate_steps(
    model: GenerativeModel, prompts: Sequence[str], seed: int = 0, sampling: Sampling | None = None, batch: int = 1
) -> Iterator[HeadScores]:
    """Calibrate prompt by prompt; yields the scores so far after each ``batch`` of prompts.

    Prompt i generates with seed ``seed + i`` whatever the batch. Raises ``ValueError`` without
    prompts or for seeds out of range, and ``PromptError`` for a prompt the model can make nothing of, before
    anything runs.
    """
    if isinstance(prompts, str):
        raise ValueError(f"{shown(prompts)} is one text: pass a list of prompts")
    if not prompts:
        raise ValueError("calibration needs at least one prompt")
    if batch < 1:
        raise ValueError(f"batch {shown(batch)} must be 1 or more")
    batch = min(batch, len(prompts))
    check_batch(model, batch)
    for prompt in prompts:
        model.check_prompt(prompt)
    seeds = [seed + i for i in range(len(prompts))]
    seeded_noise(seeds)
    sampling = sampling or model.sampling
    sums: list[np.ndarray | None] = [None] * 4
    for first in range(0, len(prompts), batch):
        chunk = prompts[first : first + batch]
        cache = CalibratingCache(model.geometry, rows=len(chunk))
        for _ in model.run(chunk, seeded_noise(seeds[first : first + batch]), cache, sampling):
            pass
        measured = cache.mass_LHTS, cache.change_LHTS, cache.spread_LH, cache.rounding_LHTS
        sums = [None if b is None else b if a is None else a + b for a, b in zip(sums, measured, strict=True)]
        mass, *extras = sums
        assert mass is not None
        done = first + len(chunk)
        settings = {"seed": seed, "dtype": str(model.dtype), **asdict(sampling)}
        yield HeadScores(model.id, model.geometry, mass, tuple(prompts[:done]), done, settings, *extras)


def calibrate(
    model: GenerativeModel, prompts: Sequence[str], seed: int = 0, sampling: Sampling | None = None, batch: int = 1
) -> HeadScores:
    """Scores of all ``prompts`` (see ``calibrate_steps``)."""
    *_, scores = calibrate_steps(model, prompts, seed, sampling, batch)
    return scores
