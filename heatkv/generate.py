"""Generation: an iterator over scales, and the image with its costs at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from heatkv.cache.seam import KVCache, ScheduleCache, full_cache
from heatkv.models.base import GenerativeModel, Sampling, seeded_noise
from heatkv.policies import PlanSource, cache_factory
from heatkv.schedule import Schedule

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ScaleEvent:
    """One scale done. ``kv_bytes`` is what the cache holds now, ``tokens`` its cached tokens (heads x rows apart).

    ``bits`` are the tokens just drawn (``[N, bits]`` bool or ``[N]`` indices); ``pixels`` is the image
    so far, where previews were asked for (always after the last scale).
    """

    scale: int
    tokens: int
    kv_bytes: int
    seconds: float
    bits: npt.NDArray[np.generic] = field(repr=False)
    pixels: npt.NDArray[np.uint8] | None = field(repr=False)


@dataclass(frozen=True)
class Generation:
    """An image and what it cost.

    Memory is reported in three numbers: ``kv_bytes_theoretical`` (the peak of cached tokens that was
    known ahead, from the schedule or the policy's allowances), ``kv_bytes_peak`` (the most that was
    allocated for cached keys and values, measured) and ``process_bytes_peak`` (everything: weights,
    activations, the interpreter; the high-water mark of the process on CPU, of the device's allocator
    on CUDA; None where the system does not tell). ``rows`` are the batch rows that the cache held: 2 with guidance.
    """

    model: str
    prompt: str
    seed: int
    policy: str
    budget: float
    pixels: npt.NDArray[np.uint8] = field(repr=False)
    bits: tuple[npt.NDArray[np.generic], ...] = field(repr=False)
    scales: tuple[ScaleEvent, ...] = field(repr=False)
    seconds: float
    kv_bytes_peak: int
    kv_bytes_theoretical: int
    kv_bytes_full: int
    process_bytes_peak: int | None
    note: str | None = None
    rows: int = 1

    @property
    def image(self) -> Image:
        """The image as a PIL image."""
        from PIL import Image

        return Image.fromarray(self.pixels)


def full_bytes(model: GenerativeModel, sampling: Sampling) -> int:
    """Bytes of the full cache at its peak for one image, both rows of a guided image included."""
    size, tokens = model.dtype.itemsize, model.geometry.full_peak_tokens
    return model.geometry.kv_bytes(tokens, batch=sampling.rows, key_bytes=size, value_bytes=size)


def process_bytes_peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def generate_events(
    model: GenerativeModel,
    prompt: str,
    seed: int,
    cache: KVCache,
    sampling: Sampling | None = None,
    previews: bool = False,
) -> Iterator[ScaleEvent]:
    """Generate one image, one event a scale. Stop iterating to cancel.

    Raises ``PromptError`` for a prompt that says nothing to the model, ``ValueError`` for a seed out of range.
    """
    model.check_prompt(prompt)
    sampling = sampling or model.sampling
    last = len(model.geometry.scales) - 1
    tokens = size = 0
    started = time.perf_counter()
    for step in model.run([prompt], seeded_noise([seed]), cache, sampling):
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        seconds = time.perf_counter() - started
        # The last scale releases the cache; its event reports what was held while it ran.
        if step.scale < last:
            tokens, size = cache.tokens, cache.allocated_bytes
        pixels = model.decode(step.latent)[0].numpy() if previews or step.scale == last else None
        yield ScaleEvent(step.scale, tokens, size, seconds, step.tokens[0].cpu().numpy(), pixels)
        started = time.perf_counter()


def collect(
    model: GenerativeModel,
    prompt: str,
    seed: int,
    cache: KVCache,
    policy: str,
    budget: float,
    events: list[ScaleEvent],
    sampling: Sampling,
) -> Generation:
    """The ``Generation`` of a finished run from its events."""
    pixels = events[-1].pixels
    if pixels is None or len(events) != len(model.geometry.scales.drawn):
        raise ValueError(
            f"the run ended after {len(events)} of {len(model.geometry.scales.drawn)} {model.geometry.scales.word}s: "
            "there is no image yet"
        )
    full = full_bytes(model, sampling)
    return Generation(
        model=model.id,
        prompt=prompt,
        seed=seed,
        policy=policy,
        budget=budget,
        pixels=pixels,
        bits=tuple(event.bits for event in events),
        scales=tuple(events),
        seconds=sum(event.seconds for event in events),
        kv_bytes_peak=cache.peak_bytes,
        kv_bytes_theoretical=cache.planned_bytes(sampling.rows, model.dtype.itemsize),
        kv_bytes_full=full,
        process_bytes_peak=process_bytes_peak(model.device),
        note=model.check_prompt(prompt),
        rows=sampling.rows,
    )


def generate(
    model: GenerativeModel,
    prompt: str,
    seed: int = 0,
    schedule: Schedule | None = None,
    sampling: Sampling | None = None,
    *,
    policy: str | None = None,
    budget: float | None = None,
    scores: PlanSource = None,
    sink_scales: int | None = None,
    storage: str | None = None,
    **options: Any,
) -> Generation:
    """Generate one image with the full cache, under a schedule, or as a policy spends a budget.

    Parameters
    ----------
    schedule
        The plan of a static policy, in place of a budget and all that goes with one.
    policy, budget, scores, sink_scales, storage, options
        Any policy (default: ``heatkv``), static or dynamic, what it needs of a calibration, its sinks, how a static one
        stores what it keeps, and what else can be asked of it; see `heatkv.policies.cache_factory`.

    Raises
    ------
    ValueError
        A prompt that says nothing to the model (``PromptError``), a schedule of another geometry, a seed out of range,
        what would not count (a policy without a budget, or beside a schedule), or what
        `heatkv.policies.cache_factory` refuses.
    """
    sampling = sampling or model.sampling
    cache: KVCache
    stated = {"policy": policy, "scores": scores, "sink_scales": sink_scales, "storage": storage, **options}
    idle = [name for name, value in stated.items() if value is not None]
    if schedule is not None and (idle or budget is not None):
        raise ValueError(f"a schedule says all: leave out {', '.join(idle) or 'budget'}, or give a budget in its place")
    if budget is None and idle:
        raise ValueError(f"{', '.join(idle)} without a budget would not count: give a budget, too")
    if schedule is not None:
        policy, budget, cache = schedule.policy, schedule.budget, ScheduleCache(model.geometry, schedule)
    elif budget is not None:
        policy = policy or "heatkv"
        cache = cache_factory(
            policy, model.geometry, budget, scores, sink_scales, model=model.id, storage=storage, **options
        )()
    else:
        policy, budget, cache = "full", 1.0, full_cache(model.geometry)
    events = list(generate_events(model, prompt, seed, cache, sampling))
    return collect(model, prompt, seed, cache, policy, budget, events, sampling)
