"""What a Space needs of a checkout, and that the check finds what is missing."""

from __future__ import annotations

from pathlib import Path

from app.space import MAX_FILE, front_matter, memory, static_problems

README = """---
title: T
emoji: x
colorFrom: red
colorTo: red
sdk: gradio
sdk_version: 6.31.0
python_version: '3.11'
app_file: app/__main__.py
license: mit
---
# T
"""


def checkout(folder: Path) -> Path:
    (folder / "app").mkdir()
    (folder / "app" / "__main__.py").write_text("")
    (folder / "README.md").write_text(README)
    (folder / "requirements.txt").write_text("gradio\n")
    return folder


def test_this_checkout_has_what_a_space_needs() -> None:
    root = Path(__file__).parents[1]
    assert [problem for problem in static_problems(root) if problem.startswith(("README", "requirements", "app"))] == []


def test_what_is_missing_or_too_much_is_named(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    assert static_problems(root) == []
    (root / "README.md").write_text(README.replace("license: mit\n", "").replace("app/__main__.py", "gone.py"))
    (root / "app" / "look.css").write_text("@import url(https://fonts.example.com/a.css);")
    with open(root / "weights.bin", "wb") as file:
        file.truncate(MAX_FILE + 1)
    (root / "requirements.txt").unlink()
    found = "\n".join(static_problems(root))
    for words in ("lacks license", "gone.py is not there", "fonts.example.com", "weights.bin", "requirements.txt"):
        assert words in found
    assert len(static_problems(root)) == 5


def test_front_matter_is_read_where_there_is_some() -> None:
    assert front_matter(README)["python_version"] == "3.11" and front_matter("# T\n") == {}


def test_memory_is_that_of_a_process() -> None:
    import os

    found = memory(os.getpid())
    assert found is None or 1 << 20 < found < 1 << 36
