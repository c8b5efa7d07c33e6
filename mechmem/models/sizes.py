"""Do the files of a model hold what its configuration asks for? Looked at before memory is taken:
transformers would fill every gap with random numbers first, however large it is."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mechmem.errors import MechmemWarning, ModelError
from mechmem.models.booting import kept_still

_COUNTS = {
    # name: (least, most)
    "num_hidden_layers": (1, 1000),
    "num_attention_heads": (1, 10_000),
    "hidden_size": (1, 10_000_000),
    "vocab_size": (1, 100_000_000),
    "num_local_experts": (0, 10_000),
    "num_experts": (0, 10_000),
    "n_routed_experts": (0, 10_000),
}
_PACKED = 8
"""Most weights in a byte of a file, however they are packed."""
_SPARE = 2
"""How many times the weights of its files a model may ask for: a head that is tied on disk. What
is missing within that is told by name once it is loaded."""
_TABLES = 2**30
"""Most numbers in tables that a model makes for itself (masks and angles of its positions)."""
_MANY = 100_000
"""Blocks times experts from which not even a model without memory is built to be counted."""


def check_size(config: Any, name: str) -> None:
    """Refuse a configuration that no model has, before its modules are built.

    Raises:
        ModelError: For fewer or more blocks, heads or experts than any model has.
    """
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    for field, (least, most) in _COUNTS.items():
        count = getattr(text, field, None)
        if isinstance(count, int) and not least <= count <= most:
            raise ModelError(
                f"config.json of {name} says {field}={count}; models have {least} to {most:,}, and "
                "more would fill the memory before a weight is read. Mend config.json."
            )


def check_held(config: Any, held: int | None, name: str) -> None:
    """Refuse a configuration that asks for far more weights than there are.

    Args:
        config: Of ``transformers``.
        held: Weights in the files, or more; ``None`` where that is not known.
        name: What is loaded, for the message.

    Raises:
        ModelError: When it does, or for tables that fill the memory beside them.
    """
    if held is None:
        return
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    experts = ("num_local_experts", "num_experts", "n_routed_experts")
    blocks = _count(text, "num_hidden_layers") * max(1, *(_count(text, key) for key in experts))
    if blocks > _MANY and blocks * _count(text, "hidden_size") > _SPARE * held:
        raise _refusal(text, blocks * _count(text, "hidden_size"), held, name)
    asked = _asked(config)
    if asked is None:
        return  # it cannot be built; who loads it says why
    weights, tables = asked
    if weights > _SPARE * held:
        raise _refusal(text, weights, held, name)
    if tables > max(_TABLES, held):
        raise ModelError(
            f"The configuration of {name} asks for tables of {tables:,} numbers beside its "
            f"weights ({_sizes(text)}), which would fill the memory. Mend its context length."
        )


def held_in(folder: Path, packed: bool = False) -> int | None:
    """How many weights the files of a folder hold at most; ``None`` without any that can be read.

    Args:
        folder: Its safetensors files are counted by their headers, others by their bytes.
        packed: Whether several weights may be in one byte.
    """
    files = _files(folder)
    if packed:
        return _PACKED * sum(file.stat().st_size for file in files) or None
    counted = [_shapes(file) for file in files]
    if not files or None in counted:
        return None
    return sum(shape.numel() for shapes in counted for shape in shapes or ())


def warn_of_memory(folder: Path, name: str, dtype: torch.dtype, device: Any) -> None:
    """Say that the weights of a folder are larger than the memory they are to be read into, which
    would end the process without a word."""
    if "quantization_config" in json.loads((folder / "config.json").read_text("utf-8")):
        return  # packed in files, and in memory too
    # As `save_pretrained` names them: others beside them may be the same weights once more.
    files = [*folder.glob("model.safetensors"), *folder.glob("model-?????-of-?????.safetensors")]
    shapes = [_shapes(file) or [] for file in files]
    weights, memory = sum(shape.numel() for part in shapes for shape in part), _memory(device)
    if memory is not None and weights * dtype.itemsize > memory:
        smaller = "" if dtype.itemsize <= 2 else f"dtype='bfloat16' ({2 * weights / 1e9:.1f} GB), "
        warnings.warn(
            f"The weights of {name} take {weights * dtype.itemsize / 1e9:.1f} GB in "
            f"{str(dtype).removeprefix('torch.')}, and there are {memory / 1e9:.1f} GB of memory. "
            f"Load it with {smaller}device_map= or quantization_config=, or load a smaller model.",
            MechmemWarning,
            stacklevel=5,
        )


def _memory(device: Any) -> int | None:
    """Bytes of a device's memory; ``None`` where that is not known."""
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if where.type == "cuda":
        return int(torch.cuda.get_device_properties(where).total_memory)
    if where.type != "cpu" or not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def longest_in(folder: Path) -> int | None:
    """The longest side of the tensors in a folder's files, or more; ``None`` as in `held_in`."""
    counted = [_shapes(file) for file in _files(folder)]
    if not counted or None in counted:
        return None
    return max((side for shapes in counted for shape in shapes or () for side in shape), default=0)


def _files(folder: Path) -> list[Path]:
    kinds = (".safetensors", ".bin", ".pt", ".pth")
    return [path for path in folder.iterdir() if path.suffix in kinds and path.is_file()]


def _shapes(file: Path) -> list[torch.Size] | None:
    """Of the tensors in a file; of a pickle, which is not opened, one number a byte. ``None`` for
    a file that is broken: its reader has better words for it."""
    if file.suffix != ".safetensors":
        return [torch.Size([file.stat().st_size])]
    try:
        with safe_open(str(file), framework="pt") as opened:
            return [torch.Size(opened.get_slice(key).get_shape()) for key in opened.keys()]  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


def _asked(config: Any) -> tuple[int, int] | None:
    """Numbers in the weights, and in the tables, of the model that it describes."""
    from transformers import AutoModelForCausalLM

    causal: Any = AutoModelForCausalLM
    try:
        with kept_still(), torch.device("meta"):
            made = causal.from_config(config, trust_remote_code=False)
    except Exception:  # every kind of model has errors of its own
        return None
    weights = sum(value.numel() for value in made.parameters())
    return weights, sum(value.numel() for value in made.buffers())


def _count(config: Any, field: str) -> int:
    value = getattr(config, field, None)
    return value if isinstance(value, int) else 0


def _sizes(config: Any) -> str:
    fields = (
        "num_hidden_layers hidden_size intermediate_size num_attention_heads head_dim vocab_size "
        "num_local_experts num_experts n_routed_experts max_position_embeddings"
    ).split()
    return ", ".join(f"{key}={_count(config, key)}" for key in fields if _count(config, key))


def _refusal(config: Any, asked: int, held: int, name: str) -> ModelError:
    return ModelError(
        f"The configuration of {name} asks for {asked:,} weights ({_sizes(config)}), and its files "
        f"hold {held:,} at most; transformers would fill the memory with random numbers for the "
        "rest. Get the files again, or mend the configuration."
    )
