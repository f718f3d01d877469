"""The page: header, controls, tabs and what connects them. ``create_pages`` makes it for any models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import Route

import app.sessions  # noqa: F401  (Gradio's own remember too much of everybody)
from app.api import Api
from app.components import Component
from app.lessons.chosen import Chosen
from app.lessons.texts import lessons
from app.page import PRIVATE, WISH, Page, problem
from app.recipes import Calibration, Recipe, read_storage, storages
from app.strips import START_PERCENT, START_PERCENT_BY_LINE, Strip
from app.tabs import about
from app.tabs.budgets import BudgetsTab
from app.tabs.calibrate import CalibrateTab
from app.tabs.explore import ExploreTab
from app.tabs.methods import MethodsTab
from app.turns import Turns
from app.workbench import Workbench
from heatkv.files import program_root
from heatkv.models.base import GenerativeModel
from heatkv.policies import REGISTRY
from heatkv.policies.base import Policy
from heatkv.schedule import Schedule
from heatkv.scores import HeadScores

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("words.js", "edits.js", "plans.js", "colours.js", "sight.js", "qr.js", "view.js", "saves.js")
TITLE = "HeatKV Explorer"
HELLO = "A remembers all it has drawn, B only what the slider allows. Drag it."
TABS = ("explore", "learn", "methods", "calibrate", "published", "about")
GROUPS = ("HeatKV", "Ours", "Peers", "Yardsticks")
LIGHT_PARAMETERS = 50_000_000  # a model up to this draws the page's first pictures unasked


@dataclass(frozen=True, eq=False)
class Exhibit:
    """A loaded model with all that its page shows.

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
        What ``python -m heatkv compare`` found for this model, for the methods tab and the lessons.
    strips
        Pictures that ship with the model (`app.strips`), so that the first visit need not wait.
    chosen
        What the lessons show on this model, and what was counted (`app.lessons`).
    """

    model: GenerativeModel
    scores: HeadScores
    references: Mapping[str, Any] = field(default_factory=dict)
    prompts: Sequence[str] = ()
    label: str = "bundled calibration"
    comparison: Mapping[str, Any] = field(default_factory=dict)
    strips: Sequence[Strip] = ()
    chosen: Chosen = field(default_factory=Chosen)


def create_pages(exhibits: Sequence[Exhibit], home: str = "") -> gr.Blocks:
    """The app for one model or several: the first one's page at the root, the others' at their names.

    A menu leads from one to the other and takes prompt, seed and budget along. The models share one queue. ``home`` is
    the name that links to the first page state, where `launch_options` knows it too.
    """
    turns = Turns()
    benches = [Workbench(e.model, e.scores, e.references, e.prompts, e.label, turns) for e in exhibits]
    models = [
        {"name": bench.model.id, "title": f"{bench.model.id}: by {bench.geometry.scales.word}s", "path": "./" + name}
        for bench, name in zip(benches, ["", *(bench.model.id for bench in benches[1:])], strict=True)
    ]
    taught = [(bench, exhibit.chosen) for bench, exhibit in zip(benches, exhibits, strict=True)]
    demos = [
        _Demo(bench, exhibit.comparison, exhibit.strips, exhibit.chosen, models, taught)
        for bench, exhibit in zip(benches, exhibits, strict=True)
    ]
    demos[0].home = home
    blocks = demos[0].build()
    for demo in demos[1:]:
        with blocks.route(demo.bench.model.id, demo.bench.model.id):
            demo.compose(f"{demo.bench.model.id}-")
    return blocks


def create_demo(model: GenerativeModel, scores: HeadScores, *more: Any, **other: Any) -> gr.Blocks:
    """The app for a single model; takes what an `Exhibit` does."""
    return create_pages([Exhibit(model, scores, *more, **other)])


def launch_options(home: str = "") -> dict[str, Any]:
    """Arguments for ``launch``: the look, and nothing that asks another host.

    A link that names the model ``home``, whose page is at the root, leads there. Links do, as another model may come
    first one day.
    """

    def to_root(request: Request) -> RedirectResponse:
        return RedirectResponse(f"./?{request.url.query}")

    theme = gr.themes.Default(
        primary_hue="orange",
        neutral_hue="stone",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        slider_color="#c2540a",
        slider_color_dark="#ff9e3d",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )
    # As part of the head: Gradio rewrites the selectors of its ``css`` argument, and so misses what holds the page.
    look = (STATIC / "page.css").read_text(encoding="utf-8")
    scripts = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return {
        "theme": theme,
        "head": f"<style>{look}</style><script>{scripts}</script>",
        "footer_links": ["api"],
        "ssr_mode": False,
        "strict_cors": True,
        "max_file_size": "32mb",
        "run_history": False,
        "state_session_capacity": 200,  # visitors whose uploads and calibrations are remembered, the latest
        "max_threads": 80,  # a visitor who waits for a turn holds one
        "app_kwargs": {"routes": [Route(f"/{home}", to_root)] if home else []},
    }


def references() -> str:
    """How to cite every method; empty where the file is absent."""
    try:
        return (program_root() / "assets" / "references.bib").read_text(encoding="utf-8")
    except OSError:
        return ""


def group_of(policy: Policy) -> str:
    """Where a policy stands in the list."""
    if policy.name == "heatkv":
        return "HeatKV"
    return {"ours": "Ours", "reference": "Yardsticks"}.get(policy.provenance, "Peers")


class _Demo:
    def __init__(
        self,
        bench: Workbench,
        comparison: Mapping[str, Any] | None = None,
        strips: Sequence[Strip] = (),
        chosen: Chosen | None = None,
        models: Sequence[Mapping[str, str]] = (),
        taught: Sequence[tuple[Workbench, Chosen]] = (),
    ) -> None:
        self.bench = bench
        self.models = models
        self.home = ""
        self.chosen = chosen or Chosen()
        self.policy = next(iter(bench.policies()))
        start = START_PERCENT_BY_LINE if bench.geometry.scales.by_line else START_PERCENT
        self.percent = max(start, bench.percents(self.policy)[0])
        self.prompt, self.seed = self.chosen.opening or (next(iter(bench.examples), ""), 0)
        parameters = bench.model.about().get("transformer_parameters")
        self.auto = isinstance(parameters, int) and parameters <= LIGHT_PARAMETERS and bool(self.prompt)
        self.explore = ExploreTab(bench, strips)
        self.methods = MethodsTab(bench, comparison or {})
        self.calibrate = CalibrateTab(bench)
        self.budgets = BudgetsTab()
        self.lessons = lessons(bench, self.chosen, comparison or {}, taught)

    def build(self) -> gr.Blocks:
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as demo:
            self.compose()
        demo.queue(default_concurrency_limit=8, max_size=128)
        return demo

    def compose(self, prefix: str = "") -> None:
        """The page's components and what connects them; the names of its endpoints begin with ``prefix``."""
        Api(self.bench).wire(prefix)  # first, so that its endpoints get the plain names
        self._wire(self._layout())

    def _layout(self) -> Page:
        bench = self.bench
        Component("ask", self.ask())
        page = Page(
            bench,
            Component("dial", self.dial(None, self.policy)),
            Component("table", {**bench.table(None, self.policy), "view": self.view()}),
            Component("mail", {"wish": True}, elem_id="wish"),
            Component("mail"),
            gr.Tabs(elem_id="tabs", overflow_behavior="wrap"),
            gr.State(None),
            gr.State(None),
        )  # fmt: skip
        if self.auto:
            self.explore.open_with(self.prompt, self.seed, Recipe(self.policy, self.percent))
        with page.tabs:
            for name, label, build in (
                ("explore", "Explore", lambda: self.explore.build(page, self.lessons)),
                ("learn", "Learn", lambda: Component("lessons", {"lessons": self.lessons})),
                ("methods", "Methods", lambda: self.methods.build(page)),
                ("calibrate", "Calibrate", lambda: self.calibrate.build(page)),
                ("published", "Published models", self.budgets.build),
                ("about", "About", lambda: about.build(bench)),
            ):
                with gr.Tab(label, id=name, elem_id=f"tab-{name}", render_children=True) as tab:
                    build()
                tab.select(None, None, None, js=f"() => {{ window.heatkv.set({{ tab: '{name}' }}, 'look'); }}")
        return page

    def _wire(self, page: Page) -> None:
        self.refresh_after(page.table.policy, page)
        self.explore.wire(page, lambda trigger: self.refresh_after(trigger, page))
        self.methods.wire(page)
        self.calibrate.wire(page, lambda event: self.refresh_after(event.then, page))
        self.budgets.wire()

    def refresh_after(self, trigger: Any, page: Page) -> Any:
        """After ``trigger``, send the table of what is now to be drawn, and the controls that apply."""
        inputs = [page.calibration, page.uploaded, page.wish]
        return trigger(
            self.refresh, inputs, [page.table, page.dial], js=WISH, queue=False, trigger_mode="always_last", **PRIVATE
        )

    # --- handlers --------------------------------------------------------------------------------------------------

    def ask(self) -> dict[str, Any]:
        classes = self.bench.classes
        names = self.bench.examples if classes is None else [classes.title(i) for i in range(classes.count)]
        return {
            "examples": list(names), "models": list(self.models), "model": self.bench.model.id,
            "sampling": self.bench.sampling_fields(),
        }  # fmt: skip

    def view(self) -> dict[str, Any]:
        """What the page opens with, for its store."""
        profiles = self.bench.profiles(None)
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "percent": self.percent,
            "policy": self.policy,
            "policies": list(self.bench.policies()),
            "titles": {name: policy.title for name, policy in REGISTRY.items()},
            "storages": storages(self.bench.geometry),
            "head": list(profiles.showcase) if profiles else [0, 0],
            "tabs": list(TABS),
            "hello": HELLO,
            "auto": self.auto,
            "home": self.home,
            "references": references(),
        }

    def dial(
        self, calibration: Calibration | None, policy: str, storage: str | None = None, refused: str = ""
    ) -> dict[str, Any]:
        """The policies to choose from, in groups, and the chosen one; how it stores cells, or why not as was asked."""
        allowed = self.bench.policies(calibration)
        scales = self.bench.geometry.scales
        groups: dict[str, list[dict[str, Any]]] = {name: [] for name in GROUPS}
        for p in allowed.values():
            about = {"name": p.name, "title": p.title, "summary": p.summary_for(scales), "static": p.static}
            groups[group_of(p)].append(about)
        return {
            "groups": [{"name": name, "policies": found} for name, found in groups.items() if found],
            "policy": policy,
            "storages": storages(self.bench.geometry),
            "storage": storage or "",
            "refused": refused,
        }

    def refresh(self, calibration: Calibration | None, uploaded: Schedule | None, wish: Any) -> tuple[Any, Any]:
        """The table to draw, and the controls that apply to it."""
        allowed = self.bench.policies(calibration)
        policy = wish.get("policy") if isinstance(wish, Mapping) else None
        chosen = policy if isinstance(policy, str) and policy in allowed else next(iter(allowed))
        asked = wish.get("storage") if isinstance(wish, Mapping) else None
        storage, refused = None, ""
        try:
            storage = read_storage(asked, chosen, self.bench.geometry)
        except ValueError as error:
            refused = problem(error)
        table = self.bench.table(calibration, chosen, uploaded, storage)
        return table, self.dial(calibration, chosen, storage, refused)
