"""How much memory a model needs, before anything is loaded, and whether it is there."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from heatkv.files import shown
from heatkv.models.base import GenerativeModel
from heatkv.models.families import FAMILIES
from heatkv.models.infinity.autoencoder import AutoencoderConfig
from heatkv.models.infinity.t5 import text_dtype
from heatkv.models.llamagen.vq import VqConfig
from heatkv.models.presets import Preset
from heatkv.models.var.vqvae import VqvaeConfig
from heatkv.scales import ScaleSchedule

GB = 1e9
RUNTIME_BYTES = 300_000_000  # kernels and their workspace, small tensors
DECODER_MAPS = 5  # feature maps of full resolution that a decoder holds at once


class NotEnoughMemory(ValueError):
    """The model does not fit; the message has the numbers and what to do."""


@dataclass(frozen=True)
class Estimate:
    """Bytes on the device by part, for one guided image with the full cache.

    ``work`` is what the running part needs besides: the current scale's activations, or the decoder's
    feature maps, whichever is more.
    """

    text: int
    transformer: int
    autoencoder: int
    cache: int
    transformer_work: int
    decoder_work: int

    @property
    def whole(self) -> int:
        """With all parts on the device."""
        weights = self.text + self.transformer + self.autoencoder
        return RUNTIME_BYTES + weights + max(self.cache + self.transformer_work, self.decoder_work)

    @property
    def staged(self) -> int:
        """With the parts taking turns."""
        stages = (
            self.text, self.transformer + self.cache + self.transformer_work, self.autoencoder + self.decoder_work
        )  # fmt: skip
        return RUNTIME_BYTES + max(stages)

    def __str__(self) -> str:
        parts = [("text encoder", self.text), ("transformer", self.transformer), ("autoencoder", self.autoencoder)]
        work = max(self.transformer_work, self.decoder_work)
        parts += [("full cache", self.cache), ("working memory", work)]
        return ", ".join(f"{name} {size / GB:.1f}" for name, size in parts if size)


def estimate(preset: Preset, device: torch.device, dtype: torch.dtype) -> Estimate:
    """What one guided image of ``preset`` takes on ``device`` with blocks, cache and decoder in ``dtype``."""
    shape, scales = preset.transformer_config, preset.scales
    family = FAMILIES[preset.family]
    blocks, rest = transformer_parameters(preset.family, shape, scales)
    around, decoder = ((kept or dtype).itemsize for kept in (family.around_dtype, family.decoder_dtype))
    h, w = preset.image_size
    size, tokens = dtype.itemsize, max(scales.tokens)
    # Two rows of the largest scale: projections and feed-forward, float32 logits, the float32 stream and its norm.
    activations = 2 * tokens * (16 * shape.width * size + 3 * 4 * family.outputs(shape) + 12 * shape.width)
    image = preset.autoencoder_config
    # In float16, T5 keeps one matrix of every layer, a quarter of its weights, in float32.
    text_bytes = 2.5 if text_dtype(device, dtype) == torch.float16 else text_dtype(device, dtype).itemsize
    return Estimate(
        text=round(preset.text_parameters * text_bytes),
        transformer=blocks * size + rest * around,
        autoencoder=decoder * decoder_parameters(preset.family, image),
        cache=preset.geometry.kv_bytes(preset.geometry.full_peak_tokens, batch=2, key_bytes=size, value_bytes=size),
        transformer_work=activations,
        decoder_work=DECODER_MAPS * decoder * h * w * image.base_width * widest(image),
    )


def widest(config: AutoencoderConfig | VqvaeConfig | VqConfig) -> int:
    """The width of the first block at full resolution relative to the base width."""
    return config.width_mult[1] if len(config.width_mult) > 1 else config.width_mult[0]


@lru_cache(maxsize=64)
def transformer_parameters(family: str, config: Any, scales: ScaleSchedule) -> tuple[int, int]:
    """Parameters in the blocks and outside them."""
    with torch.device("meta"):
        one = FAMILIES[family].transformer(replace(config, depth=1), scales)
    blocks: nn.Module = one.blocks  # type: ignore[assignment]
    block = sum(p.numel() for p in blocks.parameters())
    return block * config.depth, sum(p.numel() for p in one.parameters()) - block


@lru_cache(maxsize=16)
def decoder_parameters(family: str, config: Any) -> int:
    with torch.device("meta"):
        model = FAMILIES[family].autoencoder(config, ScaleSchedule.square([1]))
    return sum(p.numel() for p in model.parameters())


def available(device: torch.device) -> int | None:
    """Bytes free on ``device``; None where the system does not tell, or where nothing takes memory."""
    if device.type == "meta":
        return None
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory()) - int(torch.mps.current_allocated_memory())
    free = [size for size in (_free_of_system(), _free_of_container()) if size is not None]
    return min(free, default=None)


def check_batch(model: GenerativeModel, batch: int) -> None:
    """Raise `NotEnoughMemory` where a batch of images can not fit beside what the device holds already.

    Counts the full cache and the hidden states of the last scale: less than it takes, so that nothing is refused which
    might run.
    """
    geometry, size = model.geometry, model.dtype.itemsize
    rows = model.sampling.rows
    width = geometry.heads * geometry.head_dim
    cache = geometry.kv_bytes(geometry.full_peak_tokens, batch=rows, key_bytes=size, value_bytes=size)
    image = cache + rows * max(geometry.scales.tokens) * width * (4 * size + 8)
    free = available(model.device)
    if free is not None and batch * image > free:
        raise NotEnoughMemory(
            f"{shown(batch)} images at a time need more than {shown(batch * image // 10**9)} GB and {free / GB:.1f} GB "
            f"are free: choose a batch of {max(1, free // (2 * image))} or less"
        )


def _free_of_system() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def _free_of_container() -> int | None:
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        return int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def choose_offload(preset: Preset, device: torch.device, dtype: torch.dtype, offload: bool | None) -> bool:
    """Whether the parts have to take turns on ``device``; ``offload`` None leaves the choice to the estimate.

    Raises ``NotEnoughMemory`` with the numbers where the model does not fit either way.
    """
    need, free = estimate(preset, device, dtype), available(device)
    stageable = device.type != "cpu"
    if free is None or (not offload and need.whole <= free):
        return bool(offload) and stageable
    if stageable and offload is not False and need.staged <= free:
        return True
    least = need.staged if stageable else need.whole
    remedies = []
    if stageable and offload is False and need.staged <= free:
        remedies.append("allow staged offload")
    elif preset.size not in ("", "0.06M"):
        remedies.append(f"choose a smaller size such as {preset.id.partition(':')[0]}:0.25M")
    if dtype == torch.float32:
        remedies.append("load it in bfloat16")
    remedies.append("choose a smaller model or another device")
    raise NotEnoughMemory(
        f"{preset.id} needs about {least / GB:.1f} GB on {device.type} for one image ({need}; in GB"
        f"{', parts taking turns' if stageable else ''}) and {free / GB:.1f} GB are free: {', or '.join(remedies)}"
    )
