"""`load_model`: from whatever a user has to a `Model`."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mechmem.errors import ModelError, did_you_mean, listed
from mechmem.models.hooked import Model
from mechmem.seeding import caller_state_kept

__all__ = ["LAB_FOLDER", "lab_models", "load_model"]

LAB_FOLDER = Path(__file__).parent / "lab"


def lab_models() -> list[str]:
    """Names of the shipped lab models, as `load_model` takes them."""
    return sorted(f"lab/{card.parent.name}" for card in LAB_FOLDER.glob("*/manifest.json"))


def load_model(
    source: Any,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    prepend_bos: bool | None = None,
    consume: bool = False,
    **boot: Any,
) -> Model:
    """Load a causal language model as a hooked model, on raw (unprocessed) weights.

    Args:
        source: ``"lab/<name>"`` for a shipped model, a folder, a Hugging Face hub name, a
            ``transformers`` model, a ``HookedTransformer`` (TransformerLens 3.x) or a
            ``TransformerBridge``.
        tokenizer: Needed with an in-memory ``transformers`` model; otherwise found by itself.
        device: For example ``"cuda"``. Default: TransformerLens chooses.
        dtype: For example ``"bfloat16"``. Default: float32 for files, unchanged for objects.
        prepend_bos: ``None`` follows the tokenizer's own habit; ``True``/``False`` force it.
        consume: TransformerLens rewires an in-memory ``transformers`` model. By default a copy is
            rewired; ``True`` hands over the model itself, which afterwards is not usable alone.
        **boot: Passed to ``TransformerBridge.boot_transformers`` (``device_map=``, ``revision=``,
            ``trust_remote_code=``, ...).

    Returns:
        A `Model` in evaluation mode. Nothing handed over is changed (unless ``consume``).

    Raises:
        ModelError: When the source cannot be found or is not a causal language model.
    """
    if isinstance(source, Model):
        return source
    if hasattr(source, "hook_dict"):
        return _from_hooked(source, tokenizer, prepend_bos)
    if isinstance(source, torch.nn.Module):
        return _from_transformers(source, tokenizer, device, dtype, prepend_bos, consume, boot)
    if not isinstance(source, (str, os.PathLike)):
        raise ModelError(
            f"Cannot load a model from {type(source).__name__}; give a name, a folder, a "
            "transformers model, a HookedTransformer or a TransformerBridge."
        )
    return _from_name(str(source), tokenizer, device, dtype, prepend_bos, boot)


def _from_name(
    name: str, tokenizer: Any, device: Any, dtype: Any, prepend_bos: bool | None, boot: Any
) -> Model:
    folder, card = Path(name), {}
    if name.startswith("lab/") and not folder.is_dir():
        if name not in lab_models():
            raise ModelError(
                f"No lab model {name!r} ships with mechmem; there are {listed(lab_models())}."
                f"{did_you_mean(name, lab_models())}"
            )
        folder = LAB_FOLDER / name.removeprefix("lab/")
        card = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    elif name.startswith((".", "/", "~")) or folder.exists():
        folder = folder.expanduser()
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{folder} holds no model: there is no config.json in it. Save one there with "
                "model.save_pretrained(folder) and tokenizer.save_pretrained(folder)."
            )
    where = str(folder) if folder.is_dir() else name
    try:
        own = tokenizer if tokenizer is not None else _tokenizer_at(where, boot)
        with _booting(own) as private:
            bridge = _bridge_class().boot_transformers(
                where, tokenizer=private, device=device, dtype=_dtype(dtype), **boot
            )
    except (OSError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"Cannot load {name!r}: {str(error).splitlines()[0]}") from error
    bridge.eval()
    return Model.wrap(bridge, own, name, prepend_bos=prepend_bos, card=card)


def _from_transformers(
    model: torch.nn.Module,
    tokenizer: Any,
    device: Any,
    dtype: Any,
    prepend_bos: bool | None,
    consume: bool,
    boot: Any,
) -> Model:
    config = getattr(model, "config", None)
    if config is None:
        raise ModelError(
            f"{type(model).__name__} has no `config`, so it is no transformers model; load_model "
            "takes transformers, HookedTransformer and TransformerBridge models."
        )
    if tokenizer is None:
        raise ModelError(
            "An in-memory transformers model needs its tokenizer: load_model(model, tokenizer=...)."
        )
    with caller_state_kept():
        body = model if consume else copy.deepcopy(model)
    body.eval()
    if dtype is not None or device is not None:
        body.to(device=device, dtype=None if dtype is None else _dtype(dtype))
    name = str(getattr(config, "_name_or_path", "") or type(model).__name__)
    with _booting(tokenizer) as private:
        bridge = _bridge_class().boot_transformers(
            name,
            hf_model=body,
            tokenizer=private,
            dtype=next(body.parameters()).dtype,
            device=next(body.parameters()).device,
            **boot,
        )
    bridge.eval()
    return Model.wrap(bridge, tokenizer, name, prepend_bos=prepend_bos)


def _from_hooked(model: Any, tokenizer: Any, prepend_bos: bool | None) -> Model:
    own = tokenizer if tokenizer is not None else getattr(model, "tokenizer", None)
    if own is None:
        raise ModelError("This TransformerLens model has no tokenizer; pass tokenizer=.")
    if prepend_bos is None:
        prepend_bos = _habit(own, model)
    name = str(getattr(model.cfg, "model_name", "") or type(model).__name__)
    return Model.wrap(model, own, name, prepend_bos=prepend_bos)


def _habit(tokenizer: Any, model: Any) -> bool | None:
    """TransformerLens sets its tokenizers to add a BOS token; its own default says whether to."""
    if tokenizer.bos_token_id is None:
        return None
    return bool(getattr(model.cfg, "default_prepend_bos", True))


def _bridge_class() -> Any:
    from transformer_lens.model_bridge import (  # type: ignore[import-untyped,unused-ignore]
        TransformerBridge,
    )

    return TransformerBridge


def _tokenizer_at(where: str, boot: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    options = {key: boot[key] for key in ("revision", "trust_remote_code") if key in boot}
    return AutoTokenizer.from_pretrained(where, **options)


@contextlib.contextmanager
def _booting(tokenizer: Any) -> Iterator[Any]:
    """A private copy of the tokenizer on disk for TransformerLens, which reloads and changes it;
    the caller's random state, and the grad mode, as they were."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder, caller_state_kept(), torch.enable_grad():
        tokenizer.save_pretrained(folder)
        yield AutoTokenizer.from_pretrained(folder)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    if dtype is None:
        return torch.float32
    if isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ModelError(f"{dtype!r} is no floating dtype; use 'float32', 'bfloat16' or 'float16'.")
    return found
