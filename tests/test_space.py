"""What a Space needs of a checkout, and that the check finds what is missing."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from events import event, visitor
from tiny import tiny_model

import heatkv
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


class OtherProcess:
    """Stands for ``spaces.GPU``: what goes into a job and what comes out of it is pickled on its way."""

    def __init__(self) -> None:
        self.ran: set[str] = set()
        self.made: set[str] = set()

    def gpu(self, job: Callable[..., Any], seconds: int) -> Callable[..., Any]:
        self.made.add(job.__name__)

        def sent(*arguments: Any) -> Iterator[Any]:
            self.ran.add(job.__name__)
            for step in job(*pickle.loads(pickle.dumps(arguments))):
                yield pickle.loads(pickle.dumps(step))

        return sent


def test_whatever_borrows_a_gpu_can_be_sent_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every public endpoint and every part of the page that runs the model, with each kind of policy."""
    pytest.importorskip("gradio")
    from app.api import Api
    from app.demo import _Demo
    from app.recipes import Calibration
    from app.workbench import Workbench

    there = OtherProcess()
    monkeypatch.setattr("app.jobs.gpu", there.gpu)
    model = tiny_model((1, 2, 3, 4, 5), layers=2, heads=2)
    scores = heatkv.calibrate(model, ["red apple"])
    bench = Workbench(model, scores)
    demo, api = _Demo(bench), Api(bench)
    demo.build()
    there.ran.clear()

    def sent(**data: Any) -> Any:
        return event(id=1, prompt="red apple", seed=3, **data)

    mine = Calibration("mine", heatkv.calibrate(model, ["blue cat"]))
    schedule = heatkv.plan(scores, 0.5)
    static, dynamic = {"policy": "heatkv+", "percent": 40}, {"policy": "headkv", "percent": 60}
    session = {"policy": "heatkv", "percent": 50, "source": "session", "forget": "1.1"}
    steps = [
        list(api.generate("red apple", 1, 0.5, "heatkv"))[-1]["psnr"],
        list(api.draw("red apple", 1, 0.5, "h2o", 2.0, 0.5))[-1]["psnr"],
        list(api.compare("red apple", 2, "headkv", 0.6, "", "heatkv+", 0.4, "1.2"))[-1]["psnr"],
        list(api.knockout("red apple", 1))[-1]["moved"],
        list(api.calibrate(["red apple"], 1))[-1]["orders"],
        list(demo.explore.draw(mine, None, sent(a=static, b=session), visitor()))[-1][0]["score"],
        list(demo.explore.draw(None, schedule, sent(a=dynamic, b={"source": "uploaded"}), visitor()))[-1][0]["score"],
        list(demo.explore.strip(mine, None, sent(b=session, key="k"), visitor()))[-1]["pictures"],
        list(demo.explore.knock_out(sent(), visitor()))[-1]["moved"],
        list(demo.explore.heads.draw_card(mine, sent(layer=1, head=1), visitor()))[-1]["view"],
        list(demo.explore.heads.head_types(None, None, sent(policy="headkv", percent=60), visitor()))[-1]["grids"],
        list(demo.methods.draw_all("red apple", {"seed": 2, "percent": 60}, mine))[-1][0]["tiles"],
        list(demo.calibrate.calibrate("red apple\nblue cat", 2))[-1][0].scores.count,
    ]
    assert all(step is not None for step in steps)
    assert there.ran == there.made, "every job has been sent"
