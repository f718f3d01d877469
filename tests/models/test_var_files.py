"""Official VAR files load by path, generate, calibrate and run under a budget; prompts are classes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import official_files as files
import pytest
import torch
from test_infinity_files import check_whole_path

from heatkv import generate, load
from heatkv.cache.seam import full_cache
from heatkv.models import CheckpointError, find_geometry
from heatkv.models.base import Sampling, seeded_noise
from heatkv.models.prompts import PromptError
from heatkv.models.var.classes import Classes, imagenet
from heatkv.models.var.layout import SCALES
from heatkv.models.var.model import VarModel
from heatkv.models.var.sampling import draw_tokens, guidance_at
from heatkv.models.var.transformer import VarConfig
from heatkv.models.var.vqvae import Vqvae

SHAPES = {
    "per block": files.VAR,
    "shared": replace(files.VAR, shared_modulation=True),
    "plain attention": replace(files.VAR, cosine=False, width=128),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_kind_of_transformer_loads_by_path(tmp_path: Path, shape: VarConfig) -> None:
    written = files.write_var(tmp_path, shape)
    model = load(tmp_path, "cpu")
    assert isinstance(model, VarModel)
    assert model.geometry == written.geometry == find_geometry(tmp_path)
    assert model.transformer.config == shape
    mine, theirs = model.transformer.state_dict(), written.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert generate(model, "7", seed=3).pixels.shape == (10, 10, 3)


def test_a_model_from_official_files_does_all_that_the_bundled_one_does(tmp_path: Path) -> None:
    files.write_var(tmp_path)
    check_whole_path(load(tmp_path, "cpu"), "3")


def test_scales_of_published_models_need_no_configuration(tmp_path: Path) -> None:
    files.write_var(tmp_path, replace(files.VAR, depth=1), SCALES[256])
    (tmp_path / "config.json").unlink()
    assert load(tmp_path, "cpu").geometry.scales == SCALES[256]


def test_unknown_scales_ask_for_a_configuration(tmp_path: Path) -> None:
    files.write_var(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"none of the published scale lists.*config\.json"):
        load(tmp_path, "cpu")


@pytest.mark.parametrize(
    ("phis", "name"), [(1, "quant_resi.qresi."), (5, "quant_resi.{}."), (4, "quant_resi.qresi_ls.{}.")]
)
def test_convolutions_of_the_quantiser_are_shared_by_all_some_or_no_scales(
    tmp_path: Path, phis: int, name: str
) -> None:
    """One for all scales, one a scale (both only in training code), and four for all, as published."""
    files.write_var(tmp_path)
    autoencoder = files.randomised(Vqvae(files.SCALES, replace(files.VAR_IMAGE, phis=phis)))
    state = {}
    for key, tensor in autoencoder.state_dict().items():
        match = re.search(r"quant_resi\.qresi_ls\.(\d+)\.", key)
        state[key if match is None else key.replace(match[0], name.format(match[1]))] = tensor
    torch.save(state, tmp_path / "vae.pth")
    model = load(tmp_path, "cpu")
    assert isinstance(model, VarModel) and isinstance(autoencoder, Vqvae)
    assert model.autoencoder.config.phis == phis
    if phis == len(files.SCALES):
        assert model.autoencoder.quantize.phi_of_scale == tuple(range(phis)), "each scale has its own"
    index = torch.arange(4)[None] % files.VAR.vocabulary
    assert torch.equal(model.autoencoder.quantize.code(index, 1), autoencoder.quantize.code(index, 1))


def test_loading_is_strict(tmp_path: Path) -> None:
    state = files.published_var(files.write_var(tmp_path))
    torch.save({**state, "future.weight": torch.zeros(2)}, tmp_path / "transformer.pth")
    with pytest.raises(CheckpointError, match=r"no place for: future\.weight"):
        load(tmp_path, "cpu")
    del state["blocks.1.ffn.fc2.bias"]
    torch.save(state, tmp_path / "transformer.pth")
    with pytest.raises(CheckpointError, match=r"lacks blocks\.1\.ffn\.fc2\.bias"):
        load(tmp_path, "cpu")


def test_shared_modulation_equals_the_same_modulation_in_every_block() -> None:
    shared = files.random_var(SHAPES["shared"])
    single = files.random_var(files.VAR)
    state = {k: v for k, v in shared.state_dict().items() if "ada_gss" not in k and "shared_ada" not in k}
    for i, block in enumerate(shared.blocks):
        state[f"blocks.{i}.ada_lin.1.weight"] = shared.shared_ada_lin[1].weight
        state[f"blocks.{i}.ada_lin.1.bias"] = shared.shared_ada_lin[1].bias + block.ada_gss.flatten()
    single.load_state_dict(state)
    hidden = []
    for model in (shared, single):
        condition = model.condition(torch.tensor([1, 2]))
        hidden.append(model(model.embed(None, condition), 0, condition, full_cache(model.geometry)))
    torch.testing.assert_close(hidden[0], hidden[1])


def test_batch_rows_do_not_depend_on_each_other(tmp_path: Path) -> None:
    files.write_var(tmp_path)
    model = load(tmp_path, "cpu")
    sampling = Sampling(guidance=3.0, top_k=12)
    both = list(model.run(["3", "8"], seeded_noise([4, 5]), full_cache(model.geometry), sampling))
    alone = list(model.run(["8"], seeded_noise([5]), full_cache(model.geometry), sampling))
    torch.testing.assert_close(both[-1].latent[1:], alone[-1].latent, atol=1e-4, rtol=1e-4)


def test_without_guidance_half_the_rows_run(tmp_path: Path) -> None:
    files.write_var(tmp_path)
    model = load(tmp_path, "cpu")
    caches = [full_cache(model.geometry) for _ in range(2)]
    for cache, guidance in zip(caches, (1.0, 2.0), strict=True):
        list(model.run(["3"], seeded_noise([0]), cache, Sampling(guidance=guidance)))
    assert caches[1].peak_bytes == 2 * caches[0].peak_bytes


def test_noise_of_zero_is_greedy_and_noise_follows_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 1, 6, generator=generator)
    assert torch.equal(draw_tokens(logits, torch.zeros(1, 1), 0, 0.0), logits.argmax(-1))
    noise = torch.rand(1, 20_000, generator=generator)
    drawn = draw_tokens(logits.expand(1, 20_000, 6), noise, 0, 0.0)
    share = torch.bincount(drawn[0], minlength=6) / 20_000
    torch.testing.assert_close(share, logits[0, 0].softmax(-1), atol=0.02, rtol=0)
    almost_one = torch.full((1, 1), 1 - 2**-24)
    best_two = logits[0, 0].topk(2).indices
    assert draw_tokens(logits, almost_one, 2, 0.0).item() in best_two  # never what top-k took away


def test_guidance_grows_from_none_to_its_full_strength() -> None:
    assert [guidance_at(5.0, k, 5) for k in range(5)] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_there_are_a_thousand_classes_with_names() -> None:
    classes = imagenet()
    assert classes.count == len(classes.names) == 1000
    assert classes.title(0) == "0 tench"
    assert classes.title(207) == "207 golden retriever"
    assert classes.title(999).startswith("999 toilet tissue")


@pytest.mark.parametrize(
    ("prompt", "index"),
    [("207", 207), (" Golden  Retriever ", 207), ("207 golden retriever", 207), ("tinca-tinca", 0), ("macaw", 88)],
)
def test_classes_go_by_number_name_or_synonym(prompt: str, index: int) -> None:
    assert imagenet().read(prompt) == (index, None)


def test_every_title_of_the_picker_reads_back_as_its_class() -> None:
    classes = imagenet()
    assert [classes.read(classes.title(i))[0] for i in range(1000)] == list(range(1000))


def test_a_name_of_two_classes_says_so() -> None:
    index, note = imagenet().read("crane")
    assert index == 134
    assert note is not None
    assert "517 crane" in note


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("1000", "numbered 0 to 999"),
        ("-1", "numbered 0 to 999"),
        ("goldn retriever", "golden retriever"),
        ("retriever", "golden retriever"),
        ("a spaceship over Paris", "none of them"),
        ("  ", "empty"),
        ("9" * 400, "numbered 0 to 999"),
    ],
)
def test_unknown_classes_are_refused_with_a_suggestion(prompt: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        imagenet().read(prompt)


def test_a_model_of_other_classes_goes_by_numbers() -> None:
    assert Classes(10).read("7") == (7, None)
    with pytest.raises(PromptError, match="write a number from 0 to 9"):
        Classes(10).read("golden retriever")
