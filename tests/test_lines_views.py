"""Maps of models that draw by lines: heads by distance, types, what a token read."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from strategies import random_scores
from test_lines import GEOMETRY

from heatkv.scales import Geometry, ScaleSchedule
from heatkv.scores import HeadScores
from heatkv.views.explore import even_attention, head_profiles
from heatkv.views.lines import WIDE_TYPES, distance_profiles, line_view, types_of_image, wide_types


def looking(share: dict[int | str, float]) -> HeadScores:
    """One head that gives shares of its attention to distances in lines, or what it can not give, to its own line."""
    geometry = Geometry(1, 1, 8, GEOMETRY.scales)
    mass_LHTS = np.zeros((1, 1, 8, 8))
    for t in range(8):
        for distance, part in share.items():
            source = 0 if distance == "condition" else max(t - int(distance), 0)
            mass_LHTS[0, 0, t, source if source or distance == "condition" else t] += part
    return HeadScores("toy", geometry, mass_LHTS, (), 1)


def test_distances_are_counted_from_the_line_itself() -> None:
    profiles = distance_profiles(looking({0: 0.2, 2: 0.5, "condition": 0.3}))
    assert profiles.names[:3] == ("same line", "1 line up", "2 lines up") and profiles.names[-1] == "condition"
    by_name = dict(zip(profiles.names, profiles.share_LHD[0, 0], strict=True))
    assert by_name["2 lines up"] == pytest.approx(0.5) and by_name["condition"] == pytest.approx(0.3)
    assert by_name["1 line up"] == by_name["5 lines up"] == 0
    assert len(profiles.to_json()["names"]) == 8
    with pytest.raises(ValueError, match="draws by scales"):
        distance_profiles(random_scores(Geometry(1, 1, 8, ScaleSchedule.square([1, 2, 3])), 0))


def test_an_even_head_gives_every_token_it_sees_the_same() -> None:
    even_TS = even_attention(GEOMETRY.scales)
    np.testing.assert_allclose(even_TS.sum(1), 1)
    # The second line has 6 tokens behind 3 + 6; the first of them sees 10.
    assert even_TS[2, 0] == pytest.approx(np.mean([3 / n for n in range(10, 16)]))
    assert even_TS[0, 0] == 1


@pytest.mark.parametrize(
    ("share", "expected"),
    [({0: 0.5, 1: 0.5}, "local"), ({0: 0.1, 2: 0.9}, "far"), ({0: 0.2, "condition": 0.8}, "condition")],
)
def test_heads_have_a_type(share: dict[int | str, float], expected: str) -> None:
    profiles = head_profiles(looking(share), 1)
    assert WIDE_TYPES[wide_types(profiles)[0, 0]] == expected
    same = types_of_image(np.array([[expected == "local"]]), profiles)
    assert same.agreement == 1 and types_of_image(~same.local_LH, profiles).agreement == 0


def test_a_token_has_read_what_was_drawn_before_it_and_itself() -> None:
    scales = GEOMETRY.scales
    start, end = scales.bounds[3]
    attention = np.random.default_rng(0).random((end - start, end))
    view = line_view(attention, scales, 3)
    token_HW = view.picture_QHW[1 + 4]
    assert token_HW.shape == (7, 6) and np.isfinite(token_HW).sum() == 2 * 6 + 5
    assert token_HW[2, 4] == attention[4, start + 4] and token_HW[0, 0] == attention[4, 3]
    assert view.condition_QT[1 + 4].tolist() == attention[4, :3].tolist()
    assert view.picture_QHW[0, 1, 1] == pytest.approx(attention[:, 3 + 6 + 1].mean()), "row 0 is the line's mean"
    assert np.isfinite(view.picture_QHW[0]).sum() == 3 * 6
    packed = view.to_json()
    levels = np.frombuffer(base64.b64decode(packed["picture"]), "<u2").reshape(7, 7, 6)[5]
    assert (levels == 65535).sum() == 7 * 6 - 17 and levels[2, 5] == 65535
    assert levels[1, 3] / 65534 * packed["peaks"][5] == pytest.approx(token_HW[1, 3], abs=1e-4)


def test_the_last_line_has_a_token_less_and_the_condition_is_no_line() -> None:
    scales = GEOMETRY.scales
    start, end = scales.bounds[7]
    view = line_view(np.ones((end - start, end)), scales, 7)
    assert view.to_json()["queries"] == 5 and np.isnan(view.picture_QHW[:, 6, 5]).all()
    for segment in (0, 8):
        with pytest.raises(ValueError, match="is no line"):
            line_view(np.ones((3, 3)), scales, segment)
