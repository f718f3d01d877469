"""The LlamaGen family computes what the official implementation computes (vectors in ../shared/conformance)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from heatkv.models.llamagen.vq import Vq, VqConfig


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def tiny(conformance: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    tensors = load_file(conformance / "llamagen_tiny.safetensors")
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


@pytest.fixture(scope="module")
def vq(tiny: dict[str, Tensor]) -> Vq:
    state = part(tiny, "vq.")
    model = Vq(VqConfig(base_width=32, width_mult=(1, 2), inner_width=16, vocabulary=97))
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def test_decoded_codes_equal_the_official_image(tiny: dict[str, Tensor], vq: Vq) -> None:
    latent = vq.quantize.map(tiny["vq_decode.codes"], (6, 6))
    torch.testing.assert_close(latent, tiny["vq_decode.latent"], atol=1e-4, rtol=0)
    torch.testing.assert_close(vq.decode(latent), tiny["vq_decode.image"], atol=1e-3, rtol=0)


def test_encoded_image_gives_the_official_codes(tiny: dict[str, Tensor], vq: Vq) -> None:
    image = tiny["vq_encode.image"]
    torch.testing.assert_close(vq.quant_conv(vq.encoder(image)), tiny["vq_encode.pre_quant"], atol=1e-4, rtol=0)
    codes = vq.quantize.nearest(vq.encode(image))
    assert torch.equal(codes, tiny["vq_encode.codes"])
    latent = vq.quantize.map(codes, (6, 6))
    torch.testing.assert_close(latent, tiny["vq_encode.latent"], atol=1e-4, rtol=0)
    torch.testing.assert_close(vq.decode(latent), tiny["vq_encode.reconstruction"], atol=1e-3, rtol=0)
