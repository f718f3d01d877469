"""A model that draws by lines, through everything: generate, calibrate, probe, compare, bench, files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_lines_model, tiny_model

import heatkv
from heatkv.cache.probe import ProbeCache
from heatkv.calibration import CalibratingCache
from heatkv.models.base import seeded_noise
from heatkv.models.bundled import save_folder
from heatkv.models.llamagen.model import LlamaGenModel
from heatkv.policies import REGISTRY, make_cache
from heatkv.schedule import Schedule, ScheduleError
from heatkv.scores import HeadScores, OrdersError, ScoresError, orders_from_json, orders_to_json
from heatkv.study import compare as comparing
from heatkv.study.bench import bench, markdown
from heatkv.study.compare import compare
from heatkv.study.tables import markdown_table

PROMPTS = ["green tree", "blue tree", "red tree"]


@pytest.fixture(scope="module")
def tiny() -> tuple[LlamaGenModel, HeadScores]:
    model = tiny_lines_model()
    return model, heatkv.calibrate(model, ["red apple", "blue cat"])


def tokens_of(model: LlamaGenModel, policy: str, budget: float, scores: HeadScores) -> torch.Tensor:
    cache = make_cache(policy, model.geometry, budget, scores)
    steps = list(model.run(["red apple", "tree"], seeded_noise([1, 2]), cache, model.sampling))
    assert cache.peak_bytes <= budget * model.geometry.kv_bytes(model.geometry.full_peak_tokens, batch=4)
    assert cache.allocated_bytes == 0
    return torch.cat([step.tokens for step in steps], 1)


@pytest.mark.parametrize("policy", REGISTRY)
def test_every_policy_draws_with_it(policy: str, tiny: tuple[LlamaGenModel, HeadScores]) -> None:
    model, scores = tiny
    full = tokens_of(model, "heatkv", 1.0, scores)
    if REGISTRY[policy].storage == "compute":
        assert torch.equal(tokens_of(model, policy, 1.0, scores), full)
    assert not torch.equal(tokens_of(model, policy, 0.35, scores), full)


def test_an_image_comes_line_by_line(tiny: tuple[LlamaGenModel, HeadScores]) -> None:
    model, scores = tiny
    result = heatkv.generate(model, "red apple", schedule=heatkv.plan(scores, 0.5))
    assert [event.scale for event in result.scales] == [1, 2, 3, 4, 5, 6]
    assert [event.bits.shape for event in result.scales] == [(6,)] * 6
    assert result.kv_bytes_peak == result.kv_bytes_theoretical <= 0.5 * result.kv_bytes_full
    assert result.kv_bytes_full == model.geometry.kv_bytes(12 * (4 + 36 - 1), batch=2)


@pytest.mark.parametrize("readable", [True, False])
def test_scores_are_what_a_plain_causal_softmax_says(readable: bool) -> None:
    model = tiny_lines_model(readable=readable)
    geometry, seen = model.geometry, {}

    class Noting(CalibratingCache):
        def look(self, layer, q_BHND, entries):  # type: ignore[no-untyped-def]
            seen[self.scale, layer] = q_BHND[0].clone(), entries.all_heads()[0][0].clone()
            super().look(layer, q_BHND, entries)

    cache = Noting(geometry, rows=1)
    for _ in model.run(["cat tree"], seeded_noise([3]), cache, model.sampling):
        pass
    for line in (1, 4):
        start, end = geometry.scales.bounds[line]
        q, k = seen[line, 1]
        after = torch.arange(end) > torch.arange(start, end)[:, None]
        if not readable:  # two words in four places: padding is in front
            after[:, :2] = True
        p = (q @ k.transpose(1, 2)).masked_fill(after, -torch.inf).softmax(-1)
        expected = [p[:, :, a:b].sum(2).mean(1).numpy() for a, b in geometry.scales.bounds[: line + 1]]
        np.testing.assert_allclose(cache.mass_LHTS[1, :, line, : line + 1], np.stack(expected, 1), atol=1e-5)
    scores = heatkv.calibrate(model, ["red apple"])
    assert scores.change_LHTS is not None and (scores.change_LHTS[:, :, 3, :3] > 0).all()


def test_a_probe_sees_every_token_of_a_line_under_any_schedule(tiny: tuple[LlamaGenModel, HeadScores]) -> None:
    model, scores = tiny
    schedule = heatkv.plan(scores, 0.6)
    probe = ProbeCache(model.geometry, [(0, 1), (2, 3)], schedule)
    for _ in model.run(["red apple"], seeded_noise([1]), probe, model.sampling):
        pass
    for (layer, head), maps in probe.attention.items():
        assert [tuple(p.shape) for p in maps] == [(b - a, b) for a, b in model.geometry.scales.bounds]
        for t, (p, (start, _)) in enumerate(zip(maps, model.geometry.scales.bounds, strict=True)):
            torch.testing.assert_close(p.sum(1), torch.ones(len(p)))
            if t:
                assert (p[:, start:].triu(1) == 0).all()
            for s, (a, b) in enumerate(model.geometry.scales.bounds[:t]):
                assert bool((p[:, a:b] > 0).any()) == bool(schedule.keep(t)[layer, head, s])


@pytest.mark.parametrize("storage", ["compute", "int8"])
def test_a_probe_sees_what_a_condition_reads_that_is_not_kept(
    tiny: tuple[LlamaGenModel, HeadScores], storage: str
) -> None:
    model, scores = tiny
    planned = heatkv.plan(scores, 0.6)
    table_LHS = planned.drop_at_LHS.copy()
    table_LHS[0, 1, 0] = 1
    schedule = replace(planned, drop_at_LHS=table_LHS, sink_scales=0, budget=1.0, storage=storage)
    probe = ProbeCache(model.geometry, [(0, 1)], schedule)
    for _ in model.run(["red apple"], seeded_noise([1]), probe, model.sampling):
        pass
    condition, line, *_ = probe.attention[0, 1]
    torch.testing.assert_close(condition.sum(1), torch.ones(len(condition)))
    assert not line[:, : len(condition)].any()


def test_a_folder_keeps_how_it_draws(tiny: tuple[LlamaGenModel, HeadScores], tmp_path: Path) -> None:
    save_folder(tiny[0], tmp_path / "tiny-lines", "llamagen")
    assert heatkv.load(str(tmp_path / "tiny-lines")).geometry == tiny[0].geometry


def test_files_of_the_other_way_of_drawing_are_refused_with_one_line(
    tiny: tuple[LlamaGenModel, HeadScores], tmp_path: Path
) -> None:
    model, scores = tiny
    path = tmp_path / "scores.safetensors"
    scores.save(path)
    assert HeadScores.load(path) == scores
    schedule = heatkv.plan(scores, 0.5)
    assert Schedule.from_json(schedule.to_json()) == schedule
    other = tiny_model().geometry
    with pytest.raises(ScoresError, match=r"4 tokens of condition and 6 lines of 6.*do not fit a model with.*scales"):
        HeadScores.load(path).check_matches(other)
    with pytest.raises(ScheduleError, match=r"6 lines of 6.*does not fit a model with.*scales 1 2"):
        schedule.check_matches(other)
    orders = orders_to_json(scores.orders(1), model.geometry)
    assert orders_from_json(orders, model.geometry, 1).tolist() == scores.orders(1).tolist()
    with pytest.raises(OrdersError, match="orders for 5 source scales"):
        orders_from_json(orders, other, 3)
    with pytest.raises(ScheduleError, match="'zigzag'"):
        Schedule.from_json(schedule.to_json().replace('"lines"', '"zigzag"'))


def test_a_comparison_says_what_the_cache_alone_changes(
    tiny: tuple[LlamaGenModel, HeadScores], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, scores = tiny
    monkeypatch.setattr(comparing, "BATCHES", 1)
    save_folder(model, tmp_path / "tiny-lines", "llamagen")
    found = compare(
        str(tmp_path / "tiny-lines"), PROMPTS, scores, [1.0, 0.6, 0.3, 0.2], ["heatkv", "h2o"], repetitions=1,
        batch=2, shards=tmp_path / "shards",
    )  # fmt: skip
    json.dumps(found, allow_nan=False)
    rows = {(row["policy"], row["budget"]): row for row in found["rows"]}
    for policy in ("heatkv", "h2o"):
        assert rows[policy, 1.0]["forced_kl"] < 1e-4 and rows[policy, 1.0]["forced_agreement"] == 1
        assert 0.001 < rows[policy, 0.6]["forced_kl"] < rows[policy, 0.3]["forced_kl"]
        # A first different token changes what all that follow are conditioned on.
        assert rows[policy, 0.6]["bit_agreement"] < rows[policy, 0.6]["forced_agreement"] < 1
    assert "the line being drawn" in rows["heatkv", 0.2]["reason"]
    assert "KL, teacher-forced" in markdown_table(found)


def test_the_bench_times_prefill_and_tokens() -> None:
    result = bench(tiny_lines_model(), [0.5], [1], repeats=1, peak_side=64)
    full, half = result["rows"]
    assert full["kv_bytes_allocated"] == full["kv_bytes_theoretical"]
    assert half["kv_bytes_allocated"] == half["kv_bytes_theoretical"] <= full["kv_bytes_theoretical"] / 2
    assert full["tokens_per_second"] > 0 and full["prefill_seconds"] > 0 and half["bytes_read"] < full["bytes_read"]
    assert "tokens a second" in markdown(result)
