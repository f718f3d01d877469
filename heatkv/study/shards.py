"""A comparison in pieces: a shard is one run over a slice of the images, kept as a file.

A shard's numbers (running.py) depend on what it says alone: its prompts and seeds, how they fall into batches, the
number of threads, the model and the plan. So they are the same in whichever process they are computed, and whatever
else is running. All of that goes into a fingerprint; a file with another one is of another comparison and made again.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import re
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from heatkv.cache.seam import KVCache, ScheduleCache
from heatkv.files import write_atomic
from heatkv.models import weight_files
from heatkv.policies import variant
from heatkv.scores import HeadScores
from heatkv.study import perceptual
from heatkv.study.metrics import FORCED, METRICS

VERSION = 2
REFERENCES = ("other_seed", "sinks_only", "dtype_noise")
KINDS = ("full", *REFERENCES, "policy")
SEED_STRIDE = 1_000  # seed of prompt i, repetition j: i + j * SEED_STRIDE
BATCHES = 4  # of one shard
CODE = (
    "cache",
    "models",
    "policies/tokens.py",
    "policies/line_tokens.py",
    "policies/allowance.py",
    "budget.py",
    "formats.py",
    "scales.py",
    "schedule.py",
    "study/metrics.py",
    "study/running.py",
)
MAX_SHARD_BYTES = 4 << 30


class ShardError(ValueError):
    """A shard that can not be computed; the message says why."""


@dataclass(frozen=True)
class Sample:
    """Prompts with their seeds: one image each."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, prompts: Sequence[str], repetitions: int) -> Sample:
        pairs = [(prompt, i + j * SEED_STRIDE) for j in range(repetitions) for i, prompt in enumerate(prompts)]
        return cls(tuple(p for p, _ in pairs), tuple(s for _, s in pairs))

    def slice(self, first: int, count: int) -> Sample:
        return Sample(self.prompts[first : first + count], self.seeds[first : first + count])


@dataclass(frozen=True)
class Shard:
    """One run over images ``first, first + 1, ...`` of a comparison. ``order`` is the seed of a policy that rolls dice.

    ``kind`` is one of `KINDS`: ``full`` keeps pixels and tokens, which the others are scored against.
    """

    kind: str
    first: int
    sample: Sample
    policy: str = ""
    budget: float = 1.0
    order: int = 0

    @property
    def name(self) -> str:
        """Of its file, without folder."""
        what = f"{self.policy}-{self.budget!r}-{self.order}" if self.kind == "policy" else self.kind
        return f"{re.sub('[:,=]', '_', what)}-{self.first:05}.npz"

    @property
    def words(self) -> str:
        what = f"{self.policy} at {self.budget:g}" if self.kind == "policy" else self.kind.replace("_", " ")
        return f"{what}, images {self.first + 1} to {self.first + len(self.sample.prompts)}"


