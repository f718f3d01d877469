"""Text encoders: prompts in, padded features out. Exchangeable: a model holds one and only calls it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from heatkv.models.infinity.transformer import TextFeatures
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


def split_words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower().replace("’", "").replace("'", ""))


@dataclass(frozen=True)
class Vocabulary:
    """The words a ``WordEncoder`` knows; a word's id is its position (0 is padding)."""

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ids", {word: i + 1 for i, word in enumerate(self.words)})

    def id(self, word: str) -> int | None:
        """Id of a word, tolerating a plural s."""
        ids: dict[str, int] = self._ids  # type: ignore[attr-defined]
        return ids.get(word) or (ids.get(word[:-1]) if word.endswith("s") else None) or ids.get(word + "s")

    def suggest(self, word: str) -> str:
        close = difflib.get_close_matches(word, self.words, n=1, cutoff=0.7)
        return f"`{word}` (did you mean `{close[0]}`?)" if close else f"`{word}`"


class WordEncoder(nn.Module):
    """The bundled model's text encoder: word embeddings, positions and one transformer layer."""

    def __init__(self, vocabulary: Vocabulary, width: int, max_words: int, heads: int = 4) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.max_words = max_words
        self.embedding = nn.Embedding(len(vocabulary.words) + 1, width, padding_idx=0)
        self.position = nn.Parameter(torch.randn(max_words, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)

    def known_and_unknown(self, prompt: str) -> tuple[list[int], list[str]]:
        """Ids of the words the encoder knows (cut to ``max_words``) and the words it does not know."""
        words = split_words(prompt)
        ids = [self.vocabulary.id(word) for word in words]
        unknown = [word for word, i in zip(words, ids, strict=True) if i is None]
        return [i for i in ids if i is not None][: self.max_words], unknown

    def check(self, prompt: str) -> str | None:
        """A note about unknown words, or None. Raises ``PromptError`` where nothing of the prompt is known."""
        ids, unknown = self.known_and_unknown(check_prompt(prompt))
        named = ", ".join(self.vocabulary.suggest(word) for word in unknown[:8])
        if not ids:
            what = f"does not know {named}" if unknown else "found no words in the prompt"
            raise PromptError(f"the model {what}; it knows {len(self.vocabulary.words)} words, for example `red apple`")
        return f"words the model does not know, left out: {named}" if unknown else None

    def forward(self, ids_BN: Tensor) -> TextFeatures:
        """Features of padded word ids (0 = padding; every row needs one word or more)."""
        mask_BN = ids_BN > 0
        x = self.embedding(ids_BN) + self.position[: ids_BN.shape[1]]
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
