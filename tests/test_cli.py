"""The command line: reports scripts rely on, and errors for people (exit 2, one line, nothing half-written)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_model

from heatkv import calibrate
from heatkv.cli import main
from heatkv.models.bundled import save_folder
from heatkv.schedule import Schedule
from heatkv.scores import HeadScores, orders_to_json


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model folder with its calibration, written and read through the real code."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    made = tiny_model()
    save_folder(made, folder)
    calibrate(made, ["red apple", "blue cat"]).save(folder / "scores.safetensors")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Exit code 2 with one line on stderr and nothing on stdout; returns the line."""
    assert main([*map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: "), captured.err
    return captured.err


def test_generate_reports_the_keys_scripts_rely_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.png"
    full = run(capsys, "generate", "--model", model, "--prompt", "red apple", "--seed", 3, "--out", out)
    assert {
        "model",
        "prompt",
        "seed",
        "policy",
        "budget",
        "kv_bytes_peak",
        "kv_bytes_full",
        "seconds",
        "scales",
        "out",
    } <= set(full)
    assert [set(s) for s in full["scales"]] == [{"scale", "tokens", "kv_bytes", "seconds"}] * 6
    with Image.open(out) as image:
        assert image.size == (12, 12)
        assert image.text["prompt"] == "red apple" and image.text["seed"] == "3"  # type: ignore[attr-defined]
    half = run(capsys, "generate", "--model", model, "--prompt", "red apple", "--budget", 0.5, "--out", out)
    assert half["kv_bytes_peak"] <= 0.5 * full["kv_bytes_peak"]
    assert half["kv_bytes_full"] == full["kv_bytes_peak"] and half["policy"] == "heatkv"


def test_generate_runs_a_policy_that_decides_on_the_fly(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("generate", "--model", model, "--prompt", "red apple", "--policy", "headkv", "--budget", 0.5)
    report = run(capsys, *arguments, "--out", tmp_path / "a.png")
    assert (report["policy"], report["budget"]) == ("headkv", 0.5)
    assert 0 < report["kv_bytes_peak"] <= 0.5 * report["kv_bytes_full"]


def test_generate_stores_what_a_policy_keeps_as_it_is_asked(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("generate", "--model", model, "--prompt", "red apple", "--budget", 0.3, "--out", tmp_path / "a.png")
    stored = {storage: run(capsys, *arguments, "--storage", storage) for storage in ("compute", "int4")}
    # The model computes in 32 bits, and a budget counts 16: 4 bits keep more, and take half of it at most.
    assert stored["int4"]["kv_bytes_peak"] <= 0.55 * stored["compute"]["kv_bytes_peak"]
    tokens = {name: max(scale["tokens"] for scale in report["scales"]) for name, report in stored.items()}
    assert tokens["int4"] > tokens["compute"]
    assert [report["storage"] for report in stored.values()] == ["compute", "int4"]


def test_calibrate_plan_and_generate_go_together(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, scores, schedule, image = (tmp_path / n for n in ("p.txt", "s.safetensors", "s.json", "a.png"))
    prompts.write_text("red apple\n\nblue cat\n")
    assert run(capsys, "calibrate", "--model", model, "--prompts", prompts, "--out", scores)["prompts"] == 2
    planned = run(capsys, "plan", "--scores", scores, "--budget", 0.4, "--out", schedule)
    keys = {
        "model",
        "policy",
        "budget",
        "least_budget",
        "sink_scales",
        "peak_tokens",
        "full_peak_tokens",
        "removed_per_source",
        "seconds",
        "out",
    }
    assert keys <= set(planned)
    assert planned["peak_tokens"] <= 0.4 * planned["full_peak_tokens"]
    assert np.array(planned["removed_per_source"]).shape == (6, 6)
    with_file = run(
        capsys, "generate", "--model", model, "--prompt", "red apple", "--schedule", schedule, "--out", image
    )
    assert with_file["budget"] == 0.4 and with_file["kv_bytes_peak"] <= 0.4 * with_file["kv_bytes_full"]


def test_published_orders_are_planned_without_weights(
    conformance: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    orders = conformance / "orders" / "infinity_2b.json"
    planned = run(
        capsys, "plan", "--orders", orders, "--model", "infinity-2b", "--budget", 0.1, "--out", tmp_path / "s.json"
    )
    assert planned["removed_per_source"][12][3:12] == [463] * 9
    assert planned["full_peak_tokens"] == 3_289_600 and planned["least_budget"] == pytest.approx(21 / 6425)


def test_the_least_budget_is_told_for_the_storage(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = model / "scores.safetensors"
    command = "plan", "--scores", scores, "--budget", 0.9, "--storage", "int4", "--out", tmp_path / "s.json"
    least = run(capsys, *command)["least_budget"]
    assert 0 < least < run(capsys, *command[:-4], "--out", tmp_path / "s.json")["least_budget"]
    assert run(capsys, *command[:4], f"{least:.12f}", *command[5:])["budget"] == pytest.approx(least)
    assert "these scores are of tiny, not of infinity-2b" in fails(capsys, *command, "--model", "infinity-2b")


def test_compare_gives_rows_references_and_intervals(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("green tree\na picture of a cat\nblue tree\n")
    result = run(
        capsys, "compare", "--model", model, "--prompts", prompts, "--budgets", "0.6,0.3",
        "--policies", "heatkv,random",
        "--random-orders", 2, "--batch", 2, "--out", tmp_path / "r.json",
    )  # fmt: skip
    assert [(r["policy"], r["budget"]) for r in result["rows"]] == [
        ("heatkv", 0.6),
        ("heatkv", 0.3),
        ("random", 0.6),
        ("random", 0.3),
    ]
    for row in result["rows"]:
        assert row["n"] == (12 if row["policy"] == "random" else 6)
        assert row["kv_bytes_peak"] <= row["budget"] * result["kv_bytes_full"]
        for metric in ("psnr", "psnr_foreground", "ssim", "bit_agreement"):
            low, high = row["ci95"][metric]
            assert low <= row[metric] <= high
    assert set(result["references"]) == {"other_seed", "sinks_only", "dtype_noise"}
    assert json.loads((tmp_path / "r.json").read_text())["rows"] == result["rows"]
    tables = (tmp_path / "r.md").read_text()
    assert "\nheatkv compare " in tables and f"--model {model} --prompts {prompts}" in tables and "| random |" in tables
    assert f"{result['kv_bytes_full']} bytes an image" in tables


def test_tables_never_overwrite_their_numbers(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, out = tmp_path / "p.txt", tmp_path / "r.md"
    prompts.write_text("green tree\n")
    for command in (["compare", "--prompts", prompts], ["bench", "--batch", 1]):
        assert "beside it" in fails(capsys, *command, "--model", model, "--out", out)
    assert not out.exists()


def test_evaluation_on_calibration_prompts_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("green tree\nred apple\n")
    out = tmp_path / "r.json"
    assert "used for calibration" in fails(capsys, "compare", "--model", model, "--prompts", prompts, "--out", out)
    assert not out.exists()


def test_orders_are_planned_for_what_a_folder_calls_itself(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = HeadScores.load(model / "scores.safetensors")
    orders, out = tmp_path / "orders.json", tmp_path / "s.json"
    orders.write_text(orders_to_json(scores.orders(3), scores.geometry))
    said = run(capsys, "plan", "--orders", orders, "--model", model, "--budget", 0.6, "--out", out)
    assert said["model"] == Schedule.load(out).model == "tiny"
    picture = tmp_path / "a.png"
    run(capsys, "generate", "--model", model, "--prompt", "red apple", "--schedule", out, "--out", picture)
    assert picture.is_file()


def test_models_lists_the_published_geometries(capsys: pytest.CaptureFixture[str]) -> None:
    ids = {m["id"]: m for m in run(capsys, "models")["models"]}
    assert ids["infinity-8b"]["layers"] == 40 and ids["infinity-8b"]["heads"] == 28
    # 6425 tokens before the last scale of 1M pixels, in 32 x 16 heads of 128; keys and values, two rows, two bytes
    assert ids["infinity-2b"]["cache_bytes"] == 6425 * 32 * 16 * 128 * 2 * 2 * 2
    assert ids["pocket"]["cache_bytes"] == 6946816 // 2, "the card tells it in four bytes; without guidance one row"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", ""], "prompt is empty"),
        (["--prompt", "x" * 10_000], "10000 characters"),
        (["--prompt", "zebra"], "zebra"),
        (["--prompt", "red apple", "--budget", "nan"], "budget nan"),
        (["--prompt", "red apple", "--budget", "0.001"], "least feasible"),
        (["--prompt", "red apple", "--budget", "1.5"], "budget 1.5"),
        (["--prompt", "red apple", "--budget", "a"], "--budget"),
        (["--prompt", "red apple", "--seed", "-1"], "seed -1"),
        (["--prompt", "red apple", "--policy", "best", "--budget", "0.5"], "no policy 'best'"),
        (["--prompt", "red apple", "--storage", "int5", "--budget", "0.5"], "must be one of compute, int8"),
        (["--prompt", "red apple", "--storage", "int8"], "give --budget"),
        (["--prompt", "red apple", "--storage", "mixed", "--budget", "0.5"], "stores all cells alike"),
        (["--prompt", "red apple", "--storage", "int4", "--budget", "0.5", "--policy", "h2o"], "only be compute"),
        (["--prompt", "red apple", "--schedule", "missing.json"], "missing.json"),
        (["--prompt", "red apple", "--model", "nonesuch"], "no model 'nonesuch'"),
        (["--prompt", "red apple", "--device", "toaster"], "toaster"),
        ([], "--prompt"),
    ],
)
def test_bad_arguments_end_with_one_clear_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    out = tmp_path / "a.png"
    assert words in fails(capsys, "generate", "--model", model, "--out", out, *arguments)
    assert not list(tmp_path.iterdir()), "something was written"


def test_output_that_can_not_be_written_fails_before_the_work(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("generate", "--model", model, "--prompt", "red apple", "--out")
    assert "no folder" in fails(capsys, *arguments, tmp_path / "none" / "a.png")
    assert "is a folder" in fails(capsys, *arguments, tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full to stand for a full disk")
def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from heatkv import files

    out = tmp_path / "a.bin"
    out.write_bytes(b"old")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        files.write_atomic(out, b"new")
    assert out.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_schedule_of_another_model_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "s.json"
    Schedule.full(tiny_model((1, 2, 3)).geometry, "other").save(other)
    message = fails(
        capsys, "generate", "--model", model, "--prompt", "red apple", "--schedule", other, "--out", tmp_path / "a.png"
    )
    assert "does not fit" in message


@pytest.mark.parametrize("damage", ["truncate", "config", "missing"])
def test_broken_model_folders_are_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    shard = next(broken.glob("model-*.safetensors"))
    if damage == "truncate":
        shard.write_bytes(shard.read_bytes()[:1000])
    elif damage == "missing":
        shard.unlink()
    else:
        (broken / "config.json").write_text("{")
    message = fails(capsys, "generate", "--model", broken, "--prompt", "red apple", "--out", tmp_path / "a.png")
    assert "broken" in message


def test_what_would_not_count_is_refused(model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, prompts = tmp_path / "a.png", tmp_path / "prompts.txt"
    prompts.write_text("green tree\n")
    drawn = "generate", "--model", model, "--prompt", "red apple", "--out", out
    assert "give --budget" in fails(capsys, *drawn, "--policy", "h2o")
    assert "of heatkv+ can be asked storage=" in fails(capsys, *drawn, "--budget", 0.6, "--policy", "heatkv+:sinks=3")
    planned = "plan", "--scores", model / "scores.safetensors", "--budget", 0.6, "--out", tmp_path / "p.json"
    assert "no sinks" in fails(capsys, *planned, "--policy", "heatkv+", "--sink-scales", 3)
    compared = "compare", "--model", model, "--prompts", prompts, "--out", tmp_path / "r.json"
    assert "nosuch" in fails(capsys, *compared, "--baseline", "nosuch")
    assert {path.name for path in tmp_path.iterdir()} == {prompts.name}


def test_a_plan_may_name_the_folder_of_its_model_and_what_is_asked_of_its_policy(
    model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mine, image = tmp_path / "mine.safetensors", tmp_path / "a.png"
    mine.write_bytes((model / "scores.safetensors").read_bytes())
    planned = "plan", "--scores", mine, "--model", model, "--budget", 0.6, "--policy", "heatkv:sinks=1"
    report = run(capsys, *planned, "--out", tmp_path / "p.json")
    assert report["model"] == "tiny" and report["sink_scales"] == 1
    assert "would be replaced" in fails(capsys, *planned, "--out", mine)
    assert mine.read_bytes() == (model / "scores.safetensors").read_bytes()
    asked = "--model", model, "--prompt", "red apple", "--out", image
    one = run(capsys, "generate", *asked, "--budget", 0.6, "--policy", "heatkv:sinks=1")
    assert one["kv_bytes_peak"] == run(capsys, "generate", *asked, "--schedule", tmp_path / "p.json")["kv_bytes_peak"]
