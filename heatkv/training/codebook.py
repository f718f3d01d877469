"""Stage 1 of the model that draws by lines: a tokenizer of one codebook, trained to reconstruct pictures through it."""

from __future__ import annotations

import copy
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatkv.models.infinity.autoencoder import ResidualBlock
from heatkv.models.llamagen.vq import CellBlock, Codebook, Vq, VqConfig
from heatkv.training import loop
from heatkv.training.scenes import Scenes
from heatkv.training.tokenizer import HELD_OUT_SEED, draw_batch, psnr, reconstruction_loss, save_comparison


@dataclass(frozen=True)
class CodebookRun:
    """Settings of a training run; defaults are the CPU recipe.

    The encoder and the codes learn up to step ``freeze``; then they stay as their average is, so that the transformer
    can be trained on them, and the decoder goes on alone up to ``steps``. Both parts end with a falling learning rate.
    ``everyday``: of everyday things in scenes alone (``scenes.EVERYDAY_SCENES``), else of everything.
    A step sees ``batch`` pictures; for the decoder alone a piece of ``crop`` x ``crop`` pixels of each is enough.
    A code that a step uses less than ``dead`` times on average is put where the batch is represented worst. The first
    ``warm`` steps do without codes: from the start on, they pull all cells to the few that are in use.
    """

    side: int = 128
    base_width: int = 96
    width_mult: tuple[int, ...] = (1, 2)
    patch: int = 4
    vocabulary: int = 2048
    everyday: bool = True
    warm: int = 100
    freeze: int = 1400
    steps: int = 5000
    batch: int = 16
    crop: int = 64
    learning_rate: float = 2e-3
    commitment: float = 0.25
    dead: float = 0.15
    evaluate_every: int = 200
    seed: int = 0

    @property
    def config(self) -> VqConfig:
        return VqConfig(self.base_width, self.width_mult, 1, 8, self.vocabulary, 0, self.patch, True)


class MovingCodes:
    """The codebook as a moving average of the cells that chose each code; ``count_V`` and ``sum_Vc`` are its state."""

    def __init__(self, codebook: Codebook, dead: float) -> None:
        self.codebook, self.dead = codebook, dead
        codebook.embedding.weight.requires_grad_(False)
        self.count_V = torch.ones(len(codebook.embedding.weight), device=codebook.embedding.weight.device)
        self.sum_Vc = codebook.directions_Vc.clone()

    @torch.no_grad()
    def start(self, cells_Nc: Tensor, generator: torch.Generator) -> None:
        pick = torch.randint(len(cells_Nc), (len(self.count_V),), generator=generator).to(cells_Nc.device)
        self.sum_Vc = cells_Nc[pick].clone()
        self.store()

    @torch.no_grad()
    def update(self, cells_Nc: Tensor, index_N: Tensor, revive: torch.Generator | None) -> None:
        """Move towards the cells of a batch; ``revive`` picks the cells that codes in no use begin anew with."""
        count = torch.bincount(index_N, minlength=len(self.count_V)).float()
        total = torch.zeros_like(self.sum_Vc).index_add_(0, index_N, cells_Nc)
        self.count_V.lerp_(count, 0.02)
        self.sum_Vc.lerp_(total, 0.02)
        dead = (self.count_V < self.dead).nonzero().flatten()
        if revive is not None and len(dead):
            fit = (cells_Nc * self.codebook.directions_Vc[index_N]).sum(1)
            worst = fit.topk(min(8 * len(dead), len(fit)), largest=False).indices
            pick = worst[torch.randperm(len(worst), generator=revive)[: len(dead)].to(worst.device)]
            dead = dead[: len(pick)]
            self.sum_Vc[dead], self.count_V[dead] = cells_Nc[pick], 1.0
        self.store()

    def store(self) -> None:
        self.codebook.embedding.weight.copy_(F.normalize(self.sum_Vc, dim=1))


def cells(latent_BcHW: Tensor) -> Tensor:
    return latent_BcHW.permute(0, 2, 3, 1).flatten(0, 2)


def cropped(x_B3HW: Tensor, side: int, seed: int) -> Tensor:
    """A piece of every picture, at a random place."""
    room = x_B3HW.shape[-1] - side
    if room <= 0:
        return x_B3HW
    rng = random.Random(seed)
    pieces = []
    for picture in x_B3HW:
        top, left = rng.randint(0, room), rng.randint(0, room)
        pieces.append(picture[:, top : top + side, left : left + side])
    return torch.stack(pieces).contiguous(memory_format=torch.channels_last)


def new_model(config: VqConfig) -> Vq:
    model = Vq(config)
    for module in model.modules():
        if isinstance(module, (ResidualBlock, CellBlock)):  # every block starts as the identity
            nn.init.zeros_(module.conv2.weight)
            assert module.conv2.bias is not None
            nn.init.zeros_(module.conv2.bias)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.no_grad()
def spread(model: Vq, x_B3HW: Tensor) -> None:
    """Set the last layer of the encoder so that the cells of a batch point in all directions.

    At first they nearly agree, and it takes long until more than brightness tells them apart: so their mean is taken
    away, and their first principal components get the same size.
    """
    *before, last = model.encoder.children()
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    features_NC = cells(nn.Sequential(*before)(x_B3HW))
    mean_C = features_NC.mean(0)
    _, sizes, axes = torch.linalg.svd(features_NC - mean_C, full_matrices=False)
    wide = model.config.code_width
    weight = axes[:wide] / (sizes[:wide, None] / len(features_NC) ** 0.5)
    last.weight.copy_(weight[:, :, None, None])
    last.bias.copy_(-weight @ mean_C)


