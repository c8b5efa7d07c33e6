"""The whole study on `conflict`, with a random model: what it says has the task's own names."""

from __future__ import annotations

import helpers
import numpy as np
import pandas as pd
import pytest

import mechmem as mm
from mechmem.tasks.facts.conflict import Conflict

RNG = np.random.default_rng(0)
ROWS = [
    dict(zip(("subject", "relation", "true", "other"), (f"w{a}", f"w{b} w{c}", f"w{d}", f"w{e}"),
             strict=True))
    for a, b, c, d, e in (RNG.permutation(40)[:5] for _ in range(260))
]  # fmt: skip


@pytest.fixture(scope="module")
def study():
    lab = helpers.fresh_bench("gpt2")
    task = mm.get_task(
        "conflict",
        data=ROWS,
        wordings={"said": "w1 {false} w2 {question}", "so": "w9 {false} w3 {question}"},
    )
    return mm.run_study(lab.model, task=task, n=300, shuffles=2, draws=1, doses=(1.0,))


def test_the_model_was_asked_first_what_it_knows(study) -> None:
    prompts = [p for part in study.splits.values() for p in part]
    lab = helpers.fresh_bench("gpt2")
    for prompt in prompts[:20]:
        start, _ = prompt.spans["question"]
        last = helpers.hf_logits(lab.hf, lab.ids(prompt.text[start:]))[-1].double().log_softmax(-1)
        one, two = lab.tokenizer.convert_tokens_to_ids([prompt.memorized, prompt.generalized])
        assert float(last[one] - last[two]) > 0.1


def test_what_is_fitted_is_balanced_within_every_wording(study) -> None:
    count = pd.crosstab([p.meta["wording"] for p in study.flips], [p.behavior for p in study.flips])
    assert list(count.columns) == ["context", "known"]
    assert (count["context"] == count["known"]).all()
    assert {r.toward for r in study.directions} == {"context"}


def test_tables_sentences_and_figures_have_the_tasks_names(study, tmp_path) -> None:
    assert {"known", "context", "undecided"} <= set(study.sweep.test_table())
    report = (
        mm.write_report(study, tmp_path) if hasattr(mm, "write_report") else study.save(tmp_path)
    )
    page = report.read_text(encoding="utf-8")
    for name in ("known", "context"):
        assert f">{name}</" in page
    words = study.answer() + " ".join(study.notes())
    assert "memorized" not in words
    assert "generalized" not in words
    assert "generalized" not in study.figures()["margins"].to_json()
    assert "(nothing)" not in page  # by choice nothing is written, and nothing is shown


def test_a_study_of_conflicts_needs_both_behaviors() -> None:
    class Sure(Conflict):
        name = "sure"

        def decide(self, margin: float) -> str:
            return "known"

    lab = helpers.fresh_bench("gpt2")
    task = Sure(ROWS, {"said": "w1 {false} w2 {question}"})
    with pytest.raises(mm.PromptError, match=r"Only 0 pairs of opposite behavior can be made of"):
        mm.run_study(lab.model, task=task, n=60)
