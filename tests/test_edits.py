"""Editing a schedule by hand: what is forgotten is never stored, nothing else moves, and texts name the same cells."""

from __future__ import annotations

import numpy as np
import pytest
from strategies import random_scores

import heatkv
from heatkv.scales import Geometry, ScaleSchedule
from heatkv.schedule import Schedule
from heatkv.views.edits import EditsError, cells_from_text, cells_to_text, forget, no_cells

GEOMETRY = Geometry(3, 4, 16, ScaleSchedule.square((1, 2, 3, 4, 5)))


@pytest.mark.parametrize("policy", ["heatkv", "reverse", "streaming"])
def test_forgotten_cells_are_never_stored_and_all_others_stay(policy: str) -> None:
    schedule = heatkv.plan(random_scores(GEOMETRY, 0), 0.5, policy)
    cells_LHS = np.random.default_rng(0).random(no_cells(GEOMETRY).shape) < 0.3
    edited = forget(schedule, cells_LHS)
    drop_LHS = edited.drop_at_LHS[:, :, :-1]
    assert (drop_LHS[cells_LHS] == np.broadcast_to(np.arange(1, 5), drop_LHS.shape)[cells_LHS]).all()
    assert (drop_LHS[~cells_LHS] == schedule.drop_at_LHS[:, :, :-1][~cells_LHS]).all()
    assert edited.peak_tokens < schedule.peak_tokens and edited.budget == schedule.budget
    assert Schedule.from_json(edited.to_json()) == edited, "an edited schedule is a schedule like any other"


def test_a_forgotten_sink_is_no_sink_any_more() -> None:
    full = Schedule.full(GEOMETRY, "any")
    cells_LHS = no_cells(GEOMETRY)
    cells_LHS[1, 2, 1] = True
    assert forget(full, cells_LHS).sink_scales == 1
    assert forget(full, no_cells(GEOMETRY)) is full
    with pytest.raises(ValueError, match="do not fit"):
        forget(full, cells_LHS[:, :, :2])


def test_texts_name_cells_and_the_shortest_text_comes_back() -> None:
    cells_LHS = cells_from_text("2, 1.3 ,3.4.2,s4", GEOMETRY)
    expected_LHS = no_cells(GEOMETRY)
    expected_LHS[1] = expected_LHS[0, 2] = expected_LHS[2, 3, 1] = True
    expected_LHS[:, :, 3] = True
    assert (cells_LHS == expected_LHS).all()
    assert cells_to_text(cells_LHS) == "s4,1.3,2,3.4.2"
    for seed in range(20):
        random_LHS = np.random.default_rng(seed).random(expected_LHS.shape) < seed / 20
        assert (cells_from_text(cells_to_text(random_LHS), GEOMETRY) == random_LHS).all()


@pytest.mark.parametrize("text", ["0", "4", "1.5", "1.1.5", "s5", "s", "1.2.3.4", "x", "-1", "1..2", "²", "9" * 99])
def test_words_that_name_no_cell_are_refused(text: str) -> None:
    with pytest.raises(EditsError, match="names no cell"):
        cells_from_text(text, GEOMETRY)
