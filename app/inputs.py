"""All that comes from outside is read here: form fields, event data. Trust nothing, say what is wrong."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from heatkv.files import shown
from heatkv.models.base import Sampling
from heatkv.models.prompts import MAX_PROMPT_CHARACTERS
from heatkv.scales import Geometry

MAX_PROMPT = MAX_PROMPT_CHARACTERS
MAX_PROMPTS = 64
MAX_PROMPTS_TEXT = 20_000
MAX_SEED = 2**32 - 1
SAMPLING = ("guidance", "temperature", "top_k", "top_p")  # what a visitor may say of how tokens are drawn


class InputError(ValueError):
    """Something a person entered can not be used; the message says what and what to do."""


def capital(text: str) -> str:
    """With a capital letter in front; the others stay, as names have theirs."""
    return text[:1].upper() + text[1:]


def read_prompt(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError("The prompt is empty: write a few words, for example `red apple`.")
    text = " ".join(value[: MAX_PROMPT + 1].split())
    if len(value) > MAX_PROMPT:
        raise InputError(f"The prompt has {len(value)} characters; at most {MAX_PROMPT} are read. Shorten it.")
    return text


def read_prompts(value: Any, count: Any) -> list[str]:
    """The first ``count`` lines that are not empty."""
    if not isinstance(value, str) or not value.strip():
        raise InputError("There are no prompts: write one a line.")
    if len(value) > MAX_PROMPTS_TEXT:
        raise InputError(
            f"The prompts have {len(value)} characters; at most {MAX_PROMPTS_TEXT} are read. Shorten them."
        )
    number = _whole(count)
    if number is None or not 1 <= number <= MAX_PROMPTS:
        raise InputError(f"The number of prompts is {shown(count)}; choose 1 to {MAX_PROMPTS}.")
    return [read_prompt(line) for line in value.splitlines() if line.strip()][:number]


def read_seed(value: Any) -> int:
    """A seed, or a random one where the field is empty."""
    if value is None or value == "":
        return secrets.randbelow(10_000)
    # A text of digits alone, as in links: "1e3" is a number, and nothing that somebody would call a seed.
    digits = not isinstance(value, str) or value.strip().isdecimal()
    seed = _whole(value) if digits else None
    if seed is None or not 0 <= seed <= MAX_SEED:
        raise InputError(f"The seed is {shown(value)}; choose a whole number from 0 to {MAX_SEED}, or leave it empty.")
    return seed


def read_percent(value: Any, percents: Sequence[float]) -> float:
    """The largest planned budget that is not above ``value``: the one that the page draws."""
    number = _number(value)
    if number is None or not percents[0] <= number <= 100:
        raise InputError(
            f"The budget is {shown(value)}; choose {percents[0]:g} % to 100 % (this policy's sinks need that much)."
        )
    return max(percent for percent in percents if percent <= number + 1e-9)


def read_batch(value: Any, most: int) -> int:
    batch = _whole(value)
    if batch is None or not 1 <= batch <= most:
        raise InputError(f"The number of images is {shown(value)}; choose 1 to {most}.")
    return batch


def read_policy(value: Any, allowed: Collection[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"There is no policy {shown(value)} here; choose one of {', '.join(allowed)}.")
    return value


def read_sampling(usual: Sampling, guidance: Any, temperature: Any, top_k: Any, top_p: Any) -> Sampling:
    """How to draw: ``usual``, but for what is given. Raises `InputError`."""
    given = dict(zip(SAMPLING, (guidance, temperature, top_k, top_p), strict=True))
    stated: dict[str, Any] = {}
    for name, value in given.items():
        if value is None or value == "":
            continue
        number = _whole(value) if name == "top_k" else _number(value)
        if number is None:
            raise InputError(f"{name} is {shown(value)}: pass a number, or leave it out.")
        stated[name] = number
    if "guidance" in stated:
        stated["guidance_by_scale"] = ()  # one for all, as was asked
    try:
        return replace(usual, **stated)
    except ValueError as error:
        raise InputError(f"{capital(str(error))}.") from error


def read_head(value: Any, geometry: Geometry) -> tuple[int, int]:
    """``{"layer": l, "head": h}`` as the head map sends it."""
    found = value if isinstance(value, Mapping) else {}
    layer, head = _whole(found.get("layer")), _whole(found.get("head"))
    if layer is None or head is None or not (0 <= layer < geometry.layers and 0 <= head < geometry.heads):
        raise InputError(f"There is no such head; the model has {geometry.layers} layers of {geometry.heads} heads.")
    return layer, head


def _number(value: Any) -> float | None:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, str))
        or (isinstance(value, str) and len(value) > 40)
    ):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number == int(number) else None


def without_folder(text: str, path: str) -> str:
    """A message about an uploaded file, without where this machine put it."""
    name = os.path.basename(path)
    for there, here in ((shown(path), shown(name)), (path, name), (os.path.dirname(path) + os.sep, "")):
        text = text.replace(there, here) if there != os.sep else text
    return text
