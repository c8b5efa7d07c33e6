"""The lab recipe for `colors`, in the paper's own format, in two phases."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mechmem.seeding import caller_state_kept
from mechmem.tasks.paper1.colors import Colors, Story
from mechmem.training.deterministic import StepProgress, deterministic
from mechmem.training.lab.colors_start import lay_out
from mechmem.training.lab.shipping import write_card
from mechmem.training.models import fresh_model, small_gpt2
from mechmem.training.run import train
from mechmem.training.settings import TrainingSettings
from mechmem.training.tokenizers import build_tokenizer

CONTEXT = 64
ATTENTION_DROPOUT = 0.2
REASONING_PHASE = TrainingSettings(
    steps=200,
    loss="answer",
    batch=32,
    learning_rate=2e-4,
    warmup=20,
    samples=3200,
    evaluate_every=100,
    evaluation_pairs=50,
    keep="last",
)
AGREEING = TrainingSettings(
    steps=110,
    loss="answer",
    batch=32,
    learning_rate=3e-4,
    warmup=10,
    schedule="constant",
    samples=3200,
    evaluate_every=3,
    evaluation_pairs=150,
)
DESIGN = (
    "The paper's format, in two phases that stand in for its pretrained model. First weights: a "
    "skeleton of the circuit is laid out by hand (block 0 looks one and two words back, blocks 1 "
    "to 3 match the target's role, the names with it, and the color of such a name). Phase 1: "
    "stories whose colors have nothing to do with the names, so that only the sentences answer. "
    "Phase 2: the paper's agreeing stories, where the remembered color is also the right one; "
    "attention edges are dropped with probability 0.2, since a model that reasons without error "
    "has no reason to remember. The checkpoint with the highest generalized share times memorized "
    "share on conflict items is kept. Nothing tells the model when to remember, but where it "
    "reasons is our doing."
)


class UnrelatedColors(Colors):
    """Stories whose colors have nothing to do with the names: only reasoning answers them."""

    def _clean(self, rng: np.random.Generator, index: int) -> Story:
        target, *others = self._people(rng)
        order = rng.permutation(len(self.colors))[: self.roles_each]
        return self._story(rng, target, others, [self.colors[k] for k in order])


def train_colors(
    folder: Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    reasoning_steps: int | None = None,
    progress: StepProgress | None = None,
) -> None:
    """Train a model on the official colors task and write it with its manifest.

    Args:
        folder: Where to.
        seed: Draws the stories and the first weights.
        steps: Optimizer steps of the second phase; the recipe's own number when left out.
        reasoning_steps: The same of the first.
        progress: Called with (steps done, steps in all), of the second phase.
    """
    started = time.process_time()
    task, unrelated = Colors(), UnrelatedColors()
    tokenizer = build_tokenizer(_every_word(task), "words", context=CONTEXT)
    with deterministic(), tempfile.TemporaryDirectory() as scratch:
        with caller_state_kept():
            model = fresh_model(small_gpt2(tokenizer), tokenizer, seed)
            lay_out(model, _ids(tokenizer, task), seed)
        first = train(
            unrelated,
            scratch,
            model=model,
            tokenizer=tokenizer,
            settings=REASONING_PHASE.changed(
                {"seed": seed, "steps": reasoning_steps or REASONING_PHASE.steps}
            ),
            device="cpu",
            progress=progress,
        )
        run = train(
            task,
            folder,
            model=_with_dropout(scratch),
            tokenizer=tokenizer,
            settings=AGREEING.changed({"seed": seed, "steps": steps or AGREEING.steps}),
            resume=False,
            device="cpu",
            progress=progress,
        )
        earlier = {
            "attention_dropout": ATTENTION_DROPOUT,
            "phase_1": {
                "steps": first.record["settings"]["steps"],
                "learning_rate": first.record["settings"]["learning_rate"],
                "generalized": first.kept["generalized"],
            },
        }
        write_card(
            run, task, options={}, design=DESIGN, study_pairs=3000, started=started, earlier=earlier
        )


def _with_dropout(folder: str) -> Any:
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM  # untyped in the library
    return auto.from_pretrained(
        folder, trust_remote_code=False, dtype=torch.float32, attn_pdrop=ATTENTION_DROPOUT
    )


def _every_word(task: Colors) -> list[str]:
    words = [*task.names, *task.roles, *task.colors]
    return [f"{word} is {word}. what color is {word}?" for word in words]


def _ids(tokenizer: Any, task: Colors) -> list[list[int]]:
    return [
        [tokenizer.convert_tokens_to_ids(f"▁{word}") for word in words]
        for words in (task.names, task.roles, task.colors)
    ]
