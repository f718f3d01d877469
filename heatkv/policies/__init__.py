"""Policies: ways to spend a budget.

A new one takes a file here that defines ``POLICY``, and one line in `REGISTRY`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from heatkv.policies import heatkv, random, reverse
from heatkv.policies.base import PlanInput, Policy
from heatkv.scales import Geometry
from heatkv.schedule import Schedule, check_budget
from heatkv.scores import HeadScores, check_orders

REGISTRY: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        heatkv.POLICY,
        random.POLICY,
        reverse.POLICY,
    )
}


def find(name: str) -> Policy:
    """The policy of that name, or ``ValueError`` with the names there are."""
    if name not in REGISTRY:
        raise ValueError(f"there is no policy {name!r}; choose one of {', '.join(REGISTRY)}")
    return REGISTRY[name]


def plan(
    scores_or_orders: HeadScores | npt.NDArray[np.integer] | None,
    budget: float,
    policy: str = "heatkv",
    sink_scales: int = 3,
    *,
    model: str | None = None,
    geometry: Geometry | None = None,
    seed: int = 0,
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
        The first so many scales are never dropped.
    model, geometry
        What the plan is for. Scores know both, and only orders or None need them.
    seed
        For policies that roll dice.

    Raises
    ------
    ValueError
        An unknown policy, an infeasible budget, or a calibration that is missing, of the wrong kind or of another
        geometry; the message says which and what to do.
    """
    chosen = find(policy)
    if chosen.drop_at is None:
        raise ValueError(f"policy {policy!r} decides while it generates and has no schedule; generate with it directly")
    scores, orders_SN, source = None, None, "orders"
    if isinstance(scores_or_orders, HeadScores):
        scores, source = scores_or_orders, "scores"
        if model not in (None, scores.model):
            raise ValueError(f"these scores are of {scores.model}, not of {model}; calibrate {model}")
        if geometry is not None:
            scores.check_matches(geometry)
        model, geometry = scores.model, geometry or scores.geometry
    if model is None or geometry is None:
        raise ValueError("only scores say what they are for: pass model and geometry")
    check_budget(budget, geometry.scales, sink_scales, model=model)

    if chosen.needs == "nothing":
        source = "nothing"
    elif chosen.needs == "scores" and scores is None:
        raise ValueError(f"policy {policy!r} needs the scores of a calibration; orders alone do not tell it enough")
    elif scores_or_orders is None:
        raise ValueError(f"policy {policy!r} needs the scores of a calibration, or head orders")
    elif isinstance(scores_or_orders, HeadScores):
        orders_SN = scores_or_orders.orders(sink_scales)
    else:
        orders_SN = check_orders(scores_or_orders, geometry, sink_scales)

    ask = PlanInput(geometry, float(budget), int(sink_scales), seed, scores, orders_SN)
    provenance: dict[str, Any] = {"kind": chosen.provenance, "planned_from": source}
    if source == "scores" and scores is not None:
        provenance["prompts"] = scores.count
    if chosen.seeded:
        provenance["seed"] = seed
    return Schedule(model, geometry, sink_scales, policy, budget, chosen.drop_at(ask).astype(np.int16), provenance)
