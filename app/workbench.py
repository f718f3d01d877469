"""The model and all that is done with it: plans at once, long jobs as generators under one lock.

A generator can be stopped between two steps, a plain function can not; and a job that was stopped must not run on
beside the next. So every long job is a generator that holds the lock for as long as it lives.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

import heatkv
from app.gpu import gpu
from app.inputs import MAX_PROMPTS, InputError, read_prompt, read_prompts
from heatkv.cache.probe import MAX_ENTRIES, ProbeCache
from heatkv.cache.seam import KVCache, ScheduleCache, full_cache
from heatkv.calibration import calibrate_steps
from heatkv.formats import COMPUTE
from heatkv.generate import Generation, ScaleEvent, collect, generate_events
from heatkv.models.base import GenerativeModel
from heatkv.models.var.classes import Classes
from heatkv.policies import REGISTRY, cache_factory, usable
from heatkv.policies.base import Policy
from heatkv.policies.headkv import HeadKVCache
from heatkv.schedule import Schedule
from heatkv.scores import HeadScores
from heatkv.views import explore

SINK_SCALES = 3
LOCK_SECONDS = 600
IDLE_SECONDS = 3
# Attention of all heads of one image is kept for a session up to so many numbers; beyond, one head at a time.
PROBE_NUMBERS = 1 << 25


@dataclass(frozen=True, eq=False)
class Calibration:
    """What plans are made from: the scores of a calibration, or head orders alone. ``label`` says where from."""

    label: str
    source: HeadScores | npt.NDArray[np.int64]

    @property
    def scores(self) -> HeadScores | None:
        return self.source if isinstance(self.source, HeadScores) else None


@dataclass(frozen=True, eq=False)
class Choice:
    """A policy at a budget, ready to draw with. ``schedule`` is None where the policy decides while it draws."""

    policy: str
    budget: float
    make_cache: Callable[[], KVCache]
    schedule: Schedule | None
    planned_from: str

    @classmethod
    def of(cls, schedule: Schedule) -> Choice:
        planned_from = str(schedule.provenance.get("planned_from", ""))
        make = lambda: ScheduleCache(schedule.geometry, schedule)  # noqa: E731
        return cls(schedule.policy, schedule.budget, make, schedule, planned_from)


@dataclass(frozen=True, eq=False)
class SheetStep:
    """One picture of a contact sheet: the run, why there is none, or neither while it is being drawn."""

    policy: str
    run: Generation | None = None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class ComparisonStep:
    """One more scale of two runs in lock-step; the finished runs come with the last one."""

    full_event: ScaleEvent
    less_event: ScaleEvent
    full: Generation | None = None
    less: Generation | None = None


@dataclass(frozen=True, eq=False)
class Probe:
    """What heads read at the last scale of one image; ``attention[layer, head]`` is ``(queries, tokens)``."""

    prompt: str
    seed: int
    pixels: npt.NDArray[np.uint8]
    attention: dict[tuple[int, int], npt.NDArray[np.float16]]
    note: str | None

    def holds(self, prompt: str, seed: int, head: tuple[int, int]) -> bool:
        return (self.prompt, self.seed) == (prompt, seed) and head in self.attention


class Workbench:
    """A loaded model, its bundled calibration, and the jobs of the app."""

    def __init__(
        self,
        model: GenerativeModel,
        scores: HeadScores,
        references: Mapping[str, Any] | None = None,
        prompts: Sequence[str] = (),
        label: str = "bundled calibration",
    ) -> None:
        self.model = model
        self.geometry = model.geometry
        self.classes: Classes | None = getattr(model, "classes", None)  # of a class-conditional model
        self.bundled = Calibration(label, scores)
        self.references = references or {}
        self.examples = self._usable(model.examples)
        self.prompts = self._usable(prompts) or self.examples
        self.sink_scales = min(SINK_SCALES, len(self.geometry.scales) - 1)
        self._lock = threading.Lock()
        self._tables: dict[str, explore.BudgetTable] = {}
        self._compare = gpu(self._compare_steps, 120)
        self._probe = gpu(self._probe_steps, 60)
        self._calibrate = gpu(self._calibrate_steps, 120)
        self._sheet = gpu(self._sheet_steps, 120)
        self._local_heads = gpu(self._local_heads_steps, 60)

    # --- prompts ---------------------------------------------------------------------------------------------------

    @property
    def noun(self) -> str:
        """What the model is asked for."""
        return "prompt" if self.classes is None else "class"

    @property
    def nouns(self) -> str:
        return "prompts" if self.classes is None else "classes"

    def read_prompt(self, value: Any) -> str:
        """A prompt; of a class-conditional model a class by number or name, as its title. Raises ``ValueError``."""
        if self.classes is None:
            return read_prompt(value)
        if value is None or not str(value).strip():
            raise InputError("No class is chosen: pick one, or write its name or number.")
        return self.classes.title(self.classes.read(read_prompt(str(value) if type(value) is int else value))[0])

    def read_prompts(self, value: Any, count: Any) -> list[str]:
        """Prompts, one a line, or a list of classes. Raises ``ValueError``."""
        if self.classes is None:
            return read_prompts(value, count)
        if not isinstance(value, list) or not value:
            raise InputError("No classes are chosen: pick one or more.")
        if len(value) > MAX_PROMPTS:
            raise InputError(f"These are {len(value)} classes; choose {MAX_PROMPTS} at most.")
        return [self.read_prompt(one) for one in value]

    def _usable(self, prompts: Sequence[str]) -> tuple[str, ...]:
        """Suggested prompts; of a class-conditional model those that are classes, as titles."""
        if self.classes is None:
            return tuple(prompts)
        titles = []
        for prompt in prompts:
            with suppress(ValueError):
                titles.append(self.read_prompt(prompt))
        return tuple(titles)

    # --- the lock --------------------------------------------------------------------------------------------------

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for the model. The lock may be released by another thread than took it: generators move about."""
        if not self._lock.acquire(timeout=LOCK_SECONDS):
            raise RuntimeError("The model is busy; try again in a few minutes.")
        try:
            yield
        finally:
            self._lock.release()

    def wait_until_idle(self) -> None:
        """Wait until a job that was just stopped has ended: a page that starts the next one sooner loses it."""
        if self._lock.acquire(timeout=IDLE_SECONDS):
            self._lock.release()
        time.sleep(0.25)  # for the page to hear of it

    # --- plans -----------------------------------------------------------------------------------------------------

    def policies(self, calibration: Calibration | None = None) -> dict[str, Policy]:
        """The policies that what is known is enough for."""
        return usable((calibration or self.bundled).source)

    def percents(self, policy: str | None = None) -> tuple[int, ...]:
        """The budgets to choose from: from the least that the policy's sinks fit in, or that any policy's do."""
        sinks = self.sink_scales if policy is not None and REGISTRY[policy].sinks else 0
        return explore.budget_percents(self.geometry.scales, sinks)

    def plan(self, calibration: Calibration | None, budget: float, policy: str) -> Schedule:
        calibration = calibration or self.bundled
        return heatkv.plan(
            calibration.source, budget, policy, self.sink_scales, model=self.model.id, geometry=self.geometry
        )

    def choose(self, calibration: Calibration | None, budget: float, policy: str) -> Choice:
        """Any policy at a budget, static or dynamic."""
        if REGISTRY[policy].static:
            schedule = self.plan(calibration, budget, policy)
            return Choice(policy, budget, Choice.of(schedule).make_cache, schedule, Choice.of(schedule).planned_from)
        found = calibration or self.bundled
        make = cache_factory(policy, self.geometry, budget, found.source, self.sink_scales)
        return Choice(policy, budget, make, None, REGISTRY[policy].needs)

    def table(self, calibration: Calibration | None, policy: str, uploaded: Schedule | None = None) -> dict[str, Any]:
        """What the page draws from, as plain values: every budget's cells, every cell's score."""
        found = calibration or self.bundled
        if uploaded is not None:
            budgets = explore.schedule_table(uploaded)
        elif found is self.bundled and policy in self._tables:
            budgets = self._tables[policy]
        else:
            budgets = self._budgets(found, policy)
            if found is self.bundled:
                self._tables[policy] = budgets
        profiles = self.profiles(found)
        ranks = None
        if found.scores is None:
            ranks = explore.rank_share(np.asarray(found.source), self.geometry, self.sink_scales)
        return {
            **budgets.to_json(),
            **explore.cells_json(profiles, ranks),
            "bytesPerToken": self.bytes_per_token,
            "heldBytesPerToken": budgets.unit_bytes(self._rows, self.model.dtype.itemsize),
            "fixed": uploaded is not None,
        }

    def _budgets(self, calibration: Calibration, policy: str) -> explore.BudgetTable:
        percents = self.percents(policy)
        if REGISTRY[policy].static:
            return explore.budget_table(lambda budget: self.plan(calibration, budget, policy), percents)
        planned = [self.choose(calibration, p / 100, policy).make_cache().planned_tokens for p in percents]
        return explore.dynamic_table(self.geometry, self.sink_scales, policy, percents, planned)

    def profiles(self, calibration: Calibration | None) -> explore.HeadProfiles | None:
        calibration = calibration or self.bundled
        if calibration is self.bundled:
            return self._bundled_profiles
        return explore.head_profiles(calibration.scores, self.sink_scales) if calibration.scores else None

    @cached_property
    def _bundled_profiles(self) -> explore.HeadProfiles:
        assert self.bundled.scores is not None
        return explore.head_profiles(self.bundled.scores, self.sink_scales)

    @property
    def _rows(self) -> int:
        """Batch rows of one image, that of guidance included."""
        return 2 if self.model.sampling.guided else 1

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one cached token of one head as computed, for one image."""
        return COMPUTE.cell_bytes(1, self.geometry.head_dim, self.model.dtype.itemsize) * self._rows

    # --- long jobs -------------------------------------------------------------------------------------------------

    def compare(self, prompt: str, seed: int, choice: Choice) -> Iterator[ComparisonStep]:
        """Generate with the full cache and as ``choice`` spends its budget, scale by scale in turn."""
        with self._turn():
            yield from self._compare(prompt, seed, choice)

    def _compare_steps(self, prompt: str, seed: int, choice: Choice) -> Iterator[ComparisonStep]:
        model, sampling = self.model, self.model.sampling
        caches = full_cache(self.geometry), choice.make_cache()
        runs = [generate_events(model, prompt, seed, cache, sampling, previews=True) for cache in caches]
        events: tuple[list[ScaleEvent], list[ScaleEvent]] = ([], [])
        last = len(self.geometry.scales) - 1
        for pair in zip(*runs, strict=True):
            for seen, event in zip(events, pair, strict=True):
                seen.append(event)
            if pair[0].scale < last:
                yield ComparisonStep(pair[0], pair[1])
                continue
            full = collect(model, prompt, seed, caches[0], "full", 1.0, events[0], sampling)
            less = collect(
                model, prompt, seed, caches[1], choice.policy, choice.budget, events[1], sampling
            )  # fmt: skip
            yield ComparisonStep(pair[0], pair[1], full, less)

    def probe(self, prompt: str, seed: int, head: tuple[int, int]) -> Iterator[Probe | None]:
        """Generate with the full cache and record what heads read; yields None scale by scale, then the probe."""
        with self._turn():
            yield from self._probe(prompt, seed, head)

    def _probe_steps(self, prompt: str, seed: int, head: tuple[int, int]) -> Iterator[Probe | None]:
        cache = ProbeCache(self.geometry, self.probed_heads(head))
        pixels = None
        for event in generate_events(self.model, prompt, seed, cache):
            pixels = event.pixels
            if pixels is None:
                yield None
        assert pixels is not None
        attention = {key: maps[-1].numpy().astype(np.float16) for key, maps in cache.attention.items()}
        yield Probe(prompt, seed, pixels, attention, self.model.check_prompt(prompt))

    def probed_heads(self, head: tuple[int, int]) -> list[tuple[int, int]]:
        """All heads where their attention is small enough to keep, else the one asked for."""
        scales = self.geometry.scales
        entries = sum(min(n * end, MAX_ENTRIES) for n, (_, end) in zip(scales.tokens, scales.bounds, strict=True))
        if entries * self.geometry.head_count > PROBE_NUMBERS:
            return [head]
        return [(layer, h) for layer in range(self.geometry.layers) for h in range(self.geometry.heads)]

    def calibrate(self, prompts: Sequence[str], seed: int = 0) -> Iterator[HeadScores]:
        """Scores so far, prompt by prompt."""
        with self._turn():
            yield from self._calibrate(prompts, seed)

    def _calibrate_steps(self, prompts: Sequence[str], seed: int) -> Iterator[HeadScores]:
        yield from calibrate_steps(self.model, prompts, seed)

    def sheet(self, prompt: str, seed: int, calibration: Calibration | None, budget: float) -> Iterator[SheetStep]:
        """One image with the full cache, then one under every policy; a step a scale, so that it can be stopped."""
        with self._turn():
            yield from self._sheet(prompt, seed, calibration, budget)

    def _sheet_steps(
        self, prompt: str, seed: int, calibration: Calibration | None, budget: float
    ) -> Iterator[SheetStep]:
        model, sampling = self.model, self.model.sampling
        for policy in ("full", *self.policies(calibration)):
            try:
                cache = (
                    full_cache(self.geometry)
                    if policy == "full"
                    else self.choose(calibration, budget, policy).make_cache()
                )
            except ValueError as error:  # this policy can not keep to this budget; the others may
                yield SheetStep(policy, reason=str(error))
                continue
            events = []
            for event in generate_events(model, prompt, seed, cache, sampling):
                yield SheetStep(policy)
                events.append(event)
            share = 1.0 if policy == "full" else budget
            yield SheetStep(policy, collect(model, prompt, seed, cache, policy, share, events, sampling))

    def local_heads(self, prompt: str, seed: int, budget: float) -> Iterator[tuple[npt.NDArray[np.bool_], int] | None]:
        """Which heads HeadKV finds local in one image, ``(layers, heads)``, and at which scale; None until then."""
        with self._turn():
            yield from self._local_heads(prompt, seed, budget)

    def _local_heads_steps(
        self, prompt: str, seed: int, budget: float
    ) -> Iterator[tuple[npt.NDArray[np.bool_], int] | None]:
        cache = self.choose(None, budget, "headkv").make_cache()
        assert isinstance(cache, HeadKVCache)
        for _ in generate_events(self.model, prompt, seed, cache):
            yield None
        rows = [local_BH[0].numpy() for local_BH in cache.local_LBH if local_BH is not None]
        yield np.stack(rows), cache.typing_scale  # row 0 is the prompt's, with guidance or without
