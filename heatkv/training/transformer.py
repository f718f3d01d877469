"""Stage 2: the transformer, trained to predict the bits of every scale from those before and the prompt."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatkv.cache import Attend
from heatkv.models.infinity.autoencoder import Autoencoder, BitQuantizer
from heatkv.models.infinity.model import InfinityModel
from heatkv.models.infinity.text import Vocabulary, WordEncoder
from heatkv.models.infinity.transformer import InfinityTransformer, SelfAttention, TextFeatures, TransformerConfig
from heatkv.scales import ScaleSchedule
from heatkv.training import data, loop, scenes, sheet, tokenizer
from heatkv.training.pool import HELD_OUT, Batch, Pool

MAX_WORDS = 16
GROUNDED = 2  # tokens a side: one token covers more than one thing


@dataclass(frozen=True)
class TransformerRun:
    """Settings of a transformer training run; defaults are the CPU recipe.

    One step in ``full_every`` sees all scales, the others only the first ``short_scales`` in larger batches, which is
    cheap and teaches layout first. What is shown grows at the steps ``grow`` and ``widen`` (``scenes.Course``); the
    CPU recipe ends before. A ring of ``pool`` pictures begins with ``start`` of them, and every step renews
    ``fresh``.
    ``flip`` is the largest share of bits flipped in the model's input (the residual is recomputed, so that later
    scales learn to correct); ``forget`` the largest share of input tokens blanked, so that what is not seen must be
    remembered from earlier scales. ``grounding`` is the weight of saying, half-way through the blocks, which thing
    covers a token's cell, on maps of ``GROUNDED`` tokens a side or more: forms are learned long before words decide
    between them, and this asks for the words directly. So does a share ``unseen`` of a batch, whose tokens are all
    blank: of it only that is asked, and it follows from the prompt alone. ``compile`` compiles the blocks (a minute or
    two at the start; needs a C++ compiler on CPU). At every evaluation ``samples`` images are drawn into
    ``samples-STEP.png``.
    """

    steps: int = 8700
    grow: int = 30000
    widen: int = 60000
    batch: int = 8
    short_batch: int = 32
    short_scales: int = 7
    full_every: int = 2
    pool: int = 32768
    start: int = 2048
    fresh: int = 4
    learning_rate: float = 2e-3
    temperature_rate: float = 1e-2
    start_temperature: float = 8.0
    flip: float = 0.25
    forget: float = 0.4
    unseen: float = 0.125
    drop: float = 0.1
    grounding: float = 0.15
    compile: bool = True
    depth: int = 8
    width: int = 256
    heads: int = 8
    evaluate_every: int = 250
    samples: int = 16
    seed: int = 0


class TeacherForcing:
    """The first ``count`` scales at once: every token sees its own scale and the scales before it."""

    def __init__(self, scales: ScaleSchedule, count: int, device: torch.device) -> None:
        level = torch.cat([torch.full((n,), k) for k, n in enumerate(scales.tokens[:count])]).to(device)
        self.mask_NN = level[:, None] >= level[None, :]
        # The small scales go together under a mask, each larger one alone over what it may see.
        coarse = max(1, min(count, 5))
        self.ends = [scales.bounds[k][1] for k in range(coarse - 1, count)]

    def attend(
        self, layer: int, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor, mask_BNN: Tensor | None = None
    ) -> Tensor:
        if q_BHND.device.type != "cpu":
            return F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND, attn_mask=self.mask_NN, scale=1.0)
        # Plain products: the fused CPU kernel's backward pass takes twice as long at these sizes.
        outs, start = [], 0
        for end in self.ends:
            logits = q_BHND[:, :, start:end] @ k_BHND[:, :, :end].transpose(-1, -2)
            if start == 0:
                logits = logits.masked_fill(~self.mask_NN[:end, :end], float("-inf"))
            outs.append(logits.softmax(-1) @ v_BHND[:, :, :end])
            start = end
        return torch.cat(outs, dim=2)


class TextToBits(nn.Module):
    """Text encoder and transformer as one trainable module."""

    def __init__(self, vocabulary: Vocabulary, config: TransformerConfig, scales: ScaleSchedule, things: int) -> None:
        super().__init__()
        self.text = WordEncoder(vocabulary, config.text_width, config.text_maxlen)
        self.transformer = InfinityTransformer(config, scales)
        self.things = nn.Linear(config.width, things + 1)

    def forward(self, ids_BN: Tensor, drop_B: Tensor, codes_BNd: Tensor, cache: Attend) -> tuple[Tensor, Tensor]:
        """Logits ``[B, N, bits, 2]`` for all scales, and ``[B, N, things + 1]`` of what covers their cells.

        ``drop_B`` rows see the learned empty prompt.
        """
        model = self.transformer
        text = self.text(ids_BN)
        empty = model.unconditional(text.mask_BN)
        features = torch.where(drop_B[:, None, None], empty.features_BNC.to(text.features_BNC.dtype), text.features_BNC)
        condition = model.condition(TextFeatures(features, text.mask_BN))
        start = model.embed(None, condition)
        x = torch.cat([start, model.embed(codes_BNd, condition).to(start.dtype)], 1)
        if torch.is_autocast_enabled(x.device.type):
            x = x.bfloat16()  # halves the memory traffic of everything between the matrix products
        half = []

        def look(layer: int, x_BNC: Tensor) -> Tensor:
            if layer == (model.config.depth - 1) // 2:
                half.append(x_BNC)
            return x_BNC

        logits = model.logits(model(x, 0, condition, cache, look), condition)
        return logits, self.things(half[0])


@torch.no_grad()
def teacher_inputs(
    quantizer: BitQuantizer, latent: Tensor, scales: int, flip: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Inputs ``[B, N - t_0, d]`` of all scales but the first, and the bits ``[B, N, d]`` to predict.

    Flipped bits go into the running sum, and the bits to predict are those of the residual that the
    flipped sum leaves: the model learns to repair its own mistakes.
    """
    residual, total = latent, torch.zeros_like(latent)
    inputs, targets = [], []
    for k in range(scales):
        if k > 0:
            inputs.append(quantizer.next_input(total, k))
        bits = quantizer.residual_bits(residual, k)
        targets.append(bits)
        if flip > 0:
            rate = torch.rand(len(bits), 1, 1, generator=generator) * flip
            bits = bits ^ (torch.rand(bits.shape, generator=generator) < rate).to(bits.device)
        code = quantizer.upsample(quantizer.code(bits, k))
        total, residual = total + code, residual - code
    return torch.cat(inputs, 1), torch.cat(targets, 1)


