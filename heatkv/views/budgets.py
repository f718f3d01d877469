"""Budgets without weights: which cells of a published model every budget keeps, and what its cache takes, from a file.

A ranking comes from head orders (the published JSON format) or from the scores of a calibration. Without one, only
policies that need none can be planned.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from heatkv.models.presets import PRESETS, Preset, find_preset
from heatkv.policies import find, plan, usable
from heatkv.policies.base import Policy
from heatkv.scales import Geometry
from heatkv.schedule import Schedule
from heatkv.scores import HeadScores, load_orders
from heatkv.views import explore
from heatkv.views.lines import lines_json

GUIDED_ROWS = 2  # with classifier-free guidance every image is two rows, and both are cached
MAX_BATCH = 1024
REMEMBERED = 8


@dataclass(frozen=True)
class Accounting:
    """Bytes of one element of the keys and of the values."""

    key_bytes: int
    value_bytes: int

    def bytes_per_token(self, geometry: Geometry, batch: int) -> int:
        """Keys and values of one cached token of one head, for ``batch`` guided images. Raises ``ValueError``."""
        if not 1 <= batch <= MAX_BATCH:
            raise ValueError(f"batch {batch} is outside 1 to {MAX_BATCH} images")
        return geometry.kv_bytes(
            1, batch=GUIDED_ROWS * batch, key_bytes=self.key_bytes, value_bytes=self.value_bytes
        )  # fmt: skip


# HeatKV's and ScaleKV's tables count keys in float32 and values in bfloat16, as their code caches them. HACK++ counts
# the last scale too: its tables are not comparable.
PAPERS = Accounting(4, 2)
# This program caches both in the compute dtype.
OURS = {"bfloat16": Accounting(2, 2), "float32": Accounting(4, 4)}


@dataclass(frozen=True, eq=False)
class Ranking:
    """What plans are made from, and for which geometry it was read. ``label`` says where from, ``made_up`` that it is
    nobody's (`made_up_ranking`)."""

    label: str
    geometry: Geometry
    source: HeadScores | npt.NDArray[np.int64]
    made_up: bool = False

    @property
    def scores(self) -> HeadScores | None:
        return self.source if isinstance(self.source, HeadScores) else None

    def fits(self, preset: Preset) -> bool:
        return self.geometry == preset.geometry


def choose_preset(name: str, size: str = "", ratio: str = "") -> Preset:
    """A published model at a published size and aspect ratio, where it has a choice. Raises ``ValueError``."""
    preset = find_preset(name) if isinstance(name, str) else None
    if preset is None:
        raise ValueError(f"there is no published model {name!r}; choose one of {', '.join(PRESETS)}")
    return preset.at(size or preset.size, ratio or preset.ratio) if preset.size else preset


def read_ranking(path: str | os.PathLike[str], preset: Preset) -> Ranking:
    """Orders (``.json``) or scores (``.safetensors``) of ``preset``. Raises ``ValueError`` that says what is wrong."""
    name = os.path.basename(path)[:60]
    if name.lower().endswith(".json"):
        orders = load_orders(path, preset.geometry, preset.scales.default_sinks)
        return Ranking(f"orders, {name}", preset.geometry, orders)
    scores = HeadScores.load(path)
    scores.check_matches(preset.geometry)
    return Ranking(f"scores of {scores.model}, {name}, {scores.count} prompts", preset.geometry, scores)


def made_up_ranking(preset: Preset) -> Ranking:
    """A ranking to play with where no file is at hand, the same every time: chance says how far back a head looks.

    It has the shape of a measured one, heads that rank alike for scales that lie close together; it is no model's.
    """
    geometry = preset.geometry
    rng = np.random.default_rng(zlib.crc32(preset.id.encode()))
    sources = len(geometry.scales) - 1 - preset.scales.default_sinks
    habit_N = rng.beta(0.7, 0.7, geometry.head_count)
    place_S1 = np.linspace(0, 1, sources)[:, None]
    score_SN = np.exp(-((place_S1 - habit_N) ** 2) / 0.08) + 0.15 * rng.standard_normal((sources, geometry.head_count))
    return Ranking("a made-up ranking, of no model", geometry, score_SN.argsort(axis=1), made_up=True)


