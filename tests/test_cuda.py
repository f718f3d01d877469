"""What only a CUDA device can tell: its kernels, its allocator, and who waits for whom."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from test_cache import GEOMETRY, MaskedReference, play, random_qkv, random_schedule
from tiny import tiny_model

from heatkv.cache import attention
from heatkv.cache.seam import ScheduleCache, full_cache
from heatkv.calibration import calibrate
from heatkv.models import random_init
from heatkv.models.base import seeded_noise
from heatkv.policies import REGISTRY, make_cache
from heatkv.scales import Geometry, ScaleSchedule

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
LARGE = ScaleSchedule.square((1, 2, 4, 6, 8, 12, 16, 20, 24))


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_attention_equals_masked_attention(head_dim: int, dtype: torch.dtype) -> None:
    geometry = Geometry(2, 6, head_dim, LARGE)
    schedule = random_schedule(geometry, 0.4, 3)
    size = torch.tensor([head_dim**-0.5, 1, 1]).view(3, 1, 1, 1, 1)
    qkv = [[(x * size).to("cuda", dtype) for x in per_layer] for per_layer in random_qkv(geometry, 2)]
    got, expected = play(ScheduleCache(geometry, schedule), qkv), play(OnDevice(geometry, schedule), qkv)
    tolerance = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


class OnDevice(MaskedReference):
    """The same reference, its masks where the numbers are."""

    def _attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return super()._attend(layer, q.cpu(), k.cpu(), v.cpu()).to(q.device)


def test_one_call_of_flash_attention_serves_heads_of_all_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, kernel = [], attention.flash_varlen
    monkeypatch.setattr(attention, "flash_varlen", lambda *a: calls.append(len(a)) or kernel(*a))
    qkv = [[x.to("cuda", torch.bfloat16) for x in per_layer] for per_layer in random_qkv(GEOMETRY, 2)]
    play(ScheduleCache(GEOMETRY, random_schedule(GEOMETRY, 0.4, 1)), qkv)
    assert calls


@pytest.mark.parametrize("budget", [0.1, 0.4, 1.0])
def test_the_allocator_gives_the_planned_bytes_and_gets_them_back(budget: float) -> None:
    geometry = Geometry(4, 8, 64, LARGE)
    schedule = random_schedule(geometry, budget, 3)
    qkv = [[x.to("cuda", torch.bfloat16) for x in per_layer] for per_layer in random_qkv(geometry, 4)]
    play(ScheduleCache(geometry, schedule), qkv)  # kernels may keep workspaces
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    cache = ScheduleCache(geometry, schedule)
    for t, per_layer in enumerate(qkv):
        for layer, tensors in enumerate(per_layer):
            cache.attend(layer, *tensors)
        held = torch.cuda.memory_allocated() - before
        planned = cache.planned_bytes(4, 2) if t < len(LARGE) - 1 else 0
        assert planned <= held <= planned + 512  # the allocator's block


@pytest.mark.parametrize("budget", [0.4, 1.0])
def test_nobody_waits_for_the_device_inside_a_scale(budget: float) -> None:
    model = tiny_model((1, 2, 3, 4, 6, 8), head_dim=32)
    for part in (model.text, model.transformer, model.autoencoder):
        part.to("cuda")
    model.transformer.blocks.to(torch.bfloat16)
    schedule = random_schedule(model.geometry, budget, 2)
    for warm in (True, False):
        steps = model.run(["red apple"], seeded_noise([0]), ScheduleCache(model.geometry, schedule), model.sampling)
        next(steps)  # the text is read, and looked at on the host, before the first scale
        if not warm:
            torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in steps:
                pass
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", list(REGISTRY))
def test_every_policy_runs_and_keeps_to_its_budget(name: str) -> None:
    model = random_init("var-d16", "cuda")
    geometry, rows = model.geometry, 2
    scores = calibrate(model, [model.examples[0]])
    cache = make_cache(name, geometry, 0.3, scores, model=model.id)
    *_, last = model.run([model.examples[0]], seeded_noise([0]), cache, model.sampling)
    assert model.decode(last.latent).shape[-1] == 3
    assert cache.peak_bytes <= 0.3 * geometry.kv_bytes(
        geometry.full_peak_tokens, batch=rows, key_bytes=2, value_bytes=2
    )


def test_a_run_is_repeatable() -> None:
    model = random_init("var-d16", "cuda")
    runs = [
        [step.tokens.cpu() for step in model.run(["1"], seeded_noise([3]), full_cache(model.geometry), model.sampling)]
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
