"""Staged offload: on a small card only the part of a model that is at work lies on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from heatkv.scales import Geometry


class Stages:
    """Parts of a model that take turns on ``device`` and wait on the CPU.

    Parameters
    ----------
    parts
        Modules by name, in the order of their turns; on the CPU to start with.
    device
        Where a part works.
    """

    def __init__(self, parts: Mapping[str, nn.Module], device: torch.device) -> None:
        self.parts = dict(parts)
        self.device = device
        self.active: str | None = None

    def use(self, name: str) -> None:
        """Bring a part to the device; whichever was there makes room first."""
        if self.active == name:
            return
        # Outside inference mode: parameters moved inside it could not be used outside any more.
        with torch.inference_mode(False), torch.no_grad():
            if self.active is not None:
                self.parts[self.active].to("cpu")
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
            self.parts[name].to(self.device)
        self.active = name


class Staged:
    """What a model of any family does with its transformer, its autoencoder, and the stages they may take turns in."""

    transformer: Any
    autoencoder: Any
    stages: Stages | None

    @property
    def geometry(self) -> Geometry:
        geometry: Geometry = self.transformer.geometry
        return geometry

    @property
    def device(self) -> torch.device:
        device: torch.device = self.stages.device if self.stages else next(self.transformer.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.transformer.dtype
        return dtype

    def parameter_counts(self) -> dict[str, int]:
        """How many there are, for ``about``."""
        parts = {"transformer_parameters": self.transformer, "decoder_parameters": self.autoencoder.decoder}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}

    def _use(self, part: str) -> None:
        if self.stages:
            self.stages.use(part)
