"""The README stays short and true: what it quotes, names and shows is what is there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from heatkv.cli import make_parser
from heatkv.policies import REGISTRY
from heatkv.scales import ScaleSchedule
from heatkv.study.tables import summary_table

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_it_is_short() -> None:
    assert len(README) <= 14_000


def test_a_space_finds_its_app() -> None:
    front = dict(re.findall(r"^(\w+): (.+)$", README.split("---")[1], re.MULTILINE))
    assert (ROOT / front["app_file"]).is_file()
    pins = dict(re.findall(r"^([\w-]+)==(.+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert front["sdk"] == "gradio" and front["sdk_version"] == pins["gradio"]


def test_the_policy_it_shows_is_the_one_that_is_tested() -> None:
    assert ("python", (ROOT / "tests" / "example_policy.py").read_text()) in BLOCKS


def test_it_lists_every_policy_with_its_provenance_in_both_drawings() -> None:
    drawings = (ScaleSchedule.square((1, 2, 3)), ScaleSchedule.lines(1, 2, 2))
    listed = {}
    for names, *provenance in re.findall(r"^\| ((?:`[\w+-]+`,? ?)+)\| ([\w-]+) \| ([\w-]+) \|", README, re.MULTILINE):
        listed |= dict.fromkeys(re.findall(r"`([\w+-]+)`", names), tuple(provenance))
    assert listed == {
        name: tuple(policy.provenance_for(scales) for scales in drawings) for name, policy in REGISTRY.items()
    }


def test_the_table_of_results_is_the_bundled_comparisons() -> None:
    files = sorted((ROOT / "assets" / "models").glob("*/comparison.json"))
    table = summary_table([json.loads(file.read_text()) for file in files])
    assert table in README, "copy what `python -m heatkv.study.figure` prints (see the README's Results)"


def commands() -> list[str]:
    shell = "\n".join(text for language, text in BLOCKS if language == "bash").replace("\\\n", " ")
    return [line for line in shell.splitlines() if line.startswith("heatkv ")]


@pytest.mark.parametrize("command", commands())
def test_its_commands_parse(command: str) -> None:
    assert make_parser().parse_args(shlex.split(command)[1:]).command == command.split()[1]


def test_commands_of_all_documents_parse() -> None:
    from heatkv.training.__main__ import make_parser as make_training_parser

    found = 0
    for path in (
        ROOT / "heatkv" / "training" / "README.md",
        ROOT / "app" / "about.md",
        *(ROOT / "assets").rglob("*.md"),
    ):
        blocks = re.findall(r"^```\w*\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            if match := re.match(r"(?:python -m )?heatkv(\.training)? (.*)", line):
                parser = make_training_parser() if match[1] else make_parser()
                assert parser.parse_args(shlex.split(match[2])).command, f"{path.name}: {line}"
                found += 1
    assert found > 20


def test_rooms_and_links_exist() -> None:
    (rooms,) = (text for _, text in BLOCKS if text.startswith("app/ "))
    folder, found = ROOT, []
    for line in rooms.splitlines():
        names = re.findall(r"^(?:  )?((?:[\w.]+(?:\.\w+|/) ?)+)", line)[0].split()
        if not line.startswith(" "):
            folder = ROOT
        found += [folder / name for name in names]
        if not line.startswith(" "):
            folder = ROOT / names[0]
    links = [ROOT / link for link in re.findall(r"\]\(((?!http)[^)]+)\)", README)]
    assert len(found) > 15 and len(links) > 8
    assert not [str(path) for path in found + links if not path.exists()]
    inside = {path.name for path in (ROOT / "heatkv").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert inside <= {path.name for path in found}, "a room of heatkv/ is missing in the drawing"
