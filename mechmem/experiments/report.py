"""A study as sentence, tables, figures, and one page that opens anywhere."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechmem import plotting
from mechmem.artifacts import write_text
from mechmem.errors import ArtifactError
from mechmem.experiments.page import study_parts, write_page
from mechmem.experiments.summary import summary_table
from mechmem.experiments.table_files import write_tables
from mechmem.experiments.wording import PAPER, StudyLike, sentence, verdict
from mechmem.patching.neurons import ShiftNeurons

__all__ = [
    "figures",
    "sentence",
    "summary_table",
    "tables",
    "verdict",
    "write",
    "write_manifest",
    "write_whole",
]


_NOTE, _DRAFT = "manifest.json", ".partial-"


def tables(study: StudyLike) -> dict[str, pd.DataFrame]:
    """Every table by name; the figures are drawn from these numbers."""
    best = study.sweep.best
    out = {
        "summary": summary_table(study),
        "behavior_mix": plotting.mix_table(study.observed),
        "test": study.sweep.test_table(),
        "turned": study.sweep.turned_table(),
        "beyond_controls": _beyond(study),
        "validation": study.sweep.table(),
        "dose": study.dose,
        "clean": study.clean,
        "depth_profile": study.depth.table(),
        "separation": study.separation.table(),
        "probes": study.probes.table(),
        "neurons": study.scores.table(),
        "mlp_neurons": study.mlp_scores.table(),
        "layer_distribution": plotting.distribution_table(study.scores, top=_top(study)),
        "mlp_layer_distribution": plotting.distribution_table(study.mlp_scores, top=_top(study)),
    }
    if study.window_scores is not study.scores:
        out["window_neurons"] = study.window_scores.table()
    for toward, rates in best.rates.items():
        out[f"transitions_{toward}"] = rates.transitions.reset_index()
    for name, part in study.observed.items():
        out[f"observations_{name}"] = part.table()
    for toward, rates in best.rates.items():
        out[f"observations_test_{toward}"] = rates.after.table()
    if study.tokens is not None:
        out["tokens"] = study.tokens.table()
    if study.negative is not None:
        out["negative_behavior_mix"] = plotting.mix_table(study.negative.observed)
        out["negative_test"] = study.negative.sweep.test_table()
    return {name: table for name, table in out.items() if not table.empty}


def figures(
    study: StudyLike, *, theme: str = "light", found: Mapping[str, pd.DataFrame] | None = None
) -> dict[str, go.Figure]:
    """Every figure by name, in the order of the report.

    Args:
        study: What is drawn.
        theme: ``"light"`` or ``"dark"``.
        found: Its `tables`, where they are at hand already.
    """
    best = study.sweep.best
    table = tables(study) if found is None else found
    out = {"behavior_mix": plotting.behavior_mix(table["behavior_mix"], theme=theme)}
    if np.isfinite(study.observed["test"].margins).any():
        out["margins"] = plotting.margins(study.observed["test"], theme=theme)
    out["rates"] = plotting.rates_bars(table["test"], theme=theme)
    if "dose" in table:
        out["dose_response"] = plotting.dose_response(study.dose, theme=theme)
    for toward, rates in best.rates.items():
        fig = plotting.transitions(rates, theme=theme)
        out[f"transitions_{toward}"] = fig.update_layout(title_text=f"Steered toward {toward}")
    if study.negative is not None:
        fig = plotting.rates_bars(table["negative_test"], theme=theme)
        out["negative_rates"] = fig.update_layout(title_text="The same on the negative control")
    out |= {
        "depth_profile": plotting.depth_profile(study.depth, theme=theme),
        "neuron_map": plotting.neuron_map(study.scores, theme=theme),
        "layer_distribution": plotting.layer_distribution(
            study.scores, top=_top(study), theme=theme
        ),
        "separation": plotting.separation_profile(study.separation, theme=theme),
        "probes": plotting.probe_accuracy(study.probes, theme=theme),
        "mlp_neuron_map": plotting.neuron_map(study.mlp_scores, theme=theme).update_layout(
            title_text="The same for MLP neurons"
        ),
        "sweep": plotting.sweep_cells(table["validation"], theme=theme),
    }
    return out


def write(study: StudyLike, folder: str | Path) -> Path:
    """Write ``report.html``, ``manifest.json``, ``tables/`` and ``artifacts/``, as `write_whole`.

    Returns:
        The path of the report.

    Raises:
        ArtifactError: When the folder cannot be written; what was there stays as it was.
    """
    return write_whole(lambda draft: _write_parts(study, draft), folder)


def write_whole(parts: Callable[[Path], None], folder: str | Path) -> Path:
    """Let ``parts`` write a report into a folder of its own, then move its files into place.

    Files of an earlier report, named in its ``manifest.json``, are replaced; others stay. Its
    ``manifest.json`` is taken away before anything moves and the new one put there when everything
    else is in place. So a process that is killed before the move leaves the earlier report, and one
    that is killed during it a folder without a manifest, which `load_study` refuses; saving there
    again makes it whole.

    Returns:
        The path of the report.

    Raises:
        ArtifactError: When the folder cannot be written; what was there stays as it was.
    """
    target = Path(folder)
    existed = target.exists()
    draft = target / f"{_DRAFT}{os.getpid()}-{time.time_ns()}"
    try:
        draft.mkdir(parents=True)
        parts(draft)
        _move_in(draft, target)
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {target}: {error.strerror or error}. Choose a folder you can write to."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if not existed and target.is_dir() and not any(target.iterdir()):
            target.rmdir()
    return target / "report.html"


def _write_parts(study: StudyLike, draft: Path) -> None:
    found = tables(study)
    write_tables(found, draft / "tables")
    artifacts = draft / "artifacts"
    study.scores.save(artifacts / "neurons")
    study.mlp_scores.save(artifacts / "mlp_neurons")
    if study.window_scores is not study.scores:
        study.window_scores.save(artifacts / "window_neurons")
    study.directions.save(artifacts / "directions")
    study.flips.to_jsonl(artifacts / "flips.jsonl")
    for name, part in study.observed.items():
        part.behaving.to_jsonl(artifacts / f"prompts_{name}.jsonl")
    manifest = {**study.manifest(), "verdict": verdict(study), "answer": sentence(study)}
    write_page(study_parts(study, found, figures(study, found=found), manifest), draft)
    write_manifest(manifest, draft)


def write_manifest(manifest: dict[str, Any], draft: Path) -> None:
    """Write ``manifest.json`` with the names of all files of the report."""
    files = sorted(str(path.relative_to(draft).as_posix()) for path in _files(draft))
    manifest["files"] = [*files, _NOTE]
    text = json.dumps(manifest, indent=1, ensure_ascii=False, default=str)
    write_text(draft / _NOTE, text + "\n")


def _move_in(draft: Path, target: Path) -> None:
    """Move every file into place; on a failure put back what was there.

    The old manifest goes first and the new one comes last: after a kill in between there is none.
    """
    kept, note = draft / "kept", Path(_NOTE)
    fresh = {path.relative_to(draft) for path in _files(draft)}
    stale = {path for path in _earlier(target) if path not in fresh}
    done: list[Path] = []
    try:
        for relative in [note, *sorted((stale | fresh) - {note}), note]:
            there = target / relative
            if there.is_dir():
                raise IsADirectoryError(f"{there} is a folder of its own")
            if there.exists():
                (kept / relative).parent.mkdir(parents=True, exist_ok=True)
                os.replace(there, kept / relative)
            done.append(relative)
            if relative in fresh and (relative != note or done.count(note) == 2):
                there.parent.mkdir(parents=True, exist_ok=True)
                os.replace(draft / relative, there)
    except OSError:
        for relative in reversed(list(dict.fromkeys(done))):
            (target / relative).unlink(missing_ok=True)
            if (kept / relative).exists():
                os.replace(kept / relative, target / relative)
        raise


def _earlier(target: Path) -> list[Path]:
    """Files that an earlier report in this folder, or one killed there, says are its own."""
    paths: list[Path] = []
    for note in [target / _NOTE, *target.glob(f"{_DRAFT}*/{_NOTE}"),
                 *target.glob(f"{_DRAFT}*/kept/{_NOTE}")]:  # fmt: skip
        with suppress(OSError, ValueError, KeyError, TypeError):
            listed = json.loads(note.read_text(encoding="utf-8"))["files"]
            paths += [Path(str(name)) for name in listed]
    return [
        path
        for path in paths
        if not path.is_absolute() and ".." not in path.parts and (target / path).is_file()
    ]


def _beyond(study: StudyLike) -> pd.DataFrame:
    """How far every family's winner goes beyond the control that it beats by least."""
    rows = []
    for tested in study.sweep.tested:
        for toward in tested.rates:
            gap = tested.beyond_every_control(toward)
            rows.append(
                {
                    "family": tested.family,
                    "toward": toward,
                    "beyond_every_control": gap.value,
                    "low": gap.low,
                    "high": gap.high,
                    "beyond": gap.low > 0,
                    "n": gap.n,
                    "groups": gap.groups,
                    **tested.edit.describe(),
                }
                | {"toward": toward}
            )
    return pd.DataFrame(rows)


def _top(study: StudyLike) -> float:
    """Which share of the neurons the published form chose; where it was not tried, 5 %."""
    for tested in study.sweep.tested:
        if tested.family.startswith(PAPER) and isinstance(tested.edit, ShiftNeurons):
            return tested.edit.top
    return 0.05


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
