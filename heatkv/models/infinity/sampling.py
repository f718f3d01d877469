"""The Infinity generation loop: scale by scale, with guidance, one draw a bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from heatkv.cache.seam import KVCache
from heatkv.models.base import Noise, ScaleTokens, upload
from heatkv.models.infinity.autoencoder import BitQuantizer
from heatkv.models.infinity.transformer import InfinityTransformer, TextFeatures


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance and temperature of every scale.

    ``hidden_layers`` are layers after which the hidden states are guided, negative ones counted from the last;
    without any, the logits are (the released setting).
    """

    scale_S: tuple[float, ...]
    temperature_S: tuple[float, ...]
    top_p: float = 0.0
    hidden_layers: tuple[int, ...] = ()

    def layers(self, depth: int) -> frozenset[int]:
        """``hidden_layers`` of a model of ``depth`` layers. Raises ``ValueError`` for one that there is not."""
        for layer in self.hidden_layers:
            if not -depth <= layer < depth:
                raise ValueError(
                    f"there is no hidden layer {layer}: the model has {depth}, from 0 or, backwards, -1 on"
                )
        return frozenset(layer % depth for layer in self.hidden_layers)

    @property
    def active(self) -> bool:
        return any(s != 1.0 for s in self.scale_S)


def pad_and_stack(a: TextFeatures, b: TextFeatures) -> TextFeatures:
    """Rows of ``a`` above rows of ``b``, padded to one length."""
    longest = max(a.mask_BN.shape[1], b.mask_BN.shape[1])

    def pad(text: TextFeatures) -> TextFeatures:
        extra = longest - text.mask_BN.shape[1]
        return TextFeatures(
            torch.nn.functional.pad(text.features_BNC, (0, 0, 0, extra)),
            torch.nn.functional.pad(text.mask_BN, (0, extra)),
        )

    a, b = pad(a), pad(b)
    return TextFeatures(torch.cat([a.features_BNC, b.features_BNC]), torch.cat([a.mask_BN, b.mask_BN]))


def draw_bits(logits_BNd2: Tensor, noise_BNd: Tensor, top_p: float) -> Tensor:
    """One bit an entry: 1 where the noise falls below its probability.

    ``top_p`` takes the less likely value away where its probability is 1 - top_p or less. Noise of
    0.5 everywhere is the greedy choice.
    """
    one = (logits_BNd2[..., 1] - logits_BNd2[..., 0]).sigmoid()
    if top_p > 0:
        one = torch.where(one <= 1 - top_p, torch.zeros_like(one), one)
        one = torch.where(1 - one <= 1 - top_p, torch.ones_like(one), one)
    return upload(noise_BNd, one.device) < one


def generate_scales(
    model: InfinityTransformer,
    quantizer: BitQuantizer,
    text: TextFeatures,
    negative: TextFeatures | None,
    cache: KVCache,
    guidance: Guidance,
    noise: Noise,
    logits_sink: list[Tensor] | None = None,
) -> Iterator[ScaleTokens]:
    """Generate one image a row of ``text``.

    ``negative`` replaces the learned empty prompt. ``logits_sink`` collects the logits ``[B, N, bits, 2]``
    that the bits are drawn from.
    """
    rows, hidden_layers = len(text.features_BNC), guidance.layers(model.config.depth)
    if guidance.active:
        text = pad_and_stack(text, negative or model.unconditional(text.mask_BN))
    condition = model.condition(text)
    halves = 2 if guidance.active else 1
    latent: Tensor | None = None

    def guide(x: Tensor, strength: float) -> Tensor:
        return strength * x[:rows] + (1 - strength) * x[rows:]

    for k, (start, _) in enumerate(model.scales.bounds):
        strength, temperature = guidance.scale_S[k], guidance.temperature_S[k]

        def after_layer(layer: int, x: Tensor, strength: float = strength) -> Tensor:
            if guidance.active and layer in hidden_layers:
                return guide(x, strength).repeat(2, 1, 1)
            return x

        codes = None if latent is None else quantizer.next_input(latent, k).repeat(halves, 1, 1)
        x = model.embed(codes, condition).float()
        logits = model.logits(model(x, start, condition, cache, after_layer), condition) / temperature
        on_logits = guidance.active and not guidance.hidden_layers
        logits = guide(logits, strength) if on_logits else logits[:rows]
        if logits_sink is not None:
            logits_sink.append(logits)
        bits = draw_bits(logits, noise(k, tuple(logits.shape[1:3])), guidance.top_p)
        code = quantizer.upsample(quantizer.code(bits, k))
        latent = code if latent is None else latent + code
        yield ScaleTokens(k, bits, latent)
