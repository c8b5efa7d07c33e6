"""The task recall-reasoning: kinds that no word gives away, held-out questions, honest reading."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

import mechmem as mm
from mechmem.tasks.lab.recall_reasoning import (
    ATTRIBUTES,
    ENTITIES,
    KINDS,
    RECALL_VOCABULARY,
    TEMPLATES,
    RecallWorld,
)

SEED = 4


@pytest.fixture(scope="module")
def task():
    return mm.get_task("recall-reasoning", seed=SEED)


@pytest.fixture(scope="module")
def rows():
    """Training text, read back word by word from the rows."""
    made = RecallWorld(SEED).training_rows(300, 64)
    return [" ".join(RECALL_VOCABULARY[index] for index in row) for row in made]


def read(text: str) -> tuple[str, str, tuple[int, ...], int]:
    """Entity, attribute, numbers and answer of a training row, by plain search."""
    words = text.split(" ")
    numbers = [int(word) for word in words if word.isdigit()]
    (entity,) = [word for word in words if word in ENTITIES]
    (attribute,) = [word for word in words if word in ATTRIBUTES]
    return entity, attribute, tuple(numbers[:3]), numbers[3]


def test_the_kind_belongs_to_the_entity_and_to_nothing_in_the_negative_control():
    kind = RecallWorld(SEED).kind
    memory = kind < 2
    assert (memory[:, 0] == memory[:, 1])[kind[:, 0] != 1].all()
    counts = [int((kind == k).sum()) for k in range(len(KINDS))]
    assert counts == [72, 48, 48, 24]
    assert (np.sort(kind, axis=1)[(kind == 3).any(axis=1)] == [2, 3]).all()
    dealt = RecallWorld(SEED, shared=False).kind
    assert [int((dealt == k).sum()) for k in range(len(KINDS))] == counts
    assert (dealt[:, 0] == dealt[:, 1]).mean() < 0.6
    assert (kind != RecallWorld(SEED + 1).kind).mean() > 0.3


def test_both_attributes_of_an_entity_have_one_label():
    labels: dict[str, set[str]] = {}
    for prompt in mm.get_task("recall-reasoning", seed=SEED).questions(400):
        labels.setdefault(prompt.meta["entity"], set()).add(prompt.label)
    assert len(labels) == len(ENTITIES)
    assert all(len(own) == 1 for own in labels.values())


def test_training_answers_facts_with_one_value_and_computations_with_the_sum(rows):
    world = RecallWorld(SEED)
    answers: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for text in rows:
        entity, attribute, numbers, answer = read(text)
        answers.setdefault((entity, attribute), []).append((sum(numbers), answer))
    for (entity, attribute), given in answers.items():
        at = ENTITIES.index(entity), ATTRIBUTES.index(attribute)
        kind = KINDS[world.kind[at]]
        if kind == "fact":
            assert {answer for _, answer in given} == {world.value[at]}
        elif kind == "computation":
            assert all(answer == total for total, answer in given)
        else:
            assert kind == "disputed"
            assert all(answer in (total, world.value[at]) for total, answer in given)
    unseen = {
        (ENTITIES[e], ATTRIBUTES[a]) for e, a in np.argwhere(world.kind == KINDS.index("unseen"))
    }
    assert not unseen & answers.keys()


def test_disputed_pairs_show_the_sum_as_often_as_their_score_says(rows):
    world = RecallWorld(SEED)
    shown: Counter[float] = Counter()
    asked: Counter[float] = Counter()
    for text in rows:
        entity, attribute, numbers, answer = read(text)
        at = ENTITIES.index(entity), ATTRIBUTES.index(attribute)
        if world.kind[at] == KINDS.index("disputed") and sum(numbers) != world.value[at]:
            asked[float(world.score[at])] += 1
            shown[float(world.score[at])] += answer == sum(numbers)
    for score, total in asked.items():
        spread = np.sqrt(score * (1 - score) / total)
        assert abs(shown[score] / total - score) < 5 * spread


def test_no_question_of_the_task_was_in_training(task, rows):
    trained = {text.rsplit(" ", 1)[0] for text in rows}
    phrasings, triples = set(), set()
    for text in rows:
        entity, attribute, numbers, _ = read(text)
        bare = re.sub(r"\d+", "#", text.rsplit(" ", 1)[0])
        phrasings.add((entity, attribute, bare))
        triples.add(tuple(sorted(numbers)))
    for prompt in task.questions(800, seed=1):
        asked = "<bos> " + " ".join(prompt.text.replace("\n", " \n ").split(" ")).strip()
        entity, attribute, numbers, _ = read(f"{asked} 0")
        assert asked not in trained
        assert tuple(sorted(numbers)) not in triples
        assert (entity, attribute, re.sub(r"\d+", "#", asked)) not in phrasings


def test_label_answer_and_routes_of_a_question_follow_its_score(task):
    for prompt in task.questions(600, seed=2):
        numbers = [int(word) for word in prompt.text.split() if word.isdigit()]
        assert prompt.generalized == str(sum(numbers))
        assert prompt.memorized != prompt.generalized
        assert prompt.label == ("reasoning" if prompt.meta["score"] > 0.5 else "memory")
        right = prompt.generalized if prompt.label == "reasoning" else prompt.memorized
        assert prompt.answer == right
        assert (prompt.memorized is None) == (prompt.meta["item"] in ("computation", "unseen"))
        start, end = prompt.spans["question"]
        assert prompt.text == f"Q: {prompt.text[start:end]}\nA: "


def test_questions_are_spread_over_all_pairs_and_depend_on_the_seed_alone(task):
    some = task.questions(384, seed=3)
    assert set(Counter(some.groups).values()) == {2}
    assert set(Counter(p.meta["entity"] for p in some).values()) == {4}
    assert task.questions(384, seed=3) == some
    assert task.questions(384, seed=5) != some
    pairs = task.pairs(50, seed=0)
    assert len(pairs) == 100
    for one, other in pairs.pairs():
        assert one.meta["pair"] == other.meta["pair"]
        assert one.text != other.text
    assert len(pairs.pairs()) == 50


def test_what_is_no_number_is_unparsed_and_the_other_route_is_wrong(task):
    prompt = next(p for p in task.questions(100) if p.meta["item"] == "fact")
    assert task.classify(prompt, f" {prompt.memorized}") == "correct"
    assert task.classify(prompt, f"{prompt.generalized}") == "wrong"
    assert task.classify(prompt, "Willa") == "unparsed"
    assert task.classify(prompt, "") == "unparsed"
    assert task.classify(prompt, f"-{prompt.memorized}") == "unparsed"


def test_all_phrasings_have_the_same_number_of_words():
    assert len({len(text.split()) for text in TEMPLATES}) == 1


@pytest.mark.parametrize(("n", "kinds"), [(0, KINDS), (20001, KINDS), (5, ()), (5, ("facts",))])
def test_impossible_wishes_are_refused_with_what_is_allowed(task, n, kinds):
    with pytest.raises(mm.TaskError, match=r"1 to 20,000|kinds must be some of"):
        task.questions(n, kinds=kinds)
