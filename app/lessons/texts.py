# ruff: noqa: E501  (sentences)
"""What the lessons say. Texts know no model; numbers are counted (`app.lessons.chosen`)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from app.cards import kinds_of
from app.charts import rows_of
from app.lessons.chosen import Chosen
from heatkv.views import budgets
from heatkv.views.counts import BUDGETS, CLOSE

if TYPE_CHECKING:
    from app.workbench import Workbench
    from heatkv.views.explore import HeadProfiles


@dataclass(frozen=True)
class Lesson:
    """One lesson: what it says, what it sets, what it asks, and what was counted. ``right`` is the index of an option."""

    title: str
    text: str
    view: Mapping[str, Any]
    question: str
    options: tuple[str, ...]
    right: int
    answer: str
    focus: str = "#stage .pictures"
    reveal: Mapping[str, Any] = field(default_factory=dict)  # what the reveal changes on the page
    hides_types: bool = False  # until somebody has guessed: the types of heads, which the page tells elsewhere

    def value(self) -> dict[str, Any]:
        return {**self.__dict__, "view": dict(self.view), "reveal": dict(self.reveal), "options": list(self.options)}


def lessons(
    bench: Workbench, chosen: Chosen, comparison: Mapping[str, Any], others: Sequence[tuple[Workbench, Chosen]] = ()
) -> list[dict[str, Any]]:
    """The lessons for a model, in order; plain values for the page. ``others`` are the models that are shown beside it."""
    profiles = bench.profiles(None)
    made = [_grows(bench, chosen)]
    if profiles is not None:
        made += [_look(bench, chosen, profiles), _name(bench, chosen, profiles)]
    if chosen.counts:
        made.append(_forget(bench, chosen))
    made.append(_arithmetic(bench, chosen))
    if chosen.counts:
        made += [_upside(bench, chosen), _low(bench, chosen, comparison), _importance(bench, chosen)]
        other_way = [
            pair for pair in others if pair[0].geometry.scales.word != bench.geometry.scales.word and pair[1].counts
        ]
        made += [_contrast(bench, chosen, *pair) for pair in other_way[:1]]
    return [lesson.value() for lesson in made]


def _closer(chosen: Chosen) -> str:
    """What counts as close, in words."""
    by_seed = chosen.counts["other_seed"] <= CLOSE
    return (
        "closer to the full one than another seed's picture" if by_seed else f"{CLOSE:g} dB or closer to the full one"
    )


def _view(bench: Workbench, chosen: Chosen, number: int | None = None, **more: Any) -> dict[str, Any]:
    """Settings of a lesson: a prompt of those that were counted on, by default one that moves, or the first example."""
    view: dict[str, Any] = {
        "budget": 100,
        "policy": next(iter(bench.policies())),
        "a": "",
        "mode": "side",
        "colour": "auto",
        "forget": "",
    }
    if chosen.counts:
        number = chosen.counts["moving"] if number is None else number
        view |= {"prompt": chosen.counts["prompts"][number], "seed": number}
    elif bench.examples:
        view |= {"prompt": bench.examples[0], "seed": 0}
    return view | more


def _option(value: float, *limits: float) -> int:
    """The index of the option that a counted value falls under: 0 below the first limit, and so on."""
    return sum(value >= limit for limit in limits)


def _grows(bench: Workbench, chosen: Chosen) -> Lesson:
    scales = bench.geometry.scales
    word, of = scales.word, len(scales.drawn)
    formed = chosen.counts.get("formed")
    counted = f"on average over {len(chosen.counts['prompts'])} prompts" if formed else ""
    back = "the model looks back at all earlier ones; what it needs for that stays in memory: the cache."
    if word == "scale":
        text = f"The picture is drawn {of} times, each time finer: {of} scales. While one is drawn, {back}"
        third, most = of // 3, 2 * of // 3
        options = (f"{third} or fewer", f"{third + 1} to {most}", f"more than {most}")
        question = f"After how many scales is it {_closer(chosen) if formed else 'nearly there'}?"
        right = 1 if formed is None else _option(formed, third + 0.5, most + 0.5)
        answer = "" if formed is None else f"After scale {formed:.1f} of {of} {counted} it is {_closer(chosen)}. "
    else:
        text = f"The picture is drawn row by row from the top, in {of} lines. While one is drawn, {back}"
        question, right = "What does the model know of the rows further down?", 0
        options = ("nothing yet", "their rough colours", "a small picture of them")
        answer = "Nothing: they are not drawn yet, and it goes by the words and the lines above alone. "
        answer += (
            f"So the picture is {_closer(chosen)} only after line {formed:.1f} of {of} {counted}. " if formed else ""
        )
    return Lesson(
        "How a picture grows", text, _view(bench, chosen, budget=100), question, options, right,
        f"{answer}The small pictures below show it after every {word}: choose one to see it large.", "#stage .steps",
    )  # fmt: skip


def _look(bench: Workbench, chosen: Chosen, profiles: HeadProfiles) -> Lesson:
    kinds = kinds_of(bench.geometry.scales)
    counts = Counter(kinds.types[i] for i in kinds.of(profiles).flat)
    first, total, word = counts.most_common(1)[0][0], profiles.type_LH.size, bench.geometry.scales.word
    names = [kind for kind, _ in counts.most_common(3)]
    order = sorted(names)
    return Lesson(
        "Where heads look",
        f"The model looks back with many small parts, its heads: {bench.geometry.layers} layers of {bench.geometry.heads}. On "
        f"the map a row is a head and a column an earlier {word}. Orange: the head looks there more than evenly. Blue: less. The "
        f"{word} being drawn has no column: a row that is blue all over looks at its own {word}.",
        _view(bench, chosen, budget=100, colour="attention"),
        "What do most heads do?",
        tuple(kinds.names[kind] for kind in order),
        order.index(first),
        f"Of {total} heads: "
        + "; ".join(f"{kinds.names[kind]}: {n}" for kind, n in counts.most_common())
        + f". Counted over the {profiles.prompts} prompts of the calibration.",
        "#headmap .levels",
        hides_types=True,
    )


def _name(bench: Workbench, chosen: Chosen, profiles: HeadProfiles) -> Lesson:
    kinds = kinds_of(bench.geometry.scales)
    layer, head = profiles.showcase
    kind = kinds.types[kinds.of(profiles)[layer, head]]
    options = sorted({kind, *[other for other in kinds.types if other not in (kind, "spread")][:3]})
    share = profiles.share_LHG[layer, head]
    best = int((share - profiles.even_G).argmax())
    return Lesson(
        "Name that head",
        f"The frame is around layer {layer + 1}, head {head + 1}. Read its row from left (early) to right (late).",
        _view(bench, chosen, budget=100, colour="attention", head=[layer, head]),
        "What does it look at?",
        tuple(kinds.names[name] for name in options),
        options.index(kind),
        f"It {kinds.names[kind]}: {100 * share[best]:.0f} % of its attention there, where an even head would spend "
        f"{100 * profiles.even_G[best]:.0f} %. Mean over {profiles.prompts} prompts.",
        "#headmap .detail",
        hides_types=True,
    )


def _forget(bench: Workbench, chosen: Chosen) -> Lesson:
    found, worst = [tuple(pair) for pair in chosen.counts["strongest"]], chosen.counts["worst"]
    ((layer, head), times), *others = Counter(found).most_common(2)
    alone = not others or others[0][1] < times
    if not alone:  # no head of the model's, then: that of the picture shown
        layer, head = found[0]
    whose = "this model's pictures lean" if alone else "this picture leans"
    layers, of = bench.geometry.layers, chosen.counts["knocked"]
    third = min(2, 3 * layer // layers)
    most = max(moved for pair, moved in zip(found, worst, strict=True) if pair == (layer, head))
    moved = (
        f"it moved the picture most in {times} of {of} prompts, by up to {most:.0f} of 255"
        if alone
        else f"it moved this picture most, by {worst[0]:.0f} of 255. In other prompts it was another one"
    )
    return Lesson(
        "Forget one",
        f"Somewhere among these heads is the one that {whose} on most. Choose a layer on the left of the map, a head on its right, and press "
        "H (or Forget, head, below the map): it forgets everything, and picture B is drawn without its memory. Undo takes it back.",
        _view(bench, chosen, 0, budget=100, colour="attention"),
        f"In which layers is the head that matters most{'' if alone else ' here'}?",
        ("the first ones", "the middle ones", "the last ones"),
        third,
        f"Layer {layer + 1}, head {head + 1}: of {layers * bench.geometry.heads} heads, each knocked out in turn, {moved}. "
        "It is forgotten in B now.",
        "#headmap .levels",
        {"forget": f"{layer + 1}.{head + 1}", "head": [layer, head]},
    )


def _arithmetic(bench: Workbench, chosen: Chosen) -> Lesson:
    preset = budgets.choose_preset("infinity-8b")
    geometry = preset.geometry
    gib = geometry.full_peak_tokens * budgets.OURS["bfloat16"].bytes_per_token(geometry, 1) / 2**30
    own = bench.geometry.full_peak_tokens * bench.bytes_per_token / 2**20
    options = (gib / 10, gib, gib * 10)
    return Lesson(
        "What the memory costs",
        f"This small model's cache takes {own:.1f} MiB a picture. Infinity-8B draws 1024 × 1024 with {geometry.layers} layers of "
        f"{geometry.heads} heads, and holds {geometry.full_peak_tokens // geometry.head_count} tokens in each.",
        _view(bench, chosen, budget=35),
        "How much does its full cache take for one picture, in 16 bits?",
        tuple(f"{value:.1f} GiB" for value in options),
        1,
        f"{geometry.head_count} heads × {geometry.full_peak_tokens // geometry.head_count} tokens × {geometry.head_dim} numbers × 2 (keys, "
        f"values) × 2 bytes × 2 (with and without the prompt) = {gib:.1f} GiB. At 10 % it is {gib / 10:.2f} GiB. See Published models.",
        "#dial",
    )  # fmt: skip


def _upside(bench: Workbench, chosen: Chosen) -> Lesson:
    of, count = len(chosen.counts["prompts"]), chosen.counts["upright"]
    percent = max(round(100 * chosen.counts["small"]), bench.percents("heatkv")[0])
    half = math.ceil(5 / 8 * of)
    most = max(half + 1, math.ceil(7 / 8 * of))
    return Lesson(
        "Ranked right, and upside down",
        f"A and B hold the same number of bytes: {percent} %. In A every head forgets what it looks at least. In B it is upside "
        "down: the heads that look at something most forget it first. The prompt was chosen because it shows here.",
        _view(bench, chosen, chosen.counts["clearest"], budget=percent, policy="reverse", a=f"heatkv~{percent}"),
        "In how many prompts is the right ranking closer to the full picture?",
        (f"fewer than {half} of {of}", f"{half} to {most - 1}", f"{most} or more"),
        _option(count, half, most),
        f"In {count} of {of}, by {chosen.counts['upright_db']:.1f} dB on average. So the ranking knows something, even where the "
        "eye can not tell.",
    )  # fmt: skip


def _low(bench: Workbench, chosen: Chosen, comparison: Mapping[str, Any]) -> Lesson:
    of, count, least = len(chosen.counts["prompts"]), chosen.counts["held"][-1], round(100 * chosen.counts["least"])
    share = count / of
    percent = max(least, bench.percents("heatkv")[0])
    more = _measured(comparison, percent)
    ask = "Does B still look like A? Difference shows it. Then" if share >= 0.75 else "Look what B has lost, then"
    why = (
        "A model that is handed the sum of all earlier scales with every new one has less to remember than it stores."
        if bench.geometry.scales.word == "scale"
        else "A model that draws line by line knows only what its cache holds."
    )
    return Lesson(
        "How low can it go?",
        f"At {percent} % HeatKV has room for little more than what it always keeps. {ask} drag the slider up and watch B come nearer.",
        _view(bench, chosen, budget=percent),
        f"How often is such a picture still {_closer(chosen)}?",
        ("hardly ever", "about half the time", "three times of four, or more"),
        _option(share, 0.25, 0.75),
        f"In {count} of {of} prompts.{more} {why}",
        "#dial",
    )  # fmt: skip


def _measured(comparison: Mapping[str, Any], percent: int) -> str:
    """What the bundled comparison has of HeatKV and HeatKV+ near a budget, in a sentence; nothing where it has none."""
    psnr = {(row["policy"], row["budget"]): row["psnr"] for row in rows_of(comparison, "psnr")}
    off = {
        budget: abs(100 * budget - percent)
        for policy, budget in psnr
        if policy == "heatkv" and ("heatkv+", budget) in psnr
    }
    if not off or min(off.values()) > 2:
        return ""
    budget = min(off, key=off.__getitem__)
    return (
        f" Over {comparison.get('prompts')} other prompts, at {100 * budget:g} %: HeatKV {psnr['heatkv', budget]:.1f} dB, HeatKV+ "
        f"{psnr['heatkv+', budget]:.1f} dB."
    )


def _importance(bench: Workbench, chosen: Chosen) -> Lesson:
    agree = chosen.counts["agree"]
    mean = sum(agree) / len(agree)
    return Lesson(
        "Attention is not importance",
        "The map's colours say where heads look. Above it are other colours. Knock-out says how far this picture moves when a "
        "head forgets everything: measured, with a picture for every head.",
        _view(bench, chosen, 0, budget=100, colour="attention"),
        "Do the heads that look back most matter most?",
        ("yes, mostly", "only somewhat", "no"),
        2 - _option(mean, 0.2, 0.6),
        f"Rank correlation of looking back and knock-out: {', '.join(f'{value:.2f}' for value in agree)} in {len(agree)} prompts (1 would be "
        "the same order, 0 none). That is why HeatKV+ ranks by what outputs lose.",
        "#headmap .choice",
        {"colour": "knockout", **({"knocked": shown} if (shown := chosen.counts.get("moved")) else {})},
    )  # fmt: skip


def _contrast(bench: Workbench, chosen: Chosen, other: Workbench, its: Chosen) -> Lesson:
    """How much memory each way of drawing needs; ``other`` is a model of the other way, shown too."""
    word = bench.geometry.scales.word
    shares = [np.mean([n / len(c.counts["prompts"]) for n in c.counts["held"]]) for c in (chosen, its)]
    frail = shares.index(min(shares)) if abs(shares[0] - shares[1]) > 0.1 else 2
    budgets_named = ", ".join(f"{100 * b:g}" for b in BUDGETS[:-1]) + f" and {100 * BUDGETS[-1]:g} %"

    def held(bench: Workbench, chosen: Chosen) -> str:
        counts = ", ".join(str(n) for n in chosen.counts["held"])
        near = f"{min(chosen.counts['other_seed'], CLOSE):.0f} dB or closer"
        return (
            f"{bench.model.id}, by {bench.geometry.scales.word}s: {counts} of {len(chosen.counts['prompts'])} ({near})"
        )

    return Lesson(
        "By scales and by lines",
        f"A model that draws by scales is handed the sum of all it has drawn with every new scale. One that draws by lines is "
        f"handed a single token; all else it knows is in its cache. This one draws by {word}s, {other.model.id} by "
        f"{other.geometry.scales.word}s: the menu at the top opens this lesson with it.",
        _view(bench, chosen, budget=max(round(100 * BUDGETS[1]), bench.percents("heatkv")[0])),
        "Which way of drawing needs more of its memory?",
        (f"by {word}s", f"by {other.geometry.scales.word}s", "both the same"),
        frail,
        f"Pictures that stay close to the full one, at {budgets_named} of the memory. "
        f"{held(bench, chosen)}; {held(other, its)}. Two small models, trained alike but not the same: the way of drawing is not all "
        "that differs.",
        "#dial",
    )  # fmt: skip
