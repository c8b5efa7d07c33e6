"""Writes docs/memorization.md and its figure: trains the small models and measures both scores.

    python docs/pages/memorization_page.py [--models 12] [--steps 1200] [--work build/memorization]

What each small model did is kept in the work folder; delete it to start from nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mechmem as mm
from mechmem.studies.memorization.run import MemorizationStudy, run_memorization_study

HERE = Path(__file__).parents[1]
HEAD = """# Two other meanings of memorization

[P2](words.md) asks which prompts need memory, [P1](words.md) what a model did. The literature has
two more meanings, and P2 leaves open whether its direction has to do with them:

- **perturbational**: an item is solved, and no longer when it changes a little. Per item: 0 where
  it is not solved, else the share of its perturbations that are not. The mean is
  LiMem = Acc (1 - CR) ([arXiv 2410.23123](https://arxiv.org/abs/2410.23123)).
- **counterfactual**: an item is answered because it was trained on. Per item: the share answered
  right by models trained with it, minus the share by models trained without it
  ([arXiv 2008.03703](https://arxiv.org/abs/2008.03703),
  [arXiv 2112.12938](https://arxiv.org/abs/2112.12938)).

```python
import mechmem as mm

model = mm.load_model("lab/recall-reasoning")
task = mm.get_task("recall-reasoning")
items = task.questions(96, seed=0)
found = mm.evaluation.perturbational_memorization(
    model, items, task.perturbations(items), task=task
)
print(found.summary())
```

For your own questions: `mm.tasks.other_numbers` (with a function that solves them),
`mm.tasks.none_of_the_others` and `mm.tasks.shuffled_options` (multiple choice). The lab model has
no multiple choice, so *none of the others* is not measured here.
`mm.counterfactual_memorization` takes any function that trains a model without given items.
"""

READING = """
## What it says

Written for the run above. **Counterfactual** memorization and the direction go together here: an
item that lies further toward memory depends more on having been trained on, as closely as along
the most extreme of random directions, and no more. Most of it is the difference between kinds
(facts depend on their own training prompts, computations can be worked out without them); among
facts alone and computations alone no relation is shown, among disputed items there is one. Moving
along the direction does not turn the score: it falls both ways alike, and more than under any of
30 random directions; why was not looked into. **Perturbational** memorization is something else:
almost nothing that is solved breaks when a number changes by one, facts least of all, because
their stored value never depended on the numbers. It has no relation to the direction, and its rise
under edits cannot be told from that of random directions. So one of the two meanings may be
related to P2's direction and neither is steered by it, in a small model whose facts and sums we
chose ourselves: an example, not a law.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=12)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--work", type=Path, default=Path("build/memorization"))
    args = parser.parse_args()
    model = mm.load_model("lab/recall-reasoning")
    study = run_memorization_study(
        model, models=args.models, steps=args.steps, folder=args.work, progress=print
    )
    figure = mm.plotting.memorization(study)
    mm.plotting.save_figure(figure, HERE / "assets" / "memorization.png")
    page = "\n".join([HEAD, how(study, args.models, args.steps), numbers(study), READING.rstrip()])
    (HERE / "memorization.md").write_text(page + "\n", encoding="utf-8")


def how(study: MemorizationStudy, models: int, steps: int) -> str:
    items = study.table()
    return f"""## What was measured

On [`recall-reasoning`](reasoning-lab.md), seed 0. The items (entity and attribute) of half of the
entities fit the direction toward reasoning, at `{study.site}`, where one half of them separates the
other best; the other {len(items)} items are scored, four questions each. Perturbed: one of the
three numbers moved by one. Counterfactual: {models} models of {steps} steps, each trained
without half of the scored items. Edits: the difference of means added at that site, both
ways, and {study.details()["draws"]} random directions of the same length; in the small models along
their own direction.
Written by `python docs/pages/memorization_page.py`.

![Both scores per item against the projection](assets/memorization.png)
"""


def numbers(study: MemorizationStudy) -> str:
    means = study.table().groupby("kind")[["perturbational", "counterfactual"]].mean()
    counts = study.table()["kind"].value_counts()
    rows = ["| items | n | perturbational | counterfactual |", "|---|---|---|---|"]
    rows += [
        f"| {kind} | {counts[kind]} | {row.perturbational:.3f} | {row.counterfactual:.3f} |"
        for kind, row in means.iterrows()
    ]
    rows += [
        "",
        "| score | Spearman with the projection | random directions | Pearson |",
        "|---|---|---|---|",
    ]
    for row in study.correlations().itertuples():
        rows.append(
            f"| {row.score} | {row.spearman:.2f} [{row.spearman_low:.2f}, {row.spearman_high:.2f}] "
            f"| {row.random_low:.2f} to {row.random_high:.2f} | {row.pearson:.2f} "
            f"[{row.pearson_low:.2f}, {row.pearson_high:.2f}] |"
        )
    rows += ["", "| among | perturbational | counterfactual |", "|---|---|---|"]
    within = study.within_kinds().set_index(["kind", "score"])
    for kind in means.index:
        cells = [
            "does not vary"
            if within.loc[(kind, score)].isna().any()
            else "{spearman:.2f} [{spearman_low:.2f}, {spearman_high:.2f}]".format(
                **within.loc[(kind, score)]
            )
            for score in ("perturbational", "counterfactual")
        ]
        rows.append(f"| {kind}, Spearman | {cells[0]} | {cells[1]} |")
    rows += [
        "",
        "| mean change under | score | change | beyond one more random one | rank |",
        "|---|---|---|---|---|",
    ]
    for row in study.changes().query("kind == 'all'").to_dict("records"):
        change = "{change:+.3f} [{change_low:+.3f}, {change_high:+.3f}]".format(**row)
        more = ("–", "–")
        if row["rank"] == row["rank"]:
            more = (
                "{beyond:+.3f} [{beyond_low:+.3f}, {beyond_high:+.3f}]".format(**row),
                f"{row['rank']:.0f} of {row['draws'] + 1}",
            )
        rows.append(f"| {row['edit']} | {row['score']} | {change} | {more[0]} | {more[1]} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
