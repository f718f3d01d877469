"""Explore: two pictures, the budget, the policy and the head map on one screen; what is turned is seen at once.

The page sends what it wants drawn, with a number; only a visitor's newest number counts, and older jobs end by
themselves. Handlers take and return plain values.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import gradio as gr

from app.components import Component
from app.gallery import Drawing
from app.inputs import capital
from app.jobs import DrawStep
from app.page import MODEL_JOB, PRIVATE, Newest, Page, event_data, problem, request_number
from app.pictures import data_url
from app.readers import Abandoned
from app.recipes import Calibration, Plan, Recipe
from app.report import score, scorecard
from app.strips import Strip, strip_percents
from app.tabs.files import Files
from app.tabs.head import HeadCards
from app.turns import Waiting
from app.workbench import Workbench
from heatkv.schedule import Schedule
from heatkv.views.explore import packed

STREAM_SECONDS = 0.15  # pictures that grow are sent no more often than this


class ExploreTab:
    def __init__(self, bench: Workbench, strips: Sequence[Strip] = ()) -> None:
        self.bench = bench
        self.strips = {(strip.prompt, strip.seed, strip.policy): strip for strip in strips}
        self.newest = Newest()
        self.heads = HeadCards(bench, self.newest)
        self.files = Files(bench)
        self.opening: tuple[Any, Any] = None, None

    def build(self, page: Page, lessons: list[dict[str, Any]]) -> None:
        Component("lesson", {"lessons": lessons})
        with gr.Row(elem_id="explore-row", equal_height=False):
            with gr.Column(scale=48, min_width=300):
                self.stage = Component("stage", self.opening[0])
            with gr.Column(scale=52, min_width=300):
                page.map = Component("headmap")
        with gr.Row(elem_id="explore-more", equal_height=False):
            with gr.Column(scale=6, min_width=300):
                self.details = Component("scorecard", self.opening[1])
                Component("memory")
            with gr.Column(scale=6, min_width=300):
                self.card = Component("headcard", self.heads.opening(unasked=self.opening[0] is not None))
                Component("heads")
                self.types = Component("headtypes")
        self.files.build()

    def wire(self, page: Page, refresh: Any) -> None:
        """``refresh(trigger)`` sends the page another table of budgets after ``trigger``."""
        session = [page.calibration, page.uploaded]
        stage, head_map = self.stage, page.map
        often: dict[str, Any] = {"trigger_mode": "multiple", **PRIVATE}
        stage.draw(self.draw, session, [stage, self.details], **MODEL_JOB, **often)
        stage.strip(self.strip, session, page.mail, **MODEL_JOB, **often)
        head_map.knock(self.knock_out, None, page.mail, **MODEL_JOB, **often)
        for part in (stage, head_map):
            part.halt(self.halt, None, None, queue=False, **often)
        self.card.open(self.heads.show, page.calibration, self.card, queue=False, **often)
        self.card.probe(self.heads.draw_card, page.calibration, self.card, **MODEL_JOB, **often)
        page.dial.types(self.heads.head_types, session, self.types, **MODEL_JOB, **often)
        self.files.wire(page, stage, refresh)

    def open_with(self, prompt: str, seed: int, b: Recipe) -> None:
        """Draw the pair that the page opens with, before anybody comes."""
        plans = [self.bench.plan_of(recipe) for recipe in (Recipe(), b)]
        for step in self.bench.jobs.draw(prompt, seed, plans):
            if isinstance(step, DrawStep) and step.drawings is not None:
                value, card = self._finished(0, prompt, seed, plans, step.drawings)
                strip = self.strips.get((prompt, seed, b.policy))
                opening = {"a": asdict(Recipe()), "b": asdict(b), "strip": strip.value()["pictures"] if strip else None}
                self.opening = {**value, "opening": opening}, card

    # --- pictures --------------------------------------------------------------------------------------------------

    def draw(
        self, calibration: Calibration | None, uploaded: Schedule | None, event: gr.EventData, request: gr.Request
    ) -> Iterator[Any]:
        """Pictures A and B, growing; then the score. ``event``: {id, prompt, seed, sampling, a, b, has}."""
        data, number, wanted = self.newest.asked("draw", event, request)
        try:
            prompt, seed, sampling = self.bench.read_subject(data)
            note = self.bench.model.check_prompt(str(data.get("prompt")))
            plans = [self.bench.read_plan(data.get(side), calibration, uploaded, sampling) for side in ("a", "b")]
        except Exception as error:
            yield {"id": number, "error": problem(error)}, gr.skip()
            return
        of, sent = len(self.bench.geometry.scales.drawn), 0.0
        try:
            for step in self.bench.jobs.draw(prompt, seed, plans):
                if not wanted():
                    return
                if isinstance(step, Waiting):
                    yield {"id": number, "waiting": step.before, "sign": time.monotonic()}, gr.skip()
                elif step.drawings is None:
                    if time.monotonic() - sent >= STREAM_SECONDS:
                        sent = time.monotonic()
                        yield {"id": number, **self._growing(step), "of": of}, gr.skip()
                else:
                    value, card = self._finished(number, prompt, seed, plans, step.drawings, data.get("has"))
                    yield {**value, "note": _sentence(note)}, card
        except Exception as error:
            again = {"again": True} if isinstance(error, Abandoned) else {}
            yield {"id": number, "error": problem(error), **again}, gr.skip()

    def strip(
        self, calibration: Calibration | None, uploaded: Schedule | None, event: gr.EventData, request: gr.Request
    ) -> Iterator[Any]:
        """B's picture at a few budgets, in the background; ``event``: {id, prompt, seed, sampling, b, key, shipped}."""
        data = event_data(event)
        try:
            prompt, seed, sampling = self.bench.read_subject(data)
            plan = self.bench.read_plan(data.get("b"), calibration, uploaded, sampling)
            recipe, key = plan.recipe, str(data.get("key"))[:2000]
            shipped = self.strips.get((prompt, seed, recipe.policy))
            if shipped is not None and recipe == Recipe(recipe.policy, recipe.percent):
                value = shipped.value()
                about = {"to": "strip", "key": key, "of": len(value["pictures"])}
                yield {**about, "pictures": value["pictures"], "full": value["full"]}
                return
            if data.get("shipped"):  # only what lies ready: a strip that is being drawn goes on
                return
            *_, wanted = self.newest.asked("strip", event, request)
            percents = strip_percents(self.bench, recipe, calibration)
            plans = [replace(plan, recipe=replace(recipe, percent=percent)) for percent in percents]
            pictures: list[dict[str, Any]] = []
            for step in self.bench.jobs.strip(prompt, seed, plans):
                if not wanted():
                    return
                if not isinstance(step, Waiting):
                    index, drawing = step
                    pictures.append({"percent": percents[index], "image": drawing.frames[-1]})
                    # A page that is busy sees of several messages the last alone: so that one has them all.
                    told = pictures if len(pictures) == len(plans) else pictures[-1:]
                    yield {"to": "strip", "key": key, "of": len(plans), "pictures": told}
        except Exception:  # what is wrong with the recipe is said where it is drawn
            return

    def halt(self, event: gr.EventData, request: gr.Request) -> None:
        """Stop what this visitor has running. ``event``: {id, kind}."""
        data = event_data(event)
        kind = data.get("kind")
        if kind in ("draw", "knock"):
            self.newest.ask(str(request.session_hash), str(kind), request_number(data))

    def knock_out(self, event: gr.EventData, request: gr.Request) -> Iterator[Any]:
        """How far the picture moves without each head. ``event``: {id, prompt, seed, sampling, subject}."""
        data, number, wanted = self.newest.asked("knock", event, request)
        geometry = self.bench.geometry
        moved = [[None] * geometry.heads for _ in range(geometry.layers)]  # type: list[list[float | None]]
        psnr = [[None] * geometry.heads for _ in range(geometry.layers)]  # type: list[list[float | None]]
        done = 0
        try:
            subject = self.bench.read_subject(data)
            about = {
                "to": "knocked",
                "id": number,
                "of": geometry.head_count,
                "subject": str(data.get("subject"))[:2000],
            }
            for step in self.bench.jobs.knock_out(subject):
                if not wanted():
                    return
                if isinstance(step, Waiting):
                    yield {**about, "done": done, "waiting": step.before, "moved": moved, "psnr": psnr}
                elif step is not None:
                    moved[step.layer][step.head], psnr[step.layer][step.head] = step.moved, step.psnr
                    done += 1
                    yield {**about, "done": done, "moved": moved, "psnr": psnr}
        except Exception as error:
            yield {"to": "knocked", "id": number, "error": problem(error)}

    def _finished(
        self, number: int, prompt: str, seed: int, plans: Sequence[Plan], drawings: Sequence[Drawing], has: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Both pictures with their score, and the score in full."""
        a, b = drawings
        card = scorecard(
            a.run, b.run, self.bench.geometry, self.bench.references, plans[0].recipe.label, plans[1].recipe.label
        )
        pictures = self._picture(plans[0], a, has), self._picture(plans[1], b, None)
        value = {"id": number, "prompt": prompt, "seed": seed, "a": pictures[0], "b": pictures[1], "score": score(card)}
        return value, card

    def _growing(self, step: DrawStep) -> dict[str, Any]:
        a, b = (None if pixels is None else data_url(pixels, preview=True) for pixels in step.previews)
        return {"step": step.step + 1, "growing": {"a": a, "b": b}}

    def _picture(self, plan: Plan, drawing: Drawing, has: Any) -> dict[str, Any]:
        """A finished picture for the page; without its pixels where the page has them."""
        run = drawing.run
        picture = {
            "key": f"{run.prompt}|{run.seed}|{plan.key}", "label": plan.recipe.label, "peak": run.kv_bytes_peak,
            "held": [event.kv_bytes for event in run.scales], "kept": None,
        }  # fmt: skip
        if drawing.kept_LHS is not None:
            picture["kept"] = packed((drawing.kept_LHS * 65535).round(), "u2")
        if has != picture["key"]:
            picture |= {"image": drawing.frames[-1], "frames": list(drawing.frames)}
        return picture


def _sentence(note: str | None) -> str:
    return f"{capital(note)}." if note else ""
