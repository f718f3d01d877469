"""Who computes shards: this process, several processes of this machine, or the machines of a Ray cluster.

Each way yields ``(shard, bytes of its file)`` as they come. A worker that is lost costs a retry of what it was at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from heatkv.shards import Setting, Shard, ShardError, execute

ENGINES = ("local", "ray")
RETRIES = 3  # of a shard whose worker is lost, without a shard finished in between


@dataclass(frozen=True, eq=False)
class Task:
    """A shard to compute, and what it is scored against."""

    shard: Shard
    fingerprint: str
    full: bytes | None = None
    full_fingerprint: str = ""


Done = Iterator[tuple[Shard, bytes]]
Say = Callable[[str], None]


def run_tasks(setting: Setting, tasks: Sequence[Task], workers: int, engine: str, say: Say) -> Done:
    """Compute all tasks with ``workers`` processes here, or on a Ray cluster, which knows its own number."""
    if engine == "ray":
        return _on_ray(setting, tasks)
    return _in_processes(setting, tasks, workers, say) if workers > 1 else _here(setting, tasks)


def check_engine(engine: str) -> None:
    """Raise `ShardError` unless ``engine`` is one that is installed."""
    if engine not in ENGINES:
        raise ShardError(f"there is no engine {engine!r}; choose one of {', '.join(ENGINES)}")
    if engine == "ray":
        _ray()


def _compute(setting: Setting, task: Task) -> bytes:
    return execute(setting, task.shard, task.fingerprint, task.full, task.full_fingerprint)


def _here(setting: Setting, tasks: Sequence[Task]) -> Done:
    for task in tasks:
        yield task.shard, _compute(setting, task)


_setting: Setting | None = None  # of a worker process, given once


def _start(setting: Setting) -> None:
    global _setting
    _setting = setting


def _compute_here(task: Task) -> bytes:
    assert _setting is not None
    return _compute(_setting, task)


def _in_processes(setting: Setting, tasks: Sequence[Task], workers: int, say: Say) -> Done:
    left = dict(enumerate(tasks))
    losses = 0
    while left:
        count = min(workers, len(left))
        # Spawned, not forked: a fork of a process whose torch has threads may hang.
        pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_start, initargs=(setting,))
        try:
            futures = {pool.submit(_compute_here, task): i for i, task in left.items()}
            for future in as_completed(futures):
                data = future.result()
                losses = 0
                yield left.pop(futures[future]).shard, data
        except BrokenProcessPool:
            losses += 1
            if losses > RETRIES:
                raise ShardError(
                    f"worker processes ended {losses} times in a row; is there enough memory for {workers}? "
                    f"Finished shards are kept: run again with fewer --workers"
                ) from None
            say(f"a worker was lost; {len(left)} shards are tried again")
        finally:
            pool.shutdown(cancel_futures=True)


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers unless told not to
    try:
        import ray
    except ImportError:
        raise ShardError("engine ray needs Ray: `pip install ray`, or leave out --engine") from None
    return ray


def _on_ray(setting: Setting, tasks: Sequence[Task]) -> Done:
    """On the cluster of ``RAY_ADDRESS``, or a local one. Every machine needs this program and the model."""
    ray = _ray()
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    gpus = 1 if setting.device.startswith("cuda") else 0
    remote = ray.remote(num_cpus=setting.threads, num_gpus=gpus, max_retries=RETRIES)(_compute)
    shared = ray.put(setting)
    pending = {remote.remote(shared, task): task.shard for task in tasks}
    try:
        while pending:
            (done, *_), _ = ray.wait(list(pending))
            shard = pending.pop(done)
            try:
                data = ray.get(done)
            except ray.exceptions.RayTaskError:
                raise  # is also of the type of what went wrong
            except ray.exceptions.RayError as error:
                raise ShardError(f"{shard.words}: {str(error).splitlines()[0]}") from error
            yield shard, data
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
