"""Comparison: how far images move from the full cache's under every policy and budget.

Every run of a prompt uses the same seed and the same noise, so that it differs by the cache only.
References give the numbers a meaning: another seed of the same prompt (what "a different image of the
same thing" scores), the sinks alone (everything prunable dropped), and bfloat16 against float32 with
the full cache (what no one minds).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from heatkv.budget import check_budget, least_budget
from heatkv.files import shown
from heatkv.models.base import GenerativeModel
from heatkv.models.memory import check_batch
from heatkv.policies import variant
from heatkv.scales import ScaleSchedule
from heatkv.scores import HeadScores
from heatkv.study.metrics import FORCED, METRICS
from heatkv.study.running import cache_maker, let_go, loaded
from heatkv.study.shards import (
    BATCHES,
    REFERENCES,
    Outcome,
    Sample,
    Setting,
    Shard,
    fingerprint,
    read_shard,
    weights_fingerprint,
    write_shard,
)
from heatkv.study.statistics import Values, add_measured, difference, iso_psnr, summarise
from heatkv.study.workers import Task, check_engine, run_tasks

BASELINE = "heatkv"  # what the others are compared with
LIMITS = {"seeds": 100, "random orders": 1_000, "batch": 100_000, "threads": 1_024, "workers": 256}

Progress = Callable[[str], None]


def check_request(
    model: GenerativeModel, prompts: Sequence[str], scores: HeadScores, budgets: Sequence[float],
    policies: Sequence[str],
) -> None:  # fmt: skip
    """Refuse unusable prompts, unknown policies, and evaluation on calibration prompts."""
    if not prompts:
        raise ValueError("there are no prompts to compare on")
    for prompt in prompts:
        model.check_prompt(prompt)
    shared = sorted(set(prompts) & set(scores.prompts))
    if shared:
        raise ValueError(
            f"{len(shared)} prompts were used for calibration, first {shared[0]!r}: compare on other prompts"
        )
    for policy in policies:
        variant(policy)
    for budget in budgets:
        check_budget(budget, scores.geometry.scales, 0, by_token=True)
    scores.check_matches(model.geometry)


@dataclass
class _Work:
    """The shards of a comparison: which there are, and what has come of them; ``fulls`` are files of the full cache."""

    setting: Setting
    sample: Sample
    folder: Path
    results: dict[Shard, Outcome] = field(default_factory=dict)
    fulls: dict[int, tuple[bytes, str]] = field(default_factory=dict)

    def shards(self, kind: str, policy: str = "", budget: float = 1.0, order: int = 0) -> list[Shard]:
        """One run over all images, cut into whole batches."""
        count = BATCHES * self.setting.batch
        return [
            Shard(kind, first, self.sample.slice(first, count), policy, budget, order)
            for first in range(0, len(self.sample.prompts), count)
        ]

    def do(self, shards: Sequence[Shard], workers: int, engine: str, progress: Progress) -> None:
        """Fill ``results`` from files, and where there is none that fits, by computing."""
        prints = _fingerprints(self.setting, shards)
        tasks = []
        for shard in shards:
            data = read_shard(self.folder, shard, prints[shard])
            if data is None:
                tasks.append(Task(shard, prints[shard], *self.fulls.get(shard.first, (None, ""))))
            else:
                self._take(shard, data, prints[shard])
        if len(tasks) < len(shards):
            progress(f"{len(shards) - len(tasks)} of {len(shards)} shards are there already")
        started = time.perf_counter()
        for done, (shard, data) in enumerate(run_tasks(self.setting, tasks, workers, engine, progress), start=1):
            write_shard(self.folder, shard, data)
            self._take(shard, data, prints[shard])
            minutes = (time.perf_counter() - started) / done * (len(tasks) - done) / 60
            progress(f"{done} of {len(tasks)}: {shard.words}; about {minutes:.0f} min left")

    def _take(self, shard: Shard, data: bytes, fingerprint: str) -> None:
        outcome = Outcome.from_bytes(data, fingerprint, shard)
        assert outcome is not None
        if shard.kind == "full":
            self.fulls[shard.first] = data, fingerprint
        self.results[shard] = replace(outcome, pixels=None, tokens_K=())  # the images are needed in the files only

    def of(self, shards: Sequence[Shard]) -> tuple[Values, Values]:
        """Values and agreement of all images of a run."""
        found = [self.results[shard] for shard in shards]
        return np.concatenate([f.values_IM for f in found]), np.concatenate([f.agreement_IK for f in found])

    def add_measured(self, row: dict[str, Any], shards: Sequence[Shard], prompts: int) -> None:
        """`FORCED` and the distance of features of a run, where they were measured."""
        found = [self.results[shard] for shard in shards]
        add_measured(row, FORCED, np.concatenate([f.forced_IM for f in found]), prompts)
        add_measured(row, ("perceptual",), np.concatenate([f.perceptual_I for f in found])[:, None], prompts)

    def seconds(self, shards: Sequence[Shard]) -> float:
        weights = [len(shard.sample.prompts) for shard in shards]
        return round(float(np.average([self.results[s].facts["seconds"] for s in shards], weights=weights)), 4)

    def most(self, shards: Sequence[Shard], fact: str) -> float:
        return max(self.results[shard].facts[fact] for shard in shards)


def _fingerprints(setting: Setting, shards: Sequence[Shard]) -> dict[Shard, str]:
    """Plans once for all slices of a run."""
    caches = {}
    prints = {}
    for shard in shards:
        run = shard.kind, shard.policy, shard.budget, shard.order
        if run not in caches:
            caches[run] = cache_maker(setting, shard)()
        prints[shard] = fingerprint(setting, shard, caches[run])
    return prints


def compare(
    model: str,
    prompts: Sequence[str],
    scores: HeadScores,
    budgets: Sequence[float],
    policies: Sequence[str],
    *,
    baseline: str = BASELINE,
    device: str = "cpu",
    dtype: str = "float32",
    repetitions: int = 2,
    orders: int = 5,
    sink_scales: int | None = None,
    batch: int = 8,
    threads: int = 1,
    shards: str | Path | None = None,
    workers: int = 1,
    engine: str = "local",
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Compare policies at budgets against the full cache.

    Parameters
    ----------
    model
        Name or folder of the model; every worker loads it.
    prompts
        Evaluation prompts; none of them may be one of the calibration's.
    dtype
        ``float32`` or ``bfloat16``; with the former, bfloat16 is a reference, ``dtype_noise``.
    policies, baseline
        Names, or names with what is asked of them (`heatkv.policies.variant`); the one that the others are compared
        with, if it is among them.
    repetitions
        Seeds a prompt.
    orders
        How many random orders the ``random`` policy (any seeded one) is averaged over.
    threads
        Of each worker. The numbers can depend on it in the last bit, so it does not follow the number of workers.
    shards
        Folder for the pieces of the work; what is there already is not done again. Default: a temporary one.
    workers, engine
        Processes on this machine, or ``ray``: the machines of a Ray cluster. The numbers are the same.

    Returns
    -------
    dict
        ``rows`` (one a policy and budget; one with a ``reason`` instead of numbers where the policy can not keep to the
        budget), ``references``, ``iso_psnr`` and the settings; plain JSON values.
    """
    check_engine(engine)
    variant(baseline)
    for name, value in zip(LIMITS, (repetitions, orders, batch, threads, workers), strict=True):
        if not 1 <= value <= LIMITS[name]:
            raise ValueError(f"{name} is {shown(value)}: it must be 1 to {LIMITS[name]}")
    batch = min(batch, len(prompts) * repetitions)
    sink_scales = scores.geometry.scales.default_sinks if sink_scales is None else sink_scales
    setting = Setting(str(model), weights_fingerprint(model), scores, sink_scales, batch, threads, device, dtype)
    ready = loaded(setting.model, device, dtype)
    check_request(ready, prompts, scores, budgets, policies)
    check_batch(ready, batch)
    identity = ready.id
    del ready  # or two models would be held where shards load another
    if workers > 1 or engine != "local":
        let_go()  # the workers need the memory
    with tempfile.TemporaryDirectory(prefix="heatkv-") as temporary:
        folder = Path(shards) if shards is not None else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        work = _Work(setting, Sample.of(prompts, repetitions), folder)
        runs, reasons = _planned(work, budgets, policies, orders)
        references = {kind: work.shards(kind) for kind in _references(dtype, scores.geometry.scales, sink_scales)}
        full = work.shards("full")
        work.do(full, workers, engine, progress)
        rest = [shard for shards in runs.values() for shard in shards]
        work.do(rest + [s for shards in references.values() for s in shards], workers, engine, progress)

    rows = [
        _row(work, policy, budget, runs, reasons, len(prompts), baseline) for policy in policies for budget in budgets
    ]
    ratios = [iso_psnr(rows, policy, baseline) for policy in policies if policy != baseline]
    return {
        "model": identity,
        "prompts": len(prompts),
        "seeds": repetitions,
        "random_orders": orders,
        "sink_scales": sink_scales,
        "calibration_prompts": scores.count,
        "batch": batch,
        "dtype": dtype,
        "device": device,
        "threads": threads,
        "kv_bytes_full": round(work.most(full, "kv_bytes_peak")),
        "seconds_full": work.seconds(full),
        "rows": rows,
        "references": {name: _reference(work, shards, len(prompts)) for name, shards in references.items()},
        "iso_psnr": [ratio for ratio in ratios if ratio is not None],
        "baseline": baseline,
        "policies": {name: about_policy(name, scores.geometry.scales) for name in policies},
    }


