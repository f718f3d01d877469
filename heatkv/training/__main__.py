"""``python -m heatkv.training``: make the bundled model again, from the pictures to the model folder."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import torch

from heatkv.cli import say
from heatkv.cli.arguments import read_prompts
from heatkv.files import check_writable, write_atomic
from heatkv.models import bundled_scores, load
from heatkv.models.bundled import SYNONYMS
from heatkv.threads import keep_to_own_cores
from heatkv.training import (
    blind,
    codebook,
    data,
    evaluate,
    export,
    lines,
    loop,
    restore,
    scenes,
    sheet,
    synonyms,
    tokenizer,
    transformer,
)  # fmt: skip

GUIDE = """\
the pictures, then one of the two models (settings default to the recipe for two CPU cores):
  python -m heatkv.training data        --folder runs/emoji

by scales:                                            by lines:
  ... tokenizer   --folder runs/emoji                   ... codebook  --folder runs/emoji
  ... transformer --folder runs/emoji                   ... lines     --folder runs/emoji
  ... export      --folder runs/emoji --out FOLDER      ... export    --folder runs/emoji --out FOLDER --lines
then for each:
  ... synonyms  --folder runs/emoji --model FOLDER
  ... calibrate --model FOLDER --prompts assets/prompts/scenes-calibration.txt
  ... sheet     --model FOLDER --prompts assets/prompts/scenes-evaluation.txt --out sheet.webp
  ... evaluate  --folder runs/emoji --model FOLDER --out evaluation.json
  ... blind     --model FOLDER --out FOLDER/blind

