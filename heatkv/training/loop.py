"""What both training stages share: learning rate, moving average of the weights, checkpoints, devices."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def learning_rate(step: int, steps: int, *, warmup: int = 100, decay: float = 0.4) -> float:
    """A factor on the peak learning rate: linear warm-up, constant, linear to zero in the last ``decay`` of the run.

    Unlike a cosine, the constant part does not depend on where the end will be, so that a run can be prolonged.
    """
    return min(1.0, (step + 1) / warmup, (steps - step) / max(1.0, decay * steps))


def generator_at(seed: int, step: int) -> torch.Generator:
    """The noise of a step, whether the run came to it at once or was resumed before it."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, limit: float) -> None:
    """Exponential moving average of the parameters; short memory at first, ``limit`` later."""
    decay = min(limit, (step + 1) / (step + 10))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def forgotten(rows: int, tokens: int, most: float, unseen: int, generator: torch.Generator) -> torch.Tensor:
    """Which input tokens ``[rows, tokens]`` to blank: in half of the rows a random share, up to ``most``.

    What a thing is must then be read in the prompt and from further back, not in the token before. The first
    ``unseen`` rows are all blank: there where a thing goes must be read in the prompt too.
    """
    share = torch.rand(rows, 1, generator=generator) * most * (torch.rand(rows, 1, generator=generator) < 0.5)
    share[:unseen] = 1.0
    return torch.rand(rows, tokens, generator=generator) < share


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write atomically: a crash leaves the previous checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def check_resumes(path: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` where what a checkpoint says of its model is not what the settings ask for.

    Shapes alone do not tell: weights of other heads, or of other words in the same number, would be read as if nothing
    were wrong.
    """
    for name, wanted in asked.items():
        there = found.get(name)
        a, b = (list(value) if isinstance(value, (list, tuple)) else value for value in (there, wanted))
        if a != b:
            told = f"{name} {a}, not {b}" if len(f"{a}{b}") < 200 else f"other {name}"
            raise ValueError(f"{path} was trained with {told}: use its settings or another folder")


def mixed_precision(device: torch.device) -> AbstractContextManager[None]:
    """Matrix products in bfloat16, unless the processor would emulate them, many times slower than in float32."""
    native = device.type != "cpu" or any(
        there for name, there in torch.cpu.get_capabilities().items() if name.endswith("bf16")
    )
    return torch.autocast(device.type, torch.bfloat16, enabled=native)


def attention_kernels(device: torch.device) -> AbstractContextManager[None]:
    """Kernels for training: on CPU plain products, four times as fast backwards as the fused kernel here."""
    if device.type != "cpu":
        return nullcontext()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # products in bf16, also on CPU
    return sdpa_kernel(SDPBackend.MATH)


def keep_freed_memory() -> None:
    """Tell glibc not to hand freed tensors back to the kernel: page faults took a third of a CPU step."""
    trim_threshold, mmap_threshold = -1, -3
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)
    except (OSError, AttributeError):  # not glibc
        pass


def pick_device() -> torch.device:
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        return torch.device("cuda")
    torch.set_flush_denormal(True)
    keep_freed_memory()
    return torch.device("cpu")
