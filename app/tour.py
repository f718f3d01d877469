"""The steps of the tour. Each sets the real controls; none knows which model is loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One step: what it says, what it points at, and the controls that it sets (None: left alone).

    In ``text``, ``{prompts}`` stands for what the model is asked for: prompts or classes.
    """

    title: str
    text: str
    tab: str
    focus: str
    percent: float | None = None  # raised to the least feasible budget where it is below
    policy: str | None = None


STEPS = (
    Step(
        "An image grows scale by scale.",
        "The model draws 1×1 tokens, then 2×2, and so on. Every scale looks back at all earlier ones, so their keys "
        "and values are kept: that is the KV cache, and the curve below the map shows it growing.",
        "heads", "#headmap .memory", percent=100, policy="heatkv",
    ),
    Step(
        "Heads look at different scales.",
        "A row is a head, a column a scale. Orange: the head reads that scale more than even attention would; blue: "
        "less. Choose a head to see the evidence, and what it reads in an image.",
        "heads", "#headmap .levels", percent=100, policy="heatkv",
    ),
    Step(
        "Now spend less.",
        "Drag the budget. Hatched cells have left the cache: HeatKV lets every scale go in the heads that read it "
        "least, so blue goes first. Map and memory follow at once.",
        "heads", "#budget", percent=35, policy="heatkv",
    ),
    Step(
        "What does the image lose?",
        "Press Generate. The same noise is drawn twice, with the full cache and with the compressed one, scale by "
        "scale. Wipe between the two; the ladder says how close is close.",
        "compare", "#generate", percent=35, policy="heatkv",
    ),
    Step(
        "Predict first.",
        "The same bytes, ranked upside down: the heads that need a scale most lose it first. Will outlines break, or "
        "details? Guess, press Generate, then look at the bits that agree, scale by scale.",
        "compare", "#generate", percent=35, policy="reverse",
    ),
    Step(
        "How low can it go?",
        "The least feasible budget keeps nothing but the sinks, the first few scales. If that image still looks fine, "
        "ask yourself what the cache was for; if not, you have found the floor.",
        "compare", "#generate", percent=0, policy="heatkv",
    ),
    Step(
        "Where the ranking comes from.",
        "Calibration: generate a few {prompts} and add up where every head looks. Try {prompts} of your own; the map "
        "changes for you alone, and a few {prompts} are enough.",
        "calibrate", "#calibrate-start",
    ),
)  # fmt: skip
