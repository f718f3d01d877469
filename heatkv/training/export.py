"""Stage 3: put the trained parts together as a model folder, and calibrate it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from heatkv.calibration import calibrate
from heatkv.models.base import GenerativeModel, Sampling
from heatkv.models.bundled import save_folder
from heatkv.models.infinity.model import InfinityModel
from heatkv.models.infinity.text import Vocabulary
from heatkv.models.infinity.transformer import TransformerConfig
from heatkv.models.llamagen.model import LlamaGenModel
from heatkv.training import codebook, lines, loop, tokenizer, transformer
from heatkv.training.sheet import SAMPLING

EXAMPLES = (
    "red apple",
    "cat face on grass",
    "castle left of bus",
    "rocket on blue",
    "two mushrooms",
    "crab right of cactus",
)
SUMMARY = "Text to {0} x {0} pictures, scale by scale; trained from scratch by this repository"

LINES_SUMMARY = "Text to {0} x {0} pictures, line by line; trained from scratch by this repository"
# Tails cut, so that one unlikely token does not spoil a thing, but little of them: that a thing begins in one of the
# first rows is unlikely too, and without it seeds agree. Guided, or colours are not obeyed (LOG.md).
LINES_SAMPLING = Sampling(guidance=1.35, temperature=1.0, top_k=8, top_p=0.97)


def export(folder: Path, destination: Path, name: str) -> None:
    """Write the averaged weights of ``folder``'s checkpoints as a model folder."""
    state = loop.load_checkpoint(folder / "transformer.pt")
    autoencoder = tokenizer.load_trained(folder / "tokenizer.pt")
    config = TransformerConfig(**{**state["config"], "rope_grid": tuple(state["config"]["rope_grid"])})
    vocabulary = Vocabulary(tuple(state["words"]))
    model = transformer.TextToBits(vocabulary, config, autoencoder.quantizer.scales, len(state["things"]))
    model.load_state_dict(state["average"])
    tokenizer_state = loop.load_checkpoint(folder / "tokenizer.pt")
    facts = {
        "summary": SUMMARY.format(tokenizer.side_of(autoencoder)),
        "licence": "weights MIT; see the model card for the art they derive from",
        "tokenizer_steps": tokenizer_state["step"],
        "tokenizer_psnr": tokenizer_state["history"][-1],
        "transformer_steps": state["step"],
        "bit_accuracy": state["history"][-1],
        "things": state["things"],
    }
    save_folder(InfinityModel(name, model.text, model.transformer, autoencoder, SAMPLING, EXAMPLES, facts), destination)


def export_lines(folder: Path, destination: Path, name: str) -> None:
    """Write the averaged weights of ``folder``'s codebook and lines checkpoints as a model folder."""
    vq, vq_state = codebook.load_trained(folder / "codebook.pt")
    text, transformer, state = lines.load_trained(folder / "lines.pt")
    facts = {
        "summary": LINES_SUMMARY.format(transformer.config.grid * vq.config.stride),
        "licence": "weights MIT; see the model card for the art they derive from",
        "tokenizer_steps": vq_state["step"],
        "tokenizer_psnr": vq_state["history"][-1],
        "transformer_steps": state["step"],
        "held_out": state["history"][-1],
        "things": state["things"],
    }
    model = LlamaGenModel(name, text, transformer, vq, LINES_SAMPLING, EXAMPLES, facts)
    save_folder(model, destination, "llamagen")


def calibrate_bundled(model: GenerativeModel, prompts: Sequence[str], destination: Path) -> None:
    calibrate(model, prompts, seed=0).save(destination / "scores.safetensors")
