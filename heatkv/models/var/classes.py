"""Class labels as prompts: a number or a name, and what was probably meant otherwise."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache, cached_property

from heatkv.files import program_root
from heatkv.models.prompts import PromptError, check_prompt

IMAGENET = program_root() / "assets" / "imagenet_classes.txt"


def plain(name: str) -> str:
    """``name`` as it is compared: lower case, words separated by one space."""
    return " ".join(re.findall(r"[^\W_]+", name.lower().replace("'", "").replace("’", "")))


@dataclass(frozen=True)
class Classes:
    """The labels of a class-conditional model: ``names[i]`` lists the synonyms of class i.

    Without names (a model of other classes than ImageNet's) classes go by their number.
    """

    count: int
    names: tuple[tuple[str, ...], ...] = ()

    @cached_property
    def by_name(self) -> dict[str, tuple[int, ...]]:
        """Classes of every comparable name; those that the name comes first for stand first."""
        found: dict[str, list[int]] = {}
        for first in (True, False):
            for i, synonyms in enumerate(self.names):
                for name in synonyms[:1] if first else synonyms[1:]:
                    classes = found.setdefault(plain(name), [])
                    if i not in classes:
                        classes.append(i)
        return {name: tuple(classes) for name, classes in found.items()}

    def title(self, index: int) -> str:
        """A class for people, such as ``207 golden retriever``."""
        return f"{index} {self.names[index][0]}" if self.names else str(index)

    def read(self, prompt: str) -> tuple[int, str | None]:
        """The class that a prompt names, and a note where the name has other meanings.

        A prompt is a number (``207``), a name or synonym (``golden retriever``) or both (``207 golden retriever``).
        Raises ``PromptError`` with suggestions.
        """
        text = check_prompt(prompt)
        if match := re.fullmatch(r"(-?\d+)(\b.*)?", text, re.DOTALL):
            index, rest = int(match[1][:12]), plain(match[2] or "")
            named = self.by_name.get(rest, ())
            if not 0 <= index < self.count:
                raise PromptError(f"there is no class {match[1][:12]}: classes are numbered 0 to {self.count - 1}")
            if not rest or index in named or not self.names:
                return index, None
        classes = self.by_name.get(plain(text), ())
        if classes:
            others = ", ".join(self.title(i) for i in classes[1:])
            return classes[0], f"also a name of {others}: ask for that by its number" if others else None
        raise PromptError(self._unknown(text))

    def _unknown(self, text: str) -> str:
        if not self.names:
            return f"this model has no class names: write a number from 0 to {self.count - 1} instead of {text[:60]!r}"
        wanted = plain(text)
        close = [name for name in self.by_name if wanted and (wanted in name.split() or f" {wanted} " in f" {name} ")]
        close += difflib.get_close_matches(wanted, self.by_name, n=4, cutoff=0.6)
        titles = list(dict.fromkeys(self.title(self.by_name[name][0]) for name in close))[:4]
        meant = f"; did you mean {', '.join(f'`{title}`' for title in titles)}?" if titles else "."
        return (
            f"this model draws the {self.count} classes of ImageNet and {text[:60]!r} is none of them{meant} "
            "Write a class name, such as `golden retriever`, or a number, such as `207`"
        )


@cache
def imagenet() -> Classes:
    """The 1000 classes of ImageNet in order, with WordNet's names."""
    lines = IMAGENET.read_text(encoding="utf-8").splitlines()
    names = tuple(tuple(line.split(", ")) for line in lines if line and not line.startswith("#"))
    return Classes(len(names), names)


def classes_for(count: int) -> Classes:
    """ImageNet's classes for a model of so many classes, or classes without names."""
    names = imagenet() if IMAGENET.is_file() else None
    return names if names and names.count == count else Classes(count)


def first_classes(count: int) -> tuple[str, ...]:
    """Numbers to try of a model of other classes than ImageNet's."""
    return tuple(str(i) for i in range(min(6, count)))
