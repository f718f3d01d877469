"""LlamaGen files in the published layouts through the app, in stages on a small device, and what does not fit them.

The command line takes them all the way in `test_published_cli`.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import official_files as files
import pytest
from events import event, visitor
from tiny import tiny_lines_model, tiny_model

import heatkv
from heatkv.cache import full_cache
from heatkv.cli import main
from heatkv.generate import generate_events
from heatkv.models import load
from heatkv.models.bundled import save_folder
from heatkv.models.llamagen.model import LlamaGenModel
from heatkv.models.llamagen.transformer import LlamaGenConfig
from heatkv.scores import orders_to_json

CONDITIONS = pytest.mark.parametrize("config", [files.LLAMAGEN, files.LLAMAGEN_TEXT], ids=["class", "caption"])


def prompts_of(config: LlamaGenConfig) -> list[str]:
    return ["3", "7"] if config.condition == "class" else ["a cat", "a red dog"]


# --- in stages --------------------------------------------------------------------------------------------------------


@CONDITIONS
def test_staged_offload_takes_turns_and_changes_nothing(
    tmp_path: Path, config: LlamaGenConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    if config.condition == "caption":
        pytest.importorskip("transformers")
    files.write_llamagen(tmp_path, config=config, t5=True)
    prompts = prompts_of(config)
    whole = load(tmp_path, "cpu")
    monkeypatch.setattr("heatkv.models.choose_offload", lambda *arguments: True)
    staged = load(tmp_path, "cpu")
    assert isinstance(staged, LlamaGenModel) and staged.stages is not None and whole.about()["staged_offload"] is False
    assert staged.about()["staged_offload"] is True
    turns: list[str] = []
    use = staged.stages.use

    def noted(name: str) -> None:
        turns.append(name)
        use(name)

    monkeypatch.setattr(staged.stages, "use", noted)
    if staged.text is not None:
        monkeypatch.setattr(staged.text, "before_use", lambda: noted("text"))
    for prompt, previews in zip(prompts, (False, True), strict=True):
        turns.clear()
        expected = list(generate_events(whole, prompt, 1, full_cache(whole.geometry), previews=previews))
        events = list(generate_events(staged, prompt, 1, full_cache(staged.geometry), previews=previews))
        for mine, theirs in zip(events, expected, strict=True):
            assert np.array_equal(mine.pixels, theirs.pixels)  # type: ignore[arg-type]
        met = [name for name, before in zip(turns, ["", *turns], strict=False) if name != before]
        drawn = ["transformer", "decoder"] * (config.grid if previews else 1)
        assert met == [*(["text"] if config.condition == "caption" else []), *drawn]
    scores = heatkv.calibrate(staged, prompts)
    assert np.array_equal(scores.mass_sum_LHTS, heatkv.calibrate(whole, prompts).mass_sum_LHTS)
    schedule = heatkv.plan(scores, 0.6)
    less, expected_less = (heatkv.generate(model, prompts[0], 2, schedule) for model in (staged, whole))
    assert np.array_equal(less.pixels, expected_less.pixels)


# --- in the app -------------------------------------------------------------------------------------------------------


@pytest.fixture(
    scope="module", params=[("model", files.LLAMAGEN), ("flat", files.LLAMAGEN_TEXT)], ids=["class", "caption"]
)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The page of a model folder, as ``python -m app --model FOLDER`` makes it, and the prompts of its model."""
    pytest.importorskip("gradio")
    layout, config = request.param
    tmp_path = tmp_path_factory.mktemp("published")
    if config.condition == "caption":
        pytest.importorskip("transformers")
    files.write_llamagen(tmp_path, layout, config, t5=True)
    from app.__main__ import exhibit
    from app.demo import _Demo
    from app.workbench import Workbench

    if config.condition == "caption":  # the published models' examples have other words
        settings = (tmp_path / "config.json").read_text().rstrip().removesuffix("}")
        (tmp_path / "config.json").write_text(settings + ', "examples": ["a cat", "a red dog"]}')
    found = exhibit(str(tmp_path), "cpu", None)
    demo = _Demo(Workbench(found.model, found.scores, found.references, found.prompts, found.label))
    demo.build()
    return demo, prompts_of(config)


def pixels(picture: dict[str, Any]) -> Any:
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture["image"].split(",", 1)[1]))))


