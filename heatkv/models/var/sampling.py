"""The VAR generation loop: scale by scale, with guidance that grows over the scales, one draw a token."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from heatkv.cache.seam import KVCache
from heatkv.models.base import Noise, Sampling, ScaleTokens, upload
from heatkv.models.var.transformer import VarTransformer
from heatkv.models.var.vqvae import CodeQuantizer


def filter_logits(logits_BNV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits with -inf where the ``top_k`` largest or the most likely share ``top_p`` exclude a value.

    Values equal to the k-th largest stay; of the rest, ascending values go while their summed
    probability is 1 - top_p or less. The largest always stays.
    """
    if 0 < top_k < logits_BNV.shape[-1]:
        least = logits_BNV.topk(top_k, dim=-1).values[..., -1:]
        logits_BNV = logits_BNV.masked_fill(logits_BNV < least, float("-inf"))
    if top_p > 0:
        ascending, order = logits_BNV.sort(dim=-1, stable=True)
        gone = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        gone[..., -1] = False
        logits_BNV = logits_BNV.masked_fill(gone.gather(-1, order.argsort(-1)), float("-inf"))
    return logits_BNV


def draw_tokens(logits_BNV: Tensor, noise_BN: Tensor, top_k: int, top_p: float) -> Tensor:
    """One value a token, ``[B, N]``, by inverse distribution over the values from likely to unlikely.

    A uniform number u draws the first value whose summed probability exceeds u, so noise of 0 is the
    greedy choice, and small changes of the logits rarely change what is drawn.
    """
    likely, order = filter_logits(logits_BNV, top_k, top_p).sort(dim=-1, descending=True, stable=True)
    return order.gather(-1, draw_ranks(likely, noise_BN).unsqueeze(-1)).squeeze(-1)


def draw_ranks(likely_BNV: Tensor, noise_BN: Tensor) -> Tensor:
    """Which of the values, sorted from likely to unlikely, uniform numbers draw (-inf is never drawn)."""
    summed = likely_BNV.softmax(-1).cumsum(-1)
    possible = likely_BNV.isfinite().sum(-1)
    threshold = upload(noise_BN, summed.device) * summed[..., -1]
    return (summed <= threshold.unsqueeze(-1)).sum(-1).minimum(possible - 1)


def guidance_at(guidance: float, scale: int, scales: int) -> float:
    """Guidance of a scale: from 1 (none) at the first linearly to ``guidance`` at the last.

    The published parameter ``cfg`` is ``guidance - 1``: at the last scale the logits are
    (1 + cfg) conditional - cfg unconditional.
    """
    return 1 + (guidance - 1) * scale / max(1, scales - 1)


def smooth_codes(logits_BNV: Tensor, noise_BNV: Tensor, scale: int, scales: int) -> Tensor:
    """Weights ``[B, N, V]`` of a soft mixture of codes (Gumbel softmax), sharper from scale to scale, as published."""
    share = scale / max(1, scales - 1)
    temperature = max(0.27 * (1 - 0.95 * share), 0.005)
    uniform = upload(noise_BNV, logits_BNV.device).clamp(1e-10, 1 - 1e-7)
    return ((logits_BNV * (1 + share) - (-uniform.log()).log()) / temperature).softmax(-1)


def generate_scales(
    model: VarTransformer,
    quantizer: CodeQuantizer,
    labels_B: Tensor,
    cache: KVCache,
    sampling: Sampling,
    noise: Noise,
    logits_sink: list[Tensor] | None = None,
) -> Iterator[ScaleTokens]:
    """Generate one image a label (the cache sees twice as many rows with guidance, conditional first).

    ``logits_sink`` collects the guided logits ``[B, N, vocabulary]`` before top-k and top-p.
    """
    rows, scales = len(labels_B), len(model.scales)
    if sampling.guided:
        labels_B = torch.cat([labels_B, torch.full_like(labels_B, model.config.classes)])
    condition = model.condition(labels_B)
    latent: Tensor | None = None
    for k, (start, _) in enumerate(model.scales.bounds):
        codes = None if latent is None else quantizer.next_input(latent, k).repeat(len(labels_B) // rows, 1, 1)
        logits = model.logits(model(model.embed(codes, condition), start, condition, cache), condition)
        if sampling.guided:
            strength = guidance_at(sampling.guidance, k, scales)
            logits = strength * logits[:rows] + (1 - strength) * logits[rows:]
        logits = logits / sampling.temperature
        if logits_sink is not None:
            logits_sink.append(logits)
        index = draw_tokens(logits, noise(k, (logits.shape[1],)), sampling.top_k, sampling.top_p)
        if sampling.smooth:
            mixed = smooth_codes(logits, noise(scales + k, tuple(logits.shape[1:])), k, scales)
            code = quantizer.add_to_map(mixed @ quantizer.embedding.weight, k)
        else:
            code = quantizer.code(index, k)
        latent = code if latent is None else latent + code
        yield ScaleTokens(k, index, latent)
