"""What a policy is, and what it may look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from heatkv.budget import cost_limit
from heatkv.cache.seam import KVCache
from heatkv.files import shown
from heatkv.scales import Geometry, ScaleSchedule
from heatkv.scores import HeadScores

MAX_OPTION = 1 << 20  # of a whole number: more than there are tokens
Provenance = Literal["paper", "re-implementation", "adaptation", "reference", "ours"]
# When each cell goes and, where cells have formats of their own, which: the tables of `heatkv.schedule.Schedule`.
Tables = tuple[npt.NDArray[np.integer], npt.NDArray[np.integer] | None]
Needs = Literal["change", "spread", "scores", "orders", "nothing"]


@dataclass(frozen=True)
class PlanInput:
    """One question to a policy: how to spend ``budget`` on this model.

    Everything is checked: the budget is feasible, orders fit the geometry, and what `Policy.needs` names is there.
    Orders are ranked from scores where only those were given; ``orders_SN`` is None for a policy that needs nothing,
    ``scores`` where the caller has none.
    """

    geometry: Geometry
    budget: float
    sink_scales: int
    seed: int
    scores: HeadScores | None = None
    orders_SN: npt.NDArray[np.int64] | None = None
    storage: str = "compute"

    @property
    def limit(self) -> int:
        """The most that the cache may hold of one batch row, summed over heads: tokens, or bytes for encoded cells."""
        return cost_limit(self.budget, self.geometry, self.storage)


@dataclass(frozen=True)
class Policy:
    """A way to spend a budget. One file in this folder defines one, and one line of the registry lists it.

    Parameters
    ----------
    name
        What scripts and files call it.
    title, summary
        What people read: a short name, and a sentence on what it keeps.
    provenance
        ``paper`` (does what the paper and its code do), ``re-implementation`` (constants that the paper leaves open
        are ours, and what is approximated is said in its file), ``adaptation`` (made for another kind of model),
        ``reference`` (a yardstick) or ``ours``.
    provenance_by_line
        The same where images are drawn by lines; None: ``adaptation`` of what was made for scales, else the same.
    needs
        What calibration it reads: ``scores`` (attention mass by target scale), ``change`` or ``spread`` (scores that
        have measured these too, see `HeadScores`), ``orders`` (rankings, which scores give too) or ``nothing``.
    drop_at
        For a static policy: the table of `heatkv.schedule`, ``(layers, heads, scales)``, from a `PlanInput`. It plans
        in tokens; for encoded cells its geometry has bytes for tokens (`heatkv.budget.counted`).
    stored
        For a static policy that gives cells formats of their own: both tables of `heatkv.schedule`, from a `PlanInput`
        in bytes. Asked for another storage it makes do with that one. A policy has one of the three.
    cache
        For a dynamic policy, which decides while it generates and has no schedule: the cache for one batch of images,
        from a `PlanInput`.
    seeded
        Whether the plan depends on ``seed``.
    sinks
        Whether the first scales always stay; a policy that ranks them like any other scale plans with none.
    storage
        How what it keeps is stored unless asked otherwise (`heatkv.schedule.Schedule.storage`; static policies only).
    options
        What may be asked of it beside the `PlanInput`, with defaults; passed to ``drop_at`` or ``cache`` by name.
    """

    name: str
    title: str
    summary: str
    provenance: Provenance
    needs: Needs
    drop_at: Callable[..., npt.NDArray[np.integer]] | None = None
    stored: Callable[..., Tables] | None = None
    cache: Callable[..., KVCache] | None = None
    provenance_by_line: Provenance | None = None
    seeded: bool = False
    sinks: bool = True
    storage: str = "compute"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if sum(way is not None for way in (self.drop_at, self.stored, self.cache)) != 1:
            raise TypeError(f"policy {self.name!r} must define one of drop_at, stored and cache")

    def with_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options, those ``given`` and the defaults of the others; ``ValueError`` for one that there is not."""
        unknown = [name for name in given if name not in self.options]
        if unknown:
            known = ", ".join(self.options) or "none"
            raise ValueError(f"policy {self.name!r} has no option {unknown[0]!r}; its options: {known}")
        for name, value in given.items():
            if isinstance(value, int) and abs(value) > MAX_OPTION:
                raise ValueError(f"{name} of policy {self.name!r} is {shown(value)}: it can be {MAX_OPTION} at most")
        return {**self.options, **given}

    def summary_for(self, scales: ScaleSchedule) -> str:
        """The summary in the words of a model that draws that way."""
        return self.summary.replace("scale", scales.word)

    def provenance_for(self, scales: ScaleSchedule) -> Provenance:
        """What it is to a model that draws that way."""
        if not scales.by_line:
            return self.provenance
        if self.provenance_by_line:
            return self.provenance_by_line
        return "adaptation" if self.provenance in ("paper", "re-implementation") else self.provenance

    @property
    def static(self) -> bool:
        """Whether `heatkv.plan` can plan it ahead of generation."""
        return self.cache is None
