"""A sweep by choice: outcomes from log-probabilities, stored and read back like any other."""

from __future__ import annotations

from helpers import bench, close, contrast_set

import mechmem as mm


def test_a_sweep_by_choice_is_recounted_stored_and_gone_on_with(tmp_path) -> None:
    model = bench("llama").model
    fitting = contrast_set(12, seed=3)
    acts = mm.cache_activations(model, fitting)
    r = mm.difference_of_means(acts, toward="generalized")
    edits = {"a": [mm.AddDirection(r["resid_post", 0], alpha=alpha) for alpha in (2.0, 8.0)]}
    parts = {"validation": contrast_set(8, seed=50), "test": contrast_set(8, seed=90)}
    parts = {
        name: mm.PromptSet(
            mm.Prompt(id=f"{name}{p.id}", text=p.text, group=f"{name}{p.group}",
                      memorized="w2 w7", generalized="w3")
            for p in part
        )
        for name, part in parts.items()
    }  # fmt: skip
    first = mm.sweep(model, edits, reading="choice", draws=1, folder=tmp_path, **parts)
    again = mm.sweep(model, edits, reading="choice", draws=1, folder=tmp_path, **parts)
    assert first.test_table().equals(again.test_table())
    assert "undecided" in first.table()
    assert first.before.reading == again.best.rates["memorized"].after.reading == "choice"
    for toward, rates in first.best.rates.items():
        edit = mm.AddDirection(
            first.best.edit.direction, alpha=first.best.edit.alpha, toward=toward
        )
        alone = mm.evaluate(model, parts["test"], edit=edit, reading="choice", allow_seen=True)
        close(alone.after.margins, rates.after.margins, 1e-4)
    written = mm.sweep(model, edits, draws=1, folder=tmp_path, **parts)
    assert written.before.reading == "text"
    assert "other" in written.table()
