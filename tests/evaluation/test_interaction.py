from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import close
from question_scene import hand_margins, scene

import mechmem as mm
from mechmem.evaluation.controls import draws_of_one

FIRST, LAST = mm.Site("resid_post", 0), mm.Site("resid_post", 1)


@pytest.fixture(scope="module")
def here():
    return scene()


@pytest.fixture(scope="module")
def edit(here):
    return mm.ShiftNeurons(here.scores, top=6, alpha=2.0, scope="site", positions="last")


class TestSplitting:
    def test_parts_add_up_to_the_whole_shift(self, here, edit) -> None:
        parts = mm.evaluation.split_shift(edit, here.lab.model)
        whole = edit.shift(here.lab.model)
        assert len(parts) == sum(int((value != 0).sum()) for value in whole.values())
        for site, value in whole.items():
            total = sum(p.shift(here.lab.model).get(site, torch.zeros(())) for p in parts.values())
            close(total, value)
        assert all(
            sum(int((v != 0).sum()) for v in part.shift(here.lab.model).values()) == 1
            for part in parts.values()
        )

    def test_a_part_that_is_not_shifted_is_refused(self, here, edit) -> None:
        quiet = set(range(16)) - set(edit.neurons(here.lab.model).index[FIRST].tolist())
        with pytest.raises(mm.EditError, match=r"Part 'odd' has 'resid_post\[0\]\[\d+\]'"):
            mm.evaluation.split_shift(edit, here.lab.model, {"odd": {FIRST: [min(quiet)]}})
        with pytest.raises(mm.EditError, match=r"Part 'none' is empty"):
            mm.evaluation.split_shift(edit, here.lab.model, {"none": {FIRST: []}})


class TestInteraction:
    def test_nothing_to_exchange_is_refused(self, here) -> None:
        one = mm.ShiftNeurons(here.scores, top=1, alpha=2.0, scope="site", positions="last")
        with pytest.raises(mm.EditError, match=r"one shift value per site and position"):
            mm.evaluation.interaction(here.lab.model, one, here.test)

    def test_effects_are_those_of_plain_transformers(self, here, edit) -> None:
        index = edit.neurons(here.lab.model).index
        parts = {"early": {FIRST: index[FIRST].tolist()}, "late": {LAST: index[LAST].tolist()}}
        got = mm.evaluation.interaction(here.lab.model, edit, here.test, parts=parts, draws=2)
        before = hand_margins(here, here.test)
        for toward, sign in (("memorized", 1), ("generalized", -1)):
            shift = replace(edit, toward=toward).shift(here.lab.model)
            moved = {
                name: sign * (hand_margins(here, here.test, dict(chosen)) - before)
                for name, chosen in {
                    "early": {FIRST: shift[FIRST]},
                    "late": {LAST: shift[LAST]},
                    "joint": shift,
                }.items()
            }
            moved["sum of parts"] = moved["early"] + moved["late"]
            moved["interaction"] = moved["joint"] - moved["sum of parts"]
            assert abs(moved["interaction"]).max() > 1e-3
            found = got.effects[toward]["edit"]
            close([found[name].value for name in moved], [v.mean() for v in moved.values()], 1e-4)
            assert got.score(toward) == found["interaction"]
        assert got.sizes == {"early": 6, "late": 6}

    def test_parts_of_the_last_layer_hardly_interact(self, here) -> None:
        # After the last block come only a norm and a linear map: small shifts there add up, but
        # shifts that must pass a block together do not.
        tiny = mm.ShiftNeurons(here.scores, top=4, alpha=0.01, at=LAST, positions="last")
        got = mm.evaluation.interaction(
            here.lab.model, tiny, here.test, toward=["memorized"], draws=2
        )
        effects = got.effects["memorized"]["edit"]
        assert abs(effects["interaction"].value) < 0.02 * abs(effects["joint"].value)

    def test_the_control_exchanges_the_values_on_the_same_neurons(self, here, edit) -> None:
        got = mm.evaluation.interaction(
            here.lab.model, edit, here.test, toward=["memorized"], draws=5
        )
        kinds = got.effects["memorized"]
        assert list(kinds) == ["edit", "permuted"]
        assert list(kinds["edit"]) == list(kinds["permuted"])
        assert kinds["permuted"]["joint"].value != kinds["edit"]["joint"].value
        _, draws = draws_of_one(
            replace(edit, toward="memorized"), here.lab.model, draws=5, name="permuted"
        )
        before = hand_margins(here, here.test)
        joint = [(hand_margins(here, here.test, one.shift(here.lab.model)) - before).mean()
                 for one in draws]  # fmt: skip
        found = got.beyond["memorized"]["joint"]
        close(kinds["permuted"]["joint"].value, np.mean(joint), 1e-4)
        close(found.value, kinds["edit"]["joint"].value - np.mean(joint), 1e-4)
        close(found.spread, np.std(joint, ddof=1), 1e-4)
        assert found.draws == len(draws) == 5
        assert found.rank == 1 + sum(value >= kinds["edit"]["joint"].value for value in joint)
        close(found.size, found.control_size, 1e-4)  # the same values on the same neurons
        table = got.table()
        assert set(zip(table["kind"], table["control"], strict=True)) == {
            ("edit", ""),
            ("control", "permuted"),
        }
        assert (table.loc[table["part"] == "joint", "neurons"] == 12).all()

    def test_seen_prompts_and_shared_neurons_are_refused(self, here, edit) -> None:
        with pytest.raises(mm.LeakageError, match=r"Cannot measure an interaction"):
            mm.evaluation.interaction(here.lab.model, edit, here.fit)
        first = edit.neurons(here.lab.model).index[FIRST].tolist()
        parts = {"a": {FIRST: first[:2]}, "b": {FIRST: first[1:3]}}
        with pytest.raises(mm.EditError, match=r"share a neuron"):
            mm.evaluation.interaction(here.lab.model, edit, here.test, parts=parts)
        with pytest.raises(mm.MechmemError, match=r"toward='odd' is not a behavior"):
            mm.evaluation.interaction(here.lab.model, edit, here.test, toward=["odd"])
        got = mm.evaluation.interaction(here.lab.model, edit, here.fit, allow_seen=True, draws=2)
        assert np.isfinite(got.score("memorized").value)
