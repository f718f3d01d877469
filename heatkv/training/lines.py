"""Stage 2 of the model that draws by lines: predict every token from those before it and the prompt."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatkv.models.infinity.text import Vocabulary, WordEncoder
from heatkv.models.llamagen.transformer import LlamaGenConfig, LlamaGenTransformer
from heatkv.models.llamagen.vq import Vq
from heatkv.training import data, loop, scenes
from heatkv.training.pool import HELD_OUT, Batch, Pool


@dataclass(frozen=True)
class LinesRun:
    """Settings of a training run; defaults are the CPU recipe.

    What is shown grows at the steps ``grow`` and ``widen`` (``scenes.Course``); the CPU recipe ends before. A ring of
    ``pool`` pictures, as codes, begins with ``start``; every step renews ``fresh`` and learns from ``batch``. A share
    ``drop`` of the prompts is left out, for guidance. ``forget`` is the largest share of input tokens blanked
    (``loop.forgotten``). The learning rate falls to zero in the last ``decay`` of the run. ``grounding`` is the weight
    of saying, half-way through the blocks, which thing covers a token's cell: forms are learned long before words
    decide between them, and this asks for the words directly. So does a share ``unseen`` of a batch, whose tokens are
    all blank: of it only that is asked, and it follows from the prompt alone. ``compile`` compiles the blocks (a
    minute or two at the start; needs a C++ compiler).
    """

    steps: int = 19500
    grow: int = 30000
    widen: int = 60000
    batch: int = 16
    grounding: float = 0.2
    learning_rate: float = 2e-3
    decay: float = 0.15
    drop: float = 0.1
    forget: float = 0.3
    unseen: float = 0.125
    pool: int = 32768
    start: int = 2048
    fresh: int = 6
    depth: int = 8
    width: int = 192
    heads: int = 6
    words: int = 12
    compile: bool = True
    evaluate_every: int = 250
    seed: int = 0


class TeacherForcing:
    """All tokens at once: the condition's see one another, the image's see the condition and those before them."""

    def __init__(self, condition: int, total: int, device: torch.device) -> None:
        seen_NN = torch.ones(total, total, dtype=torch.bool).tril()
        seen_NN[:condition, :condition] = True
        self.bias_NN = torch.zeros(total, total).masked_fill(~seen_NN, -torch.inf).to(device)

    def attend(
        self, layer: int, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor, mask_BNN: Tensor | None = None
    ) -> Tensor:
        if q_BHND.device.type != "cpu":
            bias = self.bias_NN.to(q_BHND.dtype)
            return F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND, attn_mask=bias, scale=1.0)
        # Plain products, backwards faster than the fused CPU kernel; half of the tokens need half of the keys.
        outs, half = [], q_BHND.shape[2] // 2
        for start, end in ((0, half), (half, q_BHND.shape[2])):
            logits = q_BHND[:, :, start:end] @ k_BHND[:, :, :end].transpose(-1, -2)
            logits = logits + self.bias_NN[start:end, :end].to(logits.dtype)
            outs.append(logits.softmax(-1).to(v_BHND.dtype) @ v_BHND[:, :, :end])
        return torch.cat(outs, 2)


class TextToTokens(nn.Module):
    """Text encoder and transformer as one trainable module.

    While it learns, a code is read and predicted through its direction in the tokenizer too (``read_code``,
    ``write_code``), so that similar codes share what is learned; ``folded`` puts that into the plain weights.
    """

    codes_Vc: Tensor

    def __init__(self, vocabulary: Vocabulary, config: LlamaGenConfig, codes_Vc: Tensor, things: int) -> None:
        super().__init__()
        self.text = WordEncoder(vocabulary, config.caption_width, config.condition_tokens)
        self.transformer = LlamaGenTransformer(config)
        self.register_buffer("codes_Vc", codes_Vc * codes_Vc.shape[1] ** 0.5)
        self.read_code = nn.Linear(codes_Vc.shape[1], config.width, bias=False)
        self.write_code = nn.Linear(config.width, codes_Vc.shape[1], bias=False)
        self.things = nn.Linear(config.width, things + 1)
        self.start()

    @torch.no_grad()
    def start(self) -> None:
        """First values: blocks that do nothing, and embeddings of about the same size."""
        for block in self.transformer.layers:
            nn.init.zeros_(block.attention.wo.weight)  # type: ignore[union-attr,arg-type]
            nn.init.zeros_(block.feed_forward.w2.weight)  # type: ignore[union-attr,arg-type]
        for weight, std in (
            (self.transformer.tok_embeddings.weight, 0.1), (self.read_code.weight, 0.15),
            (self.transformer.output.weight, 0.01), (self.write_code.weight, 0.02),
            (self.text.position, 0.1),
        ):  # fmt: skip
            nn.init.normal_(weight, std=std)

    @property
    def embeddings_VC(self) -> Tensor:
        return self.transformer.tok_embeddings.weight + self.read_code(self.codes_Vc)

    @property
    def output_VC(self) -> Tensor:
        return self.transformer.output.weight + self.codes_Vc @ self.write_code.weight

    def forward(
        self,
        ids_BN: Tensor,
        drop_B: Tensor,
        tokens_BN: Tensor,
        cache: TeacherForcing,
        forgotten_BN: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Logits ``[B, N, vocabulary]`` of all image tokens, and ``[B, N, things + 1]`` of what covers their cells.

        ``drop_B`` rows see the learned empty prompt; of ``forgotten_BN`` tokens those after them see the place alone.
        """
        model = self.transformer
        text = self.text(ids_BN)
        condition_BTC, empty_BTC = model.read_captions(text.features_BNC, text.mask_BN, guided=True).tokens_BTC.chunk(2)
        condition_BTC = torch.where(drop_B[:, None, None], empty_BTC, condition_BTC)
        image_BNC = F.embedding(tokens_BN[:, :-1], self.embeddings_VC).to(condition_BTC.dtype)
        if forgotten_BN is not None:
            image_BNC = image_BNC.masked_fill(forgotten_BN[:, :-1, None], 0)
        x_BNC = torch.cat([condition_BTC, image_BNC], 1)
        if torch.is_autocast_enabled(x_BNC.device.type):
            x_BNC = x_BNC.bfloat16()  # halves the memory traffic of everything between the matrix products
        turn_N11d2 = model.rope_Nd2[: x_BNC.shape[1], None, None]
        first = model.config.condition_tokens - 1
        for layer, block in enumerate(model.layers):
            if layer == len(model.layers) // 2:
                things_BNT = self.things(x_BNC[:, first:])
            x_BNC = block(x_BNC, turn_N11d2, None, cache, layer)
        return F.linear(model.norm(x_BNC[:, first:]), self.output_VC), things_BNT

    @torch.no_grad()
    def folded(self) -> LlamaGenTransformer:
        """The transformer alone, which computes the same."""
        model = copy.deepcopy(self.transformer)
        model.tok_embeddings.weight.copy_(self.embeddings_VC)
        model.output.weight.copy_(self.output_VC)
        return model


