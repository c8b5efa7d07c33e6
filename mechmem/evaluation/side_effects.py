"""`side_effects`: what an edit costs on prompts that it is not about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechmem.analysis.intervals import Estimate, Kind, group_mean, group_ratio
from mechmem.errors import PromptError, listed
from mechmem.evaluation.behavior import observe
from mechmem.evaluation.rows import can_steer, hits, numbers, one_control, refuse_seen, steered
from mechmem.models.engine.scoring import answer_logprobs
from mechmem.models.model import Model
from mechmem.models.tokens import PromptsLike, TokenizedPrompt, as_prompts
from mechmem.patching.apply import patched
from mechmem.patching.base import Edit
from mechmem.tasks.base import BEHAVIORS, PromptAnswers, Task
from mechmem.tasks.prompts import PromptSet

__all__ = ["SideEffects", "side_effects"]

MEASURES = ("kl", "accuracy", "answer_perplexity", "text_perplexity")


@dataclass(frozen=True)
class SideEffects:
    """Cost of an edit, toward every class, beside a control of the same size.

    Attributes:
        values: ``values[setting][measure]``; settings are ``"unedited"``, ``"toward memorized"``
            and so on, and their controls. Measures, where the prompts allow them: ``kl`` (nats,
            from the unedited to the edited distribution of the next token), ``accuracy`` on clean
            items, ``answer_perplexity`` of their right answers, ``text_perplexity`` per token of
            neutral text.
        changes: The same minus the unedited model, paired; perplexities as ratios.
    """

    values: Mapping[str, Mapping[str, Estimate]]
    changes: Mapping[str, Mapping[str, Estimate]]

    def table(self) -> pd.DataFrame:
        """One row per setting and measure."""
        return pd.DataFrame(
            [
                {
                    "setting": setting,
                    "measure": measure,
                    **numbers(value),
                    **numbers(self.changes[setting][measure], "change"),
                    "n": value.n,
                    "groups": value.groups,
                }
                for setting, row in self.values.items()
                for measure, value in row.items()
            ]
        )


@dataclass(frozen=True)
class _Costs:
    """What is measured of one setting, prompt by prompt."""

    kl: np.ndarray | None
    right: np.ndarray | None
    answer: tuple[np.ndarray, np.ndarray] | None
    text: tuple[np.ndarray, np.ndarray] | None


def side_effects(
    model: Model,
    edit: Edit,
    *,
    clean: PromptsLike | None = None,
    texts: PromptsLike | None = None,
    task: Task | None = None,
    toward: Sequence[str] = BEHAVIORS,
    control: str | None = None,
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
        toward: Classes to steer to.
        control: Default random neurons or a random direction of the same length.
        seed: Keys control and resampling.

    Raises:
        LeakageError: When a clean prompt was seen in making the edit.
        PromptError: With neither clean prompts nor texts.
    """
    if clean is None and texts is None:
        raise PromptError(
            "side_effects measures on clean= prompts, on texts=, or on both; for example "
            "clean=task.clean_prompts(400)."
        )
    asked = None if clean is None else as_prompts(clean).require("measure side effects")
    neutral = None if texts is None else as_prompts(texts).require("measure side effects")
    if asked is not None:
        refuse_seen(model, edit, asked, "measure side effects")
    settings: dict[str, Edit] = {}
    targets = list(toward) if can_steer(edit) else [None]
    for target in targets:
        aimed = edit if target is None else steered(edit, target)
        name = "edit" if target is None else f"toward {target}"
        settings[name] = aimed
        kind, mixed = one_control(aimed, model, seed, control)
        settings[f"{kind}, {name}" if target is not None else kind] = mixed
    plain_logits = None if asked is None else _log_probabilities(model, asked)
    unedited = _measure(model, asked, neutral, plain_logits, task)
    costs = {"unedited": unedited}
    for name, item in settings.items():
        with patched(model, item) as view:
            costs[name] = _measure(view, asked, neutral, plain_logits, task)
    values = {name: _estimates(cost, None, asked, neutral) for name, cost in costs.items()}
    changes = {name: _estimates(cost, unedited, asked, neutral) for name, cost in costs.items()}
    return SideEffects(values, changes)


def _log_probabilities(model: Model, prompts: PromptSet) -> np.ndarray:
    out: np.ndarray = model.logits(prompts).double().log_softmax(-1).numpy()
    return out


def _measure(
    model: Model,
    asked: PromptSet | None,
    neutral: PromptSet | None,
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
            ids = [model.tokens.continuation(p, t) for p, t in zip(asked, wanted, strict=True)]
            loss = -model.logprobs(asked, wanted).numpy()
            answer = (loss, np.array([len(item) for item in ids], dtype=float))
    text = None if neutral is None else _text_loss(model, neutral)
    return _Costs(kl, right, answer, text)


def _text_loss(model: Model, texts: PromptSet) -> tuple[np.ndarray, np.ndarray]:
    """Nats and number of the tokens after the first."""
    tokens = model.tokenize(texts)
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
    cost: _Costs,
    than: _Costs | None,
    asked: PromptSet | None,
    neutral: PromptSet | None,
) -> dict[str, Estimate]:
    out = {}
    kinds: tuple[Kind, Kind] = "mean", "share" if than is None else "change"
    for name, values, base, prompts, kind in (
        ("kl", cost.kl, None if than is None else than.kl, asked, kinds[0]),
        ("accuracy", cost.right, None if than is None else than.right, asked, kinds[1]),
    ):
        if values is not None and prompts is not None:
            each = values if base is None else values - base
            out[name] = group_mean(each, prompts.groups, kind=kind)
    for name, pair, before, prompts in (
        ("answer_perplexity", cost.answer, None if than is None else than.answer, asked),
        ("text_perplexity", cost.text, None if than is None else than.text, neutral),
    ):
        if pair is not None and prompts is not None:
            loss = pair[0] if before is None else pair[0] - before[0]
            out[name] = _perplexity(loss, pair[1], prompts.groups)
    return out


def _perplexity(loss: np.ndarray, tokens: np.ndarray, groups: Sequence[str]) -> Estimate:
    """``exp`` of the loss per token; of a difference of losses, the ratio of perplexities."""
    found = group_ratio(loss, tokens, groups)
    value, low, high = (float(np.exp(one)) for one in (found.value, found.low, found.high))
    return Estimate(value, low, high, found.n, found.groups)
