"""How tokens are drawn is a choice: the authors' settings by default, what they offer where they offer it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import official_files as files
import pytest
import torch
from tiny import tiny_model

from heatkv import generate
from heatkv.cache import full_cache
from heatkv.cli import main, make_parser
from heatkv.cli.arguments import chosen_sampling
from heatkv.models import find_geometry, load, random_init
from heatkv.models.base import Sampling, seeded_noise
from heatkv.models.checkpoint import CheckpointError
from heatkv.models.folder import identify
from heatkv.models.infinity.autoencoder import AutoencoderConfig, BitQuantizer
from heatkv.models.infinity.sampling import Guidance
from heatkv.models.infinity.scales import find_ratio
from heatkv.models.llamagen import sampling as llamagen
from heatkv.models.presets import PRESETS, find_preset
from heatkv.models.var.sampling import smooth_codes
from heatkv.models.var.vqvae import CodeQuantizer, VqvaeConfig
from heatkv.scales import ScaleSchedule


def test_presets_draw_as_their_authors_do_and_say_whose_setting_it_is() -> None:
    found = {name: (preset.sampling.guidance, preset.sampling.temperature) for name, preset in PRESETS.items()}
    assert found["infinity-2b"] == (4.0, 0.5) and found["infinity-8b"] == found["infinity-8b-512"] == (3.0, 1.0)
    assert found["var-d30"] == (5.0, 1.0)
    for name in ("infinity-2b", "infinity-8b", "infinity-125m", "var-d16"):
        assert "FoundationVision" in PRESETS[name].sampling_source
    model = random_init("var-d16", "meta")
    assert model.about()["sampling"] == PRESETS["var-d16"].sampling_source


def test_the_command_line_changes_what_it_names_and_nothing_else() -> None:
    def chosen(*arguments: str) -> Sampling:
        parsed = make_parser().parse_args(["generate", "--prompt", "x", "--out", "y", *arguments])
        return chosen_sampling(parsed, PRESETS["infinity-2b"].sampling)

    usual = PRESETS["infinity-2b"].sampling
    assert chosen() == usual
    assert chosen("--guidance", "2") == replace(usual, guidance=2.0)
    assert chosen("--temperature", "0.8", "--top-k", "5", "--top-p", "0.5") == replace(
        usual, temperature=0.8, top_k=5, top_p=0.5
    )
    assert chosen("--guidance", "1,2,3").guidance_by_scale == (1.0, 2.0, 3.0)
    assert chosen("--negative", "blurry").negative == "blurry"
    for wrong in (
        ["--guidance", "nan"],
        ["--temperature", "0"],
        ["--top-p", "2"],
        ["--top-k", "-1"],
        ["--guidance", ","],
    ):
        with pytest.raises(ValueError, match=r"guidance|temperature|top_|lists nothing"):
            chosen(*wrong)


def test_sampling_reaches_the_picture_and_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from heatkv.models.bundled import save_folder

    save_folder(tiny_model(), tmp_path / "tiny")
    command = ["generate", "--model", str(tmp_path / "tiny"), "--prompt", "red apple", "--out", str(tmp_path / "a.png")]
    assert main([*command, "--json"]) == 0
    usual = json.loads(capsys.readouterr().out)
    assert main([*command, "--guidance", "1", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["sampling"]["guidance"] == 1 and 2 * plain["kv_bytes_peak"] == usual["kv_bytes_peak"]
    assert usual["sampling"]["guidance"] == 2 and usual["sampling"]["temperature"] == pytest.approx(0.7)
    assert main([*command, "--smooth"]) == 2
    assert "has no smooth" in capsys.readouterr().err
    assert main([*command, "--guidance", "1,2"]) == 2
    assert "2 strengths of guidance for 6 scales" in capsys.readouterr().err


def test_guidance_by_scale_and_a_negative_prompt_change_what_is_drawn() -> None:
    model = tiny_model()
    usual = generate(model, "red apple")
    same = generate(model, "red apple", sampling=replace(model.sampling, guidance_by_scale=(2.0,) * 6))
    assert np.array_equal(usual.pixels, same.pixels)
    rising = generate(model, "red apple", sampling=replace(model.sampling, guidance_by_scale=(1, 1, 1, 1, 9, 9)))
    away = generate(model, "red apple", sampling=replace(model.sampling, negative="green tree"))
    assert not np.array_equal(usual.pixels, rising.pixels) and not np.array_equal(usual.pixels, away.pixels)
    assert rising.kv_bytes_peak == usual.kv_bytes_peak
    asked = replace(model.sampling, guidance_by_scale=(1.0,) * 6)
    assert not asked.guided
    assert 2 * generate(model, "red apple", sampling=asked).kv_bytes_peak == usual.kv_bytes_peak


def test_what_a_family_does_not_offer_it_refuses(tmp_path: Path) -> None:
    files.write_var(tmp_path)
    model = load(tmp_path, "cpu")
    for asked in (Sampling(negative="blurry"), Sampling(guidance_by_scale=(1.0,) * 5)):
        with pytest.raises(ValueError, match="has no"):
            generate(model, "3", sampling=asked)
    plain = generate(model, "3", sampling=Sampling(guidance=2.0, top_k=5))
    smooth = generate(model, "3", sampling=Sampling(guidance=2.0, top_k=5, smooth=True))
    again = generate(model, "3", sampling=Sampling(guidance=2.0, top_k=5, smooth=True))
    assert not np.array_equal(plain.pixels, smooth.pixels) and np.array_equal(smooth.pixels, again.pixels)


def test_mixtures_of_codes_sharpen_from_scale_to_scale() -> None:
    logits, noise = torch.randn(1, 4, 24), torch.rand(1, 4, 24)
    first, last = (smooth_codes(logits, noise, k, 5) for k in (0, 4))
    torch.testing.assert_close(first.sum(-1), torch.ones(1, 4))
    assert last.max(-1).values.mean() > first.max(-1).values.mean() > 1 / 24
    hot = logits * 1 - (-noise.clamp(1e-10, 1 - 1e-7).log()).log()
    torch.testing.assert_close(first, (hot / 0.27).softmax(-1))


def test_a_configuration_beside_published_files_counts(tmp_path: Path) -> None:
    from heatkv.models.hub import Files

    for name in ("var_d16.pth", "vae_ch160v4096z32.pth"):
        (tmp_path / name).write_bytes(b"")
    assert identify(tmp_path)[0].sampling == PRESETS["var-d16"].sampling
    stated = {"format": "heatkv-official", "version": 1, "sampling": {"guidance": 2.5, "top_k": 7}}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    preset, found = identify(tmp_path)
    assert preset.sampling == Sampling(guidance=2.5, top_k=7) and isinstance(found, Files)
    (tmp_path / "config.json").write_text(json.dumps({**stated, "scales": [[1, 1]]}))
    with pytest.raises(CheckpointError, match="states scales"):
        identify(tmp_path)


def test_sampling_goes_through_files() -> None:
    asked = Sampling(guidance=3, guidance_by_scale=(1.0, 2.5), negative="blurry", smooth=True, top_k=4)
    assert Sampling.of(json.loads(json.dumps(asdict(asked)))) == asked
    for wrong in (
        {"top_k": 2.5},
        {"negative": 1},
        {"smooth": 1},
        {"guidance_by_scale": ["a"]},
        {"strength": 2},
        {"guidance": []},
    ):
        with pytest.raises(ValueError, match="sampling"):
            Sampling.of(wrong)


# --- sizes, shapes, names ---------------------------------------------------------------------------------------------


def test_ratios_are_those_of_the_nearest_published_shape_and_said_so() -> None:
    assert [find_ratio(r) for r in ("16:9", "9:16", "4:3", "3:2", "1", "1.9", "21:9")] == [
        "1.75", "0.571", "1.333", "1.5", "1.0", "2.0", "2.5"
    ]  # fmt: skip
    near, exact = find_preset("infinity-2b:1M:9:16"), find_preset("infinity-2b:1M:0.75")
    assert near is not None and exact is not None
    assert near.ratio == "0.571" and "nearest to 9:16" in near.note and near.told["note"] == near.note
    assert exact.note == "" and find_preset("infinity-2b:1M") is PRESETS["infinity-2b"]
    for wrong in ("0", "-1", "nan", "9", "1:0", "x", "inf"):
        with pytest.raises(ValueError, match="near none"):
            find_ratio(wrong)


@pytest.mark.parametrize("vae", ["infinity_vae_d32reg.pth", "infinity_vae_d32_reg.pth"])
@pytest.mark.parametrize("text", ["flan-t5-xl", "flan-t5-xl-official"])
def test_files_go_by_the_names_of_the_hub_and_of_the_authors_scripts(tmp_path: Path, vae: str, text: str) -> None:
    for name in ("infinity_2b_reg.pth", vae):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / text).mkdir()
    preset, found = identify(tmp_path)
    assert preset.id == "infinity-2b"
    assert (found.autoencoder, found.text) == (tmp_path / vae, tmp_path / text)


def renamed_infinity(folder: Path, name: str) -> Path:
    """Files of a tiny model that state no scales: their size has to be told."""
    files.write_infinity(folder)
    (folder / "config.json").unlink()
    return (folder / "model.pth").rename(folder / name)


def test_a_renamed_model_does_not_run_at_a_size_that_nobody_named(tmp_path: Path) -> None:
    path = renamed_infinity(tmp_path, "mine.pth")
    with pytest.raises(CheckpointError, match=r"does not tell the size.*mine\.pth:1M"):
        find_geometry(path)
    assert len(find_geometry(f"{path}:0.06M").scales) == 7
    assert len(find_geometry(f"{path}:1M").scales) == 13
    assert len(find_geometry(path.rename(tmp_path / "mine_256x256.pth")).scales) == 7
    assert len(find_geometry((tmp_path / "mine_256x256.pth").rename(tmp_path / "mine_0.25M.pth")).scales) == 10


def test_a_shape_of_which_one_size_is_published_is_of_that_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = renamed_infinity(tmp_path, "mine.pth")
    of_125m = replace(PRESETS["infinity-125m"], transformer_config=files.INFINITY)
    monkeypatch.setitem(PRESETS, "infinity-125m", of_125m)
    assert len(find_geometry(path).scales) == 7
    monkeypatch.setitem(PRESETS, "another", replace(of_125m, size="0.25M"))
    with pytest.raises(CheckpointError, match="does not tell the size"):
        find_geometry(path)


# --- quantisers, hidden layers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("patchify", [False, True])
def test_a_latent_map_of_another_size_is_quantised_at_its_own(patchify: bool) -> None:
    scales = ScaleSchedule.square((1, 2, 4))
    quantizer = BitQuantizer(scales, AutoencoderConfig(32, (1, 2), bits=2, stride=2, patchify=patchify))
    latent = torch.randn(1, 2, 12, 10)
    bits, total = quantizer.quantize(latent)
    assert total.shape == latent.shape and [b.shape[1] for b in bits] == [1, 4, 16]
    coarse, expected = quantizer.upsample(quantizer.code(bits[0], 0), (12, 10)), torch.zeros_like(latent)
    for k, drawn in enumerate(bits):
        expected += quantizer.upsample(quantizer.code(drawn, k), (12, 10))
    torch.testing.assert_close(total, expected)
    assert coarse.shape == latent.shape


def test_codes_take_a_latent_map_of_their_own_size_only() -> None:
    quantizer = CodeQuantizer(
        ScaleSchedule.square((1, 2, 4)), VqvaeConfig(32, (1,), code_width=4, vocabulary=8, phis=1)
    )
    with pytest.raises(ValueError, match="not 4 x 4"):
        quantizer.quantize(torch.randn(1, 4, 8, 8))
    assert quantizer.quantize(torch.randn(1, 4, 4, 4))[1][-1].shape == (1, 4, 4, 4)


def test_hidden_layers_count_from_the_end_too_and_others_are_refused() -> None:
    from heatkv.models.infinity.sampling import generate_scales

    model = tiny_model()

    def drawn(*layers: int) -> torch.Tensor:
        text = model.text.encode(["red apple"])
        guidance = Guidance((3.0,) * 6, (1.0,) * 6, hidden_layers=layers)
        noise, cache = seeded_noise([0]), full_cache(model.geometry)
        with torch.inference_mode():
            steps = generate_scales(model.transformer, model.autoencoder.quantizer, text, None, cache, guidance, noise)
            return list(steps)[-1].latent

    assert torch.equal(drawn(-1), drawn(2)) and not torch.equal(drawn(-1), drawn(0))
    for layer in (3, -4):
        with pytest.raises(ValueError, match=f"no hidden layer {layer}"):
            drawn(layer)


def test_prompts_are_read_as_far_as_the_text_encoder_goes() -> None:
    from heatkv.models.prompts import PromptError, check_prompt

    assert check_prompt("word " * 512) == ("word " * 512).strip()
    with pytest.raises(PromptError, match="9000 characters"):
        check_prompt("x" * 9000)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.95), (0, 0.5), (40, 0.0), (100, 0.8), (0, 0.9999), (0, 0.0)])
def test_sorting_a_few_values_draws_the_tokens_that_sorting_all_does(
    top_k: int, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_BV = (torch.randn(64, 1024, generator=generator) * 3).round(decimals=1)  # many are equal
    logits_BV[32:] *= 0.01  # and here no few of them have the probability
    noise_B = torch.rand(64, generator=generator)
    sampling = Sampling(top_k=top_k, top_p=top_p)
    one_by_one = logits_BV.split(1)
    few = [llamagen.draw_token(*row, sampling) for row in zip(one_by_one, noise_B.split(1), strict=True)]
    widths = {llamagen.likely_first(row, top_k, top_p)[0].shape[1] for row in one_by_one}
    monkeypatch.setattr(llamagen, "FEW", 1024)
    assert torch.equal(torch.cat(few), llamagen.draw_token(logits_BV, noise_B, sampling))
    assert widths == {(0, 0.95): {256, 1024}, (0, 0.5): {256, 1024}, (0, 0.9999): {1024}}.get(
        (top_k, top_p), {256} if top_k else {1024}
    )
