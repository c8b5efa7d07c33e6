"""`write_report`: a study as one page that opens anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mechmem.errors import MechmemError
from mechmem.reports import reasoning_page
from mechmem.reports.page import page_parts, study_parts, write_page
from mechmem.studies.base import Study
from mechmem.studies.behavior.study import BehaviorStudy
from mechmem.studies.reasoning.study import ReasoningStudy
from mechmem.studies.saving import write_manifest, write_whole


def write_report(study: Study, folder: str | Path) -> Path:
    """Write ``report.html`` and everything that `Study.save` writes, whole or not at all.

    Returns:
        The path of the report.

    Raises:
        ArtifactError: When the folder cannot be written; what was there stays as it was.
    """

    def parts(draft: Path) -> None:
        manifest, tables = study.manifest(), study.tables()
        study.write_parts(draft, tables)
        write_page(_page(study, tables, manifest), draft)
        write_manifest(manifest, draft)

    return write_whole(parts, folder) / "report.html"


def _page(study: Study, tables: dict[str, Any], manifest: dict[str, Any]) -> dict[str, Any]:
    drawn = study.figures()
    if isinstance(study, BehaviorStudy):
        return study_parts(study, tables, drawn, manifest)
    if isinstance(study, ReasoningStudy):
        title = f"{study.model.name}, {study.task}: one direction between reasoning and memory?"
        text = reasoning_page.body(study, tables, drawn, manifest)
        return page_parts(title, reasoning_page.header(study), text, drawn)
    raise MechmemError(
        f"There is no page for {type(study).__name__}; its tables are written by study.save()."
    )
