"""The command line: `mechmem demo`, `mechmem train`, ... Progress on stderr, results on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechmem.errors import MechmemError

if TYPE_CHECKING:
    from mechmem.experiments.study import Study

__all__ = ["app", "main"]

app = typer.Typer(
    name="mechmem",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Is this language model remembering or thinking, where does it decide, can we turn it?",
)

DEMO_MODEL = "lab/addition-cued"
_TINY = 256
PAIRS = 600
Seed = Annotated[int, typer.Option(help="Keys splits, controls and resampling.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("mechmem-demo"),
    seed: Seed = 0,
) -> None:
    """Run the whole study on the shipped lab model and write a report.

    Example: mechmem demo
    """
    _study(DEMO_MODEL, None, None, out, seed, PAIRS)


@app.command()
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
        int | None, typer.Option(help="Pairs of rephrasings that the task makes; default 600.")
    ] = None,
) -> None:
    """Ask the whole question of a model, on a task or on your own prompts.

    Your own prompts need columns text, group (the same for rephrasings of one question),
    memorized and generalized.

    Example: mechmem study my_prompts.csv --model ./my-model --out my-report
    """
    from mechmem.models import lab_models
    from mechmem.tasks import available_tasks, get_task

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
    _study(model or f"lab/{task}", None if own else task, own, out, seed, pairs or PAIRS)


@app.command()
def train(
    task: Annotated[str, typer.Argument(help="The lab recipe, for example addition-cued.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; default lab-<task>-seed<seed>.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the data and the first weights.")] = 0,
    strength: Annotated[
        float, typer.Option(help="How much the cue decides; 0 is the negative control.")
    ] = 1.0,
) -> None:
    """Train a lab model again from nothing.

    Example: mechmem train addition-cued --seed 1
    """
    from mechmem.experiments.training import train_lab_model

    folder = out or Path(f"lab-{task}-seed{seed}")
    with _bar(f"training {task}") as bar:

        def step(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        train_lab_model(task, folder, seed=seed, strength=strength, progress=step)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    typer.echo(json.dumps(manifest["measured"], indent=1))
    typer.echo(f"wrote {folder}", err=True)


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="lab/<name>, a folder or a hub name.")],
    output: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
) -> None:
    """Prove by numbers that every site of a model can be read and edited truthfully.

    Exit status 3 when a site is refused.

    Example: mechmem check ./my-model --format csv
    """
    from mechmem.models import check_model, load_model

    if output not in ("table", "csv", "json"):
        raise typer.BadParameter("choose table, csv or json", param_hint="--format")
    with _bar("checking every site"):
        report = check_model(load_model(model))
    table = report.table()
    if output == "csv":
        typer.echo(table.to_csv(index=False), nl=False)
    elif output == "json":
        typer.echo(table.to_json(orient="records", indent=1))
    else:
        typer.echo(table.to_string(index=False, float_format=lambda value: f"{value:.1e}"))
    if report.refused:
        typer.echo(f"refused: {', '.join(map(str, report.refused))}", err=True)
        raise typer.Exit(3)


@app.command()
def extract(
    model: Annotated[str, typer.Argument(help="lab/<name>, a folder or a hub name.")],
    prompts: Annotated[Path, typer.Argument(help="A .jsonl or .csv file of prompts.")],
    out: Annotated[Path, typer.Option(help="Folder to write to; run again, it goes on there.")],
    sites: Annotated[
        list[str] | None, typer.Option(help="A stream, or stream.layer; several times for several.")
    ] = None,
    positions: Annotated[str, typer.Option(help="last, mean, or a span's name.")] = "last",
    by: Annotated[
        str | None,
        typer.Option(help="Keep statistics per class only: behavior or label."),
    ] = None,
    bootstrap: Annotated[int, typer.Option(help="Replicates, with --by.")] = 0,
    seed: Seed = 0,
    dry_run: Annotated[bool, typer.Option(help="Print the plan and stop.")] = False,
) -> None:
    """Read a model's states on prompts into a folder; under torchrun every rank does its share.

    Example: mechmem extract lab/addition-cued prompts.jsonl --out states --sites resid_post.2
    """
    from mechmem.caching import extract_activations, extract_moments, plan_extraction
    from mechmem.models import Site, load_model
    from mechmem.tasks import PromptSet

    asked = (PromptSet.from_csv if prompts.suffix == ".csv" else PromptSet.from_jsonl)(prompts)
    wanted = [Site.from_key(name) if "." in name else name for name in sites or ["resid_post"]]
    with _bar("loading"):
        loaded = load_model(model)
    if dry_run:
        typer.echo(plan_extraction(loaded, asked, sites=wanted, positions=positions))
    elif by is None:
        store = extract_activations(
            loaded, asked, out, sites=wanted, positions=positions, progress=True
        )
        typer.echo(store)
    else:
        found = extract_moments(
            loaded, asked, out, by=by, sites=wanted, positions=positions, bootstrap=bootstrap,
            seed=seed, progress=True,
        )  # fmt: skip
        typer.echo(f"{out}: {found.counts if found else 'other ranks are still at work'}")


@app.command()
def merge(
    folder: Annotated[Path, typer.Argument(help="What `mechmem extract --by` wrote to.")],
    out: Annotated[Path, typer.Option(help="File to write, without a suffix.")],
) -> None:
    """Add up the statistics that several processes wrote.

    Example: mechmem merge states --out moments
    """
    from mechmem.caching import merge_moments

    moments = merge_moments(folder)
    typer.echo(json.dumps(moments.counts))
    typer.echo(f"wrote {moments.save(out)}", err=True)


@app.command()
def tasks() -> None:
    """List the tasks and the lab models that ship."""
    from mechmem.models import lab_models
    from mechmem.tasks import available_tasks

    typer.echo("tasks:      " + ", ".join(available_tasks()))
    typer.echo("lab models: " + ", ".join(lab_models()))


def _study(
    model_name: str, task_name: str | None, own: Path | None, out: Path, seed: int, pairs: int
) -> None:
    """Load, run, print one table, one sentence and its notes, write the report."""
    from mechmem.artifacts import check_writable

    check_writable(out)  # found out before the work
    with _bar("loading") as bar:

        def say(line: str) -> None:
            bar.set_description_str(line.partition(": {")[0][:60])
            bar.update(1)

        result = _run(model_name, task_name, own, seed, pairs, say)
        say("writing the report")
        report = result.save(out)
    _print_result(result)
    typer.echo(f"report: {report}", err=True)


def _run(
    model_name: str, task_name: str | None, own: Path | None, seed: int, pairs: int, say: Any
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
    return run_study(model, task=task, n=pairs, seed=seed, negative=negative, progress=say)


def _print_result(result: Study) -> None:
    from mechmem.experiments.report import summary_table

    typer.echo(summary_table(result).to_string(index=False))
    typer.echo("")
    typer.echo(fill(result.answer(), 100))
    for note in result.notes():
        typer.echo(fill(note, 100, initial_indent="- ", subsequent_indent="  "))


@contextmanager
def _bar(text: str) -> Iterator[Any]:
    """A progress bar on stderr, with the bars and log lines of the libraries below kept quiet."""
    from tqdm import tqdm

    from mechmem.models.quiet import quiet_transformers

    shape = "{desc:<60} {n_fmt} {elapsed}"
    with quiet_transformers(), tqdm(desc=text, file=sys.stderr, bar_format=shape) as bar:
        yield bar


def main() -> None:
    """Entry point: an error is one line on stderr and exit status 1, a traceback with --debug."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments, standalone_mode=True)
    except MechmemError as error:
        if debug:
            raise
        typer.echo(f"mechmem: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("mechmem: stopped", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


if __name__ == "__main__":
    main()
