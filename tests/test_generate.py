"""Generation: deterministic, comparable between caches, and honest about memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import tiny_model

from heatkv import calibrate, generate, plan
from heatkv.cache.seam import full_cache
from heatkv.calibration import calibrate_steps
from heatkv.generate import generate_events
from heatkv.models.base import Sampling, seeded_noise
from heatkv.models.infinity.text import PromptError
from heatkv.policies import REGISTRY


def test_the_same_seed_gives_the_same_image_and_another_seed_another() -> None:
    model = tiny_model()
    first, again, other = (generate(model, "red apple", seed) for seed in (3, 3, 4))
    assert np.array_equal(first.pixels, again.pixels)
    assert not np.array_equal(first.pixels, other.pixels)


def test_noise_depends_on_seed_and_scale_and_nothing_else() -> None:
    noise = seeded_noise([7, 8])
    fine = noise(3, (16, 6))
    torch.rand(100)  # somebody else draws numbers
    assert torch.equal(noise(3, (16, 6)), fine)
    assert torch.equal(seeded_noise([8])(3, (16, 6))[0], fine[1])
    assert not torch.equal(noise(2, (16, 6)), fine)


def test_full_budget_equals_full_cache_bit_for_bit() -> None:
    model = tiny_model()
    schedule = plan(calibrate(model, ["red apple"]), 1.0)
    full, planned = generate(model, "blue cat", 1), generate(model, "blue cat", 1, schedule)
    assert np.array_equal(full.pixels, planned.pixels)
    assert all(np.array_equal(a, b) for a, b in zip(full.bits, planned.bits, strict=True))


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.7])
def test_measured_peak_keeps_to_the_budget(budget: float) -> None:
    model = tiny_model()
    schedule = plan(calibrate(model, ["red apple"]), budget)
    full, planned = generate(model, "red apple"), generate(model, "red apple", schedule=schedule)
    assert full.kv_bytes_peak == full.kv_bytes_full == full.kv_bytes_theoretical
    assert planned.kv_bytes_peak <= budget * full.kv_bytes_peak
    assert planned.kv_bytes_peak == planned.kv_bytes_theoretical
    assert max(event.kv_bytes for event in planned.scales) <= planned.kv_bytes_peak


@pytest.mark.parametrize("policy", REGISTRY)
def test_every_policy_generates_and_keeps_to_the_budget(policy: str) -> None:
    model = tiny_model()
    scores = calibrate(model, ["red apple"])
    result = generate(model, "blue cat", 1, policy=policy, budget=0.5, scores=scores)
    assert (result.policy, result.budget) == (policy, 0.5) and result.pixels.shape == (12, 12, 3)
    assert 0 < result.kv_bytes_peak <= 0.5 * result.kv_bytes_full
    assert max(event.kv_bytes for event in result.scales) <= result.kv_bytes_peak
    assert result.kv_bytes_peak <= result.kv_bytes_theoretical <= 0.5 * result.kv_bytes_full
    if REGISTRY[policy].needs == "nothing":
        assert np.array_equal(result.pixels, generate(model, "blue cat", 1, policy=policy, budget=0.5).pixels)


def test_a_policy_that_needs_scores_says_so() -> None:
    with pytest.raises(ValueError, match="needs the scores"):
        generate(tiny_model(), "red apple", policy="hack", budget=0.5)


def test_dropping_cells_changes_bits_but_never_those_of_the_sink_scales() -> None:
    model = tiny_model()
    schedule = plan(calibrate(model, ["red apple"]), 0.3)
    full, planned = generate(model, "red apple", 2), generate(model, "red apple", 2, schedule)
    same = [np.array_equal(a, b) for a, b in zip(full.bits, planned.bits, strict=True)]
    assert all(same[:3]) and not all(same)


def test_events_come_one_a_scale_with_previews_and_can_be_stopped() -> None:
    model = tiny_model()
    events = list(generate_events(model, "red apple", 0, full_cache(model.geometry), previews=True))
    assert [e.scale for e in events] == list(range(6))
    assert all(e.pixels is not None and e.pixels.shape == (12, 12, 3) for e in events)
    running = generate_events(model, "red apple", 0, full_cache(model.geometry))
    next(running)
    running.close()  # type: ignore[attr-defined]
    with pytest.raises(StopIteration):
        next(running)
    again = list(generate_events(model, "red apple", 0, full_cache(model.geometry)))
    assert np.array_equal(again[-1].pixels, events[-1].pixels), "what was stopped left nothing behind"


def test_guidance_of_one_runs_a_single_row() -> None:
    model = tiny_model()
    plain = generate(model, "red apple", sampling=Sampling(guidance=1.0))
    guided = generate(model, "red apple", sampling=Sampling(guidance=3.0))
    assert 2 * plain.kv_bytes_peak == guided.kv_bytes_peak
    assert plain.kv_bytes_full == plain.kv_bytes_peak
    assert (plain.rows, guided.rows) == (1, 2)


def test_rows_of_a_batch_are_the_images_of_their_seeds() -> None:
    model = tiny_model()
    prompts, seeds = ("red apple", "green tree of a cat"), (4, 9)
    *_, last = model.run(prompts, seeded_noise(seeds), full_cache(model.geometry), model.sampling)
    together = model.decode(last.latent).numpy()
    for i in range(2):
        alone = generate(model, prompts[i], seeds[i]).pixels
        assert np.abs(alone.astype(int) - together[i].astype(int)).max() <= 1


def test_unknown_words_are_named() -> None:
    model = tiny_model()
    result = generate(model, "red applw zebra")
    assert result.note is not None and "`applw` (did you mean `apple`?)" in result.note and "`zebra`" in result.note
    with pytest.raises(PromptError, match="zebra"):
        generate(model, "zebra")


@pytest.mark.parametrize(("prompt", "words"), [("", "empty"), ("   ", "empty"), ("x" * 10_000, "10000 characters")])
def test_empty_and_endless_prompts_are_refused(prompt: str, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        generate(tiny_model(), prompt)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_range_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        generate(tiny_model(), "red apple", seed)


@pytest.mark.parametrize("settings", [{"guidance": float("nan")}, {"temperature": 0.0}, {"top_p": 2.0}, {"top_k": -1}])
def test_sampling_out_of_range_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"guidance|temperature|top_"):
        Sampling(**settings)  # type: ignore[arg-type]


def test_the_library_needs_neither_gradio_nor_plotly_nor_safetensors_to_import() -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.modules.update(dict.fromkeys(['gradio','plotly','safetensors','PIL','transformers'])); "
        "import heatkv; print(heatkv.Geometry.__name__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "Geometry"


def test_what_would_not_count_is_refused_and_seeds_are_whole_numbers_of_any_kind() -> None:
    model = tiny_model()
    scores = calibrate(model, ["red apple"])
    for without_a_budget in ({"policy": "h2o"}, {"scores": scores}, {"storage": "int8"}, {"sink_scales": 1}):
        with pytest.raises(ValueError, match="without a budget"):
            generate(model, "red apple", **without_a_budget)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leave out policy"):
        generate(model, "red apple", 0, plan(scores, 0.6), policy="h2o")
    by_hand = generate(model, "red apple", 0, plan(scores, 0.6, sink_scales=1))
    asked = generate(model, "red apple", np.int64(0), budget=0.6, scores=scores, sink_scales=1)  # type: ignore[arg-type]
    assert np.array_equal(by_hand.pixels, asked.pixels) and asked.policy == "heatkv"
    with pytest.raises(ValueError, match="no whole number"):
        generate(model, "red apple", 1.5)  # type: ignore[arg-type]
    for prompts, seed, wrong in (("red apple", 0, "one text"), (["red apple"] * 2, 2**32 - 1, "outside 0 to")):
        with pytest.raises(ValueError, match=wrong):
            next(calibrate_steps(model, prompts, seed))
