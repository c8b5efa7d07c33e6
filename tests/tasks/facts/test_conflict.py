"""`conflict`: rows of every format, what is left out, wordings, and contrasts within a wording."""

from __future__ import annotations

import json
from dataclasses import replace

import helpers
import pandas as pd
import pytest

import mechmem as mm
from mechmem.tasks.facts.conflict import WORDINGS
from mechmem.tasks.facts.rows import read_facts, shipped_rows

OWN = {"subject": "France", "relation": "has the capital", "true": "Paris", "other": "Rome"}
COUNTERFACT = {
    "case_id": 0,
    "requested_rewrite": {
        "prompt": "The capital of {} is",
        "relation_id": "P36",
        "subject": "France",
        "target_true": {"str": "Paris", "id": "Q90"},
        "target_new": {"str": "Rome", "id": "Q220"},
    },
    "paraphrase_prompts": ["x"],
}
COMP_MECH = {
    "base_prompt": "The capital of France is",
    "template": "{}: The capital of France is{}. The capital of France is",
    "target_true": " Paris",
    "target_new": " Rome",
    "subject": "France",
}
JUICE = {
    "WORLD CAPITAL": [
        {
            "Subject": "France",
            "Answer": ["Paris", "City of Paris"],
            "Distracted Token": "Rome",
            "Clean Prompt": "The capital of France is",
            "Substitution Conflict": "The capital of France is Rome. The capital of France is",
        }
    ]
}


@pytest.mark.parametrize(
    ("row", "question"),
    [
        (OWN, "France has the capital"),
        ({**OWN, "relation": "", "template": "The capital of {} is"}, "The capital of France is"),
        (COUNTERFACT, "The capital of France is"),
        (COMP_MECH, "The capital of France is"),
        (JUICE, "The capital of France is"),
    ],
)
def test_every_format_gives_the_same_fact(row, question, tmp_path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row]), encoding="utf-8")
    for data in ([row], path, str(path)):
        (fact,), out = read_facts(data)
        assert (fact.subject, fact.question, fact.true, fact.other) == (
            "France", question, "Paris", "Rome",
        )  # fmt: skip
        assert not out
    task = mm.get_task("conflict", data=[row], wordings=list(WORDINGS))
    said = {p.meta["wording"]: p.text for p in task.prompts()}
    assert said["redefine"] == f"Redefine: {question} Rome. {question}"
    assert said["belief"] == f"Anna believes: {question} Rome. In truth, {question}"
    assert said["twice"] == f"{question} Rome. {question} Rome. {question}"
    assert task.alone()[0].text == question


def test_tables_are_read_like_rows(tmp_path) -> None:
    table = pd.DataFrame([OWN])
    table.to_csv(tmp_path / "rows.csv", index=False)
    assert read_facts(table)[0] == read_facts(tmp_path / "rows.csv")[0] == read_facts([OWN])[0]


def test_rows_whose_answer_can_be_copied_are_left_out_and_counted() -> None:
    rows = [
        OWN,
        OWN,
        {**OWN, "subject": "Google Maps", "true": "google"},
        {**OWN, "subject": "Rome FC"},
        {**OWN, "subject": "Spain", "other": "paris"},
    ]
    task = mm.get_task("conflict", data=rows)
    assert [fact.subject for fact in task.facts] == ["France"]
    assert dict(task.left_out) == {
        "asked before": 1,
        "the subject contains the true answer": 1,
        "the subject contains the other answer": 1,
        "both answers are the same": 1,
    }


def test_the_shipped_rows_can_all_be_asked() -> None:
    task = mm.get_task("conflict")
    assert len(task.facts) == len(shipped_rows()) > 500
    assert not task.left_out
    assert task.reading == "choice"
    assert task.outcomes == ("known", "context", "undecided")
    assert len(
        {p.id for p in mm.get_task("conflict", wordings=list(WORDINGS)).prompts()}
    ) == 6 * len(task.facts)


def test_the_question_ends_the_prompt_and_has_a_span() -> None:
    for prompt in mm.get_task("conflict", wordings=list(WORDINGS)).pairs(300, seed=1):
        start, end = prompt.spans["question"]
        assert prompt.text[start:] == prompt.text[start:end]
        assert prompt.group in prompt.text[start:end]


