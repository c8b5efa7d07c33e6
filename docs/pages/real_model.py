"""What was seen on a real pretrained model. For docs/real-model.md.

python docs/pages/real_model.py measure      # wordings; each of these some minutes of CPU
python docs/pages/real_model.py turn         # facts and one-step problems
python docs/pages/real_model.py recite       # texts known by heart
python docs/pages/real_model.py axes         # are the three one thing
python docs/pages/real_model.py tune         # P1's own task, by adapters; an hour, goes on
python docs/pages/real_model.py tuned        # and its study
python docs/pages/real_model.py keep FOLDER  # what `make real` wrote
python docs/pages/real_model.py page         # from docs/real-model/
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

import mechmem as mm
from mechmem.analysis.layer_choice import cross_fitted_auroc
from mechmem.evaluation import compare_axes, recitation
from mechmem.models.shipped import REAL_FOLDER
from mechmem.studies.behavior.plan import ADD, PUBLISHED, Plan
from mechmem.tasks.facts.conflict import WORDINGS
from mechmem.tasks.facts.passages import shipped_passages
from mechmem.tasks.questions.labels import LABELS
from mechmem.tasks.questions.right_wrong import right_and_wrong
from mechmem.tasks.questions.shipped import shipped_questions
from mechmem.training.lab.shipping import write_card

HERE = Path(__file__).parents[1]
FOLDER, PAGE = HERE / "real-model", HERE / "real-model.md"
FIGURE = HERE / "assets" / "real-model.png"
AXES = HERE / "assets" / "real-model-axes.png"
MODEL, EVERY = "real/smollm2-135m", 3
"""Every third shipped fact is asked."""
TUNED, WORK, PAIRS = f"{MODEL}+colors", Path("build/real-model"), 800
CURVES = HERE / "assets" / "real-model-colors.png"
SETTINGS = mm.TrainingSettings.paper(
    "colors", steps=400, batch=8, bf16=True, learning_rate=5e-4, warmup=30, loss="answer",
    evaluate_every=20, evaluation_pairs=40, validation_items=32, save_every=20, seed=0,
)  # fmt: skip


def measure() -> None:
    """Ask the model and write the tables."""
    model = mm.load_model(MODEL)
    FOLDER.mkdir(exist_ok=True)
    task = mm.get_task("conflict", wordings=list(WORDINGS))
    task.facts = task.facts[::EVERY]
    known = task.prepared(lambda prompts: mm.observe(model, prompts, task=task).outcomes)
    rows = []
    for name in WORDINGS:
        seen = mm.observe(model, known.prompts(name), task=known)
        counts = {outcome: seen.outcomes.count(outcome) for outcome in seen.allowed}
        margin = round(float(seen.margins.mean()), 2)
        rows.append({"wording": name, **counts, "n": len(seen), "asked": len(task.facts)})
        rows[-1]["mean_margin"] = margin
    pd.DataFrame(rows).to_csv(FOLDER / "wordings.csv", index=False)


def keep(study: str) -> None:
    """Take what the page needs from the folder that `make real` wrote."""
    folder = Path(study)
    names = {"conflict": "test", "refits": "refits", "separation": "separation"}
    saved = {name: f"conflict_{table}" for name, table in names.items()}
    saved |= {"reading": "questions_baselines", "shape": "questions_shape"}
    for name, table in saved.items():
        pd.read_csv(folder / "tables" / f"{table}.csv").to_csv(FOLDER / f"{name}.csv", index=False)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    conflict = manifest["parts"]["conflict"]
    about = conflict["details"]
    kept = {name: conflict[name] for name in ("verdict", "answer", "notes")}
    kept |= {name: about[name] for name in ("chosen", "flips", "steered", "left_out", "draws")}
    kept |= {name: about["refits"][name] for name in ("p", "family_p", "shuffles")}
    (FOLDER / "conflict.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    figure = mm.plotting.rates_bars(pd.read_csv(FOLDER / "conflict.csv"))
    mm.plotting.save_figure(figure, FIGURE, width=760, scale=1.5)


def turn() -> None:
    """Push facts and one-step problems along the direction of the questions."""
    model = mm.load_model(MODEL)
    items = right_and_wrong(140).filter(lambda p: short(model, p))
    few = {p.id for label in LABELS for p in [q for q in items if q.label == label][:40]}
    study = mm.read_labels(model, others={}, turn=items.filter(lambda p: p.id in few))
    study.turning.questions.to_csv(FOLDER / "turning.csv", index=False)
    verdict = study.verdict
    assert verdict is not None
    verdict.table().to_csv(FOLDER / "turning_refits.csv", index=False)
    kept = {**verdict.as_dict(), "chosen": str(study.chosen), "fitted": study.fitted}
    (FOLDER / "turning.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def short(model: mm.Model, prompt: mm.Prompt) -> bool:
    """Facts whose answers are one token, problems whose answers are one digit."""
    both = (str(prompt.memorized), str(prompt.generalized))
    if prompt.label == "reasoning":
        return all(len(answer) == 1 for answer in both)
    return all(len(model.tokens.continuation(prompt, f" {answer}")) == 1 for answer in both)


def recite() -> None:
    """What is recited of the shipped texts, and what a direction of it tells."""
    model = mm.load_model(MODEL)
    found = recitation(model, shipped_passages())
    rows = found.rows.assign(kind=[p.meta["kind"] for p in found.prompts])
    out = []
    for kind, part in rows.groupby("kind", sort=False):
        both = {how: found.share(how, kind=kind).row(how) for how in ("exact", "loose")}
        means = part[["strength", "loss", "min_k"]].mean().to_dict()
        out.append({"kind": kind, **both["exact"], **both["loose"], **means})
    pd.DataFrame(out).to_csv(FOLDER / "recitation.csv", index=False)
    labeled = found.labeled("loss").filter(lambda p: p.meta["kind"] != "proverb")
    counts = {
        "recited": sum(p.behavior == "recited" for p in labeled),
        "not recited": sum(p.behavior != "recited" for p in labeled),
    }
    areas = []
    if min(counts.values()) >= 8:
        acts = mm.cache_activations(model, labeled, sites="resid_post")
        for site, x in cross_fitted_auroc(acts, "recited", "not recited").items():
            areas.append({"layer": site.layer, "x": x, **counts})
    pd.DataFrame(areas or [counts]).to_csv(FOLDER / "recited_apart.csv", index=False)


def axes() -> None:
    """Are the axes of context, questions and texts known by heart one thing?"""
    model = mm.load_model(MODEL)
    task = mm.get_task("conflict")
    known = task.prepared(lambda prompts: mm.observe(model, prompts, task=task).outcomes)
    seen = mm.observe(model, known.prompts("redefine"), task=known)
    conflict = seen.behaving.filter(lambda p: p.behavior in seen.behaviors)
    recited = recitation(model, shipped_passages("proverb")).labeled("loss")
    labeled = {
        "conflict": conflict, "questions": shipped_questions("mmlu-pro"), "recitation": recited
    }  # fmt: skip
    facts = right_and_wrong(140).filter(lambda p: p.label == "memory" and short(model, p))
    found = compare_axes(
        model,
        {name: mm.cache_activations(model, one, sites="resid_post")
         for name, one in labeled.items()},
        {"conflict": "known", "questions": "memory", "recitation": "recited"},
        items={"conflict": conflict[::4], "questions": facts[:60], "recitation": proverbs(model)},
        shuffles=19,
    )  # fmt: skip
    found.table().to_csv(FOLDER / "axes.csv", index=False)


def tune() -> None:
    """P1's `colors` by adapters on queries and values; what ships is the adapter and its card."""
    started = time.process_time()
    run = mm.train("colors", WORK / "colors", model=MODEL, settings=SETTINGS, device="cpu")
    figure = run.figure()
    run.curves.to_csv(FOLDER / "colors_curves.csv", index=False)
    mm.plotting.save_figure(figure, CURVES, width=760, scale=1.5)
    design = (
        "The paper's colors by its adapters (rank 8 on queries and values) on "
        "SmolLM2-135M-Instruct: fewer and smaller steps than the paper's, at ten times its "
        "learning rate, loss on the answer alone. The checkpoint with the highest generalized "
        "share times memorized share on conflict items is kept."
    )
    task = mm.get_task("colors")
    write_card(run, task, options={}, design=design, study_pairs=PAIRS, started=started, pairs=200)
    home = REAL_FOLDER / TUNED.removeprefix("real/")
    home.mkdir(parents=True, exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(run.folder / "adapter" / name, home / name)
    shutil.copy(run.folder / "manifest.json", home / "manifest.json")


def tuned() -> None:
    """The study of what was tuned."""
    plan = Plan(layers=4, families=(PUBLISHED, ADD), draws=19, validation=60, test=120)
    study = mm.run_study(mm.load_model(TUNED), task=mm.get_task("colors"), n=PAIRS, plan=plan,
                         folder=WORK / "cells", progress=print)  # fmt: skip
    study.save(WORK / "study")
    tables = study.tables()
    tables["test"].to_csv(FOLDER / "colors.csv", index=False)
    tables["separation"].to_csv(FOLDER / "colors_separation.csv", index=False)
    tables["refits"].to_csv(FOLDER / "colors_refits.csv", index=False)
    about = study.details()
    kept = {"verdict": study.verdict.sentence, "notes": study.notes()}
    kept |= {name: about[name] for name in ("chosen", "flips", "steered", "left_out", "draws")}
    (FOLDER / "colors.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def proverbs(model: mm.Model) -> mm.PromptSet:
    """Proverbs whose last word is one token, beside the last word of another proverb."""
    every = shipped_passages("proverb")
    words = [str(p.answer).strip(" .!?") for p in every]
    items = mm.PromptSet(
        replace(p, memorized=own, generalized=other)
        for p, own, other in zip(every, words, words[1:] + words[:1], strict=True)
        if own != other
    )
    return items.filter(lambda p: short(model, p))


def turned() -> list[str]:
    """What the edits did, in lines of the page."""
    kept = json.loads((FOLDER / "conflict.json").read_text(encoding="utf-8"))
    rows = pd.read_csv(FOLDER / "conflict.csv").fillna({"family": "", "toward": "", "control": ""})
    refits = pd.read_csv(FOLDER / "refits.csv")
    apart = pd.read_csv(FOLDER / "separation.csv")
    best = apart.loc[apart["auroc"].idxmax()]
    steered = kept["steered"]
    lines = [
        "## Can it be turned?",
        "",
        f"`mm.run_study` on the wording `redefine`: fitted on {kept['flips']} pairs of opposite",
        f"behavior (item against item), chosen on {steered['validation']['prompts']} validation "
        "prompts, looked at once on",
        f"{steered['test']['prompts']} test prompts of {steered['test']['groups']} subjects, with "
        f"{kept['shuffles']} refits on exchanged behaviors.",
        "",
        f"**{kept['verdict']}**",
        "",
        *_edits(rows, ("known", "context", "undecided")),
    ]
    null = refits[(refits["kind"] == "refit") & (refits["claim"] == "any")]["effect"]
    lines += [
        "",
        "Shares in %, with 95 % intervals over subjects; of the controls the one that an edit",
        "beats by least ([all of them](real-model/conflict.csv)). The larger change of the",
        f"refits was {100 * null.median():.0f} points in",
        f"the middle and {100 * null.max():.0f} at most. Chosen: "
        + "; ".join(f"{one['family']} ({_settings(one)})" for one in kept["chosen"])
        + ".",
        f"Left out, for the fit and its refits alike: {'; '.join(kept['left_out'])}.",
        "",
        f"The difference of means tells the two behaviors apart on unseen items with AUROC "
        f"{best['auroc']:.2f} [{best['auroc_low']:.2f}, {best['auroc_high']:.2f}] at",
        f"the best layer ({int(best['layer'])}, looked up afterwards; random directions "
        f"{best['random_low']:.2f} to {best['random_high']:.2f}).",
        "",
        *(f"- {note}" for note in kept["notes"]),
        "",
    ]
    return lines


def _edits(rows: pd.DataFrame, outcomes: tuple[str, ...]) -> list[str]:
    """Unedited, every edit, and of its controls the one that it beats by least."""
    lines = [
        f"| setting | toward | {' | '.join(outcomes)} | edit minus it, points |",
        f"| --- | --- | {'--- | ' * len(outcomes)}--- |",
    ]
    controls = rows[rows["kind"] == "control"]
    beaten = controls.groupby(["family", "toward"])["edit_minus_control"].idxmin()
    for row in rows[(rows["kind"] != "control") | rows.index.isin(beaten)].itertuples():
        shares = " | ".join(
            f"{100 * getattr(row, name):.0f} [{100 * getattr(row, f'{name}_low'):.0f}, "
            f"{100 * getattr(row, f'{name}_high'):.0f}]"
            for name in outcomes
        )
        gap = "" if pd.isna(row.edit_minus_control) else (
            f"{100 * row.edit_minus_control:+.0f} [{100 * row.edit_minus_control_low:+.0f}, "
            f"{100 * row.edit_minus_control_high:+.0f}]"
        )  # fmt: skip
        name = row.family if row.kind == "edit" else row.control or row.kind
        lines.append(f"| {name} | {row.toward if row.family else ''} | {shares} | {gap} |")
    return lines


def papers_task() -> list[str]:
    """P1's colors on this model, in lines of the page."""
    card = json.loads((REAL_FOLDER / TUNED.removeprefix("real/") / "manifest.json").read_text())
    measured, training = card["measured"], card["training"]
    curves = pd.read_csv(FOLDER / "colors_curves.csv")
    both = curves[(curves["memorized"] >= 0.1) & (curves["generalized"] >= 0.1)]
    return [
        "## P1's own task, by adapters",
        "",
        f"`{TUNED}` is this model fine-tuned on P1's `colors` with the adapters of its second",
        f"version (r 8 on queries and values): {training['steps']} steps of {training['batch']}",
        f"stories at a learning rate of {training['learning_rate']:g}, on the answer alone,",
        f"{training['cpu_seconds'] / 60:.0f} CPU minutes (the paper: some 19,000 steps of 16 at",
        "5e-5). A first run of 500 steps, looked at every 100, had shown where the behaviors",
        "cross; this one, on the same seed, looks every 20. Untuned, the model gives neither",
        "answer.",
        "",
        f"![Shares of the outcomes by step](assets/{CURVES.name})",
        "",
        f"At {len(both)} of {len(curves)} looks both behaviors reach 10 % of {int(curves['n'][0])} "
        "conflict prompts; `gen*mem` keeps step",
        f"{training['kept_step']}. On {measured['prompts']} fresh ones: memorized "
        f"{measured['memorized']:.0%}, generalized {measured['generalized']:.0%}, other",
        f"{measured['other']:.0%}; {measured['flip_rate']:.0%} of the pairs flip; agreeing stories "
        f"are answered rightly in {measured['clean_accuracy']:.0%}.",
        "",
        *papers_study(),
    ]


def papers_study() -> list[str]:
    """The study of it, in lines of the page."""
    if not (FOLDER / "colors.json").exists():
        return ["Its study (`real_model.py tuned`) has not been run to its end.", ""]
    kept = json.loads((FOLDER / "colors.json").read_text(encoding="utf-8"))
    rows = pd.read_csv(FOLDER / "colors.csv").fillna({"family": "", "toward": "", "control": ""})
    apart = pd.read_csv(FOLDER / "colors_separation.csv")
    best = apart.loc[apart["auroc"].idxmax()]
    steered = kept["steered"]
    return [
        f"Its study (fitted on {kept['flips']} flips, {steered['validation']['prompts']} validation"
        f" and {steered['test']['prompts']} test prompts):",
        "",
        f"**{kept['verdict']}**",
        "",
        *_edits(rows, ("memorized", "generalized", "other")),
        "",
        f"The difference of means tells unseen flips apart with AUROC {best['auroc']:.2f} "
        f"[{best['auroc_low']:.2f}, {best['auroc_high']:.2f}] at the",
        f"best layer ({int(best['layer'])}, looked up afterwards; random directions "
        f"{best['random_low']:.2f} to {best['random_high']:.2f}).",
        "",
    ]


def pushed() -> list[str]:
    """What pushing facts and problems did, in lines of the page."""
    kept = json.loads((FOLDER / "turning.json").read_text(encoding="utf-8"))
    lines = [
        "## Does the direction of the questions turn answers?",
        "",
        "P2 adds the direction and counts right answers. This model answers next to no word",
        "problem, so the margin of the right answer over a wrong one of the same kind is measured,",
        "on facts and one-step problems that were not fitted on, pushed toward their own label.",
        "",
        f"**{kept['sentence']}**",
        "",
        "| questions | n | right is likelier | margin (nats) | change (nats) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in pd.read_csv(FOLDER / "turning.csv").itertuples():
        lines.append(
            f"| {row.label} | {row.n} | {_share(row, 'right')} | {row.margin:.2f} "
            f"[{row.margin_low:.2f}, {row.margin_high:.2f}] | {row.change:+.3f} |"
        )
    return [*lines, ""]


def by_heart() -> list[str]:
    """What is recited, in lines of the page."""
    lines = [
        "## What it knows by heart",
        "",
        "Shipped licence texts, public-domain passages and proverbs, continued from their",
        "beginning (`mechmem.evaluation.recitation`): 16 words, of a proverb the last one.",
        "",
        "| texts | n | exactly | loosely | extraction strength | loss (nats) | Min-K% |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in pd.read_csv(FOLDER / "recitation.csv").itertuples():
        lines.append(
            f"| {row.kind} | {row.n} | {_share(row, 'exact')} | {_share(row, 'loose')} | "
            f"{row.strength:.2f} | {row.loss:.2f} | {row.min_k:.2f} |"
        )
    apart = pd.read_csv(FOLDER / "recited_apart.csv")
    first = apart.iloc[0]
    counts = f"{int(first['recited'])} recited and {int(first['not recited'])} not recited texts"
    if "x" not in apart:
        return [
            *lines, "",
            f"Without the proverbs there are {counts} of like loss: too few for a direction.", "",
        ]  # fmt: skip
    best = apart.loc[apart["x"].idxmax()]
    return [
        *lines,
        "",
        f"Among {counts} of like loss of their beginnings, without the proverbs, a direction tells",
        f"which will be recited with a cross-fitted AUROC of {apart['x'].median():.2f} (median "
        f"over layers) and {best['x']:.2f} at",
        f"the best one ({int(best['layer'])}, looked up afterwards).",
        "",
    ]


def one_thing() -> list[str]:
    """The three axes beside each other, in lines of the page."""
    rows = pd.read_csv(FOLDER / "axes.csv")
    layer, shuffles = int(rows["layer"].iloc[0]), int(rows["shuffles"].iloc[0])
    lines = [
        "## Are these one thing?",
        "",
        "Toward *known*, toward *memory*, toward *recited*: a difference of means on half of the",
        f"groups of each set at `resid_post[{layer}]` (two thirds of the depth, not chosen), tried",
        "on the other halves. Change: of the margin of the remembered answer when the tested set's",
        "items are pushed along the fitted set's axis by its length, in nats. In brackets the",
        f"middle 95 % of {shuffles} refits on exchanged labels; p against the largest of all pairs",
        "in every refit. Intervals over groups stand in [the table](real-model/axes.csv).",
        "",
        "| fitted on | tested on | cosine | p | AUROC | p | change | p |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows.itertuples():
        cells = []
        for name in ("cosine", "auroc", "change"):
            value, p = getattr(row, name), getattr(row, f"{name}_p")
            low, high = (getattr(row, f"{name}_null_{end}") for end in ("low", "high"))
            cells.append(
                "– | –" if pd.isna(value) else f"{value:.2f} [{low:.2f}, {high:.2f}] | {p:.2f}"
            )
        lines.append(f"| {row.fitted_on} | {row.tested_on} | {' | '.join(cells)} |")
    other = rows[rows["fitted_on"] != rows["tested_on"]]
    said = []
    for name in ("cosine", "auroc", "change"):
        mine = other[other[f"{name}_p"] <= 0.05]
        pairs = [f"{r.fitted_on} on {r.tested_on}" for r in mine.itertuples()]
        said.append(f"{name}: {', '.join(pairs) or 'none'}")
    figure = mm.plotting.axis_matrices(rows)
    mm.plotting.save_figure(figure, AXES, width=980, scale=1.5)
    sizes = ", ".join(
        f"{r.items} ({r.tested_on})" for r in rows.drop_duplicates("tested_on").itertuples()
    )
    return [
        *lines,
        "",
        f"Between different sets, beyond refits at 5 %: {'; '.join(said)}. Items pushed: {sizes}.",
        "Refits reach far because an axis of dealt-out labels lies along what differs most anyway.",
        f"That nothing is shown is not that there is nothing: with {shuffles} refits, and "
        f"{rows['n'].min()} texts",
        "of recitation held out, not even a set's own axis stands beyond the largest pair.",
        "",
        f"![Cosine, AUROC and change of every two sets](assets/{AXES.name})",
        "",
    ]


def _share(row: Any, name: str) -> str:
    """A share with its interval, in %."""
    value, low, high = (100 * getattr(row, f"{name}{end}") for end in ("", "_low", "_high"))
    return f"{value:.0f}% [{low:.0f}, {high:.0f}]"


def _settings(edit: dict[str, object]) -> str:
    shown = ("at", "top", "alpha")
    said = ", ".join(f"{name} {edit[name]}" for name in shown if name in edit)
    return said.removeprefix("at ")


def page() -> None:
    """Write the page from the tables."""
    reading, shape, wordings = (
        pd.read_csv(FOLDER / f"{name}.csv") for name in ("reading", "shape", "wordings")
    )
    chosen = shape[shape["site"] == reading["site"].iloc[0]].iloc[0]
    massive = shape[shape["largest_coordinate"] > 0.5]["layer"]
    n, asked = int(wordings["n"].iloc[0]), int(wordings["asked"].iloc[0])
    lines = [
        "# A real pretrained model",
        "",
        "SmolLM2-135M-Instruct (30 layers, Apache-2.0), as `real/smollm2-135m` loads it. Written",
        "by `docs/pages/real_model.py` from the tables in `docs/real-model/`. `make real` does the",
        "study of `conflict` and the reading of the questions anew (10.5 minutes on two cores).",
        "",
        "## Reasoning and memory, read at the last token",
        "",
        "Difference of means on 120 MMLU-Pro questions; the layer was chosen on them alone:",
        f"{int(chosen['layer'])} (cross-fitted). AUROC with 95 % intervals on other questions,",
        "beside what the input alone tells (fitted on the same questions) and directions of",
        "dealt-out labels (2.5 to 97.5 %).",
        "",
        "| questions | n | direction | dealt-out labels | words | form | length |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in reading.itertuples():
        lines.append(
            f"| {row.set} | {row.n} | {row.x:.2f} [{row.x_low:.2f}, {row.x_high:.2f}] | "
            f"{row.shuffled_low:.2f} to {row.shuffled_high:.2f} | {row.words:.2f} | "
            f"{row.form:.2f} | {row.length:.2f} |"
        )
    lines += [
        "",
        "- Within one subject of MMLU-Redux the label is whether all options are numbers; the",
        "  model is not shown the options. Across subjects and in MMLU-Pro, topic is label.",
        "- Dealt-out labels reach far, and the direction is nearly the states' first principal",
        f"  component (cosine {chosen['cosine_with_first']:.2f}, "
        f"{chosen['first_component']:.0%} of the variance):",
        "  these two kinds differ along the axis on which questions differ most anyway.",
        f"- Massive activations: in layers {massive.min()} to {massive.max()} one coordinate holds "
        "more than half of the",
        f"  direction's squared length (up to {shape['largest_coordinate'].max():.0%}), so norms "
        "and cosines there are its own. At the chosen",
        f"  layer it holds {chosen['largest_coordinate']:.0%}, and {chosen['largest_of_mean']:.0%} "
        "of the mean state's.",
        "- Word problems (GSM8K) against facts are told apart by their words almost as well.",
        "",
        "## What it knows against what the prompt says",
        "",
        f"The task `conflict`, every third shipped fact: {n} of {asked} are known without a false",
        "statement. Behind one, read by choice (undecided within 0.1 nats):",
        "",
        "| wording | known | context | undecided | mean margin (nats) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in wordings.itertuples():
        lines.append(
            f"| {row.wording} | {row.known / row.n:.0%} | {row.context / row.n:.0%} | "
            f"{row.undecided / row.n:.0%} | {row.mean_margin:.2f} |"
        )
    lines += [
        "",
        "Both behaviors stand in one and the same wording, so the item decides too; saying it more",
        "often moves the mean. Wordings: `mechmem.tasks.facts.conflict.WORDINGS`.",
        "",
        *turned(),
        *pushed(),
        *by_heart(),
        *one_thing(),
        *papers_task(),
    ]
    PAGE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    parts = {
        "measure": measure, "keep": keep, "turn": turn, "recite": recite, "axes": axes,
        "tune": tune, "tuned": tuned, "page": page
    }  # fmt: skip
    parts[sys.argv[1]](*sys.argv[2:])
