"""A sweep shares, stores, resumes and deals out its cells, and its numbers do not show it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import bench, contrast_set

import mechmem as mm
from mechmem.digests import Digests
from mechmem.sweeps import cells as cells_module
from mechmem.sweeps.digests import setting_digest
from mechmem.sweeps.result import Sweep
from mechmem.sweeps.sweep import two_way_gain
from mechmem.tasks.base import PromptAnswers

HOUSE = """
import mechmem as mm

class House(mm.Task):
    def pairs(self, n, seed=0):
        raise NotImplementedError

    def classify(self, prompt, completion):
        return {outcome!r}

class Own(House):
    name = "own"
"""


class Words(mm.Task):
    """Looks at one word: early words count as memorized, a few as generalized."""

    name = "words"
    max_new_tokens = 1

    def pairs(self, n: int, seed: int = 0) -> mm.PromptSet:
        return contrast_set(n, seed)

    def classify(self, prompt: mm.Prompt, completion: str) -> str:
        number = completion.strip().removeprefix("w")
        if not number.isdigit():
            return "other"
        return "memorized" if int(number) < 20 else "generalized"


class LongWords(Words):
    """The same after three words."""

    max_new_tokens = 3

    def classify(self, prompt: mm.Prompt, completion: str) -> str:
        words = completion.split()
        return super().classify(prompt, words[-1]) if words else "other"


class Questions(Words):
    """Outcomes that are no classes."""

    outcomes = ("correct", "wrong", "unparsed")

    def classify(self, prompt: mm.Prompt, completion: str) -> str:
        kind = super().classify(prompt, completion)
        return {"memorized": "correct", "generalized": "wrong", "other": "unparsed"}[kind]


@dataclass(frozen=True)
class Setting:
    fitted: mm.PromptSet
    validation: mm.PromptSet
    test: mm.PromptSet
    directions: mm.Directions
    scores: mm.NeuronScores


@cache
def setting(by: str = "behavior", toward: str = "generalized") -> Setting:
    fitted, validation, test = (
        mm.PromptSet(
            replace(p, id=f"{name}{p.id}", group=f"{name}{p.group}")
            for p in contrast_set(n, seed=k)
        )
        for k, (name, n) in enumerate([("fit", 6), ("val", 4), ("test", 6)])
    )
    acts = mm.cache_activations(bench().model, fitted, sites="resid_post")
    directions = mm.difference_of_means(acts, by=by, toward=toward)
    return Setting(fitted, validation, test, directions, mm.neuron_mean_difference(acts))


def grid(made: Setting) -> dict[str, list[mm.Edit]]:
    return {
        "one direction": [
            mm.AddDirection(made.directions[site], alpha=alpha, positions=positions)
            for site in made.directions.sites
            for alpha in (0.5, 2.0)
            for positions in ("all", "last")
        ],
        "neurons": [mm.ShiftNeurons(made.scores, top=0.2, alpha=alpha) for alpha in (1.0, 3.0)],
    }


def swept(task: mm.Task | None = None, edits: object = None, **options: object) -> Sweep:
    made = setting()
    return mm.sweep(
        bench().model, edits or grid(made), task=task or Words(), validation=made.validation,
        test=made.test, draws=1, **options,
    )  # fmt: skip


def same(one: Sweep, other: Sweep) -> None:
    """To the bit, tables and completions."""
    for table in ("table", "test_table"):
        pd.testing.assert_frame_equal(
            getattr(one, table)(), getattr(other, table)(), check_exact=True
        )
    pd.testing.assert_frame_equal(one.checked, other.checked, check_exact=True)
    for a, b in zip(one.cells, other.cells, strict=True):
        for name, rates in a.rates.items():
            assert rates.after.completions == b.rates[name].after.completions


class TestTheNumbers:
    @pytest.mark.parametrize("task", [Words(), LongWords()], ids=lambda task: task.name)
    def test_equal_those_of_every_edit_evaluated_by_itself(self, task) -> None:
        made = setting()
        found = swept(task)
        start = mm.observe(bench().model, made.validation, task=task)
        for cell in found.cells:
            for name, rates in cell.rates.items():
                edit = replace(cell.edit, toward=name)
                alone = mm.evaluate(
                    bench().model, made.validation, task=task, edit=edit, before=start,
                    margins=False,
                )  # fmt: skip
                assert rates.after.completions == alone.after.completions
                assert rates.after.truncated == alone.after.truncated
            assert cell.score == pytest.approx(two_way_gain(cell.rates))
        by_itself = swept(task, reuse=False)
        pd.testing.assert_frame_equal(found.test_table(), by_itself.test_table())
        best = found.best
        assert len({rates.after.completions for rates in best.rates.values()}) == 2

    def test_a_sample_is_compared_with_fresh_runs_and_recorded(self) -> None:
        checked = swept().checked
        assert set(checked["part"]) == {"validation", "test"}
        assert (checked["part"] == "validation").sum() == cells_module.CHECKED_CELLS
        assert checked["difference"].between(0, 1e-4).all()
        assert {"family", "kind", "control", "edit", "alpha", "toward"} <= set(checked)

    @pytest.mark.parametrize("task", [Words(), LongWords()], ids=["one token", "text"])
    def test_cells_that_come_out_differently_are_an_error(self, task, monkeypatch) -> None:
        own = cells_module.last_logits
        monkeypatch.setattr(
            cells_module,
            "last_logits",
            lambda *args, **kw: own(*args, **kw) + torch.linspace(0, 1, 48),
        )
        with pytest.raises(mm.ModelError, match=r"differ by .* of their spread.*reuse=False"):
            swept(task)
        assert len(swept(task, reuse=False).checked) == 0

    def test_a_text_that_parts_where_there_is_no_tie_is_an_error(self, monkeypatch) -> None:
        own = mm.Model.complete

        def complete(self, prompts, *args, **options):
            done = own(self, prompts, *args, **options)
            return [
                replace(item, ids=[*item.ids[:-1], 7 + (item.ids[-1:] == [7])]) for item in done
            ]

        monkeypatch.setattr(mm.Model, "complete", complete)
        with pytest.raises(mm.ModelError, match="side by side"):
            swept(LongWords())

    def test_an_edit_that_never_acts_is_refused_and_not_stored(self, tmp_path) -> None:
        silent = mm.AddDirection(next(iter(setting().directions)), positions="generated")
        for _ in range(2):
            with pytest.raises(mm.EditError, match="never met one of its positions"):
                swept(edits=[silent], folder=tmp_path)
        assert not list(tmp_path.glob("cell-*.json"))


class TestClassesThatAreNoOutcomes:
    def test_an_own_objective_chooses_and_the_first_outcome_counts(self) -> None:
        made = setting("label", "reasoning")
        found = mm.sweep(
            bench().model,
            [mm.AddDirection(r, alpha=a) for r in made.directions for a in (1.0, 4.0)],
            task=Questions(), validation=made.validation, test=made.test, draws=1,
            toward=("reasoning", "memory"),
            objective=lambda rates: rates["reasoning"].change("correct").value,
        )  # fmt: skip
        assert found.best.goal("memory") == "correct"
        scores = [cell.rates["reasoning"].change("correct").value for cell in found.cells]
        assert found.cells[scores.index(max(scores))].edit == found.best.edit
        table = found.test_table()
        row = table[(table["kind"] == "edit") & (table["toward"] == "reasoning")].iloc[0]
        assert row["change"] == found.best.rates["reasoning"].change("correct").value
        beyond = found.best.beyond("memory", "random direction")
        assert beyond.n == len(made.test)
        assert {"correct", "wrong", "unparsed"} <= set(table)

    def test_another_outcome_can_be_named(self) -> None:
        made = setting("label", "reasoning")
        found = mm.sweep(
            bench().model, [mm.AddDirection(next(iter(made.directions)))], task=Questions(),
            validation=made.validation, test=made.test, draws=1, toward=("reasoning", "memory"),
            objective=lambda rates: 0.0, counts={"memory": "wrong"},
        )  # fmt: skip
        assert [found.best.goal(name) for name in ("reasoning", "memory")] == ["correct", "wrong"]

    def test_the_default_objective_says_what_to_pass(self) -> None:
        made = setting("label", "reasoning")
        options = {"task": Questions(), "validation": made.validation, "test": made.test}
        edits = [mm.AddDirection(next(iter(made.directions)))]
        with pytest.raises(mm.EditError, match=r"two_way_gain.*reasoning.*pass objective="):
            mm.sweep(bench().model, edits, toward=("reasoning", "memory"), **options)
        with pytest.raises(mm.EditError, match=r"counts=.*'right'"):
            mm.sweep(
                bench().model, edits, toward=("reasoning", "memory"), objective=lambda rates: 0.0,
                counts={"memory": "right"}, **options,
            )  # fmt: skip


class TestTheFolder:
    def test_a_second_call_runs_no_edit_and_gives_the_same(self, tmp_path, monkeypatch) -> None:
        first = swept(folder=tmp_path)
        same(first, swept())
        stored = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        monkeypatch.setattr(
            cells_module.Bench, "run", lambda *args: pytest.fail("a stored cell was run again")
        )
        same(first, swept(folder=tmp_path))
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == stored

    def test_any_missing_cell_is_made_again_with_the_same_bytes(self, tmp_path) -> None:
        first = swept(folder=tmp_path)
        stored = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        for path in sorted(tmp_path.iterdir())[::3]:
            path.unlink()
        same(first, swept(folder=tmp_path))
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == stored

    def test_other_edits_prompts_tasks_and_models_are_other_cells(self, tmp_path) -> None:
        made, model = setting(), bench().model
        edit = made.directions[made.directions.sites[0]]
        base = mm.AddDirection(edit, alpha=1.0)
        digests = Digests()
        seen = {
            digests.of(item)
            for item in (
                base,
                replace(base, alpha=2.0),
                replace(base, positions="last"),
                replace(base, toward="memorized"),
                replace(base, direction=replace(edit, vector=edit.vector * (1 + 1e-7))),
                mm.ProjectOut(edit),
            )
        }
        assert len(seen) == 6
        assert digests.of(base) == Digests().of(mm.AddDirection(edit, alpha=1.0))
        shorter = PromptAnswers("behavior")
        shorter.max_new_tokens = 2
        other = mm.PromptSet([replace(made.test[0], memorized="w9"), *list(made.test)[1:]])
        with mm.patched(model, base) as view:
            settings = [
                setting_digest(model, made.test, Words(), {}),
                setting_digest(model, made.test, LongWords(), {}),
                setting_digest(model, made.test, PromptAnswers("behavior"), {}),
                setting_digest(model, made.test, shorter, {}),
                setting_digest(model, made.test, None, {}),
                setting_digest(model, other, Words(), {}),
                setting_digest(model, made.test, Words(), {"seed": 1}),
                setting_digest(view, made.test, Words(), {}),
                setting_digest(bench("llama").model, made.test, Words(), {}),
            ]
        assert len(set(settings)) == len(settings)

    def test_an_inherited_reading_and_the_version_of_mechmem_count(
        self, tmp_path, monkeypatch
    ) -> None:
        def digest(outcome: str) -> str:
            """Of a task whose own class says nothing, with a base that reads in this way."""
            (tmp_path / outcome).mkdir(exist_ok=True)
            file = tmp_path / outcome / "house.py"
            file.write_text(HOUSE.format(outcome=outcome))
            spec = importlib.util.spec_from_file_location("house", file)
            module = importlib.util.module_from_spec(spec)
            monkeypatch.setitem(sys.modules, "house", module)
            spec.loader.exec_module(module)
            return setting_digest(bench().model, setting().test, module.Own(), {})

        first = digest("memorized")
        assert digest("memorized") == first
        assert digest("generalized") != first
        monkeypatch.setattr("mechmem.sweeps.digests.versions", lambda: {"mechmem": "another"})
        assert digest("memorized") != first

    def test_a_damaged_file_is_named(self, tmp_path) -> None:
        swept(folder=tmp_path)
        path = next(iter(sorted(tmp_path.iterdir())))
        for text in ("{", json.dumps({"kind": "sweep cell", "format": 1}), "[]"):
            path.write_text(text)
            with pytest.raises(mm.ArtifactError, match=rf"{path.name} cannot be read"):
                swept(folder=tmp_path)

    def test_an_edit_that_holds_code_cannot_be_stored_and_that_is_said(self, tmp_path) -> None:
        @dataclass(frozen=True)
        class Own(mm.AddDirection):
            how: object = None

        edit = Own(next(iter(setting().directions)), how=lambda h: h)
        with pytest.raises(mm.ArtifactError, match="leave folder= out"):
            swept(edits=[edit], folder=tmp_path)


class TestSeveralProcesses:
    def test_share_the_units_and_every_one_returns_the_whole(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(cells_module, "CELLS_TOGETHER", 4)
        whole = swept()
        ran: list[tuple[int, ...]] = []
        own = cells_module.Bench.run

        def run(self, which, watched=None):
            ran.append(tuple(which))
            if len(ran) == 2:
                raise KeyboardInterrupt  # killed after its first unit
            return own(self, which, watched)

        monkeypatch.setattr(cells_module.Bench, "run", run)
        with pytest.raises(KeyboardInterrupt):
            swept(folder=tmp_path, rank=1, world=3)
        assert len(list(tmp_path.glob("cell-*.json"))) == 4
        killed = list(ran)
        ran.extend([()] * 2)
        results = [swept(folder=tmp_path, rank=rank, world=3) for rank in (0, 1, 2)]
        for found in results:
            same(found, whole)
        mine = [unit for unit in ran if unit]
        assert mine[0] not in mine[2:]  # what was stored before the kill is not run again
        assert killed[0] != mine[2]  # rank 0 begins elsewhere

    def test_ranks_come_from_the_environment_and_need_a_folder(self, monkeypatch) -> None:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(mm.ArtifactError, match=r"WORLD_SIZE=2.*pass folder="):
            swept()
        with pytest.raises(mm.ArtifactError, match="pass folder="):
            mm.run_study(bench().model, task=Words())
        monkeypatch.setenv("RANK", "2")
        with pytest.raises(mm.ModelError, match="ranks run from 0"):
            swept()


CHILD = """
import sys
sys.path[:0] = {path!r}
import time
from sweeps import test_sweep
from mechmem.sweeps import cells
cells.CELLS_TOGETHER = 4
own = cells.Bench.run
def slow(self, which, watched=None):
    out = own(self, which, watched)
    print("unit", flush=True)
    time.sleep(0.2)
    return out
