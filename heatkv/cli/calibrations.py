"""What more calibration prompts bring, as a table: the command of `heatkv.study.calibrations`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from heatkv.cli.arguments import list_of, read_prompts, say, variants
from heatkv.files import write_atomic
from heatkv.study.calibrations import calibrations, markdown


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m heatkv.cli.calibrations", description="What more calibration prompts bring, as a table."
    )
    parser.add_argument("--model", default="pocket", help="model name or folder")
    parser.add_argument("--calibration", type=Path, required=True, help="prompts to calibrate on, the first ones first")
    parser.add_argument("--prompts", type=Path, required=True, help="prompts to compare on, none of the others")
    parser.add_argument("--sizes", default="3,10,30", help="numbers of calibration prompts")
    parser.add_argument("--budgets", default="0.3,0.1")
    parser.add_argument("--policies", default="heatkv:sinks=1,heatkv+")
    parser.add_argument("--shards", type=Path, help="folder for finished pieces: run again to go on where it ended")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    options = parser.parse_args(arguments)
    try:
        results = calibrations(
            options.model, read_prompts(options.calibration), read_prompts(options.prompts),
            list_of(int, options.sizes), list_of(float, options.budgets), variants(options.policies),
            shards=options.shards, progress=say,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    typed = (
        f"python -m heatkv.cli.calibrations --model {options.model} --calibration {options.calibration} "
        f"--prompts {options.prompts} --sizes {options.sizes} --budgets {options.budgets} "
        f"--policies {options.policies} --out {options.out}"
    )
    text = (
        f"# Calibration prompts\n\nWritten by\n\n```bash\n{typed}\n```\n\nPSNR in dB against the full cache, planned "
        "from so many calibration prompts; the correlation is Spearman's, of what cells lose, with the largest "
        f"calibration.\n\n{markdown(results)}\n"
    )
    write_atomic(options.out, text.encode())
    print(markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
