"""An encoder for a model that ships its decoder alone, so that a new tokenizer can mean the same by its bits.

A transformer knows what a thing looks like in the bits of its tokenizer. A new tokenizer, of larger pictures, whose
coarse scales have the same bits can go on with that transformer; with other bits it would begin again.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn

from heatkv.models.infinity.autoencoder import Autoencoder
from heatkv.training import loop, tokenizer
from heatkv.training.scenes import Scenes

STEPS, BATCH, LEARNING_RATE, COMMITMENT = 800, 24, 2e-3, 0.4
PRINT_EVERY = 100


def fit(shipped: Autoencoder, scenes: Scenes, folder: Path, device: torch.device, steps: int = STEPS) -> Autoencoder:
    """``shipped`` with an encoder through which its frozen decoder reconstructs pictures best; kept in the folder."""
    config, scales = shipped.config, shipped.quantizer.scales
    model = tokenizer.channels_last(Autoencoder(scales, config).to(device))
    model.decoder.load_state_dict({name: value.float() for name, value in shipped.decoder.state_dict().items()})
    path = folder / "encoder.pt"
    if path.exists():
        model.load_state_dict(loop.load_checkpoint(path))
        return model.eval().requires_grad_(False)
    model.decoder.requires_grad_(False)
    assert model.encoder is not None
    optimizer = torch.optim.AdamW(model.encoder.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    started = time.time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * loop.learning_rate(step, steps, warmup=50, decay=0.5)
        x = tokenizer.as_seen_by(model, tokenizer.draw_batch(scenes, step, BATCH, device))
        with loop.mixed_precision(device):
            latent = model.encode(x)
        total, commitment = tokenizer.quantize_for_training(
            model, latent, 0.0, torch.Generator().manual_seed(step), settled=len(scales)
        )
        with loop.mixed_precision(device):
            y = model.decoder(total)
        (tokenizer.reconstruction_loss(y.float(), x) + COMMITMENT * commitment).backward()
        nn.utils.clip_grad_norm_(model.encoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % PRINT_EVERY == 0 or step + 1 == steps:
            psnr = tokenizer.psnr(tokenizer.reconstruct(model, x), x).mean().item()
            pace = (time.time() - started) / (step + 1)
            print(f"encoder, step {step + 1}: {psnr:.2f} dB, {pace:.2f} s/step", flush=True)
    loop.save_checkpoint(path, model.state_dict())
    return model.eval().requires_grad_(False)
