"""Calibrate: measure where heads look on prompts of one's own; scores and orders in and out."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

import heatkv
from app.api import scores_bytes
from app.components import Component
from app.inputs import MAX_PROMPTS, without_folder
from app.page import MODEL_JOB, PRIVATE, Page, cancelled_notice, notice, problem, saved_file
from app.prompts import prompts_field
from app.recipes import Calibration
from app.strips import START_PERCENT
from app.turns import Waiting
from app.workbench import Workbench
from heatkv.scores import HeadScores, load_orders, orders_to_json
from heatkv.views.calibrations import orders_correlation, plan_difference

# A by the same recipe as B, but from the bundled calibration.
COMPARE = """() => { const h = window.heatkv; h.set({ a: { ...h.recipe(), source: 'bundled', basis: '', forget: '' } });
    document.querySelector('#tab-explore-button').click(); }"""


class CalibrateTab:
    def __init__(self, bench: Workbench) -> None:
        self.bench = bench

    def build(self, page: Page) -> None:
        gr.Markdown(
            f"The model draws every {self.bench.noun} once with the full cache, and adds up where each head looks. "
            "Plans are made from that. What you do here changes your own session only.",
            elem_classes="prose-narrow",
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=320):
                self.prompts = prompts_field(self.bench, elem_id="calibrate-prompts")
                self.count = gr.Slider(
                    1, MAX_PROMPTS, value=min(MAX_PROMPTS, max(1, len(self.bench.prompts))), step=1,
                    label="Use the first … prompts", buttons=[], elem_id="calibrate-count",
                    visible=self.bench.classes is None,
                )  # fmt: skip
                with gr.Row():
                    self.start = gr.Button("Calibrate", variant="primary", elem_id="calibrate-start")
                    self.cancel = gr.Button("Cancel", interactive=False, elem_id="calibrate-cancel")
            with gr.Column(scale=5, min_width=320):
                self.progress = Component("progress")
                self.notice = Component("notice", self.in_use(None), elem_id="calibrate-notice")
                self.compare = gr.Button(
                    "Compare both in Explore: A from the first calibration, B from yours", visible=False,
                    elem_id="calibrate-compare",
                )  # fmt: skip
                with gr.Row(elem_classes="tools"):
                    self.save_scores = gr.Button("Download scores", size="sm", min_width=140, elem_id="save-scores")
                    self.save_orders = gr.Button("Download orders", size="sm", min_width=140, elem_id="save-orders")
                with gr.Row(elem_classes="tools"):
                    self.upload = gr.UploadButton(
                        "Use a scores or orders file …", file_types=[".safetensors", ".json"], size="sm", min_width=140,
                        elem_id="upload-scores",
                    )  # fmt: skip
                    self.reset = gr.Button("Back to the first one", size="sm", min_width=140, elem_id="calibrate-reset")
                word = self.bench.geometry.scales.word
                gr.Markdown(
                    "While you calibrate, others may draw in between. Scores (safetensors) hold attention shares for "
                    f"every head and pair of {word}s; orders (JSON, the format of the published "
                    f"head orders) only rank the heads of every {word}.",
                    elem_classes="plain-hint",
                )
        self.saver = Component("saver", elem_id="calibrate-saver")

    def wire(self, page: Page, refresh: Any) -> None:
        """``refresh(event)`` redraws the head map and the controls after ``event``."""
        outputs = [page.calibration, self.progress, self.notice, self.start, self.cancel]
        run = self.start.click(self.calibrate, [self.prompts, self.count], outputs, **MODEL_JOB, **PRIVATE)
        refresh(run)
        self.cancel.click(None, None, None, cancels=[run]).then(
            self.cancelled, page.calibration, outputs[1:], queue=False, **PRIVATE
        )
        refresh(
            self.upload.upload(self.take_file, self.upload, [page.calibration, self.notice], queue=False, **PRIVATE)
        )
        refresh(
            self.reset.click(
                lambda: (None, self.in_use(None)), None, [page.calibration, self.notice], queue=False, **PRIVATE
            )
        )
        page.calibration.change(
            lambda found: gr.update(visible=found is not None), page.calibration, self.compare, queue=False, **PRIVATE
        )
        self.compare.click(None, None, None, js=COMPARE)
        self.save_scores.click(self.scores_file, page.calibration, [self.saver, self.notice], queue=False, **PRIVATE)
        self.save_orders.click(self.orders_file, page.calibration, [self.saver, self.notice], queue=False, **PRIVATE)

    # --- handlers --------------------------------------------------------------------------------------------------

    def in_use(self, calibration: Calibration | None) -> dict[str, str]:
        found = calibration or self.bench.bundled
        count = f", {self.bench.counted(found.scores.count)}" if found.scores else ", ranks only"
        beside = self.beside_bundled(found) if calibration else ""
        return notice(f"In use: {found.label}{count}.{beside}")

    def beside_bundled(self, calibration: Calibration) -> str:
        """How far plans from this calibration are from those of the bundled one."""
        sinks, percent = self.bench.sink_scales, max(START_PERCENT, self.bench.percents("heatkv")[0])
        sources = [c.source for c in (self.bench.bundled, calibration)]
        orders = [s.orders(sinks) if isinstance(s, HeadScores) else s for s in sources]
        plans = [
            heatkv.plan(
                order, percent / 100, sink_scales=sinks, model=self.bench.model.id, geometry=self.bench.geometry
            )
            for order in orders
        ]
        flips = plan_difference(*plans)
        return (
            f" Heads rank alike in both calibrations by {orders_correlation(*orders):.2f} (1: the same, 0: by chance). "
            f"HeatKV at {percent} % keeps {flips.differ} of {flips.prunable} droppable cells otherwise."
        )

    def calibrate(self, prompts: Any, count: Any) -> Iterator[Any]:
        """Prompt by prompt; the session's calibration changes only when all are through."""
        idle = gr.update(interactive=True), gr.update(interactive=False)
        busy = gr.update(interactive=False), gr.update(interactive=True)
        try:
            chosen = self.bench.read_prompts(prompts, count)
            for prompt in chosen:
                self.bench.model.check_prompt(prompt)
        except Exception as error:
            yield gr.skip(), None, notice(problem(error), "error"), *idle
            return
        done, progress = 0, {"done": 0, "of": len(chosen), "text": "Starting …"}
        yield gr.skip(), progress, notice(""), *busy
        started = time.perf_counter()
        try:
            for scores in self.bench.jobs.calibrate(chosen):
                if isinstance(scores, Waiting):
                    if done < len(chosen):
                        said = f"{done} of {len(chosen)}; in the queue, {scores.before} before you"
                        yield gr.skip(), {**progress, "done": done, "text": said}, gr.skip(), *busy
                    continue
                done = scores.count
                each = (time.perf_counter() - started) / scores.count
                text = f"{scores.count} of {self.bench.counted(len(chosen))}, {each:.1f} s each"
                progress = {"done": scores.count, "of": len(chosen), "text": text}
                if scores.count < len(chosen):
                    yield gr.skip(), progress, gr.skip(), *busy
                    continue
                calibration = Calibration("your calibration", scores)
                yield calibration, progress, self.in_use(calibration), *idle
        except Exception as error:
            yield gr.skip(), None, notice(problem(error), "error"), *idle

    def cancelled(self, calibration: Calibration | None) -> tuple[Any, ...]:
        said = cancelled_notice(self.bench, "Cancelled. " + self.in_use(calibration)["text"])
        return None, said, gr.update(interactive=True), gr.update(interactive=False)

    def take_file(self, path: str | None) -> tuple[Any, Any]:
        """Scores or orders of this model; anything else is a message, and all stays as it was."""
        if not path:
            return gr.skip(), gr.skip()
        name = os.path.basename(path)[:60]
        try:
            if path.lower().endswith(".json"):
                orders = load_orders(path, self.bench.geometry, self.bench.sink_scales)
                found = Calibration(f"uploaded orders, {name}", orders)
            else:
                scores = HeadScores.load(path)
                if scores.model != self.bench.model.id:
                    raise ValueError(f"these scores are of {scores.model}, not of {self.bench.model.id}")
                scores.check_matches(self.bench.geometry)
                found = Calibration(f"uploaded scores, {name}", scores)
        except (ValueError, OSError) as error:
            return gr.skip(), notice("This file is not used: " + without_folder(str(error), path), "error")
        return found, self.in_use(found)

    def scores_file(self, calibration: Calibration | None) -> tuple[Any, Any]:
        scores = (calibration or self.bench.bundled).scores
        if scores is None:
            return gr.skip(), notice("There are no scores: uploaded orders only rank the heads.", "error")
        try:
            data = scores_bytes(scores)
        except OSError as error:
            return gr.skip(), notice(f"The scores can not be written: {error.strerror}.", "error")
        return saved_file(f"{scores.model}-scores.safetensors", "application/octet-stream", data), gr.skip()

    def orders_file(self, calibration: Calibration | None) -> tuple[Any, Any]:
        source = (calibration or self.bench.bundled).source
        orders = source.orders(self.bench.sink_scales) if isinstance(source, HeadScores) else source
        text = orders_to_json(orders, self.bench.geometry)
        return saved_file(f"{self.bench.model.id}-orders.json", "application/json", text.encode()), gr.skip()
