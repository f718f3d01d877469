"""Every published vector is either compared in a test of this folder, or listed here with the reason why not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

# File of vectors -> test that reads it, and what of the names the test's text must contain.
COMPARED: dict[str, tuple[str, tuple[str, ...]]] = {
    "var_tiny": (
        "test_published_var.py",
        ("greedy.hidden", "greedy.logits_raw", "greedy.logits", "greedy.idx", "greedy.f_hat", "greedy.next_map",
         "greedy.image", "quant.f", "quant.f_hat", "quant.idx", "quant.var_input", "tf.logits", "tf.x_BLCv_wo_first_l",
         "tf.var_input_from_greedy_idx", "filter.logits_in", "filter.", "var.", "vae."),
    ),
    "vqvae_tiny": (
        "test_published_var.py",
        ("enc.image", "enc.encoder_out", "enc.f", "enc.idx", "enc.rec", "dec.idxBl_to_img_last", "vae."),
    ),
    "infinity_tiny": (
        "test_published_infinity.py",
        ("greedy", "greedy_inslayer", "greedy_nocfg", "greedy_negprompt", "cond.text_norm", "cond.sos", "cond.gss",
         "cond.text_proj_for_ca", "enc.image", "enc.h", "enc.bits", "enc.z", "tf.logits", "tf.x_wo_prefix", "text",
         "neg", "rope.cache", "model.", "vae."),
    ),
    "heatkv_e2e_tiny": ("test_published_infinity.py", ("full.logits", "full.bits", "pruned_", "scas.scores", "text")),
    "llamagen_tiny": (
        "test_published_llamagen.py",
        ("c2i", "t2i", "vq.", "vq_decode.codes", "vq_decode.latent", "vq_decode.image", "vq_encode.codes",
         "vq_encode.image", "vq_encode.latent", "vq_encode.pre_quant", "vq_encode.reconstruction", "vq_tokens.image",
         "filter.kept_", "filter.logits"),
    ),
    "rope_real": ("test_published_infinity.py", ("d128_r1.0_m", "rot.")),
    "scalekv_select": ("test_published_scalekv.py", ("q_s", "k_s", "kept_pos_s")),
    "scas_tiny": ("test_published_scores.py", ("probs.", "scores")),
}  # fmt: skip

# Names that are not compared: a pattern, and why.
LEFT = {
    r"(var|infinity)_tiny:sampled\..*": "drawn with torch.multinomial: equal only for one version and order of calls",
    r"infinity_tiny:greedy\.(hidden|logits_raw)_s\d+": "on the way to greedy.logits, which are compared",
    r"infinity_tiny:enc\.var_input_area_s\d+": "inputs for training by area, which the released models do not use",
    r"llamagen_tiny:vq_decode\.image_u8": "bytes of vq_decode.image, compared with the model's in tests/models",
    r"infinity_tiny:(text|neg)\.(cu_seqlens|lens)": "lengths of the prompts, written out in the tests",
}


def names_in(path: Path) -> list[str]:
    safe_open = pytest.importorskip("safetensors").safe_open
    with safe_open(path, "pt") as file:
        return list(file.keys())


def is_left(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in LEFT)


def test_every_vector_is_compared_or_left_for_a_reason(conformance: Path) -> None:
    files = {path.stem: names_in(path) for path in conformance.glob("*.safetensors")}
    assert set(files) == set(COMPARED)
    for stem, names in files.items():
        test, starts = COMPARED[stem]
        unknown = [name for name in names if not is_left(f"{stem}:{name}") and not name.startswith(starts)]
        assert not unknown, f"{stem}: neither compared nor left: {unknown[:5]}"
        text = Path(__file__).with_name(test).read_text()
        assert not [start for start in starts if start not in text], (
            f"{test} does not mention what it is said to compare"
        )
    everything = [f"{stem}:{name}" for stem, names in files.items() for name in names]
    for pattern in LEFT:
        assert any(re.fullmatch(pattern, name) for name in everything), f"nothing is left under {pattern}"


def test_every_file_of_schedules_and_scales_is_read(conformance: Path) -> None:
    texts = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    for path in conformance.glob("*.json"):
        stem = re.sub(r"_(2b|8b)$", "_", path.stem)
        assert stem in texts, path.name
