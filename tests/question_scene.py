"""One fitted scene for the tests of the questions: tiny model, flips with behaviors, two edits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from helpers import HandEdit, at_positions, bench, contrast_set, hf_logits
from torch import Tensor

import mechmem as mm

__all__ = ["Scene", "hand_margins", "scene", "two_sets"]


@dataclass(frozen=True)
class Scene:
    lab: object
    fit: mm.PromptSet
    test: mm.PromptSet
    acts: mm.Activations
    scores: mm.NeuronScores


@lru_cache
def scene() -> Scene:
    lab = bench("llama")
    fit = contrast_set(12, seed=3)
    test = mm.PromptSet(
        mm.Prompt(
            id=f"t{g}.{k}",
            text=" ".join(f"w{(7 * g + 3 * k + 5 * j) % 40}" for j in range(3 + (g + k) % 4)),
            group=f"t{g}",
            memorized="w1",
            generalized="w2",
            answer=f"w{g % 5}",
        )
        for g in range(10)
        for k in range(2)
    )
    acts = mm.cache_activations(lab.model, fit)
    return Scene(lab, fit, test, acts, mm.neuron_mean_difference(acts))


def two_sets() -> dict[str, mm.Activations]:
    """States of flips, and of single prompts of either behavior."""
    model = scene().lab.model
    single = mm.PromptSet(
        mm.Prompt(
            id=f"m{k}", text=f"w{k} w{2 * k} w3", group=f"m{k}",
            behavior=("memorized", "generalized")[k % 2],
        )
        for k in range(24)
    )  # fmt: skip
    sets = {"fit": contrast_set(24, seed=5), "more": single}
    return {k: mm.cache_activations(model, one, sites="resid_post") for k, one in sets.items()}


def hand_margins(here: Scene, prompts: mm.PromptSet, shift: dict | None = None) -> np.ndarray:
    """Margins in plain transformers, with values added at the last token of given sites."""
    one, two = here.lab.tokenizer.convert_tokens_to_ids(["w1", "w2"])
    out = []
    for prompt in prompts:
        ids = here.lab.ids(prompt.text)
        edits = {tuple(site): [_added(value, len(ids))] for site, value in (shift or {}).items()}
        last = hf_logits(here.lab.hf, ids, edits)[-1].double().log_softmax(-1)
        out.append(float(last[one] - last[two]))
    return np.array(out)


def _added(value: Tensor, length: int) -> HandEdit:
    return at_positions(lambda h: h + value.to(h.dtype), lambda at: at == length - 1)
