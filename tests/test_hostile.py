"""Hostile input to the command line: a sample of what ``python tests/hostile/run.py`` generates, and what once hurt."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

if not hasattr(os, "fork"):
    pytest.skip("needs a system with fork", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent / "hostile"))

from cli_cases import make_case
from runner import Outcome, empty, run, violations
from world import World, make_world

from heatkv.files import check_writable, one_line, read_bytes, sweep, write_atomic

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("hostile") / "world")


def refused(world: World, *arguments: object) -> str:
    """Run a command that has to end with exit code 2 and one line, within bounds; the line."""
    outcome = run([str(argument) for argument in arguments], world.out)
    empty(world.out)
    assert violations(outcome) == [], (arguments, outcome)
    assert outcome.code == 2 and outcome.out == "", outcome
    return outcome.err.splitlines()[-1]


# --- a sample of the generated cases ----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", range(6))
def test_generated_command_lines_end_well(world: World, tmp_path: Path, block: int) -> None:
    for number in range(6 * block, 6 * block + 6):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        arguments = make_case(number, 2026, world, scratch)
        outcome = run(arguments, world.out)
        empty(world.out)
        assert violations(outcome) == [], (number, arguments, outcome)


def test_the_runner_sees_what_is_wrong() -> None:
    """The yardstick itself."""
    fine = Outcome(2, "", "error: there is no such thing\n", 0.1, 10**8, [])
    assert violations(fine) == []
    for wrong in (
        {"code": 1}, {"code": None}, {"seconds": 11.0}, {"peak_bytes": 2 * 10**9}, {"left": ["out"]},
        {"err": "Traceback (most recent call last):\nerror: x\n"}, {"err": "error: a\nerror: b\n"}, {"err": ""},
        {"err": "warning\nerror: a\n"}, {"err": f"error: {'x' * 2000}\n"}, {"err": "error: \x00\n"},
    ):  # fmt: skip
        assert violations(Outcome(**{**fine.__dict__, **wrong})), wrong  # type: ignore[arg-type]


# --- model folders ----------------------------------------------------------------------------------------------------


def changed(world: World, folder: Path, change: Callable[[dict], object]) -> Path:
    """A copy of the tiny model with its configuration changed."""
    shutil.copytree(world.good["model"], folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config).replace('"HUGE"', "1e400"))
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["transformer"].update(heads=0), "heads is 0"),
        (lambda c: c["transformer"].update(depth=10**6), "depth is 1000000"),
        (lambda c: c["transformer"].update(depth=3), "lacks blocks.2"),
        (lambda c: c["transformer"].update(width=4), "width"),
        (lambda c: c["transformer"].update(rope_grid=[]), "rope_grid"),
        (lambda c: c["transformer"].update(max_scales=2), "max_scales is 2"),
        (lambda c: c["transformer"].update(more=1), "more"),
        (lambda c: c["autoencoder"].update(width_mult=[]), "width_mult"),
        (lambda c: c["autoencoder"].update(bits=7), "bits"),
        (lambda c: c.update(transformer=None), "transformer is None"),
        (lambda c: c.pop("transformer"), "'transformer' is missing"),
        (lambda c: c.update(scales=None), "scales is None"),
        (lambda c: c.update(scales=[["HUGE", 1]]), "scales[0]"),
        (lambda c: c.update(scales=[[10**9, 1]]), "scales[0]"),
        (lambda c: c.update(scales=[[1, 1]] * 100_000), "100000 scales"),
        (lambda c: c.update(scales=[[4096, 4096]]), "tokens"),
        (lambda c: c.update(sampling={"guidance": "a"}), "guidance"),
        (lambda c: c.update(sampling={"strength": 1}), "strength"),
        (lambda c: c.update(version=2), "version 2"),
        (lambda c: c.update(family="gan"), "family 'gan'"),
        (lambda c: c.update(words=1, text={"words": ["a"], "max_words": 99}), "max_words"),
    ],
)
def test_a_model_folder_that_contradicts_itself_is_refused(
    world: World, tmp_path: Path, change: Callable[[dict], object], words: str
) -> None:
    folder = changed(world, tmp_path / "model", change)
    assert words in refused(world, "generate", "--model", folder, "--prompt", "red apple", "--out", world.out / "a")


@pytest.mark.parametrize("text", ["", "{", "[]" * 9, "[" * 100_000, '{"format": "heatkv-mo'])
def test_a_folder_whose_configuration_is_broken_is_refused_before_others_are_opened(
    world: World, tmp_path: Path, text: str
) -> None:
    beside = tmp_path / "beside.pth"
    beside.write_text("never to be read")
    folder = changed(world, tmp_path / "model", lambda config: None)
    (folder / "config.json").write_text(text)
    line = refused(world, "generate", "--model", folder, "--prompt", "red apple", "--out", world.out / "a")
    assert "config.json" in line and "beside" not in line


def test_a_folder_of_another_format_does_not_pass_for_its_neighbours_part(world: World, tmp_path: Path) -> None:
    """Weights that are no transformer of a known family: nothing beside them is looked at."""
    (tmp_path / "beside.pth").write_text("never to be read")
    folder = changed(world, tmp_path / "model", lambda config: config.pop("format"))
    line = refused(world, "generate", "--model", folder, "--prompt", "red apple", "--out", world.out / "a")
    assert "no transformer of a known family" in line and "beside" not in line


def var_with(world: World, folder: Path, change: Callable[[dict[str, torch.Tensor]], object], name: str) -> Path:
    shutil.copytree(world.good["var"], folder)
    state = torch.load(folder / name, weights_only=True)
    change(state)
    torch.save(state, folder / name)
    return folder


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("transformer.pth", lambda s: s.pop("pos_1LC"), "pos_1LC"),
        ("transformer.pth", lambda s: s.update({"lvl_embed.weight": torch.tensor(1.0)}), "other shapes"),
        ("transformer.pth", lambda s: s.update({"word_embed.weight": torch.tensor(1.0)}), "other shapes"),
        ("transformer.pth", lambda s: s.update({"blocks.99999999.x": torch.zeros(1)}), "99999999"),
        ("transformer.pth", lambda s: s["head.weight"].fill_(torch.nan), "NaN or infinite weights, in head.weight"),
        ("transformer.pth", lambda s: s.update({"head.bias": torch.zeros(9)}), "head.bias is (9,), not (24,)"),
        ("vae.pth", lambda s: s.update({"quantize.quant_resi.9999999.weight": torch.zeros(1)}), "9999999"),
        ("vae.pth", lambda s: s.update({"decoder.x": torch.zeros(1).expand(10**5, 10**5)}), "more numbers than"),
        ("vae.pth", lambda s: s.update({"decoder.x": torch.eye(2).to_sparse()}), "no plain tensor"),
    ],
)  # fmt: skip
def test_weights_that_no_model_has_are_refused(
    world: World, tmp_path: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object], words: str
) -> None:
    folder = var_with(world, tmp_path / "var", change, name)
    assert words in refused(world, "generate", "--model", folder, "--prompt", "3", "--out", world.out / "a")


def test_a_text_and_a_program_in_place_of_weights_are_refused_without_a_warning(world: World, tmp_path: Path) -> None:
    for name, words in (("text.pth", "not a readable PyTorch file"), ("pickle.pth", "could run code")):
        folder = tmp_path / name.removesuffix(".pth")
        shutil.copytree(world.good["var"], folder)
        shutil.copy(world.root / "hostile" / name, folder / "transformer.pth")
        assert words in refused(world, "generate", "--model", folder, "--prompt", "3", "--out", world.out / "a")


def test_a_model_of_nan_draws_no_image(world: World, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = changed(world, tmp_path / "model", lambda config: None)
    for path in folder.glob("model-*.safetensors"):
        save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(path).items()}, path)
    line = refused(world, "generate", "--model", folder, "--prompt", "red apple", "--out", world.out / "a")
    assert "NaN or infinite weights" in line


# --- arguments --------------------------------------------------------------------------------------------------------


def test_arguments_that_were_accepted_in_silence(world: World) -> None:
    good, out = world.good, world.out / "a"
    compare = ("compare", "--prompts", good["prompts"], "--out", out)
    assert "lists nothing" in refused(world, *compare, "--model", "")
    assert "lists nothing" in refused(world, *compare, "--model", good["model"], "--budgets", ",")
    assert "budget nan" in refused(world, *compare, "--model", good["model"], "--budgets", "nan")
    assert "budget nan" in refused(world, "bench", "--model", good["model"], "--budgets", "nan")
    generate = ("generate", "--model", good["model"], "--prompt", "red apple", "--out", out)
    assert "no policy 'nope'" in refused(world, *generate, "--policy", "nope")
    assert "--budget" in refused(world, *generate, "--scores", good["scores"])


@pytest.mark.parametrize("device", ["meta", "hpu", "privateuseone", "cuda:99", "nope", ""])
def test_devices_that_can_not_be_used_are_named(world: World, device: str) -> None:
    arguments = ("generate", "--model", world.good["model"], "--prompt", "red apple", "--out", world.out / "a")
    assert "device" in refused(world, *arguments, "--device", device)
    assert "device" in refused(world, "bench", "--model", "var-d16", "--random-init", "--device", device)


def test_batches_and_counts_out_of_proportion_are_refused_before_the_work(world: World) -> None:
    model = ("--model", world.good["model"])
    assert "images at a time need more than" in refused(world, "bench", *model, "--batch", 10**9)
    assert "images at a time need more than" in refused(world, "bench", *model, "--batch", 10**30)
    assert "repeats" in refused(world, "bench", *model, "--repeats", 10**9)
    compare = ("compare", *model, "--prompts", world.good["prompts"], "--out", world.out / "a")
    for option, words in (("--seeds", "seeds"), ("--workers", "workers"), ("--threads", "threads")):
        assert f"{words} is 1000000000" in refused(world, *compare, option, 10**9)


@pytest.mark.parametrize("name", ["/dev/zero", "sparse.txt", "long_line.txt", "fifo.json", "latin.txt", "blank.txt"])
def test_prompts_are_read_within_bounds(world: World, name: str) -> None:
    path = name if name.startswith("/") else world.root / "hostile" / name
    words = refused(world, "calibrate", "--model", world.good["model"], "--prompts", path, "--out", world.out / "a")
    assert ("larger than 16 MB" in words) == (name in ("/dev/zero", "sparse.txt", "long_line.txt"))


@pytest.mark.parametrize("name", ["lists.json", "deep.json", "deep_objects.json", "lists.safetensors", "digits.json"])
def test_files_that_unpack_to_more_than_they_are_worth_are_refused_at_once(world: World, name: str) -> None:
    path, out = world.root / "hostile" / name, world.out / "a"
    for arguments in (
        ("plan", "--orders", path, "--model", "infinity-2b", "--budget", 0.5, "--out", out),
        ("plan", "--scores", path, "--budget", 0.5, "--out", out),
        ("generate", "--model", world.good["model"], "--prompt", "red apple", "--schedule", path, "--out", out),
    ):
        outcome = run([str(argument) for argument in arguments], world.out)
        assert violations(outcome) == [] and outcome.code == 2, outcome
        assert outcome.seconds < 4, "bounds come before parsing"
        assert outcome.peak_bytes < 500_000_000


@pytest.mark.parametrize("prompt", ["\udcff", "a\x00b", "red \x1b[2J apple"])
def test_a_prompt_of_no_text_is_refused_in_words(world: World, prompt: str) -> None:
    arguments = ("generate", "--model", world.good["model"], "--out", world.out / "a", "--prompt", prompt)
    assert "no text" in refused(world, *arguments)


def test_what_is_echoed_is_short_and_printable(world: World) -> None:
    generate = ("generate", "--model", world.good["model"], "--prompt", "red apple", "--out", world.out / "a")
    for line in (refused(world, *generate, "--seed", "9" * 5000), refused(world, *generate, "--budget", "\x1b[31m")):
        assert len(line) < 400 and line.isprintable()
    assert one_line("a\nb\x00\x1b" + "c" * 9000, 50) == "a b\ufffd\ufffd" + "c" * 43 + " …"


# --- output -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["/dev/full", "/dev/null", "/proc/a.png", "/nowhere/a.png", "x" * 300, "."])
def test_an_output_that_can_not_be_written_is_noticed_before_the_work(world: World, out: str) -> None:
    started = time.monotonic()
    path = out if out.startswith("/") else world.out / out
    line = refused(world, "generate", "--model", "nope", "--prompt", "red apple", "--out", path)
    assert "nope" not in line, "the output is tried first"
    assert time.monotonic() - started < 5
    assert Path("/dev/null").is_char_device() and Path("/dev/full").is_char_device()


@pytest.mark.parametrize(
    "command",
    [["generate", "--model", "nope", "--prompt", "x"], ["plan", "--scores", "nope", "--budget", "0.5"],
     ["calibrate", "--model", "nope"], ["compare", "--model", "nope", "--prompts", "nope"]],
    ids=lambda command: command[0],
)  # fmt: skip
def test_a_full_disk_is_noticed_before_the_work(tmp_path: Path, command: list[str]) -> None:
    """Files may not grow beyond 100 kB here: as on a full disk, writing more fails."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); from heatkv.cli import main; "
        f"sys.exit(main({[*command, '--out', str(tmp_path / 'a.png')]!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "can not be written" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("redirect", [">/dev/full", ">&-", "2>&- >/dev/full", "| true"])
