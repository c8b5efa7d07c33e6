"""Writes docs/lab-models-paper.md: what the models of the paper's tasks do, with what is missing.

    python docs/lab_models_paper.py [--work build/lab-models-paper]

Models that the work folder lacks are trained first. The numbers of the studies are those that the
commands beside them printed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import mechmem as mm

RUNS = {"cipher": (10,), "colors": (0,), "addition": (0,)}
HEAD = """# The lab models of the paper's tasks

Written by `python docs/lab_models_paper.py`; one model again: `mechmem train colors --seed 0`.
Nothing tells these models when to remember. The checkpoint that is kept was chosen on other
conflict items than those measured here.

What is missing is said first. **One seed per task is shown, not three.** `lab/cipher` is training
seed 10, the one on which its recipe was chosen. Seed 0, run once with a shorter form of the recipe
(600 steps, evaluated every 20), did not give a usable model: 8.3 % memorized, 25.9 % generalized,
65.9 % other on 4,000 prompts, 0.55 % flips; it answered from memory, but with the tags of other
patterns. It was not run again with the form below. `lab/addition` has addends up to 99, not 999,
and its flips are rare (1.8 %).
"""

STUDIES = """## What a study finds

`mechmem study cipher` (2,000 pairs, 47 flips to fit on, 65 CPU seconds) and `mechmem study colors`
(3,000 pairs, 60 flips, 113 CPU seconds), seed 0. 480 test prompts; edits chosen on 240 others.
*Beyond* is the share steered to, minus that under the control which comes nearest, in points, with
a 95 % interval from resampling instances. Nothing counts whose interval holds 0.

| model | family | toward | share before | beyond |
|---|---|---|---|---|
| cipher | P1 as published (chosen) | memorized | 46.5% | -0.8 [-5.6, +4.0] |
| cipher | P1 as published (chosen) | generalized | 32.3% | +6.2 [+2.8, +9.7] |
| cipher | one direction | memorized | 46.5% | +4.3 [-1.0, +9.5] |
| cipher | one direction | generalized | 32.3% | -1.3 [-5.4, +2.8] |
| cipher | one layer, own shift per position | memorized | 46.5% | -4.0 [-8.1, +0.0] |
| cipher | one layer, own shift per position | generalized | 32.3% | -1.0 [-4.9, +3.0] |
| colors | one layer, own shift per position (chosen) | memorized | 46.2% | +1.6 [-0.8, +4.0] |
| colors | one layer, own shift per position (chosen) | generalized | 36.2% | +4.0 [+1.5, +6.7] |
| colors | one direction | memorized | 46.2% | +8.5 [+5.8, +11.2] |
| colors | one direction | generalized | 36.2% | +8.5 [+5.6, +11.9] |
| colors | P1 as published | memorized | 46.2% | -6.7 [-9.6, -3.8] |
| colors | P1 as published | generalized | 36.2% | -3.4 [-6.1, -0.6] |

In short: on these models steering is weak. The edit of the paper goes a little beyond its controls
in one direction on `cipher` and not at all on `colors`, where it does worse than permuted or random
shifts. One added direction moves `colors` by 8 to 9 points both ways beyond its controls; the rule
that chose on validation items chose another edit. Each family was tried on the same test prompts,
so the best of three is a little flattered.

Probes on flips (chance 50 %): `cipher` 74 % after block 0, input tokens alone 66 %; `colors` 69 %
after the last block, 50 % before it, input tokens alone 45 %.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/lab-models-paper"))
    asked = parser.parse_args()
    parts = [HEAD, designs(), behavior(asked.work), STUDIES]
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


if __name__ == "__main__":
    main()
