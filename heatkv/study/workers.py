"""Who computes shards: this process, several processes of this machine, or the machines of a Ray cluster.

Each way yields ``(shard, bytes of its file)`` as they come. A worker that is lost costs a retry of what it was at.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

from heatkv.study.running import execute
from heatkv.study.shards import Setting, Shard, ShardError

ENGINES = ("local", "ray")
RETRIES = 3  # of a shard whose worker is lost


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


def _serve(link: Connection, setting: Setting) -> None:
    """The life of a worker process: compute what comes until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends its workers
    _allow_interrupts()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            task = link.recv()
        except (EOFError, OSError):  # the other end is closed, or gone with an answer unread
            return
        try:
            answer: Any = _compute(setting, task)
        except (ValueError, OSError, MemoryError) as error:
            answer = error
        except Exception as error:  # not every exception survives the way to the other process
            answer = ShardError(f"{task.shard.words}: {type(error).__name__}: {error}")
        with suppress(OSError):  # a parent that is gone is found out above
            link.send(answer)


def _end_with_parent() -> None:
    """End at once, and quietly, when the parent is gone, however it ended."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(0)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """A process that is started meanwhile hears no Ctrl-C, not even while it imports, until `_allow_interrupts`."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _allow_interrupts() -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _in_processes(setting: Setting, tasks: Sequence[Task], workers: int, say: Say) -> Done:
    """A pipe to every process, so that one that ends costs nothing but what it was at.

    The standard library's pool gives up as a whole, and up to Python 3.12 can hang when a process ends early.
    """
    context = get_context("spawn")  # a fork of a process whose torch has threads may hang
    waiting, losses = list(reversed(tasks)), dict.fromkeys((task.shard for task in tasks), 0)
    idle: list[tuple[Any, Connection]] = []
    busy: dict[Any, tuple[Any, Task]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                process, free = idle.pop() if idle else _hire(context, setting)
                task = waiting.pop()
                with suppress(OSError):  # one that is gone by now is found out below
                    free.send(task)
                busy[free] = process, task
            for ready in wait(list(busy)):
                link: Any = ready  # a Connection, as all that was waited for
                process, task = busy.pop(link)
                try:
                    answer = link.recv()
                except (EOFError, OSError):
                    link.close()
                    process.join()
                    losses[task.shard] += 1
                    if losses[task.shard] > RETRIES:
                        raise ShardError(
                            f"{task.shard.words}: {losses[task.shard]} workers ended at it; is there enough memory for "
                            f"{workers}? Finished shards are kept: run again with fewer --workers"
                        ) from None
                    say(f"a worker was lost; trying again: {task.shard.words}")
                    waiting.append(task)
                    continue
                if isinstance(answer, Exception):
                    raise answer
                idle.append((process, link))
                yield task.shard, answer
    finally:
        for process, link in [*idle, *((process, link) for link, (process, _) in busy.items())]:
            link.close()
            process.kill()
            process.join()


def _hire(context: Any, setting: Setting) -> tuple[Any, Connection]:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, setting), daemon=True)
    with _interrupts_held_back():
        process.start()
    theirs.close()  # the process has the only other end: when it is gone, ours says so
    return process, ours


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