@dataclass(frozen=True, eq=False)
class Setting:
    """What all shards of a comparison share. ``model`` is a name or a folder: whoever computes a shard loads it."""

    model: str
    weights: str  # fingerprint of the model's files
    scores: HeadScores
    sink_scales: int
    batch: int
    threads: int
    device: str
    dtype: str  # float32 or bfloat16

    def dtype_of(self, shard: Shard) -> str:
        return "bfloat16" if shard.kind == "dtype_noise" else self.dtype


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a shard.

    Parameters
    ----------
    facts
        ``kv_bytes_peak`` (measured, of one image), ``share_16bit``, ``seconds`` an image.
    values_IM
        `METRICS` of every image against the full cache; empty for the full cache itself.
    agreement_IK
        Share of equal tokens by scale, likewise.
    forced_IM
        `FORCED` of every image; empty where that is not measured.
    perceptual_I
        Distance of features of every image (perceptual.py); empty without that extra.
    pixels, tokens_K
        The images and what they were drawn from, by scale; of the full cache only.
    """

    facts: dict[str, float]
    values_IM: npt.NDArray[np.float64]
    agreement_IK: npt.NDArray[np.float64]
    forced_IM: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, len(FORCED))))
    perceptual_I: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    pixels: npt.NDArray[np.uint8] | None = None
    tokens_K: tuple[npt.NDArray[np.generic], ...] = ()

    def to_bytes(self, fingerprint: str) -> bytes:
        header = json.dumps({"version": VERSION, "fingerprint": fingerprint, **self.facts}).encode()
        arrays: dict[str, npt.NDArray[Any]] = {
            "header": np.frombuffer(header, np.uint8), "values": self.values_IM, "agreement": self.agreement_IK,
            "forced": self.forced_IM, "perceptual": self.perceptual_I,
        }  # fmt: skip
        if self.pixels is not None:
            arrays["pixels"] = self.pixels
            arrays |= {f"tokens_{k}": tokens for k, tokens in enumerate(self.tokens_K)}
        out = io.BytesIO()
        np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, fingerprint: str, shard: Shard) -> Outcome | None:
        """The outcome, or None if it is of something else, cut off or damaged."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
            header = json.loads(found["header"].tobytes())
            if (header.pop("version"), header.pop("fingerprint")) != (VERSION, fingerprint):
                return None
            facts = {name: float(header[name]) for name in ("kv_bytes_peak", "share_16bit", "seconds")}
            images = len(shard.sample.prompts)
            tokens = tuple(found[f"tokens_{k}"] for k in range(sum(name.startswith("tokens_") for name in found)))
            outcome = cls(
                facts, found["values"], found["agreement"], found["forced"],
                found.get("perceptual", np.zeros(0)), found.get("pixels"), tokens,
            )  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, zipfile.BadZipFile):
            return None
        if shard.kind == "full":
            whole = outcome.pixels is not None and all(len(part) == images for part in (outcome.pixels, *tokens))
        else:
            whole = outcome.values_IM.shape == (images, len(METRICS)) and len(outcome.agreement_IK) == images
        finite = all(np.isfinite(x).all() for x in (outcome.values_IM, outcome.forced_IM, outcome.perceptual_I))
        return outcome if whole and finite else None


# --- files ------------------------------------------------------------------------------------------------------------


def read_shard(folder: Path, shard: Shard, fingerprint: str) -> bytes | None:
    """The file of a shard, if it is there, whole and of this very comparison."""
    path = folder / shard.name
    if not path.is_file() or path.stat().st_size > MAX_SHARD_BYTES:
        return None
    data = path.read_bytes()
    return data if Outcome.from_bytes(data, fingerprint, shard) is not None else None


def write_shard(folder: Path, shard: Shard, data: bytes) -> None:
    write_atomic(folder / shard.name, data)


# --- fingerprints -----------------------------------------------------------------------------------------------------


def weights_fingerprint(model: str) -> str:
    """Of a model's files: names, sizes, and the first and last MiB of each, which any further training changes."""
    digest = hashlib.sha256()
    for path in weight_files(model):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with open(path, "rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read(1 << 20))
    return digest.hexdigest()[:32]


def scores_fingerprint(scores: HeadScores) -> str:
    digest = hashlib.sha256(scores.model.encode())
    for array in (scores.mass_LHTS, scores.change_LHTS, scores.spread_LH):
        digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]


def fingerprint(setting: Setting, shard: Shard, cache: KVCache) -> str:
    """Of all that a shard's numbers depend on. ``cache`` is one of those that it will run with."""
    facts: dict[str, Any] = {
        "version": VERSION,
        "weights": setting.weights,
        "batch": setting.batch,
        "threads": setting.threads,
        "device": setting.device,
        "dtype": setting.dtype_of(shard),
        "shard": asdict(shard),
        "code": _code(tuple(c.__module__ for c in type(cache).__mro__ if c is not object)),
        "torch": torch.__version__,
    }
    if shard.kind != "full" and perceptual.available():
        facts["perceptual"] = perceptual.TAPS
    if isinstance(cache, ScheduleCache):
        facts["schedule"] = hashlib.sha256(cache.schedule.to_json().encode()).hexdigest()
    else:
        policy = variant(shard.policy)[0]
        options = {key: repr(value) for key, value in policy.options.items()}
        facts |= {"sinks": setting.sink_scales, "options": options}
        if policy.needs != "nothing":
            facts["scores"] = scores_fingerprint(setting.scores)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


@lru_cache(maxsize=64)
def _code(modules: tuple[str, ...]) -> str:
    """Of the files that a cache's class and its ancestors are written in, and of all that runs for every policy.

    A changed policy is another policy, and so is one under another attention, arena, layout, model or metric.
    """
    package = Path(__file__).parents[1]
    paths = {Path(inspect.getfile(sys.modules[name])) for name in modules}
    for name in CODE:
        paths |= {package / name} if name.endswith(".py") else set((package / name).rglob("*.py"))
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:32]
