"""``python -m heatkv.training``: make the bundled model again, from the pictures to the model folder."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import torch

from heatkv.cli import check_writable, say
from heatkv.files import write_atomic
from heatkv.models import bundled_scores, load
from heatkv.models.infinity.model import SYNONYMS, InfinityModel
from heatkv.training import data, evaluate, export, loop, sheet, synonyms, tokenizer, transformer

GUIDE = """\
the whole recipe (settings default to the one for two CPU cores; a GPU is used where there is one):
  python -m heatkv.training data        --folder runs/emoji
  python -m heatkv.training tokenizer   --folder runs/emoji
  python -m heatkv.training transformer --folder runs/emoji
  python -m heatkv.training export      --folder runs/emoji --out assets/models/pocket
  python -m heatkv.training synonyms    --folder runs/emoji --model assets/models/pocket
  python -m heatkv.training calibrate   --model assets/models/pocket --prompts assets/prompts/calibration.txt
  python -m heatkv.training sheet       --model assets/models/pocket --prompts assets/prompts/sheet.txt --out sheet.png
  python -m heatkv.training evaluate    --folder runs/emoji --model assets/models/pocket --out evaluation.json

tokenizer and transformer resume from their last checkpoint; --dry-run runs a few tiny steps of everything.
"""


def add_settings(parser: argparse.ArgumentParser, settings: type) -> None:
    for field in fields(settings):
        if isinstance(field.default, bool):
            flag = f"--{field.name.replace('_', '-')}"
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default)
            continue
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)


def settings_of(arguments: argparse.Namespace, settings: type) -> object:
    return settings(**{field.name: getattr(arguments, field.name) for field in fields(settings)})


def read_prompts(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m heatkv.training", description="Train the bundled model from scratch.", epilog=GUIDE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (
        ("data", "fetch and prepare the pictures"),
        ("tokenizer", "stage 1"),
        ("transformer", "stage 2"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("--folder", type=Path, required=True, help="where data and checkpoints live")
        command.add_argument("--dry-run", action="store_true", help="a few tiny steps, to see that everything runs")
        if name == "tokenizer":
            add_settings(command, tokenizer.TokenizerRun)
        if name == "transformer":
            add_settings(command, transformer.TransformerRun)
            command.add_argument("--stop-after", type=int, help="end this call after so many steps, with a checkpoint")
    command = commands.add_parser("export", help="write the model folder")
    command.add_argument("--folder", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--name", default="pocket")
    command = commands.add_parser("synonyms", help="write what people may say into a model folder")
    command.add_argument("--folder", type=Path, required=True, help="where the names package lies")
    command.add_argument("--model", type=Path, required=True)
    command = commands.add_parser("calibrate", help="calibrate a model folder and store the scores in it")
    command.add_argument("--model", type=Path, required=True)
    command.add_argument("--prompts", type=Path, required=True)
    command = commands.add_parser("sheet", help="draw a sample sheet")
    command.add_argument("--model", type=Path, required=True)
    command.add_argument("--prompts", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--seeds", type=int, nargs="+", default=[0])
    command = commands.add_parser("evaluate", help="measure how good a model folder is by itself")
    command.add_argument("--folder", type=Path, required=True, help="of the run it came from: data and tokenizer")
    command.add_argument("--model", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True, help="JSON file to write")
    command.add_argument("--markdown", action="store_true", help="print the tables of the model card")
    command.add_argument("--dry-run", action="store_true", help="a few names, to see that everything runs")
    add_settings(command, evaluate.Evaluation)
    return parser


def run(arguments: argparse.Namespace) -> None:
    if arguments.command == "data":
        if not arguments.dry_run:
            data.download(arguments.folder)
        print(data.prepare(arguments.folder))
    elif arguments.command == "tokenizer":
        settings = settings_of(arguments, tokenizer.TokenizerRun)
        assert isinstance(settings, tokenizer.TokenizerRun)
        if arguments.dry_run:
            settings = replace(settings, steps=4, batch=4, evaluate_every=2)
        tokenizer.train(data.load(arguments.folder / "emoji64.npz"), arguments.folder, settings, loop.pick_device())
    elif arguments.command == "transformer":
        plan = settings_of(arguments, transformer.TransformerRun)
        assert isinstance(plan, transformer.TransformerRun)
        if arguments.dry_run:
            plan = replace(plan, steps=4, batch=2, short_batch=2, evaluate_every=2)
        dataset = data.load(arguments.folder / "emoji64.npz")
        transformer.train(dataset, arguments.folder, plan, loop.pick_device(), arguments.stop_after)
    elif arguments.command == "export":
        export.export(arguments.folder, arguments.out, arguments.name)
        print(arguments.out)
    elif arguments.command == "synonyms":
        path = arguments.model / SYNONYMS
        synonyms.build(arguments.folder).save(path)
        print(path)
    elif arguments.command == "calibrate":
        export.calibrate_bundled(load(arguments.model), read_prompts(arguments.prompts), arguments.model)
        print(arguments.model / "scores.safetensors")
    elif arguments.command == "sheet":
        sheet.sample_sheet(load(arguments.model), read_prompts(arguments.prompts), arguments.seeds, arguments.out)
        print(arguments.out)
    elif arguments.command == "evaluate":
        run_evaluation(arguments)


def run_evaluation(arguments: argparse.Namespace) -> None:
    settings = settings_of(arguments, evaluate.Evaluation)
    assert isinstance(settings, evaluate.Evaluation)
    if arguments.dry_run:
        settings = replace(settings, names=4, draws=1, colours=4)
    check_writable(arguments.out)
    model = load(arguments.model)
    if not isinstance(model, InfinityModel):
        raise ValueError(f"{arguments.model} is not a model that was trained here")
    device = loop.pick_device()
    autoencoder = tokenizer.load_trained(arguments.folder / "tokenizer.pt").to(device)
    scores = bundled_scores(arguments.model) if (arguments.model / "scores.safetensors").exists() else None
    if scores is None:
        say(f"no calibration in {arguments.model} (`calibrate` makes one): nothing is said of the heads")
    dataset = data.load(arguments.folder / "emoji64.npz")
    result = evaluate.evaluate(model, autoencoder, dataset, scores, settings, say)
    write_atomic(arguments.out, (json.dumps(result, indent=1) + "\n").encode())
    print(evaluate.markdown(result) if arguments.markdown else arguments.out)


def main() -> int:
    try:
        run(make_parser().parse_args())
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the last checkpoint is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
