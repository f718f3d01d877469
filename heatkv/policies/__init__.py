"""Policies: ways to spend a budget.

A new one takes a file here that defines ``POLICY``, and one line in `REGISTRY`. `plan` gives the schedule of a static
policy; `cache_factory` and `make_cache` give a cache that spends the budget, whatever the policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from heatkv.budget import MIXED, check_budget, counted, counted_budget, counted_scales
from heatkv.cache.seam import KVCache, ScheduleCache
from heatkv.policies import (
    ams,
    h2o,
    hack,
    headkv,
    heatkv,
    heatkv_plus,
    line_ar,
    random,
    reverse,
    scalekv,
    snapkv,
    ssd,
    streaming,
)  # fmt: skip
from heatkv.policies.base import Needs, PlanInput, Policy, Tables
from heatkv.scales import Geometry
from heatkv.schedule import Schedule
from heatkv.scores import HeadScores, check_orders

REGISTRY: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        heatkv.POLICY,
        random.POLICY,
        reverse.POLICY,
        heatkv_plus.POLICY,
        heatkv_plus.POLICY_16,
        scalekv.POLICY,
        hack.POLICY,
        headkv.POLICY,
        line_ar.POLICY,
        ssd.POLICY,
        ams.POLICY,
        snapkv.POLICY,
        h2o.POLICY,
        streaming.POLICY,
    )
}

PlanSource = HeadScores | npt.NDArray[np.integer] | None


def find(name: str) -> Policy:
    """The policy of that name, or ``ValueError`` with the names there are."""
    if name not in REGISTRY:
        raise ValueError(f"there is no policy {name!r}; choose one of {', '.join(REGISTRY)}")
    return REGISTRY[name]


def variant(text: str) -> tuple[Policy, dict[str, Any]]:
    """A policy and what is asked of it: ``heatkv``, or ``heatkv:sinks=1,storage=int8``.

    What is asked is what `cache_factory` takes by name: ``sinks`` (its ``sink_scales``), ``storage`` and the policy's
    own options, each of the type of its default. ``ValueError`` says what is wrong.
    """
    name, _, asked = text.partition(":")
    policy, options = find(name), {}
    for part in filter(None, asked.split(",")):
        key, equals, value = part.partition("=")
        known = {**({"sinks": 0} if policy.sinks else {}), "storage": "", **policy.options}
        if not equals or key not in known:
            raise ValueError(f"{text!r} asks for {part!r}: of {name} can be asked {', '.join(f'{k}=' for k in known)}")
        try:
            options["sink_scales" if key == "sinks" else key] = _read_as(known[key], value)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{text!r}: {key} is {value!r}, and must be like {known[key]!r}") from error
    return policy, options


def _read_as(default: Any, value: str) -> Any:
    """``value`` as what ``default`` is; of a bool, whose type takes any text for true, only the two words."""
    return {"True": True, "False": False}[value] if isinstance(default, bool) else type(default)(value)


def usable(source: PlanSource) -> dict[str, Policy]:
    """The policies that ``source`` is enough for, by name."""
    known: set[Needs] = {"nothing"}
    if source is not None:
        known.add("orders")
    if isinstance(source, HeadScores):
        known.add("scores")
        if source.change_LHTS is not None:
            known.add("change")
        if source.spread_LH is not None:
            known.add("spread")
    return {name: policy for name, policy in REGISTRY.items() if policy.needs in known}


def plan(
    scores_or_orders: PlanSource,
    budget: float,
    policy: str = "heatkv",
    sink_scales: int | None = None,
    *,
    model: str | None = None,
    geometry: Geometry | None = None,
    seed: int = 0,
    storage: str | None = None,
    **options: Any,
) -> Schedule:
    """Plan when the cache drops every cell.

    Parameters
    ----------
    scores_or_orders
        A calibration; or head orders, ``(prunable sources, slots)``, as `heatkv.scores.load_orders` reads them; or
        None for a policy that needs neither.
    budget
        Peak cached tokens as a share of the full cache's peak, above 0 and up to 1.
    policy
        A static policy of `REGISTRY`.
    sink_scales
        The first so many scales are never dropped (by the policies that have sinks, see `Policy.sinks`). Default: 3; of
        a model that draws line by line 1, the condition.
    model, geometry
        What the plan is for. Scores know both, and only orders or None need them.
    seed
        For policies that roll dice.
    storage
        How cells are stored: a name of `heatkv.formats.FORMATS`. Default: as the policy does (`Policy.storage`).
    options
        Of the policy, see `Policy.options`.

    Raises
    ------
    ValueError
        An unknown policy, storage or option, an infeasible budget, or a calibration that is missing, of the wrong
        kind or of another geometry; the message says which and what to do.
    """
    chosen = find(policy)
    if not chosen.static:
        raise ValueError(f"policy {policy!r} decides while it generates and has no schedule; generate with it directly")
    model, inputs = _plan_input(chosen, scores_or_orders, budget, sink_scales, model, geometry, seed, storage)
    all_options = chosen.with_options(options)
    provenance: dict[str, Any] = {"kind": chosen.provenance_for(inputs.geometry.scales)}
    if chosen.needs == "nothing":
        provenance["planned_from"] = "nothing"
    elif inputs.scores is not None:
        provenance |= {"planned_from": "scores", "prompts": inputs.scores.count}
    else:
        provenance["planned_from"] = "orders"
    if chosen.seeded:
        provenance["seed"] = seed
    if all_options:
        provenance["options"] = all_options
    drop_at_LHS, stored_as_LHS = _tables(chosen, inputs, all_options)
    return Schedule(
        model, inputs.geometry, inputs.sink_scales, policy, budget, drop_at_LHS, provenance, inputs.storage,
        stored_as_LHS,
    )  # fmt: skip


def _tables(chosen: Policy, inputs: PlanInput, options: dict[str, Any]) -> Tables:
    if chosen.stored is not None:
        return chosen.stored(inputs, **options)
    assert chosen.drop_at is not None
    geometry, storage = inputs.geometry, inputs.storage
    in_cost = replace(
        inputs, geometry=counted(geometry, storage), budget=counted_budget(inputs.budget, geometry, storage),
        storage="compute",
    )  # fmt: skip
    return chosen.drop_at(in_cost, **options), None


def cache_factory(
    policy: str,
    geometry: Geometry,
    budget: float,
    scores: PlanSource = None,
    sink_scales: int | None = None,
    *,
    seed: int = 0,
    model: str | None = None,
    storage: str | None = None,
    **options: Any,
) -> Callable[[], KVCache]:
    """What makes the caches of one policy and budget, a new one for every batch of images; plans once.

    Takes what `plan` takes, for static and dynamic policies alike, and raises the same errors, all of them now. Without
    a ``model``, scores of any model of this geometry will do.
    """
    chosen = find(policy)
    if chosen.cache is None:
        if not isinstance(scores, HeadScores):
            model = model or "any"
        schedule = plan(
            scores, budget, policy, sink_scales, model=model, geometry=geometry, seed=seed, storage=storage, **options
        )  # fmt: skip
        return lambda: ScheduleCache(geometry, schedule)
    make = chosen.cache
    _, inputs = _plan_input(chosen, scores, budget, sink_scales, model, geometry, seed, storage)
    all_options = chosen.with_options(options)
    make(inputs, **all_options)  # so that what is wrong with the options is said before anything runs
    return lambda: make(inputs, **all_options)


def make_cache(
    policy: str,
    geometry: Geometry,
    budget: float,
    scores: PlanSource = None,
    sink_scales: int | None = None,
    **more: Any,
) -> KVCache:
    """One cache, for one batch of images; see `cache_factory`."""
    return cache_factory(policy, geometry, budget, scores, sink_scales, **more)()


def _plan_input(
    chosen: Policy,
    scores_or_orders: PlanSource,
    budget: float,
    sink_scales: int | None,
    model: str | None,
    geometry: Geometry | None,
    seed: int,
    storage: str | None,
) -> tuple[str, PlanInput]:
    """What is asked of the policy, checked, and for which model."""
    scores = scores_or_orders if isinstance(scores_or_orders, HeadScores) else None
    orders_SN = None
    if scores is not None:
        if geometry is not None:
            scores.check_matches(geometry)
        if model not in (None, scores.model):
            raise ValueError(f"these scores are of {scores.model}, not of {model}; calibrate {model}")
        model, geometry = scores.model, geometry or scores.geometry
    if geometry is None or (model is None and chosen.static):
        raise ValueError("only scores say what they are for: pass model and geometry")
    model = model or "this model"
    if sink_scales is None:
        sink_scales = geometry.scales.default_sinks
    if not chosen.sinks:
        sink_scales = 0
    if storage is None:
        storage = chosen.storage
        if storage == MIXED and (scores is None or scores.rounding_LHTS is None):
            storage = "int8"  # what fewer bits lose was not measured, as in older files
    if storage != "compute" and not chosen.static:
        raise ValueError(f"policy {chosen.name!r} chooses tokens, not cells: its storage can only be compute")
    if storage == MIXED and chosen.stored is None:
        raise ValueError(f"policy {chosen.name!r} stores all cells alike: storage {MIXED} is not for it")
    scales, share = counted_scales(geometry, storage)
    check_budget(budget, scales, sink_scales, model=model, share=share, by_token=not chosen.static)

    if chosen.needs not in ("orders", "nothing") and scores is None:
        raise ValueError(
            f"policy {chosen.name!r} needs the scores of a calibration; orders alone do not tell it enough"
        )
    if chosen.needs == "orders":
        if isinstance(scores_or_orders, HeadScores):
            orders_SN = scores_or_orders.orders(sink_scales)
        elif scores_or_orders is None:
            raise ValueError(f"policy {chosen.name!r} needs the scores of a calibration, or head orders")
        else:
            orders_SN = check_orders(scores_or_orders, geometry, sink_scales)
    return model, PlanInput(geometry, float(budget), int(sink_scales), seed, scores, orders_SN, storage)
