"""What the report says, in the order in which a reader asks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mechmem.reports.findings import Figures, Tables, behavior, chosen, turned, where
from mechmem.reports.html_parts import facts, say
from mechmem.studies.behavior.results import BehaviorResults
from mechmem.studies.behavior.words import headline, limits, notes, sentence

__all__ = ["header", "sections"]

TITLES = {
    "setting": "The setting",
    "behavior": "What the model does",
    "turned": "Can it be turned?",
    "where": "Where does it show?",
    "chosen": "How the edit was chosen",
    "limits": "What this does not show",
    "methods": "Methods and manifest",
}


def header(study: BehaviorResults) -> str:
    """The question, the answer and the way around the page."""
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title in TITLES.items())
    return (
        f'<header><p class="kicker">mechmem study: {say(study.model.name)}, {say(study.task)}, '
        f"seed {study.seed}</p>"
        "<h1>Does this model remember or compute, and can it be turned?</h1>"
        f'<div class="answer"><p class="verdict">{say(headline(study))}</p>'
        f"<p>{say(sentence(study))}</p>"
        f"<ul>{''.join(f'<li>{say(note)}</li>' for note in notes(study))}</ul></div>"
        "<p>Every prompt here can be answered in two ways that give different answers: one that "
        'was learned by heart (<b class="memorized">memorized</b>) and one that is worked out '
        '(<b class="generalized">generalized</b>). So what the model writes shows what it did. '
        'Anything else counts as <b class="other">other</b>.</p>'
        f'<nav aria-label="On this page"><ol>{links}</ol></nav></header>'
    )


def sections(
    study: BehaviorResults, tables: Tables, figures: Figures, manifest: Mapping[str, Any]
) -> str:
    """The body of the page."""
    bodies = {
        "setting": _setting(study),
        "behavior": behavior(study, tables, figures),
        "turned": turned(study, tables, figures),
        "where": where(study, tables, figures),
        "chosen": chosen(tables),
        "limits": f'<ul class="limits">{"".join(f"<li>{say(t)}</li>" for t in limits(study))}</ul>',
        "methods": _methods(study, manifest),
    }
    return "\n".join(
        f'<section id="{name}" aria-labelledby="h-{name}"><h2 id="h-{name}">{TITLES[name]}</h2>'
        f"{body}</section>"
        for name, body in bodies.items()
    )


def _setting(study: BehaviorResults) -> str:
    model, card = study.model, study.card
    rows = {
        "Model": f"{say(model.name)}: {say(model.architecture)}, {model.n_layers} layers of width "
        f"{model.d_model}, {model.n_heads} heads, {say(model.dtype)}",
        "Task": say(study.task),
    }
    if card.get("design"):
        rows["How it was trained"] = say(card["design"])
    if "planted" in card:
        rows["Planted mode"] = (
            "yes: the reason to switch was built into the training data"
            if card["planted"]
            else "no: the training data give no shared reason to switch"
        )
    purpose = {
        "train": "neurons, directions and probes are fitted on its flips",
        "validation": "the edit is chosen here",
        "test": "looked at once, with the chosen edit; all rates below are from here",
    }
    for name, part in study.splits.items():
        rows[f"{name.capitalize()} prompts"] = (
            f"{len(part):,} in {len(set(part.groups)):,} groups: {purpose.get(name, '')}"
        )
    steered = study.sweep.before.prompts
    if len(steered) < len(study.splits["test"]):
        tried = next(iter(study.sweep.cells[0].rates.values())).after
        rows["Steered prompts"] = (
            f"{len(steered):,} of the test prompts, in {len(set(steered.groups)):,} groups: edits "
            "and controls were run on these; separation and behavior are from all. Edits were "
            f"chosen on {len(tried):,} of the validation prompts"
        )
    rows["Group"] = (
        "all rephrasings of one instance. No group is on two sides, and all intervals are over "
        "groups, since rephrasings are not independent"
    )
    rows["Flip"] = (
        "a pair of rephrasings of which one came out memorized and the other generalized; "
        f"{len(study.flips) // 2:,} of them in training"
    )
    return facts(rows)


def _methods(study: BehaviorResults, manifest: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in manifest.items() if key not in ("splits", "answer")}
    text = json.dumps(shown, indent=1, ensure_ascii=False, default=str)
    rows = {
        "P1": "Think or Remember? Detecting and Directing LLMs Towards Memorization or "
        "Generalization, arXiv 2412.18497; its edit shifts the neurons that correlate most with "
        "the behavior, in all layers, at the last token",
        "Observation": "greedy completions, read by the task; what cannot be read is “other”",
        "Neurons": "mean difference memorized minus generalized (NMD) per coordinate, ranked by "
        "absolute correlation with the behavior",
        "Direction": "difference of the two class means per layer, at the last prompt token",
        "Probes": "logistic classifiers, five folds of whole groups, penalty chosen inside the "
        "training folds",
        "Intervals": "95 %, over groups; differences are paired by prompt",
        "Controls": f"{_draws(study)} random draws each, averaged; those without chance once",
        "Time": f"{study.seconds:.0f} s",
        "Beside this page": "tables/ (CSV), artifacts/ (safetensors and JSON), manifest.json",
    }
    return (
        facts({key: say(value) for key, value in rows.items()})
        + f"<details><summary>Manifest: versions, model, edits</summary><pre tabindex=0>{say(text)}"
        "</pre></details>"
    )


def _draws(study: BehaviorResults) -> int:
    best = study.sweep.best
    return max(len(draws) for named in best.controls.values() for draws in named.values())
