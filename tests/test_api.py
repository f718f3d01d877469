"""The endpoints that programs call, over the network, as the About page shows them."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
pytest.importorskip("gradio")

from gradio_client import Client
from PIL import Image
from tiny import tiny_model

import heatkv
from app.demo import create_demo, launch_options
from heatkv.schedule import Schedule


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Client, Any, Any]]:
    model = tiny_model()
    scores = heatkv.calibrate(model, ["red apple"])
    demo = create_demo(model, scores)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options("tiny"))
    yield Client(url, verbose=False), model, scores
    demo.close()


def test_a_link_that_names_the_first_model_leads_to_its_page(served: tuple[Client, Any, Any]) -> None:
    """Such links were made while another model stood at the root, and were answered by a line of JSON."""
    link = httpx.URL(served[0].src).join("tiny?budget=40&prompt=red+apple")
    answer = httpx.get(link, follow_redirects=True)
    assert answer.status_code == 200 and "<html" in answer.text
    assert (answer.url.path, answer.url.query) == ("/", b"budget=40&prompt=red+apple")
    assert httpx.get(link.join("tinier"), follow_redirects=True).status_code == 404


def test_plan_gives_the_schedule_of_the_library(served: tuple[Client, Any, Any]) -> None:
    client, _, scores = served
    found = client.predict(0.35, "reverse", api_name="/plan")
    assert Schedule.from_json(json.dumps(found)) == heatkv.plan(scores, 0.35, "reverse")


def test_generate_streams_scales_and_ends_with_the_images_of_the_library(served: tuple[Client, Any, Any]) -> None:
    client, model, scores = served
    job = client.submit("red apple", 4, 0.4, "heatkv", api_name="/generate")
    steps = list(job)
    assert [step["scale"] for step in steps] == [1, 2, 3, 4, 5, 6]
    expected = heatkv.generate(model, "red apple", 4, heatkv.plan(scores, 0.4))
    image = Image.open(io.BytesIO(base64.b64decode(steps[-1]["compressed_png"])))
    assert (np.asarray(image) == expected.pixels).all()
    assert steps[-1]["kv_bytes_peak"] == expected.kv_bytes_peak and len(steps[-1]["bit_agreement"]) == 6


def test_cells_are_stored_as_asked(served: tuple[Client, Any, Any]) -> None:
    client, _, scores = served
    found = client.predict(0.35, "heatkv", "int8", api_name="/plan")
    assert Schedule.from_json(json.dumps(found)) == heatkv.plan(scores, 0.35, storage="int8")
    sides = {"policy_a": "heatkv", "budget_a": 0.4, "storage_a": "int4", "budget_b": 0.4, "storage_b": "compute"}
    both = list(client.submit("red apple", 4, **sides, api_name="/compare"))[-1]
    assert both["kv_bytes_a"] < both["kv_bytes_b"]
    wrong = {"/compare": {"storage_a": "int8"}, "/draw": {"policy": "h2o", "budget": 0.5, "storage": "int8"}}
    for name, asked in wrong.items():
        with pytest.raises(Exception, match=r"stays? as"):
            list(client.submit("red apple", 4, **asked, api_name=name).result() or [])


def test_draw_takes_sampling_and_generate_the_four_values_it_always_took(served: tuple[Client, Any, Any]) -> None:
    client, model, scores = served
    found = list(client.submit("red apple", 4, 0.4, "heatkv", 1.0, api_name="/draw"))[-1]
    plain = replace(model.sampling, guidance=1.0)
    expected = heatkv.generate(model, "red apple", 4, heatkv.plan(scores, 0.4), plain)
    image = Image.open(io.BytesIO(base64.b64decode(found["compressed_png"])))
    assert (np.asarray(image) == expected.pixels).all() and found["kv_bytes_full"] == expected.kv_bytes_full
    with pytest.raises(Exception, match="outside 0 to 50"):
        client.predict("red apple", 4, 0.4, "heatkv", 99.0, api_name="/draw")
    assert len(client.view_api(return_format="dict")["named_endpoints"]["/generate"]["parameters"]) == 4


def test_calibrate_gives_scores_that_load(served: tuple[Client, Any, Any], tmp_path: Any) -> None:
    client, model, _ = served
    found = list(client.submit(["red apple", "blue cat"], 0, api_name="/calibrate"))[-1]
    (tmp_path / "scores.safetensors").write_bytes(base64.b64decode(found["scores_file"]))
    scores = heatkv.HeadScores.load(tmp_path / "scores.safetensors")
    np.testing.assert_allclose(
        scores.mass_LHTS, heatkv.calibrate(model, ["red apple", "blue cat"]).mass_LHTS, atol=1e-6
    )
    assert len(found["orders"]) == 2 and len(found["orders"][0]) == 12


@pytest.mark.parametrize(
    ("endpoint", "arguments", "words"),
    [
        ("/plan", (0.01, "heatkv"), "least feasible"),
        ("/plan", ("lots", "heatkv"), "must be a number"),
        ("/plan", (0.5, "no-such"), "no policy"),
        ("/generate", ("x" * 10_000, 0, 0.5, "heatkv"), "10000 characters"),
        ("/generate", ("zeppelin", 0, 0.5, "heatkv"), "zeppelin"),
        ("/generate", ("red apple", -5, 0.5, "heatkv"), "seed"),
        ("/calibrate", ([], 0), "list of 1 to 64"),
        ("/calibrate", (["a"] * 65, 0), "list of 1 to 64"),
    ],
)
def test_wrong_arguments_are_answered_in_words(
    served: tuple[Client, Any, Any], endpoint: str, arguments: tuple[Any, ...], words: str
) -> None:
    with pytest.raises(Exception, match=words):
        served[0].predict(*arguments, api_name=endpoint)
