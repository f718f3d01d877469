"""What goes out of the Explore tab and comes in: pictures with what it takes to draw them again, schedules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from app.components import Component
from app.inputs import SAMPLING, InputError, without_folder
from app.jobs import DrawStep
from app.page import MODEL_JOB, PRIVATE, Page, event_data, notice, problem, request_number, saved_file
from app.pictures import file_name, png
from app.recipes import FULL, Calibration, Plan
from app.workbench import Workbench
from heatkv.generate import Generation
from heatkv.policies import REGISTRY
from heatkv.schedule import Schedule, ScheduleError


class Files:
    """The tools under Explore, and the part ``stage``'s event ``save``."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench

    def build(self) -> None:
        with gr.Row(elem_classes="tools", elem_id="schedule-tools"):
            self.upload = gr.UploadButton(
                "Use a schedule file …", file_types=[".json"], size="sm", min_width=130, elem_id="upload-schedule"
            )
            self.remove = gr.Button("Stop using it", size="sm", min_width=130, visible=False, elem_id="uploaded-remove")
        self.notice = Component("notice", elem_id="schedule-notice")
        self.saver = Component("saver", elem_id="explore-saver")

    def wire(self, page: Page, stage: Component, refresh: Any) -> None:
        """``refresh(trigger)`` sends the page another table of budgets after ``trigger``."""
        session = [page.calibration, page.uploaded]
        stage.save(self.save, session, [self.saver, stage], **MODEL_JOB, trigger_mode="multiple", **PRIVATE)
        controls = [page.uploaded, self.notice, self.remove]
        refresh(self.upload.upload(self.take_schedule, self.upload, controls, queue=False, **PRIVATE).then)
        refresh(
            self.remove.click(
                lambda: (None, None, gr.update(visible=False)), None, controls, queue=False, **PRIVATE
            ).then
        )

    def save(
        self, calibration: Calibration | None, uploaded: Schedule | None, event: gr.EventData
    ) -> Iterator[tuple[Any, Any]]:
        """Picture B as PNG with what it takes to draw it again in its text, or B's schedule."""
        data = event_data(event)
        try:
            if data.get("what") == "schedule":
                schedule = self.bench.read_plan(data.get("b"), calibration, uploaded).schedule
                if schedule is None:
                    raise InputError(
                        "This policy decides while it draws: there is no schedule to save. Choose another."
                    )
                name = file_name(schedule.model, schedule.policy, f"{100 * schedule.budget:g}") + ".json"
                yield saved_file(name, "application/json", schedule.to_json().encode()), gr.skip()
                return
            prompt, seed, sampling = self.bench.read_subject(data)
            plan = self.bench.read_plan(data.get("b"), calibration, uploaded, sampling)
            for step in self.bench.jobs.draw(prompt, seed, [plan]):
                if isinstance(step, DrawStep) and step.drawings is not None:
                    yield image_file(step.drawings[0].run, plan), gr.skip()
        except Exception as error:
            yield gr.skip(), {"id": request_number(data), "said": problem(error)}

    def take_schedule(self, path: str | None) -> tuple[Any, Any, Any]:
        """An uploaded schedule, if it is one and fits this model; else a message, and all stays as it was."""
        if not path:
            return (gr.skip(),) * 3
        try:
            schedule = Schedule.load(path)
            schedule.check_matches(self.bench.geometry)
        except (ScheduleError, OSError) as error:
            words = "This schedule is not used: " + without_folder(str(error), path)
            return gr.skip(), notice(words, "error"), gr.skip()
        words = f"Your schedule is in use: {schedule.policy} at {100 * schedule.budget:g} % for {schedule.model}."
        return schedule, notice(words), gr.update(visible=True)


def image_file(run: Generation, plan: Plan) -> dict[str, str]:
    recipe = plan.recipe
    planned = recipe.source != "uploaded" and recipe.policy != FULL and REGISTRY[recipe.policy].needs != "nothing"
    facts = {
        "prompt": run.prompt, "seed": str(run.seed), "model": run.model, "policy": run.policy,
        "budget": f"{run.budget:g}", "forgotten": recipe.forget,
        "storage": recipe.storage or "", "kv_bytes_peak": str(run.kv_bytes_peak),
        "calibration": plan.calibration.label if planned else "",
        "schedule": "from a file" if recipe.source == "uploaded" else "", "software": "HeatKV Explorer",
        **{name: f"{getattr(recipe.sampling, name):g}" for name in SAMPLING if recipe.sampling},
    }  # fmt: skip
    name = file_name(run.prompt, f"seed{run.seed}", run.policy, f"{100 * run.budget:g}") + ".png"
    return saved_file(name, "image/png", png(run.pixels, {key: text for key, text in facts.items() if text}))
