"""Compare: one prompt, drawn with the full cache and with a compressed one, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from app.components import Component
from app.inputs import InputError, read_percent, read_policy, read_seed
from app.page import MODEL_JOB, PRIVATE, Page, notice, problem, saved_file
from app.pictures import data_url, file_name, png
from app.prompts import prompt_field
from app.report import scorecard
from app.workbench import Calibration, Choice, Workbench
from heatkv.generate import Generation
from heatkv.schedule import Schedule, ScheduleError

Result = tuple[Generation, Choice]


class CompareTab:
    def __init__(self, bench: Workbench) -> None:
        self.bench = bench

    def build(self, page: Page) -> None:
        with gr.Row(elem_classes="ends"):
            page.prompt = prompt_field(
                self.bench, self.bench.noun.capitalize(), scale=6, min_width=220, elem_id="prompt"
            )
            page.seed = gr.Number(
                0,
                label="Seed",
                placeholder="any",
                precision=0,
                minimum=0,
                maximum=2**32 - 1,
                scale=2,
                min_width=110,
                elem_id="seed",
            )
            self.generate = gr.Button("Generate", variant="primary", scale=2, min_width=120, elem_id="generate")
            self.cancel = gr.Button("Cancel", scale=1, min_width=90, interactive=False, elem_id="generate-cancel")
        with gr.Row(elem_id="examples"):
            self.examples = [(text, gr.Button(text, size="sm")) for text in self.bench.examples[:8]]
        self.notice = Component("notice", elem_id="compare-notice")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                self.wipe = Component("wipe")
            with gr.Column(scale=6, min_width=320):
                self.card = Component("scorecard")
        with gr.Row(elem_classes="tools"):
            self.save_image = gr.Button(
                "Download image", size="sm", interactive=False, min_width=130, elem_id="save-image"
            )
            self.save_schedule = gr.Button("Download schedule", size="sm", min_width=130, elem_id="save-schedule")
            self.upload = gr.UploadButton(
                "Use a schedule file …", file_types=[".json"], size="sm", min_width=130, elem_id="upload-schedule"
            )
        gr.Markdown(
            "The schedule is the plan for the budget and policy above, as JSON; a file in that format can be used "
            "instead of them.",
            elem_classes="plain-hint",
        )
        self.saver = Component("saver", elem_id="compare-saver")
        self.result = gr.State(None, time_to_live=3600)

    def wire(self, page: Page, refresh: Any) -> None:
        """``refresh(event)`` redraws the head map and the controls after ``event``."""
        inputs = [page.prompt, page.seed, page.budget, page.policy, page.calibration, page.uploaded]
        outputs = [self.wipe, self.card, self.notice, self.result, self.generate, self.cancel, self.save_image]
        submits = [page.prompt.submit] if isinstance(page.prompt, gr.Textbox) else []
        runs: list[Any] = [
            trigger(self.compare, inputs, outputs, **MODEL_JOB, **PRIVATE)
            for trigger in (self.generate.click, *submits)
        ]
        for text, button in self.examples:
            chosen = button.click(lambda text=text: text, None, page.prompt, queue=False, **PRIVATE)
            runs.append(chosen.then(self.compare, inputs, outputs, **MODEL_JOB, **PRIVATE))
        # The page asks to cancel after the handler of the same listener, so what follows is a listener of its own.
        self.cancel.click(None, None, None, cancels=runs).then(
            self.cancelled, None, [self.notice, self.generate, self.cancel], queue=False, **PRIVATE
        )
        self.save_image.click(self.image_file, self.result, self.saver, queue=False, **PRIVATE)
        plan_inputs = [page.budget, page.policy, page.calibration, page.uploaded]
        self.save_schedule.click(self.schedule_file, plan_inputs, [self.saver, self.notice], queue=False, **PRIVATE)
        refresh(
            self.upload.upload(self.take_schedule, self.upload, [page.uploaded, self.notice], queue=False, **PRIVATE)
        )

    # --- handlers --------------------------------------------------------------------------------------------------

    def choice(self, percent: Any, policy: Any, calibration: Calibration | None, uploaded: Schedule | None) -> Choice:
        """The uploaded schedule, or what the controls say."""
        if uploaded is not None:
            return Choice.of(uploaded)
        name = read_policy(policy, self.bench.policies(calibration))
        return self.bench.choose(calibration, read_percent(percent, self.bench.percents(name)) / 100, name)

    def compare(
        self, prompt: Any, seed: Any, percent: Any, policy: Any,
        calibration: Calibration | None, uploaded: Schedule | None,
    ) -> Iterator[Any]:  # fmt: skip
        """Both runs, scale by scale; anything wrong is said and leaves what was there."""
        idle = gr.update(interactive=True), gr.update(interactive=False)
        keep = gr.skip(), gr.skip()
        try:
            text, number = self.bench.read_prompt(prompt), read_seed(seed)
            choice = self.choice(percent, policy, calibration, uploaded)
            note = self.bench.model.check_prompt(str(prompt))  # as it was written: a name may be ambiguous
        except Exception as error:
            yield *keep, notice(problem(error), "error"), gr.skip(), *idle, gr.skip()
            return
        busy = gr.update(interactive=False), gr.update(interactive=True)
        scales = len(self.bench.geometry.scales)
        label = "uploaded schedule" if uploaded is not None else f"{choice.policy}, {100 * choice.budget:g} %"
        frames: list[dict[str, str]] = []
        yield None, gr.skip(), notice(f"Seed {number}: waiting for the model …", "busy"), gr.skip(), *busy, gr.skip()
        try:
            for step in self.bench.compare(text, number, choice):
                last = step.less is not None
                pair = [event.pixels for event in (step.full_event, step.less_event)]
                full, less = (data_url(pixels, preview=not last) for pixels in pair if pixels is not None)
                frames.append({"full": full, "less": less})
                wipe = {"label": label, "frames": list(frames)}
                if step.full is None or step.less is None:
                    words = f"Seed {number}: scale {len(frames)} of {scales} drawn."
                    yield wipe, gr.skip(), notice(words, "busy"), gr.skip(), *busy, gr.skip()
                    continue
                card = scorecard(step.full, step.less, self.bench.geometry, self.bench.references)
                done = notice(note[:1].upper() + note[1:] + "." if note else "")
                yield wipe, card, done, (step.less, choice), *idle, gr.update(interactive=True)
        except Exception as error:
            yield *keep, notice(problem(error), "error"), gr.skip(), *idle, gr.skip()

    def cancelled(self) -> tuple[Any, ...]:
        self.bench.wait_until_idle()
        return notice("Cancelled."), gr.update(interactive=True), gr.update(interactive=False)

    @staticmethod
    def image_file(result: Result | None) -> Any:
        """The compressed image with what it takes to draw it again in its text."""
        if result is None:
            return gr.skip()
        run, choice = result
        facts = {
            "prompt": run.prompt,
            "seed": str(run.seed),
            "model": run.model,
            "policy": run.policy,
            "budget": f"{run.budget:g}",
            "kv_bytes_peak": str(run.kv_bytes_peak),
            "planned_from": choice.planned_from,
            "software": "HeatKV Explorer",
        }
        name = file_name(run.prompt, f"seed{run.seed}", run.policy, f"{100 * run.budget:g}") + ".png"
        return saved_file(name, "image/png", png(run.pixels, facts))

    def schedule_file(
        self, percent: Any, policy: Any, calibration: Calibration | None, uploaded: Schedule | None
    ) -> tuple[Any, Any]:
        try:
            schedule = self.choice(percent, policy, calibration, uploaded).schedule
        except (InputError, ValueError) as error:
            return gr.skip(), notice(problem(error), "error")
        if schedule is None:
            words = "This policy decides while it draws: there is no schedule to download. Choose another policy."
            return gr.skip(), notice(words, "error")
        name = file_name(schedule.model, schedule.policy, f"{100 * schedule.budget:g}") + ".json"
        return saved_file(name, "application/json", schedule.to_json().encode()), gr.skip()

    def take_schedule(self, path: str | None) -> tuple[Any, Any]:
        """An uploaded schedule, if it is one and fits this model; else a message, and all stays as it was."""
        if not path:
            return gr.skip(), gr.skip()
        try:
            schedule = Schedule.load(path)
            schedule.check_matches(self.bench.geometry)
        except (ScheduleError, OSError) as error:
            return gr.skip(), notice("This schedule is not used: " + without_folder(str(error), path), "error")
        words = f"Using the uploaded schedule: {schedule.policy} at {100 * schedule.budget:g} % for {schedule.model}."
        return schedule, notice(words)


def without_folder(text: str, path: str) -> str:
    """A message about an uploaded file, without where this machine put it."""
    import os

    folder = os.path.dirname(path)
    return text.replace(folder + os.sep, "") if folder else text
