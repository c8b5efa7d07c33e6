"""How often is a verdict given where nothing is, and where something is? For docs/calibration.md.

    python docs/pages/calibration.py run --nulls 200 --power 30   # resumable
    python docs/pages/calibration.py page                         # from what is finished

Every study is a row of ``docs/calibration/studies.csv`` under its kind and seed; those that are
there are not run again. ``make calibrate`` does both.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest

import mechmem as mm
from mechmem.analysis.exchange import Exchange
from mechmem.seeding import keyed_rng
from mechmem.studies.behavior.plan import REFINE, Fit, GridRule, default_grid
from mechmem.studies.reasoning.edits import ALPHAS, SCALES
from mechmem.studies.reasoning.refits import exchange_labels, judge_edits
from mechmem.studies.reasoning.run import candidates, divided
from mechmem.studies.verdict import Verdict, verdict_of
from mechmem.tasks.questions.labels import LABELS
from mechmem.training.lab.recall_reasoning import train_recall_reasoning

HERE = Path(__file__).parents[1]
TABLE, PAGE = HERE / "calibration" / "studies.csv", HERE / "calibration.md"
SHUFFLES = 19
P2, P2_NULL = "P2", "P2, nothing"
FEW = (12, 20, 30)
"""Training groups that flip, in the planted studies with few of them."""
NULLS = ("exchanged", "coin", "random edits", "answers swapped")
"""Half of the null studies are of the first kind; the others were not made by an exchange."""


class Bench:
    """A model, its task, and how many pairs and prompts a study asks."""

    def __init__(self, model: str, n: int = 600, validation: int = 240, test: int = 480) -> None:
        self.model = mm.load_model(model)
        self.task = mm.get_task("addition-cued", **self.model.card["task_options"])
        self.n, self.most = n, {"validation": validation, "test": test}

    def parts(self, seed: int) -> dict[str, mm.PromptSet]:
        whole = self.task.pairs(self.n, seed)
        return whole.split(train=0.4, validation=0.2, test=0.4, seed=seed)._asdict()

    def fitter(self, flips: mm.PromptSet) -> Callable[[mm.PromptSet], Fit]:
        """Fits of these prompts under whatever behaviors."""
        last = mm.cache_activations(self.model, flips, sites="resid_post")
        window = mm.cache_activations(self.model, flips, positions=list(self.task.read_spans))
        return lambda prompts: Fit.of(last, window, prompts)

    def sweep(
        self,
        grid: Mapping[str, Sequence[mm.Edit]],
        refits: Sequence[Mapping[str, Sequence[mm.Edit]]],
        parts: Mapping[str, mm.PromptSet],
        seed: int,
        reason: str = "",
        draws: int = 1,
        task: mm.Task | None = None,
        refine: Mapping[str, Sequence[float]] = REFINE,
    ) -> Verdict:
        tried = {name: whole_groups(parts[name], most) for name, most in self.most.items()}
        found = mm.sweep(
            self.model, grid, task=task or self.task, refits=refits, refine=refine, draws=draws,
            seed=seed, token_budget=8 * 8192, **tried,
        )  # fmt: skip
        return verdict_of(found, SHUFFLES, reason)

    def judge(
        self,
        flips: mm.PromptSet,
        parts: Mapping[str, mm.PromptSet],
        seed: int,
        grid: GridRule = default_grid,
        draws: int = 1,
        task: mm.Task | None = None,
    ) -> Verdict:
        """The recipe of `run_study`: fit, refits on exchanged behaviors, one sweep."""
        fit, exchange = self.fitter(flips), Exchange(flips)
        reason = exchange.reason()
        count = 0 if reason else SHUFFLES
        refits = [grid(fit(exchange.draw(seed, k))) for k in range(count)]
        return self.sweep(grid(fit(flips)), refits, parts, seed, reason, draws, task)


class Questions:
    """P2's study on `recall-reasoning`: training is broken off at a third, where half of the
    answers are wrong, so that accuracy can rise and fall."""

    STEPS = 700

    def __init__(self, work: Path) -> None:
        folder = work / f"recall-{self.STEPS}"
        if not (folder / "manifest.json").is_file():
            train_recall_reasoning(folder, seed=0, steps=self.STEPS)
        self.model, self.task = mm.load_model(folder), mm.get_task("recall-reasoning", seed=0)

    def judge(self, seed: int, exchanged: bool) -> Verdict:
        """The recipe of `run_reasoning_study`, on labels as they are or exchanged beforehand."""
        asked = self.task.questions(400, seed)
        labeled = self.task.extraction(asked)
        splits = divided(labeled, seed)
        train = splits["train"]
        states = mm.cache_activations(self.model, train, sites=["resid_post"])

        def fit(prompts: mm.PromptSet) -> mm.Directions:
            own = mm.difference_of_means(states.select(prompts), toward=LABELS[0], by="label")
            return candidates(own)

        exchange, how = exchange_labels(train)
        if exchanged:
            train = exchange.draw(seed, 10**6)
            exchange, how = exchange_labels(train)
        refits = [fit(exchange.draw(seed, k)) for k in range(SHUFFLES)]
        parts = {
            name: self.task.evaluation(
                asked.filter(lambda p, ids=set(splits[name].ids): p.id in ids)
            )
            for name in ("validation", "test")
        }
        before = {
            name: mm.observe(self.model, part, task=self.task, margins=False)
            for name, part in parts.items()
        }
        return judge_edits(
            self.model, fit(train), refits, parts, before, self.task,
            {"addition": ALPHAS, "scaled projection": SCALES}, draws=30, seed=seed, how=how,
            planned=SHUFFLES,
        )  # fmt: skip


def whole_groups(part: mm.PromptSet, most: int) -> mm.PromptSet:
    kept = set(part[:most].groups)
    return mm.PromptSet(prompt for prompt in part if prompt.group in kept)


def flips_of(bench: Bench, parts: Mapping[str, mm.PromptSet], groups: int = 0) -> mm.PromptSet:
    """The training prompts whose group shows both behaviors; of so many groups, if said."""
    flips = mm.observe(bench.model, parts["train"], task=bench.task, margins=False).flips()
    if not groups:
        return flips
    kept = set(sorted(set(flips.groups))[:groups])
    return flips.filter(lambda prompt: prompt.group in kept)


def null(bench: Bench, kind: str, seed: int, grid: GridRule = default_grid) -> Verdict:
    """A study in which no edit can know the behavior."""
    parts = bench.parts(seed)
    rng = keyed_rng(seed, "calibration", kind)
    if kind == "answers swapped":
        return _swapped(bench, parts, rng, seed)
    flips = flips_of(bench, parts)
    if kind == "exchanged":  # numbered far away from the refits' own draws
        return bench.judge(Exchange(flips).draw(seed, 10**6), parts, seed, grid)
    if kind == "coin":
        names = rng.choice(["memorized", "generalized"], len(flips)).tolist()
        thrown = flips.with_behaviors(dict(zip(flips.ids, names, strict=True)))
        return bench.judge(thrown, parts, seed, grid)
    # Twenty edits along vectors that nothing was fitted to; the first plays the real fit.
    fit = bench.fitter(flips)(flips)
    grids = [default_grid(_random(fit, rng)) for _ in range(SHUFFLES + 1)]
    return bench.sweep(grids[0], grids[1:], parts, seed)


def _random(fit: Fit, rng: np.random.Generator) -> Fit:
    """The fit with every difference replaced by a random combination of centered states: a vector
    with their covariance, as long as the one that it replaces."""
    signs = rng.permutation(np.resize(["memorized", "generalized"], len(fit.last.prompts)))
    ids = fit.last.prompts.ids
    thrown = fit.last.prompts.with_behaviors(dict(zip(ids, signs.tolist(), strict=True)))
    return Fit.of(fit.last, fit.window, thrown)


def _swapped(
    bench: Bench, parts: Mapping[str, mm.PromptSet], rng: np.random.Generator, seed: int
) -> Verdict:
    """Own prompts whose two answers trade places in half of the groups, before anything is asked:
    what is called memorized is the remembered answer here and the computed one there."""
    swapped = {}
    for name, part in parts.items():
        coins = {group: rng.random() < 0.5 for group in sorted(set(part.groups))}
        swapped[name] = mm.PromptSet(
            replace(p, memorized=p.generalized, generalized=p.memorized) if coins[p.group] else p
            for p in part
        )
    task = _Own(bench.task)
    flips = mm.observe(bench.model, swapped["train"], task=task, margins=False).flips()
    return bench.judge(flips, swapped, seed, task=task)


class _Own(mm.Task):
    """Reads a completion by the prompt's own two answers, in as many tokens as the task writes."""

    name = "own answers"
    outcomes = ("memorized", "generalized", "other")

    def __init__(self, task: mm.Task) -> None:
        self.max_new_tokens, self.stop = task.max_new_tokens, task.stop
        self.read_spans = task.read_spans

    def pairs(self, n: int, seed: int = 0) -> mm.PromptSet:
        raise mm.TaskError("own answers makes no prompts; give it prompts of your own.")

    def classify(self, prompt: mm.Prompt, completion: str) -> str:
        word = completion.strip().split()[:1]
        answers = {prompt.memorized: "memorized", prompt.generalized: "generalized"}
        return answers.get(word[0], "other") if word else "other"


