"""Heads: the two-level map, and the card of one head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from app import headtypes
from app.cards import failed, head_card
from app.components import Component
from app.inputs import InputError, read_head, read_percent, read_seed
from app.page import MODEL_JOB, PRIVATE, Page, problem
from app.prompts import prompt_field
from app.workbench import Calibration, Probe, Workbench


class HeadsTab:
    """The components and handlers of the tab; handlers take and return plain values."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench

    def build(self, page: Page) -> None:
        with gr.Row(equal_height=False):
            with gr.Column(scale=7, min_width=320):
                self.map = Component("headmap")
                self.types = Component("headtypes")
            with gr.Column(scale=5, min_width=320):
                self.card = Component("headcard")
                with gr.Row(elem_classes="ends"):
                    self.prompt = prompt_field(
                        self.bench, "Draw another image", scale=4, min_width=160, elem_id="heads-prompt"
                    )
                    self.draw = gr.Button("Show", scale=1, min_width=80, size="md", elem_id="heads-show")
        self.probe = gr.State(None, time_to_live=3600)

    def wire(self, page: Page) -> None:
        inputs = [page.prompt, page.seed, page.calibration, self.probe]
        opened = self.map.open(
            self.open, inputs, [page.head, self.card, self.map], trigger_mode="always_last", queue=False, **PRIVATE
        )
        opened.then(self.draw_card, [page.head, *inputs], [self.card, self.probe], **MODEL_JOB, **PRIVATE)
        submits = [self.prompt.submit] if isinstance(self.prompt, gr.Textbox) else []
        for trigger in (self.draw.click, *submits):
            self.show_after(trigger(None, self.prompt, page.prompt, js="(text) => text"), page)
        page.prompt.change(None, page.prompt, self.prompt, js="(text) => text")

    def types_after(self, event: Any, page: Page) -> Any:
        """Show the head types of the policy once ``event`` is through, where the policy tells heads apart."""
        inputs = [page.policy, page.prompt, page.seed, page.budget, page.calibration, page.uploaded]
        return event.then(self.head_types, inputs, self.types, **MODEL_JOB, **PRIVATE)

    def show_after(self, event: Any, page: Page) -> Any:
        """Show the head once ``event`` is through: at once what is known, then what has to be drawn."""
        inputs = [page.head, page.prompt, page.seed, page.calibration, self.probe]
        at_once = event.then(self.show, inputs, [self.card, self.map], queue=False, **PRIVATE)
        return at_once.then(self.draw_card, inputs, [self.card, self.probe], **MODEL_JOB, **PRIVATE)

    # --- handlers --------------------------------------------------------------------------------------------------

    def open(
        self, prompt: Any, seed: Any, calibration: Calibration | None, probe: Probe | None, event: gr.EventData
    ) -> tuple[Any, Any, Any]:
        """The head that was chosen on the map, and its card."""
        try:
            head = read_head(event._data, self.bench.geometry)
        except InputError:  # the map sends no such thing, and whoever does needs no answer
            return gr.skip(), gr.skip(), gr.skip()
        return head, *self.show(head, prompt, seed, calibration, probe)

    def show(
        self, head: tuple[int, int], prompt: Any, seed: Any, calibration: Calibration | None, probe: Probe | None
    ) -> tuple[dict[str, Any], dict[str, int]]:
        """The card from what is at hand, and the head for the map to point at."""
        place = {"layer": head[0], "head": head[1]}
        try:
            text, number = self.bench.read_prompt(prompt), read_seed(seed or 0)
        except ValueError as error:
            return failed(self._card(head, calibration, None), problem(error)), place
        known = probe is not None and probe.holds(text, number, head)
        return self._card(head, calibration, probe if known else None), place

    def draw_card(
        self, head: tuple[int, int], prompt: Any, seed: Any, calibration: Calibration | None, probe: Probe | None
    ) -> Iterator[Any]:
        """Draw the image and record what its heads read, unless that is at hand."""
        try:
            text, number = self.bench.read_prompt(prompt), read_seed(seed or 0)
        except ValueError:
            yield gr.skip(), gr.skip()
            return
        if probe is not None and probe.holds(text, number, head):
            yield gr.skip(), gr.skip()
            return
        try:
            for found in self.bench.probe(text, number, head):
                if found is not None:
                    yield self._card(head, calibration, found), found
        except Exception as error:
            yield failed(self._card(head, calibration, None), problem(error)), gr.skip()

    def head_types(
        self, policy: Any, prompt: Any, seed: Any, percent: Any, calibration: Calibration | None, uploaded: Any
    ) -> Iterator[Any]:
        """HACK's types from the calibration, HeadKV's from drawing the image; nothing for the others."""
        if policy not in headtypes.POLICIES or uploaded is not None:
            yield None
            return
        found = calibration or self.bench.bundled
        try:
            if policy == "hack" and found.scores is not None:
                yield headtypes.hack_types(found.scores, found.label)
            elif policy == "headkv":
                text, number = self.bench.read_prompt(prompt), read_seed(seed or 0)
                yield headtypes.message("Drawing the image to see which heads look near …")
                share = read_percent(percent, self.bench.percents(policy)) / 100
                for types in self.bench.local_heads(text, number, share):
                    if types is not None:
                        yield headtypes.headkv_types(*types, text, number)
            else:
                yield None
        except Exception as error:
            yield headtypes.message(problem(error))

    def _card(self, head: tuple[int, int], calibration: Calibration | None, probe: Probe | None) -> dict[str, Any]:
        label = (calibration or self.bench.bundled).label
        return head_card(self.bench, self.bench.profiles(calibration), label, head, probe)