def what_is_needed(preset: Preset) -> str:
    """Which files a ranking of ``preset`` can be read from, in words."""
    geometry, sinks = preset.geometry, preset.scales.default_sinks
    scales = geometry.scales
    sources, first = len(scales) - 1 - sinks, sinks + 1 - scales.drawn[0]
    return (
        f"HeatKV needs a file that ranks the heads: head orders of {preset.id} (JSON: for each of the {sources} "
        f"{scales.word}s {first} to {first + sources - 1} a list of all {geometry.head_count} [head, layer] pairs, "
        "the first to go first), or scores from "
        f"`python -m heatkv calibrate --model {preset.id} --out scores.safetensors`"
    )


def percents_of(preset: Preset, policy: str = "heatkv") -> tuple[int, ...]:
    """Whole percents from the least that the policy's sinks fit in to 100."""
    return explore.budget_percents(preset.scales, preset.scales.default_sinks if find(policy).sinks else 0)


def policies_for(ranking: Ranking | None) -> dict[str, Policy]:
    """The policies that can be planned ahead from what is known."""
    source = ranking.source if ranking else None
    return {name: policy for name, policy in usable(source).items() if policy.static}


def plan_for(preset: Preset, ranking: Ranking | None, budget: float, policy: str) -> Schedule:
    """The schedule of ``preset`` for a budget, as a share. Raises ``ValueError``."""
    scores = ranking.scores if ranking else None
    return plan(
        ranking.source if ranking else None, budget, policy, preset.scales.default_sinks,
        model=scores.model if scores else preset.id, geometry=preset.geometry,
    )  # fmt: skip


class Tables:
    """Tables of budgets, the last few remembered: a table takes a plan for every percent."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, int, str], tuple[Ranking | None, explore.BudgetTable]] = OrderedDict()
        self._lock = threading.Lock()  # one visitor's request is one thread; planning is not under it

    def table(self, preset: Preset, ranking: Ranking | None, policy: str) -> explore.BudgetTable:
        key = preset.id, id(ranking), policy
        with self._lock:
            found = self._known.get(key)
            if found is not None and found[0] is ranking:  # held, so that its id is not another's
                self._known.move_to_end(key)
                return found[1]
        percents = percents_of(preset, policy)
        table = explore.budget_table(lambda budget: plan_for(preset, ranking, budget, policy), percents)
        with self._lock:
            self._known[key] = ranking, table
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return table


def table_json(
    preset: Preset, ranking: Ranking | None, table: explore.BudgetTable, batch: int, dtype: str
) -> dict[str, Any]:
    """Plain values for a browser: every budget's cells, every cell's rank or score, and bytes in both accountings."""
    if dtype not in OURS:
        raise ValueError(f"the cache's dtype {dtype!r} is not one of {', '.join(OURS)}")
    geometry, sinks, scales = preset.geometry, table.sink_scales, preset.scales
    profiles = explore.head_profiles(ranking.scores, sinks) if ranking and ranking.scores else None
    ranks = None
    if ranking is not None and ranking.scores is None:
        ranks = explore.rank_share(np.asarray(ranking.source), geometry, sinks)
    return {
        **table.to_json(),
        **explore.cells_json(profiles, ranks),
        "bytesPerToken": OURS[dtype].bytes_per_token(geometry, batch),
        "heldBytesPerToken": table.unit_bytes(GUIDED_ROWS * batch, OURS[dtype].key_bytes),
        # The papers know no encoded cells.
        "paperBytesPerToken": PAPERS.bytes_per_token(geometry, batch) if table.storage == "compute" else 0,
        **(lines_json(ranking.scores, profiles) if scales.by_line and ranking and ranking.scores and profiles else {}),
        "word": scales.word,
        "names": [scales.name(k) for k in range(len(scales))],
        "model": preset.id,
        "batch": batch,
        "dtype": dtype,
        "fixed": False,
    }
