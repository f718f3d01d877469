"""LlamaGen models from files in every published layout, and in this program's own folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import official_files as files
import pytest
import torch

import heatkv
from heatkv.cache import full_cache
from heatkv.generate import generate_events
from heatkv.models import CheckpointError, Sampling, find_geometry, load, seeded_noise
from heatkv.models.bundled import save_folder
from heatkv.models.infinity.text import PromptError, Vocabulary, WordEncoder
from heatkv.models.llamagen.captions import clean_caption
from heatkv.models.llamagen.layout import grid_in_name
from heatkv.models.llamagen.model import LlamaGenModel
from heatkv.models.llamagen.transformer import LlamaGenConfig, LlamaGenTransformer
from heatkv.models.llamagen.vq import Vq, VqConfig


def loaded(folder: Path) -> LlamaGenModel:
    model = load(folder, "cpu")
    assert isinstance(model, LlamaGenModel)
    return model


@pytest.mark.parametrize("layout", files.LLAMAGEN_LAYOUTS)
def test_every_layout_loads_to_the_same_weights(tmp_path: Path, layout: str) -> None:
    written = files.write_llamagen(tmp_path, layout)
    model = loaded(tmp_path)
    assert model.id == "tiny-llamagen"
    assert (model.sampling.guidance, model.sampling.top_k) == (2.5, 12)
    for name, tensor in written.state_dict().items():
        assert torch.equal(model.transformer.state_dict()[name], tensor), name
    assert torch.equal(model.transformer.rope_Nd2, written.rope_Nd2)


def test_of_the_tokenizer_the_averaged_weights_are_read(tmp_path: Path) -> None:
    files.write_llamagen(tmp_path)
    averaged = files.randomised(Vq(files.LLAMAGEN_IMAGE), 2).state_dict()
    assert torch.equal(loaded(tmp_path).autoencoder.quantize.embedding.weight, averaged["quantize.embedding.weight"])
    torch.save({"model": averaged}, tmp_path / "vq.pt")
    assert torch.equal(loaded(tmp_path).autoencoder.quantize.embedding.weight, averaged["quantize.embedding.weight"])


class Runs:
    """A pickle that creates a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_code_beside_the_weights_is_not_run(tmp_path: Path) -> None:
    model = files.write_llamagen(tmp_path)
    ran = tmp_path / "ran"
    torch.save({"model": model.state_dict(), "args": Runs(ran)}, tmp_path / "transformer.pt")
    with pytest.raises(CheckpointError, match=r"transformer\.pt holds pickled objects other than tensors"):
        load(tmp_path / "transformer.pt", "cpu")
    assert not ran.exists()


def test_loading_is_strict(tmp_path: Path) -> None:
    state = files.write_llamagen(tmp_path, config=files.LLAMAGEN_TEXT, t5=True).state_dict()
    torch.save({**state, "future.weight": torch.zeros(2)}, tmp_path / "transformer.pt")
    with pytest.raises(CheckpointError, match=r"no place for: future\.weight"):
        load(tmp_path, "cpu")
    del state["layers.1.feed_forward.w3.weight"]
    torch.save(state, tmp_path / "transformer.pt")
    with pytest.raises(CheckpointError, match=r"lacks layers\.1\.feed_forward\.w3\.weight"):
        load(tmp_path, "cpu")
    del state["cls_embedding.uncond_embedding"]
    torch.save(state, tmp_path / "transformer.pt")
    with pytest.raises(CheckpointError, match=r"holds no LlamaGen transformer.*uncond_embedding"):
        load(tmp_path, "cpu")


def test_a_tokenizer_given_as_transformer_is_told_apart(tmp_path: Path) -> None:
    files.write_llamagen(tmp_path)
    with pytest.raises(CheckpointError, match=r"vq\.pt is the autoencoder of a LlamaGen model: give the path of its"):
        load(tmp_path / "vq.pt", "cpu")


def test_a_grid_that_nothing_tells_is_asked_for(tmp_path: Path) -> None:
    files.write_llamagen(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"does not tell the size.*_256, _384 or _512.*\"grid\": 24"):
        load(tmp_path, "cpu")
    assert [grid_in_name(name) for name in ("c2i_B_384.pt", "t2i_XL_stage1_256.pt", "c2i_3B_384_fp16.pt")] == [
        24,
        16,
        None,
    ]


