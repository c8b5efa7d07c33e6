"""Arguments in the wrong place are refused by their names."""

from __future__ import annotations

import pytest
from helpers import as_users_run_it, bench, contrast_set

import mechmem as mm


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: mm.difference_of_means(s.r, toward="generalized"), "states must be Activations"),
        (lambda s: mm.fit_directions(s.model, toward="generalized"), "states must be Activations"),
        (lambda s: mm.fit_probes(s.prompts), "acts must be Activations, got PromptSet"),
        (lambda s: mm.learning_curve(s.r), "acts must be Activations, got Directions"),
        (lambda s: mm.steering_grid(s.r, s.model, s.prompts), "model must be Model, got Direct"),
        (lambda s: mm.steering_grid(s.model, s.prompts, s.r), "directions must be Directions"),
        (
            lambda s: mm.select_direction(s.model, s.prompts, validation=s.prompts),
            "directions must",
        ),
        (
            lambda s: mm.controls(s.model, mm.ProjectOut(s.one)),
            "swapped with model",
        ),
        (
            lambda s: mm.side_effects(s.model, s.r, clean=s.prompts),
            "edit must be Edit",
        ),
    ],
)
def test_the_argument_is_named(call, words) -> None:
    class Scene:
        model, prompts = bench().model, contrast_set()
        acts = mm.cache_activations(model, prompts)
        r = mm.difference_of_means(acts, toward="generalized")
        one = r["resid_post", 1]

    with as_users_run_it(), pytest.raises(mm.MechmemError, match=words):
        call(Scene)
