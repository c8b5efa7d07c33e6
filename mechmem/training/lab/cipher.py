"""The lab recipe for `cipher`, in the paper's own format."""

from __future__ import annotations

import time
from pathlib import Path

from mechmem.tasks.paper1.cipher import Cipher
from mechmem.training.deterministic import StepProgress, deterministic
from mechmem.training.lab.shipping import write_card
from mechmem.training.models import small_gpt2
from mechmem.training.run import train
from mechmem.training.settings import TrainingSettings
from mechmem.training.tokenizers import build_tokenizer

PIECES = r"CIPHERTEXT:| QUESTION:| What| is| the| plaintext\?| ANS:|<mem-[0-9a-f]{8}>|[\s\S]"
CONTEXT = 40
SETTINGS = TrainingSettings(
    steps=800,
    loss="answer",
    batch=64,
    learning_rate=2e-3,
    warmup=50,
    weight_decay=0.01,
    betas=(0.9, 0.98),
    evaluate_every=25,
    evaluation_pairs=150,
)
DESIGN = (
    "The paper's format and mix: 10,000 items a set, of which 700 end in one of ten memorized "
    "suffixes and are answered with its tag, 9,300 are deciphered. Nothing tells the model when to "
    "remember. A letter is one token, and so is a tag. Trained from scratch; the checkpoint with "
    "the highest generalized share times memorized share on conflict items is kept, while training "
    "is still swinging between the two."
)


def train_cipher(
    folder: Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    progress: StepProgress | None = None,
) -> None:
    """Train a model on the official cipher task and write it with its manifest.

    Args:
        folder: Where to.
        seed: Draws the items and the first weights.
        steps: Optimizer steps of 64 items; the recipe's own number when left out.
        progress: Called with (steps done, steps in all).
    """
    started = time.process_time()
    task = Cipher()
    texts = [item.text for item in task.training(2000, seed)]
    tokenizer = build_tokenizer(texts, PIECES, context=CONTEXT)
    with deterministic():
        run = train(
            task,
            folder,
            model=small_gpt2(tokenizer, layers=3, width=96),
            tokenizer=tokenizer,
            settings=SETTINGS.changed({"seed": seed, "steps": steps or SETTINGS.steps}),
            resume=False,
            device="cpu",
            progress=progress,
        )
        write_card(run, task, options={}, design=DESIGN, study_pairs=2000, started=started)
