"""Weights on disk: safetensors (single or sharded with an index) and PyTorch files, never unpickling code."""

from __future__ import annotations

import argparse
import json
import pickle
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from heatkv.files import one_line, read_json, shown, write_atomic

MAX_SHARD_BYTES = 9_500_000
INDEX_NAME = "model.safetensors.index.json"
INDEX_PATTERNS = ("*.safetensors.index.json", "*.bin.index.json")
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
MAX_INDEX_BYTES = 16 << 20
MAX_CONFIG_BYTES = 4 << 20
SHARED = 4  # tensors may share memory, but all together do not hold more than so many times the file

# Where published files keep their state dict: training checkpoints, autoencoders; else it lies bare.
NESTED = (("trainer", "gpt_fsdp"), ("vae",), ("model",), ("module",), ("state_dict",))
AVERAGED = "ema", "quantize.embedding.weight"  # of a tokenizer, the averaged weights rather than the last ones
# What training scripts put beside the weights: a class without behaviour, which loading does not run.
HARMLESS: list[Any] = [argparse.Namespace]

M = TypeVar("M", bound=nn.Module)


class CheckpointError(ValueError):
    """Weights that cannot be used; the message says which file and what to do."""


def save_shards(state: dict[str, Tensor], folder: Path, max_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write ``model-0000i-of-0000n.safetensors`` and their index, each file below ``max_bytes`` where tensors allow."""
    from safetensors.torch import save

    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    weight_map: dict[str, str] = {}
    for old in folder.glob("model-*.safetensors"):
        old.unlink()
    for i, shard in enumerate(shards):
        name = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        write_atomic(folder / name, save(shard, metadata={"format": "pt"}))
        weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": weight_map}
    write_atomic(folder / INDEX_NAME, (json.dumps(index, indent=0) + "\n").encode())


def load_file(path: Path) -> dict[str, Tensor]:
    """All tensors of one file, mapped into memory where the format allows.

    Published nestings of the state dict are undone. Raises ``CheckpointError`` for missing, broken or
    unsafe files.
    """
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file as load_safetensors

        try:
            return load_safetensors(path)
        except SafetensorError as error:
            reason = one_line(error, 200)
            raise CheckpointError(f"{path} is not a readable safetensors file ({reason}); fetch it again") from error
    with path.open("rb") as file:
        mappable = file.read(2) == b"PK"  # the zip format; older files are read whole
    try:
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error) or "invalid" in str(error):  # no pickle at all, such as a text
            raise CheckpointError(f"{path} is not a readable PyTorch file; fetch it again") from error
        raise CheckpointError(
            f"{path} holds pickled objects other than tensors; it was not loaded because that could run code. "
            "Convert it to safetensors on a machine you trust"
        ) from error
    except Exception as error:  # what is no pickle, or a broken one, fails in any way
        reason = one_line(str(error) or type(error).__name__, 200)
        raise CheckpointError(f"{path} is not a readable PyTorch file ({reason}); fetch it again") from error
    state = state_dict_in(content, path)
    if sum(tensor.nbytes for tensor in state.values()) > SHARED * path.stat().st_size:
        raise CheckpointError(f"{path} claims more numbers than it holds")
    return state


def state_dict_in(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name in what a PyTorch file holds, wherever it nests them."""
    where, mark = AVERAGED
    averaged = isinstance(content, dict) and isinstance(content.get(where), dict) and mark in content[where]
    for keys in ((where,), *NESTED) if averaged else NESTED:
        inner = content
        for key in keys:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            content = inner
            break
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        named = f" with {shown(list(content)[:5])}" if isinstance(content, dict) else ""
        raise CheckpointError(f"{path} holds no state dict, but a {type(content).__name__}{named}")
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    for key, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_complex():
            raise CheckpointError(f"{path}: {shown(key)} is no plain tensor of real numbers")
    return state


def find_index(folder: Path) -> Path | None:
    """The index of a folder of shards; safetensors first."""
    return next((path for pattern in INDEX_PATTERNS for path in sorted(folder.glob(pattern))), None)


def read_index(index: Path) -> dict[str, str]:
    """File of every tensor. Raises ``CheckpointError`` for anything that is not an index."""
    try:
        weight_map = read_json(index, limit=MAX_INDEX_BYTES, error=CheckpointError)["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except CheckpointError:
        raise
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not a shard index ({one_line(repr(error), 200)})") from error


def shard_names(index: Path) -> list[str]:
    """The files that an index names, which lie next to it."""
    shards = sorted(set(read_index(index).values()))
    if any("/" in shard or "\\" in shard for shard in shards):
        raise CheckpointError(f"{index} names files outside its folder")
    return shards


def load_state(path: Path) -> dict[str, Tensor]:
    """A state dict from a file, or from a folder with an index of shards."""
    if not path.is_dir():
        return load_file(path)
    index = find_index(path)
    if index is None:
        raise CheckpointError(f"{path} holds no index of shards, {' or '.join(INDEX_PATTERNS)}")
    state: dict[str, Tensor] = {}
    for shard in shard_names(index):
        state |= load_file(path / shard)
    missing = sorted(set(read_index(index)) - set(state))
    if missing:
        raise CheckpointError(f"{path} lacks {len(missing)} tensors that its index names, first {missing[0]}")
    return state


def place(
    make: Callable[[], M],
    state: dict[str, Tensor],
    source: Path,
    device: torch.device,
    dtype_of: Callable[[str], torch.dtype] = lambda name: torch.float32,
    *,
    allow_unused: bool = False,
) -> tuple[M, tuple[str, ...]]:
    """Build a module straight from its weights: nothing is initialised, no tensor exists twice.

    Parameters
    ----------
    make
        Makes the module (run on the meta device: buffers that are not in the state dict have to be
        set by the caller afterwards).
    state
        Tensors by the module's names.
    source
        Where they come from, for messages.
    device, dtype_of
        Where tensors go and, by name, in which dtype.
    allow_unused
        Whether tensors that the module has no place for are left out; otherwise they are an error.

    Returns
    -------
    The module in evaluation mode without gradients, and the names that were left out.
    """
    try:
        with torch.device("meta"):
            module = make()
    except (ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"no model has the shape that {source} states: {one_line(error, 200)}") from error
    wanted = module.state_dict()
    if missing := [name for name in wanted if name not in state]:
        raise CheckpointError(f"{source} is incomplete: it lacks {some(missing)}")
    unused = tuple(name for name in state if name not in wanted)
    if unused and not allow_unused:
        raise CheckpointError(f"{source} holds tensors that the model has no place for: {some(unused)}")
    sizes = {name: (tuple(state[name].shape), tuple(tensor.shape)) for name, tensor in wanted.items()}
    if wrong := [f"{name} is {found}, not {right}" for name, (found, right) in sizes.items() if found != right]:
        raise CheckpointError(f"{source} does not fit: {some(wrong)}")
    placed = {name: state[name].detach().to(device, dtype_of(name), copy=True) for name in wanted}
    if broken := [name for name, tensor in placed.items() if not is_finite(tensor)]:
        raise CheckpointError(f"{source} holds NaN or infinite weights, in {some(broken)}; fetch it again")
    module.load_state_dict(placed, assign=True)
    return module.eval().requires_grad_(False), unused


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are; its sum tells, and takes no memory."""
    return tensor.device.type == "meta" or bool(tensor.sum(dtype=torch.float32).isfinite())


def some(names: Iterable[str]) -> str:
    """The first few names and how many there are."""
    names = [one_line(name, 100) for name in names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