def bit_loss(logits: Tensor, bits: Tensor, scales: ScaleSchedule, count: int) -> Tensor:
    """Cross entropy, every scale weighted by its side length (a compromise of per token and per scale)."""
    log_odds = logits[..., 1] - logits[..., 0]
    per_token = F.binary_cross_entropy_with_logits(log_odds, bits.float(), reduction="none").mean((0, 2))
    weight = torch.cat([torch.full((n,), 1 / math.sqrt(n)) for n in scales.tokens[:count]]).to(logits.device)
    return (per_token * weight).sum() / weight.sum()


def thing_loss(things_BNT: Tensor, batch: Batch, scales: ScaleSchedule, count: int, rows: slice) -> Tensor:
    """Cross entropy of what covers the cells of rows, of the scales from `GROUNDED` on, every scale counting alike."""
    total, asked = torch.zeros((), device=things_BNT.device), 0
    for (h, w), (first, end) in list(zip(scales, scales.bounds, strict=True))[:count]:
        if h >= GROUNDED:
            seen_N = batch.things_seen_at(h, w)[rows].flatten()
            total = total + F.cross_entropy(things_BNT[rows, first:end].float().flatten(0, 1), seen_N)
            asked += 1
    return total / max(1, asked)


def make_optimizers(model: TextToBits, run: TransformerRun) -> list[tuple[torch.optim.Optimizer, list[float]]]:
    """Muon for the matrices of the blocks, AdamW for the rest, temperatures at a rate of their own."""
    blocks = [p for n, p in model.transformer.blocks.named_parameters() if p.ndim == 2]
    temperatures = [m.scale_mul_1H11 for m in model.modules() if isinstance(m, SelfAttention)]
    taken = {id(p) for p in blocks + temperatures}
    rest = [p for p in model.parameters() if id(p) not in taken]
    rates = [run.learning_rate, run.temperature_rate]
    groups = [{"params": rest, "weight_decay": 0.0}, {"params": temperatures, "weight_decay": 0.0}]
    muon = torch.optim.Muon(blocks, run.learning_rate, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [(muon, rates[:1]), (torch.optim.AdamW(groups, rates[0], betas=(0.9, 0.95)), rates)]


def encode(autoencoder: Autoencoder, x_B3HW: Tensor) -> Tensor:
    with loop.mixed_precision(x_B3HW.device):
        return autoencoder.encode(x_B3HW)


@torch.no_grad()
def evaluate(
    model: TextToBits, quantizer: BitQuantizer, held_out: Batch, batch: int = 32
) -> tuple[list[float], float, float, float]:
    """Share of bits predicted right from true earlier scales and the prompt, per scale and in all.

    And how often a token of the last scale on a thing says which, with earlier scales to see and without.
    """
    latents, prompts = held_out.rows, held_out.prompts
    device, scales = latents.device, quantizer.scales
    cache = TeacherForcing(scales, len(scales), device)
    right, named, placed = [], [], []
    first_fine, fine_BN = scales.bounds[-1][0], held_out.things_seen_at(*scales[-1])
    for first in range(0, len(prompts), batch):
        codes, bits = teacher_inputs(quantizer, latents[first : first + batch], len(scales), 0.0, torch.Generator())
        ids = word_ids(model.text, prompts[first : first + batch]).to(device)
        with loop.mixed_precision(device):
            kept_B = torch.zeros(len(ids), dtype=torch.bool, device=device)
            logits, things_BNT = model(ids, kept_B, codes, cache)
            _, unseen_BNT = model(ids, kept_B, torch.zeros_like(codes), cache)
        placed.append(unseen_BNT[:, first_fine:].argmax(-1) == fine_BN[first : first + batch])
        named.append(things_BNT[:, first_fine:].argmax(-1) == fine_BN[first : first + batch])
        right.append((logits.argmax(-1).bool() == bits).float().mean(2))
    right_N = torch.cat(right).mean(0)
    on_things, from_words = (torch.cat(hits)[fine_BN > 0].float().mean().item() for hits in (named, placed))
    return [right_N[a:b].mean().item() for a, b in scales.bounds], right_N.mean().item(), on_things, from_words


def word_ids(encoder: WordEncoder, prompts: list[str]) -> Tensor:
    """Ids ``[len(prompts), MAX_WORDS]``: always as wide, so that compiled blocks see one shape."""
    ids = torch.zeros(len(prompts), MAX_WORDS, dtype=torch.long)
    for row, prompt in zip(ids, prompts, strict=True):
        known = encoder.known_and_unknown(prompt)[0] or [1]
        row[: len(known)] = torch.tensor(known)
    return ids


def zero(linear: nn.Module) -> None:
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)


