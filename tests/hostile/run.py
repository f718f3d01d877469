"""``python tests/hostile/run.py [--cli 650]``: generated hostile command lines, none of which may do wrong.

A case may succeed, or end with exit code 2 and one line; within 10 s and 1.5 GB; nothing half-written, no traceback.
``--case 17`` repeats one. Exit code 1 where a case did wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process that has computed with several threads can not be forked
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

from cli_cases import make_case  # noqa: E402
from runner import Outcome, empty, run, violations  # noqa: E402
from world import World, make_world  # noqa: E402


def run_cli_case(number: int, seed: int, world: World) -> tuple[list[str], Outcome, list[str]]:
    """Arguments of a case, how it ended, and what was wrong with that."""
    scratch = world.root / "scratch"
    scratch.mkdir(exist_ok=True)
    arguments = make_case(number, seed, world, scratch)
    outcome = run(arguments, world.out)
    empty(scratch)
    empty(world.out)
    return arguments, outcome, violations(outcome)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cli", type=int, default=650, help="command lines to run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run this one alone and show what it says")
    options = parser.parse_args()
    started, wrong, ends = time.monotonic(), 0, Counter[str]()
    with tempfile.TemporaryDirectory(prefix="heatkv-hostile-") as folder:
        world = make_world(Path(folder))
        for number in range(options.cli) if options.case is None else [options.case]:
            arguments, outcome, found = run_cli_case(number, options.seed, world)
            ends[str(outcome.code)] += 1
            if found or options.case is not None:
                wrong += bool(found)
                shown = " ".join(word if len(word) < 80 else f"{word[:70]}…({len(word)})" for word in arguments)
                print(f"case {number}: {'; '.join(found)}\n  {shown!a}\n  {outcome.err[-700:]!a}", flush=True)
    minutes = (time.monotonic() - started) / 60
    print(f"{sum(ends.values())} command lines in {minutes:.1f} min: exit codes {dict(ends)}, {wrong} did wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
