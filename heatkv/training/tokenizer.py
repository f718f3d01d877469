"""Stage 1: the bitwise autoencoder, trained to reconstruct pictures through its own bits."""

from __future__ import annotations

import copy
import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from heatkv.models.infinity.autoencoder import Autoencoder, AutoencoderConfig, ResidualBlock
from heatkv.scales import ScaleSchedule
from heatkv.training import loop
from heatkv.training.scenes import Scenes

SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
HELD_OUT_SEED = 10_000_000


@dataclass(frozen=True)
class TokenizerRun:
    """Settings of a tokenizer training run; defaults are the CPU recipe.

    ``side`` pixels of a picture are ``stride`` times the last of the ``scales`` (sides of token maps). ``base_width``
    times ``width_mult`` are the widths of the convolutions at every resolution, after ``patch`` x ``patch`` pixels were
    packed into one; each resolution but the last is halved, until ``stride`` is reached. ``everyday``:
    of everyday things in scenes alone (``scenes.EVERYDAY_SCENES``), else of everything.
    """

    side: int = 128
    scales: tuple[int, ...] = SCALES
    stride: int = 8
    bits: int = 16
    base_width: int = 64
    width_mult: tuple[int, ...] = (1, 2)
    patch: int = 4
    everyday: bool = True
    steps: int = 2600
    batch: int = 16
    learning_rate: float = 2e-3
    commitment: float = 0.4
    truncate: float = 0.1
    evaluate_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scales[-1] * self.stride != self.side:
            raise ValueError(
                f"a last scale of {self.scales[-1]} and a stride of {self.stride} make pictures of "
                f"{self.scales[-1] * self.stride} pixels, not {self.side}: set --side, --scales and --stride to agree"
            )
        if self.config.halvings != len(self.width_mult) - 1:
            raise ValueError(
                f"a stride of {self.stride} after a patch of {self.patch} is {self.config.halvings} halvings: "
                f"--width-mult needs {self.config.halvings + 1} values"
            )

    @property
    def config(self) -> AutoencoderConfig:
        return AutoencoderConfig(
            base_width=self.base_width, width_mult=self.width_mult, bits=self.bits, stride=self.stride, normalize=True,
            norm_groups=0, patch=self.patch, steps=tuple(0.5 * 0.85**k for k in range(len(self.scales))),
        )  # fmt: skip


