"""``PYTHONPATH=. python tests/fake_card.py``: caches on a device without numbers, to tell what lies where.

PyTorch follows shapes, dtypes and devices of such tensors, and refuses operations on two devices as CUDA would. A
process of its own, as a device once made known stays known. ``--mixed`` forgets to send tables along, to see that this
is found.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from test_cache import calls, mixed, play, random_schedule
from torch._subclasses import fake_tensor
from torch.utils import backend_registration

from heatkv.budget import MIXED
from heatkv.cache import attention
from heatkv.cache.seam import KVCache, ScheduleCache
from heatkv.calibration import CalibratingCache
from heatkv.scales import Geometry, ScaleSchedule

backend_registration._setup_privateuseone_for_python_backend("card")
CARD = torch.device("card:0")
GEOMETRY = Geometry(2, 3, 8, ScaleSchedule.square((1, 2, 3, 4)))
LINES = Geometry(2, 3, 8, ScaleSchedule.lines(condition=2, height=3, width=2))


def run(make: Callable[[], KVCache], geometry: Geometry, dtype: torch.dtype = torch.float32) -> None:
    """Draw one image's worth of attention on the card."""
    with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
        qkv = [
            [
                torch.empty(3, 2, geometry.heads, n, geometry.head_dim, device=CARD, dtype=dtype)
                for _ in range(geometry.layers)
            ]
            for n in map(geometry.scales.tokens_a_call, calls(geometry.scales))
        ]
        outs = play(make(), qkv)
    assert {(out.device, out.dtype) for out in outs} == {(CARD, dtype)}


def stored(geometry: Geometry, storage: str) -> Callable[[], KVCache]:
    schedule = random_schedule(geometry, 0.7, 1)
    planned = mixed(schedule) if storage == MIXED else replace(schedule, storage=storage, budget=1.0)
    return lambda: ScheduleCache(geometry, planned)


def flash_varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, q_ends: torch.Tensor, k_ends: torch.Tensor, *longest: int
) -> torch.Tensor:
    """The shape of what the kernel gives; all it reads has to be on its device."""
    return q + (k.sum() + v.sum() + q_ends.sum() + k_ends.sum())


def main() -> None:
    fake_tensor.CONSTANT_NUMEL_LIMIT = -1  # else single numbers, or none, are computed, which the card can not
    if "--mixed" in sys.argv:
        attention.to_device = lambda x, device: x
    run(stored(GEOMETRY, "compute"), GEOMETRY)
    run(stored(GEOMETRY, MIXED), GEOMETRY, torch.bfloat16)
    for storage in ("compute", "int8", MIXED):
        run(stored(LINES, storage), LINES)
    for geometry in (GEOMETRY, LINES):
        run(lambda geometry=geometry: CalibratingCache(geometry, rows=1), geometry)
    attention.has_varlen, attention.flash_varlen = lambda *_: True, flash_varlen  # as on CUDA
    for storage in ("compute", MIXED):
        run(stored(GEOMETRY, storage), GEOMETRY, torch.bfloat16)
    print("all on the card")


if __name__ == "__main__":
    main()
