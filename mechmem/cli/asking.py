"""Who is asked what: a model with a task, or with prompts from a file. Files before models."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mechmem.models import Model
    from mechmem.tasks import PromptSet, Task

PAIRS = 600
READERS = {".csv": "from_csv", ".jsonl": "from_jsonl", ".parquet": "from_parquet"}


class HowRead(StrEnum):
    """How a behavior is read."""

    text = "text"
    choice = "choice"


ReadingOption = Annotated[
    HowRead | None,
    typer.Option(
        help="text: what the model writes; choice: which of the two answers it finds likelier, "
        "nothing is written; default the task's own, text for your own prompts."
    ),
]


@dataclass(frozen=True)
class Asked:
    """What was asked for, checked as far as is cheap: files are read, the model is not loaded.

    Attributes:
        model_name: As `load_model` takes it.
        task_name: A task, or ``None`` for own prompts and for the task of a lab model's card.
        prompts: Own prompts, or ``None``.
        pairs: Pairs asked for, or ``None``.
        reading: ``"text"``, ``"choice"``, or ``None`` for the task's own.
    """

    model_name: str
    task_name: str | None
    prompts: PromptSet | None
    pairs: int | None
    reading: str | None = None

    def load(self) -> tuple[Model, Task | None]:
        """The model, and the task unless the prompts bring their own answers."""
        import torch

        from mechmem.models import load_model
        from mechmem.tasks import get_task

        model = load_model(self.model_name)
        if model.info.is_tiny:
            torch.set_num_threads(1)
        if self.prompts is not None:
            return model, None
        name = self.task_name or model.card["task"]
        return model, get_task(name, **model.card.get("task_options", {}))

    def number(self, model: Model) -> int:
        """Pairs to make: as asked, the lab model's own number, or `PAIRS`."""
        return self.pairs or int(model.card.get("study_pairs", PAIRS))

    def batches(self, model: Model) -> int:
        """Most tokens in one batch: many where a model is so small that passes cost more than what
        they compute."""
        from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET

        return (8 if model.info.is_tiny else 1) * DEFAULT_TOKEN_BUDGET


def read_prompts(file: Path) -> PromptSet:
    """The prompts of a file, by its ending.

    Raises:
        PromptError: For another ending, or a file that cannot be used.
    """
    from mechmem.errors import PromptError
    from mechmem.tasks import PromptSet

    if file.suffix.lower() not in READERS:
        raise PromptError(
            f"Prompts come as {', '.join(READERS)}, not as {str(file)!r}; save the table as CSV."
        )
    prompts: PromptSet = getattr(PromptSet, READERS[file.suffix.lower()])(file)
    return prompts


def load_asked(
    task: str, model: str | None, pairs: int | None, reading: str | None = None
) -> Asked:
    """Check what was typed.

    Raises:
        typer.BadParameter: For options that do not fit together.
        TaskError, PromptError: For an unknown task, or a file that cannot be used.
    """
    from mechmem.models import lab_models
    from mechmem.tasks import PromptAnswers, available_tasks, get_task

    file = Path(task)
    if file.suffix.lower() in READERS:
        if model is None:
            raise typer.BadParameter("your own prompts need --model", param_hint="--model")
        if pairs is not None:
            raise typer.BadParameter("your own prompts are the pairs", param_hint="--pairs")
        prompts = read_prompts(file)
        PromptAnswers.for_prompts(prompts.require("study"))
        return Asked(model, None, prompts, None, reading)
    if task not in available_tasks():
        if file.suffix:
            read_prompts(file)  # says which files there are
        get_task(task)  # says which tasks there are
    if model is None and f"lab/{task}" not in lab_models():
        raise typer.BadParameter(
            f"no lab model ships for {task!r}; say which model to ask", param_hint="--model"
        )
    return Asked(model or f"lab/{task}", task, None, pairs, reading)
