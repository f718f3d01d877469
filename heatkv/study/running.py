"""Computing a shard: what it takes, and what comes of it."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from heatkv.budget import least_budget
from heatkv.cache.seam import ScheduleCache, full_cache
from heatkv.models import load
from heatkv.models.base import GenerativeModel, seeded_noise
from heatkv.policies import cache_factory, plan, variant
from heatkv.study import metrics, perceptual
from heatkv.study.metrics import METRICS
from heatkv.study.shards import BATCHES, Outcome, Setting, Shard, ShardError

OTHER_SEED = 500_000  # added for the "another seed" reference

_held: dict[tuple[str, str, str], GenerativeModel] = {}


def loaded(model: str, device: str, dtype: str) -> GenerativeModel:
    """The model; one at a time: the one before goes first, as large models do not fit twice."""
    key = model, device, dtype
    if key not in _held:
        let_go()
        _held[key] = load(model, device, dtype)
    return _held[key]


def let_go() -> None:
    """Free the model that `loaded` holds."""
    _held.clear()
    gc.collect()


def cache_maker(setting: Setting, shard: Shard) -> Any:
    """What makes the caches of a shard. Raises ``ValueError`` where its policy can not keep to its budget."""
    geometry, scores = setting.scores.geometry, setting.scores
    if shard.kind == "policy":
        policy, asked = variant(shard.policy)
        asked = {"sink_scales": setting.sink_scales, **asked}
        return cache_factory(policy.name, geometry, shard.budget, scores, seed=shard.order, **asked)
    if shard.kind == "sinks_only":
        least = least_budget(geometry.scales, setting.sink_scales)
        schedule = plan(scores, least, "heatkv", setting.sink_scales)
        return lambda: ScheduleCache(geometry, schedule)
    return lambda: full_cache(geometry)


def execute(setting: Setting, shard: Shard, fingerprint: str, full: bytes | None, full_fingerprint: str) -> bytes:
    """Compute a shard: the bytes of its file. ``full`` is the file of the full cache over the same images."""
    threads = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    try:
        outcome = _outcome(setting, shard, full, full_fingerprint)
    finally:
        torch.set_num_threads(threads)
    return outcome.to_bytes(fingerprint)


def _outcome(setting: Setting, shard: Shard, full: bytes | None, full_fingerprint: str) -> Outcome:
    model = loaded(setting.model, setting.device, setting.dtype_of(shard))
    outcome = _generate(setting, shard, model)
    if shard.kind == "full":
        return outcome
    reference = Outcome.from_bytes(full or b"", full_fingerprint, Shard("full", shard.first, shard.sample))
    if reference is None:
        raise ShardError(f"{shard.words}: the images of the full cache to score against are missing or damaged")
    outcome = score(reference, outcome)
    if shard.kind in ("policy", "sinks_only") and model.geometry.scales.by_line:
        outcome = replace(outcome, forced_IM=teacher_forced(setting, shard, model, reference.tokens_K))
    return outcome


def _generate(setting: Setting, shard: Shard, model: GenerativeModel) -> Outcome:
    make_cache, sample = cache_maker(setting, shard), shard.sample
    offset = OTHER_SEED if shard.kind == "other_seed" else 0
    pixels, tokens, peak, share = [], [], 0, 0.0
    started = time.perf_counter()
    for first in range(0, len(sample.prompts), setting.batch):
        part, cache = sample.slice(first, setting.batch), make_cache()
        share = max(share, cache.planned_share)
        steps = list(model.run(part.prompts, seeded_noise([s + offset for s in part.seeds]), cache, model.sampling))
        pixels.append(model.decode(steps[-1].latent).numpy())
        tokens.append([step.tokens.cpu().numpy() for step in steps])
        peak = max(peak, cache.peak_bytes // len(part.prompts))
    seconds = (time.perf_counter() - started) / len(sample.prompts)
    facts = {"kv_bytes_peak": float(peak), "share_16bit": share, "seconds": seconds}
    tokens_K = tuple(np.concatenate(scale) for scale in zip(*tokens, strict=True))
    none = np.zeros((0, len(METRICS)))
    return Outcome(facts, none, np.zeros((0, 0)), pixels=np.concatenate(pixels), tokens_K=tokens_K)


def teacher_forced(
    setting: Setting, shard: Shard, model: Any, tokens_K: Sequence[npt.NDArray[np.generic]]
) -> npt.NDArray[np.float64]:
    """`FORCED` of every image: both caches read the images of the full one, and only what is cached differs."""
    make_cache, rows = cache_maker(setting, shard), []
    names = setting.model, setting.device, setting.dtype_of(shard)
    tokens_IN = np.concatenate(tokens_K, axis=1).astype(np.int64)
    for first in range(0, len(tokens_IN), setting.batch):
        prompts = shard.sample.slice(first, setting.batch).prompts
        tokens_BN = torch.from_numpy(tokens_IN[first : first + setting.batch])
        likely_NBV = forced_reference(names, prompts, tokens_BN.numpy().tobytes(), tokens_BN.shape[1])
        replayed = model.replay(prompts, tokens_BN, make_cache(), model.sampling)
        seen = [
            metrics.token_difference(full_BV.float(), logits_BV.cpu().log_softmax(-1))
            for full_BV, logits_BV in zip(likely_NBV, replayed, strict=True)
        ]
        rows.append(np.mean(seen, axis=0))
    return np.concatenate(rows)


@lru_cache(maxsize=4 * BATCHES)
def forced_reference(
    names: tuple[str, str, str], prompts: tuple[str, ...], tokens: bytes, length: int
) -> list[torch.Tensor]:
    """Log-probabilities of every token of images given as bytes, with the full cache; all policies ask for the same.

    Remembered in half precision, which is good for KL down to about 1e-6 (`metrics.token_difference`).
    """
    model: Any = loaded(*names)
    tokens_BN = torch.frombuffer(bytearray(tokens), dtype=torch.int64).view(-1, length)
    steps = model.replay(prompts, tokens_BN, full_cache(model.geometry), model.sampling)
    return [logits_BV.log_softmax(-1).half().cpu() for logits_BV in steps]


def score(reference: Outcome, run: Outcome) -> Outcome:
    """The run with what every image scores against the same image of ``reference``, and without its images."""
    assert reference.pixels is not None and run.pixels is not None
    counts = [tokens[0].size for tokens in reference.tokens_K]
    values, agreements = [], []
    for i, pair in enumerate(zip(reference.pixels, run.pixels, strict=True)):
        agreement = metrics.bit_agreement([t[i] for t in reference.tokens_K], [t[i] for t in run.tokens_K])
        closeness = metrics.psnr(*pair), metrics.foreground_psnr(*pair), metrics.ssim(*pair)
        values.append([*closeness, metrics.mean_agreement(agreement, counts)])
        agreements.append(agreement)
    there = perceptual.available()
    perceptual_I = perceptual.perceptual(reference.pixels, run.pixels) if there else np.zeros(0)
    return Outcome(run.facts, np.array(values), np.array(agreements), perceptual_I=perceptual_I)
