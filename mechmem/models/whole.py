"""Weights from disk: all of them, or an error. `transformers` fills gaps with random numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mechmem.errors import ModelError, listed

_MADE = re.compile(r"(^|\.)(inv_freq|masked_bias|attn\.bias|attention\.bias|position_ids)$")
"""Buffers that older versions of transformers wrote beside the weights, and make themselves."""


def check_whole(found: Mapping[str, Any], where: str) -> None:
    """Refuse a model of which a part was not on disk, or what was on disk is no part of.

    Args:
        found: What ``from_pretrained(..., output_loading_info=True)`` tells.
        where: Its folder, file or name, for the message.

    Raises:
        ModelError: For weights that are missing, of another shape or left over, naming them.
    """
    missing = sorted(found.get("missing_keys", ()))
    shapes = sorted(
        f"{name} {tuple(a)} for {tuple(b)}" for name, a, b in found.get("mismatched_keys", ())
    )
    left = sorted(name for name in found.get("unexpected_keys", ()) if not _MADE.search(name))
    if not missing and not shapes and not left:
        return
    said = [f"{len(missing)} of its weights are missing: {listed(missing, 5)}"] if missing else []
    said += [f"{len(shapes)} have another shape: {listed(shapes, 5)}"] if shapes else []
    said += [f"{len(left)} on disk belong to no part of it: {listed(left, 5)}"] if left else []
    raise ModelError(
        f"{where} does not hold the model that its configuration describes. {'; '.join(said)}. "
        "transformers would fill gaps with random numbers and leave out the rest. Save the whole "
        "model again with model.save_pretrained(folder), or mend config.json; or load it with "
        "transformers and hand it over, if it is meant to be so."
    )