cells.Bench.run = slow
test_sweep.swept(folder={folder!r})
"""


def test_a_sweep_killed_in_the_middle_goes_on_with_the_same_result(tmp_path, monkeypatch) -> None:
    code = CHILD.format(path=[str(Path(__file__).parents[1])], folder=str(tmp_path))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert child.stdout is not None
    units = 0
    for line in child.stdout:
        units += line == "unit\n"
        if units == 3:
            time.sleep(0.05)
            child.send_signal(signal.SIGKILL)
            break
    child.wait()
    child.stdout.close()
    assert child.returncode == -signal.SIGKILL
    before: Sequence[Path] = sorted(tmp_path.glob("cell-*.json"))
    assert 8 <= len(before) < 40
    times = {path: path.stat().st_mtime_ns for path in before}
    monkeypatch.setattr(cells_module, "CELLS_TOGETHER", 4)
    same(swept(folder=tmp_path), swept())
    kept = [path for path in before if path.stat().st_mtime_ns == times[path]]
    assert len(kept) >= 8


class TestRefits:
    """A refit goes through the whole sweep: its numbers are those of a sweep of its own."""

    def test_equals_a_sweep_of_its_own_grid(self) -> None:
        made = setting()
        other = {
            "neurons": [mm.ShiftNeurons(made.scores, top=0.5, alpha=a) for a in (0.5, 2.0)],
            "directions": [
                mm.AddDirection(made.directions["resid_post", 0], alpha=a) for a in (0.5, 3.0)
            ],
        }
        refine = {"neurons": (0.5, 2.0)}
        both = swept(refits=[other, {}], refine=refine)
        for found, alone in (
            (both.tested, swept(refine=refine)),
            (both.refits[0], swept(edits=other, refine=refine)),
        ):
            assert [item.family for item in found] == [item.family for item in alone.tested]
            for mine, theirs in zip(found, alone.tested, strict=True):
                assert mine.edit.describe() == theirs.edit.describe()
                for name, rates in mine.rates.items():
                    assert rates.after.completions == theirs.rates[name].after.completions
        assert both.refits[1] == []
        lacking = swept(refits=[{**other, "neurons": []}, {"neurons": []}], refine=refine)
        assert [item.family for item in lacking.refits[0]] == ["directions"]
        assert lacking.refits[1] == []
        with pytest.raises(mm.EditError, match="'neurons' hold no edit"):
            swept(edits={**other, "neurons": []})
        assert not any(item.controls[name] for item in both.refits[0] for name in item.rates)
        assert len(both.cells) == len(swept(refine=refine).cells)

    def test_the_strength_is_refined_around_the_best_of_the_family(self) -> None:
        plain, found = swept(), swept(refine={"neurons": (0.5, 2.0)})
        best = max(
            (cell for cell in plain.cells if cell.family == "neurons"), key=lambda cell: cell.score
        )
        extra = [cell.edit for cell in found.cells[len(plain.cells) :]]
        assert [edit.alpha for edit in extra] == [best.edit.alpha * 0.5, best.edit.alpha * 2.0]
        assert {edit.top for edit in extra} == {best.edit.top}

    def test_an_edit_without_a_strength_cannot_be_refined(self) -> None:
        made = setting()
        edits = {"set": [mm.SetProjection(made.directions["resid_post", 0])]}
        with pytest.raises(mm.EditError, match="SetProjection has none"):
            swept(edits=edits, refine={"set": (0.5,)})