def new_model(vocabulary: Vocabulary, scales: ScaleSchedule, bits: int, things: int, run: TransformerRun) -> TextToBits:
    config = TransformerConfig(
        depth=run.depth, width=run.width, heads=run.heads, bits=bits, text_width=run.width, text_maxlen=MAX_WORDS,
        rope_grid=(64, 64), max_scales=len(scales), places=True,
    )  # fmt: skip
    model = TextToBits(vocabulary, config, scales, things)
    with torch.no_grad():
        for block in model.transformer.layers:
            for residual in (block.sa.proj, block.ca.proj, block.ffn.fc2):  # every block starts as the identity
                zero(residual)
            block.ada_gss[:, :, :2] = 1.0  # gains
            block.sa.scale_mul_1H11.fill_(math.log(run.start_temperature))
        zero(model.transformer.shared_ada_lin[1])
        zero(model.transformer.head_nm.ada_lin[1])
        nn.init.normal_(model.transformer.lvl_embed.weight, std=0.1)
        assert model.transformer.place_embed is not None
        nn.init.normal_(model.transformer.place_embed.weight, std=0.1)
        nn.init.normal_(model.transformer.word_embed.weight, std=0.5)
        nn.init.normal_(model.text.embedding.weight, std=0.2)
        nn.init.normal_(model.text.position, std=0.1)
    return model


def draw_samples(average: TextToBits, autoencoder: Autoencoder, prompts: list[str], path: Path) -> None:
    """A small contact sheet of the same prompts every time."""
    model = InfinityModel("training", average.text, average.transformer, autoencoder, sheet.SAMPLING)
    sheet.sample_sheet(model, prompts, [0], path, zoom=1)


