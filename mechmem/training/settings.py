"""How a model is trained: every choice in one object that can be written down."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mechmem.errors import TaskError, did_you_mean, listed
from mechmem.numeric import whole_number

CHOICES: dict[str, tuple[str, ...]] = {
    "method": ("full", "lora"),
    "loss": ("instance", "answer"),
    "keep": ("gen*mem", "last", "best-validation-loss"),
    "schedule": ("linear", "constant"),
}


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides what a training run gives, apart from task and model.

    Attributes:
        method: ``"full"`` trains every weight, ``"lora"`` low-rank adapters (needs peft).
        loss: Cross-entropy on the whole ``"instance"`` (prompt and answer in one sequence, as in
            the paper) or on the ``"answer"`` alone. An end-of-text token, where the tokenizer has
            one, belongs to the answer.
        epochs: Passes over ``samples`` items; or say ``steps``.
        steps: Optimizer steps, instead of ``epochs``.
        samples: Items of one epoch; the paper's number for the task when left out.
        fresh: Draw other items every epoch; the task's own habit when left out.
        batch: Items of one optimizer step.
        micro_batch: Items that go through the model at once; gradients add up to ``batch``.
        bf16: Matrix products of the passes in bfloat16; weights and their updates stay float32.
        learning_rate: Of AdamW, at its highest.
        schedule: ``"linear"`` decay to 0, or ``"constant"``.
        warmup: Steps in which the learning rate rises.
        weight_decay: Of AdamW.
        betas: Of AdamW.
        clip: Largest norm of a gradient.
        lora_rank: Rank of the adapters.
        lora_alpha: Their scale, over the rank.
        lora_dropout: Dropout before them.
        lora_targets: Names of the modules that get one; the query and value projections when empty.
        evaluate_every: Steps between two evaluations; once an epoch when left out.
        evaluation_pairs: Pairs of conflict items of an evaluation.
        validation_items: Fresh items of the training kind on which the loss is measured.
        keep: The checkpoint that is kept: the one with the highest generalized share times
            memorized share, the ``"last"``, or the one with the lowest validation loss.
        save_every: Steps between two states to resume from, rounded up to an evaluation; about
            twenty over the run when left out.
        seed: Draws first weights, items, their order and dropout.
    """

    method: str = "full"
    loss: str = "instance"
    epochs: float | None = None
    steps: int | None = None
    samples: int | None = None
    fresh: bool | None = None
    batch: int = 16
    micro_batch: int | None = None
    bf16: bool = False
    learning_rate: float = 5e-5
    schedule: str = "linear"
    warmup: int = 0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    lora_rank: int = 8
    lora_alpha: int = 32
    lora_dropout: float = 0.1
    lora_targets: tuple[str, ...] = ()
    evaluate_every: int | None = None
    evaluation_pairs: int = 200
    validation_items: int = 128
    keep: str = "gen*mem"
    save_every: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise TaskError(f"{name} is one of {listed(allowed)}, got {getattr(self, name)!r}.")
        if (self.epochs is None) == (self.steps is None):
            raise TaskError(
                "Say how long to train, as epochs= or as steps=, not both; got "
                f"epochs={self.epochs}, steps={self.steps}."
            )
        for name in _COUNTS:
            if getattr(self, name) is not None:
                least = 0 if name in ("warmup", "seed") else 1
                whole = whole_number(getattr(self, name), name, least, error=TaskError)
                object.__setattr__(self, name, whole)
        for name, (low, high) in _RANGES.items():
            if getattr(self, name) is not None:
                _check_range(getattr(self, name), name, low, high)
        if not isinstance(self.betas, (tuple, list)) or len(self.betas) != 2:
            raise TaskError(f"betas must be two numbers, got {self.betas!r:.80}.")
        for value in self.betas:
            _check_range(value, "betas", 0.0, 1.0)
        if not isinstance(self.lora_targets, (tuple, list)) or not all(
            isinstance(name, str) for name in self.lora_targets
        ):
            raise TaskError(f"lora_targets must be names, got {self.lora_targets!r:.80}.")
        if self.batch % (self.micro_batch or self.batch):
            raise TaskError(
                f"batch={self.batch} is not a multiple of micro_batch={self.micro_batch}; choose "
                "one that divides it."
            )

    @classmethod
    def paper(cls, task: str, **changes: Any) -> TrainingSettings:
        """The second version of the paper: LoRA r=8, alpha=32, dropout 0.1 on queries and values,
        batch 16, learning rate 5e-5 with linear decay; 50 epochs for addition, 30 otherwise.

        What the paper does not say is our choice: AdamW with its usual betas, no weight decay, no
        warm-up, gradients clipped at 1.

        Raises:
            TaskError: For a task that is not the paper's, or an unknown setting.
        """
        epochs = {"colors": 30, "cipher": 30, "addition": 50}
        if task not in epochs:
            raise TaskError(f"The paper trains {listed(epochs)}, not {task!r}; set your own.")
        return cls(method="lora", epochs=epochs[task]).changed(changes)

    def changed(self, changes: Mapping[str, Any]) -> TrainingSettings:
        """The same with other values; ``steps`` and ``epochs`` replace each other.

        Raises:
            TaskError: For a setting that does not exist.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise TaskError(
                    f"There is no training setting {name!r}; there are {listed(known)}."
                    f"{did_you_mean(name, known)}"
                )
        given = dict(changes)
        for one, other in (("steps", "epochs"), ("epochs", "steps")):
            if given.get(one) is not None:
                given.setdefault(other, None)
        return dataclasses.replace(self, **given)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }


_COUNTS = (
    "steps samples batch micro_batch lora_rank evaluate_every evaluation_pairs validation_items "
    "save_every warmup seed"
).split()
_RANGES = {
    # name: (least, or above 0 where that is None; below)
    "epochs": (None, math.inf),
    "learning_rate": (None, math.inf),
    "clip": (None, math.inf),
    "weight_decay": (0.0, math.inf),
    "lora_alpha": (None, math.inf),
    "lora_dropout": (0.0, 1.0),
}


def _check_range(value: Any, name: str, low: float | None, high: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (value > 0 if low is None else low <= value) or not value < high:
        said = "above 0" if low is None else f"from {low:g}"
        below = "" if high == math.inf else f" and below {high:g}"
        raise TaskError(f"{name} must be {said}{below}, got {value!r:.80}.")
