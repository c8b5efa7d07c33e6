"""`sampling`: what the same prompt gives when answers are drawn instead of taken greedily."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechmem.analysis.intervals import Estimate, group_mean
from mechmem.errors import MechmemError, ModelError, listed
from mechmem.evaluation.behavior import Observations, known_outcome, observe, reader_for
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET
from mechmem.models.engine.generation import Sampler, generate
from mechmem.models.model import Model
from mechmem.models.tokenizing import EncodedPrompts, PromptsLike
from mechmem.numeric import MOST, finite_numbers, whole_number
from mechmem.seeding import keyed_seed
from mechmem.tasks.base import Task


@dataclass(frozen=True)
class Sampling:
    """Outcomes of several draws per prompt.

    Attributes:
        greedy: What greedy decoding gave.
        outcomes: ``outcomes[temperature][k]`` are the outcomes of prompt ``k``, one per draw.
        seed: Keys the draws.
    """

    greedy: Observations
    outcomes: Mapping[float, tuple[tuple[str, ...], ...]]
    seed: int

    def share(self, temperature: float, outcome: str) -> Estimate:
        """Share of the draws with this outcome."""
        known_outcome(self.greedy, outcome)
        return self._mean([draws.count(outcome) / len(draws) for draws in self._drawn(temperature)])

    def as_greedy(self, temperature: float) -> Estimate:
        """Share of the draws with the outcome of greedy decoding."""
        pairs = zip(self._drawn(temperature), self.greedy.outcomes, strict=True)
        return self._mean([draws.count(usual) / len(draws) for draws, usual in pairs])

    def agreement(self, temperature: float) -> Estimate:
        """Probability that two different draws for one prompt come out alike."""
        values = []
        for draws in self._drawn(temperature):
            counts = np.array([draws.count(name) for name in set(draws)], dtype=float)
            values.append(float((counts * (counts - 1)).sum()) / (len(draws) * (len(draws) - 1)))
        return self._mean(values)

    def both(self, temperature: float) -> Estimate:
        """Share of the prompts whose draws show both behaviors."""
        found = [set(self.greedy.behaviors) <= set(draws) for draws in self._drawn(temperature)]
        return self._mean([float(value) for value in found])

    def table(self) -> pd.DataFrame:
        """One row per temperature."""
        rows = []
        for temperature, draws in self.outcomes.items():
            row = {"temperature": temperature, "draws": len(draws[0])}
            for name, value in (
                ("as_greedy", self.as_greedy(temperature)),
                ("agreement", self.agreement(temperature)),
                ("both", self.both(temperature)),
                *((outcome, self.share(temperature, outcome)) for outcome in self.greedy.allowed),
            ):
                row |= value.row(name, counted=False)
            rows.append({**row, "n": len(draws), "groups": len(set(self.greedy.prompts.groups))})
        return pd.DataFrame(rows)

    def _drawn(self, temperature: float) -> tuple[tuple[str, ...], ...]:
        if temperature not in self.outcomes:
            raise MechmemError(
                f"Nothing was drawn at temperature {temperature!r}; there are "
                f"{listed(map(str, self.outcomes))}."
            )
        return self.outcomes[temperature]

    def _mean(self, values: Sequence[float]) -> Estimate:
        return group_mean(values, self.greedy.prompts.groups, kind="share")


def sampling(
    model: Model,
    prompts: PromptsLike,
    *,
    task: Task | None = None,
    temperatures: Sequence[float] = (0.5, 1.0, 1.5),
    draws: int = 10,
    seed: int = 0,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
) -> Sampling:
    """Draw answers at several temperatures and classify each.

    Every draw is keyed by the seed, the prompt's id, the draw and the token's place, so neither
    the batch nor the order of the prompts matters.

    Args:
        model: The model, or a view inside `patched`.
        prompts: What to ask.
        task: Reads the completions, as text.
        temperatures: Above 0; the logits are divided by them.
        draws: Per prompt and temperature, at least two.
        seed: Keys the draws.
        token_budget: Most tokens in one batch.

    Raises:
        MechmemError: For fewer than two draws.
        ModelError: For a temperature that is not above 0, or none.
    """
    whole_number(draws, "draws", 2, most=MOST)  # one draw agrees with nothing
    temperatures = finite_numbers(temperatures, "temperatures", above=0, error=ModelError)
    keyed_seed(seed)
    asked = model.encode(prompts, "sample")
    reader = reader_for(asked, task, "text")
    greedy = observe(model, asked, task=reader, margins=False, token_budget=token_budget)
    found = {
        temperature: _drawn(model, asked, reader, temperature, draws, seed, token_budget)
        for temperature in temperatures
    }
    return Sampling(greedy, found, seed)


def _drawn(
    model: Model,
    asked: EncodedPrompts,
    reader: Task,
    temperature: float,
    draws: int,
    seed: int,
    token_budget: int,
) -> tuple[tuple[str, ...], ...]:
    tokenized = [item for item in asked.rows for _ in range(draws)]
    keys = [f"{prompt.id}\x1f{draw}" for prompt in asked for draw in range(draws)]
    done = generate(
        model.backend,
        tokenized,
        model.tokens.decode,
        max_new_tokens=reader.max_new_tokens,
        stop=reader.stop,
        eos_ids=model.eos_ids,
        interventions=model.interventions,
        pad_id=model.tokens.pad_id,
        n_ctx=model.tokens.n_ctx,
        token_budget=token_budget,
        choose=Sampler(temperature, seed, keys),
    )
    texts = [item.text for item in done]
    return tuple(
        tuple(reader.classify(prompt, text) for text in texts[draws * k : draws * (k + 1)])
        for k, prompt in enumerate(asked)
    )
