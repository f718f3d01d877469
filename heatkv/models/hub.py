"""Where published weights lie on this machine, and how to get them. Only ``download`` uses the network."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from heatkv.files import one_line
from heatkv.models.checkpoint import CheckpointError
from heatkv.models.presets import Preset, Weights

FOLDER_VARIABLE = "HEATKV_WEIGHTS"
HUB_PAGE = "https://huggingface.co"
RETRIES = 2


@dataclass(frozen=True)
class Files:
    """Files or folders of a model's parts; None for what is not on this machine (or not needed)."""

    transformer: Path | None = None
    autoencoder: Path | None = None
    text: Path | None = None


def parts_of(preset: Preset) -> dict[str, Weights]:
    """The weights a model consists of, by part."""
    parts = {"transformer": preset.transformer, "autoencoder": preset.autoencoder}
    return parts if preset.text is None else {**parts, "text": preset.text}


def find_weights(weights: Weights, folder: Path | None = None) -> Path | None:
    """Where ``weights`` lie: in ``folder``, in the folder that ``HEATKV_WEIGHTS`` names, or in the hub's cache."""
    variable = os.environ.get(FOLDER_VARIABLE)
    places = [place for place in (folder, Path(variable) if variable else None) if place is not None]
    for path in (place / name for place in places for name in weights.names):
        if path.exists():
            return path
    return find_cached(weights)


def find_cached(weights: Weights) -> Path | None:
    """Where ``weights`` lie, complete, in the hub's cache."""
    if not weights.repo:
        return None
    try:
        import huggingface_hub
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        return None
    try:
        if not weights.is_folder:
            path = huggingface_hub.try_to_load_from_cache(weights.repo, weights.name)
            return Path(path) if isinstance(path, str) else None
        snapshot = huggingface_hub.snapshot_download(weights.repo, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    folder = Path(snapshot, weights.name)
    return folder if is_complete(folder) else None


def is_complete(folder: Path) -> bool:
    """Whether all shards that a folder's index names are there (a download may have been interrupted)."""
    from heatkv.models.checkpoint import find_index, shard_names

    index = find_index(folder) if folder.is_dir() else None
    if index is None:
        return folder.is_dir() and any(folder.glob("*.safetensors"))
    return all((folder / shard).is_file() for shard in shard_names(index))


def find_files(preset: Preset, folder: Path | None = None) -> Files:
    """Where the parts of ``preset`` lie (see ``find_weights``)."""
    return Files(**{part: find_weights(weights, folder) for part, weights in parts_of(preset).items()})


def missing_parts(preset: Preset, files: Files) -> dict[str, Weights]:
    return {part: weights for part, weights in parts_of(preset).items() if getattr(files, part) is None}


def how_to_get(preset: Preset, missing: dict[str, Weights]) -> str:
    """What to download and where to put it, in one sentence."""
    items = []
    for weights in missing.values():
        if not weights.repo:
            items.append(f"{weights.local_name} (not published: your own training)")
            continue
        what = f"{weights.local_name}{'/' if weights.is_folder else ''}"
        items.append(f"{what} ({weights.size_text}, {HUB_PAGE}/{weights.repo})")
    name = preset.id.partition(":")[0]
    return (
        f"the weights of {name} are not all on this machine; missing: {', '.join(items)}. "
        f"Run `python -m heatkv models --download {name}`, or put them into one folder and give that folder as the "
        f"model, or set {FOLDER_VARIABLE} to it"
    )


class FewRetries(logging.Filter):
    """Ends a request of the hub's client that has been tried a few times; without network it tries for half a minute.

    The client tells of every new try in a warning, which nobody needs to read either.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tries = 0

    def filter(self, record: logging.LogRecord) -> bool:
        self.tries += "Retrying in" in record.getMessage()
        if self.tries > RETRIES:
            raise ConnectionError("the hub can not be reached")
        return False


@contextmanager
def few_retries() -> Iterator[None]:
    loggers = [logging.getLogger(f"huggingface_hub.{name}") for name in ("utils._http", "file_download")]
    patience = FewRetries()
    for logger in loggers:
        logger.addFilter(patience)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(patience)


def download(preset: Preset, report: Callable[[str], object] = print) -> Files:
    """Fetch what is missing of ``preset`` into the hub's normal cache; an interrupted download goes on.

    Raises ``CheckpointError`` without network, or where something is not published; the message says
    what to download by hand and where to put it.
    """
    files = find_files(preset)
    missing = missing_parts(preset, files)
    unpublished = {part: weights for part, weights in missing.items() if not weights.repo}
    if unpublished:
        raise CheckpointError(how_to_get(preset, unpublished))
    for part, weights in missing.items():
        report(f"{part}: {weights.repo}/{weights.name} ({weights.size_text})")
        try:
            import huggingface_hub

            with few_retries():
                if weights.is_folder:
                    patterns = [f"{weights.name}/{p}" if weights.name else p for p in weights.patterns]
                    huggingface_hub.snapshot_download(weights.repo, allow_patterns=patterns)
                else:
                    huggingface_hub.hf_hub_download(weights.repo, weights.name)
        except ImportError as error:
            raise CheckpointError("downloads need huggingface_hub: `pip install huggingface_hub` first") from error
        except Exception as error:  # the client raises those of several HTTP libraries
            reason = one_line(str(error) or type(error).__name__, 150)
            left = missing_parts(preset, find_files(preset))
            raise CheckpointError(f"the download failed ({reason}); {how_to_get(preset, left)}") from error
    return find_files(preset)
