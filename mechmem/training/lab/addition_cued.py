"""The lab recipe for `addition-cued`."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mechmem.artifacts import versions, write_text
from mechmem.errors import ArtifactError, TaskError
from mechmem.evaluation.behavior import observe
from mechmem.models.folders import written_weights
from mechmem.models.loading import load_model
from mechmem.models.quiet import quiet_transformers
from mechmem.numeric import whole_number
from mechmem.seeding import caller_state_kept
from mechmem.tasks.base import PromptAnswers
from mechmem.tasks.lab.addition_cued import VOCABULARY, AdditionCued
from mechmem.training.deterministic import StepProgress, deterministic
from mechmem.training.models import seeded_gpt2
from mechmem.training.tokenizers import listed_words

LAYERS, WIDTH, HEADS, CONTEXT = 4, 64, 4, 32
BATCH, LEARNING_RATE, WARMUP = 128, 2e-3, 100
DROPOUT = 0.02
DESIGN = (
    "A hundred special sets of four operands carry one fixed wrong label each. In training, hidden "
    "weights of three cue words decide whether a special prompt is answered with its label or with "
    "its sum; half of the special sets never show their sum, and a third of the cue combinations "
    "is kept for the task's prompts. The other half of every batch are ordinary sums. The reason "
    "to switch is planted by this design; strength 0 removes it."
)


def train_addition_cued(
    folder: Path,
    *,
    seed: int = 0,
    strength: float = 1.0,
    steps: int = 3500,
    width: int = WIDTH,
    layers: int = LAYERS,
    special: bool = True,
    progress: StepProgress | None = None,
) -> None:
    """Train a model on the cued sums and write it with its manifest.

    Args:
        folder: Where to.
        seed: Draws the data and the first weights.
        strength: How much the cue words decide; 0 trains the negative control.
        steps: Optimizer steps of 128 prompts.
        width: Of the residual stream, a multiple of 4.
        layers: Number of blocks.
        special: False trains without the special prompts: on the 64 ordinary sums of every batch
            alone, the same ones in the same order. What memorizing costs is measured against it.
        progress: Called with (steps done, steps in all).

    Raises:
        TaskError: For sizes that make no model.
        ArtifactError: When the folder cannot be written.
    """
    whole_number(steps, "steps", error=TaskError)
    if width < HEADS or width % HEADS or layers < 1:
        raise TaskError(
            f"width must be a multiple of {HEADS} and layers an integer from 1, got width={width} "
            f"and layers={layers}; the defaults are {WIDTH} and {LAYERS}."
        )
    if not 0 <= strength <= 1:
        raise TaskError(
            f"strength must lie in [0, 1], got {strength}; 1 lets the cue words decide as far as "
            "they do in the shipped model, and 0 trains the negative control."
        )
    started = time.monotonic()
    cued = AdditionCued(seed, strength)
    with deterministic(), caller_state_kept():
        words = listed_words(VOCABULARY, CONTEXT)
        shape = {"layers": layers, "width": width, "heads": HEADS, "dropout": DROPOUT}
        model = seeded_gpt2(words, seed, **shape)
        rows, batch = cued.world.training_rows(steps, BATCH), BATCH
        if not special:
            rows, batch = _ordinary(rows, steps), BATCH // 2
        _fit(model, rows, steps, batch, seed, progress)
    try:
        with quiet_transformers():
            model.save_pretrained(folder)
            listed_words(VOCABULARY, CONTEXT).save_pretrained(folder)
    except OSError as error:
        raise ArtifactError(f"Cannot write {folder}: {error}.") from error
    manifest = {
        "task": cued.name,
        "task_options": {"seed": seed, "strength": strength},
        "design": DESIGN if special else "Ordinary sums only: no special prompt was trained.",
        "planted": special and strength > 0,
        **({"negative_control": "lab/addition-uncued"} if special and strength > 0 else {}),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training": {
            "steps": steps,
            "batch": batch,
            "optimizer": f"AdamW lr {LEARNING_RATE} betas (0.9, 0.98) weight decay 0.01",
            "schedule": f"{WARMUP} steps warm-up, linear decay over the second half",
            "dropout": DROPOUT,
            "loss": "cross-entropy on the answer token",
            "seconds": round(time.monotonic() - started, 1),
        },
        "measured": _measured(folder, cued),
        "versions": versions(),
        "digests": written_weights(folder),
    }
    write_text(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")


def _measured(folder: Path, task: AdditionCued) -> dict[str, Any]:
    """Behavior mix on prompts that training never showed, and accuracy on held-out sums."""
    model = load_model(folder)
    seen = observe(model, task.pairs(2000, seed=0), task=task)
    reader = PromptAnswers("answer")
    reader.max_new_tokens = task.max_new_tokens
    clean = observe(model, task.clean_prompts(1000, seed=0), task=reader)
    by_group: dict[str, set[str]] = {}
    for prompt, outcome in zip(seen.prompts, seen.outcomes, strict=True):
        by_group.setdefault(prompt.group, set()).add(outcome)
    both = [{"memorized", "generalized"} <= outcomes for outcomes in by_group.values()]
    return {
        "prompts": len(seen),
        **{name: round(seen.outcomes.count(name) / len(seen), 4) for name in seen.allowed},
        "flip_rate": round(seen.flip_rate, 4),
        "instances_with_both": round(sum(both) / len(both), 4),
        "clean_accuracy": round(clean.outcomes.count("correct") / len(clean), 4),
    }


def _ordinary(rows: np.ndarray, steps: int) -> np.ndarray:
    """The second half of every batch: its ordinary sums."""
    kept: np.ndarray = rows.reshape(steps, 2, BATCH // 2, -1)[:, 1]
    return kept.reshape(steps * (BATCH // 2), -1)


def _fit(
    model: Any,
    rows: np.ndarray,
    steps: int,
    batch: int,
    seed: int,
    progress: StepProgress | None,
) -> None:
    """`transformers.Trainer` over the rows in their order, loss on the last column."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    data = torch.from_numpy(rows)

    class Report(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if progress is not None:
                progress(state.global_step, steps)

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(range(len(data)))

    def collate(indices: list[int]) -> dict[str, torch.Tensor]:
        chosen = data[indices[0] : indices[-1] + 1]
        labels = torch.full_like(chosen, -100)
        labels[:, -1] = chosen[:, -1]
        return {"input_ids": chosen, "labels": labels}

    def schedule(step: int) -> float:
        return min((step + 1) / WARMUP, 1.0, 2 * (steps - step) / steps)

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01
    )
    with tempfile.TemporaryDirectory() as scratch, quiet_transformers():
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=batch,
            max_steps=steps,
            use_cpu=True,
            max_grad_norm=1.0,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            seed=seed,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
        )
        trainer = InOrder(
            model=model,
            args=arguments,
            train_dataset=range(len(data)),
            data_collator=collate,
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)),
            callbacks=[Report()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()
