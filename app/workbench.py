"""The model and all that is known of it without running it: prompts, policies, plans, tables for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from app.inputs import MAX_PROMPTS, SAMPLING, InputError, read_prompt, read_prompts, read_sampling, read_seed
from app.jobs import Jobs, Subject
from app.recipes import Calibration, Plan, Recipe, Source, basis_of, read_recipe
from app.turns import Turns
from heatkv.budget import counted_scales
from heatkv.formats import COMPUTE
from heatkv.models.base import GenerativeModel, Sampling
from heatkv.models.var.classes import Classes
from heatkv.policies import REGISTRY, usable
from heatkv.policies.base import Policy
from heatkv.schedule import Schedule
from heatkv.views import explore
from heatkv.views.lines import lines_json


class Workbench:
    """A loaded model, its bundled calibration, and the jobs of the app (`jobs`)."""

    def __init__(
        self,
        model: GenerativeModel,
        scores: Any,
        references: Mapping[str, Any] | None = None,
        prompts: Sequence[str] = (),
        label: str = "bundled calibration",
        turns: Turns | None = None,
    ) -> None:
        self.model = model
        self.geometry = model.geometry
        self.classes: Classes | None = getattr(model, "classes", None)  # of a class-conditional model
        self.bundled = Calibration(label, scores)
        self.references = references or {}
        self.examples = self._usable(model.examples)
        self.prompts = self._usable(prompts) or self.examples
        self.sink_scales = self.geometry.scales.default_sinks
        self._tables: dict[tuple[str, str | None], explore.BudgetTable] = {}
        self.jobs = Jobs(self, turns or Turns())

    # --- prompts ---------------------------------------------------------------------------------------------------

    @property
    def noun(self) -> str:
        """What the model is asked for."""
        return "prompt" if self.classes is None else "class"

    def counted(self, count: int) -> str:
        """So many prompts or classes."""
        return f"{count} {self.noun if count == 1 else 'prompts' if self.classes is None else 'classes'}"

    def read_prompt(self, value: Any) -> str:
        """A prompt; of a class-conditional model a class by number or name, as its title. Raises ``ValueError``."""
        if self.classes is None:
            return read_prompt(value)
        if value is None or not str(value).strip():
            raise InputError("No class is chosen: pick one, or write its name or number.")
        return self.classes.title(self.classes.read(read_prompt(str(value) if type(value) is int else value))[0])

    def read_subject(self, value: Any) -> Subject:
        """What is to be drawn: ``{"prompt", "seed", "sampling"}`` as the page sends it. Raises ``ValueError``."""
        found = value if isinstance(value, Mapping) else {}
        prompt, seed = self.read_prompt(found.get("prompt")), read_seed(found.get("seed"))
        stated = found.get("sampling")
        if not isinstance(stated, Mapping) or not stated:
            return prompt, seed, None
        own = self.model.sampling
        way = read_sampling(own, *(stated.get(name) for name in SAMPLING))
        return prompt, seed, None if way == own else way

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

    # --- plans -----------------------------------------------------------------------------------------------------

    def policies(self, calibration: Calibration | None = None) -> dict[str, Policy]:
        """The policies that what is known is enough for."""
        return usable((calibration or self.bundled).source)

    def percents(self, policy: str | None = None, storage: str | None = None) -> tuple[int, ...]:
        """The budgets to choose from: from the least that the policy's sinks fit in, or that any policy's do."""
        sinks = self.sink_scales if policy is not None and REGISTRY[policy].sinks else 0
        if storage is None:
            return explore.budget_percents(self.geometry.scales, sinks)
        scales, share = counted_scales(self.geometry, storage)
        return explore.budget_percents(scales, sinks, share)

    def read_recipe(self, value: Any, calibration: Calibration | None = None) -> Recipe:
        """A recipe as the page sends it. Raises ``ValueError``."""
        own = isinstance(value, Mapping) and value.get("source") == "session"
        return read_recipe(value, self.geometry, self.percents, self.policies(calibration if own else None))

    def plan_of(self, recipe: Recipe, calibration: Calibration | None = None, uploaded: Schedule | None = None) -> Plan:
        """What it takes to draw by ``recipe``, for a visitor with this calibration and this uploaded schedule."""
        chosen = calibration if calibration is not None and recipe.source == "session" else self.bundled
        return Plan(recipe, self.model.id, self.geometry, self.sink_scales, chosen, uploaded)

    def read_plan(
        self, recipe: Any, calibration: Calibration | None, uploaded: Schedule | None, sampling: Sampling | None = None
    ) -> Plan:
        """What a recipe of the page stands for, checked as far as it can be without drawing. Raises ``ValueError``.

        Sessions are forgotten, and calibrations and schedules follow one another: a recipe that stands on one of before
        (its ``basis``) is refused rather than drawn from another.
        """
        read = replace(self.read_recipe(recipe, calibration), sampling=sampling)
        basis = recipe.get("basis") or None
        if read.source == "session" and (calibration is None or basis not in (None, basis_of(calibration))):
            raise InputError(
                "Your calibration is not known any more: calibrate again, or go back to the first one. Where picture A "
                "stands on it, press “A: full cache”."
            )
        if read.source == "uploaded" and uploaded is not None and basis not in (None, basis_of(uploaded)):
            uploaded = None
        plan = self.plan_of(read, calibration, uploaded)
        plan.schedule  # noqa: B018  (says what is wrong with it)
        return plan

    def table(
        self, calibration: Calibration | None, policy: str, uploaded: Schedule | None = None, storage: str | None = None
    ) -> dict[str, Any]:
        """What the page draws from, as plain values: every budget's cells, every cell's score."""
        found = calibration or self.bundled
        if uploaded is not None:
            budgets = explore.schedule_table(uploaded)
        elif found is self.bundled and (policy, storage) in self._tables:
            budgets = self._tables[policy, storage]
        else:
            budgets = self._budgets(found, policy, storage)
            if found is self.bundled:
                self._tables[policy, storage] = budgets
        profiles = self.profiles(found)
        ranks = None
        if found.scores is None:
            ranks = explore.rank_share(np.asarray(found.source), self.geometry, self.sink_scales)
        change = explore.change_ranks(found.scores) if found.scores is not None else None
        return {
            **budgets.to_json(),
            **explore.cells_json(profiles, ranks),
            "change": "" if change is None else explore.packed(np.rint(change * 65535), "u2"),
            "needs": REGISTRY[policy].needs if uploaded is None else "nothing",
            "most": budgets.most_percent,
            "rows": self.model.sampling.rows,
            "bytesPerToken": self.bytes_per_token,
            "heldBytesPerToken": budgets.unit_bytes(self.model.sampling.rows, self.model.dtype.itemsize),
            "fixed": uploaded is not None,
            "asked": storage or "",  # of storage, which is the policy's where nothing was
            "source": "uploaded" if uploaded is not None else "bundled" if found is self.bundled else "session",
            "basis": basis_of(uploaded) if uploaded is not None else "" if found is self.bundled else basis_of(found),
            "model": self.model.id,
            **(
                lines_json(found.scores, profiles) if self.geometry.scales.by_line and profiles and found.scores else {}
            ),
            "word": self.geometry.scales.word,
            "names": [self.geometry.scales.name(k) for k in range(len(self.geometry.scales))],
        }

    def _budgets(self, calibration: Calibration, policy: str, storage: str | None) -> explore.BudgetTable:
        percents = self.percents(policy, storage)
        source: Source = "bundled" if calibration is self.bundled else "session"
        plans = [
            self.plan_of(Recipe(policy, percent, source, storage=storage), calibration) for percent in percents
        ]  # fmt: skip
        if REGISTRY[policy].static:
            schedules = {plan.budget: plan.schedule for plan in plans}
            return explore.budget_table(lambda budget: schedules[budget], percents)  # type: ignore[arg-type, return-value]
        planned = [plan.make_cache().planned_tokens for plan in plans]
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

    def sampling_fields(self) -> list[dict[str, Any]]:
        """What a visitor may say of how tokens are drawn, with the model's own values."""
        own = self.model.sampling
        fields = [
            ("guidance", "Guidance", own.guidance, "how strongly the words count; 1: half the work, half the memory"),
            ("temperature", "Temperature", own.temperature, "below 1 plainer, above 1 wilder"),
            ("top_k", "Top-k", own.top_k, "draw from so many of the likeliest; 0: from all"),
            ("top_p", "Top-p", own.top_p, "draw from those that make up so much probability; 0: from all"),
        ]
        # Bits have two values, of which no top-k can be drawn.
        bitwise = hasattr(getattr(getattr(self.model, "transformer", None), "config", None), "bits")
        return [
            {"name": name, "label": label, "own": value, "hint": hint}
            for name, label, value, hint in fields
            if not (bitwise and name == "top_k")
        ]

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one cached token of one head as computed, for one image."""
        return COMPUTE.cell_bytes(1, self.geometry.head_dim, self.model.dtype.itemsize) * self.model.sampling.rows
