"""``python tests/hostile/run.py [--cli 650 --api 700]``: generated hostile input, none of which may do wrong.

A command line may succeed, or end with exit code 2 and one line; within 10 s of processor time and 1.5 GB; nothing
half-written, no traceback. Each runs in a process of its own, forked off this one, which has imported what it needs. A
payload is answered within 10 s, in words, without a path or a traceback, and the server still serves.
``--first 130 --cli 130`` goes on with the cases after the first 130, ``--case 17`` repeats a command line. Exit code 1
where a case did wrong.
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

import httpx  # noqa: E402
from api_cases import make_payload  # noqa: E402
from api_cases import violations as api_violations  # noqa: E402
from cli_cases import make_case  # noqa: E402
from runner import Outcome, empty, run, violations  # noqa: E402
from served import call, payload, resident, served  # noqa: E402
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


def run_payloads(numbers: range, seed: int) -> int:
    """Send these payloads, one after the other; how many did wrong."""
    started, wrong, statuses, peak = time.monotonic(), 0, Counter[int](), 0
    with served(1800) as (url, process), httpx.Client(timeout=60) as client:
        for number in numbers:
            name, body = make_payload(number, seed)
            status, answer, seconds = call(client, url, name, body)
            statuses[status] += 1
            peak = max(peak, resident(process))
            found = api_violations(status, answer, seconds)
            if peak > 1_500_000_000:
                found.append(f"the server holds {peak / 1e9:.2f} GB")
            if found:
                wrong += 1
                print(
                    f"payload {number}: {'; '.join(found)}\n  /{name} {body[:300]!a}\n  {answer[-500:]!a}", flush=True
                )
        status, answer, _ = call(client, url, "plan", payload(0.5, "heatkv", ""))
        if status != 200 or "drop_at" not in answer:
            wrong += 1
            print("the server does not serve any more")
    minutes = (time.monotonic() - started) / 60
    held = f"the server held {peak / 2**20:.0f} MB at most"
    print(f"{len(numbers)} payloads in {minutes:.1f} min: statuses {dict(statuses)}, {held}, {wrong} did wrong")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cli", type=int, default=650, help="command lines to run")
    parser.add_argument("--api", type=int, default=700, help="payloads to send to the app's endpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="run this one alone and show what it says")
    options = parser.parse_args()
    started, wrong, ends = time.monotonic(), 0, Counter[str]()
    slowest, largest = 0.0, 0
    with tempfile.TemporaryDirectory(prefix="heatkv-hostile-") as folder:
        world = make_world(Path(folder))
        last = options.first + options.cli
        for number in range(options.first, last) if options.case is None else [options.case]:
            arguments, outcome, found = run_cli_case(number, options.seed, world)
            ends[str(outcome.code)] += 1
            slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.peak_bytes)
            if found or options.case is not None:
                wrong += bool(found)
                shown = " ".join(word if len(word) < 80 else f"{word[:70]}…({len(word)})" for word in arguments)
                print(f"case {number}: {'; '.join(found)}\n  {shown!a}\n  {outcome.err[-700:]!a}", flush=True)
    minutes = (time.monotonic() - started) / 60
    most = f"at most {slowest:.1f} s and {largest / 1e9:.2f} GB, {wrong} did wrong"
    print(f"{sum(ends.values())} command lines in {minutes:.1f} min: exit codes {dict(ends)}, {most}")
    if options.case is None and options.api:
        wrong += run_payloads(range(options.first, options.first + options.api), options.seed)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
