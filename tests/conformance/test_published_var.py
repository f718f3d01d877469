"""The VAR family computes what the official implementation computes (vectors in ../shared/conformance)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from heatkv.cache.seam import full_cache
from heatkv.models.base import Sampling
from heatkv.models.var import layout
from heatkv.models.var.sampling import filter_logits, generate_scales
from heatkv.models.var.transformer import VarTransformer
from heatkv.models.var.vqvae import Vqvae, phi_index
from heatkv.scales import ScaleSchedule
from heatkv.training.transformer import TeacherForcing

TINY = ScaleSchedule.square((1, 2, 3, 4))


def load(conformance: Path, name: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    tensors = load_file(conformance / f"{name}.safetensors")
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def greedy(scale: int, shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(2, *shape)


@pytest.fixture(scope="module")
def tiny(conformance: Path) -> dict[str, Tensor]:
    return load(conformance, "var_tiny")


@pytest.fixture(scope="module")
def transformer(tiny: dict[str, Tensor]) -> VarTransformer:
    state = layout.transformer_state(part(tiny, "var."))
    model = VarTransformer(layout.transformer_config(state), TINY)
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def make_vqvae(tensors: dict[str, Tensor], scales: ScaleSchedule, *, with_encoder: bool) -> Vqvae:
    state = layout.autoencoder_state(part(tensors, "vae."), with_encoder=with_encoder)
    model = Vqvae(scales, layout.autoencoder_config(state), with_encoder=with_encoder)
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vqvae(tiny: dict[str, Tensor]) -> Vqvae:
    return make_vqvae(tiny, TINY, with_encoder=False)


def test_shapes_are_read_off_the_state_dict(conformance: Path, transformer: VarTransformer, vqvae: Vqvae) -> None:
    config = json.loads((conformance / "var_tiny.json").read_text())["config"]
    mine = transformer.config
    assert (mine.depth, mine.width, mine.heads) == (config["depth"], config["embed_dim"], config["num_heads"])
    assert (mine.vocabulary, mine.code_width, mine.classes) == (config["V"], config["Cvae"], config["num_classes"])
    assert (mine.shared_modulation, mine.cosine) == (config["shared_aln"], config["attn_l2_norm"])
    assert (vqvae.config.base_width, vqvae.config.width_mult) == (config["ch"], (1, 1, 2, 2, 4))


def test_generation_equals_the_official_one(tiny: dict[str, Tensor], transformer: VarTransformer, vqvae: Vqvae) -> None:
    hidden: list[Tensor] = []
    original = transformer.logits

    def spy(x: Tensor, condition: object) -> Tensor:
        hidden.append(x)
        return original(x, condition)  # type: ignore[arg-type]

    transformer.logits = spy  # type: ignore[method-assign,assignment]
    logits: list[Tensor] = []
    try:
        steps = list(
            generate_scales(
                transformer, vqvae.quantize, torch.tensor([3, 7]), full_cache(transformer.geometry),
                Sampling(guidance=2.5), greedy, logits,
            )
        )  # fmt: skip
    finally:
        del transformer.logits
    condition = transformer.condition(torch.tensor([3, 7, 10, 10]))
    for k, step in enumerate(steps):
        torch.testing.assert_close(hidden[k], tiny[f"greedy.hidden_s{k}"], atol=1e-3, rtol=0)
        raw = transformer.logits(hidden[k], condition)
        torch.testing.assert_close(raw, tiny[f"greedy.logits_raw_s{k}"], atol=1e-3, rtol=0)
        torch.testing.assert_close(logits[k], tiny[f"greedy.logits_s{k}"], atol=1e-3, rtol=0)
        assert torch.equal(step.tokens, tiny[f"greedy.idx_s{k}"])
        torch.testing.assert_close(step.latent, tiny[f"greedy.f_hat_s{k}"], atol=1e-4, rtol=0)
        if k < len(TINY) - 1:
            expected = tiny[f"greedy.next_map_s{k}"]
            torch.testing.assert_close(vqvae.quantize.next_map(step.latent, k + 1), expected, atol=1e-4, rtol=0)
    image = (vqvae.decode(steps[-1].latent) + 1) / 2
    torch.testing.assert_close(image, tiny["greedy.image"], atol=1e-3, rtol=0)


def test_teacher_forcing_over_all_scales_equals_the_official_one(
    tiny: dict[str, Tensor], transformer: VarTransformer, vqvae: Vqvae
) -> None:
    condition = transformer.condition(torch.tensor([3, 7]))
    inputs = tiny["tf.x_BLCv_wo_first_l"]
    x = torch.cat([transformer.embed(None, condition), transformer.embed(inputs, condition)], 1)
    hidden = transformer(x, 0, condition, TeacherForcing(TINY, len(TINY), torch.device("cpu")))
    torch.testing.assert_close(transformer.logits(hidden, condition), tiny["tf.logits"], atol=1e-3, rtol=0)

    quantizer, latent, built = vqvae.quantize, torch.zeros(2, 8, 4, 4), []
    for k in range(len(TINY) - 1):
        latent = latent + quantizer.code(tiny[f"greedy.idx_s{k}"], k)
        built.append(quantizer.next_input(latent, k + 1))
    torch.testing.assert_close(torch.cat(built, 1), tiny["tf.var_input_from_greedy_idx"], atol=1e-4, rtol=0)


def test_residual_quantisation_equals_the_official_one(tiny: dict[str, Tensor], vqvae: Vqvae) -> None:
    indices, totals = vqvae.quantize.quantize(tiny["quant.f"])
    for k in range(len(TINY)):
        assert torch.equal(indices[k], tiny[f"quant.idx_s{k}"])
        torch.testing.assert_close(totals[k], tiny[f"quant.f_hat_s{k}"], atol=1e-4, rtol=0)
    inputs = [vqvae.quantize.next_input(totals[k], k + 1) for k in range(len(TINY) - 1)]
    torch.testing.assert_close(torch.cat(inputs, 1), tiny["quant.var_input"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("top_k", "top_p", "name"), [(10, 0.0, "k10_p0"), (0, 0.8, "k0_p0.8"), (20, 0.9, "k20_p0.9")])
def test_top_k_and_top_p_equal_the_official_ones(tiny: dict[str, Tensor], top_k: int, top_p: float, name: str) -> None:
    filtered = filter_logits(tiny["filter.logits_in"], top_k, top_p)
    assert torch.equal(filtered, tiny[f"filter.{name}"])


def test_encoder_and_reconstructions_equal_the_official_ones(conformance: Path) -> None:
    tensors = load(conformance, "vqvae_tiny")
    model = make_vqvae(tensors, ScaleSchedule.square((1, 2, 4)), with_encoder=True)
    torch.testing.assert_close(model.encoder(tensors["enc.image"]), tensors["enc.encoder_out"], atol=1e-4, rtol=0)
    latent = model.encode(tensors["enc.image"])
    torch.testing.assert_close(latent, tensors["enc.f"], atol=1e-4, rtol=0)
    indices, totals = model.quantize.quantize(latent)
    for k in range(3):
        assert torch.equal(indices[k], tensors[f"enc.idx_s{k}"])
        torch.testing.assert_close(model.decode(totals[k]), tensors[f"enc.rec_s{k}"], atol=1e-3, rtol=0)
    torch.testing.assert_close(model.decode(totals[2]), tensors["dec.idxBl_to_img_last"], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        (4, (0, 1, 2, 3)),
        (5, (0, 1, 2, 2, 3)),
        (10, (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)),
        (11, (0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3)),
    ],
)
def test_the_residual_convolution_of_every_scale(scales: int, expected: tuple[int, ...]) -> None:
    assert tuple(phi_index(k, scales, 4) for k in range(scales)) == expected
