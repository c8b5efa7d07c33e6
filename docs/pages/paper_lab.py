"""The models of the paper's tasks, every training seed: trained, measured and studied once, saved.

Used by `lab_models_paper.py` and `reproduction.py`. Whatever lies in the work folder already is
taken from there; delete it to start from nothing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

import mechmem as mm
from mechmem.analysis.intervals import Estimate, group_mean
from mechmem.models.shipped import LAB_FOLDER
from mechmem.reports.saved import load_study
from mechmem.studies.behavior.run import STEERED
from mechmem.studies.verdict import FEWEST_REFITS, LEVEL

WORK = Path("build/lab-models-paper")
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
    def results(self) -> Path:
        return self.work / "results" / self.name

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

    def behavior(self) -> dict:
        """What the unedited model does on fresh conflict pairs and on clean items."""
        file = self.results / "behavior.json"
        if not file.is_file():
            print(f"asking {self.title}", flush=True)
            model = self.load()
            _write(file, _behavior(model, _task(model)))
        return json.loads(file.read_text(encoding="utf-8"))

    def study(self) -> dict[str, pd.DataFrame] | str:
        """The tables of the study with the task's own settings, or why there is none."""
        folder, refused = self.results / "study", self.results / "refused.json"
        if refused.is_file():
            return str(json.loads(refused.read_text(encoding="utf-8"))["why"])
        if not (folder / "manifest.json").is_file():
            print(f"studying {self.title}", flush=True)
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
                _write(refused, {"why": str(error)})
                return str(error)
            mm.write_report(study, folder)
            spent = {"cpu_seconds": round(time.process_time() - started, 1)}
            _write(self.results / "cost.json", spent)
        return load_study(folder).tables()

    def verdict(self) -> dict:
        """What the study may claim: turned, p by claim and family, sentence. Of a studied model."""
        return load_study(self.results / "study").manifest["refits"]

    def halves(self) -> pd.DataFrame:
        """Do two halves of the training flips choose the same neurons? Of a studied model."""
        file = self.results / "halves.csv"
        if not file.is_file():
            model = self.load()
            flips = mm.PromptSet.from_jsonl(self.results / "study" / "artifacts" / "flips.jsonl")
            acts = mm.cache_activations(model, flips, sites="resid_post")
            mm.split_halves(acts, top=TOP, seed=0).table().to_csv(file, index=False)
        return pd.read_csv(file)

    @property
    def studied_in(self) -> float:
        return float(json.loads((self.results / "cost.json").read_text())["cpu_seconds"])


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


def _ends(value: Estimate) -> list[float]:
    return [value.value, value.low, value.high]


def _write(file: Path, content: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":  # of the tasks named, or of all
    for entry in entries():
        if entry.task in (sys.argv[1:] or TASKS):
            entry.behavior()
            entry.study()
            print(f"done with {entry.title}, {time.process_time():.0f} CPU s so far", flush=True)