def test_published_files_are_drawn_calibrated_and_compressed_on_the_page(page: Any) -> None:
    demo, (prompt, other) = page
    bench = demo.bench
    assert bench.bundled.label == "calibration on the model's examples"

    def draw(calibration: Any, b: dict[str, Any]) -> dict[str, Any]:
        asked = event(id=1, prompt=prompt, seed=2, a={"policy": "full"}, b=b)
        value = list(demo.explore.draw(calibration, None, asked, visitor()))[-1][0]
        assert "error" not in value, value
        return value

    first = draw(None, {"policy": "heatkv", "percent": 60})
    assert (pixels(first["a"]) == heatkv.generate(bench.model, prompt, 2).pixels).all()
    assert len(first["a"]["frames"]) == 4 and first["b"]["peak"] <= 0.6 * first["a"]["peak"]
    chosen = f"{prompt}\n{other}" if bench.classes is None else [prompt, other]
    steps = list(demo.calibrate.calibrate(chosen, 2))
    calibration = steps[-1][0]
    assert calibration.scores == heatkv.calibrate(bench.model, bench.read_prompts(chosen, 2))
    second = draw(calibration, {"policy": "heatkv", "percent": 60, "source": "session"})
    schedule = heatkv.plan(calibration.scores, 0.6, model=bench.model.id)
    assert (pixels(second["b"]) == heatkv.generate(bench.model, prompt, 2, schedule).pixels).all()


def test_uploads_of_a_model_that_draws_the_other_way_are_refused_in_one_line(page: Any, tmp_path: Path) -> None:
    demo, _ = page
    other = tiny_model()
    scores = replace(heatkv.calibrate(other, ["red apple"]), model=demo.bench.model.id)
    paths = {name: tmp_path / name for name in ("scores.safetensors", "orders.json", "schedule.json")}
    scores.save(paths["scores.safetensors"])
    paths["orders.json"].write_text(orders_to_json(scores.orders(3), scores.geometry))
    heatkv.plan(scores, 0.5).save(paths["schedule.json"])
    said = [
        demo.calibrate.take_file(str(paths["scores.safetensors"]))[1],
        demo.calibrate.take_file(str(paths["orders.json"]))[1],
        demo.explore.files.take_schedule(str(paths["schedule.json"]))[1],
    ]
    for notice, words in zip(said, ("1 token", "source", "does not fit"), strict=True):
        assert (notice["kind"] == "error" and words in notice["text"]) or "condition" in notice["text"], notice
        assert "\n" not in notice["text"] and str(tmp_path) not in notice["text"]


# --- on the command line ----------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], out: Path, *arguments: object) -> str:
    """Run a command that has to end with exit code 2 and one line; the line."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1 and len(said.err) < 600
    assert not out.exists()
    return said.err


def test_what_does_not_fit_a_lines_model_is_refused_with_what_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published, lines, scales, out = (tmp_path / name for name in ("published", "lines", "scales", "out"))
    published.mkdir()
    files.write_llamagen(published)
    models = {lines: tiny_lines_model(), scales: tiny_model()}
    for folder, model in models.items():
        save_folder(model, folder, "llamagen" if folder == lines else "infinity")
        scores = heatkv.calibrate(model, ["red apple"])
        scores.save(folder / "scores.safetensors")
        sinks = scores.geometry.scales.default_sinks
        (folder / "orders.json").write_text(orders_to_json(scores.orders(sinks), scores.geometry))
        heatkv.plan(scores, 0.6).save(folder / "schedule.json")
    longer = heatkv.calibrate(tiny_lines_model(grid=9), ["red apple"])
    heatkv.plan(longer, 0.6).save(tmp_path / "longer.json")

    draw = ("generate", "--prompt", "red apple", "--model")
    line = refused(capsys, out, "generate", "--model", published, "--prompt", "10")
    assert "no class 10: classes are numbered 0 to 9" in line
    line = refused(capsys, out, "generate", "--model", lines, "--prompt", "zeppelin")
    assert "does not know `zeppelin`" in line and "for example `red apple`" in line
    for folder, fits, other in ((lines, "6 lines of 6", scales), (scales, "scales 1 2 3 4 5 6", lines)):
        line = refused(capsys, out, *draw, folder, "--budget", 0.6, "--scores", other / "scores.safetensors")
        assert fits in line and "do not fit" in line, line
        line = refused(capsys, out, *draw, folder, "--schedule", other / "schedule.json")
        assert fits in line and "does not fit" in line, line
        line = refused(capsys, out, "plan", "--model", folder, "--budget", 0.6, "--orders", other / "orders.json")
        assert "source" in line, line
        line = refused(
            capsys, out, "compare", "--model", folder, "--prompts", prompts_file(tmp_path), "--budgets", 0.6,
            "--scores", other / "scores.safetensors",
        )  # fmt: skip
        assert fits in line, line
    line = refused(capsys, out, *draw, lines, "--schedule", tmp_path / "longer.json")
    assert "9 lines of 9" in line and "6 lines of 6" in line
    line = refused(capsys, out, "generate", "--model", published / "vq.pt", "--prompt", "3")
    assert "vq.pt is the autoencoder of a LlamaGen model: give the path of its" in line


def prompts_file(folder: Path) -> Path:
    (folder / "prompts.txt").write_text("green tree\n")
    return folder / "prompts.txt"
