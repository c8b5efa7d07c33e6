"""`train_lab_model`: the models that ship, trained again from nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mechmem.artifacts import check_writable
from mechmem.errors import TaskError, listed
from mechmem.training.deterministic import StepProgress
from mechmem.training.lab.addition import train_addition
from mechmem.training.lab.addition_cued import train_addition_cued
from mechmem.training.lab.cipher import train_cipher
from mechmem.training.lab.colors import train_colors
from mechmem.training.lab.recall_reasoning import train_recall_reasoning

LAB_TASKS: dict[str, Callable[..., None]] = {
    "addition": train_addition,
    "addition-cued": train_addition_cued,
    "cipher": train_cipher,
    "colors": train_colors,
    "recall-reasoning": train_recall_reasoning,
}
"""A recipe takes the folder, ``seed=``, ``progress=`` and options of its own, all with defaults; it
writes a Hugging Face folder with ``manifest.json`` (see `lab_addition_cued` for one)."""


def train_lab_model(
    task: str,
    folder: str | Path,
    *,
    seed: int = 0,
    progress: StepProgress | None = None,
    **options: Any,
) -> Path:
    """Train a lab model and write it as a Hugging Face folder with a manifest.

    The same seed, options and library versions give the same weights on the same machine: training
    runs on one thread with deterministic kernels.

    Args:
        task: A task with a lab recipe, for example ``"cipher"``.
        folder: Where to write ``model.safetensors``, tokenizer, configuration, ``manifest.json``.
        seed: Draws the data and the first weights.
        progress: Called with (steps done, steps in all).
        **options: Of the recipe. ``addition-cued`` takes ``strength`` (0 trains the negative
            control), ``steps``, ``width``, ``layers`` and ``special`` (False leaves the special
            prompts out); the others take ``steps``, ``addition`` and ``colors`` also
            ``reasoning_steps``, ``recall-reasoning`` also ``shared``.

    Returns:
        The folder.

    Raises:
        TaskError: For a task without a lab recipe, an option it does not have, or a seed below 0.
        ArtifactError: When the folder cannot be written.
    """
    if task not in LAB_TASKS:
        raise TaskError(f"No lab recipe for task {task!r}; there are {listed(LAB_TASKS)}.")
    recipe = LAB_TASKS[task]
    known = [name for name in inspect.signature(recipe).parameters if name != "folder"]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TaskError(
            f"The lab recipe for {task!r} has no option {listed(unknown)}; it has {listed(known)}."
        )
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise TaskError(f"seed must be a whole number from 0 below 2**32, got {seed!r}.")
    target = Path(folder)
    check_writable(target)  # fail before training, not after it
    recipe(target, seed=seed, progress=progress, **options)
    return target
