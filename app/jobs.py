"""What the model is run for: pictures, strips of pictures, what heads read, calibrations; each a generator in its turn.

A generator can be stopped between two steps, a plain function can not. Every job yields `Waiting` until the model is
its own (see `app.turns`); long ones give it up between their pieces. The functions whose names end in ``_steps`` run
where the model is, which may be another process: what goes in and what comes out can be sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from app.gallery import Drawing, Gallery, drawing
from app.gpu import gpu
from app.pictures import Pixels
from app.readers import while_read
from app.recipes import FULL, Calibration, Plan, Recipe
from app.turns import Turns, Waiting
from heatkv.cache.probe import MAX_ENTRIES, ProbeCache
from heatkv.calibration import calibrate_steps
from heatkv.generate import Generation, ScaleEvent, collect, generate_events
from heatkv.models.base import Sampling
from heatkv.policies.headkv import HeadKVCache
from heatkv.policies.tokens import TokenCache
from heatkv.scores import HeadScores
from heatkv.views.kept import kept_share
from heatkv.views.knockout import KnockOut, knock_out_steps

if TYPE_CHECKING:
    from app.workbench import Workbench

# Attention of all heads of one image is kept up to so many numbers; beyond, one head at a time. And so many images.
PROBE_NUMBERS = 1 << 25
PROBES = 3
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class DrawStep:
    """One more step of pictures that grow together: previews of those that are being drawn, all of them at the end."""

    step: int
    previews: tuple[Pixels | None, ...]
    drawings: tuple[Drawing, ...] | None = None


@dataclass(frozen=True, eq=False)
class SheetStep:
    """One picture of a contact sheet: the run, why there is none, or neither while it is being drawn."""

    policy: str
    run: Generation | None = None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Probe:
    """What heads read in one image with the full cache.

    ``attention[layer, head]`` holds, for every target that was asked for, ``(queries, tokens so far)``.
    """

    prompt: str
    seed: int
    sampling: Sampling | None
    pixels: Pixels
    attention: dict[tuple[int, int], tuple[npt.NDArray[np.float16], ...]]
    note: str | None

    def holds(self, subject: Subject, head: tuple[int, int]) -> bool:
        return (self.prompt, self.seed, self.sampling) == subject and head in self.attention


# What is drawn, whatever the recipe: prompt, seed, and how tokens are drawn (None: the model's own way).
Subject = tuple[str, int, Sampling | None]
LocalHeads = tuple[npt.NDArray[np.bool_], str]


class Jobs:
    def __init__(self, bench: Workbench, turns: Turns) -> None:
        self.bench = bench
        self.model = bench.model
        self.turns = turns
        self.gallery = Gallery()
        self._probes: deque[Probe] = deque(maxlen=PROBES)
        self._draw_job = gpu(self._draw_steps, 120)
        self._probe_job = gpu(self._probe_steps, 60)
        self._knock_out_job = gpu(self._knock_out_steps, 120)
        self._calibrate_job = gpu(self._calibrate_steps, 120)
        self._sheet_job = gpu(self._sheet_steps, 120)
        self._local_heads_job = gpu(self._local_heads_steps, 60)

    def _take(
        self,
        job: Iterator[T],
        *,
        long: bool = False,
        signs: bool = False,
        piece: Callable[[T], bool] = lambda step: False,
    ) -> Iterator[T | Waiting]:
        """``job`` in its turn, for as long as somebody listens.

        Its last step is the end of no ``piece``: the job would wait for one more turn, to end.
        """
        steps = self.turns.take(job, long=long, signs=signs, piece=piece)
        yield from while_read(steps)

    # --- pictures --------------------------------------------------------------------------------------------------

    def draw(
        self, prompt: str, seed: int, plans: Sequence[Plan], *, long: bool = False
    ) -> Iterator[DrawStep | Waiting]:
        """Pictures of one prompt and seed, growing together; those drawn before are not drawn again.

        In a ``long`` job, of many pictures, nobody sees them grow: what came before is not decoded, which takes
        half as long again.
        """
        keys = [self._key(prompt, seed, plan) for plan in plans]
        if any(self.gallery.find(key, not long) is None for key in keys):
            yield from self._take(self._missing(prompt, seed, plans, not long), long=long, signs=not long)
        found = [self.gallery.find(key, not long) for key in keys]
        if all(found):
            last = len(self.bench.geometry.scales.drawn) - 1
            yield DrawStep(last, (None,) * len(plans), tuple(picture for picture in found if picture is not None))

    def strip(self, prompt: str, seed: int, plans: Sequence[Plan]) -> Iterator[tuple[int, Drawing] | Waiting]:
        """One picture a plan, one after the other, each in a turn of its own behind everybody's short jobs."""
        for index, plan in enumerate(plans):
            for step in self.draw(prompt, seed, [plan], long=True):
                if isinstance(step, Waiting):
                    yield step
                elif step.drawings is not None:
                    yield index, step.drawings[0]

    def _key(self, prompt: str, seed: int, plan: Plan) -> str:
        return f"{prompt}|{seed}|{plan.key}"

    def _missing(self, prompt: str, seed: int, plans: Sequence[Plan], grown: bool) -> Iterator[DrawStep]:
        """Draw what is not in the gallery and put it there."""
        keys = [self._key(prompt, seed, plan) for plan in plans]
        wanted = {key: plan for key, plan in zip(keys, plans, strict=True) if self.gallery.find(key, grown) is None}
        for step in self._draw_job(prompt, seed, list(wanted.values()), grown) if wanted else ():
            previews = dict(zip(wanted, step.previews, strict=True))
            if step.drawings is None:
                yield DrawStep(step.step, tuple(previews.get(key) for key in keys))
                continue
            for key, picture in zip(wanted, step.drawings, strict=True):
                self.gallery.keep(key, picture)

    def _draw_steps(self, prompt: str, seed: int, plans: list[Plan], grown: bool) -> Iterator[DrawStep]:
        model = self.model
        caches = [plan.make_cache() for plan in plans]
        ways = [plan.recipe.sampling or model.sampling for plan in plans]
        runs = [
            generate_events(model, prompt, seed, cache, way, previews=grown)
            for cache, way in zip(caches, ways, strict=True)
        ]
        seen: list[list[ScaleEvent]] = [[] for _ in plans]
        kept: list[npt.NDArray[np.float64] | None] = [None] * len(plans)
        first, last = self.bench.geometry.scales.drawn[0], len(self.bench.geometry.scales) - 1
        for events in zip(*runs, strict=True):
            for i, event in enumerate(events):
                seen[i].append(event)
                cache = caches[i]
                if event.scale == last - 1 and isinstance(cache, TokenCache):
                    kept[i] = kept_share(cache)
            yield DrawStep(events[0].scale - first, tuple(event.pixels for event in events))
        drawings = [
            drawing(collect(model, prompt, seed, caches[i], p.policy, p.budget, seen[i], ways[i]), kept[i])
            for i, p in enumerate(plans)
        ]
        yield DrawStep(last - first, (None,) * len(plans), tuple(drawings))

    # --- looking into one picture ----------------------------------------------------------------------------------

    def known_probe(self, subject: Subject, head: tuple[int, int]) -> Probe | None:
        """A probe of this head that was made lately, for any visitor."""
        return next((probe for probe in tuple(self._probes) if probe.holds(subject, head)), None)

    def probe(self, subject: Subject, head: tuple[int, int]) -> Iterator[Probe | Waiting | None]:
        """Draw with the full cache and record what heads read; None after every scale, then the probe."""
        yield from self._take(self._unknown(subject, head))

    def _unknown(self, subject: Subject, head: tuple[int, int]) -> Iterator[Probe | None]:
        """The probe, drawn unless it was for somebody else while this one waited."""
        known = self.known_probe(subject, head)
        if known is not None:
            yield known
            return
        for step in self._probe_job(subject, head):
            if isinstance(step, Probe):
                self._probes.appendleft(step)
            yield step

    def _probe_steps(self, subject: Subject, head: tuple[int, int]) -> Iterator[Probe | None]:
        cache = ProbeCache(self.bench.geometry, self.probed_heads(head))
        pixels = None
        for event in generate_events(self.model, *subject[:2], cache, subject[2]):
            pixels = event.pixels
            if pixels is None:
                yield None
        assert pixels is not None
        attention = {
            key: tuple(one.numpy().astype(np.float16) for one in maps) for key, maps in cache.attention.items()
        }
        yield Probe(*subject, pixels, attention, self.model.check_prompt(subject[0]))

    def probed_heads(self, head: tuple[int, int]) -> list[tuple[int, int]]:
        """All heads where their attention is small enough to keep, else the one asked for."""
        geometry = self.bench.geometry
        scales = geometry.scales
        entries = sum(min(n * end, MAX_ENTRIES) for n, (_, end) in zip(scales.tokens, scales.bounds, strict=True))
        if entries * geometry.head_count > PROBE_NUMBERS:
            return [head]
        return [(layer, h) for layer in range(geometry.layers) for h in range(geometry.heads)]

    def knock_out(self, subject: Subject) -> Iterator[KnockOut | Waiting | None]:
        """How far the picture moves without each head: a step a head, None in between."""
        job = self._knock_out_job(subject)
        last = self.bench.geometry.layers - 1, self.bench.geometry.heads - 1
        yield from self._take(job, long=True, piece=lambda step: step is not None and (step.layer, step.head) != last)

    def _knock_out_steps(self, subject: Subject) -> Iterator[KnockOut | None]:
        yield from knock_out_steps(self.model, *subject)

    def local_heads(self, subject: Subject, budget: float) -> Iterator[LocalHeads | Waiting | None]:
        """Which heads HeadKV finds local in one image, ``(layers, heads)``, and when it does; None until then."""
        yield from self._take(self._local_heads_job(subject, budget))

    def _local_heads_steps(self, subject: Subject, budget: float) -> Iterator[LocalHeads | None]:
        cache = self.bench.plan_of(Recipe("headkv", 100 * budget)).make_cache()
        assert isinstance(cache, HeadKVCache)
        for _ in generate_events(self.model, *subject[:2], cache, subject[2]):
            yield None
        rows = [local_BH[0].numpy() for local_BH in cache.local_LBH if local_BH is not None]
        if len(rows) < len(cache.local_LBH):
            raise ValueError(
                "With so much room for so small a picture HeadKV need not tell heads apart: lower the budget."
            )
        yield np.stack(rows), cache.typed_when  # row 0 is the prompt's, with guidance or without

    # --- many pictures ---------------------------------------------------------------------------------------------

    def calibrate(self, prompts: Sequence[str], seed: int = 0) -> Iterator[HeadScores | Waiting]:
        """Scores so far, prompt by prompt; others may draw in between."""
        job = self._calibrate_job(list(prompts), seed)
        yield from self._take(job, long=True, piece=lambda step: step.count < len(prompts))

    def _calibrate_steps(self, prompts: list[str], seed: int) -> Iterator[HeadScores]:
        yield from calibrate_steps(self.model, prompts, seed)

    def sheet(
        self, prompt: str, seed: int, calibration: Calibration | None, budget: float
    ) -> Iterator[SheetStep | Waiting]:
        """One image with the full cache, then one under every policy; others may draw in between."""
        policies = [FULL, *self.bench.policies(calibration)]
        job = self._sheet_job(prompt, seed, calibration, budget, policies)
        yield from self._take(job, long=True, piece=lambda step: step.run is not None and step.policy != policies[-1])

    def _sheet_steps(
        self, prompt: str, seed: int, calibration: Calibration | None, budget: float, policies: list[str]
    ) -> Iterator[SheetStep]:
        model, sampling = self.model, self.model.sampling
        for policy in policies:
            recipe = (
                Recipe() if policy == FULL else Recipe(policy, 100 * budget, "session" if calibration else "bundled")
            )
            plan = self.bench.plan_of(recipe, calibration)
            try:
                cache = plan.make_cache()
            except ValueError as error:  # this policy can not keep to this budget; the others may
                yield SheetStep(policy, reason=str(error))
                continue
            events = []
            for event in generate_events(model, prompt, seed, cache, sampling):
                yield SheetStep(policy)
                events.append(event)
            yield SheetStep(policy, collect(model, prompt, seed, cache, policy, plan.budget, events, sampling))
