"""Budgets of published models without their weights: plans from files, and bytes in the papers' accounting and ours."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_model

import heatkv
from heatkv.models.presets import PRESETS
from heatkv.scores import HeadScores, orders_to_json
from heatkv.views import budgets

MIB = 2**20


def random_orders(name: str) -> np.ndarray:
    preset = budgets.choose_preset(name)
    rows = len(preset.scales) - 1 - preset.scales.default_sinks
    return np.stack([np.random.default_rng(i).permutation(preset.geometry.head_count) for i in range(rows)])


def write_orders(folder: Path, name: str) -> Path:
    path = folder / "orders.json"
    path.write_text(orders_to_json(random_orders(name), budgets.choose_preset(name).geometry))
    return path


def peak(table: dict, at: int) -> int:
    resident = np.frombuffer(base64.b64decode(table["resident"]), "<u4").reshape(len(table["percents"]), -1)
    return int(resident[at].max())


@pytest.mark.parametrize(
    ("name", "batch", "papers", "ours"),
    [("infinity-8b", 8, 84328, 56219), ("infinity-2b", 8, 38550, 25700), ("infinity-2b", 1, 4819, 3212)],
)
def test_the_full_cache_reads_what_the_papers_tables_say(name: str, batch: int, papers: int, ours: int) -> None:
    preset = budgets.choose_preset(name)
    table = budgets.Tables().table(preset, None, "streaming")
    value = budgets.table_json(preset, None, table, batch, "bfloat16")
    full = max(value["fullResident"])
    assert round(full * value["paperBytesPerToken"] / MIB) == papers
    assert round(full * value["bytesPerToken"] / MIB) == ours
    assert peak(value, -1) == full, "at 100 % the plan is the full cache"
    single = budgets.table_json(preset, None, table, batch, "float32")
    assert single["bytesPerToken"] == 2 * value["bytesPerToken"]


@pytest.mark.parametrize("size", ["2b", "8b"])
def test_published_orders_are_planned_as_published(conformance: Path, size: str) -> None:
    preset = budgets.choose_preset(f"infinity-{size}")
    ranking = budgets.read_ranking(conformance / "orders" / f"infinity_{size}.json", preset)
    assert set(budgets.policies_for(ranking)) >= {"heatkv", "reverse", "streaming"}
    schedule = budgets.plan_for(preset, ranking, 0.1, "heatkv")
    published = json.loads((conformance / f"heatkv_schedule_{size}.json").read_text())["budgets"]["0.1"]
    removed = [target["attn_removed_count"] for target in published["targets"]]
    assert schedule.removed_TS.sum(axis=1).tolist() == removed


@pytest.mark.parametrize("name", ["var-d16", "infinity-125m", "infinity-2b:0.25M:1.5"])
def test_orders_of_every_kind_of_model_are_planned(tmp_path: Path, name: str) -> None:
    base, _, variant = name.partition(":")
    size, _, ratio = variant.partition(":")
    preset = budgets.choose_preset(base, size, ratio)
    assert preset.id == name
    path = tmp_path / "orders.json"
    rows = len(preset.scales) - 1 - preset.scales.default_sinks
    orders = np.stack([np.random.default_rng(i).permutation(preset.geometry.head_count) for i in range(rows)])
    path.write_text(orders_to_json(orders, preset.geometry))
    ranking = budgets.read_ranking(path, preset)
    tables = budgets.Tables()
    table = tables.table(preset, ranking, "heatkv")
    assert tables.table(preset, ranking, "heatkv") is table, "planned once"
    at = table.percents.index(40)
    expected = heatkv.plan(orders, 0.4, model=preset.id, geometry=preset.geometry)
    last = len(preset.scales) - 1
    assert (table.kept_PLHS[at] == expected.keep(last)[:, :, 3:last]).all()
    assert table.peak_P[at] == expected.peak_tokens
    assert budgets.table_json(preset, ranking, table, 1, "bfloat16")["kind"] == "rank"


def test_scores_know_more_than_orders(tmp_path: Path) -> None:
    preset = budgets.choose_preset("var-d16")
    geometry = preset.geometry
    K = len(geometry.scales)
    mass = np.tril(np.random.default_rng(0).random((geometry.layers, geometry.heads, K, K)) + 0.01)
    mass /= mass.sum(-1, keepdims=True)
    HeadScores("var-d16", geometry, mass, (), 1).save(tmp_path / "scores.safetensors")
    ranking = budgets.read_ranking(tmp_path / "scores.safetensors", preset)
    policies = budgets.policies_for(ranking)
    assert any(policy.needs == "scores" for policy in policies.values())
    for policy in policies:
        assert budgets.plan_for(preset, ranking, 0.5, policy).peak_tokens <= 0.5 * geometry.full_peak_tokens
    table = budgets.Tables().table(preset, ranking, "heatkv")
    assert budgets.table_json(preset, ranking, table, 1, "bfloat16")["kind"] == "share"


def test_without_a_ranking_nothing_is_invented() -> None:
    for preset in PRESETS.values():
        assert all(policy.needs == "nothing" for policy in budgets.policies_for(None).values())
        with pytest.raises(ValueError, match="needs the scores of a calibration, or head orders"):
            budgets.plan_for(preset, None, 0.5, "heatkv")
        needed = budgets.what_is_needed(preset)
        assert preset.id in needed and str(preset.geometry.head_count) in needed and "calibrate" in needed


def test_files_of_other_models_are_refused(tmp_path: Path) -> None:
    path = write_orders(tmp_path, "infinity-125m")
    with pytest.raises(ValueError, match="sink scales have 9 prunable"):
        budgets.read_ranking(path, budgets.choose_preset("infinity-2b"))
    tiny = heatkv.calibrate(tiny_model(), ["red apple"])
    tiny.save(tmp_path / "tiny.safetensors")
    with pytest.raises(ValueError, match="do not fit"):
        budgets.read_ranking(tmp_path / "tiny.safetensors", budgets.choose_preset("var-d16"))


def test_sizes_and_batches_that_there_are_not_are_refused() -> None:
    with pytest.raises(ValueError, match="no published model"):
        budgets.choose_preset("pocket")
    with pytest.raises(ValueError, match="aspect ratio"):
        budgets.choose_preset("infinity-2b", "1M", "17")
    assert budgets.choose_preset("var-d16", "1M", "1.5").id == "var-d16", "a model without a choice has its one size"
    preset = budgets.choose_preset("var-d16")
    with pytest.raises(ValueError, match="outside 1 to"):
        budgets.PAPERS.bytes_per_token(preset.geometry, 0)
    table = budgets.Tables().table(preset, None, "streaming")
    with pytest.raises(ValueError, match="dtype"):
        budgets.table_json(preset, None, table, 1, "int3")
