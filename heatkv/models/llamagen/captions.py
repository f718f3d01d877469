"""Captions as the published text-to-image LlamaGen reads them: cleaned, then encoded by T5, 120 tokens at most."""

from __future__ import annotations

import html
import re

LEFT_OUT = (
    r"https?://\S+|www\.\S+",
    r"<[^>]*>",
    r"@[\w\d]+\b",
    r"[\u3040-\u30ff\u31c0-\u31ef\u3200-\u4dbf\u4e00-\u9fff\uac00-\ud7af]+",  # characters of Chinese, Japanese, Korean
    r"\b\S+\.(?:jpe?g|png|gif|webp|bmp|mp4|pdf|docx?|zip)\b",
)
DASHES = r"[\u2010-\u2015\u2212\ufe58\ufe63\uff0d]+"
SINGLE, DOUBLE = r"[\u2018\u2019\u00b4`]", r"[\u201c\u201d\u00ab\u00bb]"


def clean_caption(text: str) -> str:
    """A caption as the model was trained on them: lower case, plain dashes and quotes, nothing but words.

    Web addresses, tags, @names, file names and characters that T5 does not know go.
    """
    text = html.unescape(text).lower()
    for pattern in LEFT_OUT:
        text = re.sub(pattern, " ", text)
    for pattern, plain in ((DASHES, "-"), (SINGLE, "'"), (DOUBLE, '"')):
        text = re.sub(pattern, plain, text)
    return " ".join(text.split())
