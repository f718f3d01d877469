"""Models by name: what ships with the repository, what is published elsewhere, and what lies in a folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from heatkv.cache.attention import has_tensor_cores
from heatkv.files import one_line, program_root, read_json, shown
from heatkv.models import bundled, hub
from heatkv.models.base import GenerativeModel, Sampling, seeded_noise
from heatkv.models.checkpoint import MAX_CONFIG_BYTES, CheckpointError
from heatkv.models.families import FAMILIES, Model
from heatkv.models.folder import identify
from heatkv.models.hub import Files
from heatkv.models.infinity.scales import SIZES
from heatkv.models.memory import Estimate, NotEnoughMemory, choose_offload, estimate
from heatkv.models.presets import PRESETS, Preset, find_preset
from heatkv.scales import Geometry
from heatkv.scores import HeadScores

BUNDLED = program_root() / "assets" / "models"

__all__ = [
    "CheckpointError", "GenerativeModel", "NotEnoughMemory", "Preset", "Sampling", "bundled_scores", "download",
    "find_folder", "find_geometry", "is_bundled", "list_models", "load", "random_init", "seeded_noise",
]  # fmt: skip


@dataclass(frozen=True)
class Listing:
    """One line of ``python -m heatkv models``.

    ``where`` is the folder or file of the transformer, if all parts are on this machine; ``missing`` names
    what is not, ``download_bytes`` is how much that is (``download_estimated``: in part computed, not
    read off the hub) and ``licence`` under which terms it is published. ``sizes`` are the choices after a colon, as in
    ``infinity-2b:0.25M``; ``sampling_source`` says whose setting ``sampling`` is.
    """

    id: str
    family: str
    geometry: Geometry
    on_disk: bool
    summary: str
    where: Path | None = None
    missing: tuple[str, ...] = ()
    download_bytes: int = 0
    download_estimated: bool = False
    licence: str = ""
    sizes: tuple[str, ...] = ()
    sampling: Sampling | None = None
    sampling_source: str = ""

    @property
    def memory(self) -> Estimate | None:
        """What one guided image takes in bfloat16 on a GPU; None for the bundled models, which fit everywhere."""
        preset = PRESETS.get(self.id)
        return estimate(preset, torch.device("cuda"), torch.bfloat16) if preset else None

    @property
    def cache_bytes(self) -> int:
        """What the full cache of one image takes at its peak in 16 bits; with guidance it is of two rows."""
        rows = self.sampling.rows if self.sampling else 2
        return self.geometry.kv_bytes(self.geometry.full_peak_tokens, batch=rows, key_bytes=2, value_bytes=2)


def bundled_folders() -> dict[str, Path]:
    return {path.parent.name: path.parent for path in sorted(BUNDLED.glob("*/config.json"))}


def list_models() -> list[Listing]:
    """The bundled models, then the published ones; says of each what is on this machine."""
    listings = []
    for name, folder in bundled_folders().items():
        config = read_config(folder)
        summary = str(config.facts.get("summary", ""))
        listings.append(Listing(name, config.family, config.geometry, True, summary, folder, sampling=config.sampling))
    return listings + [listing_of(preset) for preset in PRESETS.values()]


def listing_of(preset: Preset) -> Listing:
    files = hub.find_files(preset)
    missing = hub.missing_parts(preset, files)
    return Listing(
        id=preset.id,
        family=preset.family,
        geometry=preset.geometry,
        on_disk=not missing,
        summary=preset.summary,
        where=None if missing else files.transformer,
        missing=tuple(f"{w.local_name} ({w.repo or 'not published'})" for w in missing.values()),
        download_bytes=sum(weights.size for weights in missing.values()),
        download_estimated=any(weights.estimated for weights in missing.values()),
        licence=preset.licence,
        sizes=tuple(SIZES) if preset.size else (),
        sampling=preset.sampling,
        sampling_source=preset.sampling_source,
    )


def unknown_model(name: str) -> ValueError:
    known = [*bundled_folders(), *PRESETS]
    return ValueError(f"there is no model {shown(name)}; choose one of {', '.join(known)}, or give a model folder")


def exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long for a file, or with a null byte
        return False


def bundled_folder(name_or_path: str | Path) -> Path | None:
    """The folder in this program's own format that a name or path stands for, if any.

    Raises ``CheckpointError`` for a folder whose ``config.json`` can not be read.
    """
    folders = bundled_folders()
    if str(name_or_path) in folders:
        return folders[str(name_or_path)]
    path = Path(name_or_path)
    if not exists(path / "config.json"):
        return None
    config = read_json(path / "config.json", limit=MAX_CONFIG_BYTES, error=CheckpointError)
    return path if isinstance(config, dict) and config.get("format") == bundled.FORMAT else None


def find_official(name_or_path: str | Path) -> tuple[Preset, Files]:
    """A published model by name, or official files by path, and where its parts are (some may be missing).

    Both may end in a size and a ratio: ``infinity-2b:0.25M``, ``/weights:1M:1.5``. Raises ``ValueError``.
    """
    if preset := find_preset(str(name_or_path)):
        return preset, hub.find_files(preset)
    if not str(name_or_path).strip():
        raise unknown_model(str(name_or_path))
    path, size, ratio = Path(name_or_path), "", "1.0"
    sizes = "|".join(map(re.escape, SIZES))
    if not exists(path) and (match := re.fullmatch(rf"(.+?):({sizes})(?::([\d.:]+))?", str(name_or_path))):
        path, size, ratio = Path(match[1]), match[2], match[3] or "1.0"
    if not exists(path):
        raise unknown_model(str(name_or_path))
    if path.is_dir() and not any(path.iterdir()):
        raise CheckpointError(f"the folder {path} is empty: put a model's files into it")
    return identify(path, size, ratio)


def find_folder(name_or_path: str | Path) -> Path:
    """The folder in which a model's weights lie. Raises ``ValueError`` that says what is missing."""
    if folder := bundled_folder(name_or_path):
        return folder
    preset, files = find_official(name_or_path)
    return available_files(preset, files).parent


