"""One head of the model, for the Explore tab: its card, what it reads in the picture, and what policies take it for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from app import headtypes
from app.cards import failed, head_card
from app.inputs import read_head, read_percent
from app.jobs import Probe
from app.page import Newest, problem
from app.recipes import Calibration
from app.turns import Waiting
from app.workbench import Workbench
from heatkv.schedule import Schedule


class HeadCards:
    """Handlers of the parts ``headmap``, ``headcard`` and ``headtypes``; they take and return plain values."""

    def __init__(self, bench: Workbench, newest: Newest) -> None:
        self.bench = bench
        self.newest = newest

    def show(self, calibration: Calibration | None, event: gr.EventData, request: gr.Request) -> Any:
        """The card of a head from what is at hand. ``event``: {id, layer, head, prompt, seed, sampling, target}.

        What was being drawn for the card before ends.
        """
        data, *_ = self.newest.asked("probe", event, request)
        try:
            head, subject = read_head(data, self.bench.geometry), self.bench.read_subject(data)
        except ValueError:  # the page sends no such head, and a bad prompt is said where it is drawn
            return gr.skip()
        return self.card(head, calibration, self.bench.jobs.known_probe(subject, head), data.get("target"))

    def draw_card(self, calibration: Calibration | None, event: gr.EventData, request: gr.Request) -> Iterator[Any]:
        """Draw the image and record what its heads read, unless it is at hand by now: others ask too."""
        data, _, wanted = self.newest.asked("probe", event, request)
        try:
            head, subject = read_head(data, self.bench.geometry), self.bench.read_subject(data)
        except ValueError:
            return
        known = self.bench.jobs.known_probe(subject, head)
        if known is not None:
            yield self.card(head, calibration, known, data.get("target"))
            return
        try:
            for found in self.bench.jobs.probe(subject, head):
                if not wanted():
                    yield gr.skip()  # or Gradio says once more, at the end, what was said last
                    return
                if isinstance(found, Probe):
                    yield self.card(head, calibration, found, data.get("target"))
                elif isinstance(found, Waiting):
                    words = "To see what it reads, this picture is drawn once more. In the queue: "
                    yield {**self.card(head, calibration, None), "message": f"{words}{found.before} before you."}
        except Exception as error:
            if wanted():
                yield failed(self.card(head, calibration, None), problem(error))

    def card(
        self, head: tuple[int, int], calibration: Calibration | None, probe: Probe | None, target: Any = None
    ) -> dict[str, Any]:
        label = (calibration or self.bench.bundled).label
        return head_card(self.bench, self.bench.profiles(calibration), label, head, probe, target)

    def opening(self, unasked: bool) -> dict[str, Any] | None:
        """The card that the page opens with; ``unasked``: the page draws by itself, what a head reads too."""
        profiles = self.bench.profiles(None)
        if profiles is None:
            return None
        card = self.card(profiles.showcase, None, None)
        return card if unasked else {**card, "message": "Draw a picture, or choose a head, to see what it reads."}

    def head_types(
        self, calibration: Calibration | None, uploaded: Schedule | None, event: gr.EventData, request: gr.Request
    ) -> Iterator[Any]:
        """HACK's types from the calibration, HeadKV's from drawing the image; nothing for the others.

        ``event``: {id, policy, percent, prompt, seed, sampling}.
        """
        data, _, wanted = self.newest.asked("types", event, request)
        policy = data.get("policy")
        if policy not in headtypes.POLICIES or uploaded is not None:
            yield None
            return
        found = calibration or self.bench.bundled
        try:
            if policy == "hack" and found.scores is not None:
                yield headtypes.hack_types(found.scores, found.label)
            elif policy == "headkv":
                subject = self.bench.read_subject(data)
                yield headtypes.message("Drawing the image to see which heads look near …")
                share = read_percent(data.get("percent"), self.bench.percents("headkv")) / 100
                for types in self.bench.jobs.local_heads(subject, share):
                    if not wanted():
                        yield gr.skip()
                        return
                    if isinstance(types, Waiting):
                        yield headtypes.message(f"In the queue: {types.before} before you.")
                    elif isinstance(types, tuple):
                        about, scales = f"“{subject[0]}”, seed {subject[1]},", self.bench.geometry.scales
                        yield headtypes.headkv_types(*types, about, scales, self.bench.profiles(found), found.label)
            else:
                yield None
        except Exception as error:
            if wanted():
                yield headtypes.message(problem(error))
