"""The models of the paper's tasks, every training seed: trained, measured and studied once, saved.

Used by `lab_models_paper.py` and `reproduction.py`. What was measured on a model is one file of
`docs/lab-models-paper/measured`, and is not measured again; delete it to start from nothing. Models
lie in the work folder.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import mechmem as mm
from mechmem.analysis.intervals import Estimate, group_mean
from mechmem.manifests import file_digest
from mechmem.models.shipped import LAB_FOLDER
from mechmem.studies.behavior.run import STEERED
from mechmem.studies.verdict import FEWEST_REFITS, LEVEL

WORK = Path("build/lab-models-paper")
MEASURED = Path(__file__).parents[1] / "lab-models-paper" / "measured"
TABLES = ("depth_profile", "separation", "test", "beyond_controls", "turned", "probes")
TASKS = ("cipher", "colors", "addition")
SEEDS = (0, 1, 2)
EXTRA = {"cipher": (10,)}
PAIRS, CLEAN = 2000, 500
TOP = 0.1
BATCHES = 65536
LEAST = 0.10
"""A model shows both behaviors when each is at least this share of its answers."""


@dataclass(frozen=True)
class Entry:
    """One model: what ships, or a training seed as it was trained for these pages."""

    task: str
    seed: int | None
    work: Path

    @property
    def name(self) -> str:
        return f"{self.task}-{'shipped' if self.seed is None else self.seed}"

    @property
    def title(self) -> str:
        return f"lab/{self.task}" if self.seed is None else f"{self.task}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        return LAB_FOLDER / self.task if self.seed is None else self.work / self.name

    @property
    def same_seed(self) -> Entry | None:
        """Of what ships: the same seed as it was trained here."""
        if self.seed is not None:
            return None
        seed = json.loads((self.folder / "manifest.json").read_text())["training"]["seed"]
        return Entry(self.task, seed, self.work)

    def load(self) -> mm.Model:
        if self.seed is None:
            return mm.load_model(f"lab/{self.task}")
        if not (self.folder / "manifest.json").is_file():
            print(f"training {self.title}", flush=True)
            mm.train_lab_model(self.task, self.folder, seed=self.seed)
        return mm.load_model(self.folder)

    def measured(self, what: str, measure: Callable[[], dict]) -> Any:
        """A part of what is kept of this model, measured if it is not there."""
        file = MEASURED / f"{self.name}.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if what not in known:
            print(f"{what} of {self.title}", flush=True)
            known |= measure()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        return known[what]

    def behavior(self) -> dict:
        """What the unedited model does on fresh conflict pairs and on clean items."""

        def measure() -> dict:
            model = self.load()
            curve = pd.read_csv(self.folder / "curves.csv")["validation_loss"]
            training = {
                "validation_loss": curve.tolist(),
                "weights": file_digest(self.folder / "model.safetensors"),
            }
            return {"behavior": _behavior(model, _task(model)), "training": training}

        found: dict = self.measured("behavior", measure)
        return found

    def training(self) -> dict:
        """The curve of the validation loss, and a digest of the weights that were kept."""
        self.behavior()
        found: dict = self.measured("training", dict)
        return found

    def study(self) -> dict[str, pd.DataFrame] | str:
        """The tables of the study with the task's own settings, or why there is none."""
        found = self.measured("study", self._studied)
        if isinstance(found, str):
            return found
        return {name: pd.read_csv(io.StringIO(text)) for name, text in found.items()}

    def _studied(self) -> dict:
        started = time.process_time()
        card = mm.load_model(f"lab/{self.task}").card  # the same settings for every seed
        model = self.load()
        try:
            study = mm.run_study(
                model,
                task=_task(model),
                n=card["study_pairs"],
                steered={**STEERED, **card.get("study_steered", {})},
                token_budget=BATCHES,
                doses=(),  # no table here shows them
                seed=0,
            )
        except mm.PromptError as error:
            return {"study": str(error)}
        tables, halves = study.tables(), _halves(model, study.flips)
        return {
            "study": {name: tables[name].to_csv(index=False) for name in TABLES},
            "halves": halves.to_csv(index=False),
            "verdict": study.verdict.as_dict(),
            "cpu_seconds": round(time.process_time() - started, 1),
        }

    def verdict(self) -> dict:
        """What the study may claim: turned, p by claim and family, sentence. Of a studied model."""
        found: dict = self.measured("verdict", self._studied)
        return found

    def halves(self) -> pd.DataFrame:
        """Do two halves of the training flips choose the same neurons? Of a studied model."""
        return pd.read_csv(io.StringIO(self.measured("halves", self._studied)))

    @property
    def studied_in(self) -> float:
        return float(self.measured("cpu_seconds", self._studied))