def test_classes_are_picked_by_number_and_refused_out_of_range(tmp_path: Path) -> None:
    files.write_llamagen(tmp_path)
    model = loaded(tmp_path)
    assert model.classes is not None and model.classes.count == 10
    assert model.check_prompt("7") is None
    with pytest.raises(PromptError, match="no class 10: classes are numbered 0 to 9"):
        model.check_prompt("10")


def test_captions_go_through_t5_to_the_left_padded_condition(tmp_path: Path) -> None:
    files.write_llamagen(tmp_path, config=files.LLAMAGEN_TEXT, t5=True)
    model = loaded(tmp_path)
    assert model.classes is None
    condition = model._condition(["a cat", "a red dog on a tree a tree"], guided=True)
    assert condition.tokens_BTC.shape == (4, 6, 32)
    assert condition.mask_BTT is not None
    assert condition.mask_BTT[:, -1].tolist() == [[False] * 3 + [True] * 3, [True] * 6] * 2  # with T5's end token
    assert not condition.tokens_BTC[0, :3].any()
    assert condition.tokens_BTC[2, :3].any()  # no caption is not empty, and hidden all the same
    assert "only the first 6" in str(model.check_prompt("a red dog on a tree a tree"))
    assert torch.equal(
        model._condition(["A  Cat http://a.b/c"], True).tokens_BTC, model._condition(["a cat"], True).tokens_BTC
    )


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("A Cat", "a cat"),
        ("see https://a.bc/d.png <b>now</b> @me", "see now"),
        ("it\u2019s \u201cred\u201d \u2014 \u732b photo.jpg", 'it\'s "red" -'),
        ("a &amp; b", "a & b"),
    ],
)
def test_captions_are_cleaned(said: str, read: str) -> None:
    assert clean_caption(said) == read == clean_caption(read)


def bundled(folder: Path) -> LlamaGenModel:
    config = LlamaGenConfig(
        2, 32, 2, grid=4, condition="caption", caption_width=16, condition_tokens=5, vocabulary=24, readable=True
    )
    torch.manual_seed(0)
    text = WordEncoder(Vocabulary(("red", "apple", "car")), 16, 5).eval()
    model = LlamaGenModel(
        "tiny-lines",
        text,
        LlamaGenTransformer(config).eval(),
        Vq(files.LLAMAGEN_IMAGE).eval(),
        Sampling(guidance=2.0, top_k=12),
    )
    save_folder(model, folder, "llamagen")
    return model


def test_a_model_folder_brings_back_the_model(tmp_path: Path) -> None:
    model = bundled(tmp_path)
    back = loaded(tmp_path)
    assert find_geometry(tmp_path) == model.geometry
    assert (back.id, back.sampling, back.geometry) == (model.id, model.sampling, model.geometry)
    assert not hasattr(back.autoencoder, "encoder")
    for part in ("transformer", "autoencoder"):
        for name, tensor in getattr(back, part).state_dict().items():
            assert torch.equal(tensor, getattr(model, part).state_dict()[name].half().float()), name
    with pytest.raises(PromptError, match="does not know"):
        back.check_prompt("submarine")
    condition = back._condition(["red apple", "car"], guided=True)
    assert condition.mask_BTT is None
    assert condition.tokens_BTC.shape == (4, 5, 32)


