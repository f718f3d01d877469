"""The endpoints that programs call: typed, with their own words for errors."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import gradio as gr

from app.inputs import MAX_PROMPTS, InputError, read_policy, read_seed
from app.page import MODEL_JOB, problem
from app.pictures import png
from app.report import scorecard
from app.workbench import Choice, Workbench
from heatkv.scores import HeadScores, orders_to_json


class Api:
    """``/generate``, ``/calibrate`` and ``/plan`` on the bundled calibration."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench

    def wire(self) -> None:
        gr.api(self.generate, api_name="generate", **MODEL_JOB)
        gr.api(self.calibrate, api_name="calibrate", **MODEL_JOB)
        gr.api(self.plan, api_name="plan")

    def plan(self, budget: float, policy: str = "heatkv") -> dict[str, Any]:
        """Plan a schedule for a budget.

        Parameters:
            budget: Peak cached tokens as a share of the full cache's peak, for example 0.35.
            policy: Name of a static policy.
        Returns:
            The schedule in the heatkv-schedule format.
        """
        try:
            choice = self._choice(budget, policy)
            if choice.schedule is None:
                raise InputError(f"Policy {choice.policy!r} decides while it draws and has no schedule.")
            found: dict[str, Any] = json.loads(choice.schedule.to_json())
        except Exception as error:
            raise gr.Error(problem(error)) from error
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
        try:
            text, number, choice = self.bench.read_prompt(prompt), read_seed(seed), self._choice(budget, policy)
            of = len(self.bench.geometry.scales)
            for step in self.bench.compare(text, number, choice):
                at: dict[str, Any] = {"scale": step.less_event.scale + 1, "of": of}
                if step.full is not None and step.less is not None:
                    card = scorecard(step.full, step.less, self.bench.geometry, self.bench.references)
                    at |= {
                        "model": step.less.model, "prompt": text, "seed": number, "policy": policy, "budget": budget,
                        "full_png": _text(png(step.full.pixels)), "compressed_png": _text(png(step.less.pixels)),
                        "psnr": card["psnr"], "psnr_foreground": card["psnr_foreground"], "ssim": card["ssim"],
                        "bit_agreement": card["bits"], "kv_bytes_peak": step.less.kv_bytes_peak,
                        "kv_bytes_full": step.less.kv_bytes_full, "seconds": step.less.seconds, "note": step.less.note,
                    }  # fmt: skip
                yield at
        except Exception as error:
            raise gr.Error(problem(error)) from error

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
            chosen = [self.bench.read_prompt(prompt) for prompt in prompts]
            for scores in self.bench.calibrate(chosen, read_seed(seed)):
                at: dict[str, Any] = {"prompts": scores.count, "of": len(chosen)}
                if scores.count == len(chosen):
                    orders = scores.orders(self.bench.sink_scales)
                    at["orders"] = json.loads(orders_to_json(orders, self.bench.geometry))
                    at["scores_file"] = _text(scores_bytes(scores))
                yield at
        except Exception as error:
            raise gr.Error(problem(error)) from error

    def _choice(self, budget: Any, policy: Any) -> Choice:
        if isinstance(budget, bool) or not isinstance(budget, (int, float)):
            raise InputError("The budget must be a number above 0 and up to 1.")
        return self.bench.choose(None, float(budget), read_policy(policy, self.bench.policies()))


def scores_bytes(scores: HeadScores) -> bytes:
    """A scores file as bytes; written and read back, so that there is one way to make it."""
    with tempfile.TemporaryDirectory(prefix="heatkv-") as folder:
        path = os.path.join(folder, "scores.safetensors")
        scores.save(path)
        with open(path, "rb") as file:
            return file.read()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
