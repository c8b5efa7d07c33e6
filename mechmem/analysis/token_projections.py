"""A direction read off at every token of some texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from mechmem.analysis.directions import Direction
from mechmem.errors import ModelError, PromptError, listed
from mechmem.models.engine.reading import take_states
from mechmem.models.model import Model
from mechmem.models.positions import Positions
from mechmem.models.sites import Site
from mechmem.models.tokenizing import PromptsLike, TokenizedPrompt


@dataclass(frozen=True)
class TokenProjections:
    """The signed length of every token's state along one direction.

    Attributes:
        site: Where the states were read.
        toward, away: The classes of the direction; positive is ``toward``.
        rows: One row per token: ``id`` of the prompt, ``part`` (``"prompt"`` or ``"completion"``),
            ``position``, ``token`` as text, ``projection`` on the unit vector in activation units,
            and ``from_middle``, the same counted from the direction's `threshold` (the middle of
            the class means; NaN where those are not known).
    """

    site: Site
    toward: str
    away: str
    rows: pd.DataFrame

    def __repr__(self) -> str:
        texts = self.rows["id"].nunique()
        return f"TokenProjections({texts} texts, {len(self.rows)} tokens at {self.site})"

    def of(self, prompt: str) -> pd.DataFrame:
        """The tokens of one prompt and its completion, in order.

        Raises:
            PromptError: For an id that was not read.
        """
        rows = self.table()
        mine = rows[rows["id"] == prompt]
        if mine.empty:
            raise PromptError(
                f"No tokens of prompt {prompt!r} here; there are "
                f"{listed(rows['id'].unique().tolist(), 5)}."
            )
        return mine.reset_index(drop=True)

    def table(self) -> pd.DataFrame:
        """One row per token, with the site and the classes."""
        return self.rows.assign(
            stream=self.site.stream, layer=self.site.layer, toward=self.toward, away=self.away
        )


def project_tokens(
    model: Model,
    direction: Direction,
    prompts: PromptsLike,
    completions: Sequence[str] | None = None,
) -> TokenProjections:
    """Project the state of every token on a direction, over prompts and what followed them.

    The direction was fitted at one position (its ``provenance.positions``, usually the last prompt
    token). Elsewhere the number says how far the state lies along the same line; it does not prove
    that the model decides there, nor that the line means the same at that token.

    Args:
        model: From `load_model`.
        direction: Its site says where states are read.
        prompts: What is read, in order.
        completions: One text each that is read after its prompt, ``""`` for none, for example
            `Observations.completions`. They are tokenized anew behind the prompt.

    Raises:
        PromptError: When there are more or fewer completions than prompts, or one does not fit.
        ModelError: For completions inside `patched`, where they would count as prompt.
        SiteError: When the direction is zero, or not as wide as the states at its site.
    """
    asked = model.encode(prompts, "project")
    if completions is not None and len(completions) != len(asked):
        raise PromptError(
            f"{len(asked)} prompts were given with {len(completions)} completion(s); give one "
            "each, '' where nothing was written."
        )
    if completions is not None and model.interventions:
        raise ModelError(
            "Completions cannot be read inside `patched`: an edit of generated tokens would take "
            "them for a part of the prompt. Read the prompts alone, or outside of it."
        )
    (site,) = model.sites([direction.site])
    frames = []
    for k, head in enumerate(asked.rows):
        tail: tuple[int, ...] = ()
        if completions is not None and completions[k]:
            tail = asked.following(k, completions[k])
        ids = (*head.ids, *tail)
        if model.tokens.n_ctx is not None and len(ids) > model.tokens.n_ctx:
            raise PromptError(
                f"Prompt {head.id!r} with its completion has {len(ids)} tokens, but the model "
                f"reads at most {model.tokens.n_ctx}. Shorten one of them."
            )
        along = direction.project(_states(model, replace(head, ids=ids), site)).numpy()
        frames.append(
            pd.DataFrame(
                {
                    "id": head.id,
                    "part": ["prompt"] * len(head.ids) + ["completion"] * len(tail),
                    "position": np.arange(len(ids)),
                    "token": model.tokens.pieces(ids),
                    "projection": along,
                    "from_middle": along - direction.threshold,
                }
            )
        )
    rows = pd.concat(frames, ignore_index=True)
    return TokenProjections(site, direction.toward, direction.away, rows)


def _states(model: Model, text: TokenizedPrompt, site: Site) -> torch.Tensor:
    """``[token, feature]`` of one text; texts differ in length, so each runs by itself."""
    (taken,) = take_states(
        model.backend,
        [text],
        [site],
        Positions.parse("all"),
        interventions=model.interventions,
        pad_id=model.tokens.pad_id,
    )
    return taken.states[site][0].flatten(1)