@pytest.mark.parametrize(("part", "key", "value"), [
    ("transformer", "depth", 3), ("transformer", "width", "wide"), ("autoencoder", "width_mult", 2),
    ("transformer", "colour", 1),
])  # fmt: skip
def test_a_model_folder_that_does_not_fit_is_one_clear_error(
    tmp_path: Path, part: str, key: str, value: object
) -> None:
    bundled(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config[part][key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"does not hold a complete model|config\.json: .*{key}"):
        load(tmp_path, "cpu")


def test_a_transformer_of_more_lines_than_are_stated_is_refused_before_it_is_laid_out(tmp_path: Path) -> None:
    bundled(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for grid in (131_072, config["transformer"]["grid"] - 1):
        config["transformer"]["grid"] = grid
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=r"config\.json: .*other lines than its scales state"):
            load(tmp_path, "cpu")


def test_broken_synonyms_are_named(tmp_path: Path) -> None:
    bundled(tmp_path)
    (tmp_path / "synonyms.json").write_text("{nope")
    with pytest.raises(ValueError, match=r"synonyms\.json.*not valid JSON"):
        load(tmp_path, "cpu")


def test_images_have_the_official_bytes(conformance: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    vectors = load_file(conformance / "llamagen_tiny.safetensors")
    model = bundled(tmp_path)
    model.autoencoder = Vq(VqConfig(base_width=32, width_mult=(1, 2), inner_width=16, vocabulary=97))
    model.autoencoder.load_state_dict({k[3:]: v.float() for k, v in vectors.items() if k.startswith("vq.")})
    pixels = model.decode(model.autoencoder.quantize.map(vectors["vq_decode.codes"], (6, 6)))
    assert (pixels.int() - vectors["vq_decode.image_u8"].int()).abs().max() <= 1


@pytest.mark.parametrize("config", [files.LLAMAGEN, files.LLAMAGEN_TEXT], ids=["class", "caption"])
def test_published_files_generate_calibrate_and_run_compressed(tmp_path: Path, config: LlamaGenConfig) -> None:
    files.write_llamagen(tmp_path, config=config, t5=True)
    model = loaded(tmp_path)
    prompts = ["3", "7"] if model.classes else ["a cat", "a red dog"]
    full = heatkv.generate(model, prompts[0], 1)
    assert full.pixels.shape == (8, 8, 3)
    assert [event.scale for event in full.scales] == [1, 2, 3, 4]
    scores = heatkv.calibrate(model, prompts)
    schedule = heatkv.plan(scores, 0.6)
    pruned = heatkv.generate(model, prompts[0], 1, schedule)
    assert pruned.kv_bytes_peak <= 0.6 * full.kv_bytes_peak
    assert np.array_equal(heatkv.generate(model, prompts[0], 1, heatkv.plan(scores, 1.0)).pixels, full.pixels)


def test_a_batch_with_captions_of_different_lengths_draws_what_each_draws_alone(tmp_path: Path) -> None:
    files.write_llamagen(tmp_path, config=files.LLAMAGEN_TEXT, t5=True)
    model = loaded(tmp_path)
    sampling = Sampling(guidance=2.5, top_k=12)
    both = list(model.run(["a", "a red dog"], seeded_noise([4, 5]), full_cache(model.geometry), sampling))
    alone = list(model.run(["a red dog"], seeded_noise([5]), full_cache(model.geometry), sampling))
    assert torch.equal(both[-1].latent[1:], alone[-1].latent)


def test_a_replay_gives_the_logits_that_tokens_were_drawn_from(tmp_path: Path) -> None:
    files.write_llamagen(tmp_path)
    model = loaded(tmp_path)
    sampling = Sampling(guidance=2.5)
    greedy = lambda line, shape: torch.zeros(1, *shape)  # noqa: E731
    lines = list(model.run(["3"], greedy, full_cache(model.geometry), sampling))
    tokens_BN = torch.cat([line.tokens for line in lines], 1)
    logits = list(model.replay(["3"], tokens_BN, full_cache(model.geometry), sampling))
    assert torch.equal(torch.stack(logits, 1).argmax(-1), tokens_BN)
    other = list(model.replay(["3"], torch.zeros_like(tokens_BN), full_cache(model.geometry), sampling))
    assert torch.equal(other[0], logits[0]) and not torch.allclose(other[5], logits[5])


def test_a_preview_is_white_where_nothing_is_drawn_yet(tmp_path: Path) -> None:
    model = bundled(tmp_path)
    events = list(generate_events(model, "red apple", 0, full_cache(model.geometry), previews=True))
    for event in events:
        assert event.pixels is not None
        assert (event.pixels[2 * event.scale :] == 255).all()
        assert not (event.pixels[: 2 * event.scale] == 255).all()
