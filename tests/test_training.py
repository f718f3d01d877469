"""Training: both stages run, resume where they stopped, and end in a model folder that generates."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from heatkv import generate, load
from heatkv.models.infinity.autoencoder import AutoencoderConfig, BitQuantizer
from heatkv.models.infinity.words import Vocabulary
from heatkv.models.llamagen.transformer import LlamaGenConfig
from heatkv.scales import ScaleSchedule
from heatkv.training import __main__ as main_module
from heatkv.training import codebook, data, export, lines, loop, pool, restore, scenes, sheet, tokenizer, transformer
from heatkv.training.codebook import CodebookRun
from heatkv.training.lines import LinesRun
from heatkv.training.tokenizer import TokenizerRun
from heatkv.training.transformer import TeacherForcing, TransformerRun

CPU = torch.device("cpu")
SIDES = (1, 2, 3, 8)
SIZE: dict[str, Any] = {"side": 32, "scales": SIDES, "stride": 4, "width_mult": (1, 2), "patch": 2, "base_width": 8}
BITS = TokenizerRun(steps=4, batch=2, evaluate_every=2, **SIZE)
SMALL = TransformerRun(
    steps=4, grow=2, widen=3, batch=2, short_batch=3, short_scales=3, full_every=2, pool=8,
    start=4, fresh=2, depth=2, width=64, heads=4, evaluate_every=2, samples=0, compile=False,
)  # fmt: skip
CODES = CodebookRun(
    side=32, base_width=8, patch=2, vocabulary=16, warm=1, freeze=2, steps=4, batch=2, crop=16,
    evaluate_every=2,
)  # fmt: skip
LINES = LinesRun(
    steps=4,
    grow=2,
    widen=3,
    batch=2,
    pool=8,
    start=4,
    fresh=2,
    depth=1,
    width=32,
    heads=2,
    evaluate_every=2,
    compile=False,
)


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    rng = np.random.default_rng(0)
    labels = [f"thing{i}" for i in range(90)] + ["red apple", "cat face"]
    emoji = tuple(
        data.Emoji(label, ("tag", "round"), style, f"{i:x}", 3)
        for i, label in enumerate(labels)
        for style in data.STYLES
    )
    return data.Dataset(rng.integers(0, 256, (len(emoji), 32, 32, 4), dtype=np.uint8), emoji)


@pytest.fixture(scope="module")
def trained(dataset: data.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four stages, each interrupted once and resumed."""
    folder = tmp_path_factory.mktemp("run")
    shown = scenes.Scenes(dataset)
    for stop in (2, None):
        tokenizer.train(shown, folder, BITS, CPU, stop)
        codebook.train(shown, folder, CODES, CPU, stop)
    vq, _ = codebook.load_trained(folder / "codebook.pt")
    for stop in (2, None):
        transformer.train(dataset, folder, SMALL, CPU, stop)
        lines.train(dataset, vq, 32, folder, LINES, CPU, stop)
    return folder


def test_stages_resume_from_their_checkpoints(trained: Path) -> None:
    for name in ("tokenizer.pt", "transformer.pt", "codebook.pt", "lines.pt"):
        state = loop.load_checkpoint(trained / name)
        assert state["step"] == 4
        assert [entry["step"] for entry in state["history"]] == [2, 4]


def test_resuming_gives_the_weights_of_an_uninterrupted_run(
    dataset: data.Dataset, trained: Path, tmp_path: Path
) -> None:
    shown = scenes.Scenes(dataset)
    for train in (tokenizer.train, codebook.train):
        train(shown, tmp_path, BITS if train is tokenizer.train else CODES, CPU)  # type: ignore[arg-type]
    transformer.train(dataset, tmp_path, SMALL, CPU)
    vq, _ = codebook.load_trained(tmp_path / "codebook.pt")
    lines.train(dataset, vq, 32, tmp_path, LINES, CPU)
    for stage in ("tokenizer.pt", "codebook.pt", "transformer.pt", "lines.pt"):
        resumed, straight = (loop.load_checkpoint(folder / stage)["model"] for folder in (trained, tmp_path))
        for name, value in straight.items():
            torch.testing.assert_close(resumed[name], value, atol=1e-3, rtol=1e-2, msg=f"{stage} {name}")


