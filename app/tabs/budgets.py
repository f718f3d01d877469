"""Budgets: any published model's budgets without its weights, planned from a ranking in a file."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.components import Component
from app.inputs import InputError, read_batch, read_percent, read_policy, without_folder
from app.page import PRIVATE, notice, problem, saved_file
from app.pictures import file_name
from heatkv.models.infinity.scales import FULL, SIZES
from heatkv.models.presets import PRESETS, Preset
from heatkv.policies import REGISTRY
from heatkv.views import budgets
from heatkv.views.budgets import Ranking

START_MODEL, START_BATCH, START_DTYPE, START_PERCENT = "infinity-2b", 1, "bfloat16", 10
RATIOS = [(f"{ratio} (height / width)" if ratio != "1.0" else "square", ratio) for ratio in sorted(FULL, key=float)]


class BudgetsTab:
    """Knows no model: it looks at published ones, by their geometry alone."""

    def __init__(self) -> None:
        self.tables = budgets.Tables()
        self.played: dict[str, Ranking] = {}  # made up so far, for models other than the one it was asked for

    def build(self) -> None:
        preset = budgets.choose_preset(START_MODEL)
        policy = next(iter(budgets.policies_for(None)))
        gr.Markdown(
            "What a published model's cache takes, and which cells each budget keeps. No weights are needed, only a "
            "file that ranks the heads.",
            elem_classes="prose-narrow",
        )
        with gr.Row():
            self.model = gr.Dropdown(
                list(PRESETS), value=START_MODEL, label="Published model", scale=3, min_width=160, elem_id="pub-model"
            )
            self.size = gr.Dropdown(
                list(SIZES), value=preset.size, label="Size", scale=2, min_width=100, elem_id="pub-size"
            )
            self.ratio = gr.Dropdown(
                RATIOS, value=preset.ratio, label="Shape", scale=3, min_width=140, elem_id="pub-ratio"
            )
            self.batch = gr.Number(
                START_BATCH, label="Images at a time", precision=0, minimum=1, maximum=budgets.MAX_BATCH,
                scale=2, min_width=120, elem_id="pub-batch",
            )  # fmt: skip
            self.dtype = gr.Dropdown(
                list(budgets.OURS), value=START_DTYPE, label="Cache of this program", scale=2, min_width=130,
                elem_id="pub-dtype",
            )  # fmt: skip
        with gr.Row(elem_classes="tools"):
            self.upload = gr.UploadButton(
                "Use an orders or scores file …", file_types=[".json", ".safetensors"], size="sm", min_width=140,
                elem_id="pub-upload",
            )  # fmt: skip
            self.play = gr.Button("Try a made-up ranking", size="sm", min_width=140, elem_id="pub-play")
            self.remove = gr.Button("Stop using it", size="sm", min_width=110, interactive=False, elem_id="pub-remove")
            self.save = gr.Button("Download schedule", size="sm", min_width=130, elem_id="pub-save")
        self.notice = Component("notice", self.in_use(preset, None), elem_id="pub-notice")
        with gr.Row(elem_id="published-controls"):
            self.budget = gr.Slider(
                budgets.percents_of(preset)[0], 100, value=START_PERCENT, step=1, label="Budget, % of full cache",
                buttons=[], scale=7, min_width=200, elem_id="pub-budget",
            )  # fmt: skip
            self.ledger = Component("ledger", self.table(preset, None, policy, START_BATCH, START_DTYPE), scale=5)
        self.policy = gr.Radio(
            self.choices(None),
            value=policy,
            label="Policy",
            info=REGISTRY[policy].summary_for(preset.scales),
            elem_id="published-policy",
        )
        self.map = Component("headmap", elem_id="published-map")
        Component("memory", elem_id="published-memory")
        self.ranking = gr.State(None)
        self.none = gr.State(None)  # stands for the policy where the ranking says which comes first
        self.saver = Component("saver", elem_id="pub-saver")

    def wire(self) -> None:
        of = [self.model, self.size, self.ratio, self.batch, self.dtype, self.policy]
        shown = [self.size, self.ratio, self.policy, self.budget, self.ledger, self.notice, self.remove]
        how: dict[str, Any] = {"queue": False, "trigger_mode": "always_last", **PRIVATE}
        self.budget.change(None, self.budget, None, js="(value) => { window.heatkvPublished.setBudget(value); }")
        self.model.input(self.choose, [self.model, *of[3:], self.budget, self.ranking], shown, **how)
        for trigger in (self.size.input, self.ratio.input, self.batch.input, self.dtype.input, self.policy.input):
            trigger(self.show, [*of, self.budget, self.ranking], shown, **how)
        self.upload.upload(self.take_file, [self.upload, *of[:5], self.budget], [self.ranking, *shown], **how)
        made_up = self.play.click(self.made_up, [self.model, *of[1:3]], self.ranking, **how)
        made_up.then(self.show, [*of[:5], self.none, self.budget, self.ranking], shown, **how)
        removed = self.remove.click(lambda: None, None, self.ranking, **how)
        removed.then(self.show, [*of, self.budget, self.ranking], shown, **how)
        self.save.click(
            self.schedule_file, [*of[:3], self.policy, self.budget, self.ranking], [self.saver, self.notice], **how
        )

    # --- handlers --------------------------------------------------------------------------------------------------

    def table(self, preset: Preset, ranking: Ranking | None, policy: str, batch: int, dtype: str) -> dict[str, Any]:
        table = self.tables.table(preset, ranking, policy)
        value = budgets.table_json(preset, ranking, table, batch, dtype)
        return {**value, "defaults": {"budget": START_PERCENT}}

    @staticmethod
    def choices(ranking: Ranking | None) -> list[tuple[str, str]]:
        return [(policy.title, name) for name, policy in budgets.policies_for(ranking).items()]

    @staticmethod
    def in_use(preset: Preset, ranking: Ranking | None) -> dict[str, str]:
        if ranking is None:
            return notice(f"No ranking is in use. {budgets.what_is_needed(preset)}.")
        if ranking.made_up:
            return notice(
                "In use: a made-up ranking, to see what a plan does. It is of no model: chance says where its heads "
                f"look. {budgets.what_is_needed(preset)}."
            )
        if not ranking.fits(preset):
            needed = budgets.what_is_needed(preset)
            return notice(f"The ranking in use ({ranking.label}) is of another geometry and rests. {needed}.")
        return notice(f"In use: {ranking.label}.")

    def made_up(self, model: Any, size: Any, ratio: Any) -> Any:
        try:
            return budgets.made_up_ranking(budgets.choose_preset(model, size, ratio))
        except ValueError:  # said by what shows it
            return None

    def fitting(self, preset: Preset, ranking: Ranking | None) -> Ranking | None:
        """The ranking in use, if it is of this model; a made-up one is made for any."""
        if ranking is None or ranking.fits(preset):
            return ranking
        if not ranking.made_up:
            return None
        if preset.id not in self.played:
            self.played[preset.id] = budgets.made_up_ranking(preset)
        return self.played[preset.id]

    @staticmethod
    def failed(words: str) -> tuple[Any, ...]:
        return *(gr.skip(),) * 5, notice(words, "error"), gr.skip()

    def choose(
        self, model: Any, batch: Any, dtype: Any, policy: Any, percent: Any, ranking: Ranking | None
    ) -> tuple[Any, ...]:
        """Another model, at its usual size and shape."""
        return self.show(model, "", "", batch, dtype, policy, percent, ranking)

    def show(
        self, model: Any, size: Any, ratio: Any, batch: Any, dtype: Any, policy: Any, percent: Any,
        ranking: Ranking | None,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Controls and table of what was chosen; anything wrong is said, and all stays as it was."""
        try:
            preset = budgets.choose_preset(model, size, ratio)
            fitting = self.fitting(preset, ranking)
            allowed = budgets.policies_for(fitting)
            asked, policy = policy, policy if policy in allowed else next(iter(allowed))
            table = self.table(preset, fitting, policy, read_batch(batch, budgets.MAX_BATCH), dtype)
        except ValueError as error:
            return self.failed(problem(error))
        has_choice = bool(preset.size)
        percents = budgets.percents_of(preset, policy)
        try:
            at = read_percent(percent, percents)
        except InputError:
            at = max(START_PERCENT, percents[0])
        return (
            gr.update(interactive=has_choice, **_unless_same(preset.size or None, size)),
            gr.update(interactive=has_choice, **_unless_same(preset.ratio or None, ratio)),
            gr.update(
                choices=self.choices(fitting),
                info=REGISTRY[policy].summary_for(preset.scales),
                **_unless_same(policy, asked),
            ),
            gr.update(minimum=percents[0], **_unless_same(at, percent)),
            table,
            self.in_use(preset, ranking),
            gr.update(interactive=ranking is not None),
        )

    def take_file(
        self, path: str | None, model: Any, size: Any, ratio: Any, batch: Any, dtype: Any, percent: Any
    ) -> tuple[Any, ...]:
        """Orders or scores of the chosen model; anything else is a message, and all stays as it was."""
        if not path:
            return (gr.skip(),) * 8
        try:
            ranking = budgets.read_ranking(path, budgets.choose_preset(model, size, ratio))
        except (ValueError, OSError) as error:
            return gr.skip(), *self.failed("This file is not used: " + without_folder(str(error), path))
        return ranking, *self.show(model, size, ratio, batch, dtype, None, percent, ranking)

    def schedule_file(
        self, model: Any, size: Any, ratio: Any, policy: Any, percent: Any, ranking: Ranking | None
    ) -> tuple[Any, Any]:
        try:
            preset = budgets.choose_preset(model, size, ratio)
            fitting = self.fitting(preset, ranking)
            name = read_policy(policy, budgets.policies_for(fitting))
            if fitting and fitting.made_up and REGISTRY[name].needs != "nothing":
                raise InputError("A made-up ranking is no model's: a schedule from it would be good for nothing.")
            share = read_percent(percent, budgets.percents_of(preset, name)) / 100
            schedule = budgets.plan_for(preset, fitting, share, name)
        except ValueError as error:
            return gr.skip(), notice(problem(error), "error")
        name = file_name(preset.id, schedule.policy, f"{100 * schedule.budget:g}") + ".json"
        return saved_file(name, "application/json", schedule.to_json().encode()), gr.skip()


def _unless_same(value: Any, shown: Any) -> dict[str, Any]:
    """A control's new value, if it is one: said once more it would undo what somebody has chosen meanwhile."""
    return {} if value == shown else {"value": value}
