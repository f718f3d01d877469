"""The text encoder of the published models: the encoder half of a T5, through ``transformers``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heatkv.files import Fields, one_line, read_json
from heatkv.models.checkpoint import MAX_CONFIG_BYTES, CheckpointError
from heatkv.models.infinity.text import check_prompt
from heatkv.models.infinity.transformer import TextFeatures

MAX_TOKENS = 512
REMEMBERED = 64


def text_width(folder: Path) -> int:
    """Length of one feature of the encoder in ``folder``. Raises ``CheckpointError`` if there is none."""
    try:
        value = read_json(folder / "config.json", limit=MAX_CONFIG_BYTES, error=CheckpointError)
        config = Fields(value, error=CheckpointError)
        kind, width = config.name("model_type"), config.integer("d_model", 1, 1 << 16)
    except CheckpointError as error:
        raise CheckpointError(f"{folder} holds no T5 text encoder: {error}") from error
    if kind not in ("t5", "mt5", "umt5"):
        raise CheckpointError(f"{folder} holds a {kind} model, not a T5 text encoder")
    return width


def is_text_encoder(entry: Path) -> bool:
    """Whether a folder holds one."""
    try:
        config = read_json(entry / "config.json", limit=MAX_CONFIG_BYTES, error=CheckpointError)
    except CheckpointError:
        return False
    return isinstance(config, dict) and str(config.get("model_type")).endswith("t5")


def text_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Dtype of the text encoder: float16 as published on CUDA, else the transformer's."""
    return torch.float16 if device.type == "cuda" else dtype


class T5Encoder(nn.Module):
    """Prompts to features of their real tokens (padding never reaches the model).

    Parameters
    ----------
    folder
        As published: ``config.json``, tokenizer files, weights. Weights of the decoder half, if there,
        are not read.
    dtype
        Of the encoder's weights: float16 is Infinity's published setting, for GPUs.
    max_tokens
        Where a prompt is cut.
    clean
        What is done to a prompt before it is read.

    Raises
    ------
    CheckpointError
        Files are missing or broken, or ``transformers`` is not installed.
    """

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, max_tokens: int = MAX_TOKENS,
        clean: Callable[[str], str] = str,
    ) -> None:  # fmt: skip
        super().__init__()
        self.folder = folder
        self.max_tokens, self.clean = max_tokens, clean
        self.width = text_width(folder)
        try:
            from transformers import AutoTokenizer, T5EncoderModel
        except ImportError as error:
            raise CheckpointError("this model reads prompts with T5: `pip install transformers` first") from error
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = T5EncoderModel.from_pretrained(folder, local_files_only=True, dtype=dtype)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            reason = one_line(str(error).strip() or repr(error), 200)
            raise CheckpointError(f"the text encoder in {folder} can not be loaded: {reason}") from error
        self.model = model.eval().requires_grad_(False).to(device)
        self.before_use: Callable[[], object] = lambda: None  # brings the model to its device under staged offload
        self._remembered: dict[str, Tensor] = {}

    def _tokens(self, prompt: str) -> list[int]:
        return list(self.tokenizer(prompt, truncation=True, max_length=self.max_tokens).input_ids)

    def _read(self, prompt: str) -> str:
        return check_prompt(self.clean(check_prompt(prompt)))

    def check(self, prompt: str) -> str | None:
        """A note where the prompt is too long to be read to its end, or None. Raises ``PromptError``."""
        n = len(self.tokenizer(self._read(prompt)).input_ids)
        return f"only the first {self.max_tokens} of the prompt's {n} tokens are read" if n > self.max_tokens else None

    def _features(self, prompt: str) -> Tensor:
        """Features ``[N, width]`` (float32, CPU) of one prompt; the last few prompts are remembered."""
        key = self._read(prompt)
        if key not in self._remembered:
            self.before_use()
            ids_1N = torch.tensor([self._tokens(key)], device=self.model.device)
            features = self.model(input_ids=ids_1N).last_hidden_state[0].float().cpu()
            if len(self._remembered) >= REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[key] = features
        return self._remembered[key]

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of prompts, padded, on the CPU. Raises ``PromptError`` (see ``check``)."""
        rows = [self._features(prompt) for prompt in prompts]
        longest = max(len(row) for row in rows)
        mask_BN = torch.arange(longest)[None, :] < torch.tensor([len(row) for row in rows])[:, None]
        return TextFeatures(nn.utils.rnn.pad_sequence(rows, batch_first=True), mask_BN)

    def about(self) -> dict[str, Any]:
        return {"text_encoder": self.folder.name, "text_parameters": sum(p.numel() for p in self.model.parameters())}
