"""`mechmem study reasoning`: P2 on the lab model, or on any model and labeled questions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mechmem.cli.output import Format
from mechmem.cli.reports import run_and_report

if TYPE_CHECKING:
    from mechmem.studies.base import Study

LAB_MODEL = "lab/recall-reasoning"
REASONING_TASKS = ("reasoning", "recall-reasoning")


def study_reasoning(
    model_name: str | None,
    questions: Path | None,
    examples: Path | None,
    max_new_tokens: int | None,
    shuffles: int | None,
    out: Path,
    seed: int,
    output: Format,
    *,
    read_only: bool = False,
) -> None:
    """Load, run, print one table, one sentence and its notes, write the report.

    Raises:
        typer.BadParameter: For options that do not fit together.
    """
    if questions is not None and model_name is None:
        raise typer.BadParameter("your own questions need --model", param_hint="--model")
    if questions is None:
        for option, value in {"--examples": examples, "--max-new-tokens": max_new_tokens}.items():
            if value is not None:
                raise typer.BadParameter(
                    "only your own questions are asked with it: give --questions, or leave it out",
                    param_hint=option,
                )
    if shuffles is None:
        # Twenty grids of long answers take hours: refits on questions of your own are asked for.
        shuffles = 19 if questions is None else 0
    name = model_name or LAB_MODEL

    def study(say: Callable[[str], None]) -> Study:
        return _run(
            name, questions, examples, max_new_tokens, shuffles, seed, say, read_only=read_only
        )

    run_and_report(study, out, output)


def _run(
    model_name: str,
    questions: Path | None,
    examples: Path | None,
    max_new_tokens: int | None,
    shuffles: int,
    seed: int,
    say: Any,
    *,
    read_only: bool = False,
) -> Study:
    import torch

    from mechmem.models import load_model
    from mechmem.studies.reasoning.read_only import read_labels
    from mechmem.studies.reasoning.run import run_reasoning_study
    from mechmem.tasks import Reasoning, get_task
    from mechmem.tasks.questions.forms import fitting_examples
    from mechmem.tasks.questions.right_wrong import right_and_wrong

    reader = Reasoning() if max_new_tokens is None else Reasoning(max_new_tokens=max_new_tokens)
    # Files are cheap to get wrong and models slow to load: files first.
    asked = None if questions is None else reader.read(questions)
    worked = None if examples is None else reader.read(examples)
    model = load_model(model_name)
    if model.info.is_tiny:
        torch.set_num_threads(1)
    if read_only or (asked is None and model.card.get("task") != "recall-reasoning"):
        return read_labels(
            model, questions=asked, others=None if asked is None else {},
            turn=None if read_only else right_and_wrong(seed=seed), shuffles=shuffles, seed=seed,
            progress=say,
        )  # fmt: skip
    if asked is not None:
        # As many for every question as there are for each; where there are none, it is said.
        fit = [len(fitting_examples(p, worked)) for p in asked if p.meta.get("kind") and worked]
        return run_reasoning_study(
            model, task=reader, questions=asked, examples=worked,
            shots=max(1, min(fit)) if fit else None, shuffles=shuffles, seed=seed, progress=say,
        )  # fmt: skip
    task = get_task("recall-reasoning", **model.card.get("task_options", {}))
    return run_reasoning_study(model, task=task, shuffles=shuffles, seed=seed, progress=say)
