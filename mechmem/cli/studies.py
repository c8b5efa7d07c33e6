"""`mechmem demo` and `mechmem study`: the whole question."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechmem.cli.app import Seed, command, progress_bar
from mechmem.cli.config import save_config
from mechmem.cli.output import Format, Output, print_result

if TYPE_CHECKING:
    from mechmem.experiments.study import Study

__all__ = ["demo", "study"]

DEMO_MODEL = "lab/addition-cued"
_TINY = 256
PAIRS = 600


@command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("mechmem-demo"),
    seed: Seed = 0,
    output: Output = Format.table,
) -> None:
    """Run the whole study on the shipped lab model and write a report.

    Example: mechmem demo
    """
    _study(DEMO_MODEL, None, None, out, seed, PAIRS, output)


@command()
def study(
    task: Annotated[
        str, typer.Argument(help="A task (see `mechmem tasks`), or a .jsonl/.csv file of prompts.")
    ],
    model: Annotated[
        str | None,
        typer.Option(help="lab/<name>, a folder or a hub name; default the task's lab model."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("mechmem-study"),
    seed: Seed = 0,
    pairs: Annotated[
        int | None,
        typer.Option(
            help="Pairs that the task makes; default: the lab model's own number, or 600."
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(help="For reasoning: a file with question, answer, and label or score."),
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(help="For reasoning: worked examples to show before every question."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="For reasoning: longest answer to your own questions.")
    ] = 512,
    output: Output = Format.table,
) -> None:
    """Ask the whole question of a model, on a task or on your own prompts.

    `mechmem study reasoning` asks whether one direction lies between reasoning and memory: on the
    lab model that ships, or on --model with your own --questions.

    Your own prompts need columns text, group (the same for rephrasings of one question),
    memorized and generalized.

    Example: mechmem study my_prompts.csv --model ./my-model --out my-report
    """
    from mechmem.cli.reasoning import REASONING, study_reasoning
    from mechmem.models import lab_models
    from mechmem.tasks import available_tasks, get_task

    if task in REASONING:
        if pairs is not None:
            raise typer.BadParameter("this study has no pairs", param_hint="--pairs")
        study_reasoning(model, questions, examples, max_new_tokens, out, seed, output)
        return
    if questions is not None or examples is not None:
        raise typer.BadParameter(
            "only `mechmem study reasoning` reads it", param_hint="--questions"
        )
    own = Path(task) if Path(task).suffix in (".jsonl", ".csv") else None
    if own is not None and model is None:
        raise typer.BadParameter("your own prompts need --model", param_hint="--model")
    if own is not None and pairs is not None:
        raise typer.BadParameter("your own prompts are the pairs", param_hint="--pairs")
    if own is None and task not in available_tasks():
        get_task(task)  # says which tasks there are
    if model is None and f"lab/{task}" not in lab_models():
        raise typer.BadParameter(
            f"no lab model ships for {task!r}; say which model to ask", param_hint="--model"
        )
    _study(model or f"lab/{task}", None if own else task, own, out, seed, pairs or PAIRS, output)


def _study(
    model_name: str,
    task_name: str | None,
    own: Path | None,
    out: Path,
    seed: int,
    pairs: int,
    output: Format,
) -> None:
    """Load, run, print one table, one sentence and its notes, write the report."""
    from mechmem.artifacts import check_writable
    from mechmem.experiments.summary import summary_table

    check_writable(out)  # found out before the work
    with progress_bar("loading") as bar:

        def say(line: str) -> None:
            bar.set_description_str(line.partition(": {")[0][:60])
            bar.update(1)

        result = _run(model_name, task_name, own, seed, pairs, say)
        say("writing the report")
        report = result.save(out)
    save_config(out)
    print_result(summary_table(result), output, said=result.answer(), notes=result.notes())
    typer.echo(f"report: {report}", err=True)


def _run(
    model_name: str,
    task_name: str | None,
    own: Path | None,
    seed: int,
    pairs: int | None,
    say: Any,
) -> Study:
    import torch

    from mechmem.experiments.study import run_study
    from mechmem.models import load_model
    from mechmem.tasks import PromptAnswers, PromptSet, get_task

    prompts = None  # files are cheap to get wrong and models slow to load: files first
    if own is not None:
        prompts = PromptSet.from_csv(own) if own.suffix == ".csv" else PromptSet.from_jsonl(own)
        PromptAnswers.for_prompts(prompts.require("study"))
    elif task_name is not None:
        get_task(task_name)
    model = load_model(model_name)
    if model.info.d_model <= _TINY:
        torch.set_num_threads(1)  # on matrices this small, threads only wait for each other
    if prompts is not None:
        return run_study(model, prompts=prompts, seed=seed, progress=say)
    name = task_name or model.card["task"]
    task = get_task(name, **model.card.get("task_options", {}))
    negative = None
    if "negative_control" in model.card:
        control = load_model(model.card["negative_control"])
        negative = (control, get_task(name, **control.card["task_options"]))
    n = pairs or int(model.card.get("study_pairs", PAIRS))
    return run_study(model, task=task, n=n, seed=seed, negative=negative, progress=say)
