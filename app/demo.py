"""The page: header, tabs and what connects them. ``create_demo`` makes it for any model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr

from app.api import Api
from app.components import Component
from app.inputs import read_link
from app.page import PRIVATE, Page, notice
from app.tabs import about
from app.tabs.budgets import BudgetsTab
from app.tabs.calibrate import CalibrateTab
from app.tabs.compare import CompareTab
from app.tabs.heads import HeadsTab
from app.tabs.methods import MethodsTab
from app.tabs.tour import TourTab
from app.tour import STEPS
from app.workbench import Calibration, Workbench
from heatkv.models.base import GenerativeModel
from heatkv.policies import REGISTRY
from heatkv.schedule import Schedule
from heatkv.scores import HeadScores

STATIC = Path(__file__).parent / "static"
DEFAULT_PERCENT = 35
TITLE = "HeatKV Explorer"
SENTENCE = (
    "Image models that draw scale by scale remember every earlier scale in a KV cache. Turn the budget down: see what "
    "each attention head gives up, and what that does to the image."
)
# Makes a listener that runs in the page, without a request.
TELL = "(value) => {{ window.heatkv.set('{key}', value); }}"


def create_demo(
    model: GenerativeModel,
    scores: HeadScores,
    references: Mapping[str, Any] | None = None,
    prompts: Sequence[str] = (),
    label: str = "bundled calibration",
    comparison: Mapping[str, Any] | None = None,
) -> gr.Blocks:
    """The app for a loaded model.

    Parameters
    ----------
    model, scores
        The model and the calibration that the page opens with.
    references
        Metrics that give a comparison a meaning, see `app.report`; left out where absent.
    prompts
        Prompts that the calibration tab suggests; default: the model's examples.
    label
        Where the calibration is from, in words.
    comparison
        What ``python -m heatkv compare`` found for this model, for the methods tab.
    """
    bench = Workbench(model, scores, references, prompts, label)
    return _Demo(bench, comparison).build()


def launch_options() -> dict[str, Any]:
    """Arguments for ``launch``: the look, and nothing that asks another host."""
    theme = gr.themes.Default(
        primary_hue="orange",
        neutral_hue="stone",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        slider_color="#c2540a",
        slider_color_dark="#ff9e3d",
        body_text_color_subdued="*neutral_500",
        block_info_text_color="*neutral_500",
    )
    # As part of the head: Gradio rewrites the selectors of its ``css`` argument, and so misses what holds the page.
    look, store = ((STATIC / name).read_text(encoding="utf-8") for name in ("page.css", "store.js"))
    return {
        "theme": theme,
        "head": f"<style>{look}</style><script>{store}</script>",
        "footer_links": ["api"],
        "ssr_mode": False,
        "strict_cors": True,
        "max_file_size": "32mb",
        "run_history": False,
    }


class _Demo:
    def __init__(self, bench: Workbench, comparison: Mapping[str, Any] | None = None) -> None:
        self.bench = bench
        self.tour = TourTab(bench)
        self.heads = HeadsTab(bench)
        self.compare = CompareTab(bench)
        self.methods = MethodsTab(bench, comparison or {})
        self.calibrate = CalibrateTab(bench)
        self.budgets = BudgetsTab()
        self.start_policy = next(iter(bench.policies()))
        self.start_percent = max(DEFAULT_PERCENT, bench.percents(self.start_policy)[0])
        self.start_head = self.tour.showcase()

    def build(self) -> gr.Blocks:
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as demo:
            Api(self.bench).wire()  # first, so that its endpoints get the plain names
            page = self._layout()
            self._wire(page)
            opened = demo.load(
                self.open_address,
                None,
                [page.budget, page.policy, page.prompt, page.seed, page.tabs, page.head, self.tour.bar],
                queue=False,
                **PRIVATE,
            )
            self.heads.show_after(opened, page)
        demo.queue(default_concurrency_limit=8, max_size=32)
        return demo

    def _layout(self) -> Page:
        bench = self.bench
        with gr.Row(elem_id="masthead"):
            with gr.Column(scale=8, min_width=260):
                gr.Markdown(f"# {TITLE}\n\n{SENTENCE}")
            with gr.Column(scale=2, min_width=160):
                Component("share")
        with gr.Row(elem_id="controls"):
            budget = gr.Slider(
                bench.percents(self.start_policy)[0],
                100,
                value=self.start_percent,
                step=1,
                label="Budget, % of full cache",
                buttons=[],
                scale=8,
                min_width=200,
                elem_id="budget",
            )
            knobs = Component("knobs", self.table(None, self.start_policy, None))
        policy = gr.Radio(
            self.choices(None),
            value=self.start_policy,
            label="Policy",
            info=REGISTRY[self.start_policy].summary,
            elem_id="policy",
        )
        with gr.Row(visible=False, elem_id="uploaded") as self.uploaded_row:
            self.uploaded_notice = Component("notice", elem_id="uploaded-notice", scale=6)
            self.remove = gr.Button("Stop using it", size="sm", scale=1, min_width=130, elem_id="uploaded-remove")
        self.tour.build_bar()
        page = Page(
            bench, budget, policy, knobs, gr.Tabs(selected="heads", elem_id="tabs", overflow_behavior="wrap"),
            gr.State(None), gr.State(None), gr.State(self.start_head),
        )  # fmt: skip
        with page.tabs:
            for name, label, build in (
                ("tour", "Tour", self.tour.build),
                ("heads", "Heads", lambda: self.heads.build(page)),
                ("compare", "Compare", lambda: self.compare.build(page)),
                ("methods", "Methods", lambda: self.methods.build(page)),
                ("calibrate", "Calibrate", lambda: self.calibrate.build(page)),
                ("budgets", "Budgets", self.budgets.build),
                ("about", "About", lambda: about.build(bench)),
            ):
                with gr.Tab(label, id=name, elem_id=f"tab-{name}", render_children=True) as tab:
                    build()
                chosen = tab.select(None, None, None, js=f"() => {{ window.heatkv.set('tab', '{name}'); }}")
                if name == "heads":
                    self.heads_chosen = chosen
        return page

    def _wire(self, page: Page) -> None:
        for component, key in (
            (page.budget, "budget"),
            (page.policy, "policy"),
            (page.prompt, "prompt"),
            (page.seed, "seed"),
        ):
            component.change(None, component, None, js=TELL.format(key=key))
        self.heads.types_after(self.refresh_after(page.policy.change, page), page)
        self.heads.wire(page)
        self.methods.wire(page)
        # The prompt may be another one by now.
        self.heads.types_after(self.heads.show_after(self.heads_chosen, page), page)
        self.compare.wire(page, lambda event: self.refresh_after(event.then, page))
        self.calibrate.wire(page, lambda event: self.heads.show_after(self.refresh_after(event.then, page), page))
        self.budgets.wire()
        self.tour.wire(page, lambda event: self.heads.show_after(event, page))
        removed = self.remove.click(lambda: None, None, page.uploaded, queue=False, **PRIVATE)
        self.refresh_after(removed.then, page)

    def refresh_after(self, trigger: Any, page: Page) -> Any:
        """After ``trigger``, send the table of what is now to be drawn, and show which controls apply."""
        outputs = [page.knobs, page.policy, page.budget, self.uploaded_row, self.uploaded_notice]
        inputs = [page.calibration, page.policy, page.uploaded, page.budget]
        return trigger(self.refresh, inputs, outputs, queue=False, trigger_mode="always_last", **PRIVATE)

    # --- handlers --------------------------------------------------------------------------------------------------

    def choices(self, calibration: Calibration | None) -> list[tuple[str, str]]:
        return [(policy.title, name) for name, policy in self.bench.policies(calibration).items()]

    def table(self, calibration: Calibration | None, policy: str, uploaded: Schedule | None) -> dict[str, Any]:
        """The value of the ``knobs`` part."""
        examples = self.bench.examples
        layer, head = self.start_head
        defaults = {
            "budget": self.start_percent,
            "policy": self.start_policy,
            "prompt": examples[0] if examples else "",
            "seed": 0,
            "tab": "heads",
            "head": f"{layer + 1}.{head + 1}",
        }
        table = self.bench.table(calibration, policy, uploaded)
        return {**table, "model": self.bench.model.id, "defaults": defaults}

    def refresh(
        self, calibration: Calibration | None, policy: Any, uploaded: Schedule | None, percent: Any
    ) -> tuple[Any, ...]:
        """The table to draw, and the controls that apply to it."""
        allowed = self.bench.policies(calibration)
        chosen = policy if policy in allowed else next(iter(allowed))
        free = uploaded is None
        words = ""
        if uploaded is not None:
            name = f"{uploaded.policy} at {100 * uploaded.budget:g} %"
            words = f"An uploaded schedule is in use ({name}); the budget and the policy above rest."
        return (
            self.table(calibration, chosen, uploaded),
            gr.update(choices=self.choices(calibration), value=chosen, info=REGISTRY[chosen].summary, interactive=free),
            {**self.slider(chosen, percent), "interactive": free},
            gr.update(visible=not free),
            notice(words),
        )

    def slider(self, policy: str, percent: Any) -> dict[str, Any]:
        """The budget's slider for a policy: it starts where its sinks fit, and moves there from below."""
        least = self.bench.percents(policy)[0]
        below = isinstance(percent, (int, float)) and percent < least
        return gr.update(minimum=least, value=least) if below else gr.update(minimum=least)

    def open_address(self, request: gr.Request) -> tuple[Any, ...]:
        """Set the controls as the address says."""
        query, geometry = dict(request.query_params), self.bench.geometry
        link = read_link(query, geometry, self.bench.percents, self.start_policy, len(STEPS))
        percent, policy, tab = link.percent, link.policy, link.tab
        prompt = link.prompt
        if prompt is not None and self.bench.classes is not None:
            with suppress(ValueError):
                prompt = self.bench.read_prompt(prompt)
        head = link.head or self.start_head
        bar = gr.skip()
        chosen = [gr.skip() if value is None else value for value in (percent, policy, prompt, link.seed)]
        if percent is not None and policy is not None:
            chosen[0] = gr.update(minimum=self.bench.percents(policy)[0], value=percent)
        tabs = gr.skip() if tab is None else gr.update(selected=tab)
        if link.tour is not None:
            chosen[0], chosen[1], tabs, head = self.tour.settings(link.tour)
            bar = {"steps": self.tour.steps, "at": link.tour}
        return (*chosen, tabs, head, bar)
