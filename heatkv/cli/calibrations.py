"""What more calibration prompts bring, as a table and its numbers: the command of `heatkv.study.calibrations`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from heatkv.cli.arguments import list_of, read_prompts, say, variants
from heatkv.files import write_atomic
from heatkv.study.calibrations import calibrations, markdown
from heatkv.study.tables import MEASURE_WORDS


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m heatkv.cli.calibrations", description="What more calibration prompts bring, as a table."
    )
    parser.add_argument("--model", default="pocket", help="model name or folder")
    parser.add_argument(
        "--calibration", type=Path, required=True, nargs="+", metavar="FILE",
        help="prompts to calibrate on, the first ones first; several files are several kinds, named by their files",
    )  # fmt: skip
    parser.add_argument("--prompts", type=Path, required=True, help="prompts to compare on; left out of the others")
    parser.add_argument("--sizes", default="3,10,28", help="numbers of calibration prompts")
    parser.add_argument("--repeats", type=int, default=1, help="calibrations of a size: the second on, other prompts")
    parser.add_argument("--budgets", default="0.3,0.1")
    parser.add_argument("--policies", default="heatkv:sinks=1,heatkv+")
    parser.add_argument("--shards", type=Path, help="folder for finished pieces: run again to go on where it ended")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write; the numbers beside it as JSON")
    options = parser.parse_args(arguments)
    try:
        if len({path.stem for path in options.calibration}) < len(options.calibration):
            raise ValueError("kinds are named by their files: give files of different names")
        if options.out.suffix == ".json":
            raise ValueError(f"--out {options.out}: a Markdown file is written, and the numbers beside it as JSON")
        study = calibrations(
            options.model, {path.stem: read_prompts(path) for path in options.calibration},
            read_prompts(options.prompts), list_of(int, options.sizes), list_of(float, options.budgets),
            variants(options.policies), repeats=options.repeats, shards=options.shards, progress=say,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    typed = (
        f"python -m heatkv.cli.calibrations --model {options.model} "
        f"--calibration {' '.join(map(str, options.calibration))} --prompts {options.prompts} --sizes {options.sizes} "
        f"--repeats {options.repeats} --budgets {options.budgets} --policies {options.policies} --out {options.out}"
    )
    text = (
        f"# Calibration prompts\n\nWritten by\n\n```bash\n{typed}\n```\n\n{MEASURE_WORDS[study['measure']]}; planned "
        "from so many prompts of a kind: the mean of the repeats and, in brackets, from where to where they go "
        "(from the second on, other prompts of the kind and other seeds). The correlation is Spearman's, of what cells "
        f"lose, with the largest calibration of the first kind.\n\n{markdown(study)}\n"
    )
    write_atomic(options.out.with_suffix(".json"), (json.dumps(study) + "\n").encode())
    write_atomic(options.out, text.encode())
    print(markdown(study))
    return 0


if __name__ == "__main__":
    sys.exit(main())
