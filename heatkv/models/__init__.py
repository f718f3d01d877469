"""Models by name: what ships with the repository and what lies in a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from heatkv.models.base import GenerativeModel, Sampling, seeded_noise
from heatkv.models.checkpoint import CheckpointError
from heatkv.models.infinity import model as infinity
from heatkv.models.presets import PRESETS, Preset
from heatkv.scales import Geometry
from heatkv.scores import HeadScores

ASSETS = Path(__file__).resolve().parents[2] / "assets"
BUNDLED = ASSETS / "models"

__all__ = ["CheckpointError", "GenerativeModel", "Preset", "Sampling", "find_geometry", "list_models", "load", "seeded_noise"]


@dataclass(frozen=True)
class Listing:
    """One line of ``python -m heatkv models``."""

    id: str
    family: str
    geometry: Geometry
    on_disk: bool
    summary: str


def bundled_folders() -> dict[str, Path]:
    return {path.parent.name: path.parent for path in sorted(BUNDLED.glob("*/config.json"))}


def list_models() -> list[Listing]:
    """The bundled models, then the presets whose weights are elsewhere."""
    listings = []
    for name, folder in bundled_folders().items():
        config = read_config(folder)
        listings.append(Listing(name, config["family"], config_geometry(config), True, config["facts"].get("summary", "")))
    for preset in PRESETS.values():
        listings.append(Listing(preset.id, preset.family, preset.geometry, False, preset.summary))
    return listings


def unknown_model(name: str) -> ValueError:
    known = [*bundled_folders(), *PRESETS]
    return ValueError(f"there is no model {name!r}; choose one of {', '.join(known)}, or give a model folder")


def find_folder(name_or_path: str | Path) -> Path:
    """The folder of a bundled model or of a path. Raises ``ValueError`` naming what there is."""
    folders = bundled_folders()
    if str(name_or_path) in folders:
        return folders[str(name_or_path)]
    if str(name_or_path) in PRESETS:
        raise ValueError(
            f"the weights of {name_or_path} are not on this machine: its geometry can be planned for "
            f"(`plan --orders FILE --model {name_or_path}`), generating needs the weights in a model folder"
        )
    path = Path(name_or_path)
    if (path / "config.json").is_file():
        return path
    raise unknown_model(str(name_or_path))


def read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} can not be read ({error})") from error
    if not isinstance(config, dict) or config.get("format") != infinity.FORMAT:
        raise CheckpointError(f"{folder / 'config.json'} does not describe a {infinity.FORMAT}")
    if config.get("version") != infinity.VERSION or config.get("family") != "infinity":
        raise CheckpointError(
            f"{folder} is a model of family {config.get('family')!r}, version {config.get('version')!r}; "
            f"this program reads family 'infinity', version {infinity.VERSION}"
        )
    return config


def config_geometry(config: dict[str, Any]) -> Geometry:
    from heatkv.scales import ScaleSchedule

    transformer = config["transformer"]
    scales = ScaleSchedule(tuple((int(h), int(w)) for h, w in config["scales"]))
    return Geometry(transformer["depth"], transformer["heads"], transformer["width"] // transformer["heads"], scales)


def find_geometry(name_or_path: str | Path) -> Geometry:
    """Geometry of a model by name, without loading (or having) its weights."""
    if str(name_or_path) in PRESETS:
        return PRESETS[str(name_or_path)].geometry
    return config_geometry(read_config(find_folder(name_or_path)))


def default_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def load(
    name_or_path: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> GenerativeModel:
    """Load a model by registry name or from a folder, ready to run.

    ``device`` defaults to CUDA, MPS or CPU, whichever is there first; ``dtype`` to bfloat16 on CUDA
    and float32 elsewhere. Raises ``ValueError`` for unknown names, ``CheckpointError`` for bad files.
    """
    folder = find_folder(name_or_path)
    config = read_config(folder)
    device = torch.device(device) if device else default_device()
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        return infinity.load_folder(folder, config, device, dtype)
    except (KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        raise CheckpointError(f"{folder} does not hold a complete model: {error}") from error


def bundled_scores(name_or_path: str | Path) -> HeadScores:
    """The calibration that ships in a model's folder."""
    path = find_folder(name_or_path) / "scores.safetensors"
    if not path.is_file():
        raise ValueError(f"no calibration in {path.parent}; run `python -m heatkv calibrate --model {name_or_path}` first")
    return HeadScores.load(path)