def entries(work: Path = WORK) -> Iterator[Entry]:
    """Every model of the pages: what ships first, then the seeds."""
    for task in TASKS:
        yield Entry(task, None, work)
        yield from (Entry(task, seed, work) for seed in (*SEEDS, *EXTRA.get(task, ())))


def both(found: dict) -> bool:
    """Whether both behaviors are there."""
    return min(found[name][0] for name in ("memorized", "generalized")) >= LEAST


def claims(verdict: dict, family: str) -> bool:
    """Whether a family's larger change is beyond all refits' largest of any family."""
    p = verdict["family_p"].get(family, 1.0)
    return verdict["shuffles"] >= FEWEST_REFITS and p <= LEVEL


def percent(value: list[float] | tuple[float, ...]) -> str:
    """A share with its interval, in percent."""
    middle, low, high = (100 * part for part in value)
    return f"{middle:.1f} % [{low:.1f}, {high:.1f}]"


def points(value: tuple[float, ...]) -> str:
    """A difference of shares with its interval, in points."""
    middle, low, high = (100 * part for part in value)
    return f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]"


def share(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:.1f} %"


def line(*cells: object) -> str:
    """A row of a table."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def head(*names: str) -> list[str]:
    """The head of a table."""
    return [line(*names), "|" + "---|" * len(names)]


def row_of(table: pd.DataFrame, **wanted: object) -> pd.Series:
    """The one row with these values."""
    kept = table
    for column, value in wanted.items():
        kept = kept[kept[column] == value]
    (row,) = (row for _, row in kept.iterrows())
    return row


def _task(model: mm.Model) -> mm.Task:
    return mm.get_task(model.card["task"], **model.card["task_options"])


def _behavior(model: mm.Model, task: mm.Task) -> dict:
    seen = mm.observe(
        model, task.pairs(PAIRS, seed=0), task=task, margins=False, token_budget=BATCHES
    )
    items = task.clean_prompts(CLEAN, seed=0)
    clean = mm.observe(model, items, task=task, margins=False, token_budget=BATCHES)
    turned = set(seen.flips().groups)
    pairs = list(dict.fromkeys(seen.prompts.groups))
    rates, right = mm.Rates(seen), mm.Rates(clean)
    known = model.card
    return {
        **{name: _ends(rates.share(name)) for name in seen.allowed},
        "flip_rate": _ends(group_mean([float(pair in turned) for pair in pairs], pairs)),
        "flips": len(turned),
        "pairs": len(pairs),
        "clean": _ends(right.share("generalized")),
        "as_in_the_manifest": known["measured"]["flips"] == len(turned)
        and all(
            known["measured"][name] == round(seen.outcomes.count(name) / len(seen), 4)
            for name in seen.allowed
        ),
        "kept_step": known["training"]["kept_step"],
        "cpu_seconds": known["training"]["cpu_seconds"],
    }


def _halves(model: mm.Model, flips: mm.PromptSet) -> pd.DataFrame:
    acts = mm.cache_activations(model, flips, sites="resid_post")
    return mm.split_halves(acts, top=TOP, seed=0).table()


def _ends(value: Estimate) -> list[float]:
    return [value.value, value.low, value.high]


if __name__ == "__main__":  # of the tasks named, or of all
    for entry in entries():
        if entry.task in (sys.argv[1:] or TASKS):
            entry.behavior()
            entry.study()
            print(f"done with {entry.title}, {time.process_time():.0f} CPU s so far", flush=True)
