"""Which prompts a report shows, what was answered, and the projection of each of their tokens."""

from __future__ import annotations

import pandas as pd

from mechmem.analysis.directions import Direction, Directions
from mechmem.analysis.probes import Probes
from mechmem.analysis.token_projections import TokenProjections, project_tokens
from mechmem.errors import PromptError
from mechmem.evaluation.behavior import Observations
from mechmem.models.model import Model
from mechmem.models.tokenizing import EncodedPrompts
from mechmem.patching.directions import AddDirection
from mechmem.sweeps.result import Sweep
from mechmem.tasks.prompts import Prompt, PromptSet
from mechmem.tasks.questions.labels import LABELS

FLIPS = 5
SHOWN_QUESTIONS = 4


def shown_answers(before: Observations) -> list[Prompt]:
    """The first flips, both rephrasings one after the other; the first prompts where none is."""
    flips = [members[:2] for members in before.flips().by_group().values()][:FLIPS]
    return [prompt for pair in flips for prompt in pair] or list(before.prompts[: 2 * FLIPS])


def shown_questions(part: PromptSet) -> list[Prompt]:
    """The first questions of each label, in the order of the labels."""
    return [
        prompt
        for label in LABELS
        for prompt in [prompt for prompt in part if prompt.label == label][:SHOWN_QUESTIONS]
    ]


def answers_table(found: Sweep) -> pd.DataFrame:
    """One row per prompt of `shown_answers` and setting: unedited, and steered to each class.

    ``flip`` says whether these are flips, or the first prompts because there are none.
    """
    settings = {"unedited": found.before}
    settings |= {f"toward {toward}": rates.after for toward, rates in found.best.rates.items()}
    row_of = {name: k for k, name in enumerate(found.before.prompts.ids)}
    flips = len(found.before.flips()) > 0
    return pd.DataFrame(
        [
            {
                "id": prompt.id,
                "group": prompt.group,
                "flip": flips,
                "prompt": prompt.text,
                "memorized": prompt.memorized,
                "generalized": prompt.generalized,
                "setting": setting,
                "completion": seen.completions[row_of[prompt.id]],
                "behavior": seen.outcomes[row_of[prompt.id]],
            }
            for prompt in shown_answers(found.before)
            for setting, seen in settings.items()
        ]
    )


def questions_table(part: PromptSet, before: Observations | None) -> pd.DataFrame:
    """One row per question of `shown_questions`; those that were not asked have no behavior."""
    row_of = {} if before is None else {name: k for k, name in enumerate(before.prompts.ids)}
    rows = []
    for prompt in shown_questions(part):
        row = {"id": prompt.id, "question": prompt.text, "label": prompt.label}
        if before is not None and prompt.id in row_of:
            k = row_of[prompt.id]
            row |= {
                "answer": before.prompts[k].answer,
                "completion": before.completions[k],
                "behavior": before.outcomes[k],
            }
        rows.append(row)
    return pd.DataFrame(rows)


def project_answers(
    model: Model, directions: Directions, probes: Probes, found: Sweep
) -> TokenProjections | None:
    """Every token of the prompts that are shown and of what the unedited model wrote after them.

    The direction is the one that was steered along, chosen on validation prompts; where none was,
    that of the site at which probes read the training flips best, in folds of whole groups.
    """
    before = found.before
    shown = shown_answers(before)
    written = dict(zip(before.prompts.ids, before.completions, strict=True))
    asked = before.prompts.select(prompt.id for prompt in shown)
    return _read(
        model, _direction(directions, probes, found), asked, [written[p.id] for p in shown]
    )


def project_questions(
    model: Model, direction: Direction, part: PromptSet
) -> TokenProjections | None:
    """Every token of the questions that are shown, in the form in which states are read."""
    asked = part.select(prompt.id for prompt in shown_questions(part))
    return _read(model, direction, asked, None)


def _read(
    model: Model, direction: Direction, shown: PromptSet, completions: list[str] | None
) -> TokenProjections | None:
    if direction.norm == 0:
        return None
    asked = model.encode(shown)
    if completions is not None:
        completions = [_readable(model, asked, row, text) for row, text in enumerate(completions)]
    return project_tokens(model, direction, asked, completions)


def _readable(model: Model, asked: EncodedPrompts, row: int, text: str) -> str:
    """The text, or nothing where it cannot be read again: no tokens of its own (a lone line break
    for some tokenizers), or one too many for the context, as the last one written can be."""
    try:
        tail = asked.following(row, text)
    except PromptError:
        return ""
    limit = model.tokens.n_ctx
    return text if limit is None or len(asked.rows[row].ids) + len(tail) <= limit else ""


def _direction(directions: Directions, probes: Probes, found: Sweep) -> Direction:
    for tested in found.tested:
        if isinstance(tested.edit, AddDirection):
            return tested.edit.first
    sites = [site for site in directions.sites if directions[site].norm > 0]
    known = [site for site in sites if site in probes.accuracy] or directions.sites
    return directions[max(known, key=lambda site: probes.accuracy[site].value)]