def test_a_standard_output_that_takes_nothing_ends_in_one_line(redirect: str) -> None:
    command = f"set -o pipefail; {sys.executable} -m heatkv models --json {redirect}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode in ((0, 2) if redirect == "| true" else (2,))
    assert done.stdout == "" and "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert done.stderr.count("\n") == (0 if "2>&-" in redirect or done.returncode == 0 else 1)


def test_what_a_killed_write_left_is_swept_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    code = (
        "import os, sys; from pathlib import Path; from heatkv.files import temporary_beside\n"
        f"with temporary_beside(Path({str(path)!r})) as (file, name):\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    others = tmp_path / left.name.replace("schedule", "another")
    others.write_bytes(b"of another file")
    ours = tmp_path / left.name.replace(left.name.split("-")[-2], str(os.getpid()))
    ours.write_bytes(b"of a process that runs")
    write_atomic(path, b"whole")
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, others.name, ours.name}
    assert path.read_bytes() == b"whole"


def test_trying_an_output_leaves_no_trace_and_keeps_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"before")
    assert check_writable(path) == path
    sweep(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"] and path.read_bytes() == b"before"


def test_a_pipe_is_read_and_one_that_nobody_writes_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert read_bytes(tmp_path / "pipe", limit=10, error=ValueError) == b""
    reader, writer = os.pipe()
    os.write(writer, b"cat\n")
    os.close(writer)
    assert read_bytes(f"/dev/fd/{reader}", limit=10, error=ValueError) == b"cat\n"
    os.close(reader)


def test_nothing_that_plans_are_remembered_by_can_be_written_to(world: World) -> None:
    from heatkv.scores import HeadScores

    scores = HeadScores.load(world.good["scores"])
    for array in (scores.mass_LHTS, scores.change_LHTS, scores.spread_LH):
        assert array is not None
        with pytest.raises(ValueError, match="read-only"):
            array[:] = np.nan
