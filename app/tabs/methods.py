"""Methods: every policy's quality against its bytes, as measured before, and one prompt under all of them, live."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from app.charts import FORCED, FORCED_WORDS, about, curves, table
from app.charts import metrics as metrics_of
from app.components import Component
from app.inputs import read_percent, read_seed
from app.page import MODEL_JOB, PRIVATE, WISH, Page, cancelled_notice, notice, problem
from app.pictures import data_url
from app.prompts import prompt_field
from app.recipes import Calibration
from app.turns import Waiting
from app.workbench import Workbench
from heatkv.generate import Generation
from heatkv.policies import REGISTRY
from heatkv.scales import ScaleSchedule
from heatkv.study import metrics


class MethodsTab:
    """``comparison`` is the bundled file's content, empty where there is none."""

    def __init__(self, bench: Workbench, comparison: Mapping[str, Any]) -> None:
        self.bench = bench
        self.comparison = comparison
        self.metrics = metrics_of(comparison, bench.geometry.scales)

    def build(self, page: Page) -> None:
        measured = bool(self.metrics)
        gr.Markdown(
            "How close each policy stays to the full cache, and at which bytes. Further left is cheaper; further up is "
            "closer, but for KL, of which less is closer. The broad grey line joins what no other policy beats."
            if measured
            else "No comparison is stored with this model: `python -m heatkv compare` makes one. Below, one prompt can "
            "be drawn under every policy.",
            elem_classes="prose-narrow",
        )
        if any(metric in self.metrics.values() for metric in FORCED):
            gr.Markdown(FORCED_WORDS, elem_classes="prose-narrow", elem_id="methods-forced")
        first = next(iter(self.metrics), None)
        self.metric = gr.Radio(list(self.metrics), value=first, label="Metric", visible=measured, elem_id="metric")
        self.plot = gr.Plot(
            self.curves(first) if measured else None, show_label=False, visible=measured, elem_id="methods-plot"
        )
        gr.Markdown("## One picture under every policy", elem_classes="prose-narrow")
        with gr.Row(elem_classes="ends"):
            self.prompt = prompt_field(
                self.bench, self.bench.noun.capitalize(), scale=6, min_width=200, elem_id="methods-prompt"
            )
            self.draw = gr.Button("Draw all", variant="primary", scale=2, min_width=110, elem_id="methods-draw")
            self.cancel = gr.Button("Cancel", scale=1, min_width=90, interactive=False, elem_id="methods-cancel")
        gr.Markdown(
            "At the budget above, with the seed of the Explore tab; stored and sampled as usual.",
            elem_classes="plain-hint",
        )
        self.progress = Component("progress", elem_id="methods-progress")
        self.notice = Component("notice", elem_id="methods-notice")
        self.sheet = Component("sheet")
        self.table = Component("methods", table(self.comparison, self.bench.geometry.scales))

    def wire(self, page: Page) -> None:
        self.metric.change(self.curves, self.metric, self.plot, queue=False, **PRIVATE)
        inputs = [self.prompt, page.wish, page.calibration]
        outputs = [self.sheet, self.progress, self.notice, self.draw, self.cancel]
        submits = [self.prompt.submit] if isinstance(self.prompt, gr.Textbox) else []
        # One event for both: Gradio lets each run but once at a time, and two runs would write one sheet.
        run = gr.on([self.draw.click, *submits], self.draw_all, inputs, outputs, js=WISH, **MODEL_JOB, **PRIVATE)
        self.cancel.click(None, None, None, cancels=[run]).then(
            self.cancelled, None, outputs[1:], queue=False, **PRIVATE
        )

    # --- handlers --------------------------------------------------------------------------------------------------

    def curves(self, metric: Any) -> Any:
        return curves(self.comparison, self.metrics[metric]) if metric in self.metrics else gr.skip()

    def draw_all(self, prompt: Any, wish: Any, calibration: Calibration | None) -> Iterator[Any]:
        """Picture by picture; what is wrong is said and leaves what was there."""
        idle = gr.update(interactive=True), gr.update(interactive=False)
        try:
            wish = wish if isinstance(wish, Mapping) else {}
            text, number = self.bench.read_prompt(prompt), read_seed(wish.get("seed"))
            share = read_percent(wish.get("percent"), self.bench.percents()) / 100
            self.bench.model.check_prompt(text)
        except Exception as error:
            yield gr.skip(), None, notice(problem(error), "error"), *idle
            return
        busy = gr.update(interactive=False), gr.update(interactive=True)
        of = 1 + len(self.bench.policies(calibration))
        tiles: list[dict[str, Any]] = []
        head = f"“{text}”, seed {number}, {100 * share:g} %"
        full: Generation | None = None
        yield None, {"done": 0, "of": of, "text": "Starting …"}, notice(""), *busy
        try:
            for step in self.bench.jobs.sheet(text, number, calibration, share):
                if isinstance(step, Waiting):
                    if len(tiles) < of:
                        words = f"{len(tiles)} of {of} drawn; in the queue, {step.before} before you"
                        yield gr.skip(), {"done": len(tiles), "of": of, "text": words}, gr.skip(), *busy
                    continue
                if step.run is None and not step.reason:
                    continue
                full = full or step.run
                tiles.append(_tile(step.policy, self.bench.geometry.scales, full, step.run, step.reason))
                progress = {"done": len(tiles), "of": of, "text": f"{len(tiles)} of {of} drawn"}
                done = len(tiles) == of
                yield {"head": head, "tiles": list(tiles)}, progress, gr.skip(), *(idle if done else busy)
        except Exception as error:
            yield gr.skip(), None, notice(problem(error), "error"), *idle

    def cancelled(self) -> tuple[Any, ...]:
        return (
            None,
            cancelled_notice(self.bench, "Cancelled."),
            gr.update(interactive=True),
            gr.update(interactive=False),
        )


def _tile(
    policy: str, scales: ScaleSchedule, full: Generation | None, run: Generation | None, reason: str
) -> dict[str, Any]:
    """One picture of the sheet with its words."""
    found = REGISTRY.get(policy)
    summary, provenance = about(found, scales) if found else ("Nothing is dropped.", "")
    tile = {
        "title": found.title if found else "Full cache",
        "policy": policy,
        "about": summary,
        "provenance": provenance,
        "image": "",
        "words": reason,
    }
    if run is not None and full is not None:
        psnr = metrics.psnr(full.pixels, run.pixels)
        close = "" if run is full else "identical, " if psnr >= metrics.IDENTICAL_PSNR else f"{psnr:.1f} dB, "
        tile["image"] = data_url(run.pixels)
        tile["words"] = f"{close}{run.kv_bytes_peak / 2**20:.2f} MiB ({run.kv_bytes_peak / run.kv_bytes_full:.1%})"
    return tile
