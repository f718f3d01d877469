"""The one place that chooses how attention runs: over entries that differ from head to head, or a piece at a time.

``ragged_attention`` serves generation under a budget: every head reads entries of its own. They are laid end to
end, head by head, by one selection, which costs less than attending piece by piece and merging does.
Heads that read about equally much then share a call of the fused kernel that the device has; on CUDA one call of
variable-length flash attention serves all heads.

``partial_attention`` attends to one piece and also returns the log-sum-exp of its logits; ``merge``
combines pieces exactly. The weight of a piece in the merge, exp(lse_piece - lse_total), is the
softmax mass on that piece, which is what S-CAS sums up.

Queries arrive scaled: the softmax scale is 1 everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

# What costs as much as so many products of a query and a key: a call of the kernel, and bringing heads into an order.
CALL_PAIRS = 1 << 13
REORDER_PAIRS = 1 << 14
# Rows are padded to a multiple of this, below which the kernel for CPUs slows down.
KEY_MULTIPLE = 16
# Queries are processed in tiles of so many logits where no fused kernel gives the log-sum-exp.
TILE_LOGITS = 1 << 24


@dataclass(frozen=True)
class PartialAttention:
    """Result of attending to one piece: ``out_BHND``, ``lse_BHN`` (float32) and whose heads they are.

    ``heads`` indexes the heads of the layer (int64), or is None for all of them in order.
    """

    out_BHND: Tensor
    lse_BHN: Tensor
    heads: Tensor | None = None


def attention(q_BHND: Tensor, k_BHMD: Tensor, v_BHMD: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention ``[B, H, N, D]`` by the fastest kernel that PyTorch has for the device."""
    return F.scaled_dot_product_attention(q_BHND, k_BHMD, v_BHMD, attn_mask=bias, scale=1.0)


def shared_attention(q_BH1D: Tensor, k_BED: Tensor, v_BED: Tensor, bias_BHE: Tensor) -> Tensor:
    """Attention ``[B, H, 1, D]`` of one query a head over entries of all heads, in any numbers, that lie end to end.

    The heads are taken for queries of one head that reads all entries, and ``bias_BHE`` hides from each what is not its
    own. That computes more products than needed, as one matrix product, and reads every number once, which is what so
    few queries spend their time on.
    """
    if q_BH1D.dtype == torch.float32 and q_BH1D.device.type == "cpu":  # where three products take less than the kernel
        p_BHE = torch.baddbmm(bias_BHE, q_BH1D.squeeze(2), k_BED.transpose(1, 2)).softmax(-1)
        return torch.bmm(p_BHE, v_BED).unsqueeze(2)
    q_B1HD, k_B1ED, v_B1ED = q_BH1D.transpose(1, 2), k_BED.unsqueeze(1), v_BED.unsqueeze(1)
    return attention(q_B1HD, k_B1ED, v_B1ED, bias_BHE.unsqueeze(1)).transpose(1, 2)


def entry_kinds(
    position_E: npt.NDArray[np.integer], head_E: npt.NDArray[np.integer], condition: int, heads: int
) -> npt.NDArray[np.integer]:
    """What `hiding` tells entries by: which token of a condition each is, or none of them, and whose."""
    kinds: npt.NDArray[np.integer] = np.minimum(position_E, condition) * heads + head_E
    return kinds


def hiding(hidden_BT: Tensor | None, condition: int, heads: int, like: Tensor) -> Tensor:
    """What hides entries from heads, by kind: ``[B or 1, heads, (condition + 1) * heads]`` of the dtype of ``like``.

    0, or minus infinity for those of other heads and for tokens of the condition that nobody sees. A call selects what
    it needs: the masks of all layers, kept from call to call, would take as much as a cache in 4 bits does.
    """
    seen_BHTH = torch.eye(heads, dtype=torch.bool, device=like.device)[None, :, None].repeat(1, 1, condition + 1, 1)
    if hidden_BT is not None:
        seen_BHTH = seen_BHTH & ~F.pad(hidden_BT, (0, 1))[:, None, :, None]
    return like.new_zeros(seen_BHTH.shape).masked_fill_(~seen_BHTH, -torch.inf).flatten(2)


@dataclass(frozen=True)
class Call:
    """Heads that share a call of the kernel: so many, reading so many entries each, some hidden by ``bias_1H1M``."""

    heads: int
    entries: int
    bias_1H1M: Tensor | None


@dataclass(frozen=True)
class Reading:
    """Which entries each head reads, ready for the kernel that will; made once by `plan_reading`.

    Parameters
    ----------
    index_E
        The entries, head by head in the order of the calls; None: all, as they lie, equally many a head.
    calls
        Who reads together. Empty: one call serves all heads.
    ends
        Where the entries of each head end, for variable-length attention.
    longest
        The most entries that a head reads, for the same.
    order_H, place_H
        Heads in the order of the calls, and where in it each head is; None: as they are.

    Tensors are on the host (pinned where the device is another one) and sent along with each use: together, those of
    all layers and scales of a large model would take a tenth of what a small budget leaves of its cache.
    """

    index_E: Tensor | None
    calls: tuple[Call, ...]
    ends: Tensor
    longest: int
    order_H: Tensor | None = None
    place_H: Tensor | None = None


