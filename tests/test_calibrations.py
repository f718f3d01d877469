"""Two calibrations side by side."""

from __future__ import annotations

import numpy as np
import pytest
from strategies import random_scores

import heatkv
from heatkv.scales import Geometry, ScaleSchedule
from heatkv.views.calibrations import orders_correlation, plan_difference

GEOMETRY = Geometry(2, 4, 8, ScaleSchedule.square([1, 2, 3, 4, 5]))


def test_a_ranking_correlates_with_itself_and_its_reverse() -> None:
    orders_SN = np.stack([np.random.default_rng(s).permutation(8) for s in range(3)])
    assert orders_correlation(orders_SN, orders_SN) == pytest.approx(1)
    assert orders_correlation(orders_SN, orders_SN[:, ::-1]) == pytest.approx(-1)
    with pytest.raises(ValueError, match="different models"):
        orders_correlation(orders_SN, orders_SN[:2])


def test_cells_that_two_plans_keep_otherwise_are_counted() -> None:
    one, other = (heatkv.plan(random_scores(GEOMETRY, seed), 0.5, sink_scales=1) for seed in (0, 1))
    assert plan_difference(one, one).differ == 0
    found = plan_difference(one, other)
    by_hand = sum(
        one.keep(4)[layer, head, source] != other.keep(4)[layer, head, source]
        for layer in range(2) for head in range(4) for source in range(1, 4)
    )  # fmt: skip
    assert found.differ == by_hand > 0 and found.prunable == 2 * 4 * 3
    with pytest.raises(ValueError, match="different models"):
        plan_difference(one, heatkv.plan(random_scores(GEOMETRY, 0), 0.6, sink_scales=2))
