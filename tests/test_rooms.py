"""The rooms of the package: each imports from those before it, so that there is no circle, and the app is above all."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Modules and folders of heatkv/, and the package's own names (`heatkv`), from the bottom up.
ROOMS = (
    "scales", "files", "formats", "budget", "schedule", "scores", "threads", "cache", "policies", "models",
    "calibration", "generate", "heatkv", "study", "views", "cli", "training", "__main__",
)  # fmt: skip


def room_of(module: str) -> str:
    """The room of ``heatkv.cache.seam``, or of ``heatkv``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else parts[0]


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, anywhere in it; for types alone does not count."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def test_every_room_imports_from_those_below_it() -> None:
    upwards = []
    for path in sorted((ROOT / "heatkv").rglob("*.py")):
        here = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
        for module in imports(path):
            if module.split(".")[0] == "heatkv" and ROOMS.index(room_of(module)) > ROOMS.index(here):
                upwards.append(f"{path.relative_to(ROOT)} imports {module}")
            if module.split(".")[0] == "app" and here != "cli":
                upwards.append(f"{path.relative_to(ROOT)} imports {module}")
    assert upwards == []


def test_every_room_is_on_the_list_and_in_the_readme() -> None:
    there = {path.stem for path in (ROOT / "heatkv").glob("*.py")} | {
        path.name for path in (ROOT / "heatkv").iterdir() if (path / "__init__.py").is_file()
    }
    assert there - {"__init__"} == set(ROOMS) - {"heatkv"}
    drawn = (ROOT / "README.md").read_text().partition("## Rooms")[2].partition("## ")[0]
    assert [room for room in ROOMS if room not in drawn] == ["__main__"]
