"""Writes docs/reasoning-lab.md: studies the model that ships, and others that it trains.

    python docs/pages/reasoning_lab.py [--work build/reasoning-lab] [--runs "seed 0" "seed 1" ...]

Models that the work folder holds already are not trained again; delete them to start from nothing.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from helper import cells_of, write_page

import mechmem as mm
from mechmem.studies.reasoning.answers import accuracy_table, mode_table, repair_table
from mechmem.studies.reasoning.edits import ORACLE
from mechmem.tasks.lab.recall_reasoning import KINDS

RUNS = {
    "seed 0": {"seed": 0},
    "seed 1": {"seed": 1},
    "seed 2": {"seed": 2},
    "control": {"seed": 0, "shared": False},
}
SHIPPED = {"seed 0": "lab/recall-reasoning"}
OWN = {"reasoning": "toward reasoning", "memory": "toward memory"}
ANSWERED, APART = "What they answer", "Are they told apart?"
CLAIMS = "What each study may claim"
HEAD = """# One direction between reasoning and memory, on a lab model

`mechmem study reasoning` runs [P2](words.md) on `lab/recall-reasoning`: 212,000 parameters, four
layers, trained here. One number answers `Q: what is the price of Feldor given 3 5 8 ?`. For 36 of
96 entities training always gave the attribute's stored value (a fact), for 36 the sum of the three
numbers (a computation), for 24 now the one, now the other (disputed). An item's score is the share
of its training prompts that were answered with the sum; above 0.5 it is labeled reasoning and the
sum is right. Questions of the study have phrasings and numbers that training never used with their
item. Of a third of the computed pairs ("unseen") training never asked anything. Directions are
fitted on half of the entities, edits chosen on a fifth; everything below was measured on the
others, whose names the fit has not met.

**What is planted**: that both attributes of an entity are treated alike, which gives the model a
reason to keep a mode per entity. The control deals the same kinds out over pairs of entity and
attribute, so that this reason is gone.

**How the recipe was chosen.** Sizes and schedule were tried on training seed 10, with an earlier
design, and not again with the present one. In that design (24 entities, 8 attributes, kinds dealt
out over pairs) the model of seed 0 recalled 99 % of its facts and computed 93 % of its sums, but
kept no shared mode: directions from two halves of its items had cosines between -0.24 and 0.23 on
average, and adding the direction changed nothing. So kinds now belong to entities. Then seeds 0, 1
and 2 were trained, once each; `lab/recall-reasoning` is seed 0.

