"""Files that are broken, unsafe or something else are refused with one clear line; nothing in them is run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import official_files as files
import pytest
import torch

from heatkv import load
from heatkv.models.checkpoint import CheckpointError, load_file, load_state


class Harmful:
    """Unpickling this creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("zipped", [True, False, None], ids=["torch", "old torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_executed(tmp_path: Path, zipped: bool | None) -> None:
    trace, path = tmp_path / "trace", tmp_path / "model.pth"
    content = {"class_emb.weight": torch.zeros(2), "extra": Harmful(trace)}
    if zipped is None:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for read in (load_file, load_state, lambda p: load(p, "cpu"), lambda p: load(p.parent, "cpu")):
        with pytest.raises(CheckpointError, match=r"could run code|not a readable PyTorch file"):
            read(path)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["a.pth", "a.bin", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04broken", b"<html>not found</html>"])
def test_broken_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load_file(path)


def test_a_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_file(tmp_path / "a.pth")
    torch.save(torch.zeros(3), tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_file(tmp_path / "b.pth")


@pytest.mark.parametrize(
    "index", ["[]", "{}", "not json", '{"weight_map": {"a": "../../secret.bin"}}', '{"weight_map": {"a": "gone.bin"}}']
)
def test_bad_indices_are_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / "pytorch_model.bin.index.json").write_text(index)
    with pytest.raises(CheckpointError):
        load_state(tmp_path)


def test_an_index_that_promises_more_than_its_shards_hold_is_refused(tmp_path: Path) -> None:
    files.shard({"a": torch.zeros(2), "b": torch.zeros(2), "c": torch.zeros(2)}, tmp_path / "w", "bin")
    path = tmp_path / "w" / "pytorch_model.bin.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["d"] = index["weight_map"]["a"]
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors.*first d"):
        load_state(tmp_path / "w")


@pytest.mark.parametrize("content", [None, "x", "autoencoder"])
def test_a_folder_without_a_model_says_what_it_lacks(tmp_path: Path, content: str | None) -> None:
    if content == "x":
        (tmp_path / "readme.txt").write_text("nothing here")
    if content == "autoencoder":
        files.write_var(tmp_path)
        (tmp_path / "transformer.pth").unlink()
    with pytest.raises(CheckpointError, match=r"is empty|no transformer"):
        load(tmp_path, "cpu")
