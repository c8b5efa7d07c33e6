"""One small real study on a model that ships, run once and shared by the tests that look at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import mechmem as mm
from mechmem.studies.behavior.plan import Fit

LAYER = ("resid_post", 1)


def small_grid(fit: Fit) -> Mapping[str, Sequence[mm.Edit]]:
    return {
        "P1 as published": [mm.ShiftNeurons(fit.scores, top=top, alpha=3.0) for top in (0.05, 0.1)],
        "one layer": [
            mm.ShiftNeurons(fit.window_scores, top=1.0, alpha=alpha, at=[LAYER])
            for alpha in (0.5, 1.0)
        ],
        "one direction": [
            mm.AddDirection(fit.directions[LAYER], alpha=alpha) for alpha in (1.0, 2.0)
        ],
    }


@lru_cache
def small_study() -> mm.Study:
    """Shared: a test leaves it as it found it. Its negative control is the study itself."""
    model = mm.load_model("lab/addition-cued")
    study = mm.run_study(
        model, task=mm.get_task("addition-cued"), n=100, grid=small_grid, refine={}, shuffles=3,
        draws=3,
    )  # fmt: skip
    return replace(study, negative=study)
