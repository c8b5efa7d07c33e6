"""What the words alone predict: logistic regression on one-hot tokens, as scikit-learn fits it."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import bench

import mechmem as mm
from mechmem.analysis import fit_input_words
from mechmem.analysis.classifiers import input_only_scores
from mechmem.errors import PromptError


def prompts(n: int = 40) -> mm.PromptSet:
    """The second word gives the behavior away; the others say nothing."""
    rng = np.random.default_rng(0)
    names = ("memorized", "generalized")
    return mm.PromptSet(
        mm.Prompt(
            str(k), f"w{rng.integers(1, 9)} w{10 + k % 2} w{rng.integers(20, 25)}",
            group=f"g{k // 2}", behavior=names[k % 2],
        )
        for k in range(n)
    )  # fmt: skip


def test_the_word_that_gives_it_away_predicts_a_new_prompt() -> None:
    model = bench().model
    words = fit_input_words(model, prompts())
    found = words.predict(model, ["w30 w10 w21", "w31 w11 w20", "w3 w12 w22"])
    assert list(found["predicted"][:2]) == ["memorized", "generalized"]
    assert found["score"][0] > 0 > found["score"][1]  # classes are sorted by name
    assert abs(found["score"][2]) < min(abs(found["score"][:2]))


def test_the_scores_are_those_of_the_baseline_on_input_tokens() -> None:
    model, asked = bench().model, prompts()
    ids = [one.ids for one in model.tokenize(asked)]
    y = np.array([p.behavior == "memorized" for p in asked]).astype(int)
    own = fit_input_words(model, asked).predict(model, asked)["score"].to_numpy()
    np.testing.assert_allclose(own, input_only_scores(ids, y, ids), atol=1e-9)


def test_a_prompt_shorter_than_the_fitted_ones_is_read_as_far_as_it_goes() -> None:
    model = bench().model
    words = fit_input_words(model, prompts())
    found = words.predict(model, ["w21"])
    assert np.isfinite(found["score"]).all()


def test_one_class_is_refused() -> None:
    one = mm.PromptSet([mm.Prompt("a", "w1", behavior="memorized")])
    with pytest.raises(PromptError, match="tell two classes apart"):
        fit_input_words(bench().model, one)
