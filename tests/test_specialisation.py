"""How heads differ: types as on the head cards, and measures that tell alike heads from unlike ones."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest
from strategies import random_scores

from heatkv.scales import Geometry, ScaleSchedule
from heatkv.scores import HeadScores
from heatkv.views.explore import TYPES, even_attention, head_profiles
from heatkv.views.specialisation import specialisation

SCALES = ScaleSchedule.square(range(1, 8))
K = len(SCALES)


def even_rows() -> npt.NDArray[np.float64]:
    rows = np.tril(np.tile(np.array(SCALES.tokens, float), (K, 1)))
    return rows / rows.sum(1, keepdims=True)


def scores_of(*heads: npt.NDArray[np.float64]) -> HeadScores:
    """One layer whose heads attend as given, ``(targets, sources)``."""
    return HeadScores("toy", Geometry(1, len(heads), 8, SCALES), np.stack(heads)[None], (), 1)


def test_heads_that_spread_evenly_do_not_differ_at_all() -> None:
    found = specialisation(scores_of(*[even_rows()] * 4), 3)
    assert found.types == {**dict.fromkeys(TYPES, 0.0), "spread": 1.0}
    assert found.entropy_low == pytest.approx(found.entropy_even) == pytest.approx(found.entropy_high)
    assert (found.little, found.much, found.local, found.coarse_or_global) == (0, 0, 0, 1)
    assert [s.source for s in found.sources] == [3, 4, 5]
    for source in found.sources:
        assert source.low == pytest.approx(source.even) == pytest.approx(source.high)
        assert source.variation == pytest.approx(0)


def test_heads_that_look_at_one_place_are_counted_where_they_look() -> None:
    own, first = np.eye(K), np.zeros((K, K))
    first[:, 0] = 1
    to_4 = even_rows()
    to_4[4:] = np.eye(K)[3]  # all later attention on the fourth scale
    found = specialisation(scores_of(own, first, to_4, even_rows()), 3)
    assert found.types == {"itself": 0.25, "previous": 0.0, "between": 0.25, "sinks": 0.25, "spread": 0.25}
    assert found.local == 0.25 and found.coarse_or_global == 0.5
    assert found.entropy_low == pytest.approx(0)
    assert found.little == 0.75, "three heads give nothing to some prunable scale"
    assert found.much == 0.25, "one gives all it has to one"
    fourth = found.sources[0]
    assert (fourth.little, fourth.much, fourth.high > 0.5) == (0.5, 0.25, True)


def test_types_are_those_of_the_head_cards() -> None:
    scores = random_scores(Geometry(3, 5, 8, SCALES), 1, count=2)
    kinds = head_profiles(scores, 2).type_LH
    for i, name in enumerate(TYPES):
        assert specialisation(scores, 2).types[name] == pytest.approx((kinds == i).mean())


def test_entropy_is_of_the_shares_of_scales_after_the_sinks() -> None:
    half = np.eye(K)
    half[4:] = 0.5 * np.eye(K)[0] + 0.5 * np.eye(K)[4:]  # two scales, half and half: one bit
    found = specialisation(scores_of(half), 3)
    assert found.entropy_mean == pytest.approx(1)


@pytest.mark.parametrize("sinks", [0, 3, K - 1])
def test_it_is_plain_json_for_any_number_of_sinks(sinks: int) -> None:
    found = specialisation(random_scores(Geometry(2, 3, 8, SCALES), 4), sinks)
    sent = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert len(sent["sources"]) == K - 1 - sinks
    assert sum(sent["types"].values()) == pytest.approx(1)


def test_even_attention_of_lines_sees_a_line_up_to_each_token() -> None:
    scales = ScaleSchedule.lines(2, 4, 4)
    even_TS = even_attention(scales)
    scores = HeadScores("toy", Geometry(1, 2, 8, scales), np.stack([even_TS, even_TS])[None], (), 1)
    found = specialisation(scores, 1)
    assert found.entropy_even == pytest.approx(found.entropy_low) == pytest.approx(found.entropy_high)
