"""Files in the published layouts through the command line: generate, calibrate, plan, compressed, compare."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import official_files as files
import pytest
from PIL import Image

from heatkv.cli import main
from heatkv.schedule import Schedule
from heatkv.scores import HeadScores


def write_var(folder: Path) -> list[str]:
    files.write_var(folder, replace(files.VAR, classes=1000))
    return ["golden retriever", "980", "88 macaw"]


def write_infinity(folder: Path) -> list[str]:
    pytest.importorskip("transformers")
    files.write_infinity(folder, "sharded safetensors", t5=True)
    return ["a red cat", "a dog on a tree", "red dog"]


def write_llamagen(folder: Path) -> list[str]:
    files.write_llamagen(folder, config=replace(files.LLAMAGEN, classes=1000, grid=5))
    return ["golden retriever", "980", "88 macaw"]


def write_captioned(folder: Path) -> list[str]:
    pytest.importorskip("transformers")
    files.write_llamagen(folder, "flat", replace(files.LLAMAGEN_TEXT, grid=5), t5=True)
    return ["a red cat", "a dog on a tree", "red dog"]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    code = main([*map(str, arguments), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


@pytest.mark.parametrize("write", [write_var, write_infinity, write_llamagen, write_captioned])
def test_published_files_go_all_the_way(write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    model.mkdir()
    prompts = write(model)
    image, scores, schedule, results = (tmp_path / name for name in ("a.png", "s.safetensors", "p.json", "r.json"))
    lists = {name: tmp_path / f"{name}.txt" for name in ("calibration", "evaluation")}
    lists["calibration"].write_text("\n".join(prompts[:2]))
    lists["evaluation"].write_text(prompts[2])

    full = run(capsys, "generate", "--model", model, "--prompt", prompts[0], "--seed", 2, "--out", image)
    with Image.open(image) as drawn:
        assert drawn.size == (10, 10)
    run(capsys, "calibrate", "--model", model, "--prompts", lists["calibration"], "--out", scores)
    assert HeadScores.load(scores).prompts == tuple(prompts[:2])
    planned = run(capsys, "plan", "--scores", scores, "--budget", 0.6, "--out", schedule)
    assert Schedule.load(schedule).model == planned["model"] == full["model"]
    for how in (("--budget", 0.6, "--scores", scores), ("--schedule", schedule)):
        less = run(capsys, "generate", "--model", model, "--prompt", prompts[0], *how, "--out", image)
        assert less["kv_bytes_peak"] <= 0.6 * full["kv_bytes_peak"] and less["budget"] == 0.6
    compared = run(
        capsys, "compare", "--model", model, "--prompts", lists["evaluation"], "--scores", scores,
        "--budgets", "0.7", "--policies", "heatkv,streaming", "--seeds", 2, "--batch", 2, "--out", results,
    )  # fmt: skip
    assert [row["policy"] for row in compared["rows"]] == ["heatkv", "streaming"]
    assert set(compared["references"]) == {"other_seed", "sinks_only", "dtype_noise"}


def test_calibration_without_prompts_takes_the_models_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    write_var(model)
    done = run(capsys, "calibrate", "--model", model, "--out", tmp_path / "s.safetensors")
    assert done["prompts"] == 6
    assert "golden retriever" in HeadScores.load(tmp_path / "s.safetensors").prompts


def test_a_budget_without_a_calibration_says_how_to_make_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    write_var(model)
    arguments = [
        "generate",
        "--model",
        str(model),
        "--prompt",
        "7",
        "--budget",
        "0.6",
        "--out",
        str(tmp_path / "a.png"),
    ]
    assert main(arguments) == 2
    assert "python -m heatkv calibrate" in capsys.readouterr().err
    assert main([*arguments[:4], "a zeppelin over the sea", *arguments[7:]]) == 2
    assert "none of them" in capsys.readouterr().err
