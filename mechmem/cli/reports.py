"""`mechmem report` and `mechmem compare`: pages from folders of saved studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mechmem.cli.app import command
from mechmem.cli.config import save_config
from mechmem.cli.output import Format, Output, print_result


@command()
def report(
    folder: Annotated[Path, typer.Argument(help="What `mechmem study` wrote to.")],
    output: Output = Format.table,
) -> None:
    """Write report.html of a saved study again; the model is not needed.

    Example: mechmem report mechmem-demo
    """
    from mechmem.reports import write_report
    from mechmem.reports.saved import load_study

    study = load_study(folder)
    page = write_report(study)
    print_result(study.summary(), output, said=study.answer(), notes=study.notes())
    typer.echo(f"report: {page}", err=True)


@command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of two or more saved studies.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("mechmem-compare.html"),
    output: Output = Format.table,
) -> None:
    """Lay saved studies side by side on one page: models, tasks, seeds.

    Example: mechmem compare study-seed0 study-seed1 --out compare.html
    """
    from mechmem.reports.compare import compare_studies

    found = compare_studies(folders)
    page = found.save(out)
    save_config(page)
    print_result(found.table(), output)
    typer.echo(f"comparison: {page}", err=True)
