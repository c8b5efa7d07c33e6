"""Writes docs/lab-models.md: studies the models that ship, and two more seeds that it trains.

    python docs/pages/lab_models.py [--work build/lab-models]

Models that the work folder holds already are not trained again; delete them to start from nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from helper import write_page

import mechmem as mm

SHIPPED = {"seed 0": "lab/addition-cued", "strength 0": "lab/addition-uncued"}
RUNS = ("seed 0", "seed 1", "seed 2", "strength 0")
HEAD = """# The lab models, every seed

The training seeds 0, 1 and 2 were fixed beforehand; all are shown. `lab/addition-cued` is seed 0,
`lab/addition-uncued` is the negative control: the same seed trained with cue strength 0. Written by
`python docs/pages/lab_models.py`, which trains seeds 1 and 2 from nothing and takes the others as
they ship. The models of the paper's own tasks have [a page of their own](lab-models-paper.md).

The recipe (sizes, data design, schedule) was chosen on training seed 10, after an earlier one had
been tried on seeds 0 to 2; it was then run on 0, 1 and 2 once, and nothing was changed afterwards.
**The mode is planted**: in training, hidden weights of three cue words
decide whether a special sum is answered with its label or with the truth. What is measured here is
where a model keeps such a mode and whether it can be turned, not that models do so by themselves.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/lab-models"))
    work = parser.parse_args().work
    studies = {}
    for name in RUNS:
        where = SHIPPED.get(name) or work / name.replace(" ", "-")
        if isinstance(where, Path) and not (where / "model.safetensors").is_file():
            print(f"training {name}", flush=True)
            mm.train_lab_model("addition-cued", where, seed=int(name[-1]))
        print(f"studying {name}", flush=True)
        model = mm.load_model(where)
        task = mm.get_task("addition-cued", **model.card["task_options"])
        studies[name] = (model.card, mm.run_study(model, task=task, seed=0))
    page = Path(__file__).parents[1] / "lab-models.md"
    write_page(page, "\n".join([HEAD, behavior(studies), probing(studies), steering(studies)]))
    print(f"wrote {page}")


def behavior(studies: dict) -> str:
    rows = [
        "## What they do",
        "",
        "4,000 prompts of the 100 special sets, all with a combination of cue words that training "
        "never showed with a special set; 1,000 held-out sums.",
        "",
        "| model | memorized | generalized | other | flip rate | sets with both | clean accuracy | "
        "training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (manifest, _) in studies.items():
        got = manifest["measured"]
        rows.append(
            f"| {name} | {got['memorized']:.1%} | {got['generalized']:.1%} | {got['other']:.1%} | "
            f"{got['flip_rate']:.1%} | {got['instances_with_both']:.0%} | "
            f"{got['clean_accuracy']:.1%} | {manifest['training']['seconds']:.0f} s |"
        )
    return "\n".join([*rows, ""])


def probing(studies: dict) -> str:
    rows = [
        "## Reading the behavior off the state",
        "",
        "Held-out accuracy on flips (chance 50 %), last prompt token, after each block; beside "
        "it what the input tokens alone give away. Where that is as high, a probe proves nothing "
        "about the state: steering is the evidence.",
        "",
        "| model | block 0 | 1 | 2 | 3 | shuffled labels | input tokens only | flips |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (_, study) in studies.items():
        probes = study.probes
        posts = [site for site in probes.accuracy if site.stream == "resid_post"]
        cells = [f"{probes.accuracy[site].value:.2f}" for site in posts]
        shuffled = [probes.shuffled[site].value for site in posts]
        rows.append(
            f"| {name} | {' | '.join(cells)} | {min(shuffled):.2f} to {max(shuffled):.2f} | "
            f"{probes.input_only.value:.2f} | {len(study.flips) // 2} |"
        )
    return "\n".join([*rows, ""])


def steering(studies: dict) -> str:
    rows = [
        "## Turning the model",
        "",
        "What each study may claim, from 19 refits of the whole recipe on exchanged behaviors. "
        "Edits are chosen on validation sets and measured once on test sets that no fitting and no "
        "choice has seen. How often such a verdict is wrong, and how often it is given over 30 "
        "divisions of the prompts: [calibration](calibration.md).",
        "",
        "| model | verdict | p, any | p, both | refits |",
        "|---|---|---|---|---|",
    ]
    for name, (_, study) in studies.items():
        p = study.verdict.p
        cells = [f"{p[claim]:.2f}" if p else "" for claim in ("any", "both")]
        row = [name, study.verdict.sentence, *cells, str(study.verdict.shuffles)]
        rows.append(f"| {' | '.join(row)} |")
    return "\n".join(
        [*rows, "", "`strength 0` is the negative control: a model in which no mode was planted."]
    )


if __name__ == "__main__":
    main()
