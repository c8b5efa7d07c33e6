"""Prompts and what the model wrote, side by side: unedited and steered."""

from __future__ import annotations

from mechmem.evaluation.behavior import Observations
from mechmem.experiments.html_parts import behavior_chip, csv_link, prompt_text, say
from mechmem.experiments.wording import StudyLike

__all__ = ["examples"]

FLIPS = 5
LONGEST = 600


def examples(study: StudyLike) -> str:
    """The first flips of the test part, both rephrasings, as a table."""
    before = study.sweep.before
    steered = {toward: rates.after for toward, rates in study.sweep.best.rates.items()}
    flips = [members[:2] for members in before.flips().by_group().values()][:FLIPS]
    chosen = [prompt for pair in flips for prompt in pair] or list(before.prompts[: 2 * FLIPS])
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
    )


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
