"""The bypass / induce / KL rule against the same numbers computed with plain hooks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import bench, close, contrast_set, hf_logits

import mechmem as mm
from mechmem.evaluation.selection import next_token_kl

SITES = [("resid_pre", k) for k in range(3)]


def renamed(prompts: mm.PromptSet, prefix: str) -> mm.PromptSet:
    return mm.PromptSet(replace(p, id=prefix + p.id, group=prefix + str(p.group)) for p in prompts)


FITTED = contrast_set(10, seed=1)
VALIDATION = renamed(contrast_set(5, seed=2), "v")
FRESH = renamed(contrast_set(5, seed=3), "f")


def directions(**options) -> mm.Directions:
    acts = mm.cache_activations(bench().model, FITTED, sites=SITES)
    return mm.fit_directions(acts, toward="generalized", **options)


def margins(prompts, edits=None) -> np.ndarray:
    """``log p(w2) - log p(w1)`` by plain transformers."""
    lab = bench()
    first, second = (lab.tokenizer.convert_tokens_to_ids(word) for word in ("w1", "w2"))
    rows = [hf_logits(lab.hf, lab.ids(p.text), edits)[-1].double() for p in prompts]
    return np.array([float(row[second] - row[first]) for row in rows])


def last_logits(prompts, edits=None) -> torch.Tensor:
    lab = bench()
    return torch.stack([hf_logits(lab.hf, lab.ids(p.text), edits)[-1] for p in prompts])


def of(prompts: mm.PromptSet, behavior: str) -> list[mm.Prompt]:
    return [p for p in prompts if p.behavior == behavior]


def test_the_three_numbers_of_every_candidate_are_those_of_plain_hooks() -> None:
    found = directions()
    selection = mm.select_direction(bench().model, found, validation=VALIDATION, alpha=1.5)
    held, rest = of(VALIDATION, "generalized"), of(VALIDATION, "memorized")
    assert selection.before == pytest.approx((margins(held).mean(), margins(rest).mean()), abs=1e-4)
    for item in selection.candidates:
        r = item.direction
        vector = r.vector.float()
        unit = vector / vector.norm()

        def out(h, at, unit=unit):
            return h - torch.outer(h @ unit, unit)

        def add(h, at, vector=vector):
            return h + 1.5 * vector

        everywhere = {
            (stream, k): [out] for stream in ("resid_pre", "attn_out", "mlp_out") for k in range(3)
        }
        assert item.bypass == pytest.approx(margins(held, everywhere).mean(), abs=1e-3)
        assert item.induce == pytest.approx(margins(rest, {tuple(r.site): [add]}).mean(), abs=1e-3)
        p, q = (last_logits(rest, e).double().log_softmax(-1) for e in (None, everywhere))
        assert item.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), abs=1e-3)


def test_the_rule_drops_with_reasons_and_takes_the_lowest_bypass_of_the_rest() -> None:
    sets = {name: directions(method=name) for name in ("difference_of_means", "pca")}
    loose = mm.select_direction(
        bench().model, sets, validation=VALIDATION, induce_minimum=-1e9, kl_limit=1e9
    )
    table = loose.table()
    # Of three layers the last 20 % are the last one: int(3 * 0.8) = 2.
    assert set(table[table["layer"] == 2]["dropped"]) == {"last layers"}
    left = table[table["dropped"] == ""]
    assert len(left)
    best = left.sort_values("bypass").iloc[0]
    assert bool(best["chosen"])
    assert table["chosen"].sum() == 1
    assert loose.direction.site == (best["stream"], best["layer"])
    assert loose.direction.method == best["method"]

    middle = float(left["kl"].median())
    tight = mm.select_direction(
        bench().model, sets, validation=VALIDATION, induce_minimum=-1e9, kl_limit=middle
    ).table()
    over = tight["kl"] > middle
    assert over.any()
    assert tight[over]["dropped"].str.contains("changes neutral prompts").all()
    assert not tight[~over]["dropped"].str.contains("neutral").any()

    weak = mm.select_direction(
        bench().model, sets, validation=VALIDATION, induce_minimum=1e9, kl_limit=1e9
    )
    assert weak.table()["dropped"].str.contains("does not induce").all()
    assert weak.best is None
    with pytest.raises(mm.EditError, match=r"None of 6 directions.*does not induce.*table\(\)"):
        weak.direction  # noqa: B018


def test_a_candidate_the_other_way_round_is_turned() -> None:
    one = directions()
    acts = mm.cache_activations(bench().model, FITTED, sites=SITES)
    other = mm.fit_directions(acts, toward="memorized")
    both = mm.select_direction(bench().model, {"a": one, "b": other}, validation=VALIDATION)
    table = both.table().sort_values(["layer", "source"])
    a, b = (table[table["source"] == name] for name in "ab")
    for column in ("bypass", "induce", "kl"):
        close(a[column], b[column], 1e-5)


def test_the_divergence_is_zero_for_the_same_and_counts_impossible_tokens_as_nothing() -> None:
    logits = torch.tensor([[1.0, 2.0, float("-inf")], [0.0, 0.5, 1.0]])
    assert next_token_kl(logits, logits.nan_to_num(neginf=-1e4)) == pytest.approx(0.0, abs=1e-12)
    p, q = torch.tensor([[0.2, 0.8]]), torch.tensor([[0.5, 0.5]])
    want = 0.2 * np.log(0.4) + 0.8 * np.log(1.6)
    assert next_token_kl(p.log(), q.log()) == pytest.approx(want)


def test_another_score_and_neutral_prompts_of_your_own() -> None:
    neutral = mm.PromptSet([mm.Prompt(id="n", text="w3 w4 w5")])
    calls = []

    def score(model, prompts) -> np.ndarray:
        calls.append(list(prompts.ids))
        return np.zeros(len(prompts))

    acts = mm.cache_activations(bench().model, FITTED, sites=SITES[:1])
    found = mm.fit_directions(acts, toward="reasoning", by="label")
    selection = mm.select_direction(
        bench().model, found, validation=VALIDATION, score=score, neutral=neutral, kl_limit=1e9
    )
    assert selection.best is not None
    assert calls[0] == [p.id for p in VALIDATION if p.label == "reasoning"]
    assert "n" in selection.direction.provenance.seen.ids
    with pytest.raises(mm.PromptError, match=r"'reasoning'.*pass score="):
        mm.select_direction(bench().model, found, validation=VALIDATION)


def test_what_was_chosen_on_a_prompt_cannot_be_reported_on_it() -> None:
    model, found = bench().model, directions()
    with pytest.raises(mm.LeakageError, match="choose a direction"):
        mm.select_direction(model, found, validation=FITTED)
    with pytest.raises(mm.LeakageError, match="choose a direction"):
        mm.select_direction(model, found, validation=VALIDATION, neutral=FITTED)
    selection = mm.select_direction(
        model, found, validation=VALIDATION, induce_minimum=-1e9, kl_limit=1e9
    )
    edit = mm.ProjectOut(selection.direction)
    for used in (FITTED, VALIDATION):
        with pytest.raises(mm.LeakageError):
            mm.evaluate(model, used, edit=edit)
    assert len(mm.evaluate(model, FRESH, edit=edit).after) == len(FRESH)


def test_no_candidates_or_none_of_a_class() -> None:
    model = bench().model
    with pytest.raises(mm.EditError, match="no candidate directions"):
        mm.select_direction(model, {}, validation=VALIDATION)
    only = mm.PromptSet(of(VALIDATION, "memorized"))
    with pytest.raises(mm.PromptError, match=r"No validation prompt is 'generalized' by behavior"):
        mm.select_direction(model, directions(), validation=only)
    mixed = {"a": directions(), "b": _labels()}
    with pytest.raises(mm.EditError, match=r"one contrast.*memory -> reasoning"):
        mm.select_direction(model, mixed, validation=VALIDATION)


def _labels() -> mm.Directions:
    acts = mm.cache_activations(bench().model, FITTED, sites=SITES)
    return mm.fit_directions(acts, toward="reasoning", by="label")
