"""A comparison in pieces: a shard is one run over a slice of the images, computed anywhere and kept as a file.

A shard's numbers depend on what it says alone: its prompts and seeds, how they fall into batches, the number of
threads, the model and the plan. So they are the same in whichever process they are computed, and whatever else is
running. All of that goes into a fingerprint; a file with another one is of another comparison and is made again.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import io
import json
import re
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from heatkv.budget import least_budget
from heatkv.cache.seam import KVCache, ScheduleCache, full_cache
from heatkv.files import write_atomic
from heatkv.models import find_folder, load
from heatkv.models.base import GenerativeModel, seeded_noise
from heatkv.policies import cache_factory, plan, variant
from heatkv.scores import HeadScores
from heatkv.study import metrics, perceptual

VERSION = 2
METRICS = ("psnr", "psnr_foreground", "ssim", "bit_agreement")
# Of models that draw token by token, measured on the full cache's own tokens: what the cache alone changes, without
# what follows from a first different token. Share of equal likeliest tokens, and KL of the next token in nats.
FORCED = ("forced_agreement", "forced_kl")
REFERENCES = ("other_seed", "sinks_only", "dtype_noise")
KINDS = ("full", *REFERENCES, "policy")
SEED_STRIDE = 1_000  # seed of prompt i, repetition j: i + j * SEED_STRIDE
OTHER_SEED = 500_000  # added for the "another seed" reference
BATCHES = 4  # of one shard
WEIGHTS = (".safetensors", ".pth", ".pt", ".bin")
CODE = (
    "cache",
    "models",
    "policies/tokens.py",
    "policies/allowance.py",
    "scales.py",
    "schedule.py",
    "study/metrics.py",
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
        what = f"{self.policy}-{self.budget:g}-{self.order}" if self.kind == "policy" else self.kind
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
    folder = find_folder(model)
    for path in sorted(folder.iterdir()):
        if path.name != "config.json" and (path.suffix not in WEIGHTS or path.stem == "scores"):
            continue
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
        options = {key: repr(value) for key, value in variant(shard.policy)[0].options.items()}
        facts |= {"scores": scores_fingerprint(setting.scores), "sinks": setting.sink_scales, "options": options}
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


# --- running ----------------------------------------------------------------------------------------------------------


_held: dict[tuple[str, str, str], GenerativeModel] = {}


def loaded(model: str, device: str, dtype: str) -> GenerativeModel:
    """The model; one at a time: the one before goes first, as large models do not fit twice."""
    key = model, device, dtype
    if key not in _held:
        let_go()
        _held[key] = load(model, device, dtype)
    return _held[key]


def let_go() -> None:
    """Free the model that `loaded` holds."""
    _held.clear()
    gc.collect()


def cache_maker(setting: Setting, shard: Shard) -> Any:
    """What makes the caches of a shard. Raises ``ValueError`` where its policy can not keep to its budget."""
    geometry, scores = setting.scores.geometry, setting.scores
    if shard.kind == "policy":
        policy, asked = variant(shard.policy)
        asked = {"sink_scales": setting.sink_scales, **asked}
        return cache_factory(policy.name, geometry, shard.budget, scores, seed=shard.order, **asked)
    if shard.kind == "sinks_only":
        least = least_budget(geometry.scales, setting.sink_scales)
        schedule = plan(scores, least, "heatkv", setting.sink_scales)
        return lambda: ScheduleCache(geometry, schedule)
    return lambda: full_cache(geometry)


def execute(setting: Setting, shard: Shard, fingerprint: str, full: bytes | None, full_fingerprint: str) -> bytes:
    """Compute a shard: the bytes of its file. ``full`` is the file of the full cache over the same images."""
    threads = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    try:
        outcome = _outcome(setting, shard, full, full_fingerprint)
    finally:
        torch.set_num_threads(threads)
    return outcome.to_bytes(fingerprint)


def _outcome(setting: Setting, shard: Shard, full: bytes | None, full_fingerprint: str) -> Outcome:
    model = loaded(setting.model, setting.device, setting.dtype_of(shard))
    outcome = _generate(setting, shard, model)
    if shard.kind == "full":
        return outcome
    reference = Outcome.from_bytes(full or b"", full_fingerprint, Shard("full", shard.first, shard.sample))
    if reference is None:
        raise ShardError(f"{shard.words}: the images of the full cache to score against are missing or damaged")
    outcome = score(reference, outcome)
    if shard.kind in ("policy", "sinks_only") and model.geometry.scales.by_line:
        outcome = replace(outcome, forced_IM=teacher_forced(setting, shard, model, reference.tokens_K))
    return outcome


def _generate(setting: Setting, shard: Shard, model: GenerativeModel) -> Outcome:
    make_cache, sample = cache_maker(setting, shard), shard.sample
    offset = OTHER_SEED if shard.kind == "other_seed" else 0
    pixels, tokens, peak, share = [], [], 0, 0.0
    started = time.perf_counter()
    for first in range(0, len(sample.prompts), setting.batch):
        part, cache = sample.slice(first, setting.batch), make_cache()
        share = max(share, cache.planned_share)
        steps = list(model.run(part.prompts, seeded_noise([s + offset for s in part.seeds]), cache, model.sampling))
        pixels.append(model.decode(steps[-1].latent).numpy())
        tokens.append([step.tokens.cpu().numpy() for step in steps])
        peak = max(peak, cache.peak_bytes // len(part.prompts))
    seconds = (time.perf_counter() - started) / len(sample.prompts)
    facts = {"kv_bytes_peak": float(peak), "share_16bit": share, "seconds": seconds}
    tokens_K = tuple(np.concatenate(scale) for scale in zip(*tokens, strict=True))
    none = np.zeros((0, len(METRICS)))
    return Outcome(facts, none, np.zeros((0, 0)), pixels=np.concatenate(pixels), tokens_K=tokens_K)


def teacher_forced(
    setting: Setting, shard: Shard, model: Any, tokens_K: Sequence[npt.NDArray[np.generic]]
) -> npt.NDArray[np.float64]:
    """`FORCED` of every image: both caches read the images of the full one, and only what is cached differs."""
    make_cache, rows = cache_maker(setting, shard), []
    names = setting.model, setting.device, setting.dtype_of(shard)
    tokens_IN = np.concatenate(tokens_K, axis=1).astype(np.int64)
    for first in range(0, len(tokens_IN), setting.batch):
        prompts = shard.sample.slice(first, setting.batch).prompts
        tokens_BN = torch.from_numpy(tokens_IN[first : first + setting.batch])
        likely_NBV = forced_reference(names, prompts, tokens_BN.numpy().tobytes(), tokens_BN.shape[1])
        replayed = model.replay(prompts, tokens_BN, make_cache(), model.sampling)
        seen = [
            metrics.token_difference(full_BV.float(), logits_BV.cpu().log_softmax(-1))
            for full_BV, logits_BV in zip(likely_NBV, replayed, strict=True)
        ]
        rows.append(np.mean(seen, axis=0))
    return np.concatenate(rows)


@lru_cache(maxsize=4 * BATCHES)
def forced_reference(
    names: tuple[str, str, str], prompts: tuple[str, ...], tokens: bytes, length: int
) -> list[torch.Tensor]:
    """Log-probabilities of every token of images given as bytes, with the full cache; all policies ask for the same.

    Remembered in half precision, which is good for KL down to about 1e-4.
    """
    model: Any = loaded(*names)
    tokens_BN = torch.frombuffer(bytearray(tokens), dtype=torch.int64).view(-1, length)
    steps = model.replay(prompts, tokens_BN, full_cache(model.geometry), model.sampling)
    return [logits_BV.log_softmax(-1).half().cpu() for logits_BV in steps]


def score(reference: Outcome, run: Outcome) -> Outcome:
    """The run with what every image scores against the same image of ``reference``, and without its images."""
    assert reference.pixels is not None and run.pixels is not None
    counts = [tokens[0].size for tokens in reference.tokens_K]
    values, agreements = [], []
    for i, pair in enumerate(zip(reference.pixels, run.pixels, strict=True)):
        agreement = metrics.bit_agreement([t[i] for t in reference.tokens_K], [t[i] for t in run.tokens_K])
        closeness = metrics.psnr(*pair), metrics.foreground_psnr(*pair), metrics.ssim(*pair)
        values.append([*closeness, metrics.mean_agreement(agreement, counts)])
        agreements.append(agreement)
    there = perceptual.available()
    perceptual_I = perceptual.perceptual(reference.pixels, run.pixels) if there else np.zeros(0)
    return Outcome(run.facts, np.array(values), np.array(agreements), perceptual_I=perceptual_I)