def kind_of(seed: int) -> str:
    return NULLS[0] if seed % 2 == 0 else NULLS[1 + seed // 2 % 3]


def planned(nulls: int, power: int, questions: int) -> Iterator[tuple[str, str, int]]:
    """Study, kind and seed, in the order in which they are run."""
    for seed in range(power):
        yield from (("negative control", "", seed), ("planted", "", seed))
    yield from (("nothing", kind_of(seed), seed) for seed in range(nulls))
    yield from ((P2_NULL, "", seed) for seed in range(questions))
    yield from ((P2, "", seed) for seed in range(questions // 4))
    yield from (("planted", f"{few} groups", seed) for few in FEW for seed in range(power // 3))


def run(nulls: int, power: int, questions: int, work: Path) -> None:
    """Run what is missing; every finished study is on disk before the next begins."""
    TABLE.parent.mkdir(exist_ok=True)
    done = set()
    if TABLE.exists():
        rows = csv.DictReader(TABLE.open())
        done = {(row["study"], row["kind"], int(row["seed"])) for row in rows}
    benches: dict[str, Bench] = {}
    reasoning: Questions | None = None
    for study, kind, seed in planned(nulls, power, questions):
        if (study, kind, seed) in done:
            continue
        if study in (P2, P2_NULL):
            reasoning = reasoning or Questions(work)
            started = time.process_time()
            found = reasoning.judge(seed, exchanged=study == P2_NULL)
            _append(study, "", seed, found, time.process_time() - started)
            continue
        name = "lab/addition-uncued" if study == "negative control" else "lab/addition-cued"
        bench = benches.setdefault(name, Bench(name))
        started = time.process_time()
        if study == "nothing":
            found = null(bench, kind, seed)
        else:
            parts = bench.parts(seed)
            groups = int(kind.split()[0]) if kind else 0
            found = bench.judge(flips_of(bench, parts, groups), parts, seed, draws=30)
        _append(study, kind, seed, found, time.process_time() - started)


def _append(study: str, kind: str, seed: int, found: Verdict, seconds: float) -> None:
    own = list(found.effects.get(found.chosen, {}).values()) or [float("nan")] * 2
    row = {
        "study": study, "kind": kind, "seed": seed, "turned": "+".join(found.turned),
        "p_any": found.p.get("any", float("nan")), "p_both": found.p.get("both", float("nan")),
        "family": found.chosen, "first": own[0], "second": own[1], "refits": found.shuffles,
        "reason": found.reason, "cpu_seconds": round(seconds, 1),
        **{f"p_{name}": p for name, p in found.family_p.items()},
    }  # fmt: skip
    old = pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame()
    table = pd.concat([old, pd.DataFrame([row])], ignore_index=True)
    partial = TABLE.with_suffix(".partial")
    table.to_csv(partial, index=False)
    partial.replace(TABLE)
    print(study, kind, seed, found.headline, found.p.get("any"), flush=True)


def page() -> None:
    """The page, from the studies that are finished."""
    table = pd.read_csv(TABLE, keep_default_na=False, na_values={"p_any": [""], "p_both": [""]})
    lines = []
    for study, rows in table.groupby("study", sort=False):
        kinds = [(kind, part) for kind, part in rows.groupby("kind", sort=False) if kind]
        whole = rows if study == "nothing" else rows[rows["kind"] == ""]
        for kind, part in [("all", whole), *kinds]:
            claims = int((part["turned"] != "").sum())
            both = int(part["turned"].str.contains("+", regex=False).sum())
            tested = int((part["refits"] > 0).sum())
            found = binomtest(claims, tested).proportion_ci(method="exact")
            lines.append(
                f"| {study}{'' if kind == 'all' else ': ' + kind} | {len(part)} | {tested} | "
                f"{claims} | {100 * claims / tested:.1f} % [{100 * found.low:.1f}, "
                f"{100 * found.high:.1f}] | {both} |"
            )
    whole = table[(table["kind"] == "") | (table["study"] == "nothing")]
    seeds = {study: _spans(rows["seed"]) for study, rows in whole.groupby("study", sort=False)}
    told = "; ".join(f"{study}: {spans}" for study, spans in seeds.items())
    PAGE.write_text(TEXT.format(rows="\n".join(lines), seeds=told), encoding="utf-8")


def _spans(seeds: Sequence[int]) -> str:
    numbers = sorted(int(seed) for seed in seeds)
    spans, start = [], numbers[0]
    for one, other in zip(numbers, [*numbers[1:], None], strict=True):
        if other != one + 1:
            spans.append(str(start) if start == one else f"{start} to {one}")
            start = other  # type: ignore[assignment]
    return ", ".join(spans)


TEXT = """# How often a verdict is wrong

A study claims that a model was turned when its own effect is larger than those of 19 refits on
exchanged labels ([the words](words.md), `mechmem.studies.verdict`). Here is how often it says so
where nothing is, and where something is. Written by `docs/pages/calibration.py` (`make calibrate`)
from [every study](calibration/studies.csv); the first run of every seed counts.

| studies | run | could be tested | claim an effect | share of these, 95 % | both ways |
|---|---|---|---|---|---|
{rows}

Seeds that are finished: {seeds}. Asked for are 60 of *P2, nothing* and 15 of
*P2*; what is missing has not been run. Fewer than ten groups that can exchange their behaviors
leave nothing to test.

- **nothing**: `lab/addition-cued`, 600 pairs, split by the seed, with nothing in it to find.
  *exchanged*: the training flips' behaviors exchanged inside their groups before anything is
  fitted. The other kinds are not made by an exchange: *coin*, a fair coin for every training flip;
  *random edits*, twenty grids along vectors that nothing was fitted to, one of which plays the real
  fit; *answers swapped*, own prompts whose two answers trade places in half of the groups. Nominal:
  5 %.
- **negative control**: `lab/addition-uncued`, trained without the planted mode, nothing exchanged.
- **planted**: `lab/addition-cued` as it is; *12 groups*: fitted to the flips of 12 training groups
  only, of about 40 that there are.
- **P2, nothing**: the verdict of `run_reasoning_study` on `recall-reasoning`, 400 questions,
  trained for 700 of 2,000 steps so that accuracy is far from 0 and 100 %, with the training labels
  exchanged before anything is fitted. **P2**: the same with the labels as they are. Nobody
  planted a direction that turns answers there ([the model](reasoning-lab.md)), so this is no power.
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["run", "page"])
    parser.add_argument("--nulls", type=int, default=200)
    parser.add_argument("--power", type=int, default=30)
    parser.add_argument("--questions", type=int, default=60, help="null studies of P2")
    parser.add_argument("--work", type=Path, default=Path("build/calibration"))
    asked = parser.parse_args()
    if asked.what == "run":
        run(asked.nulls, asked.power, asked.questions, asked.work)
    page()


if __name__ == "__main__":
    main()