def test_a_frozen_codebook_keeps_encoder_and_codes_while_the_decoder_learns(
    dataset: data.Dataset, trained: Path, tmp_path: Path
) -> None:
    """Tokens that a transformer learned from mean the same ever after."""
    (tmp_path / "codebook.pt").write_bytes((trained / "codebook.pt").read_bytes())
    longer = replace(CODES, steps=6)
    before, _ = codebook.load_trained(tmp_path / "codebook.pt")
    codebook.train(scenes.Scenes(dataset), tmp_path, longer, CPU)
    after, state = codebook.load_trained(tmp_path / "codebook.pt")
    assert state["step"] == 6
    moved = {n.split(".")[0] for n, p in after.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert moved == {"decoder"}


def test_the_code_of_a_cell_follows_from_its_own_pixels() -> None:
    """So that a thing that moves by cells is written in the same codes, and a plain page in one."""
    torch.manual_seed(0)
    vq = codebook.new_model(CODES.config)
    for parameter in vq.encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.rand(1, 3, 32, 32)
    moved = x.roll((CODES.config.stride, 2 * CODES.config.stride), (2, 3))
    cells = vq.encode(x)
    torch.testing.assert_close(vq.encode(moved), cells.roll((1, 2), (2, 3)))
    assert (cells.flatten(2).std(-1) > 0.01).all(), "not all cells are alike"


def test_codes_that_nobody_uses_move_to_where_they_are_needed() -> None:
    torch.manual_seed(0)
    vq = codebook.new_model(CODES.config)
    moving = codebook.MovingCodes(vq.quantize, dead=0.5)
    cells = torch.nn.functional.normalize(torch.randn(400, 8), dim=1)
    generator = torch.Generator().manual_seed(0)
    moving.start(cells[:1].repeat(16, 1), generator)  # all codes in one place
    for _ in range(60):
        moving.update(cells, (cells @ vq.quantize.directions_Vc.T).argmax(1), revive=generator)
    used = (cells @ vq.quantize.directions_Vc.T).argmax(1).unique()
    assert len(used) == 16
    assert (cells @ vq.quantize.directions_Vc.T).max(1).values.mean() > 0.6


def test_the_exported_lines_generate(trained: Path, tmp_path: Path) -> None:
    export.export_lines(trained, tmp_path / "l", "l")
    model = load(tmp_path / "l", "cpu")
    image = generate(model, "red apple", 1)
    assert image.pixels.shape == (32, 32, 3) and image.model == "l"


def test_the_model_by_lines_knows_the_words_of_what_it_was_shown(trained: Path, dataset: data.Dataset) -> None:
    text, _, state = lines.load_trained(trained / "lines.pt")
    course = scenes.Course(dataset, LINES.grow, LINES.widen, LINES.steps)
    assert set(text.vocabulary.words) == course.last.words and state["things"] == sorted(course.last.shown)
    plain = scenes.Course(dataset, grow=5, widen=6, steps=4)
    assert plain.things == ["cat face", "red apple"]
    assert {"cat", "grass", "left"} <= set(plain.vocabulary.words) and "tag" not in plain.vocabulary.words


def test_the_exported_folder_generates(trained: Path, tmp_path: Path) -> None:
    export.export(trained, tmp_path / "m", "m")
    model = load(tmp_path / "m", "cpu")
    assert max(p.stat().st_size for p in (tmp_path / "m").iterdir()) < 10_000_000
    image = generate(model, "red apple", 1)
    assert image.pixels.shape == (32, 32, 3) and image.model == "m"
    export.calibrate_bundled(model, ["cat face"], tmp_path / "m")
    sheet.sample_sheet(model, ["red apple", "cat face"], [0, 1], tmp_path / "sheet.png", columns=2)
    with Image.open(tmp_path / "sheet.png") as page:
        assert page.size == (2 * (2 * 129 + 6), 128 + 20)


@pytest.mark.parametrize("by_line", [False, True])
def test_training_goes_on_from_a_model_folder_and_what_was_kept(
    dataset: data.Dataset, trained: Path, tmp_path: Path, by_line: bool
) -> None:
    """The restored weights write the same codes, say the same of them, and learn on."""
    (export.export_lines if by_line else export.export)(trained, tmp_path / "m", "m")
    restore.keep(trained, by_line, tmp_path / "kept.safetensors")
    first, second = restore.restore(tmp_path / "m", tmp_path / "kept.safetensors", tmp_path / "run")
    picture = tokenizer.draw_batch(scenes.Scenes(dataset), 3, 2, CPU)
    for name in (first.name, second.name):
        old, new = (loop.load_checkpoint(folder / name) for folder in (trained, tmp_path / "run"))
        assert new["step"] == 4 and new["history"] == old["history"][-1:]
        assert new["average"].keys() == old["average"].keys()
        assert {k: v for k, v in new.items() if k in ("words", "things")} == {
            k: v for k, v in old.items() if k in ("words", "things")
        }
    with pytest.raises(ValueError, match="is there already"):
        restore.restore(tmp_path / "m", tmp_path / "kept.safetensors", tmp_path / "run")
    shard = next((tmp_path / "m").glob("model-*.safetensors"))
    with pytest.raises(ValueError, match=r"lacks encoder\.\S+.* and \d+ more: it is not of this model"):
        restore.restore(tmp_path / "m", shard, tmp_path / "another")
    if by_line:
        codes = [
            codebook.reconstruct(codebook.load_trained(f / "codebook.pt")[0], picture)[1]
            for f in (trained, first.parent)
        ]
        assert (codes[0] == codes[1]).float().mean() > 0.95
        longer = codebook.train(scenes.Scenes(dataset), first.parent, replace(CODES, steps=5), CPU)
        vq, _ = codebook.load_trained(longer)
        lines.train(dataset, vq, 32, second.parent, replace(LINES, steps=5), CPU)
    else:
        latents = [tokenizer.load_trained(f / "tokenizer.pt").encode(picture) for f in (trained, first.parent)]
        torch.testing.assert_close(*latents, atol=1e-2, rtol=1e-2)
        tokenizer.train(scenes.Scenes(dataset), first.parent, replace(BITS, steps=5), CPU)
        transformer.train(dataset, second.parent, replace(SMALL, steps=5), CPU)
    assert loop.load_checkpoint(second)["step"] == 5


def test_a_checkpoint_of_another_shape_is_not_resumed(dataset: data.Dataset, trained: Path) -> None:
    with pytest.raises(ValueError, match=r"trained with base_width 8, not 16: use its settings or another folder"):
        tokenizer.train(scenes.Scenes(dataset), trained, replace(BITS, base_width=16), CPU)
    with pytest.raises(ValueError, match=r"trained with base_width 8, not 16"):
        codebook.train(scenes.Scenes(dataset), trained, replace(CODES, base_width=16), CPU)
    with pytest.raises(ValueError, match=r"trained with heads 4, not 2"):  # in matrices of the same shape
        transformer.train(dataset, trained, replace(SMALL, heads=2), CPU)
    vq, _ = codebook.load_trained(trained / "codebook.pt")
    renamed = (replace(dataset.emoji[0], label="another"), *dataset.emoji[1:])
    with pytest.raises(ValueError, match=r"lines\.pt was trained with other words"):
        lines.train(replace(dataset, emoji=renamed), vq, 32, trained, LINES, CPU)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"side": 64}, "make pictures of 128 pixels, not 64"),
        ({"stride": 16, "side": 256}, "--width-mult needs 3 values"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(settings: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TokenizerRun(**settings)


def test_training_lowers_the_loss(dataset: data.Dataset, trained: Path) -> None:
    """Overfit one tiny batch: gradients reach what they should."""
    autoencoder = tokenizer.load_trained(trained / "tokenizer.pt")
    torch.manual_seed(0)
    course = scenes.Course(dataset, SMALL.grow, SMALL.widen, SMALL.steps)
    scales = autoencoder.quantizer.scales
    model = transformer.new_model(course.vocabulary, scales, 16, len(course.things), SMALL)
    latents = torch.nn.functional.normalize(torch.randn(2, 16, 8, 8), dim=1)
    codes, bits = transformer.teacher_inputs(autoencoder.quantizer, latents, 3, 0.0, torch.Generator())
    cache = TeacherForcing(scales, 3, CPU)
    ids = transformer.word_ids(model.text, ["red apple", "cat face"])
    optimizers = transformer.make_optimizers(model, SMALL)
    losses = []
    for _ in range(30):
        logits, _ = model(ids, torch.zeros(2, dtype=torch.bool), codes, cache)
        loss = transformer.bit_loss(logits, bits, scales, 3)
        loss.backward()
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    unused = [n for n, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    assert not unused


def test_tokens_of_a_scale_differ_by_their_place_alone(dataset: data.Dataset, trained: Path) -> None:
    scales = tokenizer.load_trained(trained / "tokenizer.pt").quantizer.scales
    course = scenes.Course(dataset, SMALL.grow, SMALL.widen, SMALL.steps)
    torch.manual_seed(0)
    model = transformer.new_model(course.vocabulary, scales, 16, len(course.things), SMALL)
    ids, blank = transformer.word_ids(model.text, ["red apple"]), torch.zeros(1, sum(scales.tokens) - 1, 16)
    cache = TeacherForcing(scales, len(scales), CPU)
    first, end = scales.bounds[1]

    def apart() -> float:
        """How far the guesses for two tokens are from one another, where nothing is seen."""
        _, things = model(ids, torch.tensor([False]), blank, cache)
        return float((things[0, first] - things[0, end - 1]).detach().abs().max())

    assert apart() > 1e-3
    assert model.transformer.place_embed is not None
    torch.nn.init.zeros_(model.transformer.place_embed.weight)
    assert apart() < 1e-6, "an untrained model has no other way to tell them"


def test_what_covers_a_cell_is_asked_for_on_all_but_the_coarsest_maps() -> None:
    scales = ScaleSchedule.square((1, 2, 4, 8))
    covered = torch.zeros(1, 8, 8, dtype=torch.long)
    covered[:, :4, 4:] = 2  # the upper right quarter
    wanted = [torch.zeros(1, h, w, dtype=torch.long) for h, w in scales]
    for h, quarter in zip((1, 2, 4, 8), wanted, strict=True):
        quarter[:, : h // 2, h - h // 2 :] = 2
    batch = pool.Batch(covered, ["mushroom"], covered)
    right = torch.nn.functional.one_hot(torch.cat([q.flatten(1) for q in wanted], 1), 4) * 100.0
    every = slice(None)
    assert transformer.thing_loss(right, batch, scales, 4, every) < 1e-6
    coarse = right.clone()
    coarse[:, :1] = 0
    assert transformer.thing_loss(coarse, batch, scales, 4, every) < 1e-6, "nothing is asked of the map of one token"
    assert transformer.thing_loss(right.flip(1), batch, scales, 4, every) > 1
    assert transformer.thing_loss(right[:, :21], batch, scales, 3, every) < 1e-6
    two = pool.Batch(covered.repeat(2, 1, 1), ["mushroom"] * 2, torch.cat([covered, 0 * covered]))
    both = torch.cat([right, right])
    assert transformer.thing_loss(both, two, scales, 4, slice(1)) < 1e-6
    assert transformer.thing_loss(both, two, scales, 4, slice(1, None)) > 1


def quantizer() -> BitQuantizer:
    config = AutoencoderConfig(base_width=8, width_mult=(1,), bits=4, stride=1, steps=(0.6, 0.4, 0.3))
    return BitQuantizer(ScaleSchedule.square((1, 2, 4)), config)


def test_unflipped_teacher_inputs_are_what_generation_would_see() -> None:
    q = quantizer()
    latent = torch.randn(3, 4, 4, 4)
    inputs, targets = transformer.teacher_inputs(q, latent, 3, 0.0, torch.Generator())
    bits, _ = q.quantize(latent)
    assert torch.equal(targets, torch.cat(bits, 1))
    total = torch.zeros(3, 4, 4, 4)
    expected = []
    for k in (0, 1):
        total = total + q.upsample(q.code(bits[k], k))
        expected.append(q.next_input(total, k + 1))
    torch.testing.assert_close(inputs, torch.cat(expected, 1))


def test_flipped_bits_are_corrected_by_later_targets() -> None:
    q = quantizer()
    latent = torch.randn(3, 4, 4, 4)
    generator = torch.Generator().manual_seed(0)
    _, clean = transformer.teacher_inputs(q, latent, 3, 0.0, generator)
    _, repaired = transformer.teacher_inputs(q, latent, 3, 0.9, generator)
    assert torch.equal(clean[:, :1], repaired[:, :1]), "the first scale's target does not depend on flips"
    assert not torch.equal(clean[:, 1:], repaired[:, 1:])


def test_forgetting_takes_up_to_a_share_of_half_of_the_rows() -> None:
    forgotten = loop.forgotten(420, 200, 0.5, 20, torch.Generator().manual_seed(0))
    assert forgotten[:20].all(), "of these nothing is seen"
    share = forgotten[20:].float().mean(1)
    assert 0.4 < (share > 0).float().mean() < 0.55
    assert share.max() < 0.65 and 0.2 < share[share > 0].mean() < 0.3


def test_a_forgotten_token_is_not_seen_by_those_after_it(trained: Path) -> None:
    state = loop.load_checkpoint(trained / "lines.pt")
    config = LlamaGenConfig(**state["config"])
    model = lines.TextToTokens(
        Vocabulary(tuple(state["words"])), config, state["average"]["codes_Vc"], len(state["things"])
    )
    model.load_state_dict(state["average"])
    torch.manual_seed(0)
    for weight in model.transformer.parameters():
        torch.nn.init.normal_(weight, std=0.1)  # after four steps from zeros nothing is read from anywhere
    tokens = torch.randint(config.vocabulary, (1, config.image_tokens))
    cache = lines.TeacherForcing(config.condition_tokens, config.condition_tokens + config.image_tokens - 1, CPU)
    other = tokens.clone()
    other[0, 3] = (tokens[0, 3] + 1) % config.vocabulary
    forgotten = torch.zeros(1, config.image_tokens, dtype=torch.bool)
    forgotten[0, 3] = True
    ids, kept = torch.tensor([[1]]), torch.tensor([False])
    seen = [model(ids, kept, t, cache)[0] for t in (tokens, other)]
    unseen = [model(ids, kept, t, cache, forgotten)[0] for t in (tokens, other)]
    assert not torch.equal(seen[0][0, 4:], seen[1][0, 4:])
    torch.testing.assert_close(unseen[0], unseen[1])


def test_teacher_forcing_on_cpu_equals_masked_attention() -> None:
    scales = ScaleSchedule.square((1, 2, 3, 4, 5, 6, 7))
    generator = torch.Generator().manual_seed(0)
    for count in (1, 3, 7):
        n = scales.bounds[count - 1][1]
        q, k, v = (torch.randn(2, 3, n, 8, generator=generator) for _ in range(3))
        cache = TeacherForcing(scales, count, CPU)
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=cache.mask_NN, scale=1.0)
        torch.testing.assert_close(cache.attend(0, q, k, v), expected, atol=1e-5, rtol=1e-5)


def test_packages_become_pictures_without_flags_or_skin_tones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vector art is drawn by a package that only training needs; here a red square stands for what it draws."""
    red = io.BytesIO()
    Image.new("RGBA", (32, 32), (255, 0, 0, 128)).save(red, "png")
    drawn = []

    def svg_to_bytes(svg_string: str, width: int, height: int) -> bytes:
        drawn.append(svg_string)
        assert (width, height) == (256, 256)
        return red.getvalue()

    monkeypatch.setitem(sys.modules, "resvg_py", SimpleNamespace(svg_to_bytes=svg_to_bytes))
    entries = [
        {"label": "red apple", "tags": ["fruit"], "hexcode": "1F34E", "group": 4},
        {"label": "flag: Peru", "hexcode": "1F1F5-1F1EA", "group": 9},
        {"label": "heart", "hexcode": "2764-FE0F", "group": 8},
    ]
    icons = {"width": 36, "height": 36, "icons": {"apple": {"body": "<a/>"}, "b": {"body": "<b/>", "width": 40}},
             "aliases": {"heart": {"parent": "b"}}}  # fmt: skip
    chars = {"1f34e": "apple", "2764": "heart", "1f44b-1f3fb": "waving-hand-light"}

    def write(package: str, files: dict[str, bytes]) -> None:
        with tarfile.open(data.archive_path(tmp_path, package), "w:gz") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))

    write(data.NAMES_PACKAGE, {"package/en/data.json": json.dumps(entries).encode()})
    names = ["1f34e.webp", "2764-fe0f.webp", "1f1f5-1f1ea.webp", "1f44b-1f3fb.webp"]
    write(data.STYLE_PACKAGES["fluent"], {f"package/assets/{name}": red.getvalue() for name in names})
    for style in ("noto", "twemoji"):
        files = {"package/icons.json": json.dumps(icons).encode(), "package/chars.json": json.dumps(chars).encode()}
        write(data.STYLE_PACKAGES[style], files)
    loaded = data.load(data.prepare(tmp_path))
    assert sorted({e.label for e in loaded.emoji}) == ["heart", "red apple"] and len(loaded.emoji) == 6
    assert loaded.images.shape == (6, 128, 128, 4)
    assert (loaded.images == (128, 0, 0, 128)).all(), "colours are weighted by opacity"
    assert (data.on_white(loaded.images[0]) == (255, 127, 127)).all()
    assert len(drawn) == 4 and 'viewBox="0 0 40 36"><b/>' in drawn[1], "an alias is drawn as what it stands for"


def test_a_dry_run_at_another_size_covers_every_command_and_leaves_the_run_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of the training README, at 32 pixels and 4 scales. Compiling blocks is left to a run by hand."""
    monkeypatch.setattr(main_module, "DRY_RUN_THINNING", 2)
    monkeypatch.setattr(loop, "pick_device", lambda: CPU)
    rng = np.random.default_rng(0)
    labels = ["red apple", "cat", *(f"thing{i}" for i in range(180))]
    emoji = [[label, ["tag"], style, f"{i:x}", 3] for i, label in enumerate(labels) for style in data.STYLES]
    images = rng.integers(0, 256, (len(emoji), 32, 32, 4), dtype=np.uint8)
    np.savez(data.pictures_path(tmp_path, 32), images=images, emoji=np.array(json.dumps(emoji)))
    (tmp_path / "prompts.txt").write_text("cat\n\nthing1\n")  # words of all pictures are known

    def call(line: str) -> int:
        monkeypatch.setattr("sys.argv", ["training", *line.format(tmp_path, tmp_path / "dry-run").split()])
        return main_module.main()

    sizes = "--side 32 --scales 1 2 3 8 --stride 4 --width-mult 1 2 --base-width 8 --patch 2"
    commands = [
        f"tokenizer --folder {{0}} {sizes} --dry-run",
        "transformer --folder {0} --depth 1 --width 32 --heads 2 --short-scales 3 --no-compile --samples 3 --dry-run",
        "export --folder {1} --out {1}/m",
        "codebook --folder {0} --side 32 --base-width 8 --patch 2 --crop 16 --vocabulary 16 --dry-run",
        "lines --folder {0} --depth 1 --width 32 --heads 2 --no-compile --dry-run",
        "export --folder {1} --out {1}/l --lines",
        "calibrate --model {1}/m --prompts {0}/prompts.txt",
        "sheet --model {1}/m --prompts {0}/prompts.txt --seeds 0 1 --out {0}/sheet.png",
        "evaluate --folder {0} --model {1}/m --side 32 --out {0}/evaluation.json --scenes {0}/prompts.txt --markdown"
        " --dry-run",
        "evaluate --folder {0} --model {1}/l --side 32 --out {0}/lines.json --dry-run",
    ]
    for line in commands:
        assert call(line) == 0, capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {
        "emoji32.npz", "prompts.txt", "dry-run", "sheet.png", "evaluation.json", "lines.json",
    }  # fmt: skip
    made = {p.name for p in (tmp_path / "dry-run").iterdir()}
    assert {"samples-000002.png", "samples-000004.png"} <= made
    model = load(tmp_path / "dry-run/m", "cpu")
    assert [h for h, _ in model.geometry.scales] == [1, 2, 3, 8]
    assert model.about()["summary"].startswith("Text to 32 x 32")
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["seeds"]["scenes"] == 2 and result["specialisation"]["heads"] == 2
    assert json.loads((tmp_path / "lines.json").read_text())["model"] == "l"
    assert call("evaluate --folder {0} --model {1}/m --side 32 --out {0}/nowhere/e.json --dry-run") == 2
    assert "there is no folder" in capsys.readouterr().err
    state = loop.load_checkpoint(tmp_path / "dry-run/codebook.pt")
    loop.save_checkpoint(tmp_path / "codebook.pt", {**state, "step": 1})
    assert call("lines --folder {0}") == 2, "its codes would still change"
    assert "not frozen yet" in capsys.readouterr().err
    assert call("transformer --folder {0}") == 2, "outside the dry run there is no tokenizer"


def test_a_contact_sheet_has_a_cell_a_prompt_with_its_seeds_side_by_side(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (5, 2, 4, 4, 3), dtype=np.uint8)
    page = np.asarray(sheet.contact_sheet(["a", "b" * 99, "c", "d", "e"], pictures, columns=3, zoom=2))
    width, height = 2 * 9 + 2 * sheet.GAP, 8 + sheet.LINE + 2 * sheet.GAP
    assert page.shape == (2 * height, 3 * width, 3)
    for i in range(5):
        x, y = i % 3 * width + sheet.GAP, i // 3 * height + sheet.GAP + sheet.LINE
        for s in range(2):
            assert (page[y : y + 8 : 2, x + 9 * s : x + 9 * s + 8 : 2] == pictures[i, s]).all()
    picture = Image.fromarray(page)
    for name in ("a.png", "a.webp"):
        sheet.save_picture(picture, tmp_path / name)
        with Image.open(tmp_path / name) as again:
            assert again.size == picture.size
    with pytest.raises(ValueError, match=r"must end in \.png"):
        sheet.save_picture(picture, tmp_path / "a.txt")


def test_missing_data_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"heatkv\.training data"):
        data.load(tmp_path / "emoji64.npz")


@pytest.mark.parametrize(("capabilities", "dtype"), [
    ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
    ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
])  # fmt: skip
def test_a_processor_that_would_emulate_bfloat16_trains_in_float32(
    capabilities: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    with loop.mixed_precision(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