Stages resume from their last checkpoint. heatkv/training/README.md has the whole recipe, also for a GPU.
"""
DRY_RUN = "a few tiny steps on few pictures, to see that everything runs; keeps to the folder dry-run in --folder"
DRY_RUN_THINNING = 10
STAGES = {
    "tokenizer": ("stage 1 of the model by scales", tokenizer.TokenizerRun),
    "transformer": ("stage 2 of the model by scales", transformer.TransformerRun),
    "codebook": ("stage 1 of the model by lines", codebook.CodebookRun),
    "lines": ("stage 2 of the model by lines", lines.LinesRun),
}


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


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m heatkv.training", description="Train the bundled model from scratch.", epilog=GUIDE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("data", help="fetch and prepare the pictures")
    command.add_argument("--folder", type=Path, required=True, help="where data and checkpoints live")
    command.add_argument("--side", type=int, default=128, help="pixels of a side")
    for name, (what, settings) in STAGES.items():
        command = commands.add_parser(name, help=what)
        command.add_argument("--folder", type=Path, required=True, help="where data and checkpoints live")
        add_settings(command, settings)
        command.add_argument("--stop-after", type=int, help="end this call after so many steps, with a checkpoint")
        command.add_argument("--dry-run", action="store_true", help=DRY_RUN)
    command = commands.add_parser("export", help="write the model folder")
    command.add_argument("--folder", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--name", help="of the model; the folder's where it is left out")
    command.add_argument("--lines", action="store_true", help="the model by lines, in place of the one by scales")
    command.add_argument(
        "--keep", type=Path, help="write what is left out, which training needs to go on, to this file"
    )
    command = commands.add_parser("restore", help="make checkpoints of a model folder and of what its export kept")
    command.add_argument("--model", type=Path, required=True)
    command.add_argument("--kept", type=Path, required=True, help="the file of `export --keep`")
    command.add_argument("--folder", type=Path, required=True, help="where checkpoints go")
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
    command = commands.add_parser("blind", help="draw numbered sheets for a reader who does not know the prompts")
    command.add_argument("--model", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True, help="folder for the sheets and their key")
    command = commands.add_parser("evaluate", help="measure how good a model folder is by itself")
    command.add_argument("--folder", type=Path, required=True, help="where the pictures lie")
    command.add_argument("--side", type=int, default=128, help="pixels of a side")
    command.add_argument("--scenes", type=Path, help="prompts of scenes, to compare two seeds of each")
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


def shown(arguments: argparse.Namespace, side: int, everyday: bool) -> scenes.Scenes:
    return scenes.Scenes(load_pictures(arguments, side), scenes.EVERYDAY_SCENES if everyday else scenes.Mix())


def run(arguments: argparse.Namespace) -> None:
    if arguments.command == "data":
        data.download(arguments.folder)
        print(data.prepare(arguments.folder, arguments.side))
    elif arguments.command in STAGES:
        print(train(arguments))
    elif arguments.command == "export":
        save = export.export_lines if arguments.lines else export.export
        save(arguments.folder, arguments.out, arguments.name or arguments.out.resolve().name)
        if arguments.keep:
            restore.keep(arguments.folder, arguments.lines, arguments.keep)
        print(arguments.out)
    elif arguments.command == "restore":
        print(*restore.restore(arguments.model, arguments.kept, arguments.folder), sep="\n")
    elif arguments.command == "synonyms":
        path, things = arguments.model / SYNONYMS, load(arguments.model, "cpu").about().get("things")
        table = synonyms.build(arguments.folder)
        (synonyms.for_things(table, things) if things else table).save(path)
        print(path)
    elif arguments.command == "calibrate":
        export.calibrate_bundled(load(arguments.model), read_prompts(arguments.prompts), arguments.model)
        print(arguments.model / "scores.safetensors")
    elif arguments.command == "sheet":
        sheet.sample_sheet(load(arguments.model), read_prompts(arguments.prompts), arguments.seeds, arguments.out)
        print(arguments.out)
    elif arguments.command == "blind":
        scores = bundled_scores(arguments.model)
        print(*blind.sheets(load(arguments.model), scores, arguments.out), sep="\n")
    elif arguments.command == "evaluate":
        run_evaluation(arguments)


def train(arguments: argparse.Namespace) -> Path:
    """One stage of training; a dry run takes four steps."""
    run, folder, device = (
        settings_of(arguments, STAGES[arguments.command][1]),
        run_folder(arguments),
        loop.pick_device(),
    )
    few = {"steps": 4, "batch": 2, "evaluate_every": 2}
    if isinstance(run, tokenizer.TokenizerRun):
        run = replace(run, **few) if arguments.dry_run else run  # type: ignore[arg-type]
        return tokenizer.train(shown(arguments, run.side, run.everyday), folder, run, device, arguments.stop_after)
    if isinstance(run, codebook.CodebookRun):
        run = replace(run, **few, warm=1, freeze=2) if arguments.dry_run else run  # type: ignore[arg-type]
        return codebook.train(shown(arguments, run.side, run.everyday), folder, run, device, arguments.stop_after)
    few |= {"pool": 16, "start": 8, "grow": 2, "widen": 3}
    if isinstance(run, transformer.TransformerRun):
        run = replace(run, **few, short_batch=2) if arguments.dry_run else run  # type: ignore[arg-type]
        side = tokenizer.side_of(tokenizer.load_trained(folder / "tokenizer.pt"))
        return transformer.train(load_pictures(arguments, side), folder, run, device, arguments.stop_after)
    assert isinstance(run, lines.LinesRun)
    run = replace(run, **few) if arguments.dry_run else run  # type: ignore[arg-type]
    vq, state = codebook.load_trained(folder / "codebook.pt")
    if state["step"] < state["run"]["freeze"]:
        raise ValueError(f"{folder / 'codebook.pt'} is not frozen yet: run `codebook` to step {state['run']['freeze']}")
    side = state["run"]["side"]
    return lines.train(load_pictures(arguments, side), vq, side, folder, run, device, arguments.stop_after)


def run_evaluation(arguments: argparse.Namespace) -> None:
    settings = settings_of(arguments, evaluate.Evaluation)
    assert isinstance(settings, evaluate.Evaluation)
    if arguments.dry_run:
        settings = replace(settings, names=4, draws=1, colours=4, pairs=2)
    check_writable(arguments.out)
    model = load(arguments.model)
    scores = bundled_scores(arguments.model) if (arguments.model / "scores.safetensors").exists() else None
    if scores is None:
        say(f"no calibration in {arguments.model} (`calibrate` makes one): nothing is said of the heads")
    pictures = load_pictures(arguments, arguments.side)
    prompts = read_prompts(arguments.scenes) if arguments.scenes else []
    result = evaluate.evaluate(model, pictures, prompts, scores, settings, say)
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
