"""Tiny random models written to disk the way the published ones are, in every layout."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from heatkv.models.infinity.autoencoder import Autoencoder, AutoencoderConfig
from heatkv.models.infinity.text import check_prompt
from heatkv.models.infinity.transformer import InfinityTransformer, TextFeatures, TransformerConfig
from heatkv.models.llamagen.transformer import LlamaGenConfig, LlamaGenTransformer
from heatkv.models.llamagen.vq import Vq, VqConfig
from heatkv.models.var.transformer import VarConfig, VarTransformer
from heatkv.models.var.vqvae import Vqvae, VqvaeConfig
from heatkv.scales import ScaleSchedule

SCALES = ScaleSchedule.square((1, 2, 3, 4, 5))
INFINITY = TransformerConfig(
    depth=4, width=64, heads=2, bits=8, text_width=128, text_maxlen=6, rope_grid=(5, 5), max_scales=15
)
INFINITY_IMAGE = AutoencoderConfig(32, (1, 2), bits=8, stride=2)
PATCHIFIED_IMAGE = AutoencoderConfig(32, (1, 2), bits=2, stride=2, patchify=True)
VAR = VarConfig(depth=3, width=32, heads=2, vocabulary=24, code_width=4, classes=10)
VAR_IMAGE = VqvaeConfig(base_width=32, width_mult=(1, 2), code_width=4, vocabulary=24)
LLAMAGEN = LlamaGenConfig(depth=3, width=32, heads=2, grid=4, classes=10, vocabulary=24)
LLAMAGEN_TEXT = replace(LLAMAGEN, condition="caption", caption_width=128, condition_tokens=6)
LLAMAGEN_IMAGE = VqConfig(base_width=32, width_mult=(1, 2), inner_width=16, vocabulary=24)

WORDS = ("a", "cat", "dog", "on", "red", "tree")
State = dict[str, Tensor]


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random values for every parameter, large enough for attention to be uneven."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.eval().requires_grad_(False).parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
    return module


def random_infinity(config: TransformerConfig = INFINITY, scales: ScaleSchedule = SCALES) -> InfinityTransformer:
    return randomised(InfinityTransformer(config, scales))  # type: ignore[return-value]


def random_var(config: VarConfig = VAR, scales: ScaleSchedule = SCALES) -> VarTransformer:
    return randomised(VarTransformer(config, scales))  # type: ignore[return-value]


def published_infinity(model: InfinityTransformer, chunks: int = 2, *, flash: bool = False) -> State:
    """State dict as published: chunks of blocks (or 1: plain ``blocks``), derived buffers, a layout of temperatures."""
    size = model.config.depth // chunks
    result: State = {"lvl_1L": model.level[None], "attn_bias_for_masking": torch.zeros(1, 1, 3, 3)}
    for key, tensor in model.state_dict().items():
        if key.endswith("scale_mul_1H11") and flash:
            tensor = tensor.reshape(1, 1, -1, 1)
        if chunks > 1 and (match := re.match(r"blocks\.(\d+)\.(.+)", key)):
            layer = int(match[1])
            key = f"block_chunks.{layer // size}.module.{layer % size}.{match[2]}"
        result[key] = tensor.clone()
        if key.endswith("q_bias"):
            result[key.replace("q_bias", "zero_k_bias")] = torch.zeros_like(tensor)
    return result


def published_bits(model: Autoencoder, *, wrapped: bool = True) -> State:
    """State dict of an Infinity autoencoder as published: convolutions and norms wrapped, masks of the quantiser."""
    result: State = {"quantizer.lfq.mask": torch.ones(4), "quantize.lfq.mask": torch.ones(4)}
    for key, tensor in model.state_dict().items():
        stem, _, last = key.rpartition(".")
        stem = re.sub(r"(downsample|upsample)$", r"\1.conv", stem)
        if wrapped:
            stem += ".norm" if re.search(r"norm(\d|_out)$", stem) else ".conv"
        result[f"{stem}.{last}"] = tensor.clone()
    return result


def published_var(model: VarTransformer) -> State:
    result: State = {"lvl_1L": torch.zeros(1, 3), "attn_bias_for_masking": torch.zeros(1, 1, 3, 3)}
    for key, tensor in model.state_dict().items():
        result[key] = tensor.clone()
        if key.endswith("q_bias"):
            result[key.replace("q_bias", "zero_k_bias")] = torch.zeros_like(tensor)
    return result


def published_codes(model: Vqvae) -> State:
    return {**model.state_dict(), "quantize.ema_vocab_hit_SV": torch.zeros(3, model.config.vocabulary)}


def shard(state: State, folder: Path, kind: str, shards: int = 3) -> None:
    """Write shards and their index, ``kind`` safetensors or bin."""
    from safetensors.torch import save_file

    folder.mkdir()
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    weight_map = {}
    for i in range(shards):
        name = f"{stem}-{i + 1:05}-of-{shards:05}.{suffix}"
        part = {key: tensor.contiguous() for key, tensor in list(state.items())[i::shards]}
        if kind == "safetensors":
            save_file(part, folder / name)
        else:
            torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def save_safetensors(state: State, path: Path) -> None:
    from safetensors.torch import save_file

    save_file(state, path)


TransformerWriter = Callable[[InfinityTransformer, Path], None]

# Every layout in which the transformer of the Infinity family is found.
INFINITY_LAYOUTS: dict[str, TransformerWriter] = {
    "chunks": lambda m, f: torch.save(published_infinity(m), f / "model.pth"),
    "blocks": lambda m, f: torch.save(published_infinity(m, chunks=1), f / "model.pth"),
    "flash kernel": lambda m, f: torch.save(published_infinity(m, flash=True), f / "model.pth"),
    "trainer": lambda m, f: torch.save(
        {"trainer": {"gpt_fsdp": published_infinity(m), "step": 7}, "epoch": 1}, f / "model.pth"
    ),
    "old torch": lambda m, f: torch.save(published_infinity(m), f / "model.pth", _use_new_zipfile_serialization=False),
    "safetensors": lambda m, f: save_safetensors(published_infinity(m), f / "model.safetensors"),
    "sharded safetensors": lambda m, f: shard(published_infinity(m), f / "weights", "safetensors"),
    "sharded bin": lambda m, f: shard(published_infinity(m), f / "weights", "bin"),
}


class StandInText(nn.Module):
    """In place of T5: features that depend on the letters of the prompt."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, *more: object) -> None:
        super().__init__()
        self.width = json.loads((folder / "config.json").read_text())["d_model"]

    def check(self, prompt: str) -> str | None:
        check_prompt(prompt)
        return None

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        rows = []
        for prompt in prompts:
            generator = torch.Generator().manual_seed(sum(map(ord, prompt)))
            rows.append(torch.randn(min(6, len(prompt.split()) + 1), self.width, generator=generator))
        features = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        return TextFeatures(features, torch.arange(features.shape[1])[None] < lengths[:, None])

    def about(self) -> dict[str, object]:
        return {"text_encoder": "stand-in"}