def test_only_what_the_model_knows_is_kept() -> None:
    rows = [{**OWN, "subject": name} for name in ("France", "Spain", "Peru")]
    task = mm.get_task("conflict", data=rows)
    asked = []

    def ask(prompts: mm.PromptSet) -> list[str]:
        asked.extend(prompts)
        return ["known", "context", "undecided"]

    ready = task.prepared(ask)
    assert [p.text for p in asked] == [f"{n} has the capital" for n in ("France", "Spain", "Peru")]
    assert [fact.subject for fact in ready.facts] == ["France"]
    assert ready.left_out == {"the model does not know it": 2}
    assert len(task.facts) == 3
    with pytest.raises(mm.PromptError, match="knows none of 3 facts"):
        task.prepared(lambda prompts: ["context"] * 3)


def test_a_contrast_takes_as_many_of_both_from_every_wording() -> None:
    task = mm.get_task("conflict", wordings=["redefine", "news"])
    prompts = task.pairs(60)
    told = mm.PromptSet(
        replace(p, behavior=("known", "context", "undecided")[(k * k + k // 7) % 3])
        for k, p in enumerate(prompts)
    )
    found = task.contrast(told)
    count = {
        (w, b): sum(p.meta["wording"] == w and p.behavior == b for p in found)
        for w in ("redefine", "news") for b in ("known", "context")
    }  # fmt: skip
    assert count["redefine", "known"] == count["redefine", "context"] > 5
    assert count["news", "known"] == count["news", "context"] > 5
    assert sum(count.values()) == len(found)
    assert {task.stratum(p) for p in found} == {"redefine", "news"}


def test_text_is_read_with_the_tasks_own_names() -> None:
    from mechmem.tasks.base import with_reading

    task = with_reading(mm.get_task("conflict", data=[OWN]), "text")
    prompt = task.prompts()[0]
    assert task.outcomes == ("known", "context", "other")
    assert [task.classify(prompt, text) for text in (" Paris.", " Rome", " Madrid")] == [
        "known", "context", "other",
    ]  # fmt: skip


class TestRefusals:
    @pytest.mark.parametrize(
        ("data", "words"),
        [
            ([{"subject": "France", "true": "a", "other": "b"}], r"Row 0 has no 'relation'"),
            ([{**OWN, "template": "no place"}], r"Row 0: a template has one \{\}"),
            ([{**OWN, "other": None}], r"Row 0 has no 'other'.*subject, relation or template"),
            ("facts.txt", r"Facts come as .*'\.json'.*not as 'facts.txt'"),
            ([], r"No fact can be asked: there is no row"),
            (["France"], r"A fact is a row with subject.*got 'France'"),
        ],
    )
    def test_rows_that_are_none(self, data, words) -> None:
        with pytest.raises(mm.PromptError, match=words):
            mm.get_task("conflict", data=data)

    def test_unknown_wordings(self) -> None:
        with pytest.raises(mm.TaskError, match=r"Unknown wordings 'shout'; there are 'redefine'"):
            mm.get_task("conflict", wordings=["shout"])
        with pytest.raises(mm.TaskError, match=r"Wording 'mine' must hold \{false\} and end"):
            mm.get_task("conflict", wordings={"mine": "{question}"})
        for text in ("{false} {name} {question}", "{0} {false} {question}", "{{false}} {question}"):
            with pytest.raises(mm.TaskError, match="must hold"):
                mm.get_task("conflict", wordings={"mine": text})
        with pytest.raises(mm.TaskError, match="No wordings are given"):
            mm.get_task("conflict", wordings={})
        with pytest.raises(mm.TaskError, match=r"Unknown wording 'news'; this task has 'redefine'"):
            mm.get_task("conflict").prompts("news")


def test_a_random_model_is_read_by_plain_log_probabilities() -> None:
    lab = helpers.bench("gpt2")
    rows = [
        {"subject": f"w{k}", "relation": f"w{k + 1} w3", "true": f"w{k + 5}", "other": f"w{k + 9}"}
        for k in range(10, 16)
    ]
    task = mm.get_task("conflict", data=rows, wordings={"said": "w1 {false} w2 {question}"})
    seen = mm.observe(lab.model, task.prompts(), task=task)
    for prompt, margin, outcome in zip(seen.prompts, seen.margins, seen.outcomes, strict=True):
        last = helpers.hf_logits(lab.hf, lab.ids(prompt.text))[-1].double().log_softmax(-1)
        one, two = lab.tokenizer.convert_tokens_to_ids([prompt.memorized, prompt.generalized])
        want = float(last[one] - last[two])
        helpers.close([margin], [want])
        assert outcome == ("known" if want > 0.1 else "context" if want < -0.1 else "undecided")
    assert len(set(seen.outcomes)) > 1
