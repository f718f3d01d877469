"""Head scores: how much every head attends to every source scale, and the orders that follow from it.

Calibration fills `HeadScores`; planning reads it. The attention mass is kept by target scale, so that one calibration
serves any number of sink scales and any policy. Orders, the published form of a calibration, rank the heads of each
prunable source scale from the least needed on; a head is named by its number, ``layer * heads + head``.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from heatkv.budget import check_sinks
from heatkv.files import (
    Fields,
    as_array,
    checked_name,
    describe,
    geometry_json,
    one_line,
    parse_json,
    plain_json,
    read_bytes,
    same_geometry,
    shown,
    write_atomic,
)
from heatkv.scales import Geometry

FORMAT = "heatkv-scores"
VERSION = 1
MAX_FILE_BYTES = 256 << 20
MAX_EXTRA = 1e100  # shares of an output are far below; sums of what a file states must not overflow
MAX_HEADER_BYTES = MAX_ORDERS_BYTES = 4 << 20  # the largest published model's orders take 100 kB

_TENSOR = "mass_sum_LHTS"
_EXTRAS = (
    "change_sum_LHTS",
    "spread_sum_LH",
    "rounding_sum_LHTS",
)  # in files since they are measured; older files lack them
_ROW_SLACK = 1e-2  # attention in half precision sums to 1 only so closely


class ScoresError(ValueError):
    """Head scores, or a file of them, that can not be used."""


class OrdersError(ValueError):
    """Head orders, or a file of them, that can not be used."""


@dataclass(frozen=True, eq=False)
class HeadScores:
    """Attention mass per head by target and source scale, summed over calibration prompts.

    Parameters
    ----------
    model
        Id of the calibrated model.
    geometry
        Its layers, heads and scales.
    mass_sum_LHTS
        Sum over prompts of the softmax mass that the queries of target scale t put on the keys of source scale s,
        mean over the queries; shape ``(layers, heads, scales, scales)``, float64, zero for ``s > t``. Every row of a
        prompt sums to 1. Copied, and read-only from then on.
    prompts
        The prompts, for the record; empty when they are not known, else ``count`` of them.
    count
        How many prompts were summed.
    metadata
        Anything else worth keeping, plain JSON values: seed, guidance, dtype, date.
    change_sum_LHTS
        Sum over prompts of how much the attention output of the layer would change at target scale t if the head did
        without source scale s: squared change over the squared output of all heads, ``(layers, heads, scales,
        scales)``, zero for ``s >= t``. None where it was not measured.
    spread_sum_LH
        Sum over prompts of the variance, over the queries of the last scale, of what a key receives, summed over keys:
        low where all queries read the same keys, ``(layers, heads)``. None where it was not measured.
    rounding_sum_LHTS
        As ``change_sum_LHTS``, with the source scale stored in 4 bits (`heatkv.formats`) instead of gone.
    """

    model: str
    geometry: Geometry
    mass_sum_LHTS: npt.NDArray[np.float64]
    prompts: tuple[str, ...]
    count: int
    metadata: dict[str, Any] = field(default_factory=dict)
    change_sum_LHTS: npt.NDArray[np.float64] | None = None
    spread_sum_LH: npt.NDArray[np.float64] | None = None
    rounding_sum_LHTS: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        checked_name(self.model, what="model", error=ScoresError)
        if type(self.count) is not int or self.count < 1:
            raise ScoresError(f"count is {shown(self.count)}: scores need at least one prompt")
        prompts = tuple(self.prompts)
        if not all(isinstance(prompt, str) for prompt in prompts) or len(prompts) not in (0, self.count):
            raise ScoresError(f"prompts must be {self.count} texts, one for each prompt counted, or none at all")
        object.__setattr__(self, "prompts", prompts)
        object.__setattr__(self, "metadata", plain_json(self.metadata, what="metadata", error=ScoresError))
        object.__setattr__(self, "mass_sum_LHTS", _checked_mass(self.mass_sum_LHTS, self.geometry, self.count))
        for name in _EXTRAS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _checked_extra(name, getattr(self, name), self.mass_sum_LHTS.shape))

    @cached_property
    def mass_LHTS(self) -> npt.NDArray[np.float64]:
        """Mean over prompts: the share of its attention that each head spends on scale s at scale t."""
        return _mean(self.mass_sum_LHTS, self.count)

    @cached_property
    def change_LHTS(self) -> npt.NDArray[np.float64] | None:
        """Mean over prompts of `change_sum_LHTS`."""
        return None if self.change_sum_LHTS is None else _mean(self.change_sum_LHTS, self.count)

    @cached_property
    def rounding_LHTS(self) -> npt.NDArray[np.float64] | None:
        """Mean over prompts of `rounding_sum_LHTS`."""
        return None if self.rounding_sum_LHTS is None else self.rounding_sum_LHTS / self.count

    @cached_property
    def spread_LH(self) -> npt.NDArray[np.float64] | None:
        """Mean over prompts of `spread_sum_LH`."""
        return None if self.spread_sum_LH is None else _mean(self.spread_sum_LH, self.count)

    def scas(self, sink_scales: int) -> npt.NDArray[np.float64]:
        """S-CAS: mean over the later target scales of the mass on each source scale, ``(layers, heads, scales)``.

        NaN for the sink scales and for the last scale, which are no candidates for removal.
        """
        check_sinks(self.geometry.scales, sink_scales)
        K = len(self.geometry.scales)
        scas_LHS = np.full((self.geometry.layers, self.geometry.heads, K), np.nan)
        for s in range(sink_scales, K - 1):
            scas_LHS[:, :, s] = self.mass_sum_LHTS[:, :, s + 1 :, s].sum(2) / (self.count * (K - 1 - s))
        return scas_LHS

    def orders(self, sink_scales: int) -> npt.NDArray[np.int64]:
        """Head numbers of every prunable source scale, lowest S-CAS first, ties by head and then by layer.

        Shape ``(sources, layers * heads)``; row i is source scale ``sink_scales + i``.
        """
        geometry = self.geometry
        scas_LHS = self.scas(sink_scales)[:, :, sink_scales:-1]
        # A stable sort of heads that stand in (head, layer) order breaks ties as asked.
        number_HL = np.arange(geometry.head_count).reshape(geometry.layers, geometry.heads).T
        scas_SN = scas_LHS.transpose(2, 1, 0).reshape(scas_LHS.shape[2], geometry.head_count)
        return number_HL.ravel()[np.argsort(scas_SN, axis=1, kind="stable")]

    def merge(self, other: HeadScores) -> HeadScores:
        """The calibration over the prompts of both. What only one has, or metadata on which they differ, is dropped."""
        if self.model != other.model:
            raise ScoresError(f"scores of {self.model} and of {other.model} can not be merged")
        if self.geometry != other.geometry:
            raise ScoresError(
                f"scores of different geometries can not be merged: {describe(self.geometry)} and "
                f"{describe(other.geometry)}"
            )
        both_known = bool(self.prompts) and bool(other.prompts)
        return HeadScores(
            model=self.model,
            geometry=self.geometry,
            mass_sum_LHTS=self.mass_sum_LHTS + other.mass_sum_LHTS,
            prompts=self.prompts + other.prompts if both_known else (),
            count=self.count + other.count,
            metadata={k: v for k, v in self.metadata.items() if k in other.metadata and other.metadata[k] == v},
            **{name: extra + other._extras[name] for name, extra in self._extras.items() if name in other._extras},
        )

    @property
    def _extras(self) -> dict[str, npt.NDArray[np.float64]]:
        """The optional tensors that are there."""
        return {name: getattr(self, name) for name in _EXTRAS if getattr(self, name) is not None}

    def check_matches(self, geometry: Geometry) -> None:
        """Raise `ScoresError` unless the scores were measured with ``geometry``."""
        if not same_geometry(self.geometry, geometry):
            raise ScoresError(
                f"these scores were measured on {self.model} ({describe(self.geometry)}) and do not fit a model with "
                f"{describe(geometry)}; calibrate that model with these scales"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, atomically; everything but the tensors is JSON in its header."""
        import safetensors.numpy

        header = {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            **geometry_json(self.geometry),
            "count": self.count,
            "prompts": list(self.prompts),
            "metadata": self.metadata,
        }
        tensors = {_TENSOR: self.mass_sum_LHTS, **self._extras}
        write_atomic(path, safetensors.numpy.save(tensors, metadata={FORMAT: json.dumps(header)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HeadScores:
        """Read a scores file; every problem with it is a `ScoresError` that names the file."""
        try:
            header, tensors = _read_safetensors(path)
            fields = Fields(header, format=FORMAT, version=VERSION, error=ScoresError)
            return cls(
                model=fields.name("model"),
                geometry=fields.geometry(),
                mass_sum_LHTS=tensors[_TENSOR],
                prompts=tuple(fields.sequence("prompts")),
                count=fields.integer("count", 1, 2**53),
                metadata=fields.mapping("metadata"),
                **{name: tensors[name] for name in _EXTRAS if name in tensors},
            )
        except ScoresError as problem:
            raise ScoresError(f"{shown(os.fspath(path))}: {problem}") from problem

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HeadScores):
            return NotImplemented
        mine = (self.model, self.geometry, self.prompts, self.count, self.metadata)
        theirs = (other.model, other.geometry, other.prompts, other.count, other.metadata)
        a, b = ({_TENSOR: scores.mass_sum_LHTS, **scores._extras} for scores in (self, other))
        return mine == theirs and a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)

    def __hash__(self) -> int:
        return hash((self.model, self.geometry, self.prompts, self.count))


def load_orders(path: str | os.PathLike[str], geometry: Geometry, sink_scales: int) -> npt.NDArray[np.int64]:
    """Read published head orders: a JSON list with, per prunable source scale, all ``[head, layer]`` pairs.

    ``{"metadata": ..., "orders": [...]}`` is read too. Returns head numbers as `HeadScores.orders`; every problem is an
    `OrdersError` that names the file.
    """
    data = read_bytes(path, limit=MAX_ORDERS_BYTES, error=OrdersError)
    try:
        return orders_from_json(data, geometry, sink_scales)
    except OrdersError as problem:
        raise OrdersError(f"{shown(os.fspath(path))}: {problem}") from problem


def orders_from_json(text: str | bytes, geometry: Geometry, sink_scales: int) -> npt.NDArray[np.int64]:
    """`load_orders` for text at hand."""
    value = parse_json(text, error=OrdersError)
    sources = value.get("orders") if isinstance(value, dict) else value
    if not isinstance(sources, list):
        raise OrdersError(
            f"{shown(value)} holds no orders: expected a list with the [head, layer] pairs of every prunable source "
            f"scale, or an object with that list under 'orders'"
        )
    _check_source_count(len(sources), geometry, sink_scales)
    rows = [_head_numbers(pairs, sink_scales + i, geometry) for i, pairs in enumerate(sources)]
    return np.array(rows, np.int64).reshape(len(rows), geometry.head_count)


def orders_to_json(orders_SN: npt.NDArray[np.integer], geometry: Geometry) -> str:
    """The published format of `orders_from_json`, one source scale a line."""
    layer_SN, head_SN = np.divmod(orders_SN, geometry.heads)
    rows = (json.dumps(row) for row in np.stack([head_SN, layer_SN], axis=-1).tolist())
    return "[\n" + ",\n".join(rows) + "\n]\n"


def check_orders(orders_SN: npt.ArrayLike, geometry: Geometry, sink_scales: int) -> npt.NDArray[np.int64]:
    """``orders_SN`` as an array in which every row ranks every head once, or `OrdersError`."""
    orders = as_array(orders_SN, what="orders", error=OrdersError)
    if orders.ndim != 2 or orders.dtype.kind not in "iu":
        raise OrdersError(f"orders are {orders.dtype} of shape {orders.shape}: expected whole numbers (sources, heads)")
    _check_source_count(len(orders), geometry, sink_scales)
    if orders.shape[1] != geometry.head_count or (np.sort(orders, axis=1) != np.arange(geometry.head_count)).any():
        raise OrdersError(
            f"every source scale must rank each of the {geometry.head_count} heads of {describe(geometry)} once"
        )
    return orders.astype(np.int64)


def _check_source_count(found: int, geometry: Geometry, sink_scales: int) -> None:
    check_sinks(geometry.scales, sink_scales)
    K = len(geometry.scales)
    expected = K - 1 - sink_scales
    if found == expected:
        return
    fits = (
        f"with these {K} scales they fit sink_scales={K - 1 - found}"
        if found < K
        else f"they need a model with at least {found + 1} scales"
    )
    raise OrdersError(
        f"orders for {found} source scales, but {K} scales with {sink_scales} sink scales have {expected} prunable "
        f"ones; {fits}"
    )


def _head_numbers(pairs: Any, source: int, geometry: Geometry) -> list[int]:
    """One source scale's ``[head, layer]`` pairs as head numbers, each exactly once."""
    model = f"{geometry.layers} layers x {geometry.heads} heads"
    if not isinstance(pairs, list):
        raise OrdersError(f"source scale {source} holds {shown(pairs)}: expected a list of [head, layer] pairs")
    if len(pairs) > geometry.head_count:
        raise OrdersError(
            f"source scale {source} lists {len(pairs)} pairs, but {model} are {geometry.head_count} heads; these "
            f"orders are of another model, or list heads more than once"
        )
    numbers: list[int] = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(type(i) is int for i in pair):
            raise OrdersError(f"source scale {source} lists {shown(pair)}: expected a [head, layer] pair")
        head, layer = pair
        if not (0 <= head < geometry.heads and 0 <= layer < geometry.layers):
            raise OrdersError(
                f"source scale {source} lists [head {shown(head)}, layer {shown(layer)}], which {model} do not have; "
                f"these orders are of another model, or its pairs are [layer, head]"
            )
        numbers.append(layer * geometry.heads + head)
    seen = set(numbers)
    if len(seen) < len(numbers):
        twice = next(number for i, number in enumerate(numbers) if number in numbers[:i])
        layer, head = divmod(twice, geometry.heads)
        raise OrdersError(f"source scale {source} lists [head {head}, layer {layer}] more than once")
    if len(numbers) < geometry.head_count:
        layer, head = divmod(
            next(number for number in range(geometry.head_count) if number not in seen), geometry.heads
        )
        raise OrdersError(
            f"source scale {source} lists {len(numbers)} of {geometry.head_count} heads ({model}): [head {head}, layer "
            f"{layer}] is missing, for one"
        )
    return numbers


def _mean(sums: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """Read-only: plans are remembered by the scores they were made from."""
    mean = sums / count
    mean.setflags(write=False)
    return mean


def _checked_mass(mass: npt.ArrayLike, geometry: Geometry, count: int) -> npt.NDArray[np.float64]:
    """``mass`` as a read-only float64 copy, if it can be a sum of ``count`` attention maps."""
    K = len(geometry.scales)
    shape = (geometry.layers, geometry.heads, K, K)
    array = as_array(mass, what="the attention mass", error=ScoresError)
    if array.shape != shape or array.dtype.kind != "f":
        raise ScoresError(
            f"the attention mass is {array.dtype} of shape {array.shape}: expected floats of shape {shape} for "
            f"{describe(geometry)}"
        )
    mass_LHTS = array.astype(np.float64)
    if not np.isfinite(mass_LHTS).all() or (mass_LHTS < 0).any():
        raise ScoresError("the attention mass holds NaN, infinite or negative values; calibrate again")
    if np.triu(mass_LHTS, 1).any():
        raise ScoresError("the attention mass has a scale attend to a later one; calibrate again")
    rows_LHT = mass_LHTS.sum(3)
    off_LHT = np.abs(rows_LHT - count) > _ROW_SLACK * count
    if off_LHT.any():
        layer, head, t = (int(i) for i in np.argwhere(off_LHT)[0])
        raise ScoresError(
            f"layer {layer}, head {head} spends {rows_LHT[layer, head, t]:.4f} of attention at scale {t} over {count} "
            f"prompts: it must be {count}, one a prompt; calibrate again"
        )
    mass_LHTS.setflags(write=False)
    return mass_LHTS


def _checked_extra(name: str, extra: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """An optional tensor as a read-only float64 copy; ``shape`` is that of the attention mass."""
    array = as_array(extra, what=name, error=ScoresError)
    shape = shape[:2] if name.endswith("_LH") else shape
    if array.shape != shape or array.dtype.kind != "f":
        raise ScoresError(f"{name} is {array.dtype} of shape {array.shape}: expected floats of shape {shape}")
    copy: npt.NDArray[np.float64] = array.astype(np.float64)
    if not (copy >= 0).all() or (copy > MAX_EXTRA).any():
        raise ScoresError(f"{name} holds NaN, negative values or values above {MAX_EXTRA:g}; calibrate again")
    copy.setflags(write=False)
    return copy


def _read_safetensors(path: str | os.PathLike[str]) -> tuple[Any, dict[str, npt.NDArray[np.float64]]]:
    """The JSON header and the tensors of a scores file: the attention mass, and what else was measured."""
    from safetensors import SafetensorError, safe_open

    try:
        if not os.path.isfile(path):
            raise ScoresError("there is no such file")
        if os.path.getsize(path) > MAX_FILE_BYTES:
            raise ScoresError(f"larger than {MAX_FILE_BYTES >> 20} MB: this is no scores file")
        with open(path, "rb") as raw:
            if int.from_bytes(raw.read(8), "little") > 2 * MAX_HEADER_BYTES:
                raise ScoresError(f"its header is larger than {MAX_HEADER_BYTES >> 19} MB: this is no scores file")
        with safe_open(path, framework="numpy") as file:
            header = (file.metadata() or {}).get(FORMAT)
            if header is None:
                raise ScoresError(f"no {FORMAT} header: this safetensors file holds something else")
            if len(header) > MAX_HEADER_BYTES:
                raise ScoresError(f"its header is larger than {MAX_HEADER_BYTES >> 20} MB: this is no scores file")
            names = set(file.keys())
            known = {_TENSOR} <= names <= {_TENSOR, *_EXTRAS}
            if not known or any(file.get_slice(name).get_dtype() != "F64" for name in names):
                raise ScoresError(f"expected one float64 tensor named {_TENSOR}, found {shown(sorted(names))}")
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as problem:
        raise ScoresError(f"not a whole safetensors file: {one_line(problem, 200)}") from problem
    except (OSError, ValueError) as problem:
        if isinstance(problem, ScoresError):
            raise
        raise ScoresError(f"cannot be read: {problem}") from problem
    return parse_json(header, error=ScoresError), tensors
