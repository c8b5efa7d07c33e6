"""What runs on the real model runs on a folder of any causal model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from models import zoo

import mechmem as mm
from mechmem.evaluation import recitation
from mechmem.studies.behavior.plan import ADD, Plan

PLAN = Plan(layers=1, families=(ADD,), draws=1, validation=30, test=40)


@pytest.fixture(scope="module", params=["gemma2", "qwen2", "gpt2"])
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    zoo.build(request.param).save_pretrained(place)
    zoo.tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def words() -> list[str]:
    return sorted(word for word in zoo.tokenizer().get_vocab() if word.isdigit())


def test_a_csv_of_two_wordings_ends_in_a_report_by_choice_and_in_advice_by_text(
    folder, words, tmp_path
) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for k in range(400):
        about, more, one, two = rng.choice(words, 4, replace=False)
        for wording in ("3 {} 7 1", "9 {} 2 5 8"):
            rows.append({"text": wording.format(f"{about} {more}"), "group": f"g{k}",
                         "memorized": one, "generalized": two})  # fmt: skip
    file = tmp_path / "capitals.csv"
    pd.DataFrame(rows).drop_duplicates("text").to_csv(file, index=False)
    model, prompts = mm.load_model(str(folder)), mm.PromptSet.from_csv(file)
    with pytest.raises(
        (mm.PromptError, mm.MechmemWarning), match=r"Use reading='choice'|Word the prompts"
    ):
        mm.run_study(model, prompts=prompts, plan=PLAN, shuffles=0)
    study = mm.run_study(model, prompts=prompts, reading="choice", plan=PLAN, shuffles=0, doses=())
    assert mm.write_report(study, tmp_path / "report").is_file()
    assert study.verdict.sentence.startswith("Nothing was tested")


def test_facts_and_passages(folder, words, tmp_path) -> None:
    rng = np.random.default_rng(1)
    facts = []
    for _ in range(1800):
        one, two, relation, true, other = rng.choice(words, 5, replace=False)
        facts.append({"subject": f"{one} {two}", "relation": relation, "true": true,
                      "other": other})  # fmt: skip
    model = mm.load_model(str(folder))
    said = {"said": f"{words[0]} {{false}} {{question}}"}
    task = mm.get_task("conflict", data=facts, wordings=said)
    study = mm.run_study(model, task=task, n=1800, plan=PLAN, shuffles=1, doses=())
    assert mm.write_report(study, tmp_path).is_file()
    assert {cell.family for cell in study.sweep.cells} == {ADD}
    texts = mm.PromptSet([mm.Prompt(id="a", text=" ".join(words[:4]), answer=" ".join(words[4:6]))])
    assert 0 <= recitation(model, texts).share().value <= 1
