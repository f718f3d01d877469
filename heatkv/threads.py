"""How many threads a program computes with where it has fewer cores than the machine."""

from __future__ import annotations

import os
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
