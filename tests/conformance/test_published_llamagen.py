"""The LlamaGen family computes what the official implementation computes (vectors in ../shared/conformance)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from heatkv.models.base import Sampling
from heatkv.models.llamagen.sampling import generate_lines, likely_first
from heatkv.models.llamagen.transformer import Condition, LlamaGenConfig, LlamaGenTransformer, causal_mask
from heatkv.models.llamagen.vq import Vq, VqConfig

CASES = ("c2i", "t2i")


class Everything:
    """Keeps all, in the simplest way: the reference for other caches.

    With ``at_once`` a call has all tokens (teacher forcing), otherwise those of one step.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.at_once = at_once
        self.kv_L: dict[int, tuple[Tensor, Tensor]] = {}
        self.probabilities_L: dict[int, Tensor] = {}
        self.padding_BT: Tensor | None = None

    def attend(
        self, layer: int, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor, mask_BNN: Tensor | None = None
    ) -> Tensor:
        if mask_BNN is not None:
            self.padding_BT = ~mask_BNN[:, -1]
        if layer in self.kv_L and not self.at_once:
            k_BHND, v_BHND = (torch.cat(pair, 2) for pair in zip(self.kv_L[layer], (k_BHND, v_BHND), strict=True))
        self.kv_L[layer] = k_BHND, v_BHND
        if mask_BNN is None:
            queries, keys = q_BHND.shape[2], k_BHND.shape[2]
            mask_BNN = torch.ones(queries, keys).tril(keys - queries).bool().expand(len(q_BHND), -1, -1).clone()
            if self.padding_BT is not None:
                mask_BNN[:, :, : self.padding_BT.shape[1]] &= ~self.padding_BT[:, None]
        bias = torch.zeros(mask_BNN.shape).masked_fill(~mask_BNN, -torch.inf)[:, None]
        self.probabilities_L[layer] = (q_BHND.double() @ k_BHND.double().transpose(-1, -2) + bias).softmax(-1)
        return F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND, attn_mask=bias, scale=1.0)


@dataclass(frozen=True)
class Case:
    """One of the tiny models with what its vectors were made from."""

    name: str
    transformer: LlamaGenTransformer
    vectors: dict[str, Tensor]
    facts: dict[str, Any]

    def condition(self, guided: bool = True) -> Condition:
        if self.name == "c2i":
            labels = self.vectors["in.labels"]
            none = torch.full_like(labels, self.transformer.config.classes)
            return self.transformer.read_classes(torch.cat([labels, none]) if guided else labels)
        features, mask = self.vectors["in.features_right"], self.vectors["in.mask_right"].bool()
        return self.transformer.read_captions(features, mask, guided)

    def teach(self, tokens_BN: Tensor) -> tuple[Tensor, Everything]:
        """Logits of all positions with these image tokens, without a cache."""
        condition, cache = self.condition(), Everything(at_once=True)
        image = self.transformer.tok_embeddings(tokens_BN[:, :-1]).repeat(2, 1, 1)
        x_BNC = torch.cat([condition.tokens_BTC, image], 1)
        real_BN = torch.ones(x_BNC.shape[:2]).bool()
        if condition.mask_BTT is not None:
            real_BN[:, : condition.mask_BTT.shape[1]] = condition.mask_BTT[:, -1]
        return self.transformer.logits(self.transformer(x_BNC, 0, cache, causal_mask(real_BN))), cache


