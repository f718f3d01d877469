"""The commands and their options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from heatkv import __version__
from heatkv.cli.commands import cmd_calibrate, cmd_generate, cmd_models, cmd_plan
from heatkv.cli.studies import cmd_bench, cmd_compare
from heatkv.files import one_line


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {one_line(message, 300)} (see {self.prog} --help)\n")


def sampling_options(parser: OneLineParser) -> None:
    """How tokens are drawn; what is left out is the model's own setting (`models --json` lists it, and whose it is)."""
    parser.add_argument(
        "--guidance",
        help="of all scales, or a list of one a scale (Infinity); VAR: of the last scale, published cfg + 1",
    )
    parser.add_argument("--temperature", type=float, help="divides the logits (published as tau)")
    parser.add_argument("--top-k", type=int, help="values that may be drawn, 0: all (no use for the bits of Infinity)")
    parser.add_argument("--top-p", type=float, help="probability that the values that may be drawn make up, 0: all")
    parser.add_argument("--negative", help="a prompt to move away from (Infinity)")
    parser.add_argument("--smooth", action="store_true", default=None, help="mixtures of codes (VAR's more_smooth)")


def make_parser() -> OneLineParser:
    parser = OneLineParser(
        prog="heatkv", description="Head-specific KV-cache budgets for visual autoregressive models."
    )
    parser.add_argument("--version", action="version", version=f"heatkv {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Any, what: str, *, model: bool = True) -> OneLineParser:
        sub: OneLineParser = commands.add_parser(name, help=what, description=what)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
        if model:
            sub.add_argument("--model", default="pocket", help="model name (see `models`) or folder")
            sub.add_argument("--device", help="cpu, cuda, mps (default: the fastest there is)")
            sub.add_argument("--dtype", choices=["float32", "bfloat16"], help="compute dtype (default: by device)")
        return sub

    sub = command("models", cmd_models, "list the models", model=False)
    sub.add_argument("--download", metavar="NAME", help="fetch a published model's files from its hub first")

    sub = command("generate", cmd_generate, "generate one image")
    sub.add_argument("--prompt", required=True)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument(
        "--budget", type=float, help="share of the full cache's peak, for example 0.3 (default: full cache)"
    )
    sub.add_argument("--policy", help="how the budget is spent, such as heatkv:sinks=1 (default: heatkv)")
    sub.add_argument("--storage", help="how cells are stored, such as int8 or int4 (default: as the policy does)")
    sub.add_argument("--scores", type=Path, help="calibration to plan from (default: the bundled one)")
    sub.add_argument("--schedule", type=Path, help="a schedule file instead of a budget")
    sampling_options(sub)
    sub.add_argument("--out", type=Path, required=True, help="PNG file to write")

    sub = command("calibrate", cmd_calibrate, "measure where every head looks")
    sub.add_argument(
        "--prompts",
        type=Path,
        help="text file, one prompt a line (default: the bundled ones, or a published model's examples)",
    )
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--batch", type=int, default=1, help="prompts at a time")
    sampling_options(sub)
    sub.add_argument("--out", type=Path, required=True, help="scores file to write (safetensors)")

    sub = command("plan", cmd_plan, "plan a schedule for a budget", model=False)
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--scores", type=Path, help="scores file of `calibrate`")
    source.add_argument("--orders", type=Path, help="head orders in the published JSON format (needs --model)")
    sub.add_argument("--model", help="model of the orders, for example infinity-2b; its weights are not needed")
    sub.add_argument("--budget", type=float, required=True)
    sub.add_argument("--policy", default="heatkv")
    sub.add_argument("--sink-scales", type=int, help="leading segments that always stay (default: 3; by lines 1)")
    sub.add_argument("--storage", help="how cells are stored, such as int8 or int4 (default: as the policy does)")
    sub.add_argument("--seed", type=int, default=0, help="for policies that roll dice")
    sub.add_argument("--out", type=Path, required=True, help="schedule file to write (JSON)")

    sub = command("compare", cmd_compare, "compare policies with the full cache over many prompts", model=False)
    sub.add_argument("--model", default="pocket", help="model name or folder, or several with commas between")
    sub.add_argument("--device", help="cpu, cuda, mps (default: the fastest there is)")
    sub.add_argument("--dtype", choices=["float32", "bfloat16"], help="compute dtype (default: by device)")
    sub.add_argument(
        "--prompts", type=Path, required=True, help="text file, one prompt a line; none used for calibration"
    )
    sub.add_argument("--budgets", default="0.5,0.3,0.2,0.1")
    sub.add_argument(
        "--policies", default="all",
        help="names with commas between, options behind a colon: heatkv:sinks=1,storage=int8,h2o (default: all)",
    )  # fmt: skip
    sub.add_argument("--baseline", default="heatkv", help="the policy that the others are compared with")
    sub.add_argument("--scores", type=Path, help="calibration to plan from (default: the bundled one)")
    sub.add_argument("--seeds", type=int, default=2, help="seeds a prompt")
    sub.add_argument(
        "--random-orders", dest="orders_count", type=int, default=5, help="orders that `random` is averaged over"
    )
    sub.add_argument("--batch", type=int, default=8, help="images at a time")
    sub.add_argument("--shards", type=Path, help="folder for finished pieces: run again to go on where it ended")
    sub.add_argument("--workers", type=int, default=1, help="processes on this machine")
    sub.add_argument("--threads", type=int, default=1, help="threads of each process")
    sub.add_argument("--engine", default="local", help="local, or ray: the machines of a Ray cluster")
    sub.add_argument("--out", type=Path, required=True, help="results file to write (JSON; tables beside it, as .md)")

    sub = command("bench", cmd_bench, "measure speed and memory, full cache against budgets")
    sub.add_argument("--random-init", action="store_true", help="a published model's full size with random weights")
    sub.add_argument("--budgets", default="1,0.5,0.3,0.1", help="shares of the full peak")
    sub.add_argument("--policy", default="heatkv", help="how budgets are spent (default: heatkv)")
    sub.add_argument("--batch", default="1,2,4,8", help="images at a time")
    sub.add_argument("--repeats", type=int, default=5)
    sub.add_argument("--scores", type=Path, help="calibration to plan from (default: bundled, or random orders)")
    sub.add_argument("--out", type=Path, help="results file to write (JSON; tables beside it, as .md)")

    commands.add_parser("app", help="serve the explorer in the browser", add_help=False)
    return parser
