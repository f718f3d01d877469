"""Official Infinity files in every layout load by path, generate, calibrate and run under a budget."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import official_files as files
import pytest
import torch

from heatkv import calibrate, generate, load, plan
from heatkv.cache.probe import ProbeCache
from heatkv.cache.seam import full_cache
from heatkv.generate import generate_events
from heatkv.models import CheckpointError, find_geometry
from heatkv.models.base import GenerativeModel
from heatkv.models.infinity import layout, official
from heatkv.models.infinity.autoencoder import Autoencoder
from heatkv.models.infinity.model import InfinityModel


@pytest.fixture(autouse=True)
def _no_real_text_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(official, "T5Encoder", files.StandInText)


def check_whole_path(model: GenerativeModel, prompt: str) -> None:
    """Generate, calibrate, generate under a budget, and look at a head."""
    full = generate(model, prompt, seed=1)
    scores = calibrate(model, [prompt], seed=1)
    np.testing.assert_allclose(scores.mass_LHTS.sum(-1), 1, atol=1e-5)
    schedule = plan(scores, 0.5, sink_scales=1)
    pruned = generate(model, prompt, seed=1, schedule=schedule)
    assert pruned.pixels.shape == full.pixels.shape
    assert pruned.kv_bytes_peak <= 0.5 * full.kv_bytes_full < full.kv_bytes_peak <= full.kv_bytes_full
    probe = ProbeCache(model.geometry, [(1, 0)])
    events = list(generate_events(model, prompt, 1, probe))
    assert np.array_equal(events[-1].pixels, full.pixels)
    for t, attention in enumerate(probe.attention[1, 0]):
        assert attention.shape == (model.geometry.scales.tokens[t], model.geometry.scales.bounds[t][1])
        np.testing.assert_allclose(scores.mass_LHTS[1, 0, t, t], attention_on_itself(attention, t, model), atol=1e-4)


def attention_on_itself(attention: torch.Tensor, t: int, model: GenerativeModel) -> float:
    start, end = model.geometry.scales.bounds[t]
    return float(attention[:, start:end].sum(1).mean())


@pytest.mark.parametrize("name", files.INFINITY_LAYOUTS)
def test_every_layout_loads_the_same_weights(tmp_path: Path, name: str) -> None:
    written = files.write_infinity(tmp_path, name)
    model = load(tmp_path, "cpu")
    assert isinstance(model, InfinityModel)
    assert model.id == "tiny-infinity"
    assert model.geometry == written.geometry == find_geometry(tmp_path)
    mine, theirs = model.transformer.state_dict(), written.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert torch.equal(model.transformer.rope, written.rope)
    assert torch.equal(model.transformer.level, written.level)
    assert len(generate(model, "a cat", seed=3).scales) == len(files.SCALES)


def test_a_model_from_official_files_does_all_that_the_bundled_one_does(tmp_path: Path) -> None:
    files.write_infinity(tmp_path, "sharded safetensors")
    check_whole_path(load(tmp_path, "cpu"), "a cat on a tree")


def test_a_path_may_name_the_transformer_itself(tmp_path: Path) -> None:
    files.write_infinity(tmp_path, "sharded bin")
    files.INFINITY_LAYOUTS["chunks"](files.random_infinity(), tmp_path)
    with pytest.raises(CheckpointError, match="several transformers"):
        load(tmp_path, "cpu")
    for name in ("weights", "model.pth"):
        assert load(tmp_path / name, "cpu").geometry.layers == 4


def test_patchified_codes_take_four_cells_a_token(tmp_path: Path) -> None:
    files.write_infinity(tmp_path, image=files.PATCHIFIED_IMAGE)
    model = load(tmp_path, "cpu")
    assert isinstance(model, InfinityModel)
    assert model.autoencoder.config.patchify
    assert generate(model, "a cat").pixels.shape == (20, 20, 3)  # 5 tokens x 2 cells x stride 2


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_both_autoencoder_layouts_give_the_same_pictures(tmp_path: Path, wrapped: bool, nested: bool) -> None:
    files.write_infinity(tmp_path)
    autoencoder = files.randomised(Autoencoder(files.SCALES, files.INFINITY_IMAGE), seed=5)
    assert isinstance(autoencoder, Autoencoder)
    state = files.published_bits(autoencoder, wrapped=wrapped)
    torch.save({"vae": state} if nested else state, tmp_path / "vae.pth")
    model = load(tmp_path, "cpu")
    assert isinstance(model, InfinityModel)
    latent = torch.randn(1, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.autoencoder.decode(latent), autoencoder.decode(latent))


@pytest.mark.parametrize("rows", [4, 9])
def test_the_empty_prompt_is_cut_or_padded(rows: int) -> None:
    given = torch.randn(6, 128, generator=torch.Generator().manual_seed(0))
    resized = layout.transformer_state({"cfg_uncond": given}, rows)["cfg_uncond"]
    assert resized.shape == (rows, 128)
    assert torch.equal(resized[:6], given[:rows])
    assert resized.isfinite().all()


def test_published_scales_can_be_chosen_in_the_path(tmp_path: Path) -> None:
    files.write_infinity(tmp_path)
    (tmp_path / "config.json").unlink()
    geometry = find_geometry(f"{tmp_path}:0.06M:1.5")
    assert geometry.scales.sizes[-1] == (21, 14)
    assert find_geometry(f"{tmp_path}:1M").scales.sizes[-1] == (64, 64)
    with pytest.raises(CheckpointError, match="does not tell the size of its images"):
        find_geometry(tmp_path)
    model = load(f"{tmp_path}:0.06M", "cpu")
    assert isinstance(model, InfinityModel)
    assert model.transformer.config.rope_grid == (64, 64)  # of the full size, whatever the size


@pytest.mark.parametrize(
    "stated",
    [{"scales": [[1, 1]]}, {"scales": [[2, 2], [4, 4]]}, {"scales": [[1, 1]] + [[2, 2]] * 15},
     {"scales": [[1, 1], [1, 4]], "drawing": "lines"}],
)  # fmt: skip
def test_scales_that_the_transformer_can_not_draw_are_refused_before_loading(
    tmp_path: Path, stated: dict[str, object]
) -> None:
    files.write_infinity(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **stated}))
    with pytest.raises(CheckpointError, match=r"config\.json.*its scales are not for"):
        load(tmp_path, "cpu")


def test_tensors_of_an_unknown_name_are_ignored_and_reported_but_missing_ones_refused(tmp_path: Path) -> None:
    written = files.write_infinity(tmp_path)
    state = files.published_infinity(written)
    torch.save({**state, "future.weight": torch.zeros(2)}, tmp_path / "model.pth")
    assert load(tmp_path, "cpu").about()["tensors_ignored"] == ["future.weight"]
    del state["block_chunks.1.module.0.ca.proj.bias"]
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"lacks blocks\.2\.ca\.proj\.bias"):
        load(tmp_path, "cpu")


def test_blocks_and_cache_run_in_bfloat16_and_the_rest_in_float32(tmp_path: Path) -> None:
    files.write_infinity(tmp_path)
    model = load(tmp_path, "cpu", torch.bfloat16)
    assert isinstance(model, InfinityModel)
    assert model.dtype == torch.bfloat16
    assert model.transformer.head.weight.dtype == torch.float32
    cache = full_cache(model.geometry)
    events = list(generate_events(model, "a cat", 0, cache))
    assert events[-1].pixels is not None
    assert cache.peak_bytes == model.geometry.kv_bytes(
        model.geometry.full_peak_tokens, batch=2, key_bytes=2, value_bytes=2
    )


def test_a_wrong_autoencoder_is_named_with_the_right_one(tmp_path: Path) -> None:
    config, image = replace(files.INFINITY, bits=32), replace(files.INFINITY_IMAGE, bits=4)
    files.write_infinity(tmp_path, config=config, image=image)
    with pytest.raises(CheckpointError, match=r"predicts 32 bits.*codes 4 bits.*goes with infinity_vae_d32reg\.pth"):
        load(tmp_path, "cpu")


def test_a_wrong_text_encoder_is_named_with_the_right_width(tmp_path: Path) -> None:
    files.write_infinity(tmp_path)
    (tmp_path / "flan-t5-tiny" / "config.json").write_text('{"model_type": "t5", "d_model": 96}')
    with pytest.raises(CheckpointError, match=r"gives features of 96 numbers.*reads 128"):
        load(tmp_path, "cpu")
