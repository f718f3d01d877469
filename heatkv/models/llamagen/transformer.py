"""The LlamaGen transformer: image tokens one after the other, behind the tokens of a condition.

Parameter names follow the published state dict. Self-attention goes through ``KVCache.attend`` and nothing else; what
the image may attend to is decided by the cache alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatkv.cache import Attend
from heatkv.models.infinity.rope import rotate
from heatkv.scales import Geometry, ScaleSchedule

FEW_ROWS = 8


@dataclass(frozen=True)
class LlamaGenConfig:
    """Shape of a LlamaGen transformer; the defaults that are not of one size are the published ones.

    Parameters
    ----------
    grid
        Tokens along a side of the image.
    condition
        What comes before the image: one token for a ``class``, or ``condition_tokens`` for a ``caption``, whose
        features are ``caption_width`` wide.
    readable
        Whether attention can tell the condition's tokens apart. In the published models it can not: their rotary
        table is zero there, so that their queries and keys are zero too, and every image token reads the mean of what
        they say. With ``readable`` they are turned by nothing instead and see one another both ways, which a small
        model needs to follow a prompt; the bundled model is the only one.
    """

    depth: int
    width: int
    heads: int
    grid: int
    condition: Literal["class", "caption"] = "class"
    classes: int = 1000
    caption_width: int = 2048
    condition_tokens: int = 1
    vocabulary: int = 16384
    readable: bool = False

    def __post_init__(self) -> None:
        if self.width % self.heads or self.head_dim % 4:
            raise ValueError(f"a width of {self.width} in {self.heads} heads: each needs a multiple of 4 dimensions")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        """Width inside the feed-forward: two thirds of four times the width, rounded up to a multiple of 256."""
        return -(-int(8 * self.width / 3) // 256) * 256

    @property
    def image_tokens(self) -> int:
        return self.grid**2

    @property
    def scales(self) -> ScaleSchedule:
        return ScaleSchedule.lines(self.condition_tokens, self.grid, self.grid)


@dataclass(frozen=True)
class Condition:
    """The condition's tokens ``[B, T, C]``, and which of them each may read, ``[B, T, T]`` (None: all).

    What the last one may not read, no later token does: padding.
    """

    tokens_BTC: Tensor
    mask_BTT: Tensor | None = None


class Linear(nn.Linear):
    """Without bias. A few rows, as a token of an image and its twin without a prompt, go as columns on a CPU.

    The product of the weights and so many columns takes a half to a third of the time there.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        if not (x.device.type == "cpu" and x.dtype == torch.float32 and 2 <= rows <= FEW_ROWS):
            return F.linear(x, self.weight)
        return torch.mm(self.weight, x.reshape(rows, -1).t()).t().contiguous().view(*x.shape[:-1], -1)


