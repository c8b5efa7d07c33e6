"""Exchanged classes: within groups that show both, else whole groups inside their stratum."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import mechmem as mm
from mechmem.analysis.exchange import Exchange


def flips(groups: int) -> mm.PromptSet:
    return mm.PromptSet(
        mm.Prompt(id=f"{g}-{name}", text=f"{g} {name}", group=f"g{g:02}", behavior=name)
        for g in range(groups)
        for name in ("memorized", "generalized")
    )


def labeled(per_stratum: dict[str, tuple[int, int]]) -> mm.PromptSet:
    """One prompt per group; by stratum how many reasoning and how many memory questions."""
    return mm.PromptSet(
        mm.Prompt(id=f"{name}{k}", text=f"{name} {k}", group=f"{name}{k}", meta={"topic": name},
                  label="reasoning" if k < one else "memory")
        for name, (one, other) in per_stratum.items()
        for k in range(one + other)
    )  # fmt: skip


def test_a_pair_keeps_one_of_each_and_is_swapped_half_of_the_time() -> None:
    prompts = flips(40)
    swapped = np.zeros((40, 200))
    for k in range(200):
        drawn = Exchange(prompts).draw(0, k)
        assert drawn.ids == prompts.ids
        for g in range(40):
            one, other = drawn[2 * g], drawn[2 * g + 1]
            assert {one.behavior, other.behavior} == {"memorized", "generalized"}
            swapped[g, k] = one.behavior == "generalized"
    # 8,000 fair coins: four standard deviations are 0.022.
    assert abs(swapped.mean() - 0.5) < 0.023
    # Coins of two groups, and of two draws, have nothing to do with each other.
    assert np.abs(np.corrcoef(swapped)[np.triu_indices(40, 1)]).max() < 0.35


def test_a_draw_depends_on_the_seed_and_its_number_not_on_the_order_of_the_prompts() -> None:
    prompts = flips(20)
    turned = mm.PromptSet(reversed(list(prompts)))

    def classes(found: mm.PromptSet) -> dict[str, str | None]:
        return {prompt.id: prompt.behavior for prompt in found}

    one = classes(Exchange(prompts).draw(3, 1))
    assert one == classes(Exchange(turned).draw(3, 1))
    assert one != classes(Exchange(prompts).draw(3, 2))
    assert one != classes(Exchange(prompts).draw(4, 1))


def test_a_group_of_several_wordings_has_one_stratum_in_any_order() -> None:
    prompts = mm.PromptSet(
        mm.Prompt(id=f"{g}{wording}", text=f"{wording} {g}", group=f"g{g}", meta={"word": wording},
                  label=("reasoning", "memory")[g % 2])
        for g in range(24)
        for wording in ("ab" if g % 3 else "ba")
    )  # fmt: skip
    turned = mm.PromptSet(reversed(list(prompts)))
    found = [
        {p.id: p.label for p in Exchange(some, "label", lambda p: p.meta["word"]).draw(0, 0)}
        for some in (prompts, turned)
    ]
    assert found[0] == found[1]


def test_groups_of_one_class_trade_inside_their_stratum_only() -> None:
    prompts = labeled({"law": (3, 9), "maths": (10, 2), "art": (0, 7)})
    exchange = Exchange(prompts, by="label", stratum=lambda prompt: prompt.meta["topic"])
    moved = Counter()
    for k in range(300):
        drawn = exchange.draw(1, k)
        for topic, count in {"law": 3, "maths": 10, "art": 0}.items():
            mine = [p for p in drawn if p.meta["topic"] == topic]
            assert sum(p.label == "reasoning" for p in mine) == count
        moved.update(p.id for p in drawn if p.label == "reasoning")
    for topic, share in {"law": 3 / 12, "maths": 10 / 12, "art": 0.0}.items():
        shares = [moved[p.id] / 300 for p in prompts if p.meta["topic"] == topic]
        assert np.allclose(shares, share, atol=0.12)
    assert exchange.exchangeable == 24


def test_a_group_of_one_class_trades_as_a_whole_and_unlabeled_prompts_stay_so() -> None:
    prompts = mm.PromptSet(
        mm.Prompt(id=f"{g}{k}", text=f"{g}{k}", group=str(g),
                  label=None if k == 2 else ("reasoning", "memory")[g % 2])
        for g in range(12)
        for k in range(3)
    )  # fmt: skip
    drawn = Exchange(prompts, by="label").draw(0, 0)
    for g in range(12):
        one, other, none = drawn[3 * g : 3 * g + 3]
        assert one.label == other.label is not None
        assert none.label is None
    assert sum(p.label == "reasoning" for p in drawn) == 12


@pytest.mark.parametrize(
    ("prompts", "by", "found"),
    [
        (flips(9), "behavior", 9),
        (labeled({"a": (5, 0), "b": (0, 30)}), "label", 0),
        (labeled({"a": (4, 5), "b": (0, 30)}), "label", 9),
    ],
)
def test_too_few_groups_that_can_change_are_said(
    prompts: mm.PromptSet, by: str, found: int
) -> None:
    exchange = Exchange(prompts, by=by, stratum=lambda prompt: prompt.meta.get("topic", ""))
    assert exchange.exchangeable == found
    assert exchange.reason().startswith(f"only {found} of {len(set(prompts.groups))} groups")
    assert Exchange(flips(10)).reason() == ""


def test_another_word_for_the_classes_is_refused() -> None:
    with pytest.raises(mm.PromptError, match="by must be 'behavior'"):
        Exchange(flips(3), by="outcome")