def write_text_encoder(folder: Path, width: int = 128) -> None:
    """The configuration alone: enough for a stand-in."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "d_model": width}))


def write_t5(folder: Path, width: int = 128) -> None:
    """A tiny random T5, encoder and decoder, as a hub snapshot holds it; it knows `WORDS`."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=len(vocabulary), d_model=width, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0,
    )  # fmt: skip
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)


def write_settings(folder: Path, scales: ScaleSchedule = SCALES, **more: object) -> None:
    settings = {"format": "heatkv-official", "version": 1, "scales": [list(size) for size in scales], **more}
    (folder / "config.json").write_text(json.dumps(settings))


def write_infinity(
    folder: Path, layout: str = "chunks", config: TransformerConfig = INFINITY,
    image: AutoencoderConfig = INFINITY_IMAGE, scales: ScaleSchedule = SCALES, *, t5: bool = False,
) -> InfinityTransformer:  # fmt: skip
    """A whole Infinity model in ``folder``, with a real text encoder or its configuration; returns its transformer."""
    model = random_infinity(config, scales)
    INFINITY_LAYOUTS[layout](model, folder)
    autoencoder = randomised(Autoencoder(scales, image))
    torch.save({"vae": published_bits(autoencoder), "step": 3}, folder / "vae.pth")  # type: ignore[arg-type]
    (write_t5 if t5 else write_text_encoder)(folder / "flan-t5-tiny", config.text_width)
    write_settings(folder, scales, id="tiny-infinity", sampling={"guidance": 3.0, "top_p": 0.97}, examples=["a cat"])
    return model


def write_var(folder: Path, config: VarConfig = VAR, scales: ScaleSchedule = SCALES) -> VarTransformer:
    """A whole VAR model in ``folder``; returns its transformer."""
    model = random_var(config, scales)
    torch.save(published_var(model), folder / "transformer.pth")
    torch.save(published_codes(randomised(Vqvae(scales, VAR_IMAGE))), folder / "vae.pth")  # type: ignore[arg-type]
    write_settings(folder, scales, id="tiny-var", sampling={"guidance": 2.5, "top_k": 12, "top_p": 0.95})
    return model


def published_llamagen(model: LlamaGenTransformer) -> State:
    """State dict with what some files carry besides: a rotary table and a cache."""
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    return {**state, "freqs_cis": torch.zeros(3), "layers.0.attention.kv_cache.k_cache": torch.zeros(2)}


def trained_with() -> dict[str, object]:
    """What training scripts leave beside the weights."""
    return {"optimizer": {"state": {}}, "steps": 300000, "args": Namespace(gpt_model="GPT-B", lr=1e-4, results_dir="r")}


# Every layout in which the transformer of the LlamaGen family is found.
LLAMAGEN_LAYOUTS: dict[str, Callable[[State], object]] = {
    "model": lambda state: {"model": state, **trained_with()},
    "module": lambda state: {"module": state, **trained_with()},
    "state_dict": lambda state: {"state_dict": state},
    "flat": lambda state: state,
}


def write_llamagen(
    folder: Path, layout: str = "model", config: LlamaGenConfig = LLAMAGEN, *, t5: bool = False
) -> LlamaGenTransformer:
    """A whole LlamaGen model in ``folder``; returns its transformer."""
    model = randomised(LlamaGenTransformer(config))
    assert isinstance(model, LlamaGenTransformer)
    torch.save(LLAMAGEN_LAYOUTS[layout](published_llamagen(model)), folder / "transformer.pt")
    last, averaged = (randomised(Vq(LLAMAGEN_IMAGE), seed).state_dict() for seed in (1, 2))
    averaged["quantize.codebook_used"] = torch.zeros(65536)
    torch.save({"model": last, "ema": averaged, **trained_with()}, folder / "vq.pt")
    if config.condition == "caption":
        (write_t5 if t5 else write_text_encoder)(folder / "flan-t5-tiny", config.caption_width)
    settings = {
        "format": "heatkv-official",
        "version": 1,
        "id": "tiny-llamagen",
        "grid": config.grid,
        "heads": config.heads,
    }
    sampling = {"guidance": 2.5, "top_k": 12, "top_p": 0.95}
    (folder / "config.json").write_text(json.dumps({**settings, "sampling": sampling}))
    return model
