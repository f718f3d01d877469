"""Command lines with one or two arguments that nobody should pass."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from world import World, mutated_bytes, mutated_json

NUMBERS = [
    "nan", "inf", "-inf", "-1", "0", "1", "2", "1e400", "1e-320", "99999999999999999999", "9" * 5000, "", "abc", "0x10",
    "1,2", "٣", "½", "1_000", " 1 ", "--", "1e9", "100000", "1000000000", "0.5", "true", "\x1b[31m",
]  # fmt: skip
TEXTS = [
    "", " ", "\x00", "a\x00b", "\udcff", "x" * 100_000, "apple\n" * 50, "\x1b[2J", "zebra", "🦊 red apple", "../..",
    "%s", "$(id)", "red apple", "\u202eapple", "é" * 600, "__import__('os')",
]  # fmt: skip
NAMES = [
    "", " ", "nope", "pocket,", ",", "infinity-2b:9M", "infinity-2b:1M:nan", "infinity-2b:1M:0:0", "var-d16:1M", "..",
    ".", "/", "\x00", "a" * 5000, "pocket/../pocket", "infinity-2b:", ":1M", "heatkv", "🦊", "infinity-8b::",
]  # fmt: skip
DEVICES = ["meta", "hpu", "privateuseone", "cuda", "cuda:99", "cpu:1", "mps", "xla", "", "vulkan", "cpu", "\x00", "tpu"]
POLICIES = ["", "nope", "full", "all", "heatkv,nope", ",", "HEATKV", "heatkv+", "headkv", "x" * 3000]
IMPOSSIBLE = [{}, {"transformer": None}, {"scales": None}, {"scales": [[1, 1]] * 10**5}, {"version": 2}]
CONFIG = {
    "heads": 0, "depth": 10**6, "width": -4, "rope_grid": [], "width_mult": [], "scales": [[1e400, 1]], "max_scales": 1,
}  # fmt: skip

Command = dict[str, str]
Make = Callable[[random.Random, World, Path], str]


def commands(world: World) -> list[tuple[str, Command]]:
    """Commands that succeed."""
    good = {name: str(path) for name, path in world.good.items()}
    model, out = {"--model": good["model"]}, str(world.out / "out")
    planned = {"--scores": good["scores"], "--budget": "0.5", "--out": out}
    return [
        ("generate", {**model, "--prompt": "red apple", "--out": out}),
        ("generate", {**model, "--prompt": "red apple", "--budget": "0.5", "--policy": "headkv", "--out": out}),
        ("generate", {**model, "--prompt": "red apple", "--schedule": good["schedule"], "--out": out}),
        ("generate", {"--model": good["var"], "--prompt": "3", "--seed": "2", "--out": out}),
        ("calibrate", {**model, "--prompts": good["prompts"], "--seed": "0", "--batch": "1", "--out": out}),
        ("plan", {**planned, "--policy": "heatkv", "--sink-scales": "2", "--seed": "0"}),
        ("plan", {"--orders": good["orders"], "--model": good["model"], "--budget": "0.6", "--out": out}),
        ("compare", {**model, "--prompts": good["prompts"], "--budgets": "0.6", "--policies": "heatkv,random",
                     "--seeds": "1", "--random-orders": "1", "--batch": "2", "--out": out}),
        ("bench", {**model, "--budgets": "1,0.5", "--batch": "1", "--repeats": "1"}),
        ("models", {}),
    ]  # fmt: skip


def any_path(rng: random.Random, world: World, scratch: Path) -> str:
    return str(rng.choice(world.hostile))


def mutated_file(rng: random.Random, source: Path, scratch: Path) -> str:
    target = scratch / source.name
    data = source.read_bytes()
    target.write_bytes(mutated_json(data.decode(), rng) if source.suffix == ".json" else mutated_bytes(data, rng))
    return str(target)


def mutated_folder(rng: random.Random, source: Path, scratch: Path) -> str:
    """A copy of a model folder with one file changed, emptied, removed, or its configuration made impossible."""
    target = scratch / source.name
    shutil.copytree(source, target)
    names = sorted(path.name for path in target.iterdir())
    path = target / rng.choice(["config.json", *names])
    kind = rng.randrange(6)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.write_bytes(b"")
    elif path.name == "config.json" and kind <= 3:
        config = json.loads(path.read_text())
        name = rng.choice(list(CONFIG))
        for part in (config, config.get("transformer", {}), config.get("autoencoder", {})):
            if name in part:
                part[name] = CONFIG[name]
        config |= rng.choice(
            [{}, {"transformer": None}, {"scales": None}, {"scales": [[1, 1]] * 10**5}, {"version": 2}]
        )
        path.write_text(json.dumps(config))
    elif path.suffix == ".pth" and kind <= 4:
        state = torch.load(path, weights_only=True)
        key = rng.choice(list(state))
        huge = torch.zeros(1).expand(10**5, 10**5)
        changed = [torch.tensor(1.0), torch.zeros(0), torch.full_like(state[key], torch.nan), huge]
        more = {"quantize.quant_resi.9999999.weight": torch.zeros(1)}
        state |= rng.choice([more, *({key: tensor} for tensor in changed)])
        if rng.randrange(3) == 0:
            del state[key]
        torch.save(state, path)
    else:
        mutated_file(rng, path, scratch)
        shutil.move(scratch / path.name, path)
    return str(target)


def hostile_value(option: str, value: str, rng: random.Random, world: World, scratch: Path) -> str:
    """Something else for an option."""
    if option in ("--model",):
        sources = [world.good["model"], world.good["var"]]
        if rng.random() < 0.65:
            return mutated_folder(rng, rng.choice(sources), scratch)
        return rng.choice([*NAMES, any_path(rng, world, scratch)])
    if option in ("--scores", "--schedule", "--orders", "--prompts"):
        if rng.random() < 0.6:
            return mutated_file(rng, Path(value), scratch)
        return any_path(rng, world, scratch)
    if option == "--out":
        return any_path(rng, world, scratch)
    if option == "--prompt":
        return rng.choice(TEXTS)
    if option in ("--policy", "--policies"):
        return rng.choice(POLICIES)
    if option == "--device":
        return rng.choice(DEVICES)
    return rng.choice(NUMBERS)


def make_case(number: int, seed: int, world: World, scratch: Path) -> list[str]:
    """Arguments of a case; the same for the same number and seed. ``scratch`` is an empty folder for its files."""
    rng = random.Random(f"{seed}-{number}")
    name, good = rng.choice(commands(world))
    options = dict(good)
    if name not in ("plan", "models") and rng.random() < 0.2:
        options["--device"] = "cpu"
    for option in rng.sample(list(options), min(len(options), rng.choice((1, 1, 2)))):
        options[option] = hostile_value(option, options[option], rng, world, scratch)
    arguments = [name, *(word for pair in options.items() for word in pair)]
    extra = rng.randrange(12)
    if extra == 0:
        arguments.insert(rng.randrange(len(arguments) + 1), rng.choice([*TEXTS, "--no-such", "-", "--json=1"]))
    if extra == 1 and len(arguments) > 1:
        del arguments[rng.randrange(1, len(arguments))]
    if extra in (2, 3):
        arguments.append("--json")
    return arguments
