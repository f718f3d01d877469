"""Published models by name: what they are, what they need, and what is said when something is missing or mixed up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import official_files as files
import pytest
import torch

from heatkv import generate, load
from heatkv.cli.arguments import read_prompts
from heatkv.models import (
    CheckpointError,
    NotEnoughMemory,
    bundled_folders,
    bundled_scores,
    find_folder,
    find_geometry,
    hub,
    list_models,
    memory,
    presets,
)
from heatkv.models.bundled import calibration_prompts
from heatkv.models.hub import FOLDER_VARIABLE
from heatkv.models.infinity.scales import FULL, SIZES, find_ratio, published_scales, rope_grid
from heatkv.models.memory import Estimate, choose_offload, decoder_parameters, estimate, transformer_parameters
from heatkv.models.presets import PRESETS, Preset, Weights, find_preset
from heatkv.models.var.vqvae import VqvaeConfig
from heatkv.scales import ScaleSchedule

CPU = torch.device("cpu")
VAR_WEIGHTS = Weights("someone/tiny", "tiny_var.pth", 1000)
VAE_WEIGHTS = Weights("someone/tiny", "tiny_vae.pth", 1000)


@pytest.fixture
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No weights on this machine: neither a folder of them nor the hub's cache."""
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(hub, "find_cached", lambda weights: None)


@pytest.fixture
def tiny_preset(monkeypatch: pytest.MonkeyPatch, nothing_here: None) -> Preset:
    """One more entry in the registry."""
    preset = replace(
        PRESETS["var-d16"], id="var-tiny", scales=files.SCALES, transformer_config=files.VAR,
        autoencoder_config=files.VAR_IMAGE, transformer=VAR_WEIGHTS, autoencoder=VAE_WEIGHTS,
    )  # fmt: skip
    monkeypatch.setitem(presets.PRESETS, preset.id, preset)
    return preset


def write_tiny(folder: Path) -> None:
    files.write_var(folder)
    (folder / "transformer.pth").rename(folder / VAR_WEIGHTS.name)
    (folder / "vae.pth").rename(folder / VAE_WEIGHTS.name)
    (folder / "config.json").unlink()


def test_one_more_entry_is_all_that_a_further_preset_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_preset: Preset
) -> None:
    assert find_geometry("var-tiny").layers == files.VAR.depth
    listed = {m.id: m for m in list_models()}["var-tiny"]
    assert not listed.on_disk
    assert listed.missing == ("tiny_var.pth (someone/tiny)", "tiny_vae.pth (someone/tiny)")
    with pytest.raises(ValueError, match=r"tiny_var\.pth.*someone/tiny.*--download var-tiny.*HEATKV_WEIGHTS"):
        load("var-tiny", "cpu")
    write_tiny(tmp_path)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    listed = {m.id: m for m in list_models()}["var-tiny"]
    assert listed.on_disk
    assert listed.where == tmp_path / VAR_WEIGHTS.name
    assert find_folder("var-tiny") == tmp_path
    for name in ("var-tiny", tmp_path, tmp_path / VAR_WEIGHTS.name):
        model = load(name, "cpu")
        assert model.id == "var-tiny"
    assert generate(model, "3").pixels.shape == (10, 10, 3)


def test_a_transformer_of_another_model_is_told_by_its_shape(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_preset: Preset
) -> None:
    other = replace(tiny_preset, id="var-deep", transformer_config=replace(files.VAR, depth=5))
    monkeypatch.setitem(presets.PRESETS, other.id, replace(other, transformer=Weights("someone/tiny", "deep.pth", 1)))
    write_tiny(tmp_path)
    torch.save(files.published_var(files.random_var(other.transformer_config)), tmp_path / VAR_WEIGHTS.name)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"depth 5.*transformer of var-deep.*needs depth 3.*use tiny_var\.pth of"):
        load(tmp_path, "cpu")


