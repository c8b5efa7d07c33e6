"""What a page is opened on: a saved study, a model, or both. Nothing here needs torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechmem.app.view import MOST_WORDINGS, POSITIONS, STRONGEST, View
from mechmem.errors import ArtifactError, MechmemError, listed
from mechmem.manifests import read_json
from mechmem.reports.saved import SavedStudy

if TYPE_CHECKING:
    from mechmem.models.model import Model
    from mechmem.tasks.base import Task


@dataclass
class Source:
    """A saved study and the model that it is of; either may be missing.

    Attributes:
        study: What was saved.
        model: A loaded model, or the name of one; default that of the study.
        task: A task or its name; default that of the study, or of a lab model's card.
        names: What the lines of Python call objects of the notebook.
    """

    study: SavedStudy | None = None
    model: Model | str | None = None
    task: Task | str | None = None
    names: dict[str, str] = field(default_factory=dict)

    @property
    def model_name(self) -> str:
        """The model asked."""
        if self.model is None:
            assert self.study is not None
            return self.study.model
        return self.model if isinstance(self.model, str) else self.model.name

    @property
    def card(self) -> dict[str, Any]:
        """The manifest of a shipped model, as the study kept it."""
        return dict(self.study.manifest.get("card", {})) if self.study is not None else {}

    @property
    def reading(self) -> str | None:
        """How the study read its answers."""
        said = None if self.study is None else self.study.manifest.get("reading")
        return said if isinstance(said, str) else None

    @property
    def verdict(self) -> str:
        """What a reader sees first."""
        if self.study is None:
            return "No study is open, so nothing is claimed: what follows is one prompt at a time."
        return self.study.verdict

    @property
    def limits(self) -> list[str]:
        """What is not shown."""
        told = [] if self.study is None else list(self.study.manifest.get("limits", ()))
        return [
            *map(str, told),
            "A single prompt is an example. What may be claimed is the verdict.",
        ]

    @property
    def classes(self) -> tuple[str, str]:
        """The two classes, memorized first."""
        found = self._about.get("toward"), self._about.get("away")
        named = self.study.manifest.get("classes") if self.study is not None else None
        if named:
            return str(named[0]), str(named[1])
        return (str(found[1]), str(found[0])) if all(found) else ("memorized", "generalized")

    @cached_property
    def sites(self) -> list[str]:
        """Where the study has directions, as ``stream.layer``; empty before a model is fitted."""
        means = self._about.get("means", {})
        return [key for key, ends in means.items() if ends[0] is None or ends[0] != ends[1]]

    @cached_property
    def prompts(self) -> list[dict[str, Any]]:
        """The prompts of the study's test part, as they were saved."""
        for name in ("prompts_test.jsonl", "questions_test.jsonl"):
            file = self.artifact(name)
            if file is not None:
                try:
                    lines = file.read_text(encoding="utf-8").split("\n")
                    rows = [json.loads(line) for line in lines if line.strip()]
                    return [{**row} for row in rows]
                except (ValueError, TypeError, RecursionError) as error:
                    raise ArtifactError(
                        f"{file} cannot be read ({error}). Save the study again."
                    ) from error
        return []

    def artifact(self, name: str) -> Path | None:
        """A file that the study saved, unless it has none of that name."""
        if self.study is None or name not in self.study.artifacts:
            return None
        return self.study.artifact(name)

    @cached_property
    def _about(self) -> dict[str, Any]:
        file = self.artifact("directions.json")
        if file is None:
            return {}
        found = read_json(file, "directions")
        return found if isinstance(found, dict) else {}

    def learn(self, live: Any) -> None:
        """Without a study: where directions were fitted, and questions to ask, once they are."""
        if self.study is not None or live.directions is None:
            return
        first = next(iter(live.directions))
        self._about = {"toward": first.toward, "away": first.away}
        self.sites = [site.key for site in live.directions.sites]
        names = ("text", "group", "memorized", "generalized", "behavior")
        self.prompts = [{n: getattr(one, n) for n in names} for one in live.known.values()]

    def own(self, view: View) -> View:
        """A view that came by a link, where it is of what is open here.

        Raises:
            MechmemError: For a site or a class of another study.
        """
        for name, allowed in (("site", self.sites), ("toward", self.classes)):
            value = getattr(view, name)
            if self.sites and value and value not in allowed:
                raise MechmemError(
                    f"The link is of another study: {name} is {value!r:.60}, and here there are "
                    f"{listed(allowed)}. Open that study, and then its link."
                )
        return view

    def groups(self) -> list[str]:
        """Questions of the test part, those that came out both ways first."""
        behaviors: dict[str, set[str]] = {}
        for prompt in self.prompts:
            behaviors.setdefault(prompt.get("group", ""), set()).add(str(prompt.get("behavior")))
        return sorted(behaviors, key=lambda group: len(behaviors[group]) < 2)

    def wordings(self, group: str) -> list[dict[str, Any]]:
        """The first wordings of one question, in the order of the study."""
        return [p for p in self.prompts if p.get("group") == group][:MOST_WORDINGS]

    def first_view(self) -> View:
        """What a window shows when it is opened."""
        chosen: dict[str, Any] = {}
        for edit in self.study.manifest.get("chosen", ()) if self.study is not None else ():
            if isinstance(edit, dict) and edit.get("edit") == "AddDirection":
                chosen = edit
        alpha, where = chosen.get("alpha"), chosen.get("positions")
        strength = float(alpha) if isinstance(alpha, (int, float)) else 1.0
        site = str(chosen.get("direction", ""))
        if site not in self.sites:
            site = self.sites[len(self.sites) // 2] if self.sites else ""
        groups = self.groups()
        wordings = self.wordings(groups[0]) if groups else []
        return View(
            texts=tuple(prompt["text"] for prompt in wordings),
            memorized=str((wordings or [{}])[0].get("memorized") or ""),
            generalized=str((wordings or [{}])[0].get("generalized") or ""),
            site=site,
            toward=chosen["toward"] if chosen.get("toward") in self.classes else self.classes[1],
            strength=max(-STRONGEST, min(STRONGEST, strength)),
            positions=where if where in POSITIONS else POSITIONS[0],
            live=self.study is None,
        )

    def saved_rows(self, texts: Sequence[str]) -> pd.DataFrame:
        """What the study observed on these wordings, in order; what it did not see is left out."""
        if self.study is None or "observations_test" not in self.study.names:
            return pd.DataFrame()
        table = self.study.table("observations_test")
        found = table[table["prompt"].isin(list(texts))].drop_duplicates("prompt")
        return found.set_index("prompt").reindex([t for t in texts if t in set(found["prompt"])])
