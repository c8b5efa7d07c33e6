"""Weights from disk: all of them, or an error. `transformers` fills gaps with random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mechmem.errors import ModelError, listed


def check_whole(found: Mapping[str, Any], where: str) -> None:
    """Refuse a model of which a part was not on disk.

    Args:
        found: What ``from_pretrained(..., output_loading_info=True)`` tells.
        where: Its folder, file or name, for the message.

    Raises:
        ModelError: For weights that are missing or of another shape, naming them.
    """
    missing = sorted(found.get("missing_keys", ()))
    shapes = sorted(
        f"{name} {tuple(a)} for {tuple(b)}" for name, a, b in found.get("mismatched_keys", ())
    )
    if not missing and not shapes:
        return
    left = sorted(found.get("unexpected_keys", ()))
    said = [f"{len(missing)} of its weights are missing: {listed(missing, 5)}"] if missing else []
    said += [f"{len(shapes)} have another shape: {listed(shapes, 5)}"] if shapes else []
    said += [f"{len(left)} on disk belong to no part of it: {listed(left, 5)}"] if left else []
    raise ModelError(
        f"{where} does not hold the model that its configuration describes. {'; '.join(said)}. "
        "transformers would fill the gaps with random numbers. Save the whole model again with "
        "model.save_pretrained(folder), or mend config.json."
    )