def test_an_autoencoder_of_another_model_is_told_by_its_codes(tmp_path: Path, tiny_preset: Preset) -> None:
    write_tiny(tmp_path)
    from heatkv.models.var.vqvae import Vqvae

    other = replace(files.VAR_IMAGE, vocabulary=48)
    torch.save(files.published_codes(Vqvae(files.SCALES, other)), tmp_path / VAE_WEIGHTS.name)
    with pytest.raises(CheckpointError, match=r"predicts 24 codes.*codes 48 codes.*goes with tiny_vae\.pth of someone"):
        load(tmp_path, "cpu")
    torch.save(files.published_var(files.random_var()), tmp_path / VAE_WEIGHTS.name)
    with pytest.raises(CheckpointError, match=r"tiny_vae\.pth holds no VAR autoencoder"):
        load(tmp_path, "cpu")


def test_a_folder_with_the_wrong_autoencoder_names_the_right_one(tmp_path: Path, nothing_here: None) -> None:
    (tmp_path / "infinity_2b_reg.pth").touch()
    (tmp_path / "infinity_vae_d16.pth").touch()
    files.write_text_encoder(tmp_path / "flan-t5-xl", 2048)
    with pytest.raises(CheckpointError, match=r"infinity_vae_d32reg\.pth.*_vae_d16\.pth in .* does not go with"):
        load(tmp_path, "cpu")


def test_a_folder_of_several_models_asks_which(tmp_path: Path, nothing_here: None) -> None:
    (tmp_path / "var_d16.pth").touch()
    (tmp_path / "var_d20.pth").touch()
    with pytest.raises(CheckpointError, match=r"several models; give the path of one.*var_d16\.pth"):
        load(tmp_path, "cpu")


@pytest.mark.parametrize("name", PRESETS)
def test_names_give_geometries_without_weights(name: str, nothing_here: None) -> None:
    preset = PRESETS[name]
    geometry = find_geometry(name)
    assert geometry.layers * geometry.heads == geometry.head_count
    assert geometry.head_dim * geometry.heads == preset.transformer_config.width
    with pytest.raises(ValueError, match=r"not all on this machine.*can be planned"):
        load(name, "cpu")


def test_infinity_8b_takes_the_published_memory() -> None:
    geometry = find_geometry("infinity-8b")
    published = geometry.kv_bytes(geometry.full_peak_tokens, batch=16, key_bytes=4, value_bytes=2)
    ours = geometry.kv_bytes(geometry.full_peak_tokens, batch=16, key_bytes=2, value_bytes=2)
    assert round(published / 2**20) == 84328
    assert round(ours / 2**20) == 56219  # keys in the compute dtype: two thirds


def test_parameters_are_as_many_as_published() -> None:
    published = {"var-d16": 310e6, "var-d20": 601e6, "var-d24": 1.03e9, "var-d30": 2.01e9, "var-d36": 2.35e9,
                 "infinity-125m": 0.125e9, "infinity-2b": 2.20e9, "infinity-8b": 8.38e9,
                 "llamagen-b-256": 111e6, "llamagen-l-384": 343e6, "llamagen-xl-384": 775e6, "llamagen-xxl-384": 1.41e9,
                 "llamagen-3b-384": 3.10e9, "llamagen-t2i-256": 778e6}  # fmt: skip
    for name, expected in published.items():
        preset = PRESETS[name]
        count = sum(transformer_parameters(preset.family, preset.transformer_config, preset.scales))
        assert count == pytest.approx(expected, rel=0.005), name


def test_parameter_counts_equal_those_of_a_real_model() -> None:
    model = files.random_infinity()
    assert sum(transformer_parameters("infinity", files.INFINITY, files.SCALES)) == sum(
        p.numel() for p in model.parameters()
    )
    assert decoder_parameters("var", VqvaeConfig()) > 30e6


def test_scales_equal_the_published_table(conformance: Path) -> None:
    table = json.loads((conformance / "infinity_scale_schedules.json").read_text())
    assert set(table) == set(FULL)
    for ratio, by_size in table.items():
        assert set(by_size) == set(SIZES)
        for size, entry in by_size.items():
            expected = ScaleSchedule(tuple((h, w) for _, h, w in entry["scales_thw"]))
            assert published_scales(size, ratio) == expected
            h, w = expected.sizes[-1]
            assert [16 * h, 16 * w] == entry["pixel"]
        assert rope_grid(ratio) == tuple(by_size["1M"]["scales_thw"][-1][1:])


