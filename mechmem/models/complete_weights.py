"""Weights from disk: all of them, or an error. `transformers` fills gaps with random numbers."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from mechmem.errors import MechmemWarning, ModelError, listed

_MADE = re.compile(r"(^|\.)(inv_freq|masked_bias|attn\.bias|attention\.bias|position_ids)$")
"""Buffers that older versions of transformers wrote beside the weights, and make themselves."""


def check_whole(found: Mapping[str, Any], where: str, model: Any) -> None:
    """Refuse a model of which a part was not on disk, or that has fewer layers than are on disk.

    What else lies there, such as a head for rewards, is left out with a warning.

    Args:
        found: What ``from_pretrained(..., output_loading_info=True)`` tells.
        where: Its folder, file or name, for the message.
        model: What was made of it.

    Raises:
        ModelError: For weights that are missing, of another shape, or of layers that it has not.
    """
    missing = sorted(found.get("missing_keys", ()))
    shapes = sorted(
        f"{name} {tuple(a)} for {tuple(b)}" for name, a, b in found.get("mismatched_keys", ())
    )
    over = sorted(name for name in found.get("unexpected_keys", ()) if not _MADE.search(name))
    kinds = {_kind(name) for name in model.state_dict()} if over else set()
    layers = any(_is_of_a_layer(_kind(name), kinds) for name in over)
    whole = not (missing or shapes or layers)
    if over and whole:
        warnings.warn(
            f"{len(over)} weights of {where} belong to no part of the model and are left out: "
            f"{listed(over, 5)}.",
            MechmemWarning,
            stacklevel=2,
        )
    if whole:
        return
    said = [f"{len(missing)} of its weights are missing: {listed(missing, 5)}"] if missing else []
    said += [f"{len(shapes)} have another shape: {listed(shapes, 5)}"] if shapes else []
    said += [f"{len(over)} on disk belong to no part of it: {listed(over, 5)}"] if over else []
    raise ModelError(
        f"{where} does not hold the model that its configuration describes. {'; '.join(said)}. "
        "transformers would fill gaps with random numbers and leave out the rest. Save the whole "
        "model again with model.save_pretrained(folder), or mend config.json."
    )


def copy_from_file(model: Any) -> None:
    """Copy weights that are maps of their file: whoever writes into that file would change the
    model, and whoever cuts it short would end the process."""
    for value in (*model.parameters(), *model.buffers()):
        if value.device.type == "cpu" and type(value.data) is torch.Tensor:
            value.data = value.data.clone()


def _kind(name: str) -> str:
    """The name of a weight without the numbers of layers and experts."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "#", name)


def _is_of_a_layer(kind: str, kinds: set[str]) -> bool:
    """Whether the model has the same weight in other layers; either name may lack a prefix."""
    return "#" in kind and any(kind.endswith(own) or own.endswith(kind) for own in kinds)
