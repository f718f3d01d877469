"""A schedule: when the cache lets go of every cell. Plain data, checked whole before anything runs on it.

A cell is one (layer, head, source scale). ``drop_at_LHS[l, h, s]`` is the first target scale whose attention no longer
reads it: K (the number of scales) means never, ``s + 1`` means that it is not even stored. While target scale t runs,

- attention in layer l reads the cells with ``drop_at > t``, and its own scale;
- right after it, layer l frees its cells with ``drop_at == t + 1`` and stores its own scale's cells with
  ``drop_at > t + 1``; the last scale stores nothing.

A line (`heatkv.scales.ScaleSchedule`) is drawn token by token and is cache from its first token on. Of its cells those
with ``drop_at == s + 1`` go when the next line begins, in all layers at once, like any cell whose time has come. The
condition is handed over whole, like a scale.

A cell is stored in one format (formats.py) from when it comes until it goes; which, is the same for all cells or a
table of its own. A line whose cells will be encoded is in 8 bits while it is drawn.

The cache is therefore largest after some layer of some scale, and how large is known before anything runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from heatkv.budget import (
    MIXED,
    ScheduleError,
    cell_cost,
    check_budget,
    cost_limit,
    counted_scales,
    format_of,
    full_cost,
    resident_cost,
    resident_tokens,
    token_cost,
)
from heatkv.files import (
    MAX_SCALES,
    Fields,
    as_array,
    checked_name,
    describe,
    geometry_json,
    parse_json,
    plain_json,
    read_bytes,
    same_geometry,
    shown,
    write_atomic,
)
from heatkv.formats import COMPUTE, FORMATS
from heatkv.scales import Geometry

FORMAT = "heatkv-schedule"
VERSION = 1
MAX_FILE_BYTES = 4 << 20  # the largest published model takes 60 kB; parsing takes 20 times the size

_FORMAT_NAMES = list(FORMATS)


@dataclass(frozen=True, eq=False)
class Schedule:
    """Which cells the cache keeps, and until when.

    Parameters
    ----------
    model
        Id of the model that it was planned for.
    geometry
        Layers, heads and scales; a ``head_dim`` of 0 means not stated.
    sink_scales
        The first so many scales are never dropped.
    policy
        Name of the policy that planned it.
    budget
        Peak of the cache as a share of the full cache's peak, in (0, 1]. The table keeps to it. What is stored in fewer
        bits counts with all of its bytes, against a full cache in 16 bits, whatever the model computes in.
    drop_at_LHS
        The table described above, shape ``(layers, heads, scales)``; the last scale's own cells hold K.
        Copied, and read-only from then on.
    provenance
        How it came about: plain JSON values.
    storage
        How what is kept is stored: the name of a format (`heatkv.formats`), or ``mixed``.
    stored_as_LHS
        For ``mixed`` the format of every cell, as its place in `heatkv.formats.FORMATS`; ``compute`` is none of them.

    Raises
    ------
    ScheduleError
        If anything contradicts anything else. A ``Schedule`` that exists can be executed.
    """

    model: str
    geometry: Geometry
    sink_scales: int
    policy: str
    budget: float
    drop_at_LHS: npt.NDArray[np.integer]
    provenance: dict[str, Any] = field(default_factory=dict)
    storage: str = "compute"
    stored_as_LHS: npt.NDArray[np.integer] | None = None

    def __post_init__(self) -> None:
        checked_name(self.model, what="model", error=ScheduleError)
        checked_name(self.policy, what="policy", error=ScheduleError)
        object.__setattr__(self, "stored_as_LHS", _checked_formats(self.storage, self.stored_as_LHS, self.geometry))
        scales, share = counted_scales(self.geometry, self.storage)
        check_budget(self.budget, scales, self.sink_scales, model=self.model, share=share)
        object.__setattr__(self, "budget", float(self.budget))
        object.__setattr__(self, "sink_scales", int(self.sink_scales))
        provenance = plain_json(self.provenance, what="provenance", error=ScheduleError)
        object.__setattr__(self, "provenance", provenance)
        object.__setattr__(self, "drop_at_LHS", _checked_table(self.drop_at_LHS, self.geometry, self.sink_scales))
        limit = cost_limit(self.budget, self.geometry, self.storage)
        if self._peak_cost > limit:
            raise ScheduleError(
                f"drop_at caches {self._peak_cost} {'bytes' if self.encoded else 'tokens'} at its peak, more than the "
                f"{limit} that budget {self.budget:g} allows; state a budget of {self.peak_share:.6f} or drop cells "
                f"earlier"
            )

    @classmethod
    def full(cls, geometry: Geometry, model: str) -> Schedule:
        """The full cache as a schedule: nothing is dropped, so every cached scale counts as a sink."""
        K = len(geometry.scales)
        never_LHS = np.full((geometry.layers, geometry.heads, K), K, np.int16)
        return cls(model, geometry, sink_scales=K - 1, policy="full", budget=1.0, drop_at_LHS=never_LHS)

    def keep(self, target: int) -> npt.NDArray[np.bool_]:
        """The cells that attention of scale ``target`` reads, ``(layers, heads, scales)``, its own scale included."""
        K = len(self.geometry.scales)
        if not 0 <= target < K:
            raise IndexError(f"there is no target scale {target}: scales count from 0 to {K - 1}")
        keep_LHS = self.drop_at_LHS > target
        keep_LHS[:, :, target] = True
        keep_LHS[:, :, target + 1 :] = False
        return keep_LHS

    @cached_property
    def worked_out(self) -> dict[Hashable, Any]:
        """What caches have worked out to execute this schedule, for the next image; it goes when the schedule goes."""
        return {}

    @cached_property
    def removed_TS(self) -> npt.NDArray[np.int64]:
        """Heads that no longer read source scale s when target scale t runs, ``(targets, sources)``."""
        drop_at_NS = self.drop_at_LHS.reshape(self.geometry.head_count, -1)
        return np.stack([(drop_at_NS <= t).sum(0) for t in range(drop_at_NS.shape[1])])

    @cached_property
    def resident_tokens_TL(self) -> npt.NDArray[np.int64]:
        """Cached tokens of one batch row, all heads of all layers, after layer l of scale t has run.

        The last scale stores nothing and its row repeats what it started with: that the cache could be freed layer by
        layer while it runs is not counted.
        """
        return resident_tokens(self.drop_at_LHS, self.geometry.scales)

    @cached_property
    def peak_tokens(self) -> int:
        """The most tokens that the cache ever holds for one batch row, summed over heads."""
        return int(self.resident_tokens_TL.max())

    @property
    def peak_share(self) -> float:
        """The cache's peak as a share of the full cache's, both as if the model computed in 16 bits."""
        full = full_cost(self.geometry, self.storage)
        return self._peak_cost / full if full else 0.0

    @property
    def encoded(self) -> bool:
        """Whether anything is stored otherwise than as the model computes it."""
        return self.storage != COMPUTE.name

    @cached_property
    def resident_bytes_TL(self) -> npt.NDArray[np.int64]:
        """Bytes of one batch row that all layers hold after layer l of scale t has run, if it is `encoded`."""
        a_token = token_cost(self.geometry, self.storage)
        return resident_cost(self.drop_at_LHS, self._cost_LHS, self.geometry.scales, a_token)

    def resident_bytes(self, itemsize: int) -> npt.NDArray[np.int64]:
        """The same for any schedule, ``itemsize`` bytes a computed number."""
        if self.encoded:
            return self.resident_bytes_TL
        return self.resident_tokens_TL * COMPUTE.cell_bytes(1, self.geometry.head_dim, itemsize)

    def peak_bytes(self, rows: int, itemsize: int) -> int:
        """The most bytes that the cache ever holds for so many batch rows, ``itemsize`` bytes a computed number."""
        return rows * int(self.resident_bytes(itemsize).max())

    @cached_property
    def formats_LHS(self) -> npt.NDArray[np.integer]:
        """The format of every cell, as its place in `heatkv.formats.FORMATS`."""
        if self.stored_as_LHS is not None:
            return self.stored_as_LHS
        return np.full(self.drop_at_LHS.shape, _FORMAT_NAMES.index(self.storage), np.int8)

    @cached_property
    def _cost_LHS(self) -> npt.NDArray[np.int64]:
        """What every cell takes, see `cell_cost`."""
        if self.stored_as_LHS is None:
            return np.broadcast_to(cell_cost(self.geometry, self.storage), self.drop_at_LHS.shape)
        cost_LHS = np.zeros(self.stored_as_LHS.shape, np.int64)
        for form in np.unique(self.stored_as_LHS):
            cost_S = cell_cost(self.geometry, _FORMAT_NAMES[form])
            np.copyto(cost_LHS, cost_S, where=self.stored_as_LHS == form)
        return cost_LHS

    @property
    def _peak_cost(self) -> int:
        return int(self.resident_bytes_TL.max()) if self.encoded else self.peak_tokens

    def check_matches(self, geometry: Geometry) -> None:
        """Raise `ScheduleError` unless the schedule was planned for ``geometry``."""
        if not same_geometry(self.geometry, geometry):
            raise ScheduleError(
                f"this schedule was planned for {self.model} ({describe(self.geometry)}) and does not fit a model "
                f"with {describe(geometry)}; plan one for that model"
            )

    def to_json(self) -> str:
        return (
            json.dumps(
                {
                    "format": FORMAT,
                    "version": VERSION,
                    "model": self.model,
                    **geometry_json(self.geometry),
                    "sink_scales": self.sink_scales,
                    "policy": self.policy,
                    "budget": self.budget,
                    "provenance": self.provenance,
                    "storage": self.storage,
                    "drop_at": self.drop_at_LHS.tolist(),
                    **({} if self.stored_as_LHS is None else self._formats_json()),
                }
            )
            + "\n"
        )

    def _formats_json(self) -> dict[str, Any]:
        assert self.stored_as_LHS is not None
        return {"formats": _FORMAT_NAMES, "stored_as": self.stored_as_LHS.tolist()}

    @classmethod
    def from_json(cls, text: str | bytes) -> Schedule:
        """Read `to_json`'s text. It may come from anyone: everything is checked before it is used.

        ``head_dim`` may be absent: a schedule counts tokens, not bytes.
        """
        if len(text) > MAX_FILE_BYTES:
            raise ScheduleError(f"the text is longer than {MAX_FILE_BYTES >> 20} MB: this is no schedule")
        value = parse_json(text, error=ScheduleError)
        fields = Fields(value, format=FORMAT, version=VERSION, error=ScheduleError)
        geometry = fields.geometry()
        return cls(
            model=fields.name("model"),
            geometry=geometry,
            sink_scales=fields.integer("sink_scales", 0, MAX_SCALES),
            policy=fields.name("policy"),
            budget=fields.number("budget"),
            drop_at_LHS=_table_from_lists(fields.sequence("drop_at"), geometry),
            provenance=fields.mapping("provenance"),
            storage=value.get("storage", "compute"),
            stored_as_LHS=_formats_from_lists(fields, geometry) if value.get("storage") == MIXED else None,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the schedule as JSON, atomically."""
        write_atomic(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Schedule:
        """Read a schedule file; every problem with it is a `ScheduleError` that names the file."""
        data = read_bytes(path, limit=MAX_FILE_BYTES, error=ScheduleError)
        try:
            return cls.from_json(data)
        except ScheduleError as problem:
            raise ScheduleError(f"{shown(os.fspath(path))}: {problem}") from problem

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        mine, theirs = (
            (a.model, a.geometry, a.sink_scales, a.policy, a.budget, a.provenance, a.storage) for a in (self, other)
        )
        same_formats = np.array_equal(self.stored_as_LHS, other.stored_as_LHS)  # type: ignore[arg-type]
        return mine == theirs and same_formats and np.array_equal(self.drop_at_LHS, other.drop_at_LHS)

    __hash__ = None  # type: ignore[assignment]


def _checked_table(table: npt.ArrayLike, geometry: Geometry, sink_scales: int) -> npt.NDArray[np.int16]:
    """``table`` as a read-only int16 copy, if it says something possible of every cell."""
    K = len(geometry.scales)
    array = as_array(table, what="drop_at", error=ScheduleError)
    shape = (geometry.layers, geometry.heads, K)
    if array.shape != shape or array.dtype.kind not in "iu":
        raise ScheduleError(
            f"drop_at is {array.dtype} of shape {array.shape}: it must be whole numbers of shape {shape} for "
            f"{describe(geometry)}"
        )
    first_S = np.arange(1, K + 1)
    first_S[:sink_scales] = K
    bad = np.argwhere((array < first_S) | (array > K))
    if len(bad):
        layer, head, s = (int(i) for i in bad[0])
        value = int(array[layer, head, s])
        if s < sink_scales and s < value < K:
            raise ScheduleError(
                f"drop_at[{layer}][{head}][{s}] is {value}, but scale {s} is one of {sink_scales} sink scales, which "
                f"are never dropped: it must be {K}, or sink_scales smaller"
            )
        raise ScheduleError(
            f"drop_at[{layer}][{head}][{s}] is {value}: it must be from {s + 1} (never stored) to {K} (never dropped)"
        )
    table_LHS: npt.NDArray[np.int16] = array.astype(np.int16)
    table_LHS.setflags(write=False)
    return table_LHS


def _checked_formats(storage: object, table: npt.ArrayLike | None, geometry: Geometry) -> npt.NDArray[np.int8] | None:
    """The table of a mixed storage as a read-only int8 copy, if it names a format for every cell; else None."""
    if storage != MIXED:
        form = format_of(storage, geometry)  # type: ignore[arg-type]
        if table is not None:
            raise ScheduleError(f"storage {form.name} is the same for all cells: stored_as belongs to storage {MIXED}")
        return None
    array = as_array([] if table is None else table, what="stored_as", error=ScheduleError)
    shape = (geometry.layers, geometry.heads, len(geometry.scales))
    if array.shape != shape or array.dtype.kind not in "iu":
        raise ScheduleError(
            f"stored_as is {array.dtype} of shape {array.shape}: storage {MIXED} needs whole numbers of shape {shape}"
        )
    if array.min() < 1 or array.max() >= len(_FORMAT_NAMES):
        raise ScheduleError(f"stored_as must be from 1 to {len(_FORMAT_NAMES) - 1}: {', '.join(_FORMAT_NAMES[1:])}")
    for i in np.unique(array):
        format_of(_FORMAT_NAMES[i], geometry)
    table_LHS: npt.NDArray[np.int8] = array.astype(np.int8)
    table_LHS.setflags(write=False)
    return table_LHS


def _formats_from_lists(fields: Fields, geometry: Geometry) -> npt.NDArray[np.int8]:
    """The formats of a schedule file, whose numbers count in a list of names of its own."""
    names = fields.sequence("formats")
    known = [_FORMAT_NAMES.index(format_of(name, geometry).name) for name in names]
    table = as_array(fields.sequence("stored_as"), what="stored_as", error=ScheduleError)
    if table.dtype.kind not in "iu" or table.size == 0 or table.min() < 0 or table.max() >= len(known):
        raise ScheduleError(f"stored_as must be whole numbers from 0 to {len(known) - 1}, which count in formats")
    return np.array(known, np.int8)[table]


def _table_from_lists(layers: list[Any], geometry: Geometry) -> npt.NDArray[np.int16]:
    """Nested JSON lists as an array, refusing anything ragged, of the wrong size or not a small whole number."""
    K = len(geometry.scales)
    if len(layers) != geometry.layers:
        raise ScheduleError(f"drop_at holds {len(layers)} layers, but layers is {geometry.layers}")
    flat: list[int] = []
    for i, heads in enumerate(layers):
        if not isinstance(heads, list) or len(heads) != geometry.heads:
            raise ScheduleError(f"drop_at[{i}] is {shown(heads)}: it must be a list of {geometry.heads} heads")
        for j, cells in enumerate(heads):
            if not isinstance(cells, list) or len(cells) != K:
                raise ScheduleError(f"drop_at[{i}][{j}] is {shown(cells)}: it must be a list of {K} scales")
            for s, value in enumerate(cells):
                if type(value) is not int or not s < value <= K:
                    raise ScheduleError(
                        f"drop_at[{i}][{j}][{s}] is {shown(value)}: it must be a whole number from {s + 1} "
                        f"(never stored) to {K} (never dropped)"
                    )
            flat += cells
    return np.array(flat, np.int16).reshape(geometry.layers, geometry.heads, K)
