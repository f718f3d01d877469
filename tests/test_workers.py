"""Comparisons that are interrupted, resumed under other code, or short of memory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from tiny import tiny_model

from heatkv import calibrate
from heatkv.cache import attention
from heatkv.cache.seam import full_cache
from heatkv.models import chosen_dtype
from heatkv.models.bundled import save_folder
from heatkv.models.hub import Files
from heatkv.models.presets import PRESETS
from heatkv.study import running, shards
from heatkv.study.shards import Sample, Setting, Shard, fingerprint
from heatkv.views import budgets

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    made = tiny_model()
    save_folder(made, folder)
    calibrate(made, ["red apple"]).save(folder / "scores.safetensors")
    return folder


@pytest.fixture
def at_work(model: Path, tmp_path: Path) -> subprocess.Popen[str]:
    """A comparison at work with two workers; more work than any test waits for."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"{'green ' * (i % 40 + 1)}tree" for i in range(400)))
    command = [
        sys.executable, "-m", "heatkv", "compare", "--model", str(model), "--prompts", str(prompts), "--seeds", "9",
        "--batch", "1", "--budgets", "0.5", "--policies", "heatkv", "--workers", "2",
        "--shards", str(tmp_path / "shards"),
        "--out", str(tmp_path / "results.json"),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 90
    while not list((tmp_path / "shards" / "tiny").glob("*.npz")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return process


def members(group: int) -> list[int]:
    """Processes of a group that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("how", ["Ctrl-C", "killed"])
def test_an_end_of_a_comparison_is_quiet_and_leaves_nobody_behind(
    at_work: subprocess.Popen[str], tmp_path: Path, how: str
) -> None:
    assert len(members(at_work.pid)) >= 3
    if how == "Ctrl-C":
        os.killpg(at_work.pid, signal.SIGINT)  # as a terminal does: to the parent and its workers
    else:
        at_work.kill()
    _, err = at_work.communicate(timeout=20)
    assert at_work.returncode == (130 if how == "Ctrl-C" else -signal.SIGKILL)
    assert "Traceback" not in err and "Error" not in err and "Interrupt" not in err
    if how == "Ctrl-C":
        assert err.splitlines()[-1] == "cancelled"
    deadline = time.monotonic() + 10
    while members(at_work.pid):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.1)
    assert not (tmp_path / "results.json").exists()
    for path in (tmp_path / "shards" / "tiny").iterdir():
        assert path.suffix in (".npz", ".tmp"), path


def test_a_fingerprint_tells_of_the_code_that_runs_and_of_torch(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from heatkv.scores import HeadScores

    scores = HeadScores.load(model / "scores.safetensors")
    setting = Setting(str(model), "weights", scores, 3, 2, 1, "cpu", "float32")
    shard, cache = Shard("full", 0, Sample(("red apple",), (0,))), full_cache(scores.geometry)
    first = fingerprint(setting, shard, cache)
    assert fingerprint(setting, shard, cache) == first
    monkeypatch.setattr(torch, "__version__", "1.2.3")
    assert fingerprint(setting, shard, cache) != first
    monkeypatch.undo()
    real = Path.read_bytes
    for name in (
        "cache/attention.py",
        "cache/arena.py",
        "cache/layout.py",
        "formats.py",
        "models/infinity/transformer.py",
    ):

        def changed(path: Path, name: str = name) -> bytes:
            return real(path) + (b"# changed" if path.as_posix().endswith(name) else b"")

        monkeypatch.setattr(Path, "read_bytes", changed)
        shards._code.cache_clear()
        assert fingerprint(setting, shard, cache) != first, name
        monkeypatch.undo()
    shards._code.cache_clear()
    assert fingerprint(setting, shard, cache) == first


def test_a_fingerprint_of_weights_tells_of_what_words_stand_for(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(model, folder)
    first = shards.weights_fingerprint(str(folder))
    (folder / "scores.safetensors").unlink()
    assert shards.weights_fingerprint(str(folder)) == first, "a calibration is told apart by itself"
    (folder / "synonyms.json").write_text("{}")
    assert shards.weights_fingerprint(str(folder)) != first


def test_a_fingerprint_of_weights_tells_of_the_parts_of_a_published_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parts = {name: tmp_path / name for name in ("transformer", "autoencoder.pth", "text")}
    for path in (parts["transformer"] / "00001.safetensors", parts["autoencoder.pth"], parts["text"] / "t5.bin"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"before")
    found = Files(parts["transformer"], parts["autoencoder.pth"], parts["text"])
    monkeypatch.setattr("heatkv.models.find_official", lambda name: (PRESETS["infinity-8b"], found))
    first = shards.weights_fingerprint("infinity-8b")
    for path in (parts["transformer"] / "00001.safetensors", parts["autoencoder.pth"], parts["text"] / "t5.bin"):
        path.write_bytes(b"after!")
        assert shards.weights_fingerprint("infinity-8b") != first
        path.write_bytes(b"before")


def test_one_model_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    alive: weakref.WeakSet[object] = weakref.WeakSet()
    most = []

    class Large:
        pass

    def load(model: str, device: str, dtype: str) -> Large:
        made = Large()
        alive.add(made)
        most.append(len(alive))
        return made

    monkeypatch.setattr(running, "load", load)
    running.let_go()
    for dtype in ("float32", "bfloat16", "float32"):
        running.loaded("a", "cpu", dtype)
        running.loaded("a", "cpu", dtype)
    assert most == [1, 1, 1]
    running.let_go()
    assert not alive


def test_a_comparison_lets_go_of_its_model_before_another_is_loaded(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process too, where the reference in bfloat16 is a model of its own."""
    import gc
    import weakref

    from heatkv.models.infinity.model import InfinityModel
    from heatkv.scores import HeadScores
    from heatkv.study.compare import compare

    real, alive, most = running.load, weakref.WeakSet(), []

    def load(*arguments: str) -> InfinityModel:
        gc.collect()
        most.append(len(alive))
        made = real(*arguments)
        alive.add(made.transformer)  # type: ignore[attr-defined]
        return made  # type: ignore[return-value]

    running.let_go()
    monkeypatch.setattr(running, "load", load)
    scores = HeadScores.load(model / "scores.safetensors")
    compare(str(model), ["blue cat"], scores, [0.5], ["heatkv"], repetitions=1)
    assert len(most) >= 2 and max(most) == 0
    running.let_go()


@pytest.mark.parametrize(("capability", "modern"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_cards_that_do_not_know_bfloat16_compute_in_float32_without_flash(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], modern: bool
) -> None:
    monkeypatch.setattr(attention, "capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    card = torch.device("cuda")
    assert chosen_dtype(None, card) == (torch.bfloat16 if modern else torch.float32)
    assert attention.has_varlen(64, torch.float16, card) is modern
    assert chosen_dtype(None, torch.device("cpu")) == torch.float32
    assert chosen_dtype("bfloat16", card) == torch.bfloat16, "who asks for it gets it"


def test_tables_are_made_by_many_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """More presets and policies than are remembered, so that they push one another out."""
    monkeypatch.setattr(budgets, "percents_of", lambda preset, policy="heatkv": (100,))  # a table is a plan
    tables, problems = budgets.Tables(), []
    presets = [budgets.choose_preset(f"infinity-125m:0.06M:{ratio}") for ratio in ("1.0", "1.5", "2.0", "0.5", "3.0")]
    policies = [name for name in budgets.policies_for(None)]

    def visit(start: int) -> None:
        try:
            for i in range(60):
                preset = presets[(start + i) % len(presets)]
                tables.table(preset, None, policies[(start * 7 + i) % len(policies)])
        except Exception as error:
            problems.append(error)

    monkey = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=visit, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(monkey)
    assert problems == []


def test_a_policy_without_sinks_is_tabled_below_them() -> None:
    preset = budgets.choose_preset("infinity-125m")
    assert budgets.percents_of(preset, "heatkv+")[0] == 1 < budgets.percents_of(preset)[0]
