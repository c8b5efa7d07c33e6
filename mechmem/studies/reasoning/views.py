"""What a reasoning study looks at in its states: the plane, directions to compare, scores."""

from __future__ import annotations

from collections.abc import Mapping

from mechmem.analysis.directions import Direction, Directions, difference_of_means
from mechmem.analysis.state_map import StateMap, state_map
from mechmem.caching.activations import Activations
from mechmem.errors import MechmemError
from mechmem.tasks.prompts import PromptSet
from mechmem.tasks.questions.labels import LABELS

SMALLEST_PART = 6
MOST_SOURCES = 4


def plane(train: Activations, held: Activations, direction: Direction) -> StateMap:
    """PCA of the training states at the direction's site with the test questions projected into it.

    Where items come in kinds, the plane is fitted on the kinds that are clear and every other
    kind is a set of its own.
    """
    named: dict[str, list[str]] = {}
    for prompt in held.prompts:
        named.setdefault(str(prompt.meta.get("item") or "test questions"), []).append(prompt.id)
    others = {
        name if name == "test questions" else f"test: {name}": held.take(
            [k for k, prompt in enumerate(held.prompts) if prompt.id in set(ids)]
        )
        for name, ids in named.items()
    }
    return state_map(
        train,
        direction.site,
        direction=direction,
        others=others,
        by="label",
        name="training questions",
    )


def sources(directions: Directions, train: Activations, seed: int) -> Mapping[str, Directions]:
    """The direction from all training questions, from halves of them, and from parts by kind."""
    out = {"all": directions}
    halves = train.prompts.split(train=0.5, validation=0.5, seed=seed)
    parts = dict(zip(("half A", "half B"), halves[:2], strict=True))
    for key in ("item", "source", "category"):
        kinds = _contrasts(train.prompts, key)
        if len(kinds) > 1:
            parts |= kinds
            break
    for name, part in parts.items():
        try:
            out[name] = difference_of_means(train.select(part), toward=LABELS[0], by="label")
        except MechmemError:  # a part in which a class is missing has no direction
            continue
    return out


def scored(prompts: PromptSet) -> PromptSet | None:
    """The questions with a score, when there are more than two different ones."""
    part = prompts.filter(lambda prompt: prompt.meta.get("score") is not None)
    return part if len({prompt.meta["score"] for prompt in part}) > 1 and len(part) > 2 else None


def _contrasts(prompts: PromptSet, key: str) -> dict[str, PromptSet]:
    """Parts by ``meta[key]`` in which both labels occur often enough, the largest first.

    Kinds that have one label only make a part together.
    """
    kinds: dict[str, list[str]] = {}
    for prompt in prompts:
        if prompt.meta.get(key) not in (None, ""):
            kinds.setdefault(str(prompt.meta[key]), []).append(prompt.id)
    mixed, pure = {}, []
    for name, ids in sorted(kinds.items(), key=lambda pair: -len(pair[1])):
        part = prompts.select(ids)
        counts = [sum(p.label == label for p in part) for label in LABELS]
        if min(counts) >= SMALLEST_PART:
            mixed[f"{key}: {name}"] = part
        elif min(counts) == 0:
            pure += ids
    out = dict(list(mixed.items())[:MOST_SOURCES])
    rest = prompts.select(pure)
    if out and all(sum(p.label == label for p in rest) >= SMALLEST_PART for label in LABELS):
        out["the others"] = rest
    return out
