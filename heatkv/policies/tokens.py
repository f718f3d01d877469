"""The cache of the dynamic policies: every head of every image keeps the tokens that its policy ranks first.

How many tokens a head may hold after each scale (its allowance) is settled before they come, so that the sum over
layers keeps to the budget at any moment; which ones, the policy decides while it generates. Two more letters for
tensor names: R lanes (a lane is one head of one batch row: ``row * heads + head``) and U candidates of a lane (the
slots of its cache, then the tokens of the scale being generated).

Memory is really freed and never held twice. A layer's cache lies in pieces, cut where allowances differ between heads
or change between scales. A new token is written into the slot of one that goes; where an allowance shrinks, what stays
is moved into the remaining pieces and the last one is let go. A piece is allocated whole when its first token comes.
Not counted are what the running layer needs to choose, and the bookkeeping: a position of every cached token and, for
H2O, a running sum, a few bytes a token beside hundreds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from heatkv.cache.attention import TILE_LOGITS, PartialAttention, attention, merge, partial_attention
from heatkv.cache.seam import KVCache
from heatkv.policies.allowance import EMPTY, cuts, evenly, resident, taken_tokens
from heatkv.policies.line_tokens import HeldTokens, LineTokens
from heatkv.scales import Geometry

BLOCK = 8  # tokens of a line after which a policy is asked again


@dataclass
class Piece:
    """Slots ``start .. end - 1`` of some lanes: ``k`` and ``v`` are ``[lanes, end - start, D]``.

    ``lanes`` are ascending, or None for all; ``row_R`` says which row of ``k`` a lane has. The first ``filled`` slots
    hold a token, in every lane of the piece.
    """

    start: int
    end: int
    lanes: Tensor | None
    row_R: Tensor
    k: Tensor
    v: Tensor
    filled: int = 0


@dataclass
class Layer:
    """What one layer caches. ``pos_RM`` is each slot's position in the sequence of all scales, or ``EMPTY``.

    ``held_R`` counts tokens (on the CPU); ``score_RM`` is what the policy keeps with a token.
    """

    held_R: Tensor
    pos_RM: Tensor
    score_RM: Tensor
    pieces: list[Piece] = field(default_factory=list)


@dataclass
class Candidates:
    """What a policy ranks: the tokens in the cache and those of the scale just generated.

    Parameters
    ----------
    layer
        The layer that has just attended.
    q_RND, k_RND
        Queries and keys of the scale just generated.
    pos_RU
        Position of every candidate in the sequence of all scales; ``EMPTY`` where there is none.
    keep_R
        How many each lane keeps, on the CPU.
    pieces
        The cached keys.
    score_RU
        What `TokenCache.watch` made of the scores kept with the tokens.
    k_RUD, hidden_RU
        Where an image is drawn by lines: the keys of all candidates (the new tokens are the last block's), and which
        of them nobody reads.
    """

    layer: int
    q_RND: Tensor
    k_RND: Tensor
    pos_RU: Tensor
    keep_R: Tensor
    pieces: list[Piece]
    score_RU: Tensor
    k_RUD: Tensor | None = None
    hidden_RU: Tensor | None = None

    @property
    def old(self) -> int:
        """Slots of the cache; candidates from there on are the scale just generated."""
        return self.pos_RU.shape[1] - self.k_RND.shape[1]

    def attention(self, q_RND: Tensor) -> Tensor:
        """Softmax of some queries over all candidates, ``[R, queries, U]`` float32; zero where there is none."""
        return self.logits(q_RND).softmax(-1)

    def logits(self, q_RND: Tensor) -> Tensor:
        """Logits of some queries, ``[R, queries, U]`` float32, -inf where there is no token.

        Where an image is drawn by lines, they are the latest of the queries: each sees what was drawn up to itself.
        """
        q_RND = q_RND.float()
        lanes, queries, _ = q_RND.shape
        if self.k_RUD is not None:
            after_NN = torch.ones(queries, queries, dtype=torch.bool, device=q_RND.device).triu(1)
            logits_RNU = q_RND @ self.k_RUD.float().transpose(1, 2)
            logits_RNU[:, :, -queries:].masked_fill_(after_NN, -torch.inf)
            unread_RU = self.pos_RU == EMPTY
            if self.hidden_RU is not None:
                unread_RU = unread_RU | self.hidden_RU
            return logits_RNU.masked_fill_(unread_RU[:, None], -torch.inf)
        new = self.k_RND.shape[1]
        logits_RNU = q_RND.new_full((lanes, queries, self.pos_RU.shape[1]), -torch.inf)
        logits_RNU[:, :, -new:] = q_RND @ self.k_RND.float().transpose(1, 2)
        for piece in self.pieces:
            end = piece.start + piece.filled
            k = piece.k[:, : piece.filled].float().transpose(1, 2)
            if piece.lanes is None:
                logits_RNU[:, :, piece.start : end] = q_RND @ k
            else:
                logits_RNU[piece.lanes, :, piece.start : end] = q_RND[piece.lanes] @ k
        return logits_RNU

    def newest(self, count: int) -> Tensor:
        """Indices of so many of the new tokens: spread evenly over a scale's map, the last ones of a line."""
        new, device = self.k_RND.shape[1], self.k_RND.device
        if self.k_RUD is None:
            return evenly(count, new, device)
        return torch.arange(max(0, new - count), new, device=device)

    def recent(self, count: int) -> Tensor:
        """Which candidates are the `newest`, ``[R, U]`` bool; of lines, the latest so many of all blocks."""
        if self.k_RUD is not None:
            return self.pos_RU > self.pos_RU[:, -1:] - count
        recent_RU = torch.zeros_like(self.pos_RU, dtype=torch.bool)
        recent_RU[:, self.old + self.newest(count)] = True
        return recent_RU

    def received(self, q_RND: Tensor) -> Tensor:
        """Attention that each candidate receives from some queries, mean over them, ``[R, U]`` float32."""
        tile = max(1, TILE_LOGITS // self.pos_RU.numel())
        return torch.stack([self.attention(q).sum(1) for q in q_RND.split(tile, dim=1)]).sum(0) / q_RND.shape[1]


@dataclass
class Priority:
    """Which candidates to keep: higher ``tier_RU`` first (if given), then higher ``score_RU``, then earlier slots."""

    score_RU: Tensor
    tier_RU: Tensor | None = None

    def best(self, keep_R: Tensor, valid_RU: Tensor) -> Tensor:
        """True for the first ``keep_R`` of the valid candidates of every lane."""
        score_RU = self.score_RU.masked_fill(~valid_RU, -torch.inf)
        order_RU = score_RU.argsort(dim=1, descending=True, stable=True)
        if self.tier_RU is not None:
            tier_RU = self.tier_RU.masked_fill(~valid_RU, torch.iinfo(self.tier_RU.dtype).min).gather(1, order_RU)
            order_RU = order_RU.gather(1, tier_RU.argsort(dim=1, descending=True, stable=True))
        first_RU = torch.arange(order_RU.shape[1], device=order_RU.device) < keep_R.to(order_RU.device)[:, None]
        return torch.zeros_like(first_RU).scatter_(1, order_RU, first_RU)


class TokenCache(KVCache):
    """Keeps as many tokens a head as the allowance says, those that ``rank`` puts first.

    Attention of a scale reads what is cached and the whole of its own scale; what to keep is decided right after.

    Parameters
    ----------
    geometry
        Of the model that runs.
    allowance_TLH
        Tokens that every head may hold after each scale but the last, ``(scales - 1, layers, heads)``. In a layer where
        it ever falls it must be the same for all heads.
    """

    def __init__(self, geometry: Geometry, allowance_TLH: npt.NDArray[np.integer]) -> None:
        super().__init__(geometry)
        full = geometry.scales.full_peak
        self.allowance_TLH = torch.from_numpy(np.minimum(allowance_TLH, full).astype(np.int64))
        self._cuts = cuts(self.allowance_TLH.numpy())
        self._layers: list[Layer | None] = [None] * geometry.layers
        self.tokens_L = [0] * geometry.layers
        self.watches = type(self).watch is not TokenCache.watch
        self._lines = LineTokens(self, self.block) if geometry.scales.by_line else None

    @property
    def block(self) -> int:
        """For subclasses: after how many tokens of a line they are asked again, where there is room for that many."""
        return BLOCK

    @property
    def planned_tokens(self) -> int:
        if self.geometry.scales.by_line:
            most = self.allowance_TLH.sum((1, 2)).max() if self.allowance_TLH.numel() else 0
            return int(most)
        return int(resident(taken_tokens(self.allowance_TLH.numpy(), self.geometry)).max(initial=0))

    def rank(self, candidates: Candidates) -> Priority:
        """For subclasses: which candidates to keep. Called where not all of them can stay."""
        raise NotImplementedError

    def watch(self, candidates: Candidates) -> Tensor | None:
        """For subclasses: what to keep with every token, ``[R, U]``, from what was kept so far (0 for new tokens)."""
        return None

    def allowed(self, layer: int, lanes: int) -> Tensor:
        """Tokens that each lane may hold after this scale, or with the block to come, ``[R]`` on the CPU."""
        after = self.scale
        if self.geometry.scales.by_line:
            # All the room there is may be taken at once, so that what lines to come may hold counts too.
            allowed_TH = self.allowance_TLH[after if self.last_tokens else after - 1 :, layer]
            return allowed_TH.min(0).values.repeat(lanes // self.geometry.heads)
        return self.allowance_TLH[after, layer].repeat(lanes // self.geometry.heads)

    def held_positions(self, layer: int) -> list[Tensor]:
        """Positions of the tokens that each lane holds, ascending."""
        if self._lines is not None:
            held = self._lines.layers[layer]
            if held is None:
                return []
            since = torch.arange(held.listed, held.listed + len(held.queries))
            return [torch.cat([pos[pos != EMPTY].cpu(), since]) for pos in held.pos_RM]
        state = self._layers[layer]
        return [] if state is None else [pos[pos != EMPTY].sort().values.cpu() for pos in state.pos_RM]

    def _attend(self, layer: int, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        if self._lines is not None:
            return self._attend_line(self._lines, layer, q_BHND, k_BHND, v_BHND)
        q_RND, k_RND, v_RND = (x.flatten(0, 1) for x in (q_BHND, k_BHND, v_BHND))
        state = self._layers[layer]
        if state is None:
            none = q_RND.new_empty((len(q_RND), 0), dtype=torch.int64)
            state = self._layers[layer] = Layer(torch.zeros(len(q_RND), dtype=torch.int64), none, none.float())
        parts = [PartialAttention(*partial_attention(q_RND[None], k_RND[None], v_RND[None]))]
        for piece in state.pieces:
            q = q_RND if piece.lanes is None else q_RND[piece.lanes]
            k, v = piece.k[None, :, : piece.filled], piece.v[None, :, : piece.filled]
            parts.append(PartialAttention(*partial_attention(q[None], k, v), piece.lanes))
        out_BHND = merge(parts).reshape(q_BHND.shape)
        if self.last_scale:
            self._free(state, state.pieces)
            self._layers[layer] = None
        else:
            self._update(layer, state, q_RND, k_RND, v_RND)
        held = int(state.held_R.sum()) // len(q_BHND) if self._layers[layer] else 0
        self.tokens += held - self.tokens_L[layer]
        self.tokens_L[layer] = held
        return out_BHND

    def _attend_line(
        self, lines: LineTokens, layer: int, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor
    ) -> Tensor:  # fmt: skip
        if self.scale == 0:
            out_BHND = attention(q_BHND, k_BHND, v_BHND, None if self.mask_BNN is None else self.mask_BNN[:, None])
            lines.take_condition(layer, q_BHND, k_BHND, v_BHND)
        else:
            out_BHND = lines.attend(layer, q_BHND, k_BHND, v_BHND)
        held = lines.tokens(layer)
        self.tokens += held - self.tokens_L[layer]
        self.tokens_L[layer] = held
        return out_BHND

    def candidates(self, layer: int, q_RND: Tensor, held: HeldTokens, keep_R: Tensor) -> Candidates:
        """What there is to choose from when a block of a line is drawn."""
        k_RUD = held.keys()
        hidden_RU = None if self.hidden_BT is None else self.hidden(held.pos_RM)
        return Candidates(
            layer, q_RND, k_RUD[:, -q_RND.shape[1] :], held.pos_RM, keep_R, [], held.score_RM, k_RUD, hidden_RU
        )  # fmt: skip

    def hidden(self, pos_RM: Tensor) -> Tensor:
        """Which tokens of the sequence are of the condition and hidden from their row."""
        assert self.hidden_BT is not None
        batch, tokens = self.hidden_BT.shape
        hidden_RT = self.hidden_BT.repeat_interleave(len(pos_RM) // batch, 0)
        return hidden_RT.gather(1, pos_RM.clamp(0, tokens - 1)) & (pos_RM >= 0) & (pos_RM < tokens)

    def _update(self, layer: int, state: Layer, q_RND: Tensor, k_RND: Tensor, v_RND: Tensor) -> None:
        """Choose among what is cached and the new scale, and put the chosen new tokens in the place of what goes."""
        lanes, new = k_RND.shape[:2]
        all_R = state.held_R + new
        keep_R = torch.minimum(all_R, self.allowed(layer, lanes))
        start = self.geometry.scales.bounds[self.scale][0]
        new_pos = torch.arange(start, start + new, device=k_RND.device).expand(lanes, -1)
        pos_RU = torch.cat([state.pos_RM, new_pos], 1)
        score_RU = torch.nn.functional.pad(state.score_RM, (0, new))
        candidates = Candidates(layer, q_RND, k_RND, pos_RU, keep_R, state.pieces, score_RU)
        watched_RU = self.watch(candidates)
        candidates.score_RU = score_RU if watched_RU is None else watched_RU
        valid_RU = pos_RU != EMPTY
        evicts = bool((keep_R < all_R).any())
        chosen_RU = self.rank(candidates).best(keep_R, valid_RU) if evicts else valid_RU
        if evicts:
            self.evicting(candidates, chosen_RU, v_RND)
        self._grow(layer, state, keep_R, k_RND)
        self._move(state, candidates, chosen_RU, v_RND)
        self._shrink(state, keep_R)
        state.held_R = keep_R
        if evicts:
            self.evicted(candidates)

    def evicting(self, candidates: Candidates, chosen_RU: Tensor, v_RND: Tensor) -> None:
        """For subclasses: called before what is not chosen is overwritten."""

    def evicted(self, candidates: Candidates) -> None:
        """For subclasses: called when the cache holds what was chosen."""

    def _grow(self, layer: int, state: Layer, keep_R: Tensor, like: Tensor) -> None:
        """Allocate the pieces that the tokens to keep reach into."""
        lanes, dim = like.shape[0], like.shape[2]
        allowed_R = self.allowed(layer, lanes)
        end = state.pieces[-1].end if state.pieces else 0
        most = int(keep_R.max())
        for cut in self._cuts[layer]:
            if cut <= end or end >= most:
                continue
            which = (allowed_R >= cut).nonzero().flatten().to(like.device)
            row_R = like.new_full((lanes,), -1, dtype=torch.int64)
            row_R[which] = torch.arange(len(which), device=like.device)
            k, v = (like.new_empty(len(which), cut - end, dim) for _ in range(2))
            state.pieces.append(Piece(end, cut, None if len(which) == lanes else which, row_R, k, v))
            self.book(self.allocated_bytes + k.nbytes + v.nbytes)
            end = cut
        missing = end - state.pos_RM.shape[1]
        if missing > 0:
            state.pos_RM = torch.nn.functional.pad(state.pos_RM, (0, missing), value=EMPTY)

    def _move(self, state: Layer, candidates: Candidates, chosen_RU: Tensor, v_RND: Tensor) -> None:
        """Write every chosen token that has no slot to stay in into one that is free."""
        k_RND, keep_R, old = candidates.k_RND, candidates.keep_R, candidates.old
        slots, device = state.pos_RM.shape[1], k_RND.device
        chosen_RM = torch.nn.functional.pad(chosen_RU[:, :old], (0, slots - old))
        below_RM = torch.arange(slots, device=device) < keep_R.to(device)[:, None]
        # Both lists run lane by lane, with equally many entries a lane: the n-th token goes to the n-th hole.
        lane, hole = (below_RM & ~chosen_RM).nonzero(as_tuple=True)
        _, source = torch.cat([chosen_RM & ~below_RM, chosen_RU[:, old:]], 1).nonzero(as_tuple=True)
        fresh = source >= slots
        k, v = k_RND.new_empty(len(lane), k_RND.shape[2]), v_RND.new_empty(len(lane), v_RND.shape[2])
        k[fresh], v[fresh] = (x[lane[fresh], source[fresh] - slots] for x in (k_RND, v_RND))
        for piece in state.pieces:
            here = ~fresh & (source >= piece.start) & (source < piece.end)
            row, slot = piece.row_R[lane[here]], source[here] - piece.start
            k[here], v[here] = piece.k[row, slot], piece.v[row, slot]
        index = torch.where(fresh, source - slots + old, source)
        state.score_RM = torch.nn.functional.pad(candidates.score_RU[:, :old], (0, slots - old))
        state.score_RM[lane, hole] = candidates.score_RU[lane, index]
        state.pos_RM[lane, hole] = candidates.pos_RU[lane, index]
        for piece in state.pieces:
            here = (hole >= piece.start) & (hole < piece.end)
            row, slot = piece.row_R[lane[here]], hole[here] - piece.start
            piece.k[row, slot], piece.v[row, slot] = k[here], v[here]
            held_R = keep_R if piece.lanes is None else keep_R[piece.lanes.cpu()]
            piece.filled = max(0, min(int(held_R.max()), piece.end) - piece.start)

    def _shrink(self, state: Layer, keep_R: Tensor) -> None:
        """Let go of the pieces past what any lane keeps."""
        most = int(keep_R.max())
        self._free(state, [piece for piece in state.pieces if piece.start >= most])
        state.pieces = [piece for piece in state.pieces if piece.start < most]
        end = state.pieces[-1].end if state.pieces else 0
        state.pos_RM, state.score_RM = state.pos_RM[:, :end], state.score_RM[:, :end]

    def book(self, size: int) -> None:
        """Book what is held now, in bytes."""
        self.allocated_bytes = size
        self.peak_bytes = max(self.peak_bytes, size)

    def _free(self, state: Layer, pieces: list[Piece]) -> None:
        for piece in pieces:
            self.book(self.allocated_bytes - piece.k.nbytes - piece.v.nbytes)