def _planned(
    work: _Work, budgets: Sequence[float], policies: Sequence[str], orders: int
) -> tuple[dict[tuple[str, float], list[Shard]], dict[tuple[str, float], str]]:
    """The shards of every policy and budget, all orders after each other, or the reason why there are none."""
    runs, reasons = {}, {}
    for policy in policies:
        for budget in budgets:
            shards = [
                shard
                for order in range(orders if variant(policy)[0].seeded else 1)
                for shard in work.shards("policy", policy, budget, order)
            ]
            try:
                cache_maker(work.setting, shards[0])()
                runs[policy, budget] = shards
            except ValueError as error:
                reasons[policy, budget] = str(error)
    if not runs:
        raise ValueError(next(iter(reasons.values()), "give at least one policy and one budget"))
    return runs, reasons


def _row(
    work: _Work, policy: str, budget: float, runs: dict[tuple[str, float], list[Shard]],
    reasons: dict[tuple[str, float], str], prompts: int, baseline: str,
) -> dict[str, Any]:  # fmt: skip
    row: dict[str, Any] = {"policy": policy, "budget": budget}
    if (policy, budget) in reasons:
        return {**row, "reason": reasons[policy, budget]}
    shards = runs[policy, budget]
    values, agreement_IK = work.of(shards)
    row |= {
        **summarise(values, agreement_IK, prompts),
        "kv_bytes_peak": round(work.most(shards, "kv_bytes_peak")),
        "share_16bit": round(work.most(shards, "share_16bit"), 6),
        "seconds": work.seconds(shards),
    }
    work.add_measured(row, shards, prompts)
    if policy != baseline and (baseline, budget) in runs:
        row["difference"] = {"to": baseline, **difference(values, work.of(runs[baseline, budget])[0], prompts)}
    return row


def _references(dtype: str, scales: ScaleSchedule, sink_scales: int) -> list[str]:
    """Those that there are: rounding is measured against float32, and sinks may be none."""
    there = {"dtype_noise": dtype == "float32", "sinks_only": least_budget(scales, sink_scales) > 0}
    return [kind for kind in REFERENCES if there.get(kind, True)]


def _reference(work: _Work, shards: Sequence[Shard], prompts: int) -> dict[str, Any]:
    values, agreement_IK = work.of(shards)
    # Two seeds now and then give one and the same picture, and a mean over such pairs says little of the others.
    median = float(np.median(values[:, METRICS.index("psnr")]))
    summary = {**summarise(values, agreement_IK, prompts), "psnr_median": round(median, 4)}
    work.add_measured(summary, shards, prompts)
    return summary


def about_policy(name: str, scales: ScaleSchedule) -> dict[str, Any]:
    """What a policy is on this way of drawing, for whoever reads the numbers later."""
    policy, asked = variant(name)
    return {
        "title": policy.title, "summary": policy.summary, "provenance": policy.provenance_for(scales),
        "needs": policy.needs, "static": policy.static, "options": dict(policy.options), "asked": asked,
    }  # fmt: skip
