"""Tour: the list of steps, and what a step does to the controls."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.components import Component
from app.inputs import read_head
from app.page import PRIVATE, Page
from app.tour import STEPS
from app.workbench import Workbench


class TourTab:
    def __init__(self, bench: Workbench) -> None:
        self.bench = bench

    @property
    def steps(self) -> list[dict[str, Any]]:
        return [
            {"title": step.title, "text": step.text.format(prompts=self.bench.nouns), "focus": step.focus}
            for step in STEPS
        ]

    def build_bar(self) -> None:
        """The bar above the tabs."""
        self.bar = Component("tourbar", {"steps": self.steps, "at": None})

    def build(self) -> None:
        self.list = Component("tourlist", {"steps": self.steps})

    def wire(self, page: Page, show_head: Any) -> None:
        """``show_head(event)`` shows the head in view after ``event``."""
        outputs = [page.budget, page.policy, page.tabs, page.head]
        show_head(self.bar.step(self.step, None, outputs, queue=False, **PRIVATE))

    # --- handlers --------------------------------------------------------------------------------------------------

    def step(self, event: gr.EventData) -> tuple[Any, ...]:
        data = event._data if isinstance(event._data, dict) else {}
        index = data.get("index")
        if type(index) is not int or not 0 <= index < len(STEPS):
            return (gr.skip(),) * 4
        return self.settings(index)

    def settings(self, index: int) -> tuple[Any, ...]:
        """Budget, policy, tab and head of a step."""
        step = STEPS[index]
        percent = gr.skip() if step.percent is None else max(step.percent, self.bench.percents(step.policy)[0])
        policy = gr.skip() if step.policy is None else step.policy
        return percent, policy, gr.update(selected=step.tab), self.showcase()

    def showcase(self) -> tuple[int, int]:
        """The head that is shown first: one that looks back, where the bundled calibration knows one."""
        profiles = self.bench.profiles(None)
        assert profiles is not None
        layer, head = profiles.showcase
        return read_head({"layer": layer, "head": head}, self.bench.geometry)
