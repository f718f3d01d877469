"""This program's own model folders: ``config.json``, words, and float16 safetensors shards of less than 10 MB."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from heatkv.files import MAX_SCALES, Fields, program_root, read_json, scales_json, shown, write_atomic
from heatkv.models.base import Sampling
from heatkv.models.checkpoint import MAX_CONFIG_BYTES, CheckpointError, load_state, place, save_shards
from heatkv.models.infinity.text import Vocabulary, WordEncoder
from heatkv.models.infinity.words import Synonyms
from heatkv.scales import Geometry, ScaleSchedule

FORMAT, VERSION = "heatkv-model", 1
SYNONYMS = "synonyms.json"
MAX_DEPTH, MAX_NUMBER, MAX_LIST, MAX_REACH = 256, 1 << 17, 16, 16
PARTS = ("text", "transformer", "autoencoder")
NOT_NEEDED = ("encoder.", "quant_conv.")  # to draw pictures


def calibration_prompts() -> Path:
    """The prompts that the bundled models were calibrated on."""
    return program_root() / "assets" / "prompts" / "scenes-calibration.txt"


def save_folder(model: Any, folder: Path, family: str = "infinity") -> None:
    """Write a model of a family, without what only encodes pictures.

    Raises ``ValueError`` for a model with an external text encoder.
    """
    if not isinstance(model.text, WordEncoder):
        raise ValueError(f"{model.id} reads text with {type(model.text).__name__}, which a model folder can not hold")
    config = {
        "format": FORMAT,
        "version": VERSION,
        "family": family,
        "id": model.id,
        **scales_json(model.geometry.scales),
        "transformer": asdict(model.transformer.config),
        "autoencoder": asdict(model.autoencoder.config),
        "text": {
            "words": list(model.text.vocabulary.words),
            "max_words": model.text.max_words,
            "reach": model.text.reach,
        },
        "sampling": asdict(model.sampling),
        "examples": list(model.examples),
        "facts": model.facts or {},
    }
    state: dict[str, Tensor] = {}
    for part in PARTS:
        for name, tensor in getattr(model, part).state_dict().items():
            if not name.startswith(NOT_NEEDED):
                state[f"{part}.{name}"] = tensor.to(torch.float16).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_shards(state, folder)
    write_atomic(folder / "config.json", (json.dumps(config, indent=1) + "\n").encode())


@dataclass(frozen=True)
class FolderConfig:
    """What ``config.json`` of a folder states, checked, with the configurations of transformer and autoencoder."""

    family: str
    id: str
    scales: ScaleSchedule
    transformer: Any
    autoencoder: Any
    words: tuple[str, ...]
    max_words: int
    reach: int
    sampling: Sampling
    examples: tuple[str, ...]
    facts: dict[str, Any]

    @property
    def geometry(self) -> Geometry:
        shape = self.transformer
        return Geometry(shape.depth, shape.heads, shape.head_dim, self.scales)

    @property
    def common(self) -> dict[str, Any]:
        """What models of all families have in common, by the names of their fields."""
        return {"id": self.id, "sampling": self.sampling, "examples": self.examples, "facts": dict(self.facts)}


def read_config(folder: Path, kinds: Mapping[str, tuple[type, type]]) -> FolderConfig:
    """Read ``config.json``, which may come from anyone; ``kinds`` are transformer and autoencoder of every family.

    Raises ``CheckpointError`` that names the file.
    """
    path = folder / "config.json"
    value = read_json(path, limit=MAX_CONFIG_BYTES, error=CheckpointError)
    try:
        stated = Fields(value, format=FORMAT, version=VERSION, error=CheckpointError)
        family = stated.name("family")
        if family not in kinds:
            raise CheckpointError(f"family {family!r} is none that this program reads: {', '.join(sorted(kinds))}")
        transformer, autoencoder = kinds[family]
        text = stated.part("text")
        shape, image = read_shape(stated, "transformer", transformer), read_shape(stated, "autoencoder", autoencoder)
        config = FolderConfig(
            family=family,
            id=stated.name("id"),
            scales=stated.scales(),
            transformer=shape,
            autoencoder=image,
            words=text.texts("words", MAX_NUMBER),
            max_words=text.integer("max_words", 1, MAX_NUMBER),
            reach=text.integer("reach", 0, MAX_REACH) if "reach" in text.value else 0,  # 0: of a folder from before
            sampling=Sampling.of(stated.mapping("sampling")),
            examples=stated.texts("examples", MAX_NUMBER),
            facts=stated.mapping("facts"),
        )
        most = getattr(shape, "max_scales", len(config.scales))
        if len(config.scales) > most:
            raise CheckpointError(f"it has {len(config.scales)} scales, but max_scales is {most}")
        # The number of lines first: those that a transformer draws are listed only where they are as many as stated.
        lines = len(config.scales) - 1
        if getattr(shape, "grid", lines) != lines or getattr(shape, "scales", config.scales) != config.scales:
            raise CheckpointError("its transformer draws other lines than its scales state")
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return config


def read_shape(stated: Fields, key: str, kind: type) -> Any:
    """The dataclass ``kind`` of whole numbers, numbers, flags and lists that the object under ``key`` states."""
    given = stated.part(key)
    values: dict[str, Any] = {}
    known = {field.name: field for field in fields(kind)}
    if unknown := [name for name in given.value if name not in known]:
        raise CheckpointError(f"{key} has a field {shown(unknown[0])}, which this program does not know")
    hints = get_type_hints(kind)
    for name, field in known.items():
        if name not in given.value and field.default is not MISSING:
            continue
        hint = hints[name]
        if hint is bool:
            values[name] = given.flag(name)
        elif hint is int:
            least = 0 if name == "norm_groups" else 1  # 0: no groups, every cell alone
            values[name] = given.integer(name, least, MAX_DEPTH if name == "depth" else MAX_NUMBER)
        elif hint is float:
            values[name] = given.number(name, 0.01, 100)
        elif get_origin(hint) is Literal:
            if (value := given.get(name)) not in get_args(hint) or isinstance(value, bool):
                raise CheckpointError(f"{name} is {shown(value)}: it must be one of {shown(get_args(hint))}")
            values[name] = value
        elif get_args(hint) == (int, int):
            values[name] = given.size(name)
        elif get_args(hint)[0] is int:
            values[name] = given.integers(name, 1, MAX_NUMBER, MAX_LIST)
        else:
            values[name] = given.numbers(name, MAX_SCALES)
    return kind(**values)


def load_parts(
    folder: Path,
    makers: Mapping[str, Callable[[], nn.Module]],
    device: torch.device,
    dtype_of: Callable[[str], torch.dtype],
) -> dict[str, Any]:
    """The modules of a folder with its weights; ``dtype_of`` the name of a weight, that of its part in front.

    Buffers that follow from the configuration are left to the caller. Raises ``CheckpointError``.
    """
    states: dict[str, dict[str, Tensor]] = {part: {} for part in makers}
    for name, tensor in load_state(folder).items():
        part, _, inner = name.partition(".")
        if part not in states:
            raise CheckpointError(f"{folder} holds tensors that the model has no place for: {shown(name)}")
        states[part][inner] = tensor
    modules = {}
    for part, make in makers.items():
        dtype_in = partial(_dtype_in_part, part, dtype_of)
        try:
            modules[part], _ = place(make, states[part], folder, device, dtype_in)
        except CheckpointError as error:
            what = str(error).removeprefix(f"{folder} ")
            raise CheckpointError(f"{folder} does not hold a complete model: its {part} {what}") from error
    return modules


def _dtype_in_part(part: str, dtype_of: Callable[[str], torch.dtype], name: str) -> torch.dtype:
    return dtype_of(f"{part}.{name}")


def words_reader(folder: Path, config: FolderConfig, width: int) -> Callable[[], WordEncoder]:
    """What makes the text encoder that ``config`` describes, with the folder's synonyms, which are read now.

    Raises ``SynonymsError`` that names the file.
    """
    synonyms = Synonyms.load(folder / SYNONYMS) if (folder / SYNONYMS).exists() else None

    def make() -> WordEncoder:
        text = WordEncoder(Vocabulary(config.words), width, config.max_words, reach=config.reach)
        text.synonyms = synonyms or text.synonyms
        return text

    return make
