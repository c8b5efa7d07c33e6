"""Facts and one-step problems pushed along a direction: margins by hand, refits, one look."""

from __future__ import annotations

from collections import Counter
from importlib import resources

import helpers
import numpy as np
import pytest
from test_question_reading import made

import mechmem as mm
from mechmem.studies.reasoning.margins import turn_margins
from mechmem.tasks.questions.right_wrong import right_and_wrong

ITEMS = mm.PromptSet(
    mm.Prompt(
        id=f"i{k}",
        text=" ".join(f"w{(3 * k + j) % 40}" for j in range(3 + k % 3)),
        memorized=f"w{k % 7}",
        generalized=f"w{7 + k % 5}",
        label=("reasoning", "memory")[k % 2],
    )
    for k in range(40)
)


@pytest.fixture(scope="module")
def lab():
    return helpers.bench("gpt2")


@pytest.fixture(scope="module")
def found(lab):
    return mm.read_labels(lab.model, questions=made("q", 80, 1), others={}, turn=ITEMS, shuffles=3)


def plain_margins(lab, prompts, layer=None, shift=None) -> np.ndarray:
    """In plain transformers, with a vector added to the last token's state of one block."""
    out = []
    for prompt in prompts:
        ids, hand = lab.ids(prompt.text), {}
        if shift is not None:
            last = len(ids) - 1
            added = helpers.at_positions(lambda h: h + shift, lambda at, last=last: at == last)
            hand = {("resid_post", layer): [added]}
        last = helpers.hf_logits(lab.hf, ids, hand)[-1].double()
        one, two = lab.tokenizer.convert_tokens_to_ids([prompt.memorized, prompt.generalized])
        out.append(float(last[one] - last[two]))
    return np.array(out)


def test_the_effect_is_the_mean_change_of_the_margin_by_hand(lab, found) -> None:
    verdict, rows = found.verdict, found.turning.questions.set_index("label")
    assert verdict.shuffles == 3
    assert rows["n"].tolist() == [12, 12]
    changes = {}
    for label, sign in {"reasoning": 1, "memory": -1}.items():
        mine = ITEMS.filter(lambda p, label=label: p.label == label)
        plain = plain_margins(lab, mine)
        changes[label] = {
            (r.site.layer, alpha): plain_margins(
                lab, mine, r.site.layer, sign * alpha * r.vector.reshape(-1).float()
            ) - plain
            for r in found.directions if r.site.stream == "resid_post" and r.norm
            for alpha in (1.0, 2.0)
        }  # fmt: skip
        ids = ids_of_test(label)
        at = [k for k, p in enumerate(mine) if p.id in ids]
        assert rows.loc[label, "margin"] == pytest.approx(plain[at].mean(), abs=1e-4)
        assert rows.loc[label, "right"] == pytest.approx((plain[at] > 0).mean())
        changes[label] = {
            key: (np.delete(v, at).mean(), v[at].mean()) for key, v in changes[label].items()
        }
    best = max(
        changes["memory"],
        key=lambda key: (
            round(np.mean([changes[label][key][0] for label in changes]), 6), -key[1]
        ),
    )  # fmt: skip
    for label, each in changes.items():
        assert rows.loc[label, "change"] == pytest.approx(each[best][1], abs=1e-4)
        assert verdict.effects[verdict.chosen][label] == rows.loc[label, "change"]


def ids_of_test(label: str = "memory") -> set[str]:
    from mechmem.studies.reasoning.margins import _parts

    parts = _parts(ITEMS, 0)
    assert not set(parts["test"].ids) & set(parts["validation"].ids)
    assert len(parts["test"]) + len(parts["validation"]) == len(ITEMS)
    return {p.id for p in parts["test"] if p.label == label}


def test_the_page_shows_it_and_its_refits(found, tmp_path) -> None:
    page = mm.write_report(found, tmp_path).read_text(encoding="utf-8")
    assert found.verdict.sentence.replace("'", "&#39;") in page
    assert "hundredths of a nat" in page
    assert "othing was edited" not in page
    assert (tmp_path / "tables" / "refits.csv").is_file()


def test_items_need_both_labels_and_both_answers(lab, found) -> None:
    acts = mm.cache_activations(lab.model, made("q", 80, 1), sites="resid_post")
    for bad in (ITEMS.filter(lambda p: p.label == "memory"), made("z", 8, 3)):
        with pytest.raises(mm.PromptError, match=r"items of both labels"):
            turn_margins(lab.model, acts, bad)
    one = next(p for p in ITEMS if p.label == "memory")
    few = ITEMS.filter(lambda p: p.label == "reasoning" or p.group == one.group)
    with pytest.raises(mm.PromptError, match=r"two groups at least; there are .*'memory': 1"):
        turn_margins(lab.model, acts, few)


def test_the_shipped_ones_have_one_right_and_one_wrong_answer_of_a_kind() -> None:
    items = right_and_wrong(60)
    assert items.ids == right_and_wrong(60).ids != right_and_wrong(60, seed=1).ids
    assert Counter(p.label for p in items) == {"reasoning": 60, "memory": 60}
    for p in items:
        assert p.memorized == p.answer != p.generalized
        assert p.text.startswith("Q: ")
        if p.label == "reasoning":
            a, sign, b = p.group.split()
            by_hand = {"+": int(a) + int(b), "-": int(a) - int(b), "x": int(a) * int(b),
                       ":": int(a) // int(b)}[sign]  # fmt: skip
            assert int(p.memorized) == by_hand
            assert 1 <= abs(int(p.generalized) - by_hand) <= 3
            assert int(p.generalized) > 0
            assert a in p.text
    facts = [p for p in right_and_wrong(140) if p.label == "memory"]
    kinds = {k: {p.memorized for p in facts if p.meta["category"] == k} for k in
             {p.meta["category"] for p in facts}}  # fmt: skip
    assert all(p.generalized in kinds[p.meta["category"]] for p in facts)
    folder = resources.files("mechmem.tasks.questions") / "data"
    assert "MIT License" in (folder / "lre_facts.licence.txt").read_text(encoding="utf-8")


def test_more_questions_than_there_are_cannot_be_had() -> None:
    for n in (0, 141, 257):
        with pytest.raises(mm.TaskError, match=f"140 questions of each kind, so n={n} cannot"):
            right_and_wrong(n)