def weight_files(name_or_path: str | Path) -> list[Path]:
    """All files that decide what a model draws: weights, configuration, what words stand for. Raises ``ValueError``."""
    if folder := bundled_folder(name_or_path):
        named = [path for path in (folder / "config.json", folder / bundled.SYNONYMS) if path.exists()]
        return sorted({*named, *folder.glob("model*.safetensors*")})
    preset, files = find_official(name_or_path)
    available_files(preset, files)
    parts = [part for part in (files.transformer, files.autoencoder, files.text) if part is not None]
    return [path for part in parts for path in (sorted(part.rglob("*")) if part.is_dir() else [part]) if path.is_file()]


def available_files(preset: Preset, files: Files) -> Path:
    """The transformer's path, if all parts are there."""
    missing = hub.missing_parts(preset, files)
    if missing or files.transformer is None:
        raise ValueError(
            f"{hub.how_to_get(preset, missing)}. Without weights its budgets can be planned: "
            f"`plan --orders FILE --model {preset.id}`"
        )
    return files.transformer


def is_bundled(name_or_path: str | Path) -> bool:
    """Whether a name or path stands for a model in this program's own format, not for a published one."""
    return bundled_folder(name_or_path) is not None


def read_config(folder: Path) -> bundled.FolderConfig:
    """What the folder's ``config.json`` states. Raises ``CheckpointError``."""
    return bundled.read_config(folder, {name: family.configs for name, family in FAMILIES.items() if family.configs})


def find_geometry(name_or_path: str | Path) -> Geometry:
    """Geometry of a model by name, without loading (or having) its weights."""
    return _described(name_or_path).geometry


def find_id(name_or_path: str | Path) -> str:
    """What a model by name or folder calls itself, which its scores and schedules bear; no weights are needed."""
    return _described(name_or_path).id


def _described(name_or_path: str | Path) -> Preset | bundled.FolderConfig:
    if preset := find_preset(str(name_or_path)):
        return preset
    if folder := bundled_folder(name_or_path):
        return read_config(folder)
    return find_official(name_or_path)[0]


DEVICES = ("cpu", "cuda", "mps")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def chosen_device(device: str | torch.device | None) -> torch.device:
    """A device that can be used; by default CUDA, MPS or the CPU, whichever is there first. Else ``ValueError``."""
    if device is None:
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        if (kind := torch.device(device).type) not in DEVICES:
            raise ValueError(f"device {shown(kind)} is not one of {', '.join(DEVICES)}")
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device {shown(device)} can not be used here: {one_line(error, 200)}") from error


