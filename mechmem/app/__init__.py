"""Floor 10: the open page, where one looks and turns instead of reading. Needs the extra `app`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechmem.errors import MechmemError

if TYPE_CHECKING:
    from mechmem.app.serve import OpenPage
    from mechmem.models.model import Model
    from mechmem.reports.saved import SavedStudy
    from mechmem.studies.base import Study
    from mechmem.tasks.base import Task

__all__ = ["open", "open_page"]


def open(  # noqa: A001 (`mm.open` is what a notebook says)
    study: Study | SavedStudy | str | Path | None = None,
    *,
    model: Model | str | None = None,
    task: Task | str | None = None,
) -> OpenPage:
    """The open page, inside a notebook or at its ``url``: does it remember or think, where, and
    what does a push do beside its control?

    It is served on 127.0.0.1 by this process and asks nothing of any other machine. Work on the
    model is done by one thread; ``close()`` ends it.

    Args:
        study: A study, or the folder of a saved one.
        model: Default that of the study, loaded when it is first needed; without a study, needed.
        task: Reads the answers; default that of the study. Without a study, directions and neurons
            are fitted on its pairs.

    Raises:
        ArtifactError: When the folder holds no study.
        MechmemError: Without a study and a model, or without Dash.
    """
    return open_page(study, model=model, task=task).start()


def open_page(
    study: Any = None, *, model: Any = None, task: Any = None, host: str | None = None,
    port: int | None = None,
) -> OpenPage:  # fmt: skip
    """The same, not served yet.

    Args:
        study, model, task: As in `open`.
        host: Another address than 127.0.0.1; the page then wants the token that its url has.
        port: Default 8713, or a free one.

    Raises:
        ModelError: When there is no model of that name.
    """
    try:
        from mechmem.app.serve import LOCAL, OpenPage
    except ModuleNotFoundError as error:
        if error.name not in ("dash", "flask", "werkzeug"):
            raise
        raise MechmemError(
            "The open page is drawn by Dash, which is not installed: pip install 'mechmem[app]'."
        ) from error
    from mechmem.app.source import Source
    from mechmem.reports.saved import SavedStudy, load_study

    if study is None and model is None:
        raise MechmemError(
            "There is nothing to open: give the folder of a study, a model, or both."
        )
    names: dict[str, str] = {}
    scratch = None
    if not (study is None or isinstance(study, (str, Path, SavedStudy))):
        scratch = tempfile.TemporaryDirectory(prefix="mechmem-open-", ignore_cleanup_errors=True)
        made = {"vector": "directions", "scores": "scores"}
        names = {name: f"study.{at}" for name, at in made.items() if hasattr(study, at)}
        study = load_study(study.save(Path(scratch.name) / "study"))
    elif isinstance(study, (str, Path)):
        study = load_study(study)
    if model is not None and not isinstance(model, str):
        names["model"] = "model"
    if isinstance(model, str):
        from mechmem.models.loading import check_source  # with torch, which a study alone needs not

        check_source(model)
    source = Source(study, model, task, names)
    return OpenPage(source, host or LOCAL, port, scratch)