def train(
    dataset: data.Dataset, folder: Path, run: TransformerRun, device: torch.device, stop_after: int | None = None
) -> Path:
    """Train (or resume from ``folder/transformer.pt``) and return the checkpoint's path.

    ``stop_after`` ends this call after so many steps, with a checkpoint, wherever the recipe is.
    """
    path = folder / "transformer.pt"
    torch.manual_seed(run.seed)
    autoencoder = tokenizer.load_trained(folder / "tokenizer.pt").to(device)
    quantizer = autoencoder.quantizer
    scales = quantizer.scales
    course = scenes.Course(dataset, run.grow, run.widen, run.steps)
    model = new_model(course.vocabulary, scales, autoencoder.config.token_bits, len(course.things), run).to(device)
    average = copy.deepcopy(model).eval()
    optimizers = make_optimizers(model, run)
    step, history = 0, []
    if path.exists():
        state = loop.load_checkpoint(path)
        loop.check_resumes(path, {**state, **state["config"]}, {**asdict(model.transformer.config), **course.known})
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for (optimizer, _), saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, history = state["step"], state["history"]
        print(f"resuming at step {step}", flush=True)
    held_out = Pool(lambda x: encode(autoencoder, x), device, 96, course.things)
    held_out.add(course.last.draw, HELD_OUT, 96)
    pool = Pool(lambda x: encode(autoencoder, x), device, run.pool, course.things, run.seed)
    pool.add(course.at(step).draw, run.fresh * step, run.start)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, {len(pool.rows)} pictures", flush=True)
    if run.compile:
        for block in model.transformer.layers:
            block.compile()
    caches = {k: TeacherForcing(scales, k, device) for k in (run.short_scales, len(scales))}
    last = min(run.steps, step + stop_after) if stop_after else run.steps
    started, begun = time.time(), step
    losses: dict[int, list[Tensor]] = {k: [] for k in caches}
    while step < last:
        generator = loop.generator_at(run.seed, step)
        for optimizer, rates in optimizers:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * loop.learning_rate(step, run.steps)
        full = step % run.full_every == 0
        count, rows = (len(scales), run.batch) if full else (run.short_scales, run.short_batch)
        pool.add(course.at(step).draw, run.start + run.fresh * step, run.fresh)
        batch = pool.draw(rows, generator)
        codes, bits = teacher_inputs(quantizer, batch.rows, count, run.flip, generator)
        unseen = round(run.unseen * rows)
        forgotten = loop.forgotten(rows, codes.shape[1], run.forget, unseen, generator).to(device)
        codes = codes.masked_fill(forgotten[..., None], 0)
        ids = word_ids(model.text, batch.prompts).to(device)
        drop = (torch.rand(rows, generator=generator) < run.drop).to(device)
        with loop.attention_kernels(device):
            with loop.mixed_precision(device):
                logits, things_BNT = model(ids, drop, codes, caches[count])
            loss = bit_loss(logits[unseen:], bits[unseen:], scales, count)
            named = thing_loss(things_BNT, batch, scales, count, slice(unseen, None))
            placed = thing_loss(things_BNT, batch, scales, count, slice(unseen)) if unseen else 0.0
            (loss + run.grounding * (named + placed)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loop.update_average(average, model, step, 0.998)
        losses[count].append(loss.detach())
        step += 1
        if step % 50 == 0:
            means = ", ".join(f"{k} scales {torch.stack(v).mean():.4f}" for k, v in losses.items() if v)
            losses = {k: [] for k in caches}
            print(f"step {step}: loss {means}; {(time.time() - started) / (step - begun):.2f} s/step", flush=True)
            started, begun = time.time(), step
        if step % run.evaluate_every == 0 or step == last:
            per_scale, mean, on_things, from_words = evaluate(average, quantizer, held_out.all())
            history.append({
                "step": step, "bit_accuracy": mean, "things": on_things, "placed": from_words, "per_scale": per_scale,
            })  # fmt: skip
            told = " ".join(f"{a:.3f}" for a in per_scale)
            print(f"step {step}: bit accuracy {mean:.4f}, things {on_things:.3f}", end=", ")
            print(f"placed {from_words:.3f}, per scale {told}", flush=True)
            loop.save_checkpoint(path, {
                "model": model.state_dict(), "average": average.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer, _ in optimizers], "step": step, "history": history,
                "config": asdict(model.transformer.config), "words": list(model.text.vocabulary.words),
                "things": course.things, "run": asdict(run),
            })  # fmt: skip
            if run.samples:
                draw_samples(average, autoencoder, held_out.prompts[: run.samples], folder / f"samples-{step:06d}.png")
    return path
