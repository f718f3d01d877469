"""``python -m heatkv.training``: make the bundled model again, from the pictures to the model folder."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import torch

from heatkv.cli import say
from heatkv.files import check_writable, write_atomic
from heatkv.models import bundled_scores, load
from heatkv.models.bundled import SYNONYMS
from heatkv.models.infinity.model import InfinityModel
from heatkv.threads import keep_to_own_cores
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

tokenizer and transformer resume from their last checkpoint. heatkv/training/README.md has the recipe for a GPU.
"""
DRY_RUN = "a few tiny steps on few pictures, to see that everything runs; keeps to the folder dry-run in --folder"
DRY_RUN_THINNING = 30


def add_settings(parser: argparse.ArgumentParser, settings: type) -> None:
    for field in fields(settings):
        if isinstance(field.default, bool):
            flag = f"--{field.name.replace('_', '-')}"
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default)
            continue
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(field.default, tuple):
            parser.add_argument(flag, type=type(field.default[0]), nargs="+", default=field.default)
            continue
        parser.add_argument(flag, type=type(field.default), default=field.default)


def settings_of(arguments: argparse.Namespace, settings: type) -> object:
    values = {field.name: getattr(arguments, field.name) for field in fields(settings)}
    return settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


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
        if name == "data":
            command.add_argument("--side", type=int, default=64, help="pixels of a side")
            continue
        add_settings(command, tokenizer.TokenizerRun if name == "tokenizer" else transformer.TransformerRun)
        command.add_argument("--stop-after", type=int, help="end this call after so many steps, with a checkpoint")
        command.add_argument("--dry-run", action="store_true", help=DRY_RUN)
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
    command.add_argument("--dry-run", action="store_true", help=DRY_RUN)
    add_settings(command, evaluate.Evaluation)
    return parser


def run_folder(arguments: argparse.Namespace) -> Path:
    """Where checkpoints lie; a dry run has a place of its own."""
    folder: Path = arguments.folder
    return folder / "dry-run" if arguments.dry_run else folder


def load_pictures(arguments: argparse.Namespace, side: int) -> data.Dataset:
    dataset = data.load(data.pictures_path(arguments.folder, side))
    return dataset.thinned(DRY_RUN_THINNING) if arguments.dry_run else dataset


def run(arguments: argparse.Namespace) -> None:
    if arguments.command == "data":
        data.download(arguments.folder)
        print(data.prepare(arguments.folder, arguments.side))
    elif arguments.command == "tokenizer":
        settings = settings_of(arguments, tokenizer.TokenizerRun)
        assert isinstance(settings, tokenizer.TokenizerRun)
        folder = run_folder(arguments)
        if arguments.dry_run:
            settings = replace(settings, steps=4, batch=4, evaluate_every=2)
            for name in ("tokenizer.pt", "transformer.pt"):  # of an earlier dry run
                (folder / name).unlink(missing_ok=True)
        pictures = load_pictures(arguments, settings.side)
        print(tokenizer.train(pictures, folder, settings, loop.pick_device(), arguments.stop_after))
    elif arguments.command == "transformer":
        plan = settings_of(arguments, transformer.TransformerRun)
        assert isinstance(plan, transformer.TransformerRun)
        if arguments.dry_run:
            plan = replace(plan, steps=4, batch=2, short_batch=2, evaluate_every=2)
        folder = run_folder(arguments)
        side = tokenizer.side_of(tokenizer.load_trained(folder / "tokenizer.pt"))
        pictures = load_pictures(arguments, side)
        print(transformer.train(pictures, folder, plan, loop.pick_device(), arguments.stop_after))
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
    autoencoder = tokenizer.load_trained(run_folder(arguments) / "tokenizer.pt").to(device)
    scores = bundled_scores(arguments.model) if (arguments.model / "scores.safetensors").exists() else None
    if scores is None:
        say(f"no calibration in {arguments.model} (`calibrate` makes one): nothing is said of the heads")
    pictures = load_pictures(arguments, tokenizer.side_of(autoencoder))
    result = evaluate.evaluate(model, autoencoder, pictures, scores, settings, say)
    write_atomic(arguments.out, (json.dumps(result, indent=1) + "\n").encode())
    print(evaluate.markdown(result) if arguments.markdown else arguments.out)


def main() -> int:
    keep_to_own_cores()
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
