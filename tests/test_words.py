"""What people say and what the model is given: other forms of words, synonyms, and honest notes."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from tiny import tiny_model

from heatkv.models.infinity.text import WordEncoder
from heatkv.models.infinity.words import Synonyms, SynonymsError, Vocabulary, split_words
from heatkv.models.prompts import PromptError
from heatkv.training import data, synonyms

BUNDLED = Path(__file__).parents[1] / "assets/models/pocket"
KNOWN = (
    "apple", "automobile", "baby", "bicycle", "blue", "book", "box", "cat", "cloud", "dog", "face", "fox", "heart",
    "kiss", "leaf", "noto", "of", "open", "pink", "puppy", "red", "run", "socks", "sun", "tooth",
)  # fmt: skip
WORDS = Vocabulary(KNOWN)
TABLE = Synonyms(
    {"bike": "bicycle", "auto": "automobile", "apple": "red apple", "heart": "red heart", "book": "open book",
     "blue book": "blue book"},
    ("red", "blue", "pink"), ("noto",),
)  # fmt: skip


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ("cats", "cat"), ("sock", "socks"), ("foxes", "fox"), ("kisses", "kiss"), ("puppies", "puppy"),
        ("babies", "baby"), ("leaves", "leaf"), ("teeth", "tooth"), ("running", "run"), ("sunny", "sun"),
        ("cloudy", "cloud"), ("opened", "open"), ("boxing", "box"),
    ],
)  # fmt: skip
def test_other_forms_of_a_word_are_known(said: str, known: str) -> None:
    assert WORDS.id(said) == WORDS.id(known) is not None


@pytest.mark.parametrize("word", ["red", "ring", "us", "string", "thing", "is", "zebra", "ty"])
def test_words_that_only_look_alike_are_not(word: str) -> None:
    vocabulary = Vocabulary(("r", "u", "st", "th", "i", "t", "blue"))
    assert vocabulary.id(word) is None


def test_a_word_itself_goes_before_its_other_forms() -> None:
    assert Vocabulary(("glass", "glasses")).id("glasses") == 2


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("bike", "bicycle"),
        ("bikes", "bicycle"),
        ("the bike", "bicycle"),
        ("noto bike", "noto bicycle"),
        ("pink bike", "pink bicycle"),
        ("noto pink bike", "noto pink bicycle"),
        ("apple", "red apple"),
        ("blue apple", "blue apple"),  # another colour takes the place of the label's own
        ("heart", "red heart"),
        ("book", "open book"),
        ("blue book", "blue book"),  # a label
        ("cat face", "cat face"),
        ("cat of an auto", "cat of an automobile"),  # elsewhere only unknown words change
        ("dog face apple", "dog face apple"),
        ("zebra", "zebra"),
        ("", ""),
        ("the", "the"),
    ],
)
def test_what_is_said_becomes_what_was_taught(prompt: str, read: str) -> None:
    assert " ".join(TABLE.read(split_words(prompt), WORDS)) == read


def test_notes_say_what_is_read_otherwise_and_what_is_ignored() -> None:
    encoder = tiny_model().text
    assert encoder.check("red apples") is None and encoder.check("a cat") is None
    encoder.synonyms = Synonyms({"kitty": "cat", "fir": "green tree"})
    assert encoder.check("kitty") == "read as `cat`"
    assert encoder.check("the kitty") == "read as `cat`"
    assert encoder.known_and_unknown("kitty")[0] == encoder.known_and_unknown("cat")[0]
    note = encoder.check("kitty fir applw zzz")
    assert note is not None and note.startswith("read as `cat green tree applw zzz`; ")
    assert note.endswith("left out: `applw` (did you mean `apple`?), `zzz`")
    with pytest.raises(PromptError, match="does not know `zzz`"):
        encoder.check("zzz")


def test_two_close_words_are_both_named() -> None:
    assert Vocabulary(("boat", "coat", "tree")).suggest("doat") in (
        "`doat` (did you mean `coat` or `boat`?)", "`doat` (did you mean `boat` or `coat`?)",
    )  # fmt: skip
    assert Vocabulary(("tree",)).suggest("xyz") == "`xyz`"


def test_a_word_is_told_from_itself_by_the_words_around_it_and_not_by_padding() -> None:
    torch.manual_seed(0)
    text = WordEncoder(Vocabulary(("red", "apple", "left", "of", "car")), 16, 12).eval()
    torch.nn.init.zeros_(text.position)
    before = text.encode(["apple left of car", "car left of apple"]).features_BNC
    torch.testing.assert_close(before[0, 0], before[1, 3])  # one layer without positions: a bag of words
    torch.nn.init.normal_(text.neighbours.weight, std=0.3)
    after = text.encode(["apple left of car", "car left of apple"]).features_BNC
    assert (after[0, 0] - after[1, 3]).abs().max() > 0.1
    alone, beside_longer = (
        text.encode(["red apple", *more]).features_BNC[0, :2] for more in ([], ["red car left of car"])
    )
    torch.testing.assert_close(alone, beside_longer)


def test_a_table_comes_back_from_its_file(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "synonyms.json")
    assert Synonyms.load(tmp_path / "synonyms.json") == TABLE


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"format": "heatkv-synonyms", "version": 2}',
        '{"format": "heatkv-synonyms", "version": 1, "said": [], "styles": [], "colours": []}',
        '{"format": "heatkv-synonyms", "version": 1, "said": {"cat": [1]}, "styles": [], "colours": []}',
        '{"format": "heatkv-synonyms", "version": 1, "said": {"cat": ["kitty"]}, "styles": "noto", "colours": []}',
    ],
)  # fmt: skip
def test_a_broken_table_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "synonyms.json").write_text(text)
    with pytest.raises(SynonymsError):
        Synonyms.load(tmp_path / "synonyms.json")


def names_package(folder: Path) -> None:
    """A names package with a few emoji."""
    entries = [
        {"label": "automobile", "tags": ["car", "driving", "vehicle"], "hexcode": "1", "group": 5},
        {"label": "police car", "tags": ["car", "law"], "hexcode": "2", "group": 5},
        {"label": "bicycle", "tags": ["bike", "cycles"], "hexcode": "3", "group": 5},
        {"label": "person biking", "tags": ["bike", "sport"], "hexcode": "4", "group": data.GROUP_PEOPLE},
        {"label": "red heart", "tags": ["love"], "hexcode": "5", "group": data.GROUP_SYMBOLS},
        {"label": "flag: Peru", "tags": ["pe"], "hexcode": "6", "group": data.GROUP_FLAGS},
    ]
    codes = {"1": ["car", "red_car"], "3": "bike", "5": ["heart"], "6": ["peru"]}
    named = {entry["label"] for entry in entries}
    entries += [{"label": label, "hexcode": "f", "group": 4} for label in set(synonyms.BY_HAND.values()) - named]
    files = {"data.json": entries, **{f"shortcodes/{name}.json": codes for name in synonyms.SHORTCODES}}
    with tarfile.open(data.archive_path(folder, data.NAMES_PACKAGE), "w:gz") as archive:
        for name, value in files.items():
            content = json.dumps(value).encode()
            info = tarfile.TarInfo(f"package/en/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_the_table_is_derived_from_names_and_keywords(tmp_path: Path) -> None:
    names_package(tmp_path)
    phrases = synonyms.build(tmp_path).phrases
    assert phrases["car"] == phrases["red car"] == "automobile", "a shortcode goes before a keyword"
    assert phrases["bike"] == "bicycle", "things go before people"
    assert phrases["law"] == "police car" and phrases["sport"] == "person biking"
    assert phrases["heart"] == "red heart" == phrases["red heart"]
    assert "peru" not in phrases and "bicycle" not in phrases
    assert phrases["spaceship"] == "rocket", "by hand"
    assert synonyms.build(tmp_path) == synonyms.build(tmp_path)


def test_a_table_without_its_package_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"heatkv\.training data"):
        synonyms.build(tmp_path)


def test_the_bundled_model_understands_everyday_words() -> None:
    table = Synonyms.load(BUNDLED / "synonyms.json")
    config = json.loads((BUNDLED / "config.json").read_text())
    vocabulary = Vocabulary(tuple(config["text"]["words"]))
    assert {word for label in table.phrases.values() for word in label.split() if vocabulary.id(word) is None} == set()
    said = {
        "kitty": "cat face", "puppy": "dog face", "auto": "automobile", "bike": "bicycle", "plane": "airplane",
        "spaceship": "rocket", "green car": "green automobile", "apple": "red apple", "ufo": "flying saucer",
        "2 kitties on the grass": "two cat face on grass", "tree under the moon": "tree below crescent moon",
    }  # fmt: skip
    assert {prompt: " ".join(table.read(split_words(prompt), vocabulary)) for prompt in said} == said
    for prompts in ("scenes-calibration.txt", "scenes-evaluation.txt", "things.txt"):
        for line in (BUNDLED.parents[1] / "prompts" / prompts).read_text().splitlines():
            read, said_so = table.read(split_words(line), vocabulary), split_words(line)
            assert [vocabulary.id(w) for w in read] == [vocabulary.id(w) for w in said_so], "labels stay what they are"


def test_a_model_folder_brings_its_table(tmp_path: Path) -> None:
    from heatkv import load

    for name in BUNDLED.iterdir():
        if name.suffix in (".json", ".safetensors"):
            shutil.copy(name, tmp_path / name.name)
    assert load(tmp_path, "cpu").check_prompt("kitty") == "read as `cat face`"
    (tmp_path / "synonyms.json").unlink()
    with pytest.raises(PromptError, match="does not know `kitty`"):
        load(tmp_path, "cpu").check_prompt("kitty")
    (tmp_path / "synonyms.json").write_text("{}")
    with pytest.raises(ValueError, match=r"synonyms\.json"):
        load(tmp_path, "cpu")


def test_a_model_folder_from_before_words_knew_their_neighbours_is_read(tmp_path: Path) -> None:
    from heatkv import load
    from heatkv.models.bundled import save_folder

    torch.manual_seed(0)
    for reach in (0, 2):
        model = tiny_model()
        model.text = WordEncoder(Vocabulary(("red", "apple", "car")), 16, 8, reach=reach).eval()
        if model.text.neighbours is not None:
            torch.nn.init.normal_(model.text.neighbours.weight)
        folder = tmp_path / str(reach)
        save_folder(model, folder)
        config = json.loads((folder / "config.json").read_text())
        if not reach:
            del config["text"]["reach"]
            (folder / "config.json").write_text(json.dumps(config))
        read = load(folder, "cpu", "float32").text  # type: ignore[attr-defined]
        features = [text.encode(["red apple red car"]).features_BNC for text in (model.text, read)]
        torch.testing.assert_close(*features, atol=1e-2, rtol=1e-2)
    config["text"]["reach"] = -1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"reach is -1: it must be a whole number from 0 to 16"):
        load(folder, "cpu")


SCENE = Synonyms(
    {"car": "automobile", "blue car": "blue van", "apple": "red apple", "red apple": "red apple", "night": "stars",
     "bow": "ribbon", "archery": "bow and arrow"},
    ("red", "blue"), ("noto",),
    {"to the left of": "left of", "big": "large", "on the grass": "on grass", "next to": "and"},
    ("left", "of", "and", "on", "grass", "two", "large", "red", "blue", "at", "night"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("an apple to the left of a blue car", "red apple left of blue van"),
        ("two cars on the grass", "two automobile on grass"),
        ("blue apple and a big cat", "blue apple and large cat"),  # a thing in another colour than its label's
        ("cat at night", "cat at night"),  # not the picture of stars
        ("night", "stars"),  # alone it is a picture
        ("bow and arrow next to cat", "bow and arrow and cat"),  # a label with a word of scenes in it
        ("happy cat", "happy cat"),
    ],
)
def test_every_thing_of_a_scene_is_read_as_its_label(said: str, read: str) -> None:
    vocabulary = Vocabulary(tuple(sorted({w for text in (read, *SCENE.phrases.values()) for w in text.split()})))
    assert SCENE.read(split_words(said), vocabulary) == read.split()


def test_scene_words_survive_saving(tmp_path: Path) -> None:
    SCENE.save(tmp_path / "synonyms.json")
    assert Synonyms.load(tmp_path / "synonyms.json") == SCENE


def test_a_model_of_few_things_takes_what_people_say_for_those_alone() -> None:
    table = Synonyms({"kitty": "cat face", "auto": "automobile", "puppy": "dog"}, ("red",), grammar={"over": "above"})
    few = synonyms.for_things(table, ["cat face", "automobile"])
    assert few.phrases == {"cat": "cat face", "kitty": "cat face", "auto": "automobile", "automobile": "automobile"}
    assert few.grammar == table.grammar and few.colours == table.colours
