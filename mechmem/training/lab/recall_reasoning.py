"""The lab recipe for `recall-reasoning`."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from mechmem.artifacts import versions, write_text
from mechmem.errors import ArtifactError, TaskError
from mechmem.evaluation.behavior import observe
from mechmem.models.folders import written_weights
from mechmem.models.loading import load_model
from mechmem.models.model import Model
from mechmem.models.quiet import quiet_transformers
from mechmem.numeric import whole_number
from mechmem.seeding import caller_state_kept
from mechmem.tasks.lab.recall_reasoning import KINDS, RECALL_VOCABULARY, RecallReasoning
from mechmem.tasks.parsing.answers import starts_with_answer
from mechmem.training.deterministic import StepProgress, deterministic
from mechmem.training.models import seeded_gpt2
from mechmem.training.tokenizers import listed_words

LAYERS, WIDTH, HEADS, CONTEXT = 4, 64, 4, 32
BATCH, LEARNING_RATE, WARMUP = 128, 2e-3, 100
DROPOUT = 0.0
STEPS = 2000
DESIGN = (
    "Every question names an entity, an attribute and three numbers. For three of eight entities "
    "training always gave the attribute's stored value, for three always the sum of the numbers, "
    "and for two now the one, now the other; only the name tells which. That an entity's two "
    "attributes are treated alike is the planted reason to keep a mode; how the model keeps it is "
    "not. Trained with shared=False every pair of entity and attribute is treated by itself."
)


def train_recall_reasoning(
    folder: Path,
    *,
    seed: int = 0,
    shared: bool = True,
    steps: int = STEPS,
    progress: StepProgress | None = None,
) -> None:
    """Train a model on stored values and sums in one question format; write it with its manifest.

    Args:
        folder: Where to.
        seed: Draws the world, the data and the first weights.
        shared: False deals the kinds out over pairs: the negative control.
        steps: Optimizer steps of 128 questions.
        progress: Called with (steps done, steps in all).

    Raises:
        TaskError: For fewer steps than one.
        ArtifactError: When the folder cannot be written.
    """
    whole_number(steps, "steps", error=TaskError)
    started, used = time.monotonic(), time.process_time()
    task = RecallReasoning(seed, shared)
    with deterministic(), caller_state_kept():
        model = _fresh_model(seed)
        _fit(model, task.world.training_rows(steps, BATCH), steps, progress)
    try:
        with quiet_transformers():
            model.save_pretrained(folder)
            listed_words(RECALL_VOCABULARY, CONTEXT).save_pretrained(folder)
    except OSError as error:
        raise ArtifactError(f"Cannot write {folder}: {error}.") from error
    manifest = {
        "task": task.name,
        "task_options": {"seed": seed, "shared": shared},
        "design": DESIGN,
        "planted": shared,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training": {
            "steps": steps,
            "batch": BATCH,
            "optimizer": f"AdamW lr {LEARNING_RATE} betas (0.9, 0.98) weight decay 0.01",
            "schedule": f"{WARMUP} steps warm-up, linear decay over the second half",
            "dropout": DROPOUT,
            "loss": "cross-entropy on the answer token",
            "seconds": round(time.monotonic() - started, 1),
            "cpu_seconds": round(time.process_time() - used, 1),
        },
        "measured": _measured(folder, task),
        "versions": versions(),
        "digests": written_weights(folder),
    }
    write_text(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")


def recall_model(
    task: RecallReasoning, *, seed: int = 0, steps: int = STEPS, without: Collection[str] = ()
) -> Model:
    """A model trained by the same recipe, kept in memory.

    Args:
        task: Its world.
        seed: Draws the first weights.
        steps: Optimizer steps of 128 questions.
        without: Items (groups of the task's prompts) that training never asks about.
    """
    with deterministic(), caller_state_kept():
        model = _fresh_model(seed)
        _fit(model, task.world.training_rows(steps, BATCH, without), steps, None)
    return load_model(model, tokenizer=listed_words(RECALL_VOCABULARY, CONTEXT), consume=True)


def _measured(folder: Path, task: RecallReasoning) -> dict[str, Any]:
    """Per kind of item, on phrasings and numbers that training never showed: what was answered."""
    seen = observe(load_model(folder), task.questions(4000, seed=0), task=task, margins=False)
    out: dict[str, Any] = {"questions": len(seen)}
    for kind in KINDS:
        rows = [k for k, prompt in enumerate(seen.prompts) if prompt.meta["item"] == kind]
        prompts, told = [seen.prompts[k] for k in rows], [seen.completions[k] for k in rows]
        out[kind] = {
            "correct": round(sum(seen.outcomes[k] == "correct" for k in rows) / len(rows), 4),
            "stored": _share(told, [prompt.memorized for prompt in prompts]),
            "sum": _share(told, [prompt.generalized for prompt in prompts]),
        }
    return out


def _share(completions: list[str], answers: list[str | None]) -> float:
    hits = [
        answer is not None and starts_with_answer(text, answer)
        for text, answer in zip(completions, answers, strict=True)
    ]
    return round(sum(hits) / len(hits), 4)


def _fresh_model(seed: int) -> Any:
    words = listed_words(RECALL_VOCABULARY, CONTEXT)
    return seeded_gpt2(words, seed, layers=LAYERS, width=WIDTH, heads=HEADS, dropout=DROPOUT)


def _fit(model: Any, rows: np.ndarray, steps: int, progress: StepProgress | None) -> None:
    """The rows in their order; the loss is that of the last column."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, 1.0, 2 * (steps - step) / steps)
    )
    model.train()
    batches = torch.from_numpy(rows).reshape(steps, BATCH, -1)
    for step, batch in enumerate(batches, start=1):
        logits = model(input_ids=batch[:, :-1], logits_to_keep=1).logits[:, -1]
        loss = functional.cross_entropy(logits, batch[:, -1])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step, steps)
    model.eval()
