"""Comparisons: the same numbers however the work is cut and shared, nothing done twice, statistics that add up."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import example_policy
import numpy as np
import pytest
from tiny import tiny_model

import heatkv
from heatkv.cli import calibrations
from heatkv.models.bundled import save_folder
from heatkv.policies import REGISTRY
from heatkv.scores import HeadScores
from heatkv.study import calibrations_figure
from heatkv.study import compare as comparing
from heatkv.study.compare import compare
from heatkv.study.metrics import METRICS
from heatkv.study.shards import Outcome, Sample, ShardError
from heatkv.study.statistics import difference, iso_psnr, pareto, summarise
from heatkv.study.tables import iso_table, markdown_table, summary_table

PROMPTS = ["green tree", "a picture of a cat", "blue tree", "green apple", "red tree"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, HeadScores]:
    """A model folder that workers can load, and a calibration of it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    made = tiny_model()
    save_folder(made, folder)
    return str(folder), heatkv.calibrate(made, ["red apple", "blue cat"])


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images a batch, one batch a shard: five prompts make three shards a run and seed."""
    monkeypatch.setattr(comparing, "BATCHES", 1)


def numbers(tiny: tuple[str, HeadScores], **more: Any) -> dict[str, Any]:
    """A small comparison without what a clock says."""
    model, scores = tiny
    settings: dict[str, Any] = dict(budgets=[0.6], policies=["heatkv", "hack"], repetitions=1, orders=2, batch=2)
    result = compare(model, PROMPTS, scores, **{**settings, **more})
    for row in result["rows"]:
        row.pop("seconds", None)
    result.pop("seconds_full")
    json.dumps(result, allow_nan=False)
    return result


def test_every_policy_gets_a_row_at_every_budget(tiny: tuple[str, HeadScores]) -> None:
    result = numbers(tiny, budgets=[0.7, 0.4], policies=list(REGISTRY))
    assert [(row["policy"], row["budget"]) for row in result["rows"]] == [(p, b) for p in REGISTRY for b in (0.7, 0.4)]
    for row in result["rows"]:
        assert 0 < row["kv_bytes_peak"] <= row["budget"] * result["kv_bytes_full"] + 1e-6
        assert row["kv_bytes_peak"] / result["kv_bytes_full"] <= row["share_16bit"] + 1e-6 <= row["budget"] + 2e-6
        assert len(row["bits_per_scale"]) == 6 and row["bits_per_scale"][0] == 1.0
        assert row["n"] == (10 if row["policy"] == "random" else 5)
        assert ("difference" in row) == (row["policy"] != "heatkv")
        gap = row.get("difference", {"psnr": 0.0})["psnr"]
        baseline = next(r for r in result["rows"] if (r["policy"], r["budget"]) == ("heatkv", row["budget"]))
        assert gap == pytest.approx(row["psnr"] - baseline["psnr"], abs=2e-4)
    assert result["policies"]["headkv"]["provenance"] == "adaptation"
    assert 0 < result["references"]["other_seed"]["psnr_median"] <= 99
    table = markdown_table(result)
    assert all(f"| {policy} |" in table for policy in REGISTRY) and "*another seed*" in table
    cells = [line.split("|") for line in table.splitlines()[5:]]
    order = [(-float(row["budget"]), -round(row["psnr"], 2)) for row in result["rows"]]
    budgets = [cell[1].strip(" *") for cell in cells if cell[1].strip()]
    shown = [float(cell[3].split()[0]) for cell in cells]
    assert budgets == ["0.7", "0.4"] and shown == [-psnr for _, psnr in sorted(order)], "the best policy comes first"


def test_a_table_says_why_there_is_no_row(tiny: tuple[str, HeadScores]) -> None:
    table = markdown_table(numbers(tiny, budgets=[0.05, 0.6], policies=["heatkv", "h2o:storage=int8", "h2o"]))
    assert "Below what their sinks take at 0.05: heatkv." in table
    assert "chooses tokens, not cells: its storage can only be compute) at 0.6: h2o:storage=int8." in table


def test_two_workers_give_the_numbers_of_one(tiny: tuple[str, HeadScores]) -> None:
    assert numbers(tiny, workers=2) == numbers(tiny)


def test_a_lost_worker_costs_a_retry(tiny: tuple[str, HeadScores], tmp_path: Path) -> None:
    killed, said = [], []

    def kill_one() -> None:
        before = set(multiprocessing.active_children())
        while not killed:
            for process in set(multiprocessing.active_children()) - before:
                process.kill()
                killed.append(process.pid)
                break
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    result = numbers(tiny, workers=2, policies=["heatkv"], progress=said.append)
    killer.join(5)
    assert killed and any("a worker was lost" in line for line in said)
    assert result == numbers(tiny, policies=["heatkv"])


def test_ray_gives_the_same_numbers(tiny: tuple[str, HeadScores]) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: `pip install ray` to test the cluster engine")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        assert numbers(tiny, engine="ray", policies=["heatkv"]) == numbers(tiny, policies=["heatkv"])
    finally:
        ray.shutdown()


def test_without_ray_the_engine_says_how_to_get_it(
    tiny: tuple[str, HeadScores], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ShardError, match="pip install ray"):
        numbers(tiny, engine="ray")
    with pytest.raises(ShardError, match="choose one of local, ray"):
        numbers(tiny, engine="slurm")


def test_finished_shards_are_not_done_again_and_damaged_ones_are(tiny: tuple[str, HeadScores], tmp_path: Path) -> None:
    first = numbers(tiny, shards=tmp_path)
    files = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())}
    assert len(files) == 18, "full cache, three references and two policies, three slices each"
    assert numbers(tiny, shards=tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in files} == files
    gone, cut, other = sorted(path for path in files if path.name.startswith("heatkv"))
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-100])
    other.write_bytes(b"\x00" * 100)
    assert numbers(tiny, shards=tmp_path) == first
    again = {path for path, stamp in files.items() if path.stat().st_mtime_ns != stamp}
    assert again == {gone, cut, other}


def test_shards_of_another_comparison_are_not_used(tiny: tuple[str, HeadScores], tmp_path: Path) -> None:
    numbers(tiny, shards=tmp_path)
    model, _ = tiny
    other = heatkv.calibrate(heatkv.load(model), ["a picture"])
    for change in ({"budgets": [0.5]}, {"batch": 3}, {"sink_scales": 2}):
        assert numbers(tiny, shards=tmp_path, **change) == numbers(tiny, **change), change
    assert numbers((model, other), shards=tmp_path) == numbers((model, other))


def test_a_budget_that_is_not_possible_is_a_row_with_a_reason(tiny: tuple[str, HeadScores]) -> None:
    result = numbers(tiny, budgets=[0.6, 0.1], policies=["heatkv", "streaming"])
    assert ["reason" in row for row in result["rows"]] == [False, True, False, True]
    assert "least feasible" in result["rows"][1]["reason"]
    assert "Below what their sinks take at 0.1: heatkv, streaming." in markdown_table(result)
    with pytest.raises(ValueError, match="least feasible"):
        numbers(tiny, budgets=[0.1], policies=["heatkv"])
    with pytest.raises(ValueError, match="not a share"):
        numbers(tiny, budgets=[7])


def test_without_sinks_there_is_no_reference_of_sinks_only(tiny: tuple[str, HeadScores]) -> None:
    assert set(numbers(tiny, sink_scales=0, policies=["heatkv"])["references"]) == {"other_seed", "dtype_noise"}


def test_scores_that_tell_a_policy_too_little_cost_its_rows_only(tiny: tuple[str, HeadScores]) -> None:
    model, scores = tiny
    plain = HeadScores(scores.model, scores.geometry, scores.mass_sum_LHTS, scores.prompts, scores.count)
    rows = numbers((model, plain))["rows"]
    assert "psnr" in rows[0] and "calibrate again" in rows[1]["reason"]


def test_a_new_policy_is_one_file_and_one_line(tiny: tuple[str, HeadScores], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "tova", example_policy.POLICY)
    row = numbers(tiny, policies=["tova"])["rows"][0]
    assert row["policy"] == "tova" and row["psnr"] > 0 and "difference" not in row
    result = heatkv.generate(heatkv.load(tiny[0]), "red apple", policy="tova", budget=0.5)
    assert result.policy == "tova" and 0 < result.kv_bytes_peak <= 0.5 * result.kv_bytes_full


def test_damaged_outcomes_are_none() -> None:
    from heatkv.study.shards import Shard

    shard = Shard("policy", 0, Sample(("a", "b"), (0, 1)), "heatkv", 0.5)
    facts = {"kv_bytes_peak": 1.0, "share_16bit": 0.5, "seconds": 0.1}
    good = Outcome(facts, np.ones((2, len(METRICS))), np.ones((2, 6)))
    data = good.to_bytes("x")
    assert Outcome.from_bytes(data, "x", shard) is not None
    assert Outcome.from_bytes(data, "y", shard) is None
    few = Outcome(facts, np.ones((1, len(METRICS))), np.ones((1, 6)))
    nan = Outcome(facts, np.full((2, len(METRICS)), np.nan), np.ones((2, 6)))
    for bad in (b"", b"PK", data[:50], data[:-5], few.to_bytes("x"), nan.to_bytes("x")):
        assert Outcome.from_bytes(bad, "x", shard) is None


# --- statistics -------------------------------------------------------------------------------------------------------


def values(prompts: int, seeds: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    of_prompt = rng.normal(30, 3, (1, prompts, len(METRICS)))
    return (of_prompt + rng.normal(0, 0.1, (seeds, prompts, len(METRICS)))).reshape(-1, len(METRICS))


def test_a_paired_interval_is_as_narrow_as_the_difference_is_steady() -> None:
    ours = values(40, 2)
    gap = difference(ours + 0.5, ours, 40)
    assert gap["psnr"] == 0.5 and gap["ci95"] == [0.5, 0.5]
    low, high = summarise(ours, np.ones((80, 6)), 40)["ci95"]["psnr"]
    assert high - low > 1, "prompts differ far more than policies"
    noisy = difference(ours, values(40, 2, seed=1), 40)
    assert noisy["ci95"][0] < noisy["psnr"] < noisy["ci95"][1]


def test_several_orders_are_paired_with_one() -> None:
    ours = values(10, 2)
    assert difference(np.concatenate([ours + 1, ours + 3]), ours, 10)["psnr"] == pytest.approx(2)


def rows_of(policy: str, cost: list[float], psnr: list[float]) -> list[dict[str, Any]]:
    return [
        {"policy": policy, "kv_bytes_peak": c, "share_16bit": c / 2000, "psnr": p}
        for c, p in zip(cost, psnr, strict=True)
    ]


def test_half_the_bytes_for_the_same_quality_is_a_ratio_of_a_half() -> None:
    cost, psnr = [100.0, 200.0, 400.0, 800.0], [20.0, 25.0, 28.0, 30.0]
    rows = rows_of("heatkv", cost, psnr) + rows_of("better", [c / 2 for c in cost], psnr)
    found = iso_psnr(rows, "better", "heatkv")
    assert found is not None
    assert [level["ratio"] for level in found["levels"]] == [0.5] * 3
    assert [level["psnr"] for level in found["levels"]] == [22.5, 25.0, 27.5]
    at_25 = found["levels"][1]
    assert (at_25["kv_bytes"], at_25["kv_bytes_against"], at_25["share_ratio"]) == (100, 200, 0.5)
    assert "0.50 at 25.0 dB" in iso_table({"iso_psnr": [found]})


def test_curves_that_never_meet_and_budgets_that_do_not_pay() -> None:
    rows = rows_of("heatkv", [100, 200], [20, 21]) + rows_of("far", [100, 200], [30, 31])
    assert iso_psnr(rows, "far", "heatkv") is None and iso_psnr(rows, "none", "heatkv") is None
    assert iso_psnr([*rows, {"policy": "none", "budget": 0.1, "reason": "no"}], "none", "heatkv") is None
    bumpy = rows_of("heatkv", [100, 200, 400], [20, 24, 28]) + rows_of("bumpy", [100, 150, 200, 400], [20, 19, 24, 28])
    found = iso_psnr(bumpy, "bumpy", "heatkv")
    assert found is not None and all(level["ratio"] == 1.0 for level in found["levels"])


def test_the_pareto_line_holds_what_nothing_beats() -> None:
    rows = rows_of("a", [100, 200, 400], [20, 26, 25]) + rows_of("b", [100, 300], [21, 26])
    assert [(row["policy"], row["psnr"]) for row in pareto(rows, "psnr")] == [("b", 21), ("a", 26)]
    assert pareto([{"policy": "a", "budget": 0.1, "reason": "no"}], "psnr") == []


def test_calibrations_of_several_sizes_and_kinds_are_compared_on_the_same_images(
    tiny: tuple[str, HeadScores], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    things, scenes, prompts = (tmp_path / f"{name}.txt" for name in ("things", "scenes", "prompts"))
    things.write_text("red apple\ngreen tree\nblue cat\n")  # one of them is compared on
    scenes.write_text("red cat\nblue apple\nred tree\n")
    prompts.write_text("green tree\nblue tree\n")
    out, drawing = tmp_path / "sizes.md", tmp_path / "sizes.svg"
    arguments = ["--model", tiny[0], "--calibration", str(things), str(scenes), "--prompts", str(prompts)]
    arguments += ["--out", str(out)]
    measure = [*arguments, "--sizes", "1,2,3", "--repeats", "2", "--budgets", "0.6"]
    measure += ["--shards", str(tmp_path / "shards")]
    assert calibrations.main(measure) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").rglob("*.npz")}
    assert calibrations.main(measure) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}, "what is there is not done again"
    lines = [[cell.strip() for cell in line.split("|")] for line in out.read_text().splitlines() if line[:1] == "|"]
    kinds = [("things", "1"), ("things", "2"), ("scenes", "1"), ("scenes", "2"), ("scenes", "3")]
    assert [tuple(line[1:3]) for line in lines] == [("kind", "prompts"), ("---", "---"), *kinds]
    study = json.loads(out.with_suffix(".json").read_text())
    assert study["measure"] == "psnr"
    assert [(r["kind"], str(r["prompts"])) for r in study["results"] if r["repeat"] == 0] == kinds
    assert all(value > 5 for each in study["results"] for _, _, value in each["values"])
    correlations = {(r["kind"], r["prompts"], r["repeat"]): r["correlation"] for r in study["results"]}
    assert correlations["things", 2, 0] == 1.0, "it is what all are compared with"
    assert max(value for key, value in correlations.items() if key != ("things", 2, 0)) < 1.0
    mean = sum(r["values"][0][2] for r in study["results"] if r["prompts"] == 3) / 2
    assert lines[-1][3].startswith(f"{mean:.2f} ("), "the mean of the repeats, and their range"

    assert calibrations_figure.main([str(out.with_suffix(".json")), "--out", str(drawing)]) == 0
    texts = [element.text for element in ElementTree.parse(drawing).iter() if element.tag.endswith("text")]
    assert {"things", "scenes", "heatkv+ at 0.6", "heatkv:sinks=1 at 0.6", "1", "2", "3"} <= set(texts)

    capsys.readouterr()
    assert calibrations.main([*arguments, "--sizes", "4"]) == 2
    assert "sizes must be from 1 to 3" in capsys.readouterr().err
    assert calibrations.main([*arguments, "--calibration", str(things), str(things), "--sizes", "1"]) == 2
    assert "different names" in capsys.readouterr().err
    assert calibrations.main([*arguments, "--sizes", "3", "--budgets", "0.6", "--policies", "heatkv+"]) == 0
    only = json.loads(out.with_suffix(".json").read_text())["results"]
    assert [(r["kind"], r["correlation"]) for r in only] == [("scenes", 1.0)], "things has two"
    assert calibrations.main([*arguments, "--out", str(tmp_path / "sizes.json"), "--sizes", "1"]) == 2
    assert "a Markdown file" in capsys.readouterr().err
    assert calibrations.main([*arguments, "--sizes", "1", "--repeats", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err
    out.with_suffix(".json").write_text('{"rows": []}')
    assert calibrations_figure.main([str(out.with_suffix(".json")), "--out", str(drawing)]) == 2
    assert "no calibrations" in capsys.readouterr().err


def test_the_summary_shows_the_measure_that_fits_the_way_of_drawing() -> None:
    by_scale = {"model": "a", "rows": [
        {"policy": "x", "budget": 0.5, "psnr": 30.04}, {"policy": "y", "budget": 0.5, "psnr": 31.0},
        {"policy": "y:storage=int4", "budget": 0.5, "psnr": 40.0}, {"policy": "z", "budget": 0.5, "reason": "less"},
    ], "references": {"sinks_only": {"psnr": 20.0}}}  # fmt: skip
    by_line = {"model": "b", "rows": [
        {"policy": "x", "budget": 0.25, "psnr": 9.0, "forced_kl": 0.0304},
        {"policy": "w", "budget": 0.25, "psnr": 8.0, "forced_kl": 1.5},
        {"policy": "v", "budget": 0.25, "psnr": 8.0, "forced_kl": 0.00021},
    ]}  # fmt: skip
    head, rule, *rows, _, note = summary_table([by_scale, by_line]).splitlines()
    assert (head, rule) == ("| policy | a, 0.5 | b, 0.25 |", "|---|---|---|"), "as many cells, or it is no table"
    assert rows == ["| `y` | 31.0 ||", "| `x` | 30.0 | 0.030 |", "| `v` || 0.0002 |", "| `w` || 1.50 |"], (
        "the best first, storages left out"
    )
    assert "a: PSNR" in note and "sinks only 20.0" in note and "b: KL" in note
