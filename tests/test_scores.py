"""Head scores add up over prompts, rank heads as the paper does, and come back whole from a file or not at all."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import geometries, random_orders, random_scores

from heatkv.scales import Geometry, ScaleSchedule
from heatkv.schedule import ScheduleError
from heatkv.scores import HeadScores, OrdersError, ScoresError, load_orders, orders_from_json, orders_to_json

GEOMETRY = Geometry(2, 3, 8, ScaleSchedule(((1, 1), (1, 2), (2, 3), (4, 4))))
OTHER = Geometry(3, 3, 8, GEOMETRY.scales)


def mass_with(value: float, at: tuple[int, int, int, int]) -> npt.NDArray[np.float64]:
    mass_LHTS = random_scores(GEOMETRY, seed=0).mass_sum_LHTS.copy()
    mass_LHTS[at] = value
    return mass_LHTS


# What they mean


@given(geometry=geometries, data=st.data())
def test_scas_is_the_mean_mass_of_all_later_targets(geometry: Geometry, data: st.DataObject) -> None:
    K = len(geometry.scales)
    sinks = data.draw(st.integers(0, K - 1))
    scores = random_scores(geometry, seed=data.draw(st.integers(0, 99)), count=3)
    scas_LHS = scores.scas(sinks)
    for s in range(K):
        if sinks <= s < K - 1:
            later = [scores.mass_LHTS[:, :, t, s] for t in range(s + 1, K)]
            np.testing.assert_allclose(scas_LHS[:, :, s], sum(later) / (K - 1 - s), rtol=1e-12)
        else:
            assert np.isnan(scas_LHS[:, :, s]).all()


@given(geometry=geometries, data=st.data())
def test_orders_rank_every_head_of_every_prunable_scale_ties_by_head_then_layer(
    geometry: Geometry, data: st.DataObject
) -> None:
    sinks = data.draw(st.integers(0, len(geometry.scales) - 1))
    scores = random_scores(geometry, seed=data.draw(st.integers(0, 99)))
    # Coarse masses make ties; the diagonal takes up the rest of every row.
    mass_LHTS = np.tril(scores.mass_sum_LHTS.round(1) / 10, -1)
    np.einsum("lhtt->lht", mass_LHTS)[:] = 1 - mass_LHTS.sum(3)
    tied = replace(scores, mass_sum_LHTS=mass_LHTS)
    scas_LHS = tied.scas(sinks)
    by_hand = [
        [
            layer * geometry.heads + head
            for _, head, layer in sorted(
                (scas_LHS[layer, head, s], head, layer)
                for layer in range(geometry.layers)
                for head in range(geometry.heads)
            )
        ]
        for s in range(sinks, len(geometry.scales) - 1)
    ]
    assert tied.orders(sinks).tolist() == by_hand


def test_sink_scales_that_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(ScheduleError, match="from 0 to 3"):
        random_scores(GEOMETRY, seed=0).orders(4)


@given(geometry=geometries, counts=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_a_merge_is_the_calibration_over_all_prompts(geometry: Geometry, counts: tuple[int, int]) -> None:
    a, b = (random_scores(geometry, seed, count) for seed, count in enumerate(counts))
    merged = a.merge(b)
    assert merged.count == sum(counts)
    assert merged.prompts == a.prompts + b.prompts
    np.testing.assert_allclose(merged.mass_LHTS, (a.mass_LHTS * a.count + b.mass_LHTS * b.count) / merged.count)
    np.testing.assert_array_equal(merged.mass_sum_LHTS, b.merge(a).mass_sum_LHTS)


def test_a_merge_keeps_only_metadata_that_holds_for_both() -> None:
    a, b = (replace(random_scores(GEOMETRY, i), metadata={"seed": i, "dtype": "float32"}) for i in range(2))
    assert a.merge(b).metadata == {"dtype": "float32"}


def test_a_merge_with_unknown_prompts_claims_none() -> None:
    scores = random_scores(GEOMETRY, seed=0)
    assert scores.merge(replace(scores, prompts=())).prompts == ()


def test_scores_of_other_models_or_geometries_do_not_merge() -> None:
    with pytest.raises(ScoresError, match="of toy and of pocket"):
        random_scores(GEOMETRY, 0).merge(random_scores(GEOMETRY, 0, model="pocket"))
    with pytest.raises(ScoresError, match=r"2 layers x 3 heads.* and 3 layers x 3 heads"):
        random_scores(GEOMETRY, 0).merge(random_scores(OTHER, 0))


# What they promise


def test_the_mass_is_a_private_read_only_copy() -> None:
    mine = random_scores(GEOMETRY, seed=0).mass_sum_LHTS.copy()
    scores = HeadScores("toy", GEOMETRY, mine, (), 1)
    mine[:] = 0
    assert scores.mass_sum_LHTS.any()
    for array in (scores.mass_sum_LHTS, scores.mass_LHTS):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_mass_of_half_precision_attention_is_accepted() -> None:
    scores = random_scores(GEOMETRY, seed=0)
    replace(scores, mass_sum_LHTS=scores.mass_sum_LHTS.astype(np.float16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"geometry": OTHER}, r"expected floats of shape \(3, 3, 4, 4\)"),
        ({"mass_sum_LHTS": np.ones((2, 3, 4, 4), np.int64)}, "is int64"),
        ({"mass_sum_LHTS": mass_with(np.nan, (0, 0, 2, 1))}, "NaN, infinite or negative"),
        ({"mass_sum_LHTS": mass_with(np.inf, (0, 0, 2, 1))}, "NaN, infinite or negative"),
        ({"mass_sum_LHTS": mass_with(-0.1, (0, 0, 2, 1))}, "NaN, infinite or negative"),
        ({"mass_sum_LHTS": mass_with(0.1, (0, 0, 1, 2))}, "attend to a later one"),
        ({"mass_sum_LHTS": mass_with(3.0, (1, 2, 2, 1))}, "layer 1, head 2 spends 3.* at scale 2 over 1 prompts"),
        ({"count": 2}, "one for each prompt counted"),
        ({"count": 2, "prompts": ()}, "it must be 2, one a prompt"),
        ({"count": 0}, "at least one prompt"),
        ({"count": True}, "count is True"),
        ({"prompts": (1,)}, "must be 1 texts"),
        ({"model": ""}, "model is ''"),
        ({"metadata": {"x": np.float32(1)}}, "plain JSON values"),
    ],
)
def test_scores_that_no_calibration_can_give_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ScoresError, match=message):
        replace(random_scores(GEOMETRY, seed=0), **changes)


# Files


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    pytest.importorskip("safetensors")
    path = tmp_path / "scores.safetensors"
    scores = replace(random_scores(GEOMETRY, seed=3, count=2), prompts=("a red apple", "ein Süßapfel 🍎"))
    replace(scores, metadata={"seed": 3, "dtype": "float32"}).save(path)
    return path


def rewrite(path: Path, *, header: dict[str, Any] | str | None, **tensors: npt.NDArray[Any]) -> None:
    """Write another safetensors file in its place, valid as such."""
    from safetensors.numpy import save_file

    text = json.dumps(header) if isinstance(header, dict) else header
    save_file(tensors, path, metadata=None if text is None else {"heatkv-scores": text})


def header_of(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        header: dict[str, Any] = json.loads(file.metadata()["heatkv-scores"])
    return header


def test_a_file_gives_back_the_scores(saved: Path) -> None:
    scores = HeadScores.load(saved)
    assert scores.prompts == ("a red apple", "ein Süßapfel 🍎")
    assert scores.metadata == {"seed": 3, "dtype": "float32"}
    scores.save(saved)
    assert HeadScores.load(saved) == scores
    assert [path.name for path in saved.parent.iterdir()] == ["scores.safetensors"]


def test_scores_fit_the_geometry_they_were_measured_with(saved: Path) -> None:
    scores = HeadScores.load(saved)
    scores.check_matches(GEOMETRY)
    with pytest.raises(ScoresError, match="calibrate that model"):
        scores.check_matches(OTHER)


@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: float) -> None:
    pytest.importorskip("safetensors")
    path = tmp_path_factory.mktemp("scores") / "scores.safetensors"
    random_scores(GEOMETRY, seed=0).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole))])
    with pytest.raises(ScoresError, match=r"scores\.safetensors"):
        HeadScores.load(path)


@given(data=st.data())
def test_whatever_bytes_are_damaged_loading_succeeds_or_says_why(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    pytest.importorskip("safetensors")
    path = tmp_path_factory.mktemp("scores") / "scores.safetensors"
    random_scores(GEOMETRY, seed=0).save(path)
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    with contextlib.suppress(ScoresError):
        HeadScores.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "heatkv-schedule"}, "this is another kind of file"),
        ({"version": 2}, "version 2 is not supported"),
        ({"layers": 3}, "expected floats of shape"),
        ({"scales": [[1, 1], [1, 2], [2, 3]]}, "expected floats of shape"),
        ({"count": 5}, "one for each prompt counted"),
        ({"count": 2.0}, "count is 2.0"),
        ({"prompts": "apple"}, "prompts is 'apple'"),
        ({"prompts": [1, 2]}, "must be 2 texts"),
        ({"metadata": 1}, "metadata is 1"),
        ({"model": 7}, "model is 7"),
    ],
)
def test_a_header_that_contradicts_the_tensor_is_refused(saved: Path, changes: dict[str, Any], message: str) -> None:
    mass_LHTS = HeadScores.load(saved).mass_sum_LHTS
    rewrite(saved, header={**header_of(saved), **changes}, mass_sum_LHTS=mass_LHTS)
    with pytest.raises(ScoresError, match=message):
        HeadScores.load(saved)


def test_another_safetensors_file_is_refused(saved: Path) -> None:
    header, mass_LHTS = header_of(saved), HeadScores.load(saved).mass_sum_LHTS
    rewrite(saved, header=None, mass_sum_LHTS=mass_LHTS)
    with pytest.raises(ScoresError, match="holds something else"):
        HeadScores.load(saved)
    rewrite(saved, header=header, weights=mass_LHTS)
    with pytest.raises(ScoresError, match="expected one float64 tensor named mass_sum_LHTS"):
        HeadScores.load(saved)
    rewrite(saved, header=header, mass_sum_LHTS=mass_LHTS.astype(np.float32))
    with pytest.raises(ScoresError, match="expected one float64 tensor"):
        HeadScores.load(saved)
    rewrite(saved, header="[" * 100_000, mass_sum_LHTS=mass_LHTS)
    with pytest.raises(ScoresError, match="nested too deeply"):
        HeadScores.load(saved)


def test_a_file_that_is_absent_or_a_folder_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    for path in (tmp_path, tmp_path / "absent", "nul\0"):
        with pytest.raises(ScoresError):
            HeadScores.load(path)


# Orders


@given(geometry=geometries, data=st.data())
def test_orders_survive_the_published_format(geometry: Geometry, data: st.DataObject) -> None:
    sinks = data.draw(st.integers(0, len(geometry.scales) - 1))
    orders_SN = random_orders(geometry, sinks, seed=data.draw(st.integers(0, 99)))
    text = orders_to_json(orders_SN, geometry)
    assert (orders_from_json(text, geometry, sinks) == orders_SN).all()
    assert (orders_from_json(f'{{"metadata": {{}}, "orders": {text}}}', geometry, sinks) == orders_SN).all()


def test_a_pair_is_head_then_layer() -> None:
    pairs = [[head, layer] for head in range(3) for layer in range(2)]
    assert orders_from_json(json.dumps([pairs] * 2), GEOMETRY, 1).tolist() == [[0, 3, 1, 4, 2, 5]] * 2


PAIRS = [[head, layer] for layer in range(2) for head in range(3)]


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ({"metadata": {}}, "holds no orders"),
        ("orders", "holds no orders"),
        ([PAIRS], "orders for 1 source scales.* have 2 prunable ones; .* they fit sink_scales=2"),
        ([PAIRS] * 3, "they fit sink_scales=0"),
        ([PAIRS] * 9, "they need a model with at least 10 scales"),
        ([PAIRS, "pairs"], "source scale 2 holds 'pairs'"),
        ([PAIRS, PAIRS[:-1]], r"source scale 2 lists 5 of 6 heads .* \[head 2, layer 1\] is missing"),
        ([PAIRS, []], r"lists 0 of 6 heads .* \[head 0, layer 0\] is missing"),
        ([PAIRS[:-1] + PAIRS[:1], PAIRS], r"source scale 1 lists \[head 0, layer 0\] more than once"),
        ([PAIRS + PAIRS, PAIRS], "lists 12 pairs, but 2 layers x 3 heads are 6 heads"),
        ([[*PAIRS[:-1], [3, 1]], PAIRS], r"\[head 3, layer 1\], which 2 layers x 3 heads do not have"),
        ([[*PAIRS[:-1], [2, -1]], PAIRS], r"layer -1\], which"),
        ([[*PAIRS[:-1], [2, True]], PAIRS], r"lists \[2, True\]: expected a \[head, layer\] pair"),
        ([[*PAIRS[:-1], [2.0, 1]], PAIRS], "expected a .* pair"),
        ([[*PAIRS[:-1], [2]], PAIRS], "expected a .* pair"),
        ([[*PAIRS[:-1], 7], PAIRS], "expected a .* pair"),
    ],
)
def test_orders_that_do_not_rank_every_head_once_are_refused(tmp_path: Path, orders: Any, message: str) -> None:
    path = tmp_path / "orders.json"
    path.write_text(json.dumps(orders))
    with pytest.raises(OrdersError, match=message) as caught:
        load_orders(path, GEOMETRY, 1)
    assert "orders.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "NaN", b"\xff", "[[[" + "9" * 5000 + "]]]"])
def test_orders_that_are_no_json_are_refused(text: str | bytes) -> None:
    with pytest.raises(OrdersError):
        orders_from_json(text, GEOMETRY, 1)


@given(text=st.binary(max_size=100))
def test_any_other_content_is_refused(text: bytes) -> None:
    with pytest.raises(OrdersError):
        orders_from_json(text, GEOMETRY, 1)


def test_extras_whose_sums_would_overflow_are_refused() -> None:
    plain = random_scores(Geometry(2, 2, 8, ScaleSchedule.square([1, 2, 3])), 0)
    with pytest.raises(ScoresError, match=r"change_sum_LHTS holds .* above 1e\+100"):
        replace(plain, change_sum_LHTS=np.full(plain.mass_sum_LHTS.shape, 1e308))
