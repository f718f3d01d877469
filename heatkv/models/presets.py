"""Geometries of published models, so that budgets can be planned and explored without their weights."""

from __future__ import annotations

from dataclasses import dataclass

from heatkv.scales import Geometry, ScaleSchedule

INFINITY_1M = ScaleSchedule.square((1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64))


@dataclass(frozen=True)
class Preset:
    """A published model by name: its family and geometry, and a line for people."""

    id: str
    family: str
    geometry: Geometry
    summary: str


PRESETS: dict[str, Preset] = {
    preset.id: preset
    for preset in (
        Preset("infinity-2b", "infinity", Geometry(32, 16, 128, INFINITY_1M), "Infinity 2B, text to image, 1024 x 1024"),
        Preset("infinity-8b", "infinity", Geometry(40, 28, 128, INFINITY_1M), "Infinity 8B, text to image, 1024 x 1024"),
    )
}
