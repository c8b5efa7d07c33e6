"""Saved studies side by side on one page: models, tasks, seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mechmem.artifacts import write_text
from mechmem.errors import ArtifactError
from mechmem.plotting.data import ended
from mechmem.reports.compare_figures import effects_figure, layers_figure, mix_figure
from mechmem.reports.page import drawn, render_page
from mechmem.reports.saved import SavedStudy, load_study


class Comparison:
    """Two or more saved studies, by what their tables have in common.

    Attributes:
        studies: In the order of the page: by model, task, seed.
        labels: A short name of each, unique.
    """

    def __init__(self, studies: Sequence[SavedStudy]) -> None:
        if len(studies) < 2:
            raise ArtifactError(
                f"A comparison needs at least two saved studies, got {len(studies)}. Name their "
                "folders."
            )
        self.studies = sorted(studies, key=lambda one: (one.model, one.task, one.seed))
        self.labels = _labels(self.studies)

    def __repr__(self) -> str:
        return f"Comparison({', '.join(self.labels)})"

    def table(self) -> pd.DataFrame:
        """One row per study and class steered to, the winner against the control that it beats by
        least; ``reasoning`` studies have a row per chosen edit, class and sign."""
        return self._stacked(_effects)

    def mix(self) -> pd.DataFrame:
        """One row per study and outcome: what the unedited model did on the test prompts."""
        return self._stacked(_mix)

    def separations(self) -> pd.DataFrame:
        """One row per study and site: how far the classes lie apart along the direction."""
        return self._stacked(lambda one: _named(one, "separation"))

    def probes(self) -> pd.DataFrame:
        """One row per study and site: held-out accuracy of probes, and their baselines."""
        return self._stacked(lambda one: _named(one, "probes"))

    def figures(self, *, theme: str = "light") -> dict[str, go.Figure]:
        """Every figure that the studies have the numbers for."""
        found = {
            "effects": effects_figure(self.table(), theme),
            "mix": mix_figure(self.mix(), theme),
            "separation": layers_figure(self.separations(), "auroc", theme),
            "probes": layers_figure(self.probes(), "accuracy", theme),
        }
        return {name: fig for name, fig in found.items() if fig is not None}

    def save(self, path: str | Path) -> Path:
        """Write the page, one file that opens anywhere without a network.

        Raises:
            ArtifactError: When it cannot be written.
        """
        page = render_page(
            "comparison.html",
            {name: drawn(figure) for name, figure in self.figures().items()},
            studies=dict(zip(self.labels, self.studies, strict=True)),
            counted=self._count(),
            settings=self._settings(),
            tables={
                "effects": self.table(),
                "mix": self.mix(),
                "separation": self.separations(),
                "probes": self.probes(),
            },
        )
        return write_text(path, page)

    def _stacked(self, of: Callable[[SavedStudy], pd.DataFrame]) -> pd.DataFrame:
        parts = [
            of(one).assign(study=label)
            for one, label in zip(self.studies, self.labels, strict=True)
        ]
        found = [part for part in parts if not part.empty]
        if not found:
            return pd.DataFrame()
        whole = pd.concat(found, ignore_index=True)
        return whole[["study", *(name for name in whole.columns if name != "study")]]

    def _count(self) -> str:
        """How many studies turned the model by their own verdicts, and what lies beyond controls;
        counted, not tested."""
        effects = self.table()
        if effects.empty:
            return "None of these studies has an edit to compare"
        verdicts = [
            one.manifest["refits"]
            for one in self.studies
            if one.kind == "behavior" and (one.manifest.get("refits") or {}).get("shuffles")
        ]
        classes = dict.fromkeys(name for found in verdicts for name in found["p"])
        counted = [
            f"{sum(name in found['turned'] for found in verdicts)} of {len(verdicts)} studies with "
            f"refits turned the model toward {name}"
            for name in classes
            if name not in ("any", "both")
        ]
        behavior = effects[effects["kind"] == "behavior"]
        counted += [
            f"{int((rows['beyond_low'] > 0).sum())} of {len(rows)} went beyond every control "
            f"toward {toward}, which alone proves nothing"
            for toward, rows in behavior.groupby("toward", sort=False)
        ]
        reasoning = effects[effects["kind"] == "reasoning"]
        if not reasoning.empty:
            counted.append(
                f"{int((reasoning['beyond_low'] > 0).sum())} of {len(reasoning)} changes of "
                "accuracy lie above those of random directions, which alone proves nothing"
            )
        return "; ".join(counted)

    def _settings(self) -> pd.DataFrame:
        rows = []
        for one, label in zip(self.studies, self.labels, strict=True):
            model: Any = one.manifest["model"]
            test: Any = one.manifest.get("splits", {}).get("test", {})
            rows.append(
                {
                    "study": label,
                    "model": one.model,
                    "layers": model.get("n_layers", ""),
                    "width": model.get("d_model", ""),
                    "task": one.task,
                    "seed": str(one.seed),
                    "kind": one.kind,
                    "test groups": len(test.get("groups", ())),
                    "mechmem": one.manifest.get("versions", {}).get("mechmem", ""),
                    "folder": one.folder.name,
                }
            )
        return pd.DataFrame(rows)


def compare_studies(folders: Iterable[str | Path]) -> Comparison:
    """Read saved studies and lay them side by side.

    Args:
        folders: What `Study.save`, `ReasoningStudy.save` or `mechmem study` wrote.

    Raises:
        ArtifactError: For fewer than two folders, or one that holds no study.
    """
    return Comparison([load_study(folder) for folder in folders])


def _labels(studies: Sequence[SavedStudy]) -> list[str]:
    """Model, task and seed, as far as they differ; the folder where that is not enough."""
    parts = [(one.model, one.task, f"seed {one.seed}") for one in studies]
    differ = [k for k in range(3) if len({part[k] for part in parts}) > 1]
    names = [", ".join(part[k] for k in differ) or part[0] for part in parts]
    if len(set(names)) < len(names):
        names = [
            f"{name} ({one.folder.name})".lstrip() for name, one in zip(names, studies, strict=True)
        ]
    if len(set(names)) < len(names):
        names = [f"{k + 1}: {name}" for k, name in enumerate(names)]
    return names


def _named(one: SavedStudy, name: str) -> pd.DataFrame:
    return one.table(name) if name in one.names else pd.DataFrame()


def _effects(one: SavedStudy) -> pd.DataFrame:
    if one.kind == "reasoning":
        frame = _named(one, "accuracy")
        if frame.empty or "beyond_random" not in frame:
            return pd.DataFrame()
        frame = frame[frame["beyond_random"].notna()]
        signs = [name for name in ("sign", "toward") if name in frame]
        toward = frame[["label", *signs]].astype(str).agg(", ".join, axis=1)
        values = frame[[*ended("beyond_random")]]
        family = frame["family"]
        if "pick" in frame:  # the best for who knows the label, and for one sign for all
            family = family + ", " + frame["pick"].astype(str)
        head = {"kind": "reasoning", "family": family, "toward": toward}
    else:
        frame = _named(one, "beyond_controls")
        if frame.empty:
            return pd.DataFrame()
        frame = frame[frame["family"] == frame["family"].iloc[0]]  # the best on validation is first
        values = frame[[*ended("beyond_every_control")]]
        head = {"kind": "behavior", "family": frame["family"], "toward": frame["toward"]}
    values = values.set_axis([*ended("beyond")], axis=1)
    judged_by = ("draws", "spread", "rank", "size", "control_size", "n", "groups")
    kept = {name: frame[name] for name in judged_by if name in frame}
    return pd.DataFrame(head | {name: values[name] for name in values} | kept)


def _mix(one: SavedStudy) -> pd.DataFrame:
    frame = _named(one, "behavior_mix")
    part = next((name for name in ("part", "set", "split") if name in frame), None)
    if part is not None:
        return frame[frame[part] == "test"].drop(columns=part)
    if one.kind == "reasoning" and "accuracy" in one.names:
        plain = one.table("accuracy")
        plain = plain[plain["family"] == "unedited"]
        return pd.DataFrame(
            {"outcome": "correct, " + plain["label"].astype(str), "share": plain["accuracy"]}
        ).assign(
            share_low=plain["accuracy_low"],
            share_high=plain["accuracy_high"],
            n=plain["n"],
            groups=plain["groups"],
        )
    return frame
