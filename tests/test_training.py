"""Training: both stages run, resume where they stopped, and end in a model folder that generates."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from heatkv import generate, load
from heatkv.models.infinity.autoencoder import AutoencoderConfig, BitQuantizer
from heatkv.scales import ScaleSchedule
from heatkv.training import __main__ as main_module
from heatkv.training import data, export, loop, sheet, tokenizer, transformer
from heatkv.training.tokenizer import TokenizerRun
from heatkv.training.transformer import TeacherForcing, TransformerRun

CPU = torch.device("cpu")
SMALL = TransformerRun(
    steps=4, batch=2, short_batch=3, depth=2, width=64, heads=4, evaluate_every=2, samples=0, compile=False
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
    return data.Dataset(rng.integers(0, 256, (len(emoji), 64, 64, 3), dtype=np.uint8), emoji)


@pytest.fixture(scope="module")
def trained(dataset: data.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages, each interrupted once and resumed."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer.train(dataset, folder, TokenizerRun(steps=4, batch=2, evaluate_every=2), CPU, stop_after=2)
    tokenizer.train(dataset, folder, TokenizerRun(steps=4, batch=2, evaluate_every=2), CPU)
    transformer.train(dataset, folder, SMALL, CPU, stop_after=2)
    transformer.train(dataset, folder, SMALL, CPU)
    return folder


def test_stages_resume_from_their_checkpoints(trained: Path) -> None:
    for name in ("tokenizer.pt", "transformer.pt"):
        state = loop.load_checkpoint(trained / name)
        assert state["step"] == 4
        assert [entry["step"] for entry in state["history"]] == [2, 4]


def test_resuming_gives_the_weights_of_an_uninterrupted_run(
    dataset: data.Dataset, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.pt").write_bytes((trained / "tokenizer.pt").read_bytes())
    transformer.train(dataset, tmp_path, SMALL, CPU)
    resumed, straight = (loop.load_checkpoint(f / "transformer.pt")["model"] for f in (trained, tmp_path))
    for name, value in straight.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-4, rtol=1e-3, msg=name)


def test_the_exported_folder_generates(trained: Path, tmp_path: Path) -> None:
    export.export(trained, tmp_path / "m", "m")
    model = load(tmp_path / "m", "cpu")
    assert max(p.stat().st_size for p in (tmp_path / "m").iterdir()) < 10_000_000
    image = generate(model, "red apple", 1)
    assert image.pixels.shape == (64, 64, 3) and image.model == "m"
    export.calibrate_bundled(model, ["cat face"], tmp_path / "m")
    sheet.sample_sheet(model, ["red apple", "cat face"], [0, 1], tmp_path / "sheet.png", columns=2)
    with Image.open(tmp_path / "sheet.png") as page:
        assert page.size == (2 * (2 * 129 + 6), 128 + 20)


def test_a_checkpoint_of_another_shape_is_not_resumed(dataset: data.Dataset, trained: Path) -> None:
    with pytest.raises(ValueError, match=r"trained with base_width 48, not 32: use its settings or another folder"):
        tokenizer.train(dataset, trained, TokenizerRun(base_width=32), CPU)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"side": 128}, "make pictures of 64 pixels, not 128"),
        ({"stride": 4, "side": 32}, "--width-mult needs 2 values"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(settings: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TokenizerRun(**settings)


def test_old_checkpoints_without_scales_are_of_the_first_eight(trained: Path, tmp_path: Path) -> None:
    state = loop.load_checkpoint(trained / "tokenizer.pt")
    del state["scales"]
    loop.save_checkpoint(tmp_path / "tokenizer.pt", state)
    model = tokenizer.load_trained(tmp_path / "tokenizer.pt")
    assert [h for h, _ in model.quantizer.scales] == list(range(1, 9)) and tokenizer.side_of(model) == 64


def test_training_lowers_the_loss(dataset: data.Dataset, trained: Path) -> None:
    """Overfit one tiny batch: gradients reach what they should."""
    autoencoder = tokenizer.load_trained(trained / "tokenizer.pt")
    torch.manual_seed(0)
    model = transformer.new_model(dataset, autoencoder.quantizer.scales, 16, SMALL)
    latents = torch.nn.functional.normalize(torch.randn(2, 16, 8, 8), dim=1)
    codes, bits = transformer.teacher_inputs(autoencoder.quantizer, latents, 3, 0.0, torch.Generator())
    cache = TeacherForcing(autoencoder.quantizer.scales, 3, CPU)
    ids = transformer.word_ids(model.text, ["red apple", "cat face"])
    optimizers = transformer.make_optimizers(model, SMALL)
    losses = []
    for _ in range(30):
        loss = transformer.bit_loss(
            model(ids, torch.zeros(2, dtype=torch.bool), codes, cache), bits, autoencoder.quantizer.scales, 3
        )
        loss.backward()
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    unused = [n for n, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    assert not unused


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


def test_forgetting_blanks_whole_tokens_of_some_rows() -> None:
    codes = torch.ones(64, 20, 4)
    kept = transformer.forget_tokens(codes, 0.5, torch.Generator().manual_seed(0))
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    blank = (kept == 0).all(-1)
    assert torch.equal(blank, (kept == 0).any(-1))
    rows = blank.any(1).float().mean()
    assert 0.2 < rows < 0.6


def test_teacher_forcing_on_cpu_equals_masked_attention() -> None:
    scales = ScaleSchedule.square((1, 2, 3, 4, 5, 6, 7))
    generator = torch.Generator().manual_seed(0)
    for count in (1, 3, 7):
        n = scales.bounds[count - 1][1]
        q, k, v = (torch.randn(2, 3, n, 8, generator=generator) for _ in range(3))
        cache = TeacherForcing(scales, count, CPU)
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=cache.mask_NN, scale=1.0)
        torch.testing.assert_close(cache.attend(0, q, k, v), expected, atol=1e-5, rtol=1e-5)


def test_bare_prompts_mostly_mean_fluent() -> None:
    rng = random.Random(0)
    bare = {style: 0 for style in data.STYLES}
    for style in data.STYLES:
        emoji = data.Emoji("red apple", ("fruit", "ripe"), style, "1f34e", 4)
        for _ in range(500):
            bare[style] += transformer.training_prompt(emoji, rng).split()[0] not in data.STYLES
    assert bare["fluent"] > 4 * (bare["noto"] + bare["twemoji"]) / 2


def test_held_out_emoji_are_held_out_in_every_style(dataset: data.Dataset) -> None:
    trained_on, held_out = dataset.split()
    codes = {dataset.emoji[i].hexcode for i in held_out}
    assert len(codes) == data.HELD_OUT_EMOJI
    assert not codes & {dataset.emoji[i].hexcode for i in trained_on}
    assert "red apple" not in {dataset.emoji[i].label for i in held_out}


def test_packages_become_pictures_on_white_without_flags_or_skin_tones(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(picture, "png")
    entries = [
        {"label": "red apple", "tags": ["fruit"], "hexcode": "1F34E", "group": 4},
        {"label": "flag: Peru", "hexcode": "1F1F5-1F1EA", "group": 9},
        {"label": "heart", "hexcode": "2764-FE0F", "group": 8},
    ]

    def write(package: str, files: dict[str, bytes]) -> None:
        with tarfile.open(data.archive_path(tmp_path, package), "w:gz") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))

    write(data.NAMES_PACKAGE, {"package/en/data.json": json.dumps(entries).encode()})
    for package, prefix in data.STYLE_PACKAGES.values():
        names = ["1f34e.png", "2764-fe0f.png", "1f1f5-1f1ea.png", "1f44b-1f3fb.png"]
        write(package, {prefix + name: picture.getvalue() for name in names})
    loaded = data.load(data.prepare(tmp_path))
    assert sorted({e.label for e in loaded.emoji}) == ["heart", "red apple"] and len(loaded.emoji) == 6
    assert (loaded.images == 255).all(), "transparent pixels become white"


def test_a_dry_run_at_another_size_covers_every_command_and_leaves_the_run_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of the training README, at 32 pixels and 4 scales. Compiling blocks is left to a run by hand."""
    monkeypatch.setattr(main_module, "DRY_RUN_THINNING", 2)
    monkeypatch.setattr(loop, "pick_device", lambda: CPU)
    rng = np.random.default_rng(0)
    labels = ["red apple", "cat", *(f"thing{i}" for i in range(180))]
    emoji = [[label, ["tag"], style, f"{i:x}", 3] for i, label in enumerate(labels) for style in data.STYLES]
    images = rng.integers(0, 256, (len(emoji), 32, 32, 3), dtype=np.uint8)
    np.savez(data.pictures_path(tmp_path, 32), images=images, emoji=np.array(json.dumps(emoji)))
    (tmp_path / "prompts.txt").write_text("cat\n\nthing1\n")  # words of all pictures are known

    def call(line: str) -> int:
        monkeypatch.setattr("sys.argv", ["training", *line.format(tmp_path, tmp_path / "dry-run").split()])
        return main_module.main()

    sizes = "--side 32 --scales 1 2 3 8 --stride 4 --width-mult 1 2 --base-width 8"
    lines = [
        f"tokenizer --folder {{0}} {sizes} --dry-run",
        "transformer --folder {0} --depth 1 --width 32 --heads 2 --short-scales 3 --no-compile --samples 3 --dry-run",
        "export --folder {1} --out {1}/m",
        "calibrate --model {1}/m --prompts {0}/prompts.txt",
        "sheet --model {1}/m --prompts {0}/prompts.txt --seeds 0 1 --out {0}/sheet.png",
        "evaluate --folder {0} --model {1}/m --out {0}/evaluation.json --markdown --dry-run",
    ]
    for line in lines:
        assert call(line) == 0, capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {
        "emoji32.npz", "prompts.txt", "dry-run", "sheet.png", "evaluation.json",
    }  # fmt: skip
    made = {p.name for p in (tmp_path / "dry-run").iterdir()}
    assert {"samples-000002.png", "samples-000004.png"} <= made
    model = load(tmp_path / "dry-run/m", "cpu")
    assert [h for h, _ in model.geometry.scales] == [1, 2, 3, 8]
    assert model.about()["summary"].startswith("Text to 32 x 32")
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert len(result["bits"]["per_scale"]) == 4 and result["specialisation"]["heads"] == 2
    assert call("evaluate --folder {0} --model {1}/m --out {0}/nowhere/e.json --dry-run") == 2
    assert "there is no folder" in capsys.readouterr().err
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
