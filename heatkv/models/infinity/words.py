"""The words of the bundled model: which it knows, other forms of them, and what people may say instead.

Plain Python, deterministic, no network. A model folder may hold a table ``synonyms.json`` (written by
``heatkv.training.synonyms``); without it, words are only matched to the vocabulary.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from heatkv.files import read_json, write_atomic

FORMAT, VERSION = "heatkv-synonyms", 1
MAX_BYTES = 2 << 20
ARTICLES = ("a", "an", "the", "my", "some")
IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose", "teeth": "tooth",
    "feet": "foot", "wolves": "wolf", "leaves": "leaf", "knives": "knife", "wives": "wife", "elves": "elf",
}  # fmt: skip
# (ending, what to put in its place), from the most to the least certain; a stem has three letters or more.
ENDINGS = (
    ("s", ""), ("", "s"), ("es", ""), ("ies", "y"), ("ing", ""), ("ing", "e"), ("ed", ""), ("ed", "e"), ("y", ""),
    ("ies", "ie"), ("", "ing"),
)  # fmt: skip


def split_words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower().replace("’", "").replace("'", ""))


def other_forms(word: str) -> list[str]:
    """Forms that mean the same thing: singular and plural, running and run, cloudy and cloud."""
    forms = [IRREGULAR[word]] if word in IRREGULAR else []
    for ending, instead in ENDINGS:
        stem = word.removesuffix(ending)
        if not word.endswith(ending) or len(stem) < 3:
            continue
        forms.append(stem + instead)
        if ending in ("ing", "ed", "y") and not instead and stem[-1] == stem[-2]:
            forms.append(stem[:-1])  # running, sunny
    return [form for form in forms if form != word]


@dataclass(frozen=True)
class Vocabulary:
    """The words a ``WordEncoder`` knows; a word's id is its position (0 is padding)."""

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ids", {word: i + 1 for i, word in enumerate(self.words)})

    def id(self, word: str) -> int | None:
        """Id of a word, or of another form of it."""
        ids: dict[str, int] = self._ids  # type: ignore[attr-defined]
        return next((ids[form] for form in (word, *other_forms(word)) if form in ids), None)

    def suggest(self, word: str) -> str:
        close = difflib.get_close_matches(word, self.words, n=2, cutoff=0.7)
        meant = " or ".join(f"`{other}`" for other in close)
        return f"`{word}` (did you mean {meant}?)" if close else f"`{word}`"


class SynonymsError(ValueError):
    """A table of synonyms that can not be used."""


@dataclass(frozen=True)
class Synonyms:
    """What people say for what the model was taught to call otherwise.

    Parameters
    ----------
    phrases
        What may be said, and the label it stands for; words in lower case, one space between them. Labels that begin
        with a colour stand for themselves, so that they are not taken apart.
    colours, styles
        Words that may stand before a phrase, a style first.
    grammar
        What may be said of a scene, and how the model was taught to say it ("big": "large"), longer phrases first.
    scene
        Words of scenes that stand between and before things ("left", "two", "on", "grass"): they mean what they say.
    """

    phrases: dict[str, str] = field(default_factory=dict)
    colours: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    grammar: dict[str, str] = field(default_factory=dict)
    scene: tuple[str, ...] = ()

    def find(self, words: list[str]) -> str | None:
        """The label that words stand for, as they are or with the last of them in another form."""
        if not words:
            return None
        *first, last = words
        said = (" ".join([*first, form]) for form in (last, *other_forms(last)))
        return next((self.phrases[phrase] for phrase in said if phrase in self.phrases), None)

    def read(self, words: list[str], vocabulary: Vocabulary) -> list[str]:
        """The words that the model is given instead.

        A prompt that is a phrase as a whole, style, article and colour apart, becomes its label. In a prompt with words
        of a scene, every thing that is named becomes its label; elsewhere only single words change, those that the
        vocabulary lacks.
        """
        style = words[:1] if words and words[0] in self.styles else []
        rest = words[len(style) :]
        if rest and rest[0] in ARTICLES:
            rest = rest[1:]
        if label := self.find(rest):
            return [*style, *label.split()]
        if rest and rest[0] in self.colours and (label := self.find(rest[1:])):
            thing = label.split()
            return [*style, rest[0], *(thing[1:] if thing[0] in self.colours else thing)]
        scene = replaced(words, self.grammar)
        if set(scene) & set(self.scene):
            words = self.read_scene(scene)
        read: list[str] = []
        for word in words:
            label = self.find([word]) if vocabulary.id(word) is None else None
            read += label.split() if label else [word]
        return read

    def read_scene(self, words: list[str]) -> list[str]:
        """Words with every thing by its label: the longest run of words that is a label or a phrase, from the left."""
        labels = set(self.phrases.values())
        read: list[str] = []
        while words:
            if words[0] in ARTICLES:
                words = words[1:]
                continue
            runs = [words[:n] for n in range(min(6, len(words)), 0, -1)]
            runs = [run for run in runs if len(run) > 1 or run[0] not in self.scene]
            found = [(run, run if " ".join(run) in labels else (self.find(run) or "").split()) for run in runs]
            run, label = next(((run, label) for run, label in found if label), (words[:1], words[:1]))
            repainted = read and read[-1] in self.colours and label[0] in self.colours and len(label) > 1
            read += label[1:] if repainted else label
            words = words[len(run) :]
        return read

    def save(self, path: Path) -> None:
        """Write the table, what may be said listed by label."""
        said: dict[str, list[str]] = {}
        for phrase, label in sorted(self.phrases.items()):
            said.setdefault(label, []).append(phrase)
        table = {
            "format": FORMAT, "version": VERSION, "styles": list(self.styles), "colours": list(self.colours),
            "grammar": self.grammar, "scene": list(self.scene), "said": dict(sorted(said.items())),
        }  # fmt: skip
        write_atomic(path, (json.dumps(table, separators=(",", ":")).replace("],", "],\n") + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Synonyms:
        """Read a table; every problem with it is a `SynonymsError` that names the file."""
        table = read_json(path, limit=MAX_BYTES, error=SynonymsError)
        if not isinstance(table, dict) or (table.get("format"), table.get("version")) != (FORMAT, VERSION):
            raise SynonymsError(f"{path} is not a table of synonyms ({FORMAT}, version {VERSION})")
        said, lists = table.get("said"), [table.get("styles"), table.get("colours")]
        if not isinstance(said, dict) or not all(_is_words(entry) for entry in (*said.values(), *lists)):
            raise SynonymsError(f"{path} must hold lists of words under styles, colours and every label of said")
        grammar, scene = table.get("grammar", {}), table.get("scene", [])
        if not isinstance(grammar, dict) or not _is_words(list(grammar.values())) or not _is_words(scene):
            raise SynonymsError(f"{path} must hold words under grammar and a list of words under scene")
        phrases = {phrase: label for label, entries in said.items() for phrase in entries if split_words(label)}
        return cls(phrases, tuple(table["colours"]), tuple(table["styles"]), grammar, tuple(scene))


def replaced(words: list[str], phrases: dict[str, str]) -> list[str]:
    """Words with every phrase (of up to four words) exchanged, the longest first."""
    read: list[str] = []
    while words:
        for n in range(min(4, len(words)), 0, -1):
            if (instead := phrases.get(" ".join(words[:n]))) is not None:
                read += instead.split()
                break
        else:
            n = 1
            read.append(words[0])
        words = words[n:]
    return read


def _is_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
