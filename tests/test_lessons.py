"""Lessons: what is counted, and what is said of it, for both ways of drawing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_lines_model, tiny_model

import heatkv
from heatkv.study import metrics
from heatkv.views.counts import BUDGETS, OTHER, count_steps

pytest.importorskip("gradio")

from app.lessons.chosen import COUNTED, Chosen
from app.lessons.texts import lessons
from app.workbench import Workbench

PROMPTS = ["red apple", "blue cat"]


@pytest.fixture(scope="module")
def taught() -> list[tuple[Workbench, Chosen]]:
    """Both tiny models with what was counted on them."""
    found = []
    for model in (tiny_model(), tiny_lines_model(4, layers=2, heads=2)):
        bench = Workbench(model, heatkv.calibrate(model, PROMPTS), None, PROMPTS)
        counts: Any = list(count_steps(model, bench.bundled.scores, PROMPTS, 1))[-1]  # type: ignore[arg-type]
        found.append((bench, Chosen((PROMPTS[counts["moving"]], counts["moving"]), counts)))
    return found


def test_counts_are_of_real_pictures(taught: list[tuple[Workbench, Chosen]]) -> None:
    for bench, chosen in taught:
        counts = chosen.counts
        assert counts.keys() >= COUNTED and json.dumps(dict(counts))
        full = [heatkv.generate(bench.model, prompt, seed).pixels for seed, prompt in enumerate(PROMPTS)]
        others = [heatkv.generate(bench.model, prompt, seed + OTHER).pixels for seed, prompt in enumerate(PROMPTS)]
        apart = sum(map(metrics.psnr, full, others)) / 2
        assert counts["other_seed"] == pytest.approx(apart)
        schedule = heatkv.plan(bench.bundled.scores, 0.6, sink_scales=bench.sink_scales)
        close = [
            metrics.psnr(full[seed], heatkv.generate(bench.model, prompt, seed, schedule).pixels) > apart
            for seed, prompt in enumerate(PROMPTS)
        ]
        assert counts["held"][0] == sum(close) and len(counts["held"]) == len(BUDGETS)


def test_every_lesson_has_a_right_answer_and_words_of_its_model(taught: list[tuple[Workbench, Chosen]]) -> None:
    for bench, chosen in taught:
        made = lessons(bench, chosen, {})
        assert len(made) == 8
        for lesson in made:
            assert 0 <= lesson["right"] < len(lesson["options"]) >= 2 and lesson["answer"] and lesson["question"]
            assert len(set(lesson["options"])) == len(lesson["options"])
        by_line = bench.geometry.scales.by_line
        grows = made[0]["text"] + made[1]["text"] + made[1]["answer"]
        assert ("line" in grows, "scale" in grows) == (by_line, not by_line)


def test_the_lesson_on_both_ways_of_drawing_stands_only_where_both_are(taught: list[tuple[Workbench, Chosen]]) -> None:
    for i, (bench, chosen) in enumerate(taught):
        assert len(lessons(bench, chosen, {}, [taught[i]])) == 8, "alone"
        assert len(lessons(bench, chosen, {}, [taught[i], (taught[1 - i][0], Chosen())])) == 8, "nothing counted there"
        last = lessons(bench, chosen, {}, taught)[-1]
        assert last["title"] == "By scales and by lines"
        for other, its in taught:
            numbers = ", ".join(map(str, its.counts["held"]))
            assert f"{other.model.id}, by {other.geometry.scales.word}s: {numbers} of 2" in last["answer"]
        frail = {held: i for i, held in enumerate(sum(c.counts["held"]) for _, c in taught)}
        if len(frail) == 2:
            word = taught[frail[min(frail)]][0].geometry.scales.word
            assert last["options"][last["right"]] in (f"by {word}s", "both the same")


def test_the_lesson_on_forgetting_tells_of_the_head_that_it_names(taught: list[tuple[Workbench, Chosen]]) -> None:
    bench, chosen = taught[0]

    def lesson(strongest: list[list[int]], worst: list[float]) -> dict[str, Any]:
        counts = {**chosen.counts, "strongest": strongest, "worst": worst, "knocked": len(worst)}
        return next(one for one in lessons(bench, Chosen(chosen.opening, counts), {}) if one["title"] == "Forget one")

    most = lesson([[1, 2], [0, 1], [1, 2]], [20.0, 90.0, 31.0])
    assert "Layer 2, head 3" in most["answer"] and "in 2 of 3 prompts, by up to 31 of 255" in most["answer"]
    none = lesson([[0, 1], [1, 2], [2, 3]], [20.0, 90.0, 31.0])
    assert none["reveal"]["forget"] == "1.2" and "this picture most, by 20 of 255" in none["answer"]
    assert "this picture leans" in none["text"] and none["question"].endswith("here?")


def test_counts_of_other_weights_or_an_older_program_are_passed_over(
    taught: list[tuple[Workbench, Chosen]], tmp_path: Path
) -> None:
    counts = dict(taught[0][1].counts)
    path = tmp_path / "lessons.json"
    path.write_text(json.dumps({"weights": "x", "counts": counts}))
    assert Chosen.read(tmp_path, "x").counts and not Chosen.read(tmp_path, "y").counts
    del counts["held"]
    path.write_text(json.dumps({"weights": "x", "counts": counts}))
    assert not Chosen.read(tmp_path, "x").counts
    path.write_text("[]")
    assert not Chosen.read(tmp_path, "x").counts and not Chosen.read(tmp_path / "none", "x").counts


@pytest.mark.parametrize(("name", "decibels", "often"), [("pocket-lines", 10, 0.8), ("pocket", 3, 0.8)])
def test_the_central_demonstration_shows_on_the_bundled_models(name: str, decibels: float, often: float) -> None:
    """The trial's prompt looked untouched, ranked right or upside down: what ships was chosen because it shows.

    By lines it is plain to see; a model by scales is handed the sum of all earlier ones and forgets less.
    """
    from app.strips import bundled_fingerprint, read_strips
    from heatkv.models import find_folder

    folder, weights = find_folder(name), bundled_fingerprint(name)
    chosen = Chosen.read(folder, weights)
    prompt, seed = chosen.counts["prompts"][chosen.counts["clearest"]], chosen.counts["clearest"]
    found = {s.policy: s for s in read_strips(folder, weights) if (s.prompt, s.seed) == (prompt, seed)}
    assert {"heatkv", "reverse"} <= set(found), "drawn before anybody comes"
    distance = {name: metrics.psnr(strip.full, strip.pixels[strip.percents.index(35)]) for name, strip in found.items()}
    assert distance["heatkv"] > distance["reverse"] + decibels
    assert chosen.counts["upright"] / len(chosen.counts["prompts"]) > often, "and it is no single lucky picture"
