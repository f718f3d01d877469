"""Knock-out: measured on the picture, every head once, and nothing where a head's memory does not matter."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import tiny_model

import heatkv
from heatkv.generate import generate_events
from heatkv.policies import make_cache
from heatkv.schedule import Schedule
from heatkv.study import metrics
from heatkv.views.kept import kept_share
from heatkv.views.knockout import KnockOut, knock_out_steps, moved, without_head


def test_every_head_is_measured_against_the_full_picture() -> None:
    model = tiny_model()
    found = [step for step in knock_out_steps(model, "red apple", 3) if isinstance(step, KnockOut)]
    assert [(one.layer, one.head) for one in found] == [(i, j) for i in range(3) for j in range(4)]
    full = heatkv.generate(model, "red apple", 3)
    one = found[6]
    less = heatkv.generate(model, "red apple", 3, without_head(Schedule.full(model.geometry, "tiny"), 1, 2))
    assert one.moved == pytest.approx(moved(full.pixels, less.pixels)) and one.moved > 0
    assert one.psnr == pytest.approx(metrics.psnr(full.pixels, less.pixels))


def test_without_a_head_only_its_cells_are_missing() -> None:
    model = tiny_model()
    full = Schedule.full(model.geometry, "tiny")
    gone_LHS = ~without_head(full, 2, 1).keep(5)[:, :, :5]
    assert gone_LHS[2, 1].all() and gone_LHS.sum() == 5


def test_tokens_kept_are_those_that_the_cache_holds() -> None:
    model = tiny_model()
    cache = make_cache("h2o", model.geometry, 0.5)
    last = len(model.geometry.scales) - 1
    for event in generate_events(model, "red apple", 0, cache):
        if event.scale == last - 1:
            kept_LHS = kept_share(cache)  # type: ignore[arg-type]
            tokens = int(np.rint((kept_LHS * np.array(model.geometry.scales.tokens[:-1])).sum()))
            assert tokens == cache.tokens and (kept_LHS >= 0).all() and (kept_LHS <= 1).all()
            break
    else:
        pytest.fail("the model ended early")
