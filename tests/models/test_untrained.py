"""Published shapes with random weights: everything runs on them, on the device and in the dtype asked for."""

from __future__ import annotations

from dataclasses import replace

import official_files as tiny
import pytest
import torch

import heatkv
from heatkv.models import NotEnoughMemory, random_init
from heatkv.models.presets import PRESETS, Preset

TINY = {
    "infinity": replace(
        PRESETS["infinity-2b"], id="tiny-infinity", scales=tiny.SCALES, transformer_config=tiny.INFINITY,
        autoencoder_config=tiny.INFINITY_IMAGE, text_parameters=0,
    ),
    "patchified": replace(
        PRESETS["infinity-8b"], id="tiny-patchified", scales=tiny.SCALES, transformer_config=tiny.INFINITY,
        autoencoder_config=tiny.PATCHIFIED_IMAGE, text_parameters=0,
    ),
    "var": replace(
        PRESETS["var-d16"], id="tiny-var", scales=tiny.SCALES, transformer_config=tiny.VAR,
        autoencoder_config=tiny.VAR_IMAGE,
    ),
    "llamagen": replace(
        PRESETS["llamagen-b-256"], id="tiny-llamagen", scales=tiny.LLAMAGEN.scales, transformer_config=tiny.LLAMAGEN,
        autoencoder_config=tiny.LLAMAGEN_IMAGE,
    ),
    "llamagen captions": replace(
        PRESETS["llamagen-t2i-256"], id="tiny-t2i", scales=tiny.LLAMAGEN_TEXT.scales,
        transformer_config=tiny.LLAMAGEN_TEXT, autoencoder_config=tiny.LLAMAGEN_IMAGE, text_parameters=0,
    ),
}  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16]


def prompts_of(preset: Preset) -> list[str]:
    return ["3", "7"] if preset.text is None else ["a red fox", "an old lighthouse on a cliff"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("preset", TINY.values(), ids=TINY.keys())
def test_random_model_generates_calibrates_and_runs_compressed(preset: Preset, dtype: torch.dtype) -> None:
    model = random_init(preset, "cpu", dtype)
    prompts = prompts_of(preset)
    assert (model.geometry, model.dtype) == (preset.geometry, dtype)
    full = heatkv.generate(model, prompts[0], seed=1)
    assert full.image.size == preset.image_size[::-1]
    assert full.kv_bytes_peak == full.kv_bytes_full
    scores = heatkv.calibrate(model, prompts)
    schedule = heatkv.plan(scores, budget=0.6)
    small = heatkv.generate(model, prompts[0], seed=1, schedule=schedule)
    assert small.kv_bytes_peak <= 0.6 * full.kv_bytes_full


@pytest.mark.parametrize("preset", TINY.values(), ids=TINY.keys())
def test_random_model_is_a_function_of_its_seed_and_disturbs_no_other_randomness(preset: Preset) -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        model = random_init(preset, "cpu", torch.float32, seed)
        return {**model.transformer.state_dict(), **model.autoencoder.state_dict()}  # type: ignore[attr-defined]

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, same, other = state(0), state(0), state(1)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], same[name]) for name in first)
    head = "head.weight" if "head.weight" in first else "output.weight"
    assert not torch.equal(first[head], other[head])
    assert all(tensor.isfinite().all() for tensor in first.values())


def test_every_published_model_can_be_made_with_random_weights() -> None:
    """On the meta device, which holds shapes without memory."""
    for preset in PRESETS.values():
        model = random_init(preset, "meta", torch.bfloat16)
        assert model.geometry == preset.geometry
        assert model.id == f"{preset.id}-random"


def test_random_model_that_does_not_fit_is_refused_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heatkv.models.memory.available", lambda device: 1_000_000)
    with pytest.raises(NotEnoughMemory, match=r"tiny-var needs about .* GB on cpu .* 0\.0 GB are free"):
        random_init(TINY["var"], "cpu")


def test_random_model_of_no_published_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="'pocket' is not a published model; choose one of var-d16"):
        random_init("pocket")