Written by `python docs/pages/reasoning_lab.py`. Counted over the seeds:
[what holds](reproduction.md#p2-from-the-pages-that-measured-it).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/reasoning-lab"))
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    given = parser.parse_args()
    studies = {}
    for name in given.runs:
        where = SHIPPED.get(name) or given.work / name.replace(" ", "-")
        if isinstance(where, Path) and not (where / "model.safetensors").is_file():
            print(f"training {name}", flush=True)
            mm.train_lab_model("recall-reasoning", where, **RUNS[name])
        print(f"studying {name}", flush=True)
        model = mm.load_model(where)
        task = mm.get_task("recall-reasoning", **model.card["task_options"])
        studies[name] = (model.card, mm.run_reasoning_study(model, task=task))
    page = Path(__file__).parents[1] / "reasoning-lab.md"
    parts = [HEAD, behavior(studies), reading(studies), verdicts(studies), edits(studies)]
    text = "\n".join([*parts, modes(studies), repairs(studies)])
    write_page(page, text, keep=(ANSWERED, APART), long=4)
    print(f"wrote {page}")


def behavior(studies: dict) -> str:
    rows = [
        f"## {ANSWERED}",
        "",
        "Correct answers on 4,000 questions; in brackets the share answered with the sum.",
        "",
        f"| model | {' | '.join(KINDS)} | training, CPU seconds |",
        f"|---|{'---|' * len(KINDS)}---|",
    ]
    for name, (manifest, _) in studies.items():
        found = manifest["measured"]
        cells = [f"{found[kind]['correct']:.1%} ({found[kind]['sum']:.1%})" for kind in KINDS]
        rows.append(f"| {name} | {' | '.join(cells)} | {manifest['training']['cpu_seconds']:.0f} |")
    return "\n".join([*rows, ""])


def reading(studies: dict) -> str:
    rows = [
        f"## {APART}",
        "",
        "AUROC of the projection on test entities, with 95 % intervals over entities. Beside it "
        "the range of directions from shuffled labels at the last site, the input tokens alone, "
        "the highest of four methods at the site chosen on validation, and the mean cosine between "
        "directions of two halves of the training entities at the last site.",
        "",
        "| model | block 0 | 1 | 2 | 3 | shuffled | input tokens | facts against unseen (block 3) "
        "| best method | halves |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (_, study) in studies.items():
        table = study.reading.table()
        posts = table[table["stream"] == "resid_post"]
        cells = [interval(row) for row in posts.to_dict("records")]
        last = posts.iloc[-1]
        parts = study.reading.parts
        unseen = parts[
            (parts["part"] == "fact (memory) against unseen (reasoning)")
            & (parts["stream"] == "resid_post")
        ].iloc[-1]
        best = study.reading.methods.sort_values("auroc").iloc[-1]
        rows.append(
            f"| {name} | {' | '.join(cells)} | {last['shuffled_low']:.2f} to "
            f"{last['shuffled_high']:.2f} | {last['input_only']:.2f} | {interval(unseen)} | "
            f"{best['method']} {best['auroc']:.2f} | {study.halves['mean'].iloc[-1]:.2f} |"
        )
    return "\n".join([*rows, ""])


def edits(studies: dict) -> str:
    rows = [
        "## What the edits do to accuracy",
        "",
        "Two settings per family, chosen on validation, tested once with both signs on both "
        f"classes. Accuracy in percent; *beyond random* is the edit minus {draws_of(studies)} "
        "random directions of the same size, a sample like the questions, in points. A control "
        "is needed and proves nothing that was chosen: the verdict does. A sign by label is an "
        "oracle.",
        "",
        "| model | family | chosen for | at | pushed | questions | before | after | "
        "beyond random |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (_, study) in studies.items():
        table = accuracy_table(study.trial, study.seed)
        plain = table[table["family"] == "unedited"].set_index("label")["accuracy"]
        for row in table[table["family"] != "unedited"].to_dict("records"):
            size = f", {row['strength']:g}" if row["strength"] > 0 else ""
            rows.append(
                f"| {name} | {row['family']} | {row['pick']} | block {row['layer']:g}{size} | "
                f"{row['sign']} | {row['label']} | {100 * plain[row['label']]:.1f} | "
                f"{100 * row['accuracy']:.1f} | {points(row, 'beyond_random')} |"
            )
    return "\n".join([*rows, ""])


def modes(studies: dict) -> str:
    rows = [
        "## Which route the answers take",
        "",
        "Questions where both routes have an answer; edits chosen for the oracle. Shares in "
        "percent, unedited, edited, and under random directions.",
        "",
        "| model | family | pushed | questions | answered with | unedited | edited | random | "
        "beyond random |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (_, study) in studies.items():
        table = mode_table(study.trial, study.seed)
        plain = table[table["family"] == "unedited"].set_index(["label", "mode"])["share"]
        for row in table[table["pick"] == ORACLE].to_dict("records"):
            if row["mode"] == "other":
                continue
            rows.append(
                f"| {name} | {row['family']} | {row['sign']} | {row['label']} | {row['mode']} | "
                f"{100 * plain[row['label'], row['mode']]:.1f} | {100 * row['share']:.1f} | "
                f"{100 * row['random_share']:.1f} | {points(row, 'beyond_random')} |"
            )
    return "\n".join([*rows, ""])


def repairs(studies: dict) -> str:
    rows = [
        "## Case study: errors of the wrong mode",
        "",
        "Every class pushed with its own sign (the oracle). A wrong-mode error gives the answer of "
        f"the other route. In brackets the mean and the most of {draws_of(studies)} random "
        "directions.",
        "",
        "| model | family | questions | errors | repaired | wrong-mode errors | of them repaired | "
        "right answers broken |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (_, study) in studies.items():
        for row in repair_table(study.trial).to_dict("records"):
            if row["pick"] == ORACLE and row["sign"] == OWN[row["label"]]:
                cells = [counted(row, key) for key in ("repaired", "wrong_mode_repaired", "broken")]
                rows.append(
                    f"| {name} | {row['family']} | {row['label']} | {row['errors']} | {cells[0]} | "
                    f"{row['wrong_mode_errors']} | {cells[1]} | {cells[2]} |"
                )
    return "\n".join([*rows, "", *wrong_mode(rows), ""])


def wrong_mode(rows: Sequence[str]) -> list[str]:
    """What the rows of the seeds say together, one sentence per family."""
    cells = [cells_of(row) for row in rows if row.startswith("| seed")]
    said = []
    for family in dict.fromkeys(cell[1] for cell in cells):
        mine = [cell for cell in cells if cell[1] == family]
        repaired, broken = (
            [[float(part) for part in re.findall(r"[\d.]+", cell[at])] for cell in mine]
            for at in (6, 7)
        )
        said.append(
            f"{family.capitalize()}, all seeds together: {sum(one[0] for one in repaired):.0f} of "
            f"{sum(int(cell[5]) for cell in mine)} wrong-mode errors repaired (random directions "
            f"{sum(one[1] for one in repaired):.1f} on average), "
            f"{sum(one[0] for one in broken):.0f} right answers broken (random directions "
            f"{sum(one[1] for one in broken):.1f})."
        )
    return said


def verdicts(studies: dict) -> str:
    rows = [
        f"## {CLAIMS}",
        "",
        "From refits of the whole recipe on exchanged labels: fit, grid, choice on validation, one "
        "look at test. [How often a verdict is wrong](calibration.md).",
        "",
        "| model | verdict | p, any | p, both | refits |",
        "|---|---|---|---|---|",
    ]
    for name, (_, study) in studies.items():
        p = study.verdict.p
        cells = [f"{p[claim]:.2f}" if claim in p else "" for claim in ("any", "both")]
        row = [name, study.verdict.sentence, *cells, str(study.verdict.shuffles)]
        rows.append(f"| {' | '.join(row)} |")
    ps = [study.verdict.p.get("any", 1.0) for _, study in studies.values()]
    turned = sum(bool(study.verdict.turned) for _, study in studies.values())
    told = f"{turned} of {len(ps)} are turned (p {min(ps):.2f} to {max(ps):.2f})."
    return "\n".join([*rows, "", told, ""])


def draws_of(studies: dict) -> str:
    return " or ".join(sorted({str(study.details()["draws"]) for _, study in studies.values()}))


def interval(row) -> str:
    return f"{row['auroc']:.2f} [{row['auroc_low']:.2f}, {row['auroc_high']:.2f}]"


def points(row: dict, name: str) -> str:
    value, low, high = (100 * row[key] for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def counted(row: dict, name: str) -> str:
    return f"{row[name]} ({row[f'{name}_random_mean']:.1f}, {row[f'{name}_random_most']})"


if __name__ == "__main__":
    main()
