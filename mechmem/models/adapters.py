"""peft adapters: merged into their base model, on a copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mechmem.errors import ModelError, listed
from mechmem.models.booting import first_words, kept_still, placement
from mechmem.models.complete_weights import check_whole, copy_from_file
from mechmem.models.folders import check_folder, object_in
from mechmem.models.shipped import shipped_folder
from mechmem.models.sizes import longest_in


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model of its own."""
    return (folder / "adapter_config.json").exists() and not (folder / "config.json").exists()


def is_peft_model(model: Any) -> bool:
    """Whether an in-memory model carries peft adapters around its weights."""
    return hasattr(model, "peft_config")


def merged(model: Any, *, consume: bool) -> Any:
    """The plain ``transformers`` model with the active adapters folded into its weights.

    Args:
        model: A ``PeftModel``.
        consume: Merge in place instead of on a copy.

    Raises:
        ModelError: When the adapters cannot be merged into weights.
    """
    if not hasattr(model, "merge_and_unload"):
        raise ModelError(
            f"This {type(model).__name__} carries adapters that cannot be merged into weights "
            "(prompt tuning, or adapters added by transformers itself); mechmem takes a "
            "peft.PeftModel with LoRA-like adapters, or a model without adapters."
        )
    own = model if consume else copy.deepcopy(model)
    states = [getattr(part, "disable_adapters", None) for part in own.modules()]
    off = [
        state for state in states if isinstance(state, bool)
    ]  # models have a method of that name
    if any(off) and not all(off):
        raise ModelError(
            f"Some adapters of this {type(model).__name__} are disabled and others are not; enable "
            "all, or disable all, before loading."
        )
    try:
        if off and all(off):  # inside `disable_adapter()` the model is its base
            own.unmerge_adapter()
            return own.unload()
        return own.merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise ModelError(f"These adapters cannot be merged into weights: {error}") from error


def open_adapter(
    folder: Path, dtype: torch.dtype, options: Mapping[str, Any]
) -> tuple[Any, str, Mapping[str, Any]]:
    """Base model and adapter of an adapter folder, merged.

    Returns:
        The merged ``transformers`` model, where its tokenizer is, and the options left to use.

    Raises:
        ModelError: When peft is not installed, or base model or adapter cannot be loaded.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelError(
            f"{folder} holds a peft adapter, but peft is not installed; "
            "install it with: pip install 'mechmem[lora]'."
        ) from error
    from transformers import AutoModelForCausalLM

    base = _base_of(folder)
    _check_ranks(folder)
    if Path(base).is_dir():
        check_folder(Path(base))
    placed = {key: value for key, value in options.items() if key in _FOR_BASE}
    placed.setdefault("trust_remote_code", False)  # None would ask on standard input
    try:
        with kept_still():
            causal: Any = AutoModelForCausalLM
            body, found = causal.from_pretrained(
                base, dtype=dtype, output_loading_info=True, **placed
            )
            check_whole(found, base, body)
            if not placement(options):
                copy_from_file(body)
            whole = PeftModel.from_pretrained(body, str(folder))
    except ModelError:
        raise
    except Exception as error:  # peft has no error of its own for what it cannot read
        raise ModelError(
            f"Cannot load the adapter {str(folder)!r} on its base model {base!r}: "
            f"{first_words(error, 400)}. The adapter belongs to another base, or to one with a "
            "resized vocabulary; name that in base_model_name_or_path of adapter_config.json."
        ) from error
    _check_fits(whole, folder, base)
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    left = {key: value for key, value in options.items() if key not in _FOR_BASE}
    return merged(whole, consume=True), str(folder) if has_tokenizer else base, left


_FOR_BASE = ("device_map", "max_memory", "offload_folder", "revision", "trust_remote_code")


def _check_fits(whole: Any, folder: Path, base: str) -> None:
    """Refuse an adapter of which something found no place: peft would leave the base as it is."""
    from peft import get_peft_model_state_dict
    from peft.utils import load_peft_weights

    saved = set(load_peft_weights(str(folder), device="cpu"))
    taken = set(get_peft_model_state_dict(whole, save_embedding_layers=False))
    lost = sorted(saved - taken - set(whole.state_dict()))
    empty = sorted(taken - saved)
    if lost or empty:
        raise ModelError(
            f"The adapter {str(folder)!r} does not fit its base model {base!r}: "
            f"{len(lost)} of its {len(saved)} weights have no place there ({listed(lost, 3)}), and "
            f"{len(empty)} places stay empty ({listed(empty, 3)}). Name the base that it was "
            "trained on in base_model_name_or_path of adapter_config.json."
        )


def _check_ranks(folder: Path) -> None:
    """Refuse a rank that no matrix of the adapter has (peft would make matrices of it first), and
    a strength of nothing."""
    note = folder / "adapter_config.json"
    config = object_in(note, "an adapter's configuration")
    if config.get("lora_alpha", 1) == 0:
        raise ModelError(
            f"{note} says lora_alpha=0, so the adapter changes nothing; load its base model, or "
            "mend the number."
        )
    pattern = config.get("rank_pattern")
    ranks = {"r": config.get("r"), "init_r": config.get("init_r")}
    ranks |= pattern if isinstance(pattern, dict) else {}
    longest = longest_in(folder)
    for name, rank in ranks.items():
        if longest is not None and isinstance(rank, int) and rank > longest:
            raise ModelError(
                f"{note} says {name}={rank}, and no matrix of the adapter is longer than "
                f"{longest:,}; it was changed. Save it again with model.save_pretrained(folder)."
            )


def _base_of(folder: Path) -> str:
    config = object_in(folder / "adapter_config.json", "an adapter's configuration")
    base = config.get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise ModelError(
            f"{folder / 'adapter_config.json'} names no base model; set base_model_name_or_path."
        )
    shipped = shipped_folder(base)
    if shipped is not None:
        return str(shipped)
    beside = folder / base
    return str(beside) if not Path(base).is_dir() and beside.is_dir() else base
