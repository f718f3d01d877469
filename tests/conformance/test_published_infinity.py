"""The Infinity family computes what the official implementation computes (vectors in ../shared/conformance)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from heatkv.cache.attention import partial_attention
from heatkv.cache.seam import KVCache, ScheduleCache, full_cache
from heatkv.calibration import CalibratingCache
from heatkv.models.infinity.autoencoder import Autoencoder, AutoencoderConfig
from heatkv.models.infinity.layout import autoencoder_state, transformer_state
from heatkv.models.infinity.rope import RopeMode, rope_table, rotate
from heatkv.models.infinity.sampling import Guidance, generate_scales
from heatkv.models.infinity.transformer import InfinityTransformer, TextFeatures, TransformerConfig
from heatkv.policies import plan
from heatkv.scales import ScaleSchedule
from heatkv.scores import HeadScores
from heatkv.training.transformer import TeacherForcing

TINY = ScaleSchedule.square((1, 2, 3, 4))
LONG = ScaleSchedule.square((1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 8))


def load(conformance: Path, name: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    tensors = load_file(conformance / f"{name}.safetensors")
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def greedy(scale: int, shape: tuple[int, ...]) -> Tensor:
    return torch.full((1, *shape), 0.5)


@pytest.fixture(scope="module")
def tiny(conformance: Path) -> dict[str, Tensor]:
    return load(conformance, "infinity_tiny")


def make_transformer(tiny: dict[str, Tensor], scales: ScaleSchedule) -> InfinityTransformer:
    config = TransformerConfig(
        depth=4, width=128, heads=4, bits=8, text_width=256, text_maxlen=16, rope_grid=scales[len(scales) - 1]
    )
    model = InfinityTransformer(config, scales)
    model.load_state_dict(transformer_state(part(tiny, "model."), 16))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def autoencoder(tiny: dict[str, Tensor]) -> Autoencoder:
    model = Autoencoder(TINY, AutoencoderConfig(base_width=32, width_mult=(1, 2, 2), bits=8, stride=4))
    model.load_state_dict(autoencoder_state(part(tiny, "vae.")))
    return model.eval().requires_grad_(False)


def text_of(tensors: dict[str, Tensor], name: str, lengths: list[int]) -> TextFeatures:
    """Concatenated features of several prompts, padded, and which are real."""
    rows = tensors[f"{name}.kv_compact"].split(lengths)
    features_BNC = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return TextFeatures(features_BNC, torch.arange(features_BNC.shape[1]) < torch.tensor(lengths)[:, None])


RUNS = {
    "greedy": Guidance((3.0,) * 4, (1.0, 0.8, 0.6, 0.5)),
    "greedy_inslayer": Guidance((3.0,) * 4, (1.0, 0.8, 0.6, 0.5), hidden_layers=(2,)),
    "greedy_nocfg": Guidance((1.0,) * 4, (1.0, 0.8, 0.6, 0.5)),
    "greedy_negprompt": Guidance((3.0,) * 4, (1.0, 0.8, 0.6, 0.5)),
}


@pytest.mark.parametrize("name", RUNS)
def test_generation_equals_the_official_one(tiny: dict[str, Tensor], autoencoder: Autoencoder, name: str) -> None:
    model = make_transformer(tiny, TINY)
    text = text_of(tiny, "text", [5, 9])
    negative = text_of(tiny, "neg", [3, 7]) if name == "greedy_negprompt" else None
    logits: list[Tensor] = []
    steps = list(
        generate_scales(
            model, autoencoder.quantizer, text, negative, full_cache(model.geometry), RUNS[name], greedy, logits
        )
    )
    for k, step in enumerate(steps):
        torch.testing.assert_close(logits[k].flatten(1, 2), tiny[f"{name}.logits_s{k}"], atol=1e-3, rtol=0)
        assert torch.equal(step.tokens.flatten(1), tiny[f"{name}.bits_s{k}"].bool())
    torch.testing.assert_close(steps[-1].latent, tiny[f"{name}.latent"], atol=1e-4, rtol=0)
    image = autoencoder.decode(steps[-1].latent)
    torch.testing.assert_close(image, tiny[f"{name}.decoded"], atol=1e-3, rtol=0)
    pixels = ((image + 1) / 2 * 255).permute(0, 2, 3, 1).to(torch.uint8).flip(-1)
    assert (pixels.int() - tiny[f"{name}.image_bgr_u8"].int()).abs().max() <= 1


def test_text_condition_equals_the_official_one(tiny: dict[str, Tensor]) -> None:
    model = make_transformer(tiny, TINY)
    text = text_of(tiny, "text", [5, 9])
    condition = model.condition(text)
    normed = model.text_norm(text.features_BNC)[text.mask_BN]
    torch.testing.assert_close(normed, tiny["cond.text_norm"], atol=1e-4, rtol=0)
    torch.testing.assert_close(condition.pooled_BC, tiny["cond.sos"], atol=1e-4, rtol=0)
    modulation_B6C = model.shared_ada_lin(condition.pooled_BC).view(2, 6, -1)
    torch.testing.assert_close(modulation_B6C, tiny["cond.gss"][:, 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(condition.features_BNC[text.mask_BN], tiny["cond.text_proj_for_ca"], atol=1e-4, rtol=0)


def test_inputs_of_the_next_scale_equal_the_official_ones(tiny: dict[str, Tensor], autoencoder: Autoencoder) -> None:
    latent = torch.zeros(2, 8, 4, 4)
    for k in range(3):
        bits = tiny[f"greedy.bits_s{k}"].bool().view(2, -1, 8)
        latent += autoencoder.quantizer.upsample(autoencoder.quantizer.code(bits, k))
        torch.testing.assert_close(
            autoencoder.quantizer.next_input(latent, k + 1), tiny[f"greedy.next_input_s{k}"], atol=1e-4, rtol=0
        )


def test_teacher_forcing_over_all_scales_equals_the_official_one(tiny: dict[str, Tensor]) -> None:
    model = make_transformer(tiny, TINY)
    condition = model.condition(text_of(tiny, "text", [5, 9]))
    x = torch.cat([model.embed(None, condition), model.embed(tiny["tf.x_wo_prefix"], condition)], 1)
    cache = TeacherForcing(TINY, 4, torch.device("cpu"))
    logits = model.logits(model(x, 0, condition, cache), condition)
    torch.testing.assert_close(logits.flatten(2), tiny["tf.logits"], atol=1e-3, rtol=0)


def test_encoder_and_residual_bits_equal_the_official_ones(tiny: dict[str, Tensor], autoencoder: Autoencoder) -> None:
    if autoencoder.encoder is None:
        pytest.fail("the tiny autoencoder has an encoder")
    torch.testing.assert_close(autoencoder.encode(tiny["enc.image"]), tiny["enc.h"], atol=1e-4, rtol=0)
    bits, total = autoencoder.quantizer.quantize(tiny["enc.h"])
    for k, b in enumerate(bits):
        assert torch.equal(b.flatten(1), tiny[f"enc.bits_s{k}"].flatten(1).bool())
    torch.testing.assert_close(total, tiny["enc.z"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_rotary_table_equals_the_official_one_at_full_size(conformance: Path, mode: RopeMode) -> None:
    real = load(conformance, "rope_real")
    scales = ScaleSchedule.square((1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64))
    table = rope_table(scales, 128, (64, 64), mode=mode)
    position = real[f"d128_r1.0_m{mode}.pos"]
    inside = position < scales.total  # the published table is padded with zeros
    torch.testing.assert_close(table[0][position[inside]], real[f"d128_r1.0_m{mode}.cos"][inside], atol=1e-5, rtol=0)
    torch.testing.assert_close(table[1][position[inside]], real[f"d128_r1.0_m{mode}.sin"][inside], atol=1e-5, rtol=0)


@pytest.mark.parametrize("compiling", [False, True])
def test_rotation_equals_the_official_one(
    conformance: Path, tiny: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, compiling: bool
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    real = load(conformance, "rope_real")
    turn = real["rot.grid"][:, 5:14].permute(1, 2, 0).contiguous()  # scale 2 of 1, 2, 3
    torch.testing.assert_close(rotate(real["rot.q"], turn), real["rot.q_out"], atol=1e-5, rtol=0)
    torch.testing.assert_close(rotate(real["rot.k"], turn), real["rot.k_out"], atol=1e-5, rtol=0)
    torch.testing.assert_close(rope_table(TINY, 32, (4, 4)), tiny["rope.cache"], atol=1e-5, rtol=0)


def run_end_to_end(tiny: dict[str, Tensor], text: TextFeatures, cache: KVCache) -> tuple[list[Tensor], list[Tensor]]:
    model = make_transformer(tiny, LONG)
    quantizer = Autoencoder(LONG, AutoencoderConfig(32, (1, 2, 2), bits=8, stride=4)).quantizer
    logits: list[Tensor] = []
    guidance = Guidance((3.0,) * 13, (1.0,) * 13)
    steps = list(generate_scales(model, quantizer, text, None, cache, guidance, greedy, logits))
    return [x.flatten(1, 2) for x in logits], [step.tokens.flatten(1) for step in steps]


@pytest.fixture(scope="module")
def end_to_end(conformance: Path) -> dict[str, Tensor]:
    return load(conformance, "heatkv_e2e_tiny")


def test_calibration_on_a_run_equals_the_official_scores(
    conformance: Path, tiny: dict[str, Tensor], end_to_end: dict[str, Tensor]
) -> None:
    expected = json.loads((conformance / "heatkv_e2e_tiny.json").read_text())
    geometry = make_transformer(tiny, LONG).geometry
    cache = CalibratingCache(geometry, rows=1)
    logits, bits = run_end_to_end(tiny, text_of(end_to_end, "text", [7]), cache)
    for k in range(13):
        torch.testing.assert_close(logits[k], end_to_end[f"full.logits_s{k}"], atol=1e-3, rtol=0)
        assert torch.equal(bits[k], end_to_end[f"full.bits_s{k}"].bool())
    scores = HeadScores("tiny", geometry, cache.mass_LHTS, (), 1)
    scas = np.nan_to_num(scores.scas(3), nan=-1.0)
    np.testing.assert_allclose(scas, end_to_end["scas.scores"].numpy(), atol=1e-5)
    orders = [[[int(slot % 4), int(slot // 4)] for slot in order] for order in scores.orders(3)]
    assert orders == expected["scas_orders"]


@pytest.mark.parametrize("budget", ["0.05", "0.1", "0.25", "0.5"])
def test_a_pruned_run_equals_the_official_compacted_cache(
    conformance: Path, tiny: dict[str, Tensor], end_to_end: dict[str, Tensor], budget: str
) -> None:
    expected = json.loads((conformance / "heatkv_e2e_tiny.json").read_text())
    geometry = make_transformer(tiny, LONG).geometry
    orders = np.array([[layer * 4 + head for head, layer in order] for order in expected["scas_orders"]])
    schedule = plan(orders, float(budget), model="tiny", geometry=geometry)
    cache = ScheduleCache(geometry, schedule)
    logits, bits = run_end_to_end(tiny, text_of(end_to_end, "text", [7]), cache)
    for k in range(13):
        torch.testing.assert_close(logits[k], end_to_end[f"pruned_{budget}.logits_s{k}"], atol=1e-3, rtol=0)
        assert torch.equal(bits[k], end_to_end[f"pruned_{budget}.bits_s{k}"].bool())
    assert cache.peak_bytes <= float(budget) * full_peak_bytes(geometry.full_peak_tokens)


def full_peak_bytes(tokens: int) -> int:
    return tokens * 32 * 2 * 4 * 2  # head_dim, keys and values, float32, both rows of a guided image


def test_partial_attention_is_softmax_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 16, generator=generator) for n in (5, 7, 7))
    out, lse = partial_attention(q, k, v)
    logits = q @ k.transpose(-1, -2)
    torch.testing.assert_close(out, logits.softmax(-1) @ v, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, logits.logsumexp(-1), atol=1e-5, rtol=1e-5)
