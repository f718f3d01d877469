"""Go on from a model folder where the checkpoints are lost: what generating does not need is kept beside the models.

A tokenizer that is trained anew writes other codes, and a transformer on other codes begins again. So the encoder is
kept, and what says which thing covers a cell. Optimisers begin anew.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heatkv.files import write_atomic
from heatkv.models import load
from heatkv.models.checkpoint import load_file, some
from heatkv.models.infinity.model import InfinityModel
from heatkv.models.infinity.text import WordEncoder
from heatkv.models.llamagen.model import LlamaGenModel
from heatkv.training import codebook, lines, loop, tokenizer, transformer
from heatkv.training.codebook import CodebookRun
from heatkv.training.lines import LinesRun
from heatkv.training.tokenizer import TokenizerRun
from heatkv.training.transformer import TransformerRun

KEPT = ("encoder.", "things.")  # what an export leaves out
CHECKPOINTS = {False: ("tokenizer.pt", "transformer.pt"), True: ("codebook.pt", "lines.pt")}


def keep(folder: Path, by_line: bool, destination: Path) -> None:
    """Write what an export of ``folder``'s checkpoints leaves out, as float16 safetensors."""
    from safetensors.torch import save

    stages = [loop.load_checkpoint(folder / name)["average"] for name in CHECKPOINTS[by_line]]
    state = {name: value for stage in stages for name, value in stage.items() if name.startswith(KEPT)}
    halves = {name: value.to(torch.float16).contiguous() for name, value in state.items()}
    destination.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(destination, save(halves, metadata={"format": "pt"}))


def restore(model_folder: Path, kept: Path, folder: Path) -> list[Path]:
    """Write checkpoints of both stages into ``folder``, which training goes on from, and return their paths.

    Raises ``ValueError`` for a model that was not trained here, for a file that is not what its export kept, and where
    there are checkpoints already.
    """
    model = load(model_folder, "cpu", "float32")
    if not isinstance(model, (InfinityModel, LlamaGenModel)) or not isinstance(model.text, WordEncoder):
        raise ValueError(f"{model_folder} is not a model that was trained here")
    paths = [folder / name for name in CHECKPOINTS[isinstance(model, LlamaGenModel)]]
    for path in paths:
        if path.exists():
            raise ValueError(f"{path} is there already: name another folder, or move it away")
    rest = {name: value.float() for name, value in load_file(kept).items()}
    made = of_lines(model, rest) if isinstance(model, LlamaGenModel) else of_scales(model, rest)
    for path, state in zip(paths, made, strict=True):
        loop.save_checkpoint(path, state)
    return paths


def filled(module: nn.Module, parts: dict[str, nn.Module], rest: dict[str, Tensor]) -> dict[str, Tensor]:
    """``module`` with the weights of parts, each under its prefix, and of what was kept; as its state."""
    state = module.state_dict()
    if lacking := [name for name in state if name.startswith(KEPT) and name not in rest]:
        raise ValueError(f"the file of what was kept lacks {some(lacking)}: it is not of this model's `export --keep`")
    for prefix, part in parts.items():
        state |= {prefix + name: value.float() for name, value in part.state_dict().items() if prefix + name in state}
    state |= {name: value for name, value in rest.items() if name in state}
    module.load_state_dict(state)
    return module.state_dict()


def checkpoint(
    weights: dict[str, Tensor], facts: dict[str, Any], step: str, measured: str, **more: Any
) -> dict[str, Any]:
    """The parts that all checkpoints have; ``step`` and ``measured`` name the facts that a model folder states."""
    history = [facts[measured]] if measured in facts else []
    return {"model": weights, "average": weights, "step": facts[step], "history": history, **more}


def of_scales(model: InfinityModel, rest: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    facts, quantizer = model.facts or {}, model.autoencoder.quantizer
    sides = tuple(h for h, _ in quantizer.scales)
    config = model.autoencoder.config
    run = TokenizerRun(
        side=tokenizer.side_of(model.autoencoder), scales=sides, stride=config.stride, bits=config.bits,
        base_width=config.base_width, width_mult=config.width_mult, patch=config.patch,
    )  # fmt: skip
    young = tokenizer.new_model(run)
    weights = filled(young, {"": model.autoencoder}, rest)
    first = checkpoint(
        weights, facts, "tokenizer_steps", "tokenizer_psnr", code_size_S=quantizer.code_size_S.clone(),
        optimizer=torch.optim.AdamW(young.parameters()).state_dict(),
        config=asdict(config), scales=list(sides), run=asdict(run),
    )  # fmt: skip
    assert isinstance(model.text, WordEncoder)
    shape = replace(model.transformer.config, places=True)
    whole = transformer.TextToBits(model.text.vocabulary, shape, quantizer.scales, len(facts["things"]))
    assert whole.transformer.place_embed is not None
    nn.init.zeros_(whole.transformer.place_embed.weight)  # of a model from before there were places
    weights = filled(whole, {"text.": model.text, "transformer.": model.transformer}, rest)
    second = checkpoint(
        weights, facts, "transformer_steps", "bit_accuracy",
        optimizers=[optimizer.state_dict() for optimizer, _ in transformer.make_optimizers(whole, TransformerRun())],
        config=asdict(shape), words=list(model.text.vocabulary.words), things=facts["things"],
        run=asdict(TransformerRun()),
    )  # fmt: skip
    return first, second


def of_lines(model: LlamaGenModel, rest: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    facts, config = model.facts or {}, model.autoencoder.config
    vq = codebook.new_model(config)
    weights = filled(vq, {"": model.autoencoder}, rest)
    run = CodebookRun(
        side=model.transformer.config.grid * config.stride, base_width=config.base_width, width_mult=config.width_mult,
        patch=config.patch, vocabulary=config.vocabulary, freeze=min(CodebookRun.freeze, facts["tokenizer_steps"]),
    )  # fmt: skip
    moving = codebook.MovingCodes(vq.quantize, run.dead)
    learned = [p for p in vq.parameters() if p.requires_grad]
    first = checkpoint(
        weights, facts, "tokenizer_steps", "tokenizer_psnr", count_V=moving.count_V, sum_Vc=moving.sum_Vc,
        optimizer=torch.optim.AdamW(learned).state_dict(), config=asdict(config), run=asdict(run),
    )  # fmt: skip
    assert isinstance(model.text, WordEncoder)
    shape = model.transformer.config
    codes_Vc = vq.quantize.directions_Vc.detach()
    whole = lines.TextToTokens(model.text.vocabulary, shape, codes_Vc, len(facts["things"]))
    # In a model folder the directions of the codes are part of the plain weights (``TextToTokens.folded``).
    nn.init.zeros_(whole.read_code.weight)
    nn.init.zeros_(whole.write_code.weight)
    weights = filled(whole, {"text.": model.text, "transformer.": model.transformer}, rest)
    second = checkpoint(
        weights, facts, "transformer_steps", "held_out",
        optimizers=[optimizer.state_dict() for optimizer in lines.make_optimizers(whole, LinesRun())],
        config=asdict(shape), words=list(model.text.vocabulary.words), things=facts["things"],
        run=asdict(LinesRun()),
    )  # fmt: skip
    return first, second
