"""Reasoning and memory read off states: areas by hand, the layer from the fitting questions."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources

import helpers
import numpy as np
import pytest

import mechmem as mm
from mechmem.tasks.questions.shipped import SETS, shipped_questions, within_subjects


def made(name: str, n: int, seed: int) -> mm.PromptSet:
    rng = np.random.default_rng(seed)
    return mm.PromptSet(
        mm.Prompt(
            id=f"{name}{k}",
            text=" ".join(f"w{w + (5 if k % 2 else 0)}" for w in rng.integers(0, 35, 3 + k % 5)),
            label=("reasoning", "memory")[k % 2],
            meta={"category": f"s{k // 2 % 3}", "question": f"what {k}?"},
        )
        for k in range(n)
    )


WITHIN = "other set, within subjects"


@pytest.fixture(scope="module")
def lab():
    return helpers.bench("gpt2")


@pytest.fixture(scope="module")
def found(lab):
    others = {"elsewhere": made("o", 40, 5), WITHIN: made("w", 30, 9)}
    return mm.read_labels(lab.model, questions=made("q", 80, 1), others=others)


SITES = [("resid_post", 0), ("resid_post", 1)]


def last_states(lab, prompts):
    every = [helpers.hf_states(lab.hf, lab.ids(p.text), SITES) for p in prompts]
    return {site: np.array([one[site][-1].numpy() for one in every], float) for site in SITES}


def pairs_won(scores, positive) -> float:
    return float(np.mean(np.subtract.outer(scores[positive], scores[~positive]) > 0))


def test_areas_are_those_of_pairs_won_along_the_plain_mean_difference(lab, found) -> None:
    held = found.sets["same subjects, held out"]
    fitting = made("q", 80, 1).filter(lambda p: p.id not in set(held.ids))
    assert found.fitted == len(fitting)
    for name, prompts in found.sets.items():
        positive = np.array([p.label == "reasoning" for p in prompts])
        subject = np.array([p.meta["category"] for p in prompts])
        one, other = last_states(lab, fitting), last_states(lab, prompts)
        label = np.array([p.label == "reasoning" for p in fitting])
        for (stream, layer), states in one.items():
            r = states[label].mean(0) - states[~label].mean(0)
            scores = other[stream, layer] @ r
            if name == WITHIN:
                weights = [(positive & (subject == s)).sum() * (~positive & (subject == s)).sum()
                           for s in np.unique(subject)]  # fmt: skip
                each = [pairs_won(scores[subject == s], positive[subject == s])
                        for s in np.unique(subject)]  # fmt: skip
                want = np.average(each, weights=weights)
            else:
                want = pairs_won(scores, positive)
            row = found.layers[(found.layers["set"] == name) & (found.layers["layer"] == layer)
                               & (found.layers["stream"] == stream)].iloc[0]  # fmt: skip
            assert row["x"] == pytest.approx(want, abs=1e-6)
            assert row["x_low"] <= row["x"] <= row["x_high"]
            assert 0 <= row["random_low"] < 0.5 < row["random_high"] <= 1


def test_the_layer_does_not_depend_on_what_was_not_fitted_on(lab, found) -> None:
    flipped = mm.PromptSet(
        replace(p, label={"reasoning": "memory", "memory": "reasoning"}[p.label])
        for p in made("o", 40, 5)
    )
    other = mm.read_labels(lab.model, questions=made("q", 80, 1), others={"elsewhere": flipped})
    assert other.chosen == found.chosen
    one, two = (f.baselines[f.baselines["set"] == "elsewhere"].iloc[0] for f in (found, other))
    for column in ("x", "words", "form", "length"):
        assert one[column] + two[column] == pytest.approx(1)


def test_no_question_is_fitted_and_tested_and_none_of_another_set_may_be(lab, found) -> None:
    held = set(found.sets["same subjects, held out"].ids)
    assert held
    assert not held & {name for r in found.directions for name in r.provenance.seen.ids}
    with pytest.raises(mm.LeakageError):
        mm.read_labels(lab.model, questions=made("q", 80, 1), others={"again": made("q", 80, 1)})


def test_every_set_needs_both_labels(lab) -> None:
    lone = made("o", 20, 5).filter(lambda p: p.label == "memory")
    with pytest.raises(mm.PromptError, match=r"set 'lone' must hold questions labeled"):
        mm.read_labels(lab.model, questions=made("q", 80, 1), others={"lone": lone})


def test_the_largest_coordinate_is_its_share_of_the_squared_length(lab, found) -> None:
    for direction in found.directions:
        row = found.shape[found.shape["site"] == direction.site.key].iloc[0]
        vector = direction.vector.double().numpy().ravel()
        if np.linalg.norm(vector):
            assert row["largest_coordinate"] == pytest.approx(max(vector**2) / sum(vector**2))


def test_it_is_a_study_with_a_page(found, tmp_path) -> None:
    page = mm.write_report(found, tmp_path).read_text(encoding="utf-8")
    assert "elsewhere" in page
    assert "nothing was edited" in page
    assert (tmp_path / "tables" / "layers.csv").is_file()


class TestShipped:
    def test_they_have_both_labels_and_little_weight(self) -> None:
        data = resources.files("mechmem.tasks.questions") / "data"
        assert sum(len(item.read_bytes()) for item in data.iterdir()) < 1_000_000
        for name, file in SETS.items():
            prompts = shipped_questions(name)
            assert len(prompts) >= 150
            assert all(p.text == f"Q: {p.meta['question']}\nA: " for p in prompts)
            assert all(p.answer for p in prompts)
            assert "icens" in (data / f"{file}.licence.txt").read_text(encoding="utf-8")
        assert {p.label for p in shipped_questions("gsm8k")} == {"reasoning"}
        assert {p.label for p in shipped_questions("mmlu-pro")} == {"reasoning", "memory"}

    def test_within_a_subject_the_subject_says_nothing(self) -> None:
        inside = within_subjects(shipped_questions("mmlu-redux"))
        for subject in {p.meta["category"] for p in inside}:
            mine = [p.label for p in inside if p.meta["category"] == subject]
            assert min(mine.count("reasoning"), mine.count("memory")) >= 2
        assert len(inside) > 100

    def test_what_is_looked_at_was_not_in_the_fitted_set(self) -> None:
        from mechmem.studies.reasoning.read_only import _shipped_others

        pro = shipped_questions("mmlu-pro")
        others = _shipped_others(pro, 0)
        assert not set(pro.groups) & {p.group for one in others.values() for p in one}
        assert set(pro.groups) & set(shipped_questions("mmlu-redux").groups)  # they do share some

    def test_an_unknown_set(self) -> None:
        with pytest.raises(mm.TaskError, match=r"Unknown question set 'mmlu'; shipped are"):
            shipped_questions("mmlu")


def test_two_tables_may_both_count_their_questions_from_0(lab) -> None:
    def counted(prompts: mm.PromptSet) -> mm.PromptSet:
        return mm.PromptSet(
            replace(p, id=str(k), group=f"{p.id[0]}{k}") for k, p in enumerate(prompts)
        )

    one, two = counted(made("o", 40, 5)), counted(made("x", 40, 6))
    questions = made("q", 80, 1)
    alone = mm.read_labels(lab.model, questions=questions, others={"one": one}).layers
    both = mm.read_labels(lab.model, questions=questions, others={"one": one, "two": two}).layers
    mine, again = (table[table["set"] == "one"].reset_index(drop=True) for table in (alone, both))
    assert mine.equals(again)
