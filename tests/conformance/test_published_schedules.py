"""HeatKV's schedule equals the published implementation's, cell for cell."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import heatkv.policies.heatkv as planner
from heatkv.policies import plan
from heatkv.scales import Geometry, ScaleSchedule
from heatkv.schedule import Schedule, ScheduleError
from heatkv.scores import load_orders, orders_from_json, orders_to_json

SINKS = 3
ONE_MEGAPIXEL = ScaleSchedule.square([1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64])
GEOMETRY = {"2b": Geometry(32, 16, 128, ONE_MEGAPIXEL), "8b": Geometry(40, 28, 128, ONE_MEGAPIXEL)}
BUDGETS = {
    "2b": ["0.005", "0.05", "0.1", "0.2", "0.3", "0.5", "0.75", "1"],
    "8b": ["0.05", "0.1", "0.2", "0.3", "0.5", "0.75"],
}


@dataclass(frozen=True)
class Published:
    """A published schedule, and ours for the same orders and budget."""

    vectors: dict[str, Any]
    rank_LHS: npt.NDArray[np.int64]
    removals: planner.Removals
    schedule: Schedule

    @property
    def targets(self) -> list[tuple[int, dict[str, Any]]]:
        return list(enumerate(self.vectors["targets"]))


@pytest.fixture(
    scope="module",
    params=[(size, budget) for size, budgets in BUDGETS.items() for budget in budgets],
    ids="-".join,
)
def published(request: pytest.FixtureRequest, conformance: Path) -> Published:
    size, budget = request.param
    geometry = GEOMETRY[size]
    orders_SN = load_orders(conformance / "orders" / f"infinity_{size}.json", geometry, SINKS)
    rank_LHS = np.full((geometry.layers, geometry.heads, len(geometry.scales)), -1)
    rank_LHS[:, :, SINKS:-1] = np.argsort(orders_SN, axis=1).T.reshape(geometry.layers, geometry.heads, -1)
    return Published(
        vectors=json.loads((conformance / f"heatkv_schedule_{size}.json").read_text())["budgets"][budget],
        rank_LHS=rank_LHS,
        removals=planner.removals(orders_SN, float(budget), geometry, SINKS),
        schedule=plan(orders_SN, float(budget), model=f"infinity-{size}", geometry=geometry),
    )


def cells(mask_LHS: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Sorted ``[source, head, layer]`` of the marked cells."""
    found: list[list[int]] = np.argwhere(mask_LHS.transpose(2, 1, 0)).tolist()
    return found


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()


def gone_after(removals: planner.Removals, target: int) -> npt.NDArray[np.bool_]:
    """Cells removed once scale ``target`` is written whole; the last scale removes nothing more."""
    last = removals.late_LHS.shape[2] - 2
    gone_LHS: npt.NDArray[np.bool_] = removals.late_LHS <= min(target, last) + 1
    gone_LHS[:, :, target + 1 :] = False
    return gone_LHS


def absent_at(schedule: Schedule, target: int) -> npt.NDArray[np.bool_]:
    """Cells of earlier scales that attention of ``target`` does without."""
    absent_LHS = ~schedule.keep(target)
    absent_LHS[:, :, target:] = False
    return absent_LHS


def test_heads_dropped_per_incoming_scale_are_the_published_ones(published: Published) -> None:
    counts = planner.heads_to_drop(published.schedule.budget, published.schedule.geometry, SINKS)
    assert counts.tolist() == list(published.vectors["prune_count_per_incoming_scale"].values())


def test_cells_removed_after_every_scale_are_the_published_ones(published: Published) -> None:
    for t, target in published.targets:
        gone = gone_after(published.removals, t)
        assert gone.sum() == target["final_removed_count"], f"after scale {t}"
        assert digest(cells(gone)) == target["final_removed_sha256"], f"after scale {t}"


def test_attention_of_every_scale_reads_the_published_cells(published: Published) -> None:
    schedule = published.schedule
    tokens = np.array(schedule.geometry.scales.tokens)
    for t, target in published.targets:
        absent = absent_at(schedule, t)
        assert absent.sum() == target["attn_removed_count"] == schedule.removed_TS[t].sum(), f"at scale {t}"
        assert digest(cells(absent)) == target["attn_removed_sha256"], f"at scale {t}"
        readable = schedule.keep(t)[:, :, :t].sum((0, 1)) @ tokens[:t]
        assert readable == target["old_tokens_readable_during_scale"], f"at scale {t}"


def test_cells_pruned_early_go_at_the_published_layer_in_the_published_order(published: Published) -> None:
    removals = published.removals
    for t, target in published.targets:
        early = (removals.trigger_LHS >= 0) & (removals.late_LHS == t + 1)
        queue = sorted(
            (int(removals.trigger_LHS[layer, head, s]), -layer, -s, int(published.rank_LHS[layer, head, s]), head)
            for s, head, layer in cells(early)
        )
        by_layer: dict[int, list[list[int]]] = {}
        for trigger, minus_layer, minus_s, _, head in queue:
            by_layer.setdefault(trigger, []).append([-minus_s, head, -minus_layer])
        assert {str(k): len(v) for k, v in by_layer.items()} == target["early_activation_counts_by_layer"]
        assert digest([[k, v] for k, v in by_layer.items()]) == target["early_activation_sha256"], f"at scale {t}"
        assert (published.schedule.drop_at_LHS[early] == t).all()


