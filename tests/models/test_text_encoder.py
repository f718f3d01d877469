"""The T5 text encoder: only real tokens come out, whatever the batch, and staged offload takes turns."""

from __future__ import annotations

from pathlib import Path

import official_files as files
import pytest
import torch
from torch import nn

from heatkv import generate, load
from heatkv.models.checkpoint import CheckpointError
from heatkv.models.infinity.model import InfinityModel
from heatkv.models.infinity.t5 import T5Encoder, text_width
from heatkv.models.offload import Stages
from heatkv.models.prompts import PromptError

pytest.importorskip("transformers")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random T5, encoder and decoder, as a hub snapshot holds it."""
    path = tmp_path_factory.mktemp("text") / "flan-t5-tiny"
    files.write_t5(path)
    return path


def test_features_are_those_of_the_padded_batch_without_its_padding(folder: Path) -> None:
    encoder = T5Encoder(folder, CPU, torch.float32)
    prompts = ["a red cat", "dog", "a cat on a red tree"]
    features = encoder.encode(prompts)
    assert features.mask_BN.sum(1).tolist() == [4, 2, 7]  # the end of the text is a token
    padded = encoder.tokenizer(prompts, padding="max_length", max_length=32, truncation=True, return_tensors="pt")
    expected = encoder.model(**{k: padded[k] for k in ("input_ids", "attention_mask")}).last_hidden_state
    for row, n in enumerate((4, 2, 7)):
        torch.testing.assert_close(features.features_BNC[row, :n], expected[row, :n], atol=1e-5, rtol=1e-5)
        assert not features.features_BNC[row, n:].any()


def test_long_prompts_are_cut_with_a_note_and_empty_ones_refused(folder: Path) -> None:
    encoder = T5Encoder(folder, CPU, torch.float32)
    long = "a " * 490
    assert encoder.check(long) is None
    assert encoder.encode([long]).mask_BN.shape == (1, 491)
    with pytest.raises(PromptError, match="empty"):
        encoder.check(" ")


def test_only_the_encoder_half_is_loaded(folder: Path) -> None:
    encoder = T5Encoder(folder, CPU, torch.float32)
    assert not any("decoder" in name for name, _ in encoder.named_parameters())
    assert encoder.about()["text_encoder"] == "flan-t5-tiny"
    assert text_width(folder) == encoder.width == 128


def test_a_folder_without_a_text_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no T5 text encoder"):
        text_width(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "d_model": 8}')
    with pytest.raises(CheckpointError, match="holds a bert model"):
        text_width(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5", "d_model": 8}')
    with pytest.raises(CheckpointError, match="can not be loaded"):
        T5Encoder(tmp_path, CPU, torch.float32)


def test_a_model_with_its_real_text_encoder_generates(folder: Path, tmp_path: Path) -> None:
    written = files.write_infinity(tmp_path)
    (tmp_path / "flan-t5-tiny" / "config.json").unlink()
    (tmp_path / "flan-t5-tiny").rmdir()
    (tmp_path / "flan-t5-tiny").symlink_to(folder)
    model = load(tmp_path, "cpu")
    assert model.geometry == written.geometry
    images = [generate(model, prompt, seed=1).pixels for prompt in ("a red cat", "dog on tree", "a red cat")]
    assert (images[0] == images[2]).all()
    assert (images[0] != images[1]).any()


def test_staged_offload_takes_turns_and_changes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from heatkv.cache.seam import full_cache
    from heatkv.generate import generate_events
    from heatkv.models import memory

    files.write_infinity(tmp_path)
    (tmp_path / "flan-t5-tiny" / "config.json").unlink()
    (tmp_path / "flan-t5-tiny").rmdir()
    (tmp_path / "flan-t5-tiny").symlink_to(folder)
    whole = generate(load(tmp_path, "cpu"), "a red cat", seed=1).pixels
    monkeypatch.setattr("heatkv.models.choose_offload", lambda *arguments: True)
    model = load(tmp_path, "cpu")
    assert isinstance(model, InfinityModel)
    assert model.stages is not None
    turns: list[str] = []
    use = model.stages.use
    monkeypatch.setattr(model.stages, "use", lambda name: (turns.append(name), use(name)))
    model.text.before_use = lambda: model.stages.use("text")  # type: ignore[union-attr,attr-defined]
    events = list(generate_events(model, "a red cat", 1, full_cache(model.geometry), previews=True))
    assert (events[-1].pixels == whole).all()
    assert turns[:4] == ["text", "transformer", "decoder", "transformer"]
    assert turns[-1] == "decoder"
    assert memory.available(CPU) != 0


def test_a_part_makes_room_before_the_next_one_comes() -> None:
    log: list[str] = []

    class PartialAttention(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def to(self, device: object) -> PartialAttention:  # type: ignore[override]
            log.append(f"{self.name} to {device}")
            return self

    stages = Stages({"a": PartialAttention("a"), "b": PartialAttention("b")}, torch.device("meta"))
    for name in ("a", "a", "b"):
        stages.use(name)
    assert log == ["a to meta", "a to cpu", "b to meta"]
