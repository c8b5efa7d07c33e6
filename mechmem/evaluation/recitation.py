"""`recitation`: what a model can say by heart, and a labeled set made of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from mechmem.analysis.intervals import Estimate, group_mean
from mechmem.errors import PromptError, listed
from mechmem.evaluation.graded import similarity
from mechmem.models.engine.scoring import token_scores
from mechmem.models.model import Model
from mechmem.models.tokenizing import PromptsLike, as_prompts
from mechmem.tasks.prompts import PromptSet

RECITED, NOT_RECITED = "recited", "not recited"
LOOSE, LOWEST, CALIPER = 0.8, 0.2, 0.25
MATCHES = {"loss": "prefix_loss", "length": "prefix_tokens"}


@dataclass(frozen=True)
class Recitation:
    """How far texts are recited.

    Attributes:
        prompts: The beginnings, with the right continuation in `answer`.
        rows: Per text: ``exact`` (the greedy continuation is the right one, token by token),
            ``similarity`` of what is written (1 minus the edit distance per letter, case aside)
            and ``loose`` (at least 0.8), ``strength`` (extraction strength: 1 minus the share of
            the text after which the rest is written exactly), ``loss`` of the continuation and
            ``prefix_loss`` (nats per token), ``min_k`` (mean log-probability of the least likely
            20 % of all tokens), ``tokens`` and ``prefix_tokens``.
        model: Name of the model.

    What it does not prove: that a text was in the training data. A proverb's last word can be
    guessed, and a text that is not recited after this beginning may be after another.
    """

    prompts: PromptSet
    rows: pd.DataFrame
    model: str

    def table(self) -> pd.DataFrame:
        """One row per text."""
        return self.rows.assign(model=self.model)

    def share(self, how: str = "exact", **meta: Any) -> Estimate:
        """Share recited, with a 95 % interval over groups.

        Args:
            how: ``"exact"`` or ``"loose"``.
            meta: Only texts with these values in `Prompt.meta`.
        """
        mine = [
            k
            for k, prompt in enumerate(self.prompts)
            if all(prompt.meta.get(name) == value for name, value in meta.items())
        ]
        if not mine or how not in ("exact", "loose"):
            raise PromptError(f"No text with {meta}, or {how!r} is not exact or loose.")
        values = self.rows[how].to_numpy(float)[mine]
        return group_mean(values, [self.prompts[k].group for k in mine], kind="share")

    def labeled(self, match: str = "loss") -> PromptSet:
        """Beginnings that are recited exactly, and as many that are not, of like loss or length.

        Each recited text takes the nearest free one that is not, no further than a quarter of the
        standard deviation; those without a partner are left out. `Prompt.behavior` is ``"recited"``
        or ``"not recited"``.

        Args:
            match: ``"loss"`` of the beginning, or ``"length"`` of it in tokens.

        Raises:
            PromptError: For another match, or when nothing has a partner.
        """
        if match not in MATCHES:
            raise PromptError(f"match={match!r} is not one of {listed(MATCHES)}.")
        values = self.rows[MATCHES[match]].to_numpy(float)
        exact = self.rows["exact"].to_numpy(bool)
        known = np.isfinite(values)  # no loss without a token before
        most = CALIPER * values[known].std()
        free = list(np.flatnonzero(~exact & known))
        kept: dict[int, str] = {}
        for row in np.flatnonzero(exact & known):
            near = min(free, key=lambda other: abs(values[other] - values[row]), default=None)
            if near is not None and abs(values[near] - values[row]) <= most:
                free.remove(near)
                kept |= {int(row): RECITED, int(near): NOT_RECITED}
        if not kept:
            raise PromptError(
                f"Of {len(values)} texts {int(exact.sum())} are recited, and none has a partner of "
                f"like {match} that is not; give more texts of both kinds."
            )
        return PromptSet(replace(self.prompts[k], behavior=kept[k]) for k in sorted(kept))


def recitation(model: Model, passages: PromptsLike) -> Recitation:
    """What the model continues by heart: greedily, after the beginning that a prompt holds.

    One pass over the whole text gives all but ``similarity``, for which the texts that are not
    recited exactly are written out.

    Args:
        model: From `load_model`.
        passages: Beginnings as `text`, the right continuation in `answer`; joined by a blank.

    Raises:
        PromptError: When a continuation is missing, or adds no token.

    Sources: extraction strength as in Carlini et al. 2012.07805, Min-K% as in Shi et al.
    2310.16789.
    """
    prompts = as_prompts(passages).require("recite")
    lacking = [prompt.id for prompt in prompts if not (prompt.answer or "").strip()]
    if lacking:
        raise PromptError(f"No continuation in `answer` of {listed(lacking, 5)}; give one.")
    whole = PromptSet(
        replace(p, text=f"{p.text} {str(p.answer).strip()}", spans={}) for p in prompts
    )
    begun, full = model.tokenize(prompts), model.tokenize(whole)
    scores = token_scores(
        model.backend, full, interventions=model.interventions, pad_id=model.tokens.pad_id
    )
    rows: list[dict[str, Any]] = []
    for prompt, start, text, (logps, hits) in zip(prompts, begun, full, scores, strict=True):
        before = _shared(start.ids, text.ids)
        if before >= len(text.ids):
            raise PromptError(
                f"The continuation of {prompt.id!r} adds no token; give a longer one."
            )
        wrong = np.flatnonzero(~hits.numpy())
        needed = 1 + (int(wrong[-1]) + 1 if len(wrong) else 0)  # tokens after which all is right
        lowest = np.sort(logps.numpy())[: max(1, int(LOWEST * len(logps)))]
        rows.append(
            {"id": prompt.id, "group": prompt.group, "exact": bool(hits[before - 1 :].all()),
             "strength": 1 - needed / len(text.ids), "loss": -float(logps[before - 1 :].mean()),
             "prefix_loss": -float(logps[: before - 1].mean()) if before > 1 else np.nan,
             "min_k": float(lowest.mean()), "tokens": len(text.ids), "prefix_tokens": before}
        )  # fmt: skip
    return Recitation(prompts, _with_similarity(model, prompts, pd.DataFrame(rows)), model.name)


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Tokens that both begin with: a beginning's last one may differ once words follow it."""
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))


def _with_similarity(model: Model, prompts: PromptSet, rows: pd.DataFrame) -> pd.DataFrame:
    close = np.ones(len(rows))
    ask = np.flatnonzero(~rows["exact"].to_numpy(bool))
    if len(ask):
        longest = int((rows["tokens"] - rows["prefix_tokens"]).iloc[ask].max())
        wrote = model.generate(PromptSet(prompts[int(k)] for k in ask), longest)
        close[ask] = [
            similarity(text, str(prompts[int(k)].answer).strip())
            for k, text in zip(ask, wrote, strict=True)
        ]
    return rows.assign(similarity=close, loose=close >= LOOSE)
