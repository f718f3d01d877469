"""Attention over keys and values that lie in several pieces, and the one place that chooses its kernel.

``ragged_attention`` serves generation under a budget: every head reads the pieces that it is in. What
a head reads is copied next to each other first, one layer at a time, which costs less than attending
piece by piece and merging does. Heads of about equal length then share a call of the fused kernel
that the device has; on CUDA one call of variable-length flash attention serves all heads.

``partial_attention`` attends to one piece and also returns the log-sum-exp of its logits; ``merge``
combines pieces exactly. The weight of a piece in the merge, exp(lse_piece - lse_total), is the
softmax mass on that piece, which is what S-CAS sums up.

Queries arrive scaled: the softmax scale is 1 everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

# Heads get a call of their own where that saves so many products of a query and a key, all rows together.
SPLIT_PAIRS = 1 << 16
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


@dataclass(frozen=True)
class Piece:
    """Keys and values ``[B, heads of the piece, M, D]`` of some heads, ascending, or of all of them (None)."""

    k: Tensor
    v: Tensor
    heads: tuple[int, ...] | None = None


def attention(q_BHND: Tensor, k_BHMD: Tensor, v_BHMD: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention ``[B, H, N, D]`` by the fastest kernel that PyTorch has for the device."""
    return F.scaled_dot_product_attention(q_BHND, k_BHMD, v_BHMD, attn_mask=bias, scale=1.0)


def whole(pieces: Sequence[Piece]) -> tuple[Tensor, Tensor]:
    """Keys and values of pieces that are all of all heads, ``[B, H, M, D]``."""
    if len(pieces) == 1:
        return pieces[0].k, pieces[0].v
    return torch.cat([piece.k for piece in pieces], 2), torch.cat([piece.v for piece in pieces], 2)


def ragged_attention(q_BHND: Tensor, pieces: Sequence[Piece]) -> Tensor:
    """Attention of every head over the pieces that it is in, ``[B, H, N, D]``; each head is in one or more."""
    if all(piece.heads is None for piece in pieces):
        return attention(q_BHND, *whole(pieces))
    batch, heads, queries, dim = q_BHND.shape
    shapes = tuple((piece.heads or tuple(range(heads)), piece.k.shape[2]) for piece in pieces)
    # All rows of all heads once, then one selection a call: few operations, which is what counts for small models.
    k_BRD, v_BRD = (
        torch.cat([x.reshape(batch, -1, dim) for x in all_of], 1)
        for all_of in ([piece.k for piece in pieces], [piece.v for piece in pieces])
    )
    if has_varlen(q_BHND):
        rows, lengths = end_to_end(shapes, heads, q_BHND.device)
        return varlen_attention(q_BHND, k_BRD.index_select(1, rows), v_BRD.index_select(1, rows), lengths)
    groups, position = call_groups(shapes, heads, batch * queries, q_BHND.dtype, q_BHND.device)
    outs = []
    for group in groups:
        shape = (batch, len(group.heads), -1, dim)
        k, v = (x.index_select(1, group.rows).view(shape) for x in (k_BRD, v_BRD))
        bias = None if group.bias_H1M is None else group.bias_H1M.expand(1, -1, queries, -1)
        q = q_BHND if len(groups) == 1 else q_BHND.index_select(1, group.heads)
        outs.append(attention(q, k, v, bias))
    return outs[0] if len(groups) == 1 else torch.cat(outs, 1).index_select(1, position)


# What the pieces of a layer are: their heads, and their tokens.
Shapes = tuple[tuple[tuple[int, ...], int], ...]


def rows_of_heads(shapes: Shapes, heads: int) -> list[list[int]]:
    """Where the rows that each head reads are, with the rows of all pieces end to end, head by head."""
    rows: list[list[int]] = [[] for _ in range(heads)]
    start = 0
    for members, tokens in shapes:
        for head in members:
            rows[head] += range(start, start + tokens)
            start += tokens
    return rows


