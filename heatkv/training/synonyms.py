"""What people may say for the labels that the model was taught: a table, derived from the data where it can be.

From the same package as the names: shortcodes, which are what people type (``car`` for automobile), and CLDR keywords.
A keyword goes with the label that it says most about. A short list by hand comes first.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from heatkv.models.infinity.words import Synonyms, other_forms, split_words
from heatkv.training import data, grounds, scenes

SHORTCODES = ("emojibase", "github", "iamcal")
MAX_WORDS = 2
# Where the data names nothing, or something that few would expect.
BY_HAND = {
    "apple": "red apple", "auto": "automobile", "bag": "handbag", "cake": "birthday cake", "cellphone": "mobile phone",
    "clock": "alarm clock", "couch": "couch and lamp", "devil": "smiling face with horns", "diamond": "gem stone",
    "dino": "sauropod", "dinosaur": "sauropod", "doctor": "health worker", "doggy": "dog face",
    "earphones": "headphone", "firetruck": "fire engine", "flower": "tulip", "gamepad": "video game",
    "grass": "herb", "hat": "top hat", "headset": "headphone", "hen": "chicken", "home": "house",
    "icecube": "ice", "jeep": "sport utility vehicle", "juice": "beverage box", "king": "person with crown",
    "lamp": "light bulb", "lightning": "high voltage", "lorry": "delivery truck", "love": "red heart",
    "money": "money bag", "moon": "crescent moon", "motorbike": "motorcycle", "music": "musical notes",
    "noodles": "steaming bowl", "pants": "jeans", "paper": "page facing up", "piggy": "pig face",
    "police": "police officer", "pony": "horse", "queen": "princess", "sea": "water wave", "skirt": "dress",
    "smartphone": "mobile phone", "sofa": "couch and lamp", "song": "musical note", "spaceship": "rocket",
    "storm": "cloud with lightning and rain", "sunny": "sun", "sword": "crossed swords", "teddybear": "teddy bear",
    "teeth": "tooth", "telly": "television", "trainers": "running shoe", "tree": "deciduous tree",
    "water": "droplet", "witch": "mage", "wizard": "mage",
}  # fmt: skip

# What is said of scenes, and how training says it (see scenes.py and grounds.py).
GRAMMAR = {
    "to the left of": "left of", "to the right of": "right of", "on the left of": "left of",
    "on the right of": "right of", "on the left side of": "left of", "over": "above", "on top of": "above",
    "atop": "above", "under": "below", "underneath": "below", "beneath": "below", "beside": "and", "next to": "and",
    "near": "and", "with": "and", "plus": "and", "by the sea": "at sea", "in the sea": "at sea", "on the sea": "at sea",
    "on water": "at sea", "on the water": "at sea", "ocean": "sea", "in the ocean": "at sea", "on the beach": "on sand",
    "on a beach": "on sand", "in the desert": "on sand", "in the grass": "on grass", "on the grass": "on grass",
    "in a meadow": "on grass", "on a meadow": "on grass", "in a field": "on grass", "on a lawn": "on grass",
    "in the snow": "on snow", "in snow": "on snow", "on the snow": "on snow", "in the night": "at night",
    "by night": "at night", "under the stars": "at night", "in the dark": "at night", "sky": "sky",
    "in the air": "in the sky", "at dusk": "at sunset", "at dawn": "at sunset", "in the evening": "at sunset",
    "big": "large", "huge": "large", "giant": "large", "tiny": "small", "little": "small", "mini": "small",
    "a pair of": "two", "pair of": "two", "a couple of": "two", "couple of": "two", "2": "two", "3": "three",
    "4": "four", "gray": "grey", "violet": "purple", "checkered": "checks", "chequered": "checks", "checked": "checks",
    "striped": "stripes", "dotted": "dots", "polka dots": "dots", "at the center": "at middle",
    "in the center": "at middle", "in the middle": "at middle", "in the centre": "at middle",
    "on the left": "at left", "on the right": "at right", "at left": "at left",
    "background": "", "rows of": "pattern of", "lots of": "pattern of",
    "many": "pattern of",
}  # fmt: skip


def plain(text: str) -> str:
    return " ".join(split_words(text))


def build(folder: Path) -> Synonyms:
    """The table for the labels in the names package, which lies in ``folder``."""
    entries = data.read_names(folder)
    with tarfile.open(data.archive_path(folder, data.NAMES_PACKAGE)) as archive:
        codes = [json.load(data.member(archive, f"package/en/shortcodes/{name}.json")) for name in SHORTCODES]
    labels = {plain(entry["label"]): entry for entry in entries}
    if wrong := sorted(set(BY_HAND.values()) - set(labels)):
        raise ValueError(f"no pictures are called {', '.join(wrong)}")
    said: dict[str, Counter[str]] = defaultdict(Counter)
    keywords: dict[str, list[str]] = defaultdict(list)
    for label, entry in labels.items():
        for names in codes:
            found = names.get(entry["hexcode"], [])
            said_here = {plain(name) for name in ([found] if isinstance(found, str) else found)}
            for phrase in sorted(said_here):
                said[phrase][label] += 1
        for tag in entry.get("tags", []):
            keywords[plain(tag)].append(label)
    phrases = {
        phrase: min(found, key=lambda label: specificity(labels[label], phrase)) for phrase, found in keywords.items()
    }
    phrases |= {phrase: votes.most_common(1)[0][0] for phrase, votes in said.items()}
    phrases |= BY_HAND
    phrases = {
        phrase: label
        for phrase, label in phrases.items()
        if phrase not in labels and 1 <= len(phrase.split()) <= MAX_WORDS and not phrase.isdigit()
    }
    plurals = {p for p in phrases if p not in BY_HAND and any(f in phrases or f in labels for f in singular(p))}
    phrases = {phrase: label for phrase, label in phrases.items() if phrase not in plurals}
    phrases |= {label: label for label in labels if label.split()[0] in data.HUES}
    return Synonyms(phrases, tuple(data.HUES), data.STYLES, GRAMMAR, tuple(sorted(scenes.WORDS | grounds.WORDS)))


def for_things(table: Synonyms, things: Collection[str]) -> Synonyms:
    """The same table for a model that was shown these labels alone, where a cat can only be the cat face."""
    phrases = {thing.removesuffix(" face"): thing for thing in things}
    phrases |= {phrase: label for phrase, label in table.phrases.items() if label in things}
    return replace(table, phrases=phrases)


def specificity(entry: dict[str, Any], phrase: str) -> tuple[bool, bool, int, int]:
    """Sorts the labels that share a keyword, the most specific first.

    Things go before people and signs, labels that contain the keyword before others, and then those of few words with
    few keywords, each of which says more.
    """
    words = split_words(entry["label"])
    contained = {form for word in words for form in (word, *other_forms(word))}
    return (
        entry["group"] in data.VARIANT_GROUPS,
        not set(phrase.split()) <= contained,
        len(entry.get("tags", [])) + 3 * len(words),
        entry.get("order", 0),
    )


def singular(phrase: str) -> list[str]:
    """What a phrase that ends in s may be the plural of."""
    *first, last = phrase.split()
    forms = [form for form in other_forms(last) if last.endswith("s") and len(form) < len(last)]
    return [" ".join([*first, form]) for form in forms]
