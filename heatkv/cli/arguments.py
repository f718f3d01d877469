"""What arguments say: lists, prompts, a model, its calibration, a way to draw."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from heatkv.files import check_writable, read_bytes, shown
from heatkv.models.base import Sampling

MAX_PROMPTS = 100_000
MAX_PROMPTS_BYTES = 16 << 20


def say(text: str) -> None:
    if sys.stderr is not None:  # it is None where the program was started without
        print(text, file=sys.stderr, flush=True)


def read_prompts(path: Path) -> list[str]:
    """One prompt a line; empty lines are skipped."""
    data = read_bytes(path, limit=MAX_PROMPTS_BYTES, error=ValueError)
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file of prompts: {error}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise ValueError(f"{path} holds {len(prompts)} prompts: write 1 to {MAX_PROMPTS}, one a line")
    return prompts


def check_output(out: Path, *inputs: Path | None) -> Path:
    """``out``, if it can be written and is none of the ``inputs``; else ``ValueError``."""
    out = check_writable(out)
    for path in inputs:
        if path is not None and out.exists() and path.exists() and out.samefile(path):
            raise ValueError(f"--out {out} is what is read, and would be replaced: give another name")
    return out


def policy_asked(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The policy (default: ``heatkv``) and what is asked of it: after its colon, by --sink-scales, by --storage.

    Raises ``ValueError``.
    """
    from heatkv.policies import variant

    policy, asked = variant(arguments.policy or "heatkv")
    if (sinks := getattr(arguments, "sink_scales", None)) is not None:
        if not policy.sinks:
            raise ValueError(f"policy {policy.name!r} has no sinks: leave --sink-scales out")
        asked["sink_scales"] = sinks
    if arguments.storage:
        asked["storage"] = arguments.storage
    return policy, asked


def variants(text: str) -> list[str]:
    """Policies with commas between; a part with an equals sign and no colon goes on with the options before it."""
    found: list[str] = []
    for part in list_of(str, text):
        if found and "=" in part and ":" not in part:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def list_of(kind: type, text: str) -> list[Any]:
    """The values of a list with commas between; ``ValueError`` where there is none."""
    try:
        values = [kind(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ValueError(f"{shown(text)} is not a comma-separated list of {kind.__name__} values") from error
    if not values:
        raise ValueError(f"{shown(text)} lists nothing: give one {kind.__name__} value or several with commas between")
    return values


def load_model(arguments: argparse.Namespace) -> Any:
    from heatkv.models import load

    return load(arguments.model, arguments.device, arguments.dtype)


def load_scores(arguments: argparse.Namespace) -> Any:
    from heatkv.models import bundled_scores
    from heatkv.scores import HeadScores

    return HeadScores.load(arguments.scores) if arguments.scores else bundled_scores(arguments.model)


def chosen_sampling(arguments: argparse.Namespace, usual: Sampling) -> Sampling:
    """A model's own way to draw with what the command line says otherwise. Raises ``ValueError``."""
    names = ("temperature", "top_k", "top_p", "negative", "smooth")
    stated = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.guidance is not None:
        strengths = list_of(float, arguments.guidance)
        one, each = (strengths[0], ()) if len(strengths) == 1 else (usual.guidance, tuple(strengths))
        stated |= {"guidance": one, "guidance_by_scale": each}
    return replace(usual, **stated)