@torch.no_grad()
def reconstruct(model: Vq, x: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures through the codes (clamped), and the codes ``[B, N]``."""
    side = x.shape[-1] // model.config.stride
    with loop.mixed_precision(x.device):
        latent = model.encode(x)
    index = model.quantize.nearest(latent.float())
    with loop.mixed_precision(x.device):
        return model.decode(model.quantize.map(index, (side, side))).clamp(-1, 1), index


def evaluate(model: Vq, x: Tensor, sheet: Path | None) -> dict[str, float]:
    """PSNR (dB), and what is drawn only: how many codes are in use, and how many the plain white cells take."""
    y, index = (torch.cat(parts) for parts in zip(*(reconstruct(model, part) for part in x.split(32)), strict=True))
    white = (F.avg_pool2d(x, model.config.stride) == 1).all(1).flatten(1)
    result = {
        "psnr": psnr(y, x).mean().item(), "codes": float(index.unique().numel()),
        "white_codes": float(index[white].unique().numel()),
    }  # fmt: skip
    if sheet:
        save_comparison(x, y, sheet)
    return result


def train(scenes: Scenes, folder: Path, run: CodebookRun, device: torch.device, stop_after: int | None = None) -> Path:
    """Train (or resume from ``folder/codebook.pt``) and return the checkpoint's path.

    ``stop_after`` ends this call after so many steps, with a checkpoint, wherever the recipe is.
    """
    path = folder / "codebook.pt"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(run.seed)
    model = new_model(run.config).to(device)
    moving = MovingCodes(model.quantize, run.dead)
    spread(model, draw_batch(scenes, run.seed, 4 * run.batch, device))
    average = copy.deepcopy(model).eval()
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, run.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    step, history = 0, list[dict[str, float]]()
    if path.exists():
        state = loop.load_checkpoint(path)
        loop.check_resumes(path, state["config"], asdict(run.config))
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        moving.count_V, moving.sum_Vc = state["count_V"].to(device), state["sum_Vc"].to(device)
        step, history = state["step"], state["history"]
        print(f"resuming at step {step}", flush=True)
    held_out = draw_batch(scenes, HELD_OUT_SEED, 128, device)
    started, first, losses = time.time(), step, torch.zeros(2)
    last = min(run.steps, step + stop_after) if stop_after else run.steps
    while step < last:
        frozen, generator = step >= run.freeze, loop.generator_at(run.seed, step)
        rate = loop.learning_rate(step - run.freeze, run.steps - run.freeze) if frozen else (
            loop.learning_rate(step, run.freeze)
        )  # fmt: skip
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate * rate
        x = draw_batch(scenes, run.seed * 1_000_003 + step, run.batch, device)
        if frozen:
            x = cropped(x, run.crop, step)
        with loop.mixed_precision(device), torch.set_grad_enabled(not frozen):
            latent = (average if frozen else model).encode(x)
        if step == run.warm:
            moving.start(cells(latent.detach()), generator)
        index = model.quantize.nearest(latent.detach())
        codes = latent if step < run.warm else model.quantize.map(index, latent.shape[-2:])  # type: ignore[arg-type]
        commitment = torch.zeros((), device=device)
        if not frozen:
            commitment = (latent - codes).square().sum(1).mean()
            codes = latent + (codes - latent).detach()
        with loop.mixed_precision(device):
            y = model.decoder(codes.contiguous(memory_format=torch.channels_last))
        loss = reconstruction_loss(y.float(), x)
        (loss + run.commitment * commitment).backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if run.warm <= step < run.freeze:
            revive = generator if step % 10 == 0 and step < 0.8 * run.freeze else None
            moving.update(cells(latent.detach()), index.flatten(), revive)
        update_average(average, model, step, frozen)
        step += 1
        if step == run.freeze:  # what the transformer learns from
            model.load_state_dict(average.state_dict())
        losses += torch.stack([loss, commitment]).detach().cpu()
        if step % 50 == 0:
            pace = (time.time() - started) / (step - first)
            told = f"loss {losses[0] / 50:.4f}, commitment {losses[1] / 50:.4f}"
            print(f"step {step}: {told}; {pace:.2f} s/step", flush=True)
            losses.zero_()
        if step % run.evaluate_every == 0 or step == last:
            result = evaluate(average, held_out, folder / "codebook.png")
            history.append({"step": step, **result})
            print(f"step {step}: held-out {', '.join(f'{k} {v:.2f}' for k, v in result.items())}", flush=True)
            loop.save_checkpoint(path, {
                "model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(),
                "count_V": moving.count_V, "sum_Vc": moving.sum_Vc, "step": step, "history": history,
                "config": asdict(run.config), "run": asdict(run),
            })  # fmt: skip
    return path


@torch.no_grad()
def update_average(average: Vq, model: Vq, step: int, frozen: bool) -> None:
    """The moving average of what learns; the codes are one already."""
    if not frozen:
        loop.update_average(average, model, step, 0.995)
        average.quantize.load_state_dict(model.quantize.state_dict())
        return
    loop.update_average(average.decoder, model.decoder, step, 0.998)


def load_trained(path: Path) -> tuple[Vq, dict[str, Any]]:
    """The averaged tokenizer of a checkpoint, in evaluation mode, and the checkpoint's other contents."""
    state = loop.load_checkpoint(path)
    config = state["config"]
    model = Vq(VqConfig(**{**config, "width_mult": tuple(config["width_mult"])}))
    model.load_state_dict(state.pop("average"))
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last), state  # type: ignore[call-overload]
