"""A task, a question set and a kind of question are added at their definition, from outside."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest

import mechmem as mm
from mechmem.tasks.base import QuestionTask, Task, available_tasks, get_task, register_task
from mechmem.tasks.lab.recall_reasoning import RecallReasoning
from mechmem.tasks.parsing import Reading
from mechmem.tasks.questions import kinds, sources
from mechmem.tasks.questions.kinds import Gold, Kind, register_kind
from mechmem.tasks.questions.sources import Item, register_source


@pytest.fixture(autouse=True)
def _kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    from mechmem.tasks import base

    for registry in (base._TASKS, kinds.QUESTION_KINDS, sources.SOURCES):
        monkeypatch.setattr(registry, "_found", dict(registry._found))


class Echo(Task):
    """Says the prompt's own answer back."""

    name = "echo"

    def __init__(self, loud: bool = False) -> None:
        self.loud = loud

    def pairs(self, n: int, seed: int = 0) -> mm.PromptSet:
        return mm.PromptSet(
            mm.Prompt(id=f"{k}{m}", text=f"{k}{m}", group=str(k), memorized="a", generalized="b")
            for k in range(n)
            for m in "xy"
        )

    def classify(self, prompt: mm.Prompt, completion: str) -> str:
        return "memorized" if completion == prompt.memorized else "other"


class TestTasks:
    def test_a_class_is_registered_by_a_bare_decorator_under_its_own_name(self) -> None:
        assert register_task(Echo) is Echo
        assert "echo" in available_tasks()
        assert get_task("echo", loud=True).loud

    def test_a_function_is_registered_under_the_name_that_the_decorator_says(self) -> None:
        @register_task("shout")
        def shout() -> Task:
            return Echo(loud=True)

        assert get_task("shout").loud
        assert shout().name == "echo"

    def test_a_cell_run_twice_replaces_the_task_and_warns(self) -> None:
        register_task(Echo)
        again = type("Echo", (Echo,), {"name": "echo"})
        with pytest.warns(mm.MechmemWarning, match="'echo' was registered before; the new one"):
            register_task(again)
        assert type(get_task("echo")) is again

    def test_the_same_class_again_says_nothing(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            register_task(Echo)
            mm.register_task("echo", Echo)

    @pytest.mark.parametrize("bad", [type("N", (Echo,), {"name": ""}), lambda: Echo()])
    def test_a_task_without_a_name_is_refused(self, bad: object) -> None:
        with pytest.raises(mm.TaskError, match="registered under a name, got ''"):
            register_task(bad)

    def test_what_cannot_make_a_task_is_refused(self) -> None:
        with pytest.raises(mm.TaskError, match="its class or a function that makes it, got <"):
            mm.register_task("echo", Echo())

    def test_an_unknown_task_names_the_nearest_one(self) -> None:
        with pytest.raises(mm.TaskError, match=r"Unknown task 'addition_cued'.*'addition-cued'\?"):
            get_task("addition_cued")


class TestQuestions:
    def test_a_question_set_is_one_function(self) -> None:
        @register_source("riddles", shots=1)
        def riddles(row: sources.Row, where: str, index: int) -> Item:
            return Item(row["riddle"], "short", row["solved"], label="reasoning", key=str(index))

        task = get_task("reasoning")
        prompts = task.read([{"riddle": "What walks on four?", "solved": "a man"}], "riddles")
        assert (prompts[0].id, prompts[0].label) == ("riddles-0", "reasoning")
        assert task.classify(prompts[0], " A man.") == "correct"
        other = task.read([{"riddle": "What has an eye?", "solved": "a needle"}], "riddles")
        asked = task.evaluation(prompts, examples=other)[0].text
        assert asked == "Q: What has an eye?\n\nA: a needle\n\nQ: What walks on four?\n\nA: "

    def test_a_kind_of_question_is_one_class_for_asking_and_reading(self) -> None:
        @register_kind
        class YesOrNo(Kind):
            name = "yes-no"

            def judge(self, completion: str, gold: Gold, reading: str) -> tuple[str, Reading]:
                said = completion.strip().strip(".").casefold()
                if said not in ("yes", "no"):
                    return "unparsed", Reading(None, "neither")
                return ("correct" if said == gold.answer else "wrong"), Reading(said, "all of it")

            def ask(self, prompt: mm.Prompt) -> str:
                return f"{kinds.question_of(prompt)} (yes or no) "

        task = get_task("reasoning")
        row = {"question": "Is 7 prime?", "answer": "yes", "kind": "yes-no", "label": "reasoning"}
        prompts = task.read([row])
        said = {text: task.classify(prompts[0], text) for text in ("Yes.", " no", "maybe")}
        assert said == {"Yes.": "correct", " no": "wrong", "maybe": "unparsed"}
        assert task.evaluation(prompts)[0].text == "Is 7 prime? (yes or no) "

    def test_an_unknown_kind_names_those_there_are(self) -> None:
        with pytest.raises(mm.PromptError, match="kind 'numbers' is not one of 'choice', 'number'"):
            get_task("reasoning").read([{"question": "q", "answer": "a", "kind": "numbers"}])

    @pytest.mark.slow
    def test_the_study_of_reasoning_takes_a_question_task_from_outside(self) -> None:
        model = mm.load_model("lab/recall-reasoning")
        inner = RecallReasoning(**model.card["task_options"])

        class Renamed(QuestionTask):
            name = "outside"
            max_new_tokens = 1

            def questions(self, n: int, seed: int = 0) -> mm.PromptSet:
                return mm.PromptSet(
                    replace(p, group=p.meta["entity"], meta={})  # no kind: its own reading counts
                    for p in inner.questions(n, seed)
                )

            def pairs(self, n: int, seed: int = 0) -> mm.PromptSet:
                return inner.pairs(n, seed)

            def classify(self, prompt: mm.Prompt, completion: str) -> str:
                return inner.classify(prompt, completion)

        settings = {"n": 96, "alphas": (2.0,), "scales": (0.5,), "draws": 1}
        study = mm.run_reasoning_study(model, task=Renamed(), **settings)
        assert study.task == "outside"
        assert study.trial is not None
        assert set(study.trial.before["test"].outcomes) <= set(QuestionTask.outcomes)

    def test_the_study_refuses_a_task_without_labeled_questions(self) -> None:
        model = mm.load_model("lab/recall-reasoning")
        with pytest.raises(mm.TaskError, match="needs a task with labeled questions, got 'echo'"):
            mm.run_reasoning_study(model, task=Echo())
