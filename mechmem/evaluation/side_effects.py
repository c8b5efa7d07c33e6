"""`side_effects`: what an edit costs on prompts that it is not about."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from mechmem.analysis.draws import DRAWS, Beyond, beyond_draws, mean_of_draws
from mechmem.analysis.intervals import Estimate, IntervalKind, group_ratio
from mechmem.errors import EditError, PromptError, listed
from mechmem.evaluation.behavior import hits, observe
from mechmem.evaluation.controls import draws_of_one
from mechmem.evaluation.shared import behaviors_of, can_steer, refuse_seen, row_of, steered
from mechmem.models.engine.scoring import answer_logprobs
from mechmem.models.model import Model
from mechmem.models.tokenizing import EncodedPrompts, PromptsLike, TokenizedPrompt
from mechmem.numeric import MOST, whole_number
from mechmem.patching.apply import patched
from mechmem.patching.base import Edit
from mechmem.tasks.base import PromptAnswers, Task
from mechmem.tasks.prompts import PromptSet

MEASURES = ("kl", "accuracy", "answer_perplexity", "text_perplexity")


@dataclass(frozen=True)
class SideEffects:
    """Cost of an edit, toward every class, beside draws of a control of the same size.

    Attributes:
        values: ``values[name][measure]``; names are ``"unedited"``, ``"toward memorized"`` and so
            on, and those of their controls (`about`). Measures, where the prompts allow them:
            ``kl`` (nats, from the unedited to the edited distribution of the next token),
            ``accuracy`` on clean items, ``answer_perplexity`` of their right answers,
            ``text_perplexity`` per token of neutral text.
        changes: The same minus the unedited model, paired; perplexities as ratios.
        beyond: The edit minus its control's draws; of perplexities, the differences of their
            logarithms.
        about: For every name its kind, the class steered to, and which control it is.
    """

    values: Mapping[str, Mapping[str, Estimate]]
    changes: Mapping[str, Mapping[str, Estimate]]
    beyond: Mapping[str, Mapping[str, Beyond]]
    about: Mapping[str, Mapping[str, str]]

    def table(self) -> pd.DataFrame:
        """One row per edit or control and measure."""
        return pd.DataFrame(
            [
                {
                    **self.about[name],
                    "measure": measure,
                    **value.row("value", counted=False),
                    **self.changes[name][measure].row("change", counted=False),
                    **(self.beyond[name][measure].row() if name in self.beyond else {}),
                    "n": value.n,
                    "groups": value.groups,
                }
                for name, row in self.values.items()
                for measure, value in row.items()
            ]
        )


@dataclass(frozen=True)
class _Costs:
    """What is measured of one edit or control, prompt by prompt."""

    kl: np.ndarray | None
    right: np.ndarray | None
    answer: tuple[np.ndarray, np.ndarray] | None
    text: tuple[np.ndarray, np.ndarray] | None
    moved: float = math.nan

    def each(self, measure: str) -> np.ndarray | None:
        """Per prompt; of a perplexity, the loss over the mean number of tokens, whose mean is the
        loss per token."""
        if measure in ("kl", "accuracy"):
            return self.kl if measure == "kl" else self.right
        pair = self.answer if measure == "answer_perplexity" else self.text
        return None if pair is None else pair[0] / pair[1].mean()

    def tokens(self, measure: str) -> np.ndarray:
        """How many tokens a perplexity is of, per prompt."""
        pair = self.answer if measure == "answer_perplexity" else self.text
        assert pair is not None
        return pair[1]


def side_effects(
    model: Model,
    edit: Edit,
    *,
    clean: PromptsLike | None = None,
    texts: PromptsLike | None = None,
    task: Task | None = None,
    toward: Sequence[str] | None = None,
    control: str | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> SideEffects:
    """KL, accuracy and perplexity under an edit, where nothing should change.

    Args:
        model: The unedited model.
        edit: Steered to every class if it has a ``toward``.
        clean: Prompts that the edit is not about. With an ``answer`` each, accuracy and the
            perplexity of the answer are measured too.
        texts: Neutral text, of two tokens at least. The first token is the prompt and every later
            one counts as generated, so an edit at ``"each_step"`` or ``"all"`` acts on all of it;
            an edit at a named span has no place there.
        task: Gives length and stop strings of an answer.
        toward: Classes to steer to; default the task's two behaviors.
        control: Default random neurons or a random direction of the same size.
        draws: Draws of the control.
        seed: Keys control and resampling.

    Raises:
        LeakageError: When a clean prompt was seen in making the edit.
        PromptError: With neither clean prompts nor texts.
        EditError: For no draws.
    """
    whole_number(draws, "draws", most=MOST, error=EditError)
    if clean is None and texts is None:
        raise PromptError(
            "side_effects measures on clean= prompts, on texts=, or on both; for example "
            "clean=task.clean_prompts(400)."
        )
    asked = None if clean is None else model.encode(clean, "measure side effects")
    neutral = None if texts is None else model.encode(texts, "measure side effects")
    if asked is not None:
        refuse_seen(edit, asked, "measure side effects")
    plain_logits = None if asked is None else _log_probabilities(model, asked)
    unedited = _measure(model, asked, neutral, plain_logits, task)
    edited: dict[str, _Costs] = {}
    drawn: dict[str, list[_Costs]] = {}
    about = {"unedited": row_of("unedited")}
    for target in (toward or behaviors_of(task)) if can_steer(edit) else [None]:
        aimed = edit if target is None else steered(edit, target)
        name = "edit" if target is None else f"toward {target}"
        kind, mixed = draws_of_one(aimed, model, draws=draws, seed=seed, name=control)
        found = []
        for item in (aimed, *mixed):
            with patched(model, item) as view:
                cost = _measure(view, asked, neutral, plain_logits, task)
                found.append(replace(cost, moved=view.edit_report().moved))
        edited[name] = found[0]
        beside = kind if target is None else f"{kind}, {name}"
        drawn[beside] = found[1:]
        about[name] = row_of("edit", target or "")
        about[beside] = row_of("control", target or "", kind)
    settings: dict[str, list[_Costs]] = {"unedited": [unedited]}
    for one, (name, many) in zip(edited, drawn.items(), strict=True):
        settings |= {one: [edited[one]], name: many}
    values, changes = (
        {
            name: _estimates(many, than, asked, neutral, name in drawn)
            for name, many in settings.items()
        }
        for than in (None, unedited)
    )
    beyond = {
        one: _beyond(edited[one], many, asked, neutral)
        for one, many in zip(edited, drawn.values(), strict=True)
    }
    return SideEffects(values, changes, beyond, about)


def _log_probabilities(model: Model, prompts: PromptSet) -> np.ndarray:
    out: np.ndarray = model.logits(prompts).double().log_softmax(-1).numpy()
    return out


def _measure(
    model: Model,
    asked: EncodedPrompts | None,
    neutral: EncodedPrompts | None,
    plain: np.ndarray | None,
    task: Task | None,
) -> _Costs:
    kl = right = answer = None
    if asked is not None and plain is not None:
        now = _log_probabilities(model, asked)
        impossible = np.isneginf(plain)  # adds nothing, where 0 times infinity would be NaN
        gap = np.subtract(plain, now, out=np.zeros_like(plain), where=~impossible)
        kl = (np.exp(plain) * gap).sum(1)
        if all(prompt.answer is not None for prompt in asked):
            reader = PromptAnswers("answer")
            if task is not None:
                reader.max_new_tokens, reader.stop = task.max_new_tokens, task.stop
            right = hits(observe(model, asked, task=reader, margins=False), "correct")
            wanted = [
                (reader if task is None else task).continuation(p, str(p.answer)) for p in asked
            ]
            ids = [asked.following(row, answer) for row, answer in enumerate(wanted)]
            loss = -model.answer_scores(asked.rows, ids).numpy()
            answer = (loss, np.array([len(item) for item in ids], dtype=float))
    text = None if neutral is None else _text_loss(model, neutral)
    return _Costs(kl, right, answer, text)


def _text_loss(model: Model, texts: EncodedPrompts) -> tuple[np.ndarray, np.ndarray]:
    """Nats and number of the tokens after the first."""
    tokens = texts.rows
    short = [item.id for item in tokens if len(item.ids) < 2]
    if short:
        raise PromptError(
            f"A perplexity needs at least two tokens; {listed(short, 5)} have one. Leave them out."
        )
    starts = [TokenizedPrompt(item.id, item.ids[:1], {}) for item in tokens]
    loss = answer_logprobs(
        model.backend,
        starts,
        [item.ids[1:] for item in tokens],
        interventions=model.interventions,
        pad_id=model.tokens.pad_id,
    )
    return -loss.numpy(), np.array([len(item.ids) - 1 for item in tokens], dtype=float)


def _estimates(
    many: Sequence[_Costs],
    than: _Costs | None,
    asked: PromptSet | None,
    neutral: PromptSet | None,
    drawn: bool,
) -> dict[str, Estimate]:
    """Means over prompts and draws, minus the unedited model's; perplexities are exponentiated."""
    out = {}
    for measure, groups in _measured(many[0], asked, neutral):
        kind: IntervalKind = "mean" if measure != "accuracy" else "change" if than else "share"
        if than is not None and many[0] is than:
            out[measure] = Estimate.exact(float(measure.endswith("perplexity")), groups)
            continue
        each = _stacked(many, measure)
        if than is not None:
            each = each - _stacked([than], measure)
        if measure.endswith("perplexity") and not drawn:
            tokens = many[0].tokens(measure)
            mean = group_ratio(each[0] * tokens.mean(), tokens, groups)
        else:
            mean = mean_of_draws(each, groups, drawn=drawn, kind=kind)
        if measure.endswith("perplexity"):
            value, low, high = (math.exp(one) for one in (mean.value, mean.low, mean.high))
            mean = Estimate(value, low, high, mean.n, mean.groups)
        out[measure] = mean
    return out


def _beyond(
    edit: _Costs,
    draws: Sequence[_Costs],
    asked: PromptSet | None,
    neutral: PromptSet | None,
) -> dict[str, Beyond]:
    sizes = edit.moved, float(np.mean([one.moved for one in draws]))
    return {
        measure: beyond_draws(
            _stacked([edit], measure)[0],
            _stacked(draws, measure),
            groups,
            sizes=sizes,
            kind="change" if measure == "accuracy" else "mean",
        )
        for measure, groups in _measured(edit, asked, neutral)
    }


def _measured(
    cost: _Costs, asked: PromptSet | None, neutral: PromptSet | None
) -> Iterator[tuple[str, list[str]]]:
    """What was measured, and the groups of its prompts."""
    for measure in MEASURES:
        prompts = neutral if measure == "text_perplexity" else asked
        if prompts is not None and cost.each(measure) is not None:
            yield measure, prompts.groups


def _stacked(many: Sequence[_Costs], measure: str) -> np.ndarray:
    rows = [one.each(measure) for one in many]
    return np.stack([row for row in rows if row is not None])
