"""`mechmem report` and `mechmem compare`: pages from saved studies; how a study is reported."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechmem.cli.app import command, progress_bar, step_of
from mechmem.cli.config import save_config
from mechmem.cli.output import Format, Output, clean, is_first, print_result, say
from mechmem.studies.defaults import PLAN_LINE

if TYPE_CHECKING:
    from mechmem.studies.base import Study


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
    say(f"report: {page}", err=True)


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
    say(f"comparison: {page}", err=True)


def run_and_report(
    run: Callable[[Callable[[str], None]], Study], out: Path, output: Format
) -> None:
    """Run a study, write its report, print one table, one sentence and its notes.

    Of processes that share the work, the first one writes and prints.

    Args:
        run: From what is called with a line for every step to the study.
        out: Folder to write to.
        output: How to print the table.
    """
    from tqdm import tqdm

    from mechmem.artifacts import check_writable
    from mechmem.progress import silenced
    from mechmem.reports import write_report
    from mechmem.work_claims import in_turn

    check_writable(out)  # found out before the work
    with progress_bar("loading") as bar:

        def told(line: str) -> None:
            if line.startswith(PLAN_LINE):
                if not silenced():
                    tqdm.write(clean(line), file=sys.stderr)
                return
            bar.set_description_str(step_of(line))
            bar.update(1)

        result = run(told)
        if not is_first():
            return
        told("writing the report")
        with in_turn(out / "report.html"):  # workers that joined end together
            report = write_report(result, out)
    save_config(out)
    print_result(result.summary(), output, said=result.answer(), notes=result.notes())
    say(f"report: {report}\nto ask and turn it yourself: {again('open', out)}", err=True)


def again(*words: object) -> str:
    """A command to type, also where `make` installed it and no PATH finds it."""
    name = ["mechmem"] if shutil.which("mechmem") else [sys.executable, "-m", "mechmem"]
    return shlex.join([*name, *map(str, words)])