def plan_reading(
    entries_of_heads: Sequence[npt.NDArray[np.int64]],
    entries: int,
    queries: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Reading:
    """How each head reads its own of so many entries with so many queries, those of all batch rows counted."""
    lengths = [len(own) for own in entries_of_heads]
    longest = max(lengths)
    ends = on_host(np.cumsum([0, *lengths]), device)
    together = np.concatenate(entries_of_heads)
    if min(lengths) == longest and bool((together == np.arange(entries)).all()):
        return Reading(None, (), ends, longest)
    if has_varlen(head_dim, dtype, device):
        return Reading(on_host(together, device), (), ends, longest)
    groups = head_groups(lengths, queries)
    index, calls = [], []
    for members in groups:
        most = -(-max(lengths[head] for head in members) // KEY_MULTIPLE) * KEY_MULTIPLE
        hidden_HM = np.arange(most) >= np.array([lengths[head] for head in members])[:, None]
        padded_HM = np.zeros(hidden_HM.shape, np.int64)
        padded_HM[~hidden_HM] = np.concatenate([entries_of_heads[head] for head in members])
        index.append(padded_HM.ravel())
        bias_1H1M = None
        if hidden_HM.any():
            bias_HM = torch.zeros(hidden_HM.shape, dtype=dtype).masked_fill_(torch.from_numpy(hidden_HM), -torch.inf)
            bias_1H1M = pinned(bias_HM, device)[None, :, None]
        calls.append(Call(len(members), most, bias_1H1M))
    order_H = place_H = None
    if len(groups) > 1:
        order = np.concatenate(groups)
        order_H, place_H = on_host(order, device), on_host(order.argsort(), device)
    return Reading(on_host(np.concatenate(index), device), tuple(calls), ends, longest, order_H, place_H)


def pinned(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on the host, from where the device can fetch it without anybody waiting."""
    return x.pin_memory() if device.type == "cuda" else x


def on_host(index: npt.NDArray[np.integer], device: torch.device) -> Tensor:
    return pinned(torch.from_numpy(index.astype(np.int32)), device)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """``x`` from the host on the device; nobody waits for it."""
    return x if device.type == "cpu" else x.to(device, non_blocking=True)


def select(x: Tensor, dim: int, index: Tensor, out: Tensor | None = None) -> Tensor:
    """``index_select`` by an index on the host."""
    return torch.index_select(x, dim, to_device(index, x.device), out=out)


def keys_and_values(entries_HM2BD: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values ``[B, H, M, D]`` of entries of heads that have equally many."""
    k_BHMD, v_BHMD = entries_HM2BD.permute(2, 3, 0, 1, 4).unbind()
    return k_BHMD, v_BHMD


def write(entries_HN2BD: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> None:
    """Write keys and values where entries are wanted."""
    for out_BHND, x_BHND in zip(keys_and_values(entries_HN2BD), (k_BHND, v_BHND), strict=True):
        out_BHND.copy_(x_BHND)


def ragged_attention(q_BHND: Tensor, entries: Tensor, reading: Reading) -> Tensor:
    """Attention ``[B, H, N, D]`` of every head over entries of its own.

    ``entries``: keys and values ``[E, 2, B, D]``, which ``reading.index_E`` numbers; or ``[H, M, 2, B, D]`` where it is
    None.
    """
    if reading.index_E is None:
        return attention(q_BHND, *keys_and_values(entries))
    entries_E2BD = select(entries, 0, reading.index_E)
    if not reading.calls:
        return varlen_attention(q_BHND, entries_E2BD, reading)
    if reading.order_H is None or reading.place_H is None:
        return one_call(q_BHND, entries_E2BD, reading.calls[0])
    q_BHND = select(q_BHND, 1, reading.order_H)
    outs, head, entry = [], 0, 0
    for call in reading.calls:
        next_head, next_entry = head + call.heads, entry + call.heads * call.entries
        outs.append(one_call(q_BHND[:, head:next_head], entries_E2BD[entry:next_entry], call).transpose(1, 2))
        head, entry = next_head, next_entry
    # In the memory layout of the kernel, tokens before heads, which is what the model reads next.
    return select(torch.cat(outs, 2), 2, reading.place_H).transpose(1, 2)


def one_call(q_BHND: Tensor, entries_E2BD: Tensor, call: Call) -> Tensor:
    """Attention of the heads of a call over its entries."""
    k_BHMD, v_BHMD = keys_and_values(entries_E2BD.view(call.heads, call.entries, *entries_E2BD.shape[1:]))
    bias = None if call.bias_1H1M is None else to_device(call.bias_1H1M, q_BHND.device)
    return attention(q_BHND, k_BHMD, v_BHMD, bias)


def has_tensor_cores(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself and runs flash attention: CUDA from compute capability 8.0 on."""
    return device.type == "cuda" and (torch.version.hip is not None or capability(device) >= (8, 0))


@lru_cache(maxsize=16)
def capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def has_varlen(head_dim: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether PyTorch's variable-length flash attention takes such queries."""
    half = dtype in (torch.bfloat16, torch.float16)
    return has_tensor_cores(device) and half and head_dim % 8 == 0 and torch.version.hip is None


def varlen_attention(q_BHND: Tensor, entries_E2BD: Tensor, reading: Reading) -> Tensor:
    """Attention with the entries of all heads end to end, in any numbers; no padding.

    To the kernel, a head is a sequence and a batch row is a head: all of these are strides.
    """
    batch, heads, queries, dim = q_BHND.shape
    q_ends = torch.arange(0, heads * queries + 1, queries, dtype=torch.int32, device=q_BHND.device)
    k_ends = to_device(reading.ends, q_BHND.device)
    q = q_BHND.reshape(batch, heads * queries, dim).transpose(0, 1)
    k, v = entries_E2BD.unbind(1)
    out = flash_varlen(q, k, v, q_ends, k_ends, queries, reading.longest)
    return out.transpose(0, 1).reshape(q_BHND.shape)


def flash_varlen(
    q: Tensor, k: Tensor, v: Tensor, q_ends: Tensor, k_ends: Tensor, longest_q: int, longest_k: int
) -> Tensor:
    """PyTorch's kernel: ``[all tokens of all sequences, heads, D]``, sequences end to end."""
    forward = torch.ops.aten._flash_attention_forward
    out: Tensor = forward(q, k, v, q_ends, k_ends, longest_q, longest_k, 0.0, False, False, scale=1.0)[0]
    return out


def head_groups(lengths: Sequence[int], queries: int) -> list[list[int]]:
    """Heads from long to short, cut where that costs least, with ``queries`` queries a head (of all batch rows)."""
    order = sorted(range(len(lengths)), key=lambda head: -lengths[head])
    best: list[tuple[int, list[list[int]]]] = [(0, [])]
    for end in range(1, len(order) + 1):
        ways = []
        for start in range(end):
            pairs = (end - start) * queries * -(-lengths[order[start]] // KEY_MULTIPLE) * KEY_MULTIPLE
            cost, groups = best[start]
            ways.append((cost + pairs + CALL_PAIRS, [*groups, sorted(order[start:end])]))
        best.append(min(ways, key=lambda way: way[0]))
    together = len(order) * queries * -(-max(lengths) // KEY_MULTIPLE) * KEY_MULTIPLE
    return best[-1][1] if best[-1][0] + REORDER_PAIRS < together + CALL_PAIRS else [sorted(order)]


def partial_attention(q_BHND: Tensor, k_BHMD: Tensor, v_BHMD: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax attention ``[B, H, N, D]`` and the log-sum-exp of its logits ``[B, H, N]`` in float32."""
    device, dtype = q_BHND.device.type, q_BHND.dtype
    aten = torch.ops.aten
    if device == "cpu" and dtype in (torch.float32, torch.bfloat16, torch.float16):
        return aten._scaled_dot_product_flash_attention_for_cpu(q_BHND, k_BHMD, v_BHMD, scale=1.0)
    if has_tensor_cores(q_BHND.device) and dtype in (torch.bfloat16, torch.float16) and q_BHND.shape[-1] % 8 == 0:
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


def total_lse(parts: Sequence[PartialAttention]) -> Tensor:
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


def partial_weights(parts: Sequence[PartialAttention]) -> Iterator[Tensor]:
    """Softmax mass of every part, ``[B, heads of the part, N]``: per head and query they sum to 1."""
    total = total_lse(parts)
    for part in parts:
        yield (part.lse_BHN - (total if part.heads is None else total[:, part.heads])).exp()


def merge(parts: Sequence[PartialAttention]) -> Tensor:
    """Attention over the union of the parts, ``[B, H, N, D]``, exact up to rounding (float32 inside).

    The first part must cover all heads (the scale being generated always does).
    """
    if len(parts) == 1:
        return parts[0].out_BHND
    out = None
    for part, weight in zip(parts, partial_weights(parts), strict=True):
        term = part.out_BHND.float() * weight.unsqueeze(-1)
        if out is None:
            out = term
        elif part.heads is None:
            out += term
        else:
            out.index_add_(1, part.heads, term)
    assert out is not None
    return out.to(parts[0].out_BHND.dtype)