def to_model(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 ``[B, H, W, 3]`` to float in [-1, 1], channels last."""
    x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


def to_uint8(image_B3HW: Tensor) -> np.ndarray:
    return ((image_B3HW + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """L1 over a 4-level pyramid plus L1 of the gradients over 3 levels: colours and edges."""
    loss = (y - x).abs().mean()
    for _ in range(3):
        loss = loss + ((y[:, :, 1:] - y[:, :, :-1]) - (x[:, :, 1:] - x[:, :, :-1])).abs().mean()
        loss = loss + ((y[..., 1:] - y[..., :-1]) - (x[..., 1:] - x[..., :-1])).abs().mean()
        y, x = F.avg_pool2d(y, 2), F.avg_pool2d(x, 2)
        loss = loss + (y - x).abs().mean()
    return loss


def quantize_for_training(
    model: Autoencoder, latent: Tensor, truncate: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Straight-through quantisation and the commitment loss.

    A share ``truncate`` of the pictures keeps only its first scales, so that coarse scales alone
    decode to something. The step of each scale follows the mean size of what it has to code.
    """
    quantizer = model.quantizer
    scales = len(quantizer.scales)
    rows = len(latent)
    cut = torch.randint(3, scales + 1, (rows,), generator=generator)
    kept = torch.where(torch.rand(rows, generator=generator) < truncate, cut, scales).to(latent.device)
    target, total = latent.detach(), torch.zeros_like(latent)
    residual = target
    for k in range(scales):
        bits = quantizer.residual_bits(residual, k)
        with torch.no_grad():
            size = F.adaptive_avg_pool2d(residual, quantizer.maps[k]).abs().mean()
            quantizer.code_size_S[k].lerp_(size, 0.01)
        code = quantizer.upsample(quantizer.code(bits, k)) * (k < kept)[:, None, None, None]
        total, residual = total + code, residual - code
    complete = (kept == scales)[:, None, None, None]
    commitment = ((latent - total).square() * complete).sum(1).mean()
    return total + (latent - target), commitment


def psnr(a: Tensor, b: Tensor) -> Tensor:
    return 10 * torch.log10(4 / (a - b).square().mean((1, 2, 3)))


@torch.no_grad()
def reconstruct(model: Autoencoder, x: Tensor) -> Tensor:
    with loop.mixed_precision(x.device):
        latent = model.encode(x)
    _, total = model.quantizer.quantize(latent)
    with loop.mixed_precision(x.device):
        return model.decode(total)


def draw_batch(scenes: Scenes, seed: int, count: int, device: torch.device) -> Tensor:
    """Pictures ``[count, 3, side, side]`` in [-1, 1], the same for the same seed."""
    rng = random.Random(seed)
    return to_model(np.stack([scenes.draw(rng).image for _ in range(count)]), device)


def save_comparison(x: Tensor, y: Tensor, path: Path) -> None:
    """A sheet of (up to 32) pictures, eight a row, each row above its reconstruction."""
    rows = len(x[:32]) // 8
    pairs = [np.concatenate(list(to_uint8(z[8 * r : 8 * r + 8])), 1) for r in range(rows) for z in (x, y)]
    if pairs:
        Image.fromarray(np.concatenate(pairs)).save(path)


def evaluate(model: Autoencoder, x: Tensor, sheet: Path | None) -> dict[str, float]:
    """Reconstruction PSNR (dB) of pictures ``x``."""
    y = torch.cat([reconstruct(model, part) for part in x.split(32)])
    if sheet:
        save_comparison(x, y, sheet)
    return {"psnr": psnr(y, x).mean().item()}


def channels_last(model: Autoencoder) -> Autoencoder:
    """The memory layout in which CPU and GPU convolutions are fastest."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def new_model(run: TokenizerRun) -> Autoencoder:
    model = Autoencoder(ScaleSchedule.square(run.scales), run.config)
    for module in model.modules():
        if isinstance(module, ResidualBlock):  # every block starts as the identity
            nn.init.zeros_(module.conv2.weight)
            assert module.conv2.bias is not None
            nn.init.zeros_(module.conv2.bias)
    return channels_last(model)


def current_config(model: Autoencoder) -> AutoencoderConfig:
    """The configuration with the code steps as trained."""
    steps = model.quantizer.code_size_S * model.config.bits**0.5
    return replace(model.config, steps=tuple(round(float(s), 6) for s in steps))


def side_of(model: Autoencoder) -> int:
    """Pixels of a side of its pictures."""
    return model.quantizer.final_map[0] * model.config.stride


def train(scenes: Scenes, folder: Path, run: TokenizerRun, device: torch.device, stop_after: int | None = None) -> Path:
    """Train (or resume from ``folder/tokenizer.pt``) and return the checkpoint's path.

    ``stop_after`` ends this call after so many steps, with a checkpoint, wherever the recipe is.
    """
    path = folder / "tokenizer.pt"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(run.seed)
    model = new_model(run).to(device)
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), run.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    step = 0
    history: list[dict[str, float]] = []
    if path.exists():
        state = loop.load_checkpoint(path)
        asked = {**asdict(model.config), "scales": [h for h, _ in model.quantizer.scales]}
        del asked["steps"]  # which are learned
        loop.check_resumes(path, {**state["config"], "scales": state.get("scales", SCALES)}, asked)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        model.quantizer.code_size_S.copy_(state["code_size_S"])
        step, history = state["step"], state["history"]
        print(f"resuming at step {step}", flush=True)
    held_out = draw_batch(scenes, HELD_OUT_SEED, min(128, 8 * run.batch), device)
    started, losses = time.time(), torch.zeros(2)
    first = step
    last = min(run.steps, step + stop_after) if stop_after else run.steps
    while step < last:
        generator = loop.generator_at(run.seed, step)
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate * loop.learning_rate(step, run.steps)
        x = draw_batch(scenes, run.seed * 1_000_003 + step, run.batch, device)
        with loop.mixed_precision(device):
            latent = model.encode(x)
        total, commitment = quantize_for_training(model, latent, run.truncate, generator)
        with loop.mixed_precision(device):
            y = model.decoder(total)
        loss = reconstruction_loss(y.float(), x)
        (loss + run.commitment * commitment).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loop.update_average(average, model, step, 0.998)
        average.quantizer.code_size_S.copy_(model.quantizer.code_size_S)
        step += 1
        losses += torch.tensor([loss.item(), commitment.item()])
        if step % 50 == 0:
            pace = (time.time() - started) / (step - first)
            print(
                f"step {step}: loss {losses[0] / 50:.4f} commitment {losses[1] / 50:.4f}, {pace:.2f} s/step", flush=True
            )
            losses.zero_()
        if step % run.evaluate_every == 0 or step == last:
            result = evaluate(average, held_out, folder / "tokenizer.png")
            history.append({"step": step, **result})
            steps = [round(s, 2) for s in current_config(average).steps]
            print(
                f"step {step}: held-out PSNR {result['psnr']:.2f} dB, code {steps}", flush=True,
            )  # fmt: skip
            loop.save_checkpoint(path, {
                "model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(),
                "code_size_S": model.quantizer.code_size_S, "step": step, "history": history,
                "config": asdict(current_config(model)), "scales": list(run.scales), "run": asdict(run),
            })  # fmt: skip
    return path


def load_trained(path: Path) -> Autoencoder:
    """The averaged tokenizer of a checkpoint, in evaluation mode."""
    state = loop.load_checkpoint(path)
    config = state["config"]
    config = AutoencoderConfig(**{**config, "width_mult": tuple(config["width_mult"]), "steps": tuple(config["steps"])})
    model = Autoencoder(ScaleSchedule.square(state.get("scales", SCALES)), config)
    model.load_state_dict(state["average"])
    return channels_last(model.eval().requires_grad_(False))
