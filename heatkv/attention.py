"""Attention over keys and values that lie in several pieces.

One primitive serves generation under a budget and calibration: ``partial_attention`` attends to one
piece and also returns the log-sum-exp of its logits; ``merge`` combines pieces exactly. The weight
of a piece in the merge, exp(lse_piece - lse_total), is the softmax mass on that piece, which is what
S-CAS sums up. No piece is ever copied next to another, and no probability matrix is formed.

Queries arrive scaled: the softmax scale is 1 everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Queries are processed in tiles of so many logits where no fused kernel gives the log-sum-exp.
TILE_LOGITS = 1 << 24


@dataclass(frozen=True)
class Part:
    """Result of attending to one piece: ``out_BHND``, ``lse_BHN`` (float32) and whose heads they are.

    ``heads`` indexes the heads of the layer (int64), or is None for all of them in order.
    """

    out_BHND: Tensor
    lse_BHN: Tensor
    heads: Tensor | None = None


def partial_attention(q_BHND: Tensor, k_BHMD: Tensor, v_BHMD: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax attention ``[B, H, N, D]`` and the log-sum-exp of its logits ``[B, H, N]`` in float32."""
    device, dtype = q_BHND.device.type, q_BHND.dtype
    aten = torch.ops.aten
    if device == "cpu" and dtype in (torch.float32, torch.bfloat16, torch.float16):
        return aten._scaled_dot_product_flash_attention_for_cpu(q_BHND, k_BHMD, v_BHMD, scale=1.0)
    if device == "cuda" and dtype in (torch.bfloat16, torch.float16) and q_BHND.shape[-1] % 8 == 0:
        return aten._scaled_dot_product_flash_attention(q_BHND, k_BHMD, v_BHMD, scale=1.0)[:2]
    if device == "cuda" and dtype == torch.float32 and q_BHND.shape[-1] % 4 == 0:
        out, lse = aten._scaled_dot_product_efficient_attention(q_BHND, k_BHMD, v_BHMD, None, True, scale=1.0)[:2]
        return out, lse[..., : q_BHND.shape[2]]  # the kernel pads the queries to a multiple of 32
    return tiled_attention(q_BHND, k_BHMD, v_BHMD)


def tiled_attention(q_BHND: Tensor, k_BHMD: Tensor, v_BHMD: Tensor) -> tuple[Tensor, Tensor]:
    """``partial_attention`` in plain tensor operations, a tile of queries at a time: any device and dtype."""
    batch, heads, _, _ = q_BHND.shape
    tile = max(1, TILE_LOGITS // (batch * heads * k_BHMD.shape[2]))
    outs, lses = [], []
    for q in q_BHND.split(tile, dim=2):
        logits = q.float() @ k_BHMD.float().transpose(-1, -2)
        lses.append(logits.logsumexp(-1))
        outs.append(((logits - lses[-1].unsqueeze(-1)).exp() @ v_BHMD.float()).to(q.dtype))
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)


def total_lse(parts: Sequence[Part]) -> Tensor:
    """Log-sum-exp over all parts, ``[B, H, N]``. The first part must cover all heads."""
    total = parts[0].lse_BHN
    if len(parts) == 1:
        return total
    total = total.clone()
    for part in parts[1:]:
        if part.heads is None:
            total = torch.logaddexp(total, part.lse_BHN)
        else:
            total[:, part.heads] = torch.logaddexp(total[:, part.heads], part.lse_BHN)
    return total


def part_weights(parts: Sequence[Part]) -> Iterator[Tensor]:
    """Softmax mass of every part, ``[B, heads of the part, N]``: per head and query they sum to 1."""
    total = total_lse(parts)
    for part in parts:
        yield (part.lse_BHN - (total if part.heads is None else total[:, part.heads])).exp()


def merge(parts: Sequence[Part]) -> Tensor:
    """Attention over the union of the parts, ``[B, H, N, D]``, exact up to rounding (float32 inside).

    The first part must cover all heads (the scale being generated always does).
    """
    if len(parts) == 1:
        return parts[0].out_BHND
    out = None
    for part, weight in zip(parts, part_weights(parts), strict=True):
        term = part.out_BHND.float() * weight.unsqueeze(-1)
        if out is None:
            out = term
        elif part.heads is None:
            out += term
        else:
            out.index_add_(1, part.heads, term)
    assert out is not None
    return out.to(parts[0].out_BHND.dtype)
