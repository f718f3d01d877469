"""Files that do not belong together: found before anything runs, and told apart by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from heatkv.files import one_line
from heatkv.models.checkpoint import CheckpointError
from heatkv.models.presets import PRESETS, Preset, Weights

T = TypeVar("T")

# What a file does not tell, or what may differ.
NOT_COMPARED = {
    "rope_grid",
    "text_maxlen",
    "max_scales",
    "places",
    "steps",
    "normalize",
    "norm_groups",
    "patchify",
    "patch",
    "readable",
}


def read_shape(read: Callable[[dict[str, Tensor]], T], state: dict[str, Tensor], path: Path, what: str) -> T:
    """What ``read`` tells of a state dict, or ``CheckpointError`` where it is of something else than ``what``."""
    try:
        return read(state)
    except KeyError as error:
        held = one_line(", ".join(list(state)[:2]), 150)
        raise CheckpointError(f"{path} holds no {what}: {error} is not among its tensors ({held}, ...)") from error
    except (IndexError, ValueError, TypeError, ZeroDivisionError, RuntimeError) as error:
        raise CheckpointError(f"{path} holds no {what}: its tensors have other shapes ({one_line(error)})") from error


def differences(found: Any, wanted: Any) -> list[str]:
    """Names of the compared fields in which two configurations differ."""
    names = (field.name for field in fields(wanted) if field.name not in NOT_COMPARED)
    return [name for name in names if getattr(found, name) != getattr(wanted, name)]


def owner_of(found: Any, part: str) -> str | None:
    """The preset that a transformer or autoencoder of this shape belongs to."""
    for preset in PRESETS.values():
        wanted = getattr(preset, f"{part}_config")
        if type(found) is type(wanted) and not differences(found, wanted):
            return preset.id
    return None


def check_part(preset: Preset, part: str, path: Path, found: Any) -> None:
    """Raise ``CheckpointError``, naming the right file, unless a part's file has the shape that ``preset`` needs."""
    wanted = getattr(preset, f"{part}_config")
    wrong = differences(found, wanted)
    if not wrong:
        return
    has = ", ".join(f"{name.replace('_', ' ')} {getattr(found, name)}" for name in wrong)
    needs = ", ".join(f"{name.replace('_', ' ')} {getattr(wanted, name)}" for name in wrong)
    owner = owner_of(found, part)
    whose = f", it is the {part} of {owner}" if owner else ""
    raise CheckpointError(
        f"{path} is a {part} of {has}{whose}; {preset.id} needs {needs}: use {right_name(getattr(preset, part))}"
    )


def right_name(weights: Weights) -> str:
    return f"{weights.local_name} of {weights.repo}" if weights.repo else weights.local_name


def check_pair(preset: Preset, transformer_path: Path, predicts: str, autoencoder_path: Path, codes: str) -> None:
    """Raise ``CheckpointError`` unless the autoencoder codes what the transformer predicts."""
    if predicts != codes:
        raise CheckpointError(
            f"{transformer_path} predicts {predicts}, but {autoencoder_path} codes {codes}: {preset.id} goes with "
            f"{right_name(preset.autoencoder)}"
        )
