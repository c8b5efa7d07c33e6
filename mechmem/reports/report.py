"""`write_report`: a study as one page that opens anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import jinja2
import pandas as pd

from mechmem import studies
from mechmem.artifacts import write_text
from mechmem.errors import ArtifactError, MechmemError, listed
from mechmem.reports.page import drawn, render_page
from mechmem.reports.saved import SavedStudy, load_study
from mechmem.studies.base import STUDIES, Study
from mechmem.studies.saving import seal_manifest

PAGE = "report.html"


def write_report(study: Study | SavedStudy | str | Path, folder: str | Path | None = None) -> Path:
    """Write ``report.html``: of a study after `Study.save` has written all else; of a saved study
    from its tables, figures and manifest alone, in its own folder.

    Args:
        study: A study, or the folder of a saved one. Whoever wrote that folder, all of it is data:
            its text is escaped and nothing in it is run.
        folder: Where a study is written; a saved one has its place.

    Returns:
        The path of the report.

    Raises:
        ArtifactError: When the folder cannot be written (what was there stays as it was), holds no
            study, or lacks something that the page shows.
    """
    if isinstance(study, Study):
        if folder is None:
            raise MechmemError(
                "write_report needs a folder to write a study to: write_report(study, 'out/')."
            )
        # First, so that a page that fails takes no study with it. What is shown is what was saved.
        study.save(folder)
        study, folder = load_study(folder), None
    saved = study if isinstance(study, SavedStudy) else load_study(study)
    if folder is not None and Path(folder).resolve() != saved.folder.resolve():
        raise MechmemError(
            f"The page of a saved study lies beside its tables, in {saved.folder}, got folder="
            f"{str(folder)!r}; leave it out, or copy the folder first."
        )
    page = write_text(saved.folder / PAGE, _page(saved))
    files = saved.manifest["files"]
    if PAGE not in files:
        seal_manifest({**saved.manifest, "files": [PAGE, *files]}, saved.folder)
    return page


def _page(study: SavedStudy) -> str:
    for name in studies.__all__:
        getattr(studies, name)  # a class is known once its file is loaded
    known = STUDIES.get(study.kind)
    if known is None:
        raise ArtifactError(
            f"{study.folder} holds a study of the kind {study.kind!r}, of which there is no "
            f"template here; there are {listed(STUDIES)}. Import the module that defines its class "
            "first."
        )
    figures = {name: drawn(figure) for name, figure in study.figures().items()}
    template = known.template or f"{known.kind}.html"
    try:
        return render_page(
            template, figures, study=study, manifest=study.manifest, tables=_Tables(study)
        )
    except jinja2.UndefinedError as error:
        raise ArtifactError(
            f"{study.folder} lacks something that the page shows: {error.message}. It was changed, "
            "or saved by another mechmem; run the study again."
        ) from error
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{study.folder} has a table or manifest that the page cannot show "
            f"({type(error).__name__}: {error}). It was changed, or saved by another mechmem; run "
            "the study again."
        ) from error


class _Tables(Mapping[str, pd.DataFrame]):
    """The tables of a saved study, read when they are asked for."""

    def __init__(self, study: SavedStudy) -> None:
        self._study = study

    def __getitem__(self, name: str) -> pd.DataFrame:
        return self._study.table(name)

    def __contains__(self, name: object) -> bool:
        return name in self._study.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._study.names)

    def __len__(self) -> int:
        return len(self._study.names)
