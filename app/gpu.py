"""ZeroGPU, where there is one: on a Hugging Face Space the model's jobs borrow a GPU; elsewhere nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import spaces
except ImportError:
    spaces = None


def gpu(job: Callable[..., Any], seconds: int) -> Callable[..., Any]:
    """``job``, with a GPU for at most so many seconds where one is to be borrowed."""
    return job if spaces is None else spaces.GPU(duration=seconds)(job)
