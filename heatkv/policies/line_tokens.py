"""What dynamic policies hold of an image that is drawn by lines: chosen every few tokens, written in place between.

While nothing has to go, a layer takes all the room that its heads may have. From then on it makes room for a *block* of
tokens at a time: the policy ranks what is there with the queries of the block just drawn, and what stays moves into
new memory together with the room of the next block. So a budget is kept to at every token, and nothing is copied for a
token. Entries lie as those of a static schedule do (`heatkv.cache.by_line`): where all heads of all rows hold equally
many, head by head; else end to end (`attention.shared_attention`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from heatkv.cache.attention import attention, shared_attention
from heatkv.policies.allowance import EMPTY

if TYPE_CHECKING:
    from heatkv.policies.tokens import TokenCache


@dataclass
class HeldTokens:
    """What one layer holds.

    Parameters
    ----------
    memory_2BED
        Keys and values, room included.
    index_RM, pos_RM, score_RM
        For the tokens of every head of every row, oldest first: which entry of memory, which token of the sequence
        (``EMPTY`` where a head holds fewer) and what the policy keeps with it. Of tokens up to the last block.
    kept, drawn
        Entries of memory before the room (of each head where ``aligned``), and tokens written into the room.
    listed
        The first token of the sequence that is not in these lists, as its block is being drawn.
    bias
        Hides from every head what is not its own, and hidden tokens of a condition.
    """

    memory_2BED: Tensor
    index_RM: Tensor
    pos_RM: Tensor
    score_RM: Tensor
    count_R: Tensor
    kept: int
    room: int
    aligned: bool
    bias: Tensor | None
    listed: int = 0
    drawn: int = 0
    queries: list[Tensor] = field(default_factory=list)

    def attend(self, q_BH1D: Tensor, k_BH1D: Tensor, v_BH1D: Tensor) -> Tensor:
        """Write a token into the room and attend to all that is held."""
        batch, heads, _, dim = k_BH1D.shape
        self.drawn += 1
        if self.aligned:
            k, v = self.memory_2BED.view(2, batch, heads, -1, dim).narrow(3, 0, self.kept + self.drawn).unbind()
            k[:, :, -1:].copy_(k_BH1D)
            v[:, :, -1:].copy_(v_BH1D)
            bias = None if self.bias is None else self.bias.narrow(3, 0, self.kept + self.drawn)
            return attention(q_BH1D, k, v, bias)
        k, v = self.memory_2BED.narrow(2, 0, self.kept + heads * self.drawn).unbind()
        k[:, -heads:].copy_(k_BH1D.squeeze(2))
        v[:, -heads:].copy_(v_BH1D.squeeze(2))
        assert self.bias is not None
        return shared_attention(q_BH1D, k, v, self.bias.narrow(2, 0, k.shape[1]))

    def note(self, heads: int, first: int, count: int) -> None:
        """List the ``count`` tokens of the block that has just been drawn, from token ``first`` of the sequence on."""
        lanes, device = len(self.index_RM), self.index_RM.device
        since = torch.arange(self.drawn - count, self.drawn, device=device)
        head_R1 = (torch.arange(lanes, device=device) % heads)[:, None]
        index_RN = head_R1 * (self.kept + self.room) + self.kept + since
        if not self.aligned:
            index_RN = self.kept + since * heads + head_R1
        self.index_RM = torch.cat([self.index_RM, index_RN], 1)
        self.pos_RM = torch.cat([self.pos_RM, torch.arange(first, first + count, device=device).expand(lanes, -1)], 1)
        self.score_RM = pad(self.score_RM, (0, count))
        self.count_R = self.count_R + count
        self.listed = first + count

    def keys(self) -> Tensor:
        """The keys of all tokens that are listed, ``[R, U, D]``; anything where there is none."""
        _, batch, _, dim = self.memory_2BED.shape
        if self.aligned:
            k_BHMD = self.memory_2BED[0].view(batch, -1, self.kept + self.room, dim)
            return k_BHMD[:, :, : self.kept + self.drawn].flatten(0, 1)
        index_BN1 = self.index_RM.view(batch, -1, 1).expand(-1, -1, dim)
        return self.memory_2BED[0].gather(1, index_BN1).view(len(self.index_RM), -1, dim)


class LineTokens:
    """The layers of a `TokenCache` over lines, and when its policy is asked."""

    def __init__(self, cache: TokenCache, block: int) -> None:
        scales = cache.geometry.scales
        least = int(cache.allowance_TLH.min()) if cache.allowance_TLH.numel() else 1
        if least < 1:
            raise ValueError(f"a budget of {least} tokens for some head has no room for the token that is being drawn")
        # Some of what a head holds must be old.
        self.block = max(1, min(block, least // 3))
        self.cache = cache
        self.total = scales.total
        self.layers: list[HeldTokens | None] = [None] * cache.geometry.layers

    def take_condition(self, layer: int, q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor) -> None:
        memory_2BED = torch.stack((k_BHTD, v_BHTD)).flatten(2, 3)
        lanes, tokens = k_BHTD.shape[0] * k_BHTD.shape[1], k_BHTD.shape[2]
        none_RM = q_BHTD.new_empty((lanes, 0), dtype=torch.int64)
        held = HeldTokens(
            memory_2BED, none_RM, none_RM, none_RM.float(), torch.zeros(lanes, dtype=torch.int64), 0, tokens, True, None
        )
        held.drawn, held.queries = tokens, [q_BHTD]
        self._block_drawn(layer, held)

    def attend(self, layer: int, q_BH1D: Tensor, k_BH1D: Tensor, v_BH1D: Tensor) -> Tensor:
        held = self.layers[layer]
        assert held is not None
        out = held.attend(q_BH1D, k_BH1D, v_BH1D)
        held.queries.append(q_BH1D)
        cache = self.cache
        if cache.last_tokens and cache.last_scale:
            self._release(layer)
        elif len(held.queries) == self.block or cache.last_tokens:
            self._block_drawn(layer, held)
        return out

    def tokens(self, layer: int) -> int:
        """Tokens that a layer holds for one batch row, rounded down."""
        held = self.layers[layer]
        if held is None:
            return 0
        since = len(held.queries) * len(held.count_R)
        return (int(held.count_R.sum()) + since) // held.memory_2BED.shape[1]

    def _next_block(self) -> int:
        """How many tokens the next block has: blocks end where lines do."""
        cache, scales = self.cache, self.cache.geometry.scales
        if cache.last_tokens:
            return min(self.block, scales.tokens[cache.scale + 1])
        return min(self.block, scales.tokens[cache.scale] - cache.first - 1)

    def _block_drawn(self, layer: int, held: HeldTokens) -> None:
        cache = self.cache
        q_RND = torch.cat(held.queries, 2).flatten(0, 1)
        held.queries = []
        new, heads = q_RND.shape[1], cache.geometry.heads
        end = cache.geometry.scales.bounds[cache.scale][0] + cache.first + (1 if cache.scale else new)
        held.note(heads, end - new, new)
        lanes, following = len(q_RND), self._next_block()
        allowed_R = cache.allowed(layer, lanes)
        more = held.count_R + following > allowed_R
        fits = following <= held.room - held.drawn
        if fits and not cache.watches and not bool(more.any()):
            return
        candidates = cache.candidates(layer, q_RND, held, torch.minimum(held.count_R, allowed_R - following))
        watched_RU = cache.watch(candidates)
        if watched_RU is not None:
            held.score_RM = candidates.score_RU = watched_RU
        allowed_R = cache.allowed(layer, lanes)  # heads may have been told apart
        keep_R = candidates.keep_R = torch.minimum(held.count_R, allowed_R - following)
        there_RU = held.pos_RM != EMPTY
        if bool((keep_R < held.count_R).any()):
            self._rebuild(layer, held, cache.rank(candidates).best(keep_R, there_RU), keep_R, following)
        elif not fits:
            room = min(int((allowed_R - keep_R).min()), self.total - end)
            self._rebuild(layer, held, there_RU, keep_R, room)

    def _rebuild(self, layer: int, held: HeldTokens, chosen_RU: Tensor, keep_R: Tensor, room: int) -> None:
        """Move what is chosen into new memory with room for so many tokens."""
        _, batch, _, dim = held.memory_2BED.shape
        lanes, heads, device = len(keep_R), len(keep_R) // batch, chosen_RU.device
        most = int(keep_R.max())
        aligned = bool((keep_R == most).all())
        # The chosen ones of every head first, in their order.
        chosen_RM = (~chosen_RU).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        place_M = torch.arange(most, device=device)
        keep_R1 = keep_R.to(device)[:, None]
        from_RM, pos_RM, score_RM = (x.gather(1, chosen_RM) for x in (held.index_RM, held.pos_RM, held.score_RM))
        head_R1 = (torch.arange(lanes, device=device) % heads)[:, None]
        if aligned:
            kept, entries = most, heads * (most + room)
            index_RM = head_R1 * (most + room) + place_M
            from_BE = from_RM.view(batch, -1)
        else:
            ends_BH = keep_R.view(batch, heads).cumsum(1)
            kept = int(ends_BH[:, -1].max())
            entries = kept + heads * room
            index_RM = (ends_BH.flatten() - keep_R).to(device)[:, None] + place_M
            real_RM = place_M < keep_R1
            pos_RM = pos_RM.masked_fill(~real_RM, EMPTY)
            lane, place = real_RM.nonzero(as_tuple=True)
            row, index = lane // heads, index_RM[lane, place]
            from_BE = from_RM.new_zeros(batch, kept)
            from_BE[row, index] = from_RM[lane, place]
            head_BE = from_RM.new_full((batch, entries), -1)
            head_BE[row, index] = lane % heads
            head_BE[:, kept:] = head_R1[:heads, 0].repeat(room)
            index_RM = index_RM.masked_fill(~real_RM, 0)
        kept_2BED = held.memory_2BED.gather(2, from_BE[None, :, :, None].expand(2, -1, -1, dim))
        memory_2BED = kept_2BED.new_empty(2, batch, entries, dim)
        bias = None
        if aligned:
            memory_2BED.view(2, batch, heads, -1, dim)[:, :, :, :kept] = kept_2BED.view(2, batch, heads, kept, dim)
            if self.cache.hidden_BT is not None:
                unseen_BHM = pad(self.cache.hidden(pos_RM).view(batch, heads, kept), (0, room))
                zeros_BH1M = memory_2BED.new_zeros(batch, heads, 1, kept + room)
                bias = zeros_BH1M.masked_fill_(unseen_BHM[:, :, None], -torch.inf)
        else:
            memory_2BED[:, :, :kept] = kept_2BED
            if self.cache.hidden_BT is not None:
                head_BE[row, index] = head_BE[row, index].masked_fill(self.cache.hidden(pos_RM)[lane, place], -1)
            own_BHE = head_BE[:, None] == head_R1[:heads]
            bias = memory_2BED.new_zeros(batch, heads, entries).masked_fill_(~own_BHE, -torch.inf)
        self.layers[layer] = HeldTokens(
            memory_2BED, index_RM, pos_RM, score_RM, keep_R, kept, room, aligned, bias, held.listed
        )  # fmt: skip
        self._book()

    def _release(self, layer: int) -> None:
        self.layers[layer] = None
        self._book()

    def _book(self) -> None:
        self.cache.book(sum(held.memory_2BED.nbytes for held in self.layers if held is not None))
