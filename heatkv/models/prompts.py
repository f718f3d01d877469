"""What every family asks of a prompt."""

from __future__ import annotations

import unicodedata

MAX_PROMPT_CHARACTERS = 8_000  # more than the 512 tokens that the text encoder reads


class PromptError(ValueError):
    """A prompt that cannot be used; the message says why and what to do."""


def check_prompt(prompt: str) -> str:
    """The prompt without surrounding white space. Raises ``PromptError`` if empty or too long."""
    text = prompt.strip()
    if not text.isprintable() and any(unicodedata.category(c) in ("Cs", "Cc") and c not in "\t\n\r" for c in text):
        raise PromptError("the prompt holds characters that are no text (control characters or halves of pairs)")
    if not text:
        raise PromptError("the prompt is empty: write a few words, for example `red apple`")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise PromptError(f"the prompt has {len(text)} characters; at most {MAX_PROMPT_CHARACTERS} are read")
    return text