class RMSNorm(nn.Module):
    """Scaled to a mean square of 1 in float32, then weighted in the compute dtype."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * self.weight.to(x.dtype)


def rotary_table(config: LlamaGenConfig, base: float = 10000.0) -> Tensor:
    """Cosine and sine of every pair of dimensions at every position, ``[T + N, head_dim / 2, 2]`` in float32.

    The first half of the pairs turns with the line, the second with the column. The condition's rows are zeros, cosine
    and sine, as published; where the condition is ``readable`` they turn by nothing.
    """
    quarter = config.head_dim // 4
    speed = base ** (-torch.arange(quarter).float() * 2 / (config.head_dim // 2))
    place = torch.arange(config.grid).float()
    y, x = torch.meshgrid(place, place, indexing="ij")
    angle_Nd = torch.cat([y.reshape(-1, 1) * speed, x.reshape(-1, 1) * speed], 1)
    image_Nd2 = torch.stack([angle_Nd.cos(), angle_Nd.sin()], -1)
    condition_Td2 = image_Nd2.new_zeros(config.condition_tokens, 2 * quarter, 2)
    if config.readable:
        condition_Td2[..., 0] = 1
    return torch.cat([condition_Td2, image_Nd2])


class SelfAttention(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.heads, self.scale = config.heads, config.head_dim**-0.5
        self.wqkv = Linear(config.width, 3 * config.width)
        self.wo = Linear(config.width, config.width)

    def forward(self, x_BNC: Tensor, turn_N11d2: Tensor, mask_BNN: Tensor | None, cache: Attend, layer: int) -> Tensor:
        B, N, C = x_BNC.shape
        qkv_BN3HD = self.wqkv(x_BNC).view(B, N, 3, self.heads, C // self.heads)
        # Rotated in float32 whatever the compute dtype; the cache gets the compute dtype.
        qk_BN2HD = rotate(qkv_BN3HD[:, :, :2].float(), turn_N11d2)
        q, k = qk_BN2HD.unbind(2)
        dtype = qkv_BN3HD.dtype
        v_BHND = qkv_BN3HD[:, :, 2].transpose(1, 2)
        q_BHND, k_BHND = (q * self.scale).to(dtype).transpose(1, 2), k.to(dtype).transpose(1, 2)
        out_BHND = cache.attend(layer, q_BHND, k_BHND, v_BHND, mask_BNN)
        return self.wo(out_BHND.transpose(1, 2).reshape(B, N, C))


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = Linear(width, hidden)
        self.w3 = Linear(width, hidden)
        self.w2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.feed_forward = FeedForward(config.width, config.hidden)
        self.attention_norm = RMSNorm(config.width)
        self.ffn_norm = RMSNorm(config.width)

    def forward(self, x_BNC: Tensor, turn_N11d2: Tensor, mask_BNN: Tensor | None, cache: Attend, layer: int) -> Tensor:
        x_BNC = x_BNC + self.attention(self.attention_norm(x_BNC), turn_N11d2, mask_BNN, cache, layer)
        return x_BNC + self.feed_forward(self.ffn_norm(x_BNC))


class LabelEmbedding(nn.Module):
    """A token for every class; the last row stands for no class."""

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(config.classes + 1, config.width)


class CaptionProjection(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.caption_width, config.width, bias=False)
        self.fc2 = nn.Linear(config.width, config.width, bias=False)

    def forward(self, features_BTc: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(features_BTc), approximate="tanh"))


class CaptionEmbedding(nn.Module):
    """A token for every word of a caption; ``uncond_embedding`` are the features that stand for no caption.

    The published ones were never trained: they are the random numbers of that run, so they come from its file.
    """

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.cap_proj = CaptionProjection(config)
        empty_Tc = torch.randn(config.condition_tokens, config.caption_width) / config.caption_width**0.5
        self.uncond_embedding = nn.Parameter(empty_Tc)


def causal_mask(mask_BT: Tensor) -> Tensor:
    """Each token reads itself and the real ones before it, ``[B, T, T]``."""
    tokens = mask_BT.shape[1]
    causal_TT = torch.ones(tokens, tokens, dtype=torch.bool, device=mask_BT.device).tril()
    return (causal_TT & mask_BT[:, None]) | torch.eye(tokens, dtype=torch.bool, device=mask_BT.device)


class LlamaGenTransformer(nn.Module):
    """Blocks, embeddings and the head over the codebook.

    ``forward`` runs consecutive tokens: all of the condition or one of the image with a cache that generates, all at
    once with one that masks.
    """

    rope_Nd2: Tensor

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.config = config
        embedding = LabelEmbedding if config.condition == "class" else CaptionEmbedding
        self.cls_embedding = embedding(config)
        self.tok_embeddings = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width)
        self.output = Linear(config.width, config.vocabulary)
        self.register_buffer("rope_Nd2", rotary_table(config), persistent=False)

    @property
    def scales(self) -> ScaleSchedule:
        return self.config.scales

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.config.depth, self.config.heads, self.config.head_dim, self.scales)

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers, as other families call them."""
        return self.layers

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype."""
        return self.output.weight.dtype

    def read_classes(self, labels_B: Tensor) -> Condition:
        """The condition of class labels (``config.classes`` = no class)."""
        embedding = cast(LabelEmbedding, self.cls_embedding)
        return Condition(embedding.embedding_table(labels_B)[:, None])

    def read_captions(self, features_BTc: Tensor, mask_BT: Tensor, guided: bool) -> Condition:
        """The condition of captions' features, padded behind to ``condition_tokens`` (True = a real token).

        ``guided``: the rows of no caption follow. Padding goes to the front, where it is zero and nobody reads it;
        where the condition is ``readable`` it is read like any token.
        """
        embedding = cast(CaptionEmbedding, self.cls_embedding)
        length = mask_BT.shape[1]
        missing = self.config.condition_tokens - length
        mask_BT = F.pad(mask_BT, (0, missing))
        features_BTc = F.pad(features_BTc * mask_BT[:, :length, None], (0, 0, 0, missing))
        # A stable sort by "real" brings padding to the front and leaves the words in their order.
        order_BT = mask_BT.int().argsort(dim=1, stable=True)
        features_BTc = features_BTc.gather(1, order_BT[..., None].expand_as(features_BTc)).to(self.dtype)
        mask_BT = mask_BT.gather(1, order_BT)
        if guided:
            features_BTc = torch.cat([features_BTc, embedding.uncond_embedding.to(self.dtype).expand_as(features_BTc)])
            mask_BT = mask_BT.repeat(2, 1)
        tokens_BTC = embedding.cap_proj(features_BTc)
        return Condition(tokens_BTC, None if self.config.readable else causal_mask(mask_BT))

    def forward(self, x_BNC: Tensor, first_token: int, cache: Attend, mask_BNN: Tensor | None = None) -> Tensor:
        """Hidden states ``[B, N, C]`` of the tokens ``first_token .. first_token + N``.

        ``mask_BNN``: which of these tokens each may read, where that is not for the cache to decide.
        """
        turn_N11d2 = self.rope_Nd2[first_token : first_token + x_BNC.shape[1], None, None]
        for layer, block in enumerate(cast(Iterable[Block], self.layers)):
            x_BNC = block(x_BNC, turn_N11d2, mask_BNN, cache, layer)
        return x_BNC

    def logits(self, hidden_BNC: Tensor) -> Tensor:
        """Logits ``[B, N, vocabulary]`` in float32."""
        return self.output(self.norm(hidden_BNC)).float()


def set_positions(model: LlamaGenTransformer, device: torch.device) -> None:
    """Set the buffer that follows from the configuration, of a model made on the meta device."""
    model.rope_Nd2 = rotary_table(model.config).to(device)
