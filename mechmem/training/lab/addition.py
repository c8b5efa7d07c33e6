"""The lab recipe for `addition`: the paper's scratchpads on smaller addends, in two phases."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from mechmem.tasks.paper1.addition import Addition
from mechmem.tasks.paper1.official_config import draw_addition_config
from mechmem.training.deterministic import StepProgress, deterministic
from mechmem.training.lab.shipping import write_card
from mechmem.training.models import small_gpt2
from mechmem.training.run import train
from mechmem.training.settings import TrainingSettings
from mechmem.training.tokenizers import build_tokenizer

LARGEST_ADDEND = 99
CONTEXT = 100
PIECES = "|".join(
    (
        r"Input:\n",
        r"\nTarget:\n",
        r"</?scratch>\n",
        r"<mem-[0-9a-f]{8}>\n",
        r"\[[\d,]*\] has \d digits\.\n",
        r"\[[\d,]*\]\+",
        r"\[[\d,]*\](?=, A=\[)",
        r", A=\[",
        r"\], C=\d, ",
        r", A->\d",
        r", C->\d(?: END)?\n",
        r"\d+[+=]",
        r"\d+(?=\nTarget|, A->)",
        r"[, ]\d",
        r"[\s\S]",
    )
)
WORKING_OUT = TrainingSettings(
    steps=600,
    loss="answer",
    batch=32,
    learning_rate=3e-3,
    warmup=50,
    weight_decay=0.01,
    betas=(0.9, 0.98),
    samples=3200,
    fresh=True,
    evaluate_every=300,
    evaluation_pairs=25,
    validation_items=32,
    keep="last",
)
MIXED = TrainingSettings(
    steps=260,
    loss="answer",
    batch=32,
    learning_rate=2e-3,
    warmup=10,
    weight_decay=0.01,
    betas=(0.9, 0.98),
    evaluate_every=10,
    evaluation_pairs=60,
    validation_items=32,
)
DESIGN = (
    "A reduced variant in the paper's format: four addends up to 99 instead of 999, ten memorized "
    "suffix pairs, and the paper's scratchpad, character by character, but read in larger pieces: "
    "a number, a list of digits or a fixed phrase is one token, and so is a tag (about 75 tokens "
    "an item instead of some 350 characters). Two phases: sums alone, worked out, until most "
    "scratchpads are right; then the paper's mix of 70 memorized and 930 other items. The "
    "checkpoint with the highest generalized share times memorized share on conflict items is "
    "kept, while training swings between the two. Nothing tells the model when to remember."
)


class SumsOnly(Addition):
    """The same sums without a single memorized pattern."""

    memorized_share = 0.0


def lab_addition() -> dict[str, Any]:
    """Options of the task that the lab model is trained on."""
    return {"config": draw_addition_config(0, 10, LARGEST_ADDEND), "largest": LARGEST_ADDEND}


def train_addition(
    folder: Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    reasoning_steps: int | None = None,
    progress: StepProgress | None = None,
) -> None:
    """Train a model on the reduced addition task and write it with its manifest.

    Args:
        folder: Where to.
        seed: Draws the items and the first weights.
        steps: Optimizer steps of the second phase; the recipe's own number when left out.
        reasoning_steps: The same of the first.
        progress: Called with (steps done, steps in all) of each phase.
    """
    started = time.process_time()
    options = lab_addition()
    task, sums = Addition(**options), SumsOnly(**options)
    texts = [item.text for item in task.training(3000, seed)]
    tokenizer = build_tokenizer(texts, PIECES, context=CONTEXT)
    with deterministic(), tempfile.TemporaryDirectory() as scratch:
        first = train(
            sums,
            scratch,
            model=small_gpt2(tokenizer, layers=3, width=96),
            tokenizer=tokenizer,
            settings=WORKING_OUT.changed(
                {"seed": seed, "steps": reasoning_steps or WORKING_OUT.steps}
            ),
            device="cpu",
            progress=progress,
        )
        run = train(
            task,
            folder,
            model=scratch,
            settings=MIXED.changed({"seed": seed, "steps": steps or MIXED.steps}),
            resume=False,
            device="cpu",
            progress=progress,
        )
        earlier = {
            "phase_1": {
                "steps": first.record["settings"]["steps"],
                "learning_rate": first.record["settings"]["learning_rate"],
                "generalized": first.kept["generalized"],
            },
        }
        write_card(
            run,
            task,
            options=options,
            design=DESIGN,
            study_pairs=4000,
            study_steered={"validation": 120, "test": 240},
            started=started,
            earlier=earlier,
        )
