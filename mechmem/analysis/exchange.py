"""Exchanged classes: the null of everything that is fitted on a contrast.

A refit on exchanged classes goes through the whole recipe again, so what was looked at and chosen
is judged by a null that looked and chose as well. The exchange breaks every tie between a prompt
and its class: what the states know of it, and what the prompt's own words say of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from mechmem.caching.activations import class_names
from mechmem.seeding import keyed_rng
from mechmem.tasks.prompts import Prompt, PromptSet

FEWEST_EXCHANGEABLE = 10
"""Groups that must be able to change their classes; with fewer, too few exchanges differ."""


@dataclass(frozen=True)
class Exchange:
    """How the classes of some prompts may be exchanged.

    Within a group that shows both classes its prompts trade them. Where a group shows one class
    only, whole groups trade theirs with groups of the same stratum.

    Attributes:
        prompts: Prompts with a class.
        by: ``"behavior"`` or ``"label"``.
        stratum: Names the stratum of a prompt, such as its wording or topic; one for all by
            default.
    """

    prompts: PromptSet
    by: str = "behavior"
    stratum: Callable[[Prompt], str] = lambda prompt: ""

    def __post_init__(self) -> None:
        class_names(self.prompts[:1], self.by)  # refuses another word

    @property
    def exchangeable(self) -> int:
        """Number of groups whose classes an exchange can change."""
        inner, outer = self._kinds()
        traded = [
            name for names in outer.values() if len({c for _, c in names}) > 1 for name, _ in names
        ]
        return len(inner) + len(traded)

    def reason(self) -> str:
        """Why nothing can be tested on these prompts; empty where it can."""
        found = self.exchangeable
        if found >= FEWEST_EXCHANGEABLE:
            return ""
        return (
            f"only {found} of {len(set(self.prompts.groups))} groups of training prompts can "
            f"exchange their classes, and at least {FEWEST_EXCHANGEABLE} are needed"
        )

    def draw(self, seed: int, k: int) -> PromptSet:
        """The prompts with exchanged classes; the same for one seed and one ``k`` whatever their
        order."""
        rng = keyed_rng(seed, "exchanged classes", k)
        inner, outer = self._kinds()
        classes = dict(zip(self.prompts.ids, class_names(self.prompts, self.by), strict=True))
        for name in sorted(inner):
            ids = sorted(inner[name])
            mixed = rng.permutation(len(ids))
            old = [classes[one] for one in ids]
            classes |= {one: old[int(j)] for one, j in zip(ids, mixed, strict=True)}
        members = self.prompts.by_group()
        for stratum in sorted(outer):
            names = sorted(outer[stratum])
            mixed = rng.permutation(len(names))
            for (group, _), j in zip(names, mixed, strict=True):
                new = names[int(j)][1]
                classes |= {prompt.id: new for prompt in members[group] if classes[prompt.id]}
        return PromptSet(
            _with_class(prompt, self.by, classes[prompt.id]) for prompt in self.prompts
        )

    def _kinds(self) -> tuple[dict[str, list[str]], dict[str, list[tuple[str, str]]]]:
        """Ids of the prompts of groups that show both classes, by group; the other groups with
        their class, by stratum."""
        inner: dict[str, list[str]] = {}
        outer: dict[str, list[tuple[str, str]]] = {}
        for group, members in self.prompts.by_group().items():
            ordered = sorted(members, key=lambda prompt: prompt.id)  # the first names the stratum
            named = [(p, getattr(p, self.by)) for p in ordered if getattr(p, self.by) is not None]
            shown = {name for _, name in named}
            if len(shown) > 1:
                inner[group] = [prompt.id for prompt, _ in named]
            elif shown:
                outer.setdefault(self.stratum(named[0][0]), []).append((group, shown.pop()))
        return inner, outer


def _with_class(prompt: Prompt, by: str, name: str | None) -> Prompt:
    return replace(prompt, behavior=name) if by == "behavior" else replace(prompt, label=name)
