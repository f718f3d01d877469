"""Text encoders: prompts in, padded features out. Exchangeable: a model holds one and only calls it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from heatkv.models.infinity.transformer import TextFeatures
from heatkv.models.infinity.words import ARTICLES, Synonyms, Vocabulary, split_words
from heatkv.models.prompts import PromptError, check_prompt

__all__ = ["PromptError", "TextEncoder", "Vocabulary", "WordEncoder", "check_prompt", "split_words"]


class TextEncoder(Protocol):
    """What a model asks of its text encoder."""

    def check(self, prompt: str) -> str | None:
        """A note for the user, or None. Raises ``PromptError`` where nothing can be made of the prompt."""
        ...

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of prompts, one row each. Raises ``PromptError`` (see ``check``)."""
        ...

    def about(self) -> dict[str, Any]:
        """Facts for people."""
        ...


class WordEncoder(nn.Module):
    """The bundled model's text encoder: word embeddings, positions, neighbours and one transformer layer.

    ``neighbours`` adds to every word what stands up to ``reach`` words before and behind it (0: nothing): whether an
    apple is red, and left of what. From absolute positions alone that was not learned.
    """

    def __init__(self, vocabulary: Vocabulary, width: int, max_words: int, heads: int = 4, reach: int = 3) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.synonyms = Synonyms()
        self.max_words = max_words
        self.embedding = nn.Embedding(len(vocabulary.words) + 1, width, padding_idx=0)
        self.position = nn.Parameter(torch.randn(max_words, width) * 0.02)
        self.reach, self.neighbours = reach, None
        if reach:
            self.neighbours = nn.Conv1d(width, width, 2 * reach + 1, padding=reach, bias=False)
            nn.init.zeros_(self.neighbours.weight)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)

    def known_and_unknown(self, prompt: str) -> tuple[list[int], list[str]]:
        """Ids of the words the encoder knows (cut to ``max_words``) and the words it does not know."""
        words = self.synonyms.read(split_words(prompt), self.vocabulary)
        ids = [self.vocabulary.id(word) for word in words]
        unknown = [word for word, i in zip(words, ids, strict=True) if i is None]
        return [i for i in ids if i is not None][: self.max_words], unknown

    def check(self, prompt: str) -> str | None:
        """A note on what is read otherwise or left out, or None. Raises ``PromptError`` where nothing is known."""
        ids, unknown = self.known_and_unknown(check_prompt(prompt))
        named = ", ".join(self.vocabulary.suggest(word) for word in unknown[:8])
        if not ids:
            what = f"does not know {named}" if unknown else "found no words in the prompt"
            raise PromptError(f"the model {what}; it knows {len(self.vocabulary.words)} words, for example `red apple`")
        said = split_words(prompt)
        read = self.synonyms.read(said, self.vocabulary)
        plain, changed = ([word for word in words if word not in ARTICLES] for words in (said, read))
        notes = [f"read as `{' '.join(read)}`"] if plain != changed else []
        notes += [f"words the model does not know, left out: {named}"] if unknown else []
        return "; ".join(notes) or None

    def forward(self, ids_BN: Tensor) -> TextFeatures:
        """Features of padded word ids (0 = padding; every row needs one word or more)."""
        mask_BN = ids_BN > 0
        words_BNC = self.embedding(ids_BN) * mask_BN[..., None]  # so that padding is nobody's neighbour
        x = words_BNC + self.position[: ids_BN.shape[1]]
        if self.neighbours is not None:
            x = x + self.neighbours(words_BNC.transpose(1, 2)).transpose(1, 2)
        return TextFeatures(self.layers(x, src_key_padding_mask=~mask_BN), mask_BN)

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of prompts. Raises ``PromptError`` (see ``check``)."""
        rows = []
        for prompt in prompts:
            self.check(prompt)
            rows.append(torch.tensor(self.known_and_unknown(prompt)[0]))
        return self(nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.position.device))

    def about(self) -> dict[str, Any]:
        return {"words": len(self.vocabulary.words)}
