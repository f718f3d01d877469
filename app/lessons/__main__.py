"""``python -m app.lessons --model pocket``: count what the lessons' answers stand on, and choose what they show."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from app.lessons.chosen import FILE
from heatkv.cli.arguments import read_prompts
from heatkv.files import program_root, write_atomic
from heatkv.views.counts import count_steps

PROMPTS, KNOCKED = 16, 3
COUNTED_ON = program_root() / "assets" / "prompts" / "things.txt"  # none calibrated on


def main(arguments: Sequence[str] | None = None) -> None:
    from app.report import usual_psnr
    from app.strips import bundled_fingerprint
    from heatkv.models import bundled_scores, find_folder, load

    parser = argparse.ArgumentParser(
        prog="python -m app.lessons", description="Count what the lessons' answers stand on."
    )
    parser.add_argument("--model", default="pocket", help="a bundled model")
    parser.add_argument("--prompts", type=Path, default=COUNTED_ON, help="what to count on, one a line")
    options = parser.parse_args(arguments)
    model, folder = load(options.model, "cpu", "float32"), find_folder(options.model)
    prompts = read_prompts(options.prompts)[:PROMPTS]
    comparison = folder / "comparison.json"
    other = usual_psnr(json.loads(comparison.read_text())["references"]["other_seed"]) if comparison.is_file() else None
    for step in count_steps(model, bundled_scores(options.model), prompts, KNOCKED, other):
        if isinstance(step, str):
            print(step, flush=True)
            continue
        found = {"weights": bundled_fingerprint(options.model), "counts": step}
        write_atomic(folder / FILE, (json.dumps(found, indent=1) + "\n").encode())
        print(folder / FILE)


if __name__ == "__main__":
    main()
