"""The page of a reasoning study: what it says, in the order in which a reader asks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mechmem.reports.html_parts import facts, figure, frame_table, say
from mechmem.reports.reasoning_examples import questions
from mechmem.studies.reasoning.edits import FAMILIES
from mechmem.studies.reasoning.results import ReasoningResults
from mechmem.studies.reasoning.summary import repairs, summary
from mechmem.studies.reasoning.words import headline, limits, notes, sentence

__all__ = ["body", "header"]

Tables = Mapping[str, pd.DataFrame]
Figures = Mapping[str, go.Figure]

TITLES = {
    "setting": "The questions",
    "apart": "Are reasoning and memory told apart?",
    "direction": "What kind of direction is it?",
    "edits": "What do edits along it do?",
    "cases": "Case study: the wrong mode",
    "limits": "What this does not show",
    "methods": "Methods and manifest",
}


def header(study: ReasoningResults) -> str:
    """The question, the answer and the way around the page."""
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title in TITLES.items())
    return (
        f'<header><p class="kicker">mechmem study reasoning: {say(study.model.name)}, '
        f"{say(study.task)}, seed {study.seed}</p>"
        "<h1>Is there one direction between reasoning and memory, and what does it do?</h1>"
        f'<div class="answer"><p class="verdict">{say(headline(study))}</p>'
        f"<p>{say(sentence(study))}</p>"
        f"<ul>{''.join(f'<li>{say(note)}</li>' for note in notes(study))}</ul></div>"
        "<p>Every question is labeled by what it asks for: to recall something (<b "
        'class="memorized">memory</b>) or to work something out (<b class="generalized">reasoning'
        "</b>). The direction is the mean state of the one minus the mean state of the other, at "
        "the last token, before any answer is written.</p>"
        f'<nav aria-label="On this page"><ol>{links}</ol></nav></header>'
    )


def body(
    study: ReasoningResults, tables: Tables, figures: Figures, manifest: Mapping[str, Any]
) -> str:
    """The sections of the page."""
    bodies = {
        "setting": _setting(study, tables),
        "apart": _apart(tables, figures),
        "direction": _direction(tables, figures),
        "edits": _edits(study, tables, figures),
        "cases": _cases(study, tables, figures),
        "limits": f'<ul class="limits">{"".join(f"<li>{say(t)}</li>" for t in limits(study))}</ul>',
        "methods": _methods(study, manifest),
    }
    return "\n".join(
        f'<section id="{name}" aria-labelledby="h-{name}"><h2 id="h-{name}">{TITLES[name]}</h2>'
        f"{text}</section>"
        for name, text in bodies.items()
    )


def _setting(study: ReasoningResults, tables: Tables) -> str:
    model, card = study.model, study.card
    rows = {
        "Model": f"{say(model.name)}: {say(model.architecture)}, {model.n_layers} layers of width "
        f"{model.d_model}, {model.n_heads} heads, {say(model.dtype)}",
        "Task": say(study.task),
    }
    if card.get("design"):
        rows["How it was trained"] = say(card["design"])
    purpose = {
        "train": "the directions are fitted on it",
        "validation": "layers and strengths are chosen here",
        "test": "all numbers below are from here unless they say otherwise",
    }
    for name, part in study.splits.items():
        labels = [prompt.label for prompt in part]
        rows[f"{name.capitalize()} questions"] = (
            f"{len(part):,} in {len(set(part.groups)):,} groups, "
            f"{labels.count('reasoning'):,} reasoning and {labels.count('memory'):,} memory: "
            f"{purpose[name]}"
        )
    topics = frame_table(
        tables["topics"],
        f"Questions by topic and label; the topic alone gives the right label for "
        f"{100 * study.topics.by_topic:.0f} % of them",
        folded="Topics",
        link="topics",
    )
    return facts(rows) + topics + questions(study)


def _apart(tables: Tables, figures: Figures) -> str:
    baselines = (
        "AUROC is the chance that a reasoning question lies further along the direction than a "
        "memory question: 0.5 is guessing. Beside it what directions fitted on shuffled labels "
        "reach, random directions, and a classifier that sees only the input tokens"
    )
    out = [
        _figure(
            figures,
            "state_map",
            "The two main axes of the training states, with the test questions projected in. The "
            "arrow is the direction, the line the boundary between the labels in this plane. What "
            "the plane shows is where the states vary most, not where the labels differ most.",
        ),
        _figure(
            figures,
            "separation",
            f"{baselines}.",
            frame_table(
                tables["separation"], f"Per site, test questions. {baselines}", link="separation"
            ),
        ),
    ]
    if "separation_parts" in tables:
        out.append(
            frame_table(
                tables["separation_parts"],
                "The same between kinds of questions. Disputed items, where there are some, were "
                "answered both ways in training",
                folded="Kind against kind",
                link="separation_parts",
            )
        )
    out.append(
        _figure(
            figures,
            "cosine_profile",
            "Cosine of the states with their site's direction: mean and standard deviation of each "
            "class. States share a large common part, so only the distance between the lines "
            "counts.",
            frame_table(tables["cosines"], "Per site and class", folded="Numbers", link="cosines"),
        )
    )
    return "".join(out)


def _direction(tables: Tables, figures: Figures) -> str:
    out = [
        _figure(
            figures,
            "direction_cosines",
            "Directions from different training questions compared: halves of them, and kinds of "
            "questions where there are some. The gray band is what random directions reach. The "
            "direction from all questions contains the others' questions.",
            frame_table(
                tables["halves"],
                "Cosine between directions of random halves of the groups, 20 draws",
                folded="How stable it is",
                link="halves",
            ),
        ),
        _figure(
            figures,
            "principal_cosines",
            "How much of the direction lies along the first principal components of the training "
            "states, from 0 (none) to 1 (the direction is that component).",
        ),
    ]
    out.append(
        frame_table(
            tables["methods"],
            "Other methods of finding a direction at the same site, fitted on the same training "
            "questions: separation of the test questions",
            folded="Other methods",
            link="methods",
        )
    )
    if "selection" in tables:
        out.append(
            frame_table(
                tables["selection"],
                "The bypass, induce and KL rule (arXiv 2406.11717) on validation questions, in "
                "nats of the worked-out answer's margin over the stored one: bypass is the margin "
                "of reasoning questions with the direction projected out everywhere, induce that "
                "of memory questions with it added once. The edits below were chosen by accuracy "
                "instead",
                folded="Candidates under the bypass, induce and KL rule",
                link="selection",
            )
        )
    if "score_correlation" in figures:
        out.append(
            _figure(
                figures,
                "score_correlation",
                "The reasoning score of every test question against its projection. A label made "
                "from the score correlates with any direction that separates the label; the "
                "correlation within a class says more.",
                frame_table(
                    tables["score_correlations"],
                    "Correlations with 95 % intervals over groups",
                    folded="Numbers",
                    link="score_correlations",
                ),
            )
        )
    return "".join(out)


def _edits(study: ReasoningResults, tables: Tables, figures: Figures) -> str:
    if study.trial is None:
        return f"<p>No edit was tried: {say(study.unanswered)}.</p>"
    told = "".join(f"<dt>{say(name)}</dt><dd>{say(how)}</dd>" for name, how in FAMILIES.items())
    return "".join(
        [
            "<p>Each family was tried at every layer and strength with both signs on the "
            "validation questions. Two settings of each went to the test questions, once: the one "
            "that serves best a user who knows the label and gives reasoning questions one sign "
            "and memory questions the other (an oracle), and the one that serves best a user who "
            "gives all questions the same sign. Both are shown with both signs on both classes.</p>"
            f"<dl>{told}</dl>",
            *(
                _figure(
                    figures,
                    name,
                    "Above the edit, below a random direction of the same length; positive "
                    "strengths push toward reasoning. A dot marks cells in which the two differ. "
                    "The choice was made on these numbers, so they flatter the edit; the table "
                    "below does not.",
                )
                for name in ("grid_addition", "grid_scaled_projection")
            ),
            frame_table(
                summary(study),
                "Test questions, with 95 % intervals over groups. “Beyond random” is the edit "
                "minus the mean of the random directions, paired by question",
                strong=["unedited"],
                link="accuracy",
            ),
        ]
    )


def _cases(study: ReasoningResults, tables: Tables, figures: Figures) -> str:
    if "repairs" not in tables:
        return "<p>No answers, so no errors to look at.</p>"
    out = [
        "<p>An edit that changes answers repairs some errors by chance and breaks some right "
        "answers. So the repairs of the edit stand beside those of random directions of the same "
        "length, and beside what it breaks.</p>",
        frame_table(
            repairs(study),
            "Errors repaired and made on the test questions. A wrong-mode error gives the answer "
            "of the other route",
            link="repairs",
        ),
    ]
    if "turning" in tables:
        out += [
            "<h3>Can answers be turned from one route to the other?</h3><p>Only questions where "
            "both routes have an answer, and stronger edits than those that serve accuracy best. "
            "An answer is turned when it is that of the route the label does not ask for.</p>",
            _figure(
                figures,
                "grid_turning",
                "Above the edit, below a random direction of the same length; positive strengths "
                "push toward reasoning. If the direction carries the mode, memory questions turn "
                "on the right side and reasoning questions on the left.",
            ),
            frame_table(
                tables["turning"][
                    ["family", "layer", "alpha", "kind", "class", "share", "low", "high",
                     "beyond", "beyond_low", "beyond_high", "n", "groups"]
                ],
                "Test questions: share turned by the setting that turned most on validation "
                "questions; “beyond” is the edit minus the mean of the random directions",
                link="turning",
            ),
        ]  # fmt: skip
    if "modes" in tables:
        out.append(
            frame_table(
                tables["modes"].drop(columns=["stream"]),
                "Which route the answers took, on test questions where both have an answer",
                folded="Stored value or worked-out value",
                link="modes",
            )
        )
    if "cases" in tables:
        shown = tables["cases"].drop(columns=["stream"])
        out.append(
            frame_table(
                shown[["question", *(name for name in shown.columns if name != "question")]],
                "Errors repaired under the sign of the label, the first of each setting",
                folded="Repaired questions",
                link="cases",
            )
        )
    else:
        out.append("<p>No chosen edit repaired an error under the sign of its label.</p>")
    return "".join(out)


def _methods(study: ReasoningResults, manifest: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in manifest.items() if key not in ("splits", "answer")}
    text = json.dumps(shown, indent=1, ensure_ascii=False, default=str)
    draws = "none"
    if study.trial is not None:
        draws = str(max(len(d) for item in study.trial.tested for d in item.random.values()))
    rows = {
        "P2": "The Reasoning-Memorization Interplay in Language Models Is Mediated by a Single "
        "Direction, arXiv 2503.23084",
        "States": "last token of the extraction prompt; the input of layer 0 and the output of "
        "every block. The paper's site, the input of block l, is the output of block l - 1",
        "Direction": "mean of the reasoning states minus mean of the memory states, float64, on "
        "the training questions",
        "Answers": "greedy; what cannot be read is “unparsed” and counts as not correct",
        "Intervals": "95 %, over groups; changes are paired by question",
        "Random directions": f"{draws} per edit and sign, of the same length",
        "Time": f"{study.seconds:.0f} s",
        "Beside this page": "tables/ (CSV), artifacts/ (directions, questions), manifest.json",
    }
    return (
        facts({key: say(value) for key, value in rows.items()})
        + f"<details><summary>Manifest: versions, model, edits</summary><pre tabindex=0>{say(text)}"
        "</pre></details>"
    )


def _figure(figures: Figures, name: str, caption: str, numbers: str = "") -> str:
    title = str(figures[name].layout.title.text or name)
    return figure(name, title, caption, numbers)