def encoder(vq: Vq) -> Callable[[Tensor], Tensor]:
    """Writes pictures ``[B, 3, side, side]`` as codes ``[B, N]``."""

    def encode(x_B3HW: Tensor) -> Tensor:
        with loop.mixed_precision(x_B3HW.device):
            latent = vq.encode(x_B3HW)
        return vq.quantize.nearest(latent.float())

    return encode


def word_ids(text: WordEncoder, prompts: list[str]) -> Tensor:
    """Padded ids of the words the model knows; a prompt of none gets a row of padding, and is one to drop."""
    rows = [torch.tensor(text.known_and_unknown(prompt)[0], dtype=torch.long) for prompt in prompts]
    return nn.utils.rnn.pad_sequence([row if len(row) else torch.zeros(1, dtype=torch.long) for row in rows], True)


def make_config(run: LinesRun, vq: Vq, side: int) -> LlamaGenConfig:
    return LlamaGenConfig(
        run.depth, run.width, run.heads, side // vq.config.stride, "caption", caption_width=run.width,
        condition_tokens=run.words, vocabulary=vq.config.vocabulary, readable=True,
    )  # fmt: skip


def make_optimizers(model: TextToTokens, run: LinesRun) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest."""
    blocks = [p for p in model.transformer.layers.parameters() if p.ndim == 2]
    taken = {id(p) for p in blocks}
    rest = [p for p in model.parameters() if id(p) not in taken]
    rate = run.learning_rate
    muon = torch.optim.Muon(blocks, rate, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, rate, betas=(0.9, 0.95), weight_decay=0.0)]


def mean_cross_entropy(logits_BNV: Tensor, tokens_BN: Tensor) -> Tensor:
    """Nats a token. Compiled it takes half the time, and a tenth of a step is saved."""
    return F.cross_entropy(logits_BNV.float().flatten(0, 1), tokens_BN.flatten())


@torch.no_grad()
def evaluate(model: TextToTokens, held_out: Batch, cache: TeacherForcing, batch: int) -> dict[str, float]:
    """On held-out pictures: cross-entropy (nats a token), and how often the likeliest token is right.

    ``accuracy_drawn`` leaves out the commonest token of all, the blank background; ``things`` is how often a thing's
    cell is said to be of that thing, and ``placed`` how often it is with no token to see.
    """
    tokens_BN, prompts = held_out.rows, held_out.prompts
    device, grid = tokens_BN.device, model.transformer.config.grid
    covered_BN, blank_BN = held_out.things_seen_at(grid, grid), torch.ones_like(tokens_BN, dtype=torch.bool)
    loss, right, named, placed = [], [], [], []
    for first in range(0, len(prompts), batch):
        rows = slice(first, first + batch)
        ids_BN = word_ids(model.text, prompts[rows]).to(device)
        with loop.mixed_precision(device):
            logits_BNV, things_BNT = model(ids_BN, ids_BN[:, 0] == 0, tokens_BN[rows], cache)
            _, unseen_BNT = model(ids_BN, ids_BN[:, 0] == 0, tokens_BN[rows], cache, blank_BN[rows])
        logits_BNV = logits_BNV.float()
        named.append(things_BNT.argmax(-1) == covered_BN[rows])
        placed.append(unseen_BNT.argmax(-1) == covered_BN[rows])
        loss.append(F.cross_entropy(logits_BNV.flatten(0, 1), tokens_BN[rows].flatten(), reduction="none"))
        right.append(logits_BNV.argmax(-1) == tokens_BN[rows])
    hit_BN, drawn_BN = torch.cat(right).float(), tokens_BN != tokens_BN.flatten().mode().values
    return {
        "loss": torch.cat(loss).mean().item(),
        "accuracy": hit_BN.mean().item(),
        "accuracy_drawn": hit_BN[drawn_BN].mean().item(),
        "things": torch.cat(named)[covered_BN > 0].float().mean().item(),
        "placed": torch.cat(placed)[covered_BN > 0].float().mean().item(),
    }


def train(
    dataset: data.Dataset, vq: Vq, side: int, folder: Path, run: LinesRun, device: torch.device,
    stop_after: int | None = None,
) -> Path:  # fmt: skip
    """Train (or resume from ``folder/lines.pt``) and return the checkpoint's path.

    ``stop_after`` ends this call after so many steps, with a checkpoint, wherever the recipe is.
    """
    path = folder / "lines.pt"
    torch.manual_seed(run.seed)
    vq = vq.to(device).eval().requires_grad_(False)
    config = make_config(run, vq, side)
    course = scenes.Course(dataset, run.grow, run.widen, run.steps)
    codes_Vc = vq.quantize.directions_Vc.detach()
    model = TextToTokens(course.vocabulary, config, codes_Vc, len(course.things)).to(device)
    average = copy.deepcopy(model).eval()
    optimizers = make_optimizers(model, run)
    step, history = 0, list[dict[str, float]]()
    if path.exists():
        state = loop.load_checkpoint(path)
        loop.check_resumes(path, {**state, **state["config"]}, {**asdict(config), **course.known})
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, history = state["step"], state["history"]
        print(f"resuming at step {step}", flush=True)
    held_out = Pool(encoder(vq), device, 96, course.things)
    held_out.add(course.last.draw, HELD_OUT, 96)
    pool = Pool(encoder(vq), device, run.pool, course.things, run.seed)
    pool.add(course.at(step).draw, run.fresh * step, run.start)
    if run.compile:
        for block in model.transformer.layers:
            block.compile()
    token_loss = torch.compile(mean_cross_entropy) if run.compile else mean_cross_entropy
    cache = TeacherForcing(config.condition_tokens, config.condition_tokens + config.image_tokens - 1, device)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, {len(pool.rows)} pictures", flush=True)
    unseen = round(run.unseen * run.batch)
    last = min(run.steps, step + stop_after) if stop_after else run.steps
    started, first, losses = time.time(), step, list[Tensor]()
    while step < last:
        generator = loop.generator_at(run.seed, step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = run.learning_rate * loop.learning_rate(step, run.steps, decay=run.decay)
        pool.add(course.at(step).draw, run.start + run.fresh * step, run.fresh)
        batch = pool.draw(run.batch, generator)
        tokens_BN, grid = batch.rows, config.grid
        ids_BN = word_ids(model.text, batch.prompts).to(device)
        drop_B = (torch.rand(run.batch, generator=generator) < run.drop).to(device) | (ids_BN[:, 0] == 0)
        forgotten_BN = loop.forgotten(run.batch, tokens_BN.shape[1], run.forget, unseen, generator).to(device)
        with loop.mixed_precision(device):
            logits_BNV, things_BNT = model(ids_BN, drop_B, tokens_BN, cache, forgotten_BN)
        loss = token_loss(logits_BNV[unseen:], tokens_BN[unseen:])
        covered_BN = batch.things_seen_at(grid, grid)
        named, placed = (
            F.cross_entropy(things_BNT[rows].float().flatten(0, 1), covered_BN[rows].flatten())
            for rows in (slice(unseen, None), slice(unseen))
        )
        (loss + run.grounding * (named + placed if unseen else named)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loop.update_average(average, model, step, 0.998)
        losses.append(loss.detach())
        step += 1
        if step % 50 == 0:
            pace = (time.time() - started) / (step - first)
            print(f"step {step}: loss {torch.stack(losses).mean():.4f}; {pace:.2f} s/step", flush=True)
            losses.clear()
            started, first = time.time(), step
        if step % run.evaluate_every == 0 or step == last:
            result = evaluate(average, held_out.all(), cache, run.batch)
            history.append({"step": step, **result})
            print(f"step {step}: held-out {', '.join(f'{k} {v:.3f}' for k, v in result.items())}", flush=True)
            save(path, model, average, optimizers, step, history, course.things, run)
    return path


def save(
    path: Path, model: TextToTokens, average: TextToTokens, optimizers: list[torch.optim.Optimizer], step: int,
    history: list[dict[str, float]], things: list[str], run: LinesRun,
) -> None:  # fmt: skip
    loop.save_checkpoint(path, {
        "model": model.state_dict(), "average": average.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers], "step": step, "history": history,
        "config": asdict(model.transformer.config), "words": list(model.text.vocabulary.words),
        "things": things, "run": asdict(run),
    })  # fmt: skip


def load_trained(path: Path) -> tuple[WordEncoder, LlamaGenTransformer, dict[str, Any]]:
    """The averaged text encoder and transformer of a checkpoint, ready to run, and the checkpoint's other contents."""
    state = loop.load_checkpoint(path)
    average = state.pop("average")
    config = LlamaGenConfig(**state["config"])
    model = TextToTokens(Vocabulary(tuple(state["words"])), config, average["codes_Vc"], len(state["things"]))
    model.load_state_dict(average)
    return model.text.eval(), model.folded().eval(), state
