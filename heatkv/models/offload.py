"""Staged offload: on a small card only the part of a model that is at work lies on the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


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
