"""Official files in a folder: which model they are, by their names or, failing that, by their contents."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from heatkv.models import hub
from heatkv.models.base import Sampling
from heatkv.models.checkpoint import WEIGHT_SUFFIXES, CheckpointError, find_index, load_state
from heatkv.models.hub import Files
from heatkv.models.infinity import official as infinity
from heatkv.models.infinity.autoencoder import AutoencoderConfig
from heatkv.models.infinity.scales import published_scales, rope_grid
from heatkv.models.presets import INFINITY_EXAMPLES, INFINITY_SAMPLING, PRESETS, T5_XL, Preset, Weights
from heatkv.models.var import layout as var_layout
from heatkv.models.var import official as var
from heatkv.scales import ScaleSchedule

FORMAT, VERSION = "heatkv-official", 1

# Tensors that tell what a file holds.
MARKS = {
    "text_proj_for_sos.ca.mat_q": ("infinity", "transformer"),
    "class_emb.weight": ("var", "transformer"),
    "quantize.embedding.weight": ("var", "autoencoder"),
    "decoder.conv_in.weight": ("infinity", "autoencoder"),
    "decoder.conv_in.conv.weight": ("infinity", "autoencoder"),
}


def identify(path: Path, size: str = "", ratio: str = "1.0") -> tuple[Preset, Files]:
    """The model that lies in a folder, or whose transformer is the given file or folder of shards.

    Published file names settle it. Other files are told apart by their tensors, and their shapes make
    up the configuration; a ``config.json`` next to them (format ``heatkv-official``) may state ``id``,
    ``scales``, ``rope_grid``, ``sampling`` and ``examples``. ``size`` and ``ratio`` choose published
    scales (Infinity). Raises ``CheckpointError``; the message says what is missing.
    """
    single = path if path.is_file() or (path.is_dir() and find_index(path)) else None
    folder = path.parent if single else path
    named = [p for p in PRESETS.values() if is_here(p.transformer, folder, single)]
    if len(named) > 1:
        paths = ", ".join(str(folder / p.transformer.local_name) for p in named)
        raise CheckpointError(f"{folder} holds several models; give the path of one: {paths}")
    if named:
        preset, files = named[0], hub.find_files(named[0], folder)
        if missing := hub.missing_parts(preset, files):
            raise CheckpointError(f"{hub.how_to_get(preset, missing)}{strangers(preset, folder)}")
    else:
        preset, files = by_contents(folder, single)
        settings = read_settings(folder)
        preset = replace(preset, **settings)
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


def by_contents(folder: Path, single: Path | None) -> tuple[Preset, Files]:
    """A model put together from the shapes of what lies in ``folder``."""
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
    families = [family for family in ("infinity", "var") if (family, "transformer") in found]
    if not families and problems:
        raise problems[0]
    if len(families) != 1 or len(found[families[0], "transformer"]) != 1:
        raise CheckpointError(
            f"{single or folder} holds {'several transformers; give the path of one' if families else 'no transformer'}"
            " of a known family (Infinity or VAR)"
        )
    family = families[0]
    autoencoders = found.get((family, "autoencoder"), [])
    if len(autoencoders) != 1:
        other = [p.name for k, paths in found.items() if k[1] == "autoencoder" for p in paths]
        raise CheckpointError(
            f"{folder} needs one file with the autoencoder of its {family} transformer; "
            f"it holds {', '.join(other) or 'none'}"
        )
    transformer, autoencoder = found[family, "transformer"][0], autoencoders[0]
    make = infinity_preset if family == "infinity" else var_preset
    return make(folder, transformer, autoencoder)


def kind_of(state: dict[str, Tensor]) -> tuple[str, str] | None:
    """Family and part that a state dict is of."""
    return next((kind for mark, kind in MARKS.items() if mark in state), None)


def infinity_preset(folder: Path, transformer: Path, autoencoder: Path) -> tuple[Preset, Files]:
    settings = read_settings(folder)
    scales = settings.get("scales", published_scales())
    grid = read_grid(folder) or (scales.sizes[-1] if "scales" in settings else rope_grid())
    shape = infinity.read_transformer_config(transformer, grid)
    texts = [entry for entry in sorted(folder.iterdir()) if is_text_encoder(entry)]
    text = texts[0] if texts else hub.find_weights(T5_XL, folder)
    if text is None:
        raise CheckpointError(
            f"{folder} needs a text encoder of {shape.text_width} features: put the folder {T5_XL.local_name} "
            f"({T5_XL.repo}) into it"
        )
    preset = Preset(
        id=transformer.parent.name or "folder",
        family="infinity",
        summary=f"Infinity of depth {shape.depth}, from {transformer.name}, square",
        scales=scales,
        transformer_config=shape,
        autoencoder_config=infinity.read_autoencoder_config(autoencoder, shape.bits),
        transformer=Weights("", transformer.name, 0),
        autoencoder=Weights("", right_autoencoder(shape.bits, autoencoder), 0),
        text=Weights("", text.name, 0) if texts else T5_XL,
        text_parameters=0,
        sampling=INFINITY_SAMPLING,
        examples=INFINITY_EXAMPLES,
        size="" if "scales" in settings else "1M",
        ratio="1.0",
    )
    return preset, Files(transformer, autoencoder, text)


def right_autoencoder(bits: int, given: Path) -> str:
    """The published autoencoder for a transformer that predicts so many bits a token."""
    for preset in PRESETS.values():
        config = preset.autoencoder_config
        if isinstance(config, AutoencoderConfig) and config.token_bits == bits and preset.transformer.repo:
            return preset.autoencoder.name
    return given.name


def var_preset(folder: Path, transformer: Path, autoencoder: Path) -> tuple[Preset, Files]:
    scales = read_settings(folder).get("scales") or var_layout.transformer_scales(load_state(transformer))
    if scales is None:
        raise CheckpointError(
            f"{transformer} has none of the published scale lists: write a config.json next to it, "
            f'{{"format": "{FORMAT}", "version": {VERSION}, "scales": [[1, 1], [2, 2], ...]}}'
        )
    shape = var.read_transformer_config(transformer)
    usual = PRESETS["var-d16"]
    preset = replace(
        usual,
        id=transformer.parent.name or "folder",
        summary=f"VAR of depth {shape.depth}, from {transformer.name}",
        scales=scales,
        transformer_config=shape,
        autoencoder_config=var.read_autoencoder_config(autoencoder),
        transformer=Weights("", transformer.name, 0),
        examples=usual.examples if shape.classes == 1000 else tuple(str(i) for i in range(min(6, shape.classes))),
        licence="",
    )
    return preset, Files(transformer, autoencoder)


def is_text_encoder(entry: Path) -> bool:
    try:
        return str(json.loads((entry / "config.json").read_text())["model_type"]).endswith("t5")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_settings(folder: Path) -> dict[str, Any]:
    """What ``config.json`` states of a model, as fields of ``Preset``; nothing without that file."""
    config = read_config(folder)
    try:
        result: dict[str, Any] = {key: str(config[key]) for key in ("id",) if key in config}
        if "scales" in config:
            result["scales"] = ScaleSchedule(tuple((int(h), int(w)) for h, w in config["scales"]))
        if "sampling" in config:
            result["sampling"] = Sampling(**config["sampling"])
        if "examples" in config:
            result["examples"] = tuple(str(example) for example in config["examples"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    return result


def read_grid(folder: Path) -> tuple[int, int] | None:
    grid = read_config(folder).get("rope_grid")
    try:
        return None if grid is None else (int(grid[0]), int(grid[1]))
    except (TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: rope_grid is {grid}, not a height and a width") from error


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can not be read ({error})") from error
    if not isinstance(config, dict) or (config.get("format"), config.get("version")) != (FORMAT, VERSION):
        return {}
    return config