def test_names_take_a_size_and_a_ratio() -> None:
    preset = find_preset("infinity-2b:0.25M:3:4")
    assert preset is not None
    assert preset.id == "infinity-2b:0.25M:0.75"
    assert preset.image_size == (432, 576)
    assert preset.transformer_config.rope_grid == (54, 72)  # type: ignore[union-attr]
    assert find_geometry("infinity-8b:0.25M") == find_geometry("infinity-8b-512")
    assert find_preset("infinity-2b:1M") is PRESETS["infinity-2b"]
    assert PRESETS["infinity-8b"].image_size == (1024, 1024)
    assert find_ratio("3:2") == find_ratio("1.5") == "1.5"
    assert find_preset("nothing") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("infinity-2b:2M", "0.06M, 0.25M, 0.60M, 1M"),
        ("infinity-2b:1M:9", "aspect ratio '9'"),
        ("infinity-2b:1M:x", "aspect ratio 'x'"),
        ("infinity-2b:1M:0:0", "aspect ratio '0:0'"),
        ("var-d16:1M", "var-d16 has one size, 256 x 256"),
        ("infinity-3b", "there is no model 'infinity-3b'; choose one of"),
    ],
)
def test_wrong_names_say_what_there_is(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_geometry(name)


def test_the_estimate_counts_weights_cache_and_work() -> None:
    need = estimate(PRESETS["infinity-2b"], torch.device("cuda"), torch.bfloat16)
    assert need.transformer == pytest.approx(2.2e9 * 2, rel=0.03)
    assert need.cache == 2 * 32 * 16 * 6425 * 128 * 4
    assert need.staged < need.whole
    assert "transformer 4.5" in str(need)
    assert "text" not in str(estimate(PRESETS["var-d16"], CPU, torch.float32))


def test_a_model_that_does_not_fit_is_refused_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    preset, cuda = PRESETS["infinity-8b"], torch.device("cuda")
    need = estimate(preset, cuda, torch.bfloat16)
    monkeypatch.setattr(memory, "available", lambda device: need.staged + 1)
    assert choose_offload(preset, cuda, torch.bfloat16, None) is True
    with pytest.raises(NotEnoughMemory, match="allow staged offload"):
        choose_offload(preset, cuda, torch.bfloat16, False)
    monkeypatch.setattr(memory, "available", lambda device: need.whole + 1)
    assert choose_offload(preset, cuda, torch.bfloat16, None) is False
    assert choose_offload(preset, cuda, torch.bfloat16, True) is True
    monkeypatch.setattr(memory, "available", lambda device: int(8e9))
    with pytest.raises(NotEnoughMemory, match=r"needs about 2\d\.\d GB.*8\.0 GB are free.*infinity-8b:0\.25M"):
        choose_offload(preset, cuda, torch.bfloat16, None)
    with pytest.raises(NotEnoughMemory, match="bfloat16"):
        choose_offload(preset, CPU, torch.float32, None)
    monkeypatch.setattr(memory, "available", lambda device: None)
    assert choose_offload(preset, cuda, torch.bfloat16, None) is False


def test_loading_asks_for_memory_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files.write_var(tmp_path)
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    with pytest.raises(NotEnoughMemory, match=r"tiny-var needs about 0\.3 GB on cpu"):
        load(tmp_path, "cpu")


def test_this_machine_tells_its_free_memory() -> None:
    free = memory.available(CPU)
    assert free is None or free > 10_000_000
    assert isinstance(estimate(PRESETS["var-d16"], CPU, torch.float32), Estimate)


@pytest.mark.parametrize("name", sorted(bundled_folders()))
def test_calibrate_takes_by_itself_the_prompts_that_the_bundled_calibration_was_made_of(name: str) -> None:
    scores = bundled_scores(name)
    assert read_prompts(calibration_prompts()) == list(scores.prompts)