@lru_cache(maxsize=4096)
def end_to_end(shapes: Shapes, heads: int, device: torch.device) -> tuple[Tensor, list[int]]:
    """The rows of all heads, head by head, and how many each has."""
    rows = rows_of_heads(shapes, heads)
    return torch.tensor([row for of_head in rows for row in of_head], device=device), [len(r) for r in rows]


@dataclass(frozen=True)
class Group:
    """Heads ``[H]`` that share a call, the rows ``[H * M]`` that they read, and 0 or -inf for each of these."""

    heads: Tensor
    rows: Tensor
    bias_H1M: Tensor | None


@lru_cache(maxsize=4096)
def call_groups(
    shapes: Shapes, heads: int, queries: int, dtype: torch.dtype, device: torch.device
) -> tuple[list[Group], Tensor]:
    """The groups of ``head_groups``, ready to use, and where among all of their heads each head comes."""
    rows = rows_of_heads(shapes, heads)
    groups, order = [], []
    for members in head_groups([len(r) for r in rows], queries):
        longest = max(len(rows[head]) for head in members)
        # The shorter ones are padded with a row that they read already, and which the mask hides.
        padded = torch.tensor([rows[head] + rows[head][:1] * (longest - len(rows[head])) for head in members])
        used_H1 = torch.tensor([len(rows[head]) for head in members])[:, None]
        hidden_HM = torch.arange(longest) >= used_H1
        bias_H1M = torch.zeros(hidden_HM.shape, dtype=dtype).masked_fill_(hidden_HM, -torch.inf)[:, None].to(device)
        index = torch.tensor(members, device=device)
        groups.append(Group(index, padded.flatten().to(device), bias_H1M if hidden_HM.any() else None))
        order += members
    return groups, torch.tensor(order, device=device).argsort()


def has_varlen(q_BHND: Tensor) -> bool:
    """Whether PyTorch's variable-length flash attention takes these queries."""
    half = q_BHND.dtype in (torch.bfloat16, torch.float16)
    return q_BHND.is_cuda and half and q_BHND.shape[-1] % 8 == 0 and torch.version.hip is None


def varlen_attention(q_BHND: Tensor, k_BRD: Tensor, v_BRD: Tensor, lengths: Sequence[int]) -> Tensor:
    """Attention with the keys of all heads in ``R = sum(lengths)`` rows, head by head; no padding.

    To the kernel, a head is a sequence and a batch row is a head: all of these are strides.
    """
    batch, heads, queries, dim = q_BHND.shape
    ends = list(accumulate(lengths, initial=0))
    q_ends = torch.arange(0, heads * queries + 1, queries, dtype=torch.int32, device=q_BHND.device)
    k_ends = torch.tensor(ends, dtype=torch.int32).to(q_BHND.device, non_blocking=True)
    q, k, v = (x.transpose(0, 1) for x in (q_BHND.reshape(batch, heads * queries, dim), k_BRD, v_BRD))
    out = flash_varlen(q, k, v, q_ends, k_ends, queries, max(lengths))
    return out.transpose(0, 1).reshape(q_BHND.shape)


def flash_varlen(
    q: Tensor, k: Tensor, v: Tensor, q_ends: Tensor, k_ends: Tensor, longest_q: int, longest_k: int
) -> Tensor:
    """PyTorch's kernel: ``[all tokens of all sequences, heads, D]``, sequences end to end."""
    forward = torch.ops.aten._flash_attention_forward
    out: Tensor = forward(q, k, v, q_ends, k_ends, longest_q, longest_k, 0.0, False, False, scale=1.0)[0]
    return out


def head_groups(lengths: Sequence[int], queries: int) -> list[list[int]]:
    """Heads from long to short, cut where a call for the rest saves enough for ``queries`` (of all rows)."""
    order = sorted(range(len(lengths)), key=lambda head: -lengths[head])
    groups = [order[:1]]
    for i, head in enumerate(order[1:], start=1):
        saved = (lengths[groups[-1][0]] - lengths[head]) * queries * (len(order) - i)
        if saved > SPLIT_PAIRS:
            groups.append([head])
        else:
            groups[-1].append(head)
    return [sorted(group) for group in groups]


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
