"""Published shapes with random weights, made on the device itself: speed and memory can be measured without a download.

Such a model draws noise, but in the shapes, dtypes and steps of the real one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from heatkv.models.infinity.text import check_prompt
from heatkv.models.infinity.transformer import TextFeatures
from heatkv.models.presets import Preset

MAX_LOG_TEMPERATURE = 4.0  # just below the models' limit of ln 100
M = TypeVar("M", bound=nn.Module)


class RandomText:
    """In place of a text encoder: one random feature a word, the same for the same word."""

    def __init__(self, width: int, max_words: int) -> None:
        self.width = width
        self.max_words = max_words

    def check(self, prompt: str) -> str | None:
        check_prompt(prompt)
        return None

    def _features(self, prompt: str) -> Tensor:
        words = check_prompt(prompt).lower().split()[: self.max_words]
        generators = [torch.Generator().manual_seed(zlib.crc32(word.encode())) for word in words]
        return torch.stack([torch.randn(self.width, generator=generator) for generator in generators])

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        rows = [self._features(prompt) for prompt in prompts]
        lengths = torch.tensor([len(row) for row in rows])
        mask_BN = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
        return TextFeatures(nn.utils.rnn.pad_sequence(rows, batch_first=True), mask_BN)

    def about(self) -> dict[str, Any]:
        return {"text_encoder": "none: random features a word"}


def facts_of(preset: Preset) -> dict[str, Any]:
    # Another name, so that its calibrations and schedules never pass for the real model's.
    return {
        "id": f"{preset.id}-random",
        "summary": f"{preset.summary}; random weights, draws noise",
        "licence": "",
        "source": "random numbers",
        **preset.told,
    }


def drawn(
    make: Callable[[], M], device: torch.device, dtype: torch.dtype = torch.float32, around: torch.dtype = torch.float32
) -> M:
    """A module made on ``device`` with its blocks in ``dtype``, all else in ``around``, random and without gradients.

    Buffers have to be set by the caller.
    """
    with torch.device("meta"):
        module = make().eval().requires_grad_(False)
    for name, child in module.named_children():
        child.to(dtype if name == "blocks" else around)
    module.to_empty(device=device)
    for part in module.modules():
        if callable(reset := getattr(part, "reset_parameters", None)):
            reset()
            continue
        for name, parameter in part.named_parameters(recurse=False):
            draw(name, parameter)
    return module


def draw(name: str, parameter: Tensor) -> None:
    """Random values of a sensible size for a parameter that no layer of torch initialises."""
    if name == "scale_mul_1H11":
        parameter.uniform_(0.0, MAX_LOG_TEMPERATURE)  # heads from flat to sharp: calibration finds differences
    elif name.endswith("bias"):
        parameter.zero_()
    elif name == "weight":  # of a norm
        parameter.fill_(1.0)
    elif name == "ada_gss":
        parameter.normal_(std=0.5)  # gains: every block has a say
    else:
        parameter.normal_(std=0.02)
