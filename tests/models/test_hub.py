"""Downloads happen only when asked for, go on where they stopped, and say what to do where there is no network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from heatkv.models import CheckpointError, download, hub, load
from heatkv.models.hub import FOLDER_VARIABLE
from heatkv.models.presets import PRESETS, T5_XL, Weights

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A hub whose cache is ``tmp_path``; returns the log of downloads."""
    log: list[str] = []

    def path_of(repo: str, name: str) -> Path:
        return tmp_path / repo.replace("/", "--") / name

    def hf_hub_download(repo: str, name: str) -> str:
        log.append(f"{repo}/{name}")
        path_of(repo, name).parent.mkdir(parents=True, exist_ok=True)
        path_of(repo, name).write_bytes(b"weights")
        return str(path_of(repo, name))

    def snapshot_download(repo: str, *, allow_patterns: list[str] | None = None, local_files_only: bool = False) -> str:
        if local_files_only:
            if not path_of(repo, "").is_dir():
                from huggingface_hub.errors import LocalEntryNotFoundError

                raise LocalEntryNotFoundError("not here")
            return str(path_of(repo, ""))
        assert allow_patterns
        log.append(f"{repo} {' '.join(allow_patterns)}")
        folder = path_of(repo, allow_patterns[0].rpartition("/")[0])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
        (folder / "model-1.safetensors").write_bytes(b"weights")
        return str(path_of(repo, ""))

    def try_to_load_from_cache(repo: str, name: str) -> str | None:
        return str(path_of(repo, name)) if path_of(repo, name).is_file() else None

    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    for function in (hf_hub_download, snapshot_download, try_to_load_from_cache):
        monkeypatch.setattr(huggingface_hub, function.__name__, function)
    return log


def test_loading_never_downloads(fake_hub: list[str]) -> None:
    with pytest.raises(ValueError, match="--download infinity-2b"):
        load("infinity-2b", "cpu")
    assert fake_hub == []


def test_a_download_fetches_what_is_missing_and_only_that(fake_hub: list[str]) -> None:
    told: list[str] = []
    listing = download("infinity-8b", told.append)
    assert fake_hub[0].startswith("FoundationVision/Infinity infinity_8b_weights/*.safetensors")
    assert fake_hub[1] == "FoundationVision/Infinity/infinity_vae_d56_f8_14_patchify.pth"
    assert fake_hub[2].startswith("google/flan-t5-xl config.json")
    assert len(told) == 3
    assert "(33.5 GB)" in told[0]
    assert "about 0.4 GB (unverified)" in told[1]
    assert listing.on_disk
    assert listing.where is not None
    assert listing.where.name == "infinity_8b_weights"
    download("infinity-8b", told.append)
    assert len(fake_hub) == 3


def test_an_interrupted_folder_counts_as_missing(fake_hub: list[str], tmp_path: Path) -> None:
    download("infinity-8b-512", lambda line: None)
    folder = tmp_path / "FoundationVision--Infinity" / "infinity_8b_512x512_weights"
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    missing = hub.missing_parts(PRESETS["infinity-8b-512"], hub.find_files(PRESETS["infinity-8b-512"]))
    assert list(missing) == ["transformer"]


def test_without_network_the_message_says_what_goes_where(fake_hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(repo: str, name: str) -> str:
        raise ConnectionError("name resolution failed\nlong trace")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(CheckpointError) as caught:
        download("var-d16", lambda line: None)
    message = str(caught.value)
    assert "\n" not in message
    files = ("var_d16.pth", "vae_ch160v4096z32.pth")
    for part in ("name resolution failed", *files, "FoundationVision/var", FOLDER_VARIABLE):
        assert part in message


def test_what_is_not_published_can_not_be_downloaded(fake_hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    own = replace(PRESETS["infinity-125m"], id="own", transformer=Weights("", "own.pth", 1))
    monkeypatch.setitem(PRESETS, "own", own)
    with pytest.raises(CheckpointError, match=r"own\.pth \(not published"):
        download("own", lambda line: None)
    with pytest.raises(ValueError, match="there is no model"):
        download("pocket-9000", lambda line: None)
    assert fake_hub == []


def test_a_folder_of_ones_own_comes_before_the_cache(
    fake_hub: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    (own / "flan-t5-xl").mkdir(parents=True)
    monkeypatch.setenv(FOLDER_VARIABLE, str(own))
    assert hub.find_weights(T5_XL) == own / "flan-t5-xl"
    assert hub.find_weights(Weights("", "mine.pth", 0)) is None
