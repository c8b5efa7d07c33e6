"""Some questions of a reasoning study, what was answered, and their tokens on demand."""

from __future__ import annotations

import html

from mechmem.reports.html_parts import behavior_chip, csv_link, prompt_text, say
from mechmem.reports.token_html import tokens_folded
from mechmem.studies.reasoning.results import ReasoningResults
from mechmem.studies.token_reading import shown_questions

__all__ = ["questions"]

LONGEST = 400
KINDS = {"memory": "memorized", "reasoning": "generalized"}


def questions(study: ReasoningResults) -> str:
    """The first test questions of both labels, with the unedited answers where there are some."""
    shown = shown_questions(study.splits["test"])
    before = None if study.trial is None else study.trial.before["test"]
    row_of = {} if before is None else {name: k for k, name in enumerate(before.prompts.ids)}
    answered = before is not None and any(prompt.id in row_of for prompt in shown)
    heads = ["question", "label", *(["right", "unedited answer"] if answered else [])]
    body = []
    for prompt in shown:
        cells = f"<td>{_label(prompt.label)}</td>"
        if answered:
            row = row_of.get(prompt.id)
            if before is None or row is None:
                cells += "<td>–</td><td>not asked</td>"
            else:
                wrote = prompt_text(_short(before.completions[row].strip()))
                right = prompt_text(_short(before.prompts[row].answer or "–"))
                cells += (
                    f'<td class="text">{right}</td><td class="text">{wrote}<br>'
                    f"{behavior_chip(before.outcomes[row])}</td>"
                )
        body.append(f'<tr><th scope="row">{prompt_text(_short(prompt.text))}</th>{cells}</tr>')
    columns = "".join(f'<th scope="col">{name}</th>' for name in heads)
    all_of_them = f" All: {csv_link('answers_test')}." if answered else ""
    return (
        "<h3>Some questions</h3>"
        '<div class="wide" tabindex="0" role="region" aria-label="Questions and answers"><table>'
        "<caption>The first test questions of each label, in order, not picked by hand."
        f"{all_of_them}</caption><thead><tr>{columns}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>" + _tokens(study)
    )


def _tokens(study: ReasoningResults) -> str:
    if study.tokens is None:
        return ""
    labels = {prompt.id: prompt.label for prompt in shown_questions(study.splits["test"])}
    heads = {name: f"{say(name)}: {_label(label)}" for name, label in labels.items()}
    what = (
        "It is the direction at the site that tells the labels apart best on validation questions, "
        "fitted on the training questions."
    )
    return tokens_folded(study.tokens.table(), heads, what)


def _label(label: str | None) -> str:
    return (
        f'<span class="chip {KINDS.get(label or "", "other")}">{html.escape(label or "–")}</span>'
    )


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
