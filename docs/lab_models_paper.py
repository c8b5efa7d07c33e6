"""Writes docs/lab-models-paper.md: what the models of the paper's tasks do, with what is missing.

    python docs/lab_models_paper.py [--work build/lab-models-paper] [--studies]

Models that the work folder lacks are trained first; `--studies` studies each of them, too.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import mechmem as mm

RUNS = {"cipher": (10,), "colors": (0,)}
HEAD = """# The lab models of the paper's tasks

Written by `python docs/lab_models_paper.py`; one model again: `mechmem train colors --seed 0`.
Nothing tells these models when to remember. The checkpoint that is kept was chosen on other
conflict items than those measured here.

What is missing is said first. **One seed per task is shown, not three.** `lab/cipher` is training
seed 10, the one on which its recipe was chosen. Seed 0, run once with a shorter form of the recipe
(600 steps, evaluated every 20), did not give a usable model: 8.3 % memorized, 25.9 % generalized,
65.9 % other on 4,000 prompts, 0.55 % flips; it answered from memory, but with the tags of other
patterns. It was not run again with the form below. There is no lab model of `addition` in the
paper's form yet; [`lab/addition-cued`](lab-models.md) is a reduced task.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/lab-models-paper"))
    parser.add_argument("--studies", action="store_true")
    asked = parser.parse_args()
    parts = [HEAD, designs(), behavior(asked.work)]
    if asked.studies:
        parts.append(steering(asked.work))
    page = Path(__file__).parent / "lab-models-paper.md"
    page.write_text("\n".join(parts), encoding="utf-8")
    print(f"wrote {page}")


def trained(work: Path, task: str, seed: int) -> tuple[Path, dict]:
    folder = work / f"{task}-{seed}"
    if not (folder / "manifest.json").is_file():
        print(f"training {task}, seed {seed}", flush=True)
        mm.train_lab_model(task, folder, seed=seed)
    return folder, json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def designs() -> str:
    rows = ["## How they were made", ""]
    for task in RUNS:
        rows += [f"**{task}.** {mm.load_model(f'lab/{task}').card['design']}", ""]
    return "\n".join(rows)


def behavior(work: Path) -> str:
    rows = [
        "## What they do",
        "",
        "4,000 prompts of 2,000 pairs of held-out conflict items; 500 held-out clean items.",
        "",
        "| model | memorized | generalized | other | flip rate | clean accuracy | kept at step | "
        "CPU seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task, seeds in RUNS.items():
        for seed in seeds:
            _, manifest = trained(work, task, seed)
            got, how = manifest["measured"], manifest["training"]
            rows.append(
                f"| {task}, seed {seed} | {got['memorized']:.1%} | {got['generalized']:.1%} | "
                f"{got['other']:.1%} | {got['flip_rate']:.1%} | {got['clean_accuracy']:.1%} | "
                f"{how['kept_step']} | {how['cpu_seconds']:.0f} |"
            )
    return "\n".join([*rows, ""])


def steering(work: Path) -> str:
    rows = [
        "## What a study finds",
        "",
        "`mechmem study <task>`. One edit per family, chosen on validation items, measured once "
        "on test items. Change of the share steered to, in points, with a 95 % interval; *beyond* "
        "is the edit minus the control that it beats by least.",
        "",
        "| model | flips fitted on | family | toward | before | after | other | change | beyond |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task, seeds in RUNS.items():
        for seed in seeds:
            folder, manifest = trained(work, task, seed)
            study = mm.run_study(
                mm.load_model(folder),
                task=mm.get_task(task, **manifest["task_options"]),
                n=manifest["study_pairs"],
            )
            before = mm.Rates(study.sweep.before)
            for tested in study.sweep.tested:
                for toward, rates in tested.rates.items():
                    rows.append(
                        f"| {task}, seed {seed} | {len(study.flips) // 2} | {tested.family} | "
                        f"{toward} | {before.share(toward).value:.1%} | "
                        f"{rates.share(toward).value:.1%} | {rates.share('other').value:.1%} | "
                        f"{points(rates.change(toward))} | "
                        f"{points(tested.beyond_every_control(toward))} |"
                    )
    return "\n".join([*rows, ""])


def points(estimate) -> str:
    return f"{100 * estimate.value:+.1f} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"


if __name__ == "__main__":
    main()
