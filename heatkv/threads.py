"""How many threads a program computes with where it has fewer cores than the machine, and where they take memory."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")


def cores_allowed(cgroup: Path = CGROUP) -> float | None:
    """Cores that the container's quota comes to (cgroup v2, else v1); None without a quota."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = (int(word) for name in names for word in (cgroup / name).read_text().split())
        except (OSError, ValueError):  # no such file, or "max": no quota
            continue
        if quota > 0 and period > 0:
            return quota / period
    return None


def keep_to_own_cores(cgroup: Path = CGROUP) -> None:
    """Compute with no more threads than there are cores to run them, unless OMP_NUM_THREADS says otherwise.

    PyTorch counts the cores of the machine. In a container that may use two of sixty-four, threads beyond the
    second only use up the quota waiting for each other. For programs to call, not libraries.
    """
    allowed = cores_allowed(cgroup)
    if allowed is not None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), int(allowed))))


def share_freed_memory() -> None:
    """Let all threads of this program take memory from one place, so that what one frees serves the next.

    The C library of Linux gives threads places of their own, eight a core, and hardly gives back what is freed there: a
    server with a thread for everybody who waits grows for as long as it runs. Without effect elsewhere, and on threads
    that have computed already. For programs to call, not libraries.
    """
    arena_max = -8  # M_ARENA_MAX of malloc.h
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(arena_max, 1)


def give_back_memory() -> None:
    """Hand what this program has freed back to the system.

    The C library of Linux keeps it where anything later in memory is still in use, and images and calibrations leave
    little that stays between much that goes: thirty visitors' pictures of 35 MB held 330 MB of nothing. Takes 5 to
    20 ms, without effect elsewhere. For programs to call, not libraries.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
