"""The endpoints that programs call: typed, with their own words for errors."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import gradio as gr

from app.inputs import MAX_PROMPTS, InputError, read_policy, read_sampling, read_seed
from app.page import MODEL_JOB, refusal
from app.pictures import png
from app.recipes import FULL, Plan, Recipe, read_storage
from app.report import scorecard
from app.turns import Waiting
from app.workbench import Workbench
from heatkv.files import is_number
from heatkv.models.base import Sampling
from heatkv.scores import HeadScores, orders_to_json
from heatkv.views.knockout import KnockOut


class Api:
    """``/generate``, ``/draw``, ``/compare``, ``/knockout``, ``/calibrate``, ``/plan`` on the bundled calibration."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench

    def wire(self, prefix: str = "") -> None:
        gr.api(self.generate, api_name=f"{prefix}generate", **MODEL_JOB)
        gr.api(self.calibrate, api_name=f"{prefix}calibrate", **MODEL_JOB)
        gr.api(self.plan, api_name=f"{prefix}plan")
        gr.api(self.compare, api_name=f"{prefix}compare", **MODEL_JOB)
        gr.api(self.knockout, api_name=f"{prefix}knockout", **MODEL_JOB)
        gr.api(self.draw, api_name=f"{prefix}draw", **MODEL_JOB)

    def plan(self, budget: float, policy: str = "heatkv", storage: str = "") -> dict[str, Any]:
        """Plan a schedule for a budget.

        Parameters:
            budget: Peak cached tokens as a share of the full cache's peak, for example 0.35.
            policy: Name of a static policy.
            storage: How cells are stored, such as "int8"; empty for the policy's own way.
        Returns:
            The schedule in the heatkv-schedule format.
        """
        try:
            schedule = self._plan(policy, budget, storage=storage).schedule
            if schedule is None:
                raise InputError(f"Policy {policy!r} decides while it draws and has no schedule.")
            found: dict[str, Any] = json.loads(schedule.to_json())
        except Exception as error:
            raise refusal(error) from error
        return found

    def generate(
        self, prompt: str, seed: int = 0, budget: float = 1.0, policy: str = "heatkv"
    ) -> Iterator[dict[str, Any]]:
        """Draw one image with the full cache and one under a budget, scale by scale.

        Parameters:
            prompt: What to draw; of a class-conditional model a class, by name or number.
            seed: Seed of the sampling noise, which both images share.
            budget: Peak cached tokens as a share of the full cache's peak.
            policy: Name of a policy.
        Returns:
            After every scale {"scale", "of"}; at the end also both images (PNG, base64), metrics and bytes.
        """
        yield from self.draw(prompt, seed, budget, policy)

    def draw(
        self, prompt: str, seed: int = 0, budget: float = 1.0, policy: str = "heatkv", guidance: float | None = None,
        temperature: float | None = None, top_k: int | None = None, top_p: float | None = None, storage: str = "",
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        """The same as generate, with a say in how tokens are drawn and cells stored.

        Parameters:
            prompt: What to draw; of a class-conditional model a class, by name or number.
            seed: Seed of the sampling noise, which both images share.
            budget: Peak cached tokens as a share of the full cache's peak.
            policy: Name of a policy.
            guidance: Strength of the prompt; this and what follows: null for the model's own setting.
            temperature: Divides the logits.
            top_k: Values that may be drawn, 0 for all.
            top_p: Probability that the values that may be drawn make up, 0 for all.
            storage: How cells are stored, such as "int8"; empty for the policy's own way. Not for policies that choose
                tokens while they draw.
        Returns:
            After every scale {"scale", "of"}; at the end also both images (PNG, base64), metrics and bytes.
        """
        try:
            way = read_sampling(self.bench.model.sampling, guidance, temperature, top_k, top_p)
            plans = [self._plan(FULL, 1.0, sampling=way), self._plan(policy, budget, sampling=way, storage=storage)]
            for at, card in self._draw(prompt, seed, plans):
                if card:
                    at |= {"policy": policy, "budget": budget, "full_png": at.pop("a_png")}
                    at |= {"compressed_png": at.pop("b_png"), "kv_bytes_peak": at.pop("kv_bytes_b")}
                    del at["kv_bytes_a"]
                yield at
        except Exception as error:
            raise refusal(error) from error

    def compare(
        self, prompt: str, seed: int = 0, policy_a: str = "full", budget_a: float = 1.0, forget_a: str = "",
        policy_b: str = "heatkv", budget_b: float = 0.35, forget_b: str = "", guidance: float | None = None,
        temperature: float | None = None, top_k: int | None = None, top_p: float | None = None, storage_a: str = "",
        storage_b: str = "",
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        """Draw one image by recipe A and one by recipe B, with the same noise.

        Parameters:
            prompt: What to draw; of a class-conditional model a class, by name or number.
            seed: Seed of the sampling noise, which both images share.
            policy_a: Name of a policy, or "full" for the full cache.
            budget_a: Peak cached tokens as a share of the full cache's peak.
            forget_a: Cells forgotten by hand on top: "6" layer 6, "6.3" its head 3, "6.3.2" a cell, "s4" the fourth
                scale or, where a picture is drawn by lines, the third line: the condition is the first.
            policy_b: As policy_a.
            budget_b: As budget_a.
            forget_b: As forget_a.
            guidance: Strength of the prompt; this and what follows: null for the model's own setting.
            temperature: Divides the logits.
            top_k: Values that may be drawn, 0 for all.
            top_p: Probability that the values that may be drawn make up, 0 for all.
            storage_a: How cells are stored, such as "int8"; empty for the policy's own way. Not for the full cache, nor
                for policies that choose tokens while they draw.
            storage_b: As storage_a.
        Returns:
            After every scale {"scale", "of"}; at the end also both images (PNG, base64), metrics of B against A, bytes.
        """
        try:
            way = read_sampling(self.bench.model.sampling, guidance, temperature, top_k, top_p)
            sides = (policy_a, budget_a, forget_a, storage_a), (policy_b, budget_b, forget_b, storage_b)
            plans = [self._plan(*side, sampling=way) for side in sides]
            for at, _ in self._draw(prompt, seed, plans):
                yield at
        except Exception as error:
            raise refusal(error) from error

    def knockout(self, prompt: str, seed: int = 0) -> Iterator[dict[str, Any]]:
        """Measure on one image how far it moves when a single head may remember nothing, head by head.

        Parameters:
            prompt: What to draw; of a class-conditional model a class, by name or number.
            seed: Seed of the sampling noise.
        Returns:
            After every head {"heads", "of"}; at the end also "moved" (root mean square difference, 0 to 255) and
            "psnr" (dB), both [layer][head].
        """
        try:
            text, number, geometry = self._prompt(prompt), read_seed(seed), self.bench.geometry
            found: dict[tuple[int, int], KnockOut] = {}
            for step in self.bench.jobs.knock_out((text, number, None)):
                if isinstance(step, KnockOut):
                    found[step.layer, step.head] = step
                    at: dict[str, Any] = {"heads": len(found), "of": geometry.head_count}
                    if len(found) == geometry.head_count:
                        rows = [[found[i, j] for j in range(geometry.heads)] for i in range(geometry.layers)]
                        at["moved"] = [[one.moved for one in row] for row in rows]
                        at["psnr"] = [[one.psnr for one in row] for row in rows]
                    yield at
        except Exception as error:
            raise refusal(error) from error

    def calibrate(self, prompts: list[str], seed: int = 0) -> Iterator[dict[str, Any]]:
        """Measure where every head looks.

        Parameters:
            prompts: 1 to 64 prompts.
            seed: Prompt i is drawn with seed + i.
        Returns:
            After every prompt {"prompts", "of"}; at the end also head orders and a scores file (base64).
        """
        try:
            if not isinstance(prompts, list) or not 1 <= len(prompts) <= MAX_PROMPTS:
                raise InputError(f"Pass a list of 1 to {MAX_PROMPTS} prompts.")
            chosen = [self._prompt(prompt) for prompt in prompts]
            for scores in self.bench.jobs.calibrate(chosen, read_seed(seed)):
                if isinstance(scores, Waiting):
                    continue
                at: dict[str, Any] = {"prompts": scores.count, "of": len(chosen)}
                if scores.count == len(chosen):
                    orders = scores.orders(self.bench.sink_scales)
                    at["orders"] = json.loads(orders_to_json(orders, self.bench.geometry))
                    at["scores_file"] = _text(scores_bytes(scores))
                yield at
        except Exception as error:
            raise refusal(error) from error

    def _draw(
        self, prompt: Any, seed: Any, plans: list[Plan]
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
        """What a program hears while two pictures grow; with the last step the scorecard."""
        text, number = self._prompt(prompt), read_seed(seed)
        of = len(self.bench.geometry.scales.drawn)
        for step in self.bench.jobs.draw(text, number, plans):
            if isinstance(step, Waiting):
                if step.before:
                    yield {"scale": 0, "of": of, "before": step.before}, None
            elif step.drawings is not None:
                a, b = (drawing.run for drawing in step.drawings)
                card = scorecard(a, b, self.bench.geometry, self.bench.references)
                at = {
                    "scale": of, "of": of, "model": b.model, "prompt": text, "seed": number,
                    "a_png": _text(png(a.pixels)), "b_png": _text(png(b.pixels)),
                    "psnr": card["psnr"], "psnr_foreground": card["psnr_foreground"], "ssim": card["ssim"],
                    "bit_agreement": card["bits"], "kv_bytes_a": a.kv_bytes_peak, "kv_bytes_b": b.kv_bytes_peak,
                    "kv_bytes_full": b.kv_bytes_full, "seconds": b.seconds, "note": b.note,
                }  # fmt: skip
                yield at, card
            elif step.step < of - 1:
                yield {"scale": step.step + 1, "of": of}, None

    def _prompt(self, value: Any) -> str:
        """A prompt that the model can read: what is wrong with it is said before anybody waits."""
        text = self.bench.read_prompt(value)
        self.bench.model.check_prompt(text)
        return text

    def _plan(
        self, policy: Any, budget: Any, forget: Any = "", storage: Any = "", sampling: Sampling | None = None
    ) -> Plan:
        if not is_number(budget):
            raise InputError("The budget must be a number above 0 and up to 1.")
        if policy != FULL:
            read_policy(policy, self.bench.policies())
        if not isinstance(forget, str):
            raise InputError("The list of forgotten cells must be a text, for example 6.3,s4.")
        way = read_storage(storage, policy, self.bench.geometry)
        plan = self.bench.plan_of(Recipe(policy, 100 * float(budget), forget=forget, sampling=sampling, storage=way))
        plan.make_cache()  # says what is wrong with it before anybody waits
        return plan


def scores_bytes(scores: HeadScores) -> bytes:
    """A scores file as bytes; written and read back, so that there is one way to make it."""
    with tempfile.TemporaryDirectory(prefix="heatkv-") as folder:
        path = os.path.join(folder, "scores.safetensors")
        scores.save(path)
        with open(path, "rb") as file:
            return file.read()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