def test_cached_tokens_after_every_layer_are_the_published_ones(published: Published) -> None:
    """The published count lets a cell that is pruned early go with the layer that calls for it, during its scale."""
    removals, geometry = published.removals, published.schedule.geometry
    L, K = geometry.layers, len(geometry.scales)
    tokens = np.array(geometry.scales.tokens)
    for t, target in published.targets[SINKS : K - 1]:
        gone, gone_before = gone_after(removals, t), gone_after(removals, t - 1)
        early = (removals.late_LHS == t + 1) & (removals.trigger_LHS >= 0)
        for layer in range(L):
            held = np.zeros_like(gone)
            held[: layer + 1, :, : t + 1] = ~gone[: layer + 1, :, : t + 1]
            held[layer + 1 :, :, :t] = ~gone_before[layer + 1 :, :, :t]
            held[layer + 1 :] &= ~(early & (removals.trigger_LHS <= layer))[layer + 1 :]
            assert held.sum((0, 1)) @ tokens == target["checkpoint_totals_per_layer"][layer], f"{t=} {layer=}"


def test_our_cache_is_never_above_the_published_one(published: Published) -> None:
    """Cells that are pruned early are free before their scale begins, so that executing only ever holds less."""
    removals, schedule = published.removals, published.schedule
    tokens = np.array(schedule.geometry.scales.tokens)
    for t, target in published.targets[SINKS:-1]:
        assert (schedule.resident_tokens_TL[t] <= target["checkpoint_totals_per_layer"]).all()
        next_early = (removals.trigger_LHS >= 0) & (removals.late_LHS == t + 2)
        held = schedule.resident_tokens_TL[t, -1] + next_early.sum((0, 1)) @ tokens
        assert held == target["resident_tokens_after_scale"], f"after scale {t}"
    assert schedule.peak_tokens <= published.vectors["max_checkpoint_total"]


@pytest.mark.parametrize("budget", ["0.002", "0.003"])
def test_budgets_that_the_published_code_refuses_are_refused(conformance: Path, budget: str) -> None:
    refusal = json.loads((conformance / "heatkv_schedule_2b.json").read_text())["budgets"][budget]["error"]
    least = refusal.split()[-1]
    orders_SN = load_orders(conformance / "orders" / "infinity_2b.json", GEOMETRY["2b"], SINKS)
    with pytest.raises(ScheduleError, match=f"budget {budget} is below the least feasible {least} for infinity-2b"):
        plan(orders_SN, float(budget), model="infinity-2b", geometry=GEOMETRY["2b"])


@pytest.mark.parametrize("size", GEOMETRY)
def test_published_orders_survive_a_round_trip(conformance: Path, size: str) -> None:
    path = conformance / "orders" / f"infinity_{size}.json"
    orders_SN = load_orders(path, GEOMETRY[size], SINKS)
    assert json.loads(orders_to_json(orders_SN, GEOMETRY[size])) == json.loads(path.read_text())


@pytest.mark.parametrize(
    ("size", "budget", "counts"),
    [
        ("2b", 0.2, [0, 74, 254, 355, 411]),
        ("2b", 0.1, [159, 297, 385, 435, 463]),
        ("2b", 0.04, [17, 271, 378, 431, 464, 483, 494]),
        ("8b", 0.2, [0, 161, 554, 775, 899]),
        ("8b", 0.1, [347, 649, 842, 951, 1012]),
        ("8b", 0.04, [37, 592, 827, 941, 1015, 1056, 1079]),
    ],
)
def test_head_counts_are_those_of_the_paper(size: str, budget: float, counts: list[int]) -> None:
    assert planner.heads_to_drop(budget, GEOMETRY[size], SINKS)[-len(counts) :].tolist() == counts


@pytest.mark.parametrize("budget", ["0.05", "0.1", "0.25", "0.5"])
def test_the_end_to_end_run_drops_the_published_cells(conformance: Path, budget: str) -> None:
    schedule, vectors = end_to_end(conformance, budget)
    for t in range(13):
        assert cells(absent_at(schedule, t)) == vectors["removed_by_target"][str(t)], f"at scale {t}"


@pytest.mark.parametrize("budget", ["0.05", "0.1", "0.25", "0.5"])
def test_the_end_to_end_run_leaves_the_published_cells(conformance: Path, budget: str) -> None:
    schedule, vectors = end_to_end(conformance, budget)
    raw = json.loads((conformance / "heatkv_e2e_tiny.json").read_text())
    orders_SN = orders_from_json(json.dumps(raw["scas_orders"]), schedule.geometry, SINKS)
    removals = planner.removals(orders_SN, float(budget), schedule.geometry, SINKS)
    for t in range(13):
        assert cells(gone_after(removals, t)) == vectors["final_removed_by_target"][str(t)], f"after scale {t}"


def test_the_end_to_end_budget_below_the_sinks_is_refused(conformance: Path) -> None:
    with pytest.raises(ScheduleError, match=r"below the least feasible 0\.039130434783"):
        end_to_end(conformance, "0.02")


def end_to_end(conformance: Path, budget: str) -> tuple[Schedule, dict[str, Any]]:
    raw = json.loads((conformance / "heatkv_e2e_tiny.json").read_text())
    config = raw["config"]
    scales = ScaleSchedule(tuple((h, w) for _, h, w in config["scale_schedule"]))
    geometry = Geometry(config["depth"], config["num_heads"], 32, scales)
    orders_SN = orders_from_json(json.dumps(raw["scas_orders"]), geometry, SINKS)
    schedule = plan(orders_SN, float(budget), model="infinity-tiny", geometry=geometry)
    return schedule, raw["budgets"][budget]
