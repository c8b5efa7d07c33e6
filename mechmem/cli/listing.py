"""`mechmem check` and `mechmem tasks`: what can be asked, and of which models."""

from __future__ import annotations

from typing import Annotated

import typer

from mechmem.cli.app import app, progress_bar

__all__ = ["check", "tasks"]


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
    with progress_bar("checking every site"):
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
def tasks() -> None:
    """List the tasks and the lab models that ship."""
    from mechmem.models import lab_models
    from mechmem.tasks import available_tasks

    typer.echo("tasks:      " + ", ".join(available_tasks()))
    typer.echo("lab models: " + ", ".join(lab_models()))
