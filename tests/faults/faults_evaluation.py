"""Evaluation, sweeps, studies and tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fault_scene import Fault, Scene, other_model

import mechmem as mm
from mechmem.evaluation import Rates


class Word(mm.Task):
    """Reads whether anything came; a test overrides what it needs."""

    name = "word"
    max_new_tokens = 1

    def pairs(self, n: int, seed: int = 0) -> mm.PromptSet:
        raise AssertionError

    def classify(self, prompt: mm.Prompt, completion: str) -> str:
        return "other"


class Failing(Word):
    def classify(self, prompt: mm.Prompt, completion: str) -> str:
        raise ZeroDivisionError("in the user's classifier")


class Inventing(Word):
    def classify(self, prompt: mm.Prompt, completion: str) -> str:
        return "memorised"


def many(group: Callable[[int, int], str]) -> mm.PromptSet:
    """Thirty pairs; the first two have the same texts when their groups say so."""
    same = group is twice_same
    return mm.PromptSet(
        mm.Prompt(
            id=f"{k}-{j}",
            text=f"w{0 if same and k < 2 else k} w{j}",
            group=group(k, j),
            memorized="w1",
            generalized="w2",
        )
        for k in range(30)
        for j in range(2)
    )


def str_pair(k: int, j: int) -> str:
    return f"{k}-{j}"


def twice_same(k: int, j: int) -> str:
    return str(k)


def project(s: Scene) -> mm.Edit:
    return mm.ProjectOut(s.direction)


def evaluated(prompts: Any = None, **options: Any):
    def trigger(s: Scene) -> Rates:
        chosen = s.others if prompts is None else prompts(s)
        filled = {key: value(s) if callable(value) else value for key, value in options.items()}
        return mm.evaluate(s.model, chosen, **{"edit": project(s), **filled})

    return trigger


def edited(s: Scene) -> Rates:
    return mm.evaluate(s.model, s.others, edit=project(s), margins=False)


def none_wrote(s: Scene) -> Rates:
    return mm.evaluate(s.model, s.others, edit=project(s), task=Word(), margins=False)


def unedited(s: Scene) -> Rates:
    return mm.evaluate(s.model, s.others, margins=False)


def same_ids(s: Scene) -> mm.PromptSet:
    """The fitted texts under other names."""
    return mm.PromptSet(replace(p, id=f"n{p.id}", group=f"n{p.group}") for p in s.prompts)


def halves(s: Scene) -> tuple[mm.PromptSet, mm.PromptSet]:
    return s.others[:8], s.others[8:]


def swept(**options: Any):
    def trigger(s: Scene) -> Any:
        validation, test = halves(s)
        made = {"grid": [mm.AddDirection(s.direction)], "validation": validation, "test": test}
        filled = {key: value(s) if key in made else value for key, value in options.items()}
        given = {**made, **filled}
        return mm.sweep(s.model, given.pop("grid"), draws=1, **given)

    return trigger


def failing(what: str):
    def fail(*values: Any) -> Any:
        raise ZeroDivisionError(f"in the user's {what}")

    return fail


def nan_objective(rates: Mapping[str, Rates]) -> float:
    return float("nan")


def stop(line: str) -> None:
    raise KeyboardInterrupt


def scattered(s: Scene) -> mm.PromptSet:
    """Every fitted prompt in both sets."""
    return s.prompts


FAULTS = [
    Fault(
        "observe prompts without answers and without a task",
        lambda s: mm.observe(s.model, "w1 w2"),
        mm.TaskError,
        "Without a task every prompt needs `memorized` and `generalized` (or every prompt an "
        "`answer`); missing on '0'",
        "Set them, or pass task=.",
    ),
    Fault(
        "observe nothing",
        lambda s: mm.observe(s.model, mm.PromptSet()),
        mm.PromptError,
        "No prompts to observe: the set is empty.",
        "Add prompts",
    ),
    Fault(
        "evaluate an edit on prompts that it was fitted on",
        evaluated(scattered),
        mm.LeakageError,
        "Cannot evaluate an edit on 16 prompts that fitting or choosing has seen (16 by group",
        "Split by group first: train, validation, test = prompts.split(...).",
    ),
    Fault(
        "evaluate an edit on the fitted texts under new names",
        evaluated(same_ids),
        mm.LeakageError,
        "(0 by group, 16 by the same text): 'ng0.0'",
        "Split by group first",
    ),
    Fault(
        "evaluate an edit on a rephrasing of a fitted prompt",
        evaluated(lambda s: [replace(s.others[0], group="g0")]),
        mm.LeakageError,
        "(1 by group, 0 by the same text): 'og0.0'",
        "Split by group first",
    ),
    Fault(
        "evaluate with `before` from other prompts",
        evaluated(
            lambda s: s.others[:4],
            before=lambda s: mm.observe(s.model, s.others[4:8], margins=False),
        ),
        mm.PromptError,
        "`before` was observed on other prompts than the ones to evaluate",
        "observe these, or leave it out.",
    ),
    Fault(
        "evaluate with `before` from another model",
        evaluated(before=lambda s: mm.observe(other_model(), s.others, margins=False)),
        mm.PromptError,
        "`before` was observed on another model",
        "observe this one, or leave it out.",
    ),
    Fault(
        "evaluate something that is not an edit",
        evaluated(edit="ProjectOut"),
        mm.EditError,
        "got 'ProjectOut'",
        "Expected an edit such as mm.ShiftNeurons(...) or a list of edits",
    ),
    Fault(
        "ask rates for an unknown outcome",
        lambda s: edited(s).share("memorised"),
        mm.TaskError,
        "Unknown outcome 'memorised'; this task has 'memorized', 'generalized', 'other'.",
        "Did you mean 'memorized'?",
    ),
    Fault(
        "ask for the change of rates without an edit",
        lambda s: unedited(s).change("memorized"),
        mm.PromptError,
        "There is no 'before': these rates are of the unedited model.",
        "Use evaluate(..., edit=...).",
    ),
    Fault(
        "ask what became of prompts that there were none of",
        lambda s: none_wrote(s).given("memorized", "other"),
        mm.PromptError,
        "No prompt was 'memorized' before the edit",
        "they were 'other'",
    ),
    Fault(
        "compare edits on different prompts",
        lambda s: edited(s).compared_with(
            mm.evaluate(s.model, s.others[:4], edit=project(s), margins=False), "other"
        ),
        mm.PromptError,
        "these two were evaluated on different prompts.",
        "Evaluate both on one set.",
    ),
    Fault(
        "let your task's classifier fail",
        lambda s: mm.observe(s.model, s.others, task=Failing()),
        ZeroDivisionError,
        "in the user's classifier",
    ),
    Fault(
        "let your task's classifier fail under an edit",
        evaluated(task=Failing(), before=lambda s: mm.observe(s.model, s.others, task=Word())),
        ZeroDivisionError,
        "in the user's classifier",
    ),
    Fault(
        "let your task's classifier invent an outcome",
        lambda s: mm.observe(s.model, s.others, task=Inventing()),
        mm.TaskError,
        "Task 'word' classified prompt 'og0.0' as 'memorised'",
        "its outcomes are 'memorized', 'generalized', 'other'",
    ),
    Fault(
        "let your progress function fail",
        lambda s: mm.cache_activations(s.model, s.others, progress=failing("progress function")),
        ZeroDivisionError,
        "in the user's progress function",
    ),
    Fault(
        "sweep without edits",
        swept(grid=lambda s: []),
        mm.EditError,
        "The grid holds no edit",
        "for example [mm.AddDirection(r, alpha=2.0)]",
    ),
    Fault(
        "sweep edits that cannot be steered",
        swept(grid=lambda s: [project(s)]),
        mm.EditError,
        "ProjectOut cannot be steered toward a class, so a sweep cannot choose it",
        "evaluate it on its own with mm.evaluate(..., edit=...).",
    ),
    Fault(
        "sweep something that is not an edit",
        swept(grid=lambda s: [s.direction]),
        mm.EditError,
        "got [Direction(",
        "Expected an edit such as mm.ShiftNeurons(...)",
    ),
    Fault(
        "sweep with overlapping validation and test",
        swept(test=lambda s: s.others[6:]),
        mm.LeakageError,
        "Cannot test the chosen edit on 2 prompts that fitting or choosing has seen (2 by group",
        "Split by group first",
    ),
    Fault(
        "sweep with an empty test set",
        swept(test=lambda s: s.others[:0]),
        mm.PromptError,
        "No prompts to test on: the set is empty.",
        "Add prompts",
    ),
    Fault(
        "choose in a sweep on fitted prompts",
        swept(validation=scattered),
        mm.LeakageError,
        "Cannot choose an edit on 16 prompts that fitting or choosing has seen",
        "Split by group first",
    ),
    Fault(
        "sweep toward an unknown class",
        swept(toward=["reasoning"]),
        mm.EditError,
        "toward='reasoning' is neither 'generalized' nor 'memorized'",
        "say one of the two",
    ),
    Fault(
        "let your sweep's objective fail",
        swept(objective=failing("objective")),
        ZeroDivisionError,
        "in the user's objective",
    ),
    Fault(
        "let your sweep's objective be NaN",
        swept(objective=nan_objective),
        mm.EditError,
        "The objective gave nan for …AddDirection",
        "return a finite number",
    ),
    Fault("stop a sweep with Ctrl-C", swept(progress=stop), KeyboardInterrupt, ""),
    Fault(
        "run a study of nothing",
        lambda s: mm.run_study(s.model),
        mm.PromptError,
        "A study needs a task, or prompts=, or both",
        "for example run_study(model, task=mm.get_task('addition-cued'))",
    ),
    Fault(
        "run a study of too few prompts",
        lambda s: mm.run_study(s.model, prompts=s.prompts[:2]),
        mm.PromptError,
        "There are 1 pairs of rephrasings (2 prompts in 1 groups).",
        "give 25 pairs at the very least",
    ),
    Fault(
        "run a study of prompts without rephrasings",
        lambda s: mm.run_study(s.model, prompts=many(lambda k, j: f"{k}-{j}")),
        mm.PromptError,
        "None of 60 prompts has a rephrasing: no two share a `group`.",
        "Give the rephrasings of one question the same group.",
    ),
    Fault(
        "run a study of prompts whose column for the group is misspelt",
        lambda s: mm.run_study(
            s.model, prompts=mm.PromptSet(replace(p, meta={"groups": "g"}) for p in many(str_pair))
        ),
        mm.PromptError,
        "None of 60 prompts has a rephrasing: no two share a `group`.",
        "The column 'groups': Did you mean 'group'?",
    ),
    Fault(
        "run a study of prompts of which one text stands in two groups",
        lambda s: mm.run_study(s.model, prompts=many(twice_same)),
        mm.PromptError,
        "2 prompts stand in two groups, so the same text could be fitted on and tested on: 'w0 w0'",
        "Give them one group, or leave one out.",
    ),
    Fault(
        "run a study of a model that never flips",
        lambda s: mm.run_study(s.model, prompts=many(lambda k, j: f"{k}")),
        mm.PromptError,
        "The model writes neither of the two answers after 100% of the first 24 prompts, but",
        "By choice:",
    ),
    Fault(
        "misspell a task",
        lambda s: mm.get_task("additon-cued"),
        mm.TaskError,
        "Unknown task 'additon-cued'; known are",
        "Did you mean 'addition-cued'?",
    ),
    Fault(
        "misspell an option of a task",
        lambda s: mm.get_task("addition-cued", sed=1),
        mm.TaskError,
        "Task 'addition-cued' cannot be made with sed=1: …unexpected keyword argument 'sed'",
        "its options are 'seed', 'strength'",
    ),
    Fault(
        "ask a task without clean items for some",
        lambda s: Word().clean_prompts(3),
        mm.TaskError,
        "Task 'word' has no clean items",
        "override clean_prompts",
    ),
    Fault(
        "ask a task for no pair",
        lambda s: mm.get_task("addition-cued").pairs(0),
        mm.TaskError,
        "got n=0",
        "addition-cued makes 1 to 2000 pairs",
    ),
    Fault(
        "register a task without a name",
        lambda s: mm.register_task("", Word),
        mm.TaskError,
        "A task is registered under a name, got ''",
        "set its `name`, or pass one.",
    ),
    Fault(
        "ask for the controls of a direction",
        lambda s: mm.controls(s.direction, s.model),
        mm.MechmemError,
        "edit must be Edit, got Direction",
        "for example edit = mm.AddDirection(direction, alpha=2.0)",
    ),
    Fault(
        "train a lab model of an unknown task",
        lambda s: mm.train_lab_model("subtraction", s.folder / "lab"),
        mm.TaskError,
        "No lab recipe for task 'subtraction'",
        "there are 'addition',",
    ),
    Fault(
        "train a lab model for no step",
        lambda s: mm.train_lab_model("addition-cued", s.folder / "lab", steps=0),
        mm.TaskError,
        "got 0",
        "steps must be an integer from 1",
    ),
]
