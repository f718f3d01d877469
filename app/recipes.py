"""A recipe says how a picture is drawn: policy, budget, what plans are made from, how cells are stored, and which are
forgotten by hand.

Plain data throughout, so that a job's arguments can be sent to another process; caches are made where the job runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

import heatkv
from app.inputs import InputError, read_percent
from heatkv.budget import format_of
from heatkv.cache import KVCache, ScheduleCache
from heatkv.files import shown
from heatkv.formats import COMPUTE, FORMATS
from heatkv.models.base import Sampling
from heatkv.policies import REGISTRY, cache_factory
from heatkv.scales import Geometry
from heatkv.schedule import Schedule
from heatkv.scores import HeadScores
from heatkv.views.edits import cells_from_text, cells_to_text, forget

FULL = "full"
# What plans are made from: the model's own calibration, the visitor's, or a schedule file in place of a plan.
Source = Literal["bundled", "session", "uploaded"]
SOURCES: tuple[Source, ...] = ("bundled", "session", "uploaded")


@dataclass(frozen=True, eq=False)
class Calibration:
    """What plans are made from: the scores of a calibration, or head orders alone. ``label`` says where from."""

    label: str
    source: HeadScores | npt.NDArray[np.int64]

    @property
    def scores(self) -> HeadScores | None:
        return self.source if isinstance(self.source, HeadScores) else None

    @cached_property
    def fingerprint(self) -> str:
        """Tells calibrations apart by what they hold."""
        scores = self.scores
        arrays = (
            [self.source]
            if scores is None
            else [scores.mass_sum_LHTS, scores.change_sum_LHTS, scores.spread_sum_LH, scores.rounding_sum_LHTS]
        )
        data = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays if a is not None)
        return hashlib.sha256(data).hexdigest()[:16]


def basis_of(source: Calibration | Schedule) -> str:
    """Tells what pictures are drawn from apart by what it holds."""
    if isinstance(source, Calibration):
        return source.fingerprint
    return hashlib.sha256(source.to_json().encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Recipe:
    """How to draw. ``forget`` names cells as `heatkv.views.edits` does, in its canonical form."""

    policy: str = FULL
    percent: float = 100
    source: Source = "bundled"
    forget: str = ""
    sampling: Sampling | None = None  # None: the model's own
    storage: str | None = None  # a name of `heatkv.formats.FORMATS`; None: as the policy does

    @property
    def label(self) -> str:
        """What people read above a picture."""
        if self.source == "uploaded":
            words = "your schedule"
        elif self.policy == FULL:
            words = "full cache"
        else:
            words = f"{REGISTRY[self.policy].title}, {self.percent:g} %"
            words += f", {FORMATS[self.storage].words}" if self.storage else ""
            words += ", your calibration" if self.source == "session" else ""
        return words + (", edited" if self.forget else "")


@dataclass(frozen=True, eq=False)
class Plan:
    """A recipe with what it stands on: enough to make its caches anywhere, and a ``key`` that tells it from others."""

    recipe: Recipe
    model: str
    geometry: Geometry
    sink_scales: int
    calibration: Calibration
    uploaded: Schedule | None = None

    @property
    def key(self) -> str:
        r = self.recipe
        basis = basis_of(self.calibration) if r.policy != FULL else ""
        if r.source == "uploaded" and self.uploaded is not None:
            basis = basis_of(self.uploaded)
        drawn = "" if r.sampling is None else repr(r.sampling)
        return f"{r.policy}|{r.percent:g}|{basis}|{r.forget}|{drawn}|{r.storage or ''}"

    @property
    def schedule(self) -> Schedule | None:
        """The schedule, edits included; None for a policy that decides while it draws. Raises ``ValueError``."""
        r = self.recipe
        if r.source == "uploaded":
            if self.uploaded is None:
                raise InputError("There is no uploaded schedule any more: upload it again, or choose a policy.")
            schedule = self.uploaded
        elif r.policy == FULL:
            schedule = Schedule.full(self.geometry, self.model)
        elif not REGISTRY[r.policy].static:
            return None
        else:
            schedule = heatkv.plan(
                self.calibration.source, self.budget, r.policy, self.sink_scales, model=self.model,
                geometry=self.geometry, storage=r.storage,
            )  # fmt: skip
        return forget(schedule, cells_from_text(r.forget, self.geometry)) if r.forget else schedule

    def make_cache(self) -> KVCache:
        """A cache for one image. Raises ``ValueError`` for what can not be planned."""
        schedule = self.schedule
        if schedule is not None:
            return ScheduleCache(self.geometry, schedule)
        r = self.recipe
        return cache_factory(
            r.policy, self.geometry, self.budget, self.calibration.source, self.sink_scales, storage=r.storage
        )()

    @property
    def policy(self) -> str:
        return self.uploaded.policy if self.recipe.source == "uploaded" and self.uploaded else self.recipe.policy

    @property
    def budget(self) -> float:
        if self.recipe.source == "uploaded" and self.uploaded is not None:
            return self.uploaded.budget
        return round(self.recipe.percent / 100, 12)


def storages(geometry: Geometry) -> dict[str, str]:
    """The ways that cells of such a model can be stored in, each with its words."""
    found = {}
    for name, form in FORMATS.items():
        with suppress(ValueError):
            format_of(name, geometry)
            found[name] = form.words
    return found


def read_storage(value: Any, policy: str, geometry: Geometry) -> str | None:
    """How cells are to be stored; None, or nothing, leaves that to the policy. Raises ``ValueError``."""
    if value is None or value == "":
        return None
    name = format_of(value, geometry).name
    if policy == FULL:
        raise InputError("The full cache stays as it is computed: a storage is for a policy with a plan.")
    if name != COMPUTE.name and not REGISTRY[policy].static:
        raise InputError(
            f"{REGISTRY[policy].title} chooses tokens while it draws, and they stay as computed. To store cells in "
            f"{FORMATS[name].words}, choose a policy with a plan."
        )
    return name


def read_recipe(
    value: Any, geometry: Geometry, percents: Callable[[str, str | None], Any], allowed: Mapping[str, Any]
) -> Recipe:
    """``{"policy", "percent", "source", "forget", "storage"}`` as the page sends it. Raises ``ValueError``."""
    found = value if isinstance(value, Mapping) else {}
    source, policy, text = found.get("source", "bundled"), found.get("policy"), found.get("forget") or ""
    if source not in SOURCES:
        raise InputError(f"There is no calibration {shown(source)} here; choose one of {', '.join(SOURCES)}.")
    if not isinstance(text, str):
        raise InputError("The list of forgotten cells must be a text, for example 6.3,s4.")
    edits = cells_to_text(cells_from_text(text, geometry))
    if source == "uploaded":
        return Recipe(FULL, 100, source, edits)
    if policy == FULL:
        return Recipe(forget=edits, storage=read_storage(found.get("storage"), FULL, geometry))
    if not isinstance(policy, str) or policy not in allowed:
        raise InputError(f"There is no policy {shown(policy)} here; choose one of {', '.join((FULL, *allowed))}.")
    if edits and not REGISTRY[policy].static:
        raise InputError(
            f"{REGISTRY[policy].title} chooses tokens while it draws, so there is no plan to forget cells in. "
            "Choose another policy, or take the edits back."
        )
    storage = read_storage(found.get("storage"), policy, geometry)
    percent = read_percent(found.get("percent"), percents(policy, storage))
    return Recipe(policy, percent, source, edits, storage=storage)