def chosen_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """A dtype by itself or by name.

    By default bfloat16 on CUDA devices that compute in it, and elsewhere float32, in which a seed draws nearly the same
    picture on all machines.
    """
    if dtype is None:
        return torch.bfloat16 if has_tensor_cores(device) else torch.float32
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype {shown(dtype)} is not one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def load(
    name_or_path: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    offload: bool | None = None,
) -> GenerativeModel:
    """Load a model by registry name or from a folder, ready to run.

    Nothing is downloaded (``download`` does that).

    Parameters
    ----------
    name_or_path
        ``pocket``, ``var-d16``, ``infinity-2b``, ``infinity-2b:0.25M:1.5`` (size and height / width), a model
        folder, a folder with official files, or the official transformer's file.
    device
        Default: CUDA, MPS or CPU, whichever is there first.
    dtype
        Of the blocks, the cache and the decoder, also by name. Default: bfloat16 on CUDA (from compute capability 8.0
        on), float32 elsewhere.
    offload
        Whether text encoder, transformer and decoder take turns on the device. Default: only if they do
        not fit together.

    Raises
    ------
    ValueError
        Unknown names and missing weights; the message says what to download and where to put it.
    CheckpointError
        Bad files, or files that do not belong together.
    NotEnoughMemory
        The model does not fit on the device.
    """
    device = chosen_device(device)
    dtype = chosen_dtype(dtype, device)
    folder = bundled_folder(name_or_path)
    if folder is None:
        preset, files = find_official(name_or_path)
        available_files(preset, files)
        offload = choose_offload(preset, device, dtype, offload)
        return with_fast_decoder(FAMILIES[preset.family].build(preset, files, device, dtype, offload), preset.family)
    config = read_config(folder)
    load_folder = FAMILIES[config.family].load_folder
    assert load_folder is not None  # as read_config has made sure
    return with_fast_decoder(load_folder(folder, config, device, dtype), config.family)


def random_init(
    preset: str | Preset,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    seed: int = 0,
) -> GenerativeModel:
    """A published model's shape with random weights, made on the device itself, for measurements without a download.

    The same seed gives the same weights on one device. ``device`` and ``dtype`` default as in ``load``; prompts are
    read without a text encoder. Its id ends in ``-random``. Raises ``ValueError`` for names that are not published,
    ``NotEnoughMemory`` where it does not fit.
    """
    found = find_preset(preset) if isinstance(preset, str) else preset
    if found is None:
        raise ValueError(f"{shown(preset)} is not a published model; choose one of {', '.join(PRESETS)}")
    device = torch.device("meta") if str(device) == "meta" else chosen_device(device)  # meta: shapes, no memory
    dtype = chosen_dtype(dtype, device)
    choose_offload(replace(found, text_parameters=0), device, dtype, offload=False)
    devices = [device] if device.type == "cuda" else []
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices, device_type="cuda"):
        torch.manual_seed(seed)
        model = FAMILIES[found.family].random_init(found, device, dtype)
    return with_fast_decoder(model, found.family)


def with_fast_decoder(model: Model, family: str) -> GenerativeModel:
    """The same model, its decoder in its family's dtype and with channels last, which convolutions are fastest in."""
    dtype = FAMILIES[family].decoder_dtype or model.dtype
    model.autoencoder.decoder.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def download(name: str, report: Callable[[str], object] = print) -> Listing:
    """Fetch what is missing of a published model into the hub's cache (see ``hub.download``)."""
    preset = find_preset(name)
    if preset is None:
        raise unknown_model(name)
    hub.download(preset, report)
    return listing_of(PRESETS[preset.id.partition(":")[0]])


def bundled_scores(name_or_path: str | Path) -> HeadScores:
    """The calibration that ships in a model's folder."""
    folder = bundled_folder(name_or_path) or find_folder(name_or_path)
    path = folder / "scores.safetensors"
    if not path.is_file():
        raise ValueError(
            f"no calibration in {path.parent}; run `python -m heatkv calibrate --model {name_or_path} --out {path}` "
            "first, or name one with --scores"
        )
    return HeadScores.load(path)
