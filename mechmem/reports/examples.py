"""Prompts and what the model wrote, side by side: unedited and steered."""

from __future__ import annotations

from collections.abc import Mapping

from mechmem.evaluation.behavior import Observations
from mechmem.reports.html_parts import behavior_chip, csv_link, prompt_text, say
from mechmem.reports.token_html import tokens_folded
from mechmem.studies.behavior.results import BehaviorResults
from mechmem.studies.token_reading import shown_answers

__all__ = ["examples"]

LONGEST = 600


def examples(study: BehaviorResults) -> str:
    """The first flips of the test part, both rephrasings, as a table; their tokens on demand."""
    before = study.sweep.before
    steered = {toward: rates.after for toward, rates in study.sweep.best.rates.items()}
    chosen = shown_answers(before)
    flips = {prompt.group for prompt in chosen} if len(before.flips()) else set()
    what = f"first {len(chosen)} prompts"
    if flips:
        what = "first flip" if len(flips) == 1 else f"first flips of {len(flips)} instances"
    row_of = {prompt.id: k for k, prompt in enumerate(before.prompts)}
    heads = "".join(
        f'<th scope="col">{say(name)}</th>'
        for name in ("prompt", "unedited", *(f"toward {toward}" for toward in steered))
    )
    body = []
    for prompt in chosen:
        k = row_of[prompt.id]
        cells = "".join(_answer(part, k) for part in (before, *steered.values()))
        both = (
            f'<br><span class="soft">memorized would be {prompt_text(prompt.memorized or "?")}, '
            f"generalized {prompt_text(prompt.generalized or '?')}</span>"
        )
        body.append(
            f'<tr><th scope="row">{prompt_text(_short(prompt.text))}{both}</th>{cells}</tr>'
        )
    return (
        "<h3>Some prompts and answers</h3>"
        f'<div class="wide" tabindex="0" role="region" aria-label="Prompts and answers"><table>'
        f"<caption>The {what} of the test part, in order, not picked by hand; two rows after each "
        f"other are rephrasings of one instance. All: {csv_link('observations_test')}."
        f"</caption><thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        + _tokens(study, {prompt.id: before.outcomes[row_of[prompt.id]] for prompt in chosen})
    )


def _tokens(study: BehaviorResults, outcomes: Mapping[str, str]) -> str:
    if study.tokens is None:
        return ""
    table = study.tokens.table()
    read = set(table["id"])
    heads = {
        name: f"{say(name)}: {behavior_chip(outcome)}"
        for name, outcome in outcomes.items()
        if name in read
    }
    what = "It is the direction fitted on the training flips, not on these prompts."
    return tokens_folded(table, heads, what) if heads else ""


def _answer(part: Observations, row: int) -> str:
    return (
        f'<td class="text">{prompt_text(_short(part.completions[row].strip()))}<br>'
        f"{behavior_chip(part.outcomes[row])}</td>"
    )


def _short(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]} … {text[-half:]}"