def part(tensors: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {k.removeprefix(p): v for p in prefixes for k, v in tensors.items() if k.startswith(p)}


@pytest.fixture(scope="module")
def tiny(conformance: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    tensors = load_file(conformance / "llamagen_tiny.safetensors")
    return {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in tensors.items()}


@pytest.fixture(scope="module")
def facts(conformance: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((conformance / "llamagen_tiny.json").read_text())
    return facts


@pytest.fixture(scope="module")
def vq(tiny: dict[str, Tensor]) -> Vq:
    model = Vq(VqConfig(base_width=32, width_mult=(1, 2), inner_width=16, vocabulary=97))
    model.load_state_dict(part(tiny, "vq."))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tiny: dict[str, Tensor], facts: dict[str, Any]) -> Case:
    name = request.param
    config = facts[name]["config"]
    model = LlamaGenTransformer(LlamaGenConfig(
        config["n_layer"], config["dim"], config["n_head"], config["grid"],
        "class" if name == "c2i" else "caption", config.get("num_classes", 1000), config.get("caption_dim", 2048),
        config["cls_token_num"], config["vocab_size"],
    ))  # fmt: skip
    model.load_state_dict(part(tiny, f"{name}."))
    model.eval().requires_grad_(False)
    return Case(name, model, part(tiny, f"{name}_"), facts[name])


def greedy(case: Case, guided_steps: int = -1, guidance: float | None = None) -> tuple[Tensor, Tensor, Everything]:
    """Tokens ``[B, N]``, guided logits ``[N, B, V]`` and the cache of a run that takes the largest logits."""
    grid = case.transformer.config.grid
    sampling = Sampling(case.facts["config"]["cfg_scale"] if guidance is None else guidance, guided_steps=guided_steps)
    cache, logits = Everything(), list[Tensor]()
    noise = lambda line, shape: torch.zeros(2, *shape)  # noqa: E731
    codebook = Vq(VqConfig(vocabulary=case.transformer.config.vocabulary), with_encoder=False).quantize
    condition = case.condition(sampling.guided)
    lines = list(generate_lines(case.transformer, codebook, condition, cache, sampling, noise, logits))
    assert [line.scale for line in lines] == list(range(1, grid + 1))
    return torch.cat([line.tokens for line in lines], 1), torch.stack(logits), cache


def test_rotary_table_and_left_padding_equal_the_official_ones(case: Case) -> None:
    torch.testing.assert_close(case.transformer.rope_Nd2, case.vectors["rope.table"], atol=1e-6, rtol=0)
    if case.name == "t2i":
        mask_BTT = case.condition(guided=False).mask_BTT
        assert mask_BTT is not None
        assert torch.equal(mask_BTT[:, -1], case.vectors["in.mask"].bool())
        project = case.transformer.cls_embedding.cap_proj
        expected = project(case.vectors["in.features"])  # type: ignore[operator]
        torch.testing.assert_close(case.condition(guided=False).tokens_BTC, expected, atol=1e-6, rtol=0)


def test_greedy_generation_equals_the_official_one(case: Case) -> None:
    tokens, logits, cache = greedy(case)
    torch.testing.assert_close(logits, case.vectors["argmax.logits"], atol=1e-3, rtol=1e-4)
    assert torch.equal(tokens, case.vectors["argmax.tokens"])
    raw, _ = case.teach(tokens)
    first = case.transformer.config.condition_tokens - 1
    raw_NBV = raw[:, first:].transpose(0, 1)
    torch.testing.assert_close(raw_NBV, case.vectors["argmax.logits_raw"], atol=1e-3, rtol=1e-4)
    for i, name in enumerate(("argmax.cache_k_row0", "argmax.cache_v_row0")):
        mine = torch.stack([cache.kv_L[layer][i][0] for layer in range(2)])
        torch.testing.assert_close(mine, case.vectors[name], atol=1e-3, rtol=1e-4)


def test_guidance_of_the_first_steps_alone_and_none_equal_the_official_ones(case: Case) -> None:
    tokens, logits, _ = greedy(
        case, guided_steps=case.facts["config"].get("cfg_interval", 9 if case.name == "c2i" else 5)
    )
    torch.testing.assert_close(logits, case.vectors["interval.logits"], atol=1e-3, rtol=1e-4)
    assert torch.equal(tokens, case.vectors["interval.tokens"])
    tokens, _, cache = greedy(case, guidance=1.0)
    assert torch.equal(tokens, case.vectors["nocfg.tokens"])
    assert len(cache.kv_L[0][0]) == 2


def test_sampled_tokens_equal_the_official_ones(case: Case) -> None:
    """The vectors draw by the summed probability over ascending ids; ours draws from likely to unlikely."""
    config = case.facts["config"]
    tokens = case.vectors["sampled.tokens"]
    raw, _ = case.teach(tokens)
    conditional, free = raw[:, case.transformer.config.condition_tokens - 1 :].transpose(0, 1).chunk(2, 1)
    logits_NBV = free + (conditional - free) * config["cfg_scale"]
    torch.testing.assert_close(logits_NBV, case.vectors["sampled.logits"], atol=1e-3, rtol=1e-4)
    rule = config["sampled"]
    flat = logits_NBV.flatten(0, 1) / rule["temperature"]
    likely, order = likely_first(flat, rule["top_k"], rule["top_p"])
    p_NBV = torch.zeros(flat.shape, dtype=torch.float64).scatter(1, order, likely.double().softmax(-1))
    p_NBV = p_NBV.view_as(logits_NBV)
    torch.testing.assert_close(p_NBV.float(), case.vectors["sampled.probs"], atol=1e-4, rtol=0)
    drawn = (p_NBV.cumsum(-1) > case.vectors["sampled.u"][..., None]).int().argmax(-1)
    assert torch.equal(drawn.T, tokens)


def test_teacher_forcing_and_its_attention_equal_the_official_ones(case: Case) -> None:
    logits, cache = case.teach(case.vectors["argmax.tokens"])
    torch.testing.assert_close(logits, case.vectors["tf.logits"], atol=1e-3, rtol=1e-4)
    p_BLHNM = torch.stack([cache.probabilities_L[i] for i in range(len(cache.probabilities_L))], 1)
    torch.testing.assert_close(p_BLHNM[0].float(), case.vectors["attn.probs_row0"], atol=1e-5, rtol=0)
    mass = by_line(p_BLHNM, case.transformer.config.condition_tokens, case.transformer.config.grid)
    torch.testing.assert_close(mass, case.vectors["attn.mass"], atol=1e-5, rtol=0)


def by_line(p_BLHNM: Tensor, condition: int, grid: int) -> Tensor:
    """Mean mass of every line's queries on the condition and on every line, ``[B, L, H, grid, 1 + grid]``."""
    keys = p_BLHNM.shape[-1]
    ends = [condition, *(min(condition + (i + 1) * grid, keys) for i in range(grid))]
    bounds = list(zip([0, *ends], ends, strict=False))
    lines = [p_BLHNM[..., a:b, :].mean(-2) for a, b in bounds[1:]]
    return torch.stack([torch.stack([line[..., a:b].sum(-1) for a, b in bounds], -1) for line in lines], -2)


def test_filters_equal_the_official_ones(tiny: dict[str, Tensor], facts: dict[str, Any]) -> None:
    for i, rule in enumerate(facts["filters"]):
        kept = tiny[f"filter.kept_{i}"].bool()
        logits = tiny["filter.logits"][: len(kept)] / rule["temperature"]
        likely, order = likely_first(logits, rule["top_k"], rule["top_p"])
        mine = torch.zeros_like(kept).scatter(1, order, likely.isfinite())
        assert torch.equal(mine, kept), rule


def test_decoded_codes_equal_the_official_image(tiny: dict[str, Tensor], vq: Vq) -> None:
    latent = vq.quantize.map(tiny["vq_decode.codes"], (6, 6))
    torch.testing.assert_close(latent, tiny["vq_decode.latent"], atol=1e-4, rtol=0)
    torch.testing.assert_close(vq.decode(latent), tiny["vq_decode.image"], atol=1e-3, rtol=0)
    drawn = vq.decode(vq.quantize.map(tiny["c2i_argmax.tokens"], (6, 6)))
    torch.testing.assert_close(drawn, tiny["vq_tokens.image"], atol=1e-3, rtol=0)


def test_encoded_image_gives_the_official_codes(tiny: dict[str, Tensor], vq: Vq) -> None:
    image = tiny["vq_encode.image"]
    torch.testing.assert_close(vq.quant_conv(vq.encoder(image)), tiny["vq_encode.pre_quant"], atol=1e-4, rtol=0)
    codes = vq.quantize.nearest(vq.encode(image))
    assert torch.equal(codes, tiny["vq_encode.codes"])
    latent = vq.quantize.map(codes, (6, 6))
    torch.testing.assert_close(latent, tiny["vq_encode.latent"], atol=1e-4, rtol=0)
    torch.testing.assert_close(vq.decode(latent), tiny["vq_encode.reconstruction"], atol=1e-3, rtol=0)


def test_the_drawn_half_of_a_map_is_the_half_of_the_whole(vq: Vq) -> None:
    index = torch.arange(36)[None]
    whole, half = (vq.quantize.map(index[:, :n], (6, 6)) for n in (36, 18))
    assert torch.equal(half[:, :, :3], whole[:, :, :3])
    assert not half[:, :, 3:].any()
    assert np.allclose(whole.norm(dim=1), 1)
