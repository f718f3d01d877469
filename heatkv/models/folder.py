"""Official files in a folder: which model they are, by their names or, failing that, by their contents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from heatkv.files import MAX_HEADS, MAX_SIDE, Fields, read_json, shown
from heatkv.models import hub
from heatkv.models.base import Sampling
from heatkv.models.checkpoint import MAX_CONFIG_BYTES, WEIGHT_SUFFIXES, CheckpointError, find_index, load_state
from heatkv.models.families import FAMILIES
from heatkv.models.hub import Files
from heatkv.models.infinity.t5 import is_text_encoder
from heatkv.models.presets import PRESETS, Preset, Weights

FORMAT, VERSION = "heatkv-official", 1
MAX_EXAMPLES = 1_000
STATED_OF_PUBLISHED = {"id", "sampling", "examples"}  # by a config.json next to files of published names


def identify(path: Path, size: str = "", ratio: str = "1.0") -> tuple[Preset, Files]:
    """The model that lies in a folder, or whose transformer is the given file or folder of shards.

    Published file names settle it. Other files are told apart by their tensors, and their shapes make
    up the configuration; a ``config.json`` next to them (format ``heatkv-official``) may state ``id``,
    ``scales``, ``rope_grid``, ``sampling`` and ``examples``. ``size`` and ``ratio`` choose published
    scales (Infinity). Raises ``CheckpointError``; the message says what is missing.
    """
    single = path if path.is_file() or (path.is_dir() and find_index(path)) else None
    if path.is_dir():
        read_config(path)  # a folder that says of itself what nobody can read is refused before others are looked at
    folder = path.parent if single else path
    named = [p for p in PRESETS.values() if is_here(p.transformer, folder, single)]
    if len(named) > 1:
        paths = ", ".join(str(folder / p.transformer.local_name) for p in named)
        raise CheckpointError(f"{folder} holds several models; give the path of one: {paths}")
    if named:
        preset, files = named[0], hub.find_files(named[0], folder)
        if missing := hub.missing_parts(preset, files):
            raise CheckpointError(f"{hub.how_to_get(preset, missing)}{strangers(preset, folder)}")
        settings = read_settings(folder)
        if clash := sorted(set(settings) - STATED_OF_PUBLISHED):
            raise CheckpointError(
                f"{folder / 'config.json'} states {clash[0]}, which the published name of {files.transformer} settles: "
                "leave it out, or rename the file"
            )
        preset = replace(preset, **settings)
    else:
        preset, files = by_contents(folder, single, size)
        settings = read_settings(folder)
        known = {field.name for field in fields(preset)}
        preset = replace(preset, **{name: value for name, value in settings.items() if name in known})
        if "scales" in settings and preset.family == "infinity":
            size = ""
    return (preset.at(size, ratio) if size else preset), files


def is_here(weights: Weights, folder: Path, single: Path | None) -> bool:
    if single is not None:
        return single.name == weights.local_name
    return (folder / weights.local_name).exists()


def strangers(preset: Preset, folder: Path) -> str:
    """A remark on files of other models that lie where one of ``preset`` is missing."""
    known = {p.autoencoder.local_name for p in PRESETS.values()} - {preset.autoencoder.local_name}
    here = sorted(entry.name for entry in folder.iterdir() if entry.name in known or "vae" in entry.name)
    here = [name for name in here if name != preset.autoencoder.local_name]
    return f" ({', '.join(here)} in {folder} does not go with {preset.id})" if here else ""


def by_contents(folder: Path, single: Path | None, size: str) -> tuple[Preset, Files]:
    """A model put together from the shapes of what lies in ``folder``; ``size`` as it was asked for, if it was."""
    if single is not None and single.is_dir() and kind_of(load_state(single)) is None:
        raise CheckpointError(f"{single} {no_transformer({}, single, several=False)}")
    found: dict[tuple[str, str], list[Path]] = {}
    problems: list[CheckpointError] = []
    for entry in sorted(folder.iterdir()):
        shards = entry.is_dir() and find_index(entry) is not None and not is_text_encoder(entry)
        if entry.suffix in WEIGHT_SUFFIXES or shards:
            try:
                kind = kind_of(load_state(entry))
            except CheckpointError as problem:
                problems.append(problem)
                if entry == single:
                    raise
                continue
            if kind:
                found.setdefault(kind, []).append(entry)
    if single is not None:
        found = {
            kind: [single] if single in paths else paths
            for kind, paths in found.items() if kind[1] != "transformer" or single in paths
        }  # fmt: skip
    families = [family for family in FAMILIES if (family, "transformer") in found]
    if not families and problems:
        raise problems[0]
    if len(families) != 1 or len(found[families[0], "transformer"]) != 1:
        raise CheckpointError(f"{single or folder} {no_transformer(found, single, several=bool(families))}")
    family = families[0]
    autoencoders = found.get((family, "autoencoder"), [])
    if not autoencoders and problems:
        raise problems[0]
    if len(autoencoders) != 1:
        other = [p.name for k, paths in found.items() if k[1] == "autoencoder" for p in paths]
        raise CheckpointError(
            f"{folder} needs one file with the autoencoder of its {family} transformer; "
            f"it holds {', '.join(other) or 'none'}"
        )
    transformer, autoencoder = found[family, "transformer"][0], autoencoders[0]
    return FAMILIES[family].found_in(folder, {**read_settings(folder), "asked_size": size}, transformer, autoencoder)


def no_transformer(found: dict[tuple[str, str], list[Path]], single: Path | None, several: bool) -> str:
    """What is wrong where there is not exactly one transformer."""
    known = " or ".join(sorted(family.title for family in FAMILIES.values()))
    if several:
        return f"holds several transformers; give the path of one of a known family ({known})"
    for family, part in found:
        if single is not None and single in found[family, part]:
            return f"is the {part} of a {FAMILIES[family].title} model: give the path of its transformer instead"
    return f"holds no transformer of a known family ({known})"


def kind_of(state: dict[str, Tensor]) -> tuple[str, str] | None:
    """Family and part that a state dict is of."""
    kinds = ((mark, (name, part)) for name, family in FAMILIES.items() for mark, part in family.marks.items())
    return next((kind for mark, kind in kinds if mark in state), None)


def read_settings(folder: Path) -> dict[str, Any]:
    """What ``config.json`` states of a model, as fields of ``Preset``; nothing without that file."""
    config = read_config(folder)
    stated = Fields(config, error=CheckpointError)
    readers: dict[str, Callable[[], Any]] = {
        "id": lambda: stated.name("id"),
        "scales": stated.scales,
        "rope_grid": lambda: stated.size("rope_grid"),
        "grid": lambda: stated.integer("grid", 1, MAX_SIDE),
        "heads": lambda: stated.integer("heads", 1, MAX_HEADS),
        "sampling": lambda: Sampling.of(stated.mapping("sampling")),
        "examples": lambda: stated.texts("examples", MAX_EXAMPLES),
    }
    try:
        result: dict[str, Any] = {key: read() for key, read in readers.items() if key in config}
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    return result


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        return {}
    config = read_json(path, limit=MAX_CONFIG_BYTES, error=CheckpointError)
    found = config.get("format") if isinstance(config, dict) else None
    if not str(found).startswith("heatkv"):
        return {}
    if (found, config.get("version")) != (FORMAT, VERSION):
        stated = f"{shown(found)}, version {shown(config.get('version'))}"
        raise CheckpointError(f"{path} is of format {stated}; of such files, {FORMAT!r}, version {VERSION}, is read")
    return config
