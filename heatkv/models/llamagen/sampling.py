"""The LlamaGen generation loop: the condition, then token after token, in events of a line."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from heatkv.cache import Attend
from heatkv.models.base import Noise, Sampling, ScaleTokens
from heatkv.models.llamagen.transformer import Condition, LlamaGenTransformer
from heatkv.models.llamagen.vq import Codebook
from heatkv.models.var.sampling import draw_ranks

FEW = 256  # values that are sorted where they hold all that may be drawn: all of them take a tenth of a token's time


def likely_first(logits_BV: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Logits from likely to unlikely, -inf where ``top_k`` or ``top_p`` exclude a value, and whose they are.

    Values equal to the k-th largest stay. Of what is left those go that come after the first with which the summed
    probability is more than ``top_p``. Of values that are excluded any number may be missing.
    """
    likely_BV, order_BV = first_values(logits_BV, top_k, top_p)
    left_BV = logits_BV
    if 0 < top_k < logits_BV.shape[-1]:
        left_BV = likely_BV = likely_BV.masked_fill(likely_BV < likely_BV[:, top_k - 1 : top_k], -torch.inf)
    if 0 < top_p < 1:
        enough_BV = summed_probability(likely_BV, left_BV) > top_p
        gone_BV = torch.zeros_like(enough_BV)
        gone_BV[:, 1:] = enough_BV[:, :-1]
        likely_BV = likely_BV.masked_fill(gone_BV, -torch.inf)
    return likely_BV, order_BV


def summed_probability(likely_BV: Tensor, all_BV: Tensor) -> Tensor:
    """Of values and those before them, among all."""
    return (likely_BV - all_BV.logsumexp(-1, keepdim=True)).exp().cumsum(-1)


def first_values(logits_BV: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Logits from likely to unlikely and whose they are, equal ones in their order: all, or see `likely_first`."""
    if logits_BV.shape[-1] > FEW and (0 < top_k < FEW or (not top_k and 0 < top_p < 1)):
        few_BV, order_BV = logits_BV.topk(FEW)
        # What equals the last of the few may be missing: before that, there has to be enough.
        sure_BV = few_BV > few_BV[:, -1:]
        if not top_k:
            sure_BV = sure_BV & (summed_probability(few_BV, logits_BV) > top_p)
        if bool((sure_BV[:, top_k - 1] if top_k else sure_BV.any(-1)).all()):
            order_BV = order_BV.sort(dim=-1).values
            likely_BV, place_BV = logits_BV.gather(-1, order_BV).sort(dim=-1, descending=True, stable=True)
            return likely_BV, order_BV.gather(-1, place_BV)
    return logits_BV.sort(dim=-1, descending=True, stable=True)


def draw_token(logits_BV: Tensor, noise_B: Tensor, sampling: Sampling) -> Tensor:
    """One token a row, ``[B]``. Noise of 0 is the greedy choice (see ``var.sampling.draw_tokens``)."""
    likely_BV, order_BV = likely_first(logits_BV / sampling.temperature, sampling.top_k, sampling.top_p)
    rank_B = draw_ranks(likely_BV, noise_B)
    return order_BV.gather(-1, rank_B[:, None]).squeeze(-1)


def read_image(
    model: LlamaGenTransformer, condition: Condition, cache: Attend, sampling: Sampling, tokens: list[Tensor]
) -> Iterator[Tensor]:
    """The guided logits ``[B, vocabulary]`` (float32) of every token of the image in turn.

    Who iterates appends each token ``[B]`` to ``tokens`` before asking for the next one's logits. The last token is
    never read.
    """
    config = model.config
    halves = sampling.rows
    hidden_BNC = model(condition.tokens_BTC, 0, cache, condition.mask_BTT)
    for step in range(config.image_tokens):
        if step > 0:
            x_B1C = model.tok_embeddings(tokens[step - 1].repeat(halves))[:, None]
            hidden_BNC = model(x_B1C, config.condition_tokens + step - 1, cache)
        logits_BV = model.logits(hidden_BNC[:, -1])
        if sampling.guided:
            conditional_BV, free_BV = logits_BV.chunk(2)
            guided = sampling.guided_steps < 0 or step <= sampling.guided_steps + 1
            logits_BV = free_BV + (conditional_BV - free_BV) * sampling.guidance if guided else conditional_BV
        yield logits_BV


def generate_lines(
    model: LlamaGenTransformer,
    codebook: Codebook,
    condition: Condition,
    cache: Attend,
    sampling: Sampling,
    noise: Noise,
    logits_sink: list[Tensor] | None = None,
) -> Iterator[ScaleTokens]:
    """Generate one image a row of the condition, or a pair of rows where ``sampling`` guides (conditional rows first).

    A line's event comes when its last token is drawn; the next line begins with reading that token. ``logits_sink``
    collects what ``read_image`` yields.
    """
    size = (model.config.grid, model.config.grid)
    tokens: list[Tensor] = []
    for step, logits_BV in enumerate(read_image(model, condition, cache, sampling, tokens)):
        line, column = divmod(step, size[1])
        if column == 0:
            noise_BN = noise(line + 1, size[1:])
        if logits_sink is not None:
            logits_sink.append(logits_BV)
        tokens.append(draw_token(logits_BV, noise_BN[:, column], sampling))
        if column == size[1] - 1:
            index_BN = torch.stack(tokens, 1)
            yield ScaleTokens(line + 1, index_BN[:, -size[1] :], codebook.map(index_BN, size))
