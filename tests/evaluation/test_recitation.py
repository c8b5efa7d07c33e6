"""What is recited, by plain transformers: greedy texts, losses, and sets of like texts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
import torch
from helpers import bench, close, hf_greedy

import mechmem as mm
from mechmem.evaluation.graded import similarity
from mechmem.evaluation.recitation import recitation
from mechmem.tasks.facts.passages import shipped_passages


@pytest.fixture(scope="module")
def lab():
    return bench("llama")


@pytest.fixture(scope="module")
def texts(lab) -> mm.PromptSet:
    """Half of them go on as the model does, some of those with a last word of their own."""
    out = []
    for k in range(24):
        start = " ".join(f"w{(7 * k + 3 * j) % 40}" for j in range(3 + k % 4))
        ids = lab.ids(start)
        own = lab.tokenizer.decode(hf_greedy(lab.hf, ids, 4)).split()
        more = own if k % 2 and len(own) == 4 else [f"w{(k + j) % 40}" for j in range(4)]
        more = [*more[:-1], "w3"] if k % 6 == 5 else more
        out.append(mm.Prompt(id=f"t{k}", text=start, answer=" ".join(more), meta={"odd": k % 2}))
    return mm.PromptSet(out)


@pytest.fixture(scope="module")
def found(lab, texts):
    return recitation(lab.model, texts)


def test_every_number_is_that_of_a_plain_pass(lab, texts, found) -> None:
    rows = found.rows.set_index("id")
    for prompt in texts:
        ids = lab.ids(f"{prompt.text} {prompt.answer}")
        before = len(lab.ids(prompt.text))
        with torch.no_grad():
            every = lab.hf(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        logps = np.array([float(every[k, ids[k + 1]]) for k in range(len(ids) - 1)])
        rest = list(ids[before:])
        wrote = hf_greedy(lab.hf, ids[:before], len(rest))
        needed = next(
            k
            for k in range(1, len(ids) + 1)
            if hf_greedy(lab.hf, ids[:k], len(ids) - k) == list(ids[k:])
        )
        row = rows.loc[prompt.id]
        assert row["exact"] == (wrote == rest)
        assert row["strength"] == pytest.approx(1 - needed / len(ids))
        close(row["loss"], -logps[before - 1 :].mean(), 1e-4)
        close(row["prefix_loss"], -logps[: before - 1].mean(), 1e-4)
        close(row["min_k"], np.sort(logps)[: max(1, int(0.2 * len(logps)))].mean(), 1e-4)
        text = lab.tokenizer.decode(wrote)
        assert row["similarity"] == pytest.approx(similarity(text, prompt.answer))
        assert (row["tokens"], row["prefix_tokens"]) == (len(ids), before)


def test_shares_are_counted_over_the_texts_asked_for(texts, found) -> None:
    exact = found.rows["exact"]
    assert 0 < exact.sum() < len(texts)
    assert found.share().value == pytest.approx(exact.mean())
    odd = [k % 2 == 1 for k in range(len(texts))]
    assert found.share("exact", odd=1).value == pytest.approx(exact[odd].mean())
    assert found.share("loose").value >= found.share().value
    with pytest.raises(mm.PromptError, match=r"No text with"):
        found.share(odd=7)


@pytest.mark.parametrize(
    ("match", "column"), [("loss", "prefix_loss"), ("length", "prefix_tokens")]
)
def test_a_labeled_set_has_partners_of_like_loss_or_length(found, match, column) -> None:
    rows = found.rows.set_index("id")
    chosen = found.labeled(match)
    by = {kind: [p.id for p in chosen if p.behavior == kind] for kind in ("recited", "not recited")}
    assert len(by["recited"]) == len(by["not recited"]) > 2
    assert rows.loc[by["recited"], "exact"].all()
    assert not rows.loc[by["not recited"], "exact"].any()
    values = found.rows[column]
    means = [values[rows.index.isin(ids)].mean() for ids in by.values()]
    assert abs(means[0] - means[1]) <= 0.25 * values.std(ddof=0)
    with pytest.raises(mm.PromptError, match=r"'loss', 'length'"):
        found.labeled("color")


def test_a_beginning_of_one_token_has_no_loss_and_no_partner(found) -> None:
    rows = found.rows.copy()
    rows.loc[0, "prefix_loss"] = float("nan")
    chosen = replace(found, rows=rows).labeled()
    assert len(chosen) > 4
    assert rows.loc[0, "id"] not in chosen.ids


def test_what_cannot_be_recited_is_refused(lab, found) -> None:
    with pytest.raises(mm.PromptError, match=r"No continuation in `answer` of 'x'"):
        recitation(lab.model, mm.PromptSet([mm.Prompt(id="x", text="w1 w2")]))


def test_the_shipped_texts_go_on_and_have_their_licences() -> None:
    every = shipped_passages()
    kinds = Counter(p.meta["kind"] for p in every)
    assert set(kinds) == {"licence", "passage", "proverb"}
    assert len(shipped_passages("proverb")) == kinds["proverb"] >= 50
    assert all(p.answer and not p.text.endswith(p.answer) for p in every)
    folder = resources.files("mechmem.tasks.facts") / "data"
    told = (folder / "recall.licence.txt").read_text(encoding="utf-8")
    assert "MIT License" in told
    assert "public domain" in told
    assert sum(len(item.read_bytes()) for item in folder.iterdir()) < 250_000
