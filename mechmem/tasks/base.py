"""`Task`: makes prompts and reads completions. Tasks are registered by name in one place."""

from __future__ import annotations

import copy
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar, TypeVar, overload

from mechmem.errors import TaskError, listed
from mechmem.tasks.choice import READINGS, UNDECIDED, Choice
from mechmem.tasks.own_prompts import misspelt
from mechmem.tasks.parsing.answers import same_answer, starts_with_answer, which_answer
from mechmem.tasks.parsing.thoughts import without_thoughts
from mechmem.tasks.prompts import Prompt, PromptSet
from mechmem.tasks.registry import Registry

BEHAVIORS = ("memorized", "generalized")
"""What a model can be seen to do; differences are the first minus the second."""
QUESTIONS = ("correct", "wrong")


class Task(ABC):
    """A family of prompts together with the reading of what a model answers.

    Attributes:
        name: The name that `get_task` knows it by.
        outcomes: What a completion can be. The last one means "none of the others": what cannot
            be parsed is that, never a guess.
        behaviors: What an answer that is a prompt's `memorized`, and one that is its `generalized`,
            count as; a task may have names of its own for them.
        choice: Set when the task is read by choice (`with_reading`); then the last outcome is
            ``undecided``.
        max_new_tokens: How far to generate, at most.
        stop: Strings after which a completion is finished.
        read_spans: Named spans (and ``"last"``) where the behavior is worth reading or editing.
    """

    name: ClassVar[str] = ""
    outcomes: ClassVar[tuple[str, ...]] = (*BEHAVIORS, "other")
    behaviors: ClassVar[tuple[str, str]] = BEHAVIORS
    choice: Choice | None = None
    max_new_tokens: int = 16
    stop: tuple[str, ...] = ()
    read_spans: tuple[str, ...] = ("last",)

    @abstractmethod
    def pairs(self, n: int, seed: int = 0) -> PromptSet:
        """``n`` pairs of rephrasings: ``2 n`` prompts, the two members of a pair in one group."""

    @abstractmethod
    def classify(self, prompt: Prompt, completion: str) -> str:
        """One of `outcomes` for what the model wrote after the prompt."""

    def clean_prompts(self, n: int, seed: int = 0) -> PromptSet:
        """``n`` ordinary items (with ``answer`` set) to measure what an edit costs elsewhere."""
        raise TaskError(
            f"Task {self.name!r} has no clean items; override clean_prompts, or use its pairs."
        )

    def prepared(self, ask: Callable[[PromptSet], Sequence[str]]) -> Task:
        """The task for one model, where it depends on what that model knows: ``ask`` gives the
        outcomes of prompts. Most tasks do not, and are returned as they are."""
        return self

    def contrast(self, prompts: PromptSet) -> PromptSet:
        """Of prompts with observed behaviors, those on which the two behaviors are contrasted:
        pairs of rephrasings that came out once each way (flips), so that every instance stands on
        both sides."""
        wanted = set(self.behaviors)
        flips = [pair for pair in prompts.pairs() if {p.behavior for p in pair} == wanted]
        return prompts.select(prompt.id for pair in flips for prompt in pair)

    def stratum(self, prompt: Prompt) -> str:
        """What must be alike where whole groups exchange their behaviors in a shuffled refit."""
        return ""

    def continuation(self, prompt: Prompt, answer: str) -> str:
        """``answer`` as the text that would follow the prompt, white space included."""
        return answer if prompt.text[-1:].isspace() else f" {answer}"

    @property
    def reading(self) -> str:
        """``"text"`` or ``"choice"``."""
        return READINGS[self.choice is not None]

    def choices(self, prompt: Prompt) -> tuple[str, ...]:
        """The answers that a reading by choice compares: that of the first outcome, then the rest.

        Questions compare the right answer with the wrong ones: ``meta["wrong"]`` (one or a list),
        the other letters of a multiple choice, or the prompt's other route.

        Raises:
            TaskError: When the prompt lacks one.
        """
        if self.outcomes[:2] != QUESTIONS:
            both = (prompt.memorized, prompt.generalized)
            found = [answer for answer in both if answer is not None]
            needed = "`memorized` and `generalized`"
        else:
            found = [] if prompt.answer is None else [prompt.answer, *_wrong(prompt)]
            needed = "an `answer` and at least one wrong one (a column `wrong`)"
        if len(found) < 2:
            raise TaskError(
                f"A reading by choice compares answers, and prompt {prompt.id!r} lacks them: it "
                f"needs {needed}. Set them, leave the prompt out, or use reading='text'."
            )
        return tuple(found)

    def decide(self, margin: float) -> str:
        """The outcome of a reading by choice.

        Args:
            margin: Score of the first answer minus the best other one's; NaN where they cannot be
                compared.
        """
        within = (self.choice or Choice()).within
        if margin > within:
            return self.outcomes[0]
        return self.outcomes[1] if margin < -within else UNDECIDED


class QuestionTask(Task):
    """A task whose questions are labeled reasoning or memory: what `run_reasoning_study` takes.

    `pairs` may refuse where questions have no rephrasings.
    """

    outcomes = ("correct", "wrong", "unparsed")

    @abstractmethod
    def questions(self, n: int, seed: int = 0) -> PromptSet:
        """``n`` labeled questions, or all that the task's own data hold."""

    def extraction(self, prompts: PromptSet) -> PromptSet:
        """The same questions as states are read from them; ``group`` says what is held out."""
        return prompts

    def evaluation(
        self, prompts: PromptSet, examples: PromptSet | None = None, shots: int | None = None
    ) -> PromptSet:
        """The same questions in the form that asks for an answer, ids and groups unchanged."""
        return prompts


class PromptAnswers(Task):
    """The reading used without a task: a prompt's own `memorized`, `generalized` or `answer`.

    A completion counts as an answer when it begins with it (case and outer white space aside) and
    the answer ends there (`mechmem.tasks.parsing.answers`), so that ``12`` and ``1/2`` are not read
    as ``1``. Where one answer begins the other, the longer one that was written counts. A thought
    (``<think>...</think>``) is not read.
    """

    name = "prompt-answers"

    def __init__(self, kind: str = "behavior") -> None:
        if kind not in ("behavior", "answer"):
            raise TaskError(f"kind must be 'behavior' or 'answer', got {kind!r}.")
        self.kind = kind
        if kind == "answer":
            self.outcomes = ("correct", "wrong", "unparsed")  # type: ignore[misc]

    @classmethod
    def for_prompts(cls, prompts: PromptSet) -> PromptAnswers:
        """The reading that these prompts' own answers allow.

        Raises:
            TaskError: When a prompt carries neither both behaviors nor an answer.
        """
        if all(p.memorized is not None and p.generalized is not None for p in prompts):
            same = [p.id for p in prompts if same_answer(str(p.memorized), str(p.generalized))]
            if same:
                raise TaskError(
                    f"Prompts {listed(same, 5)} have the same memorized and generalized answer, so "
                    "an answer cannot tell the two apart; leave these prompts out."
                )
            return cls("behavior")
        if all(p.answer is not None for p in prompts):
            return cls("answer")
        lacking = [p.id for p in prompts if p.memorized is None or p.generalized is None]
        raise TaskError(
            "Without a task every prompt needs `memorized` and `generalized` (or every prompt an "
            f"`answer`); missing on {listed(lacking, 5)}. Set them, or pass task=."
            f"{misspelt(prompts, ('memorized', 'generalized', 'answer'))}"
        )

    def pairs(self, n: int, seed: int = 0) -> PromptSet:
        raise TaskError("Your own prompts are the pairs: give rephrasings the same `group`.")

    def classify(self, prompt: Prompt, completion: str) -> str:
        completion = without_thoughts(completion)
        if self.kind == "answer":
            if not completion.strip():
                return "unparsed"
            return "correct" if starts_with_answer(completion, prompt.answer or "") else "wrong"
        answers = {name: getattr(prompt, name) for name in BEHAVIORS}
        return which_answer(completion, answers) or "other"


def with_reading(task: Task, reading: str | Choice | None) -> Task:
    """The same task, read as asked; itself where that is how it is read already.

    Args:
        task: Is not changed.
        reading: ``"text"`` (what the model writes), ``"choice"`` (which answer it finds likelier;
            a `Choice` says by which rule), or ``None`` for the task's own.

    Raises:
        TaskError: For another reading, or a task whose first two outcomes are not the two that a
            choice can have.
    """
    if reading is None or reading == task.reading:
        return task
    if not isinstance(reading, Choice) and reading not in READINGS:
        raise TaskError(f"reading={reading!r} is not a reading; say one of {listed(READINGS)}.")
    first = task.outcomes[:2]
    if first not in (QUESTIONS, task.behaviors):
        raise TaskError(
            f"Task {task.name!r} has the outcomes {listed(task.outcomes)}, so it is not clear what "
            "a choice between two answers would be; name the two in `behaviors`, in the order of "
            "`memorized` and `generalized`."
        )
    out = copy.copy(task)
    by_choice = reading != "text"
    out.choice = (reading if isinstance(reading, Choice) else Choice()) if by_choice else None
    neither = UNDECIDED if by_choice else "unparsed" if first == QUESTIONS else "other"
    out.outcomes = (*first, neither)  # type: ignore[misc]
    return out


def _wrong(prompt: Prompt) -> list[str]:
    """Wrong answers that a question brings along."""
    given = prompt.meta.get("wrong")
    if given is None:
        letters = [chr(ord("A") + k) for k in range(len(prompt.meta.get("options", ())))]
        given = letters if prompt.answer in letters else [prompt.memorized, prompt.generalized]
    if isinstance(given, str) and given.lstrip().startswith("["):  # as a table's cell holds a list
        with suppress(ValueError):
            given = json.loads(given)
    several = list(given) if isinstance(given, (list, tuple)) else [given]
    return [str(answer) for answer in several if answer is not None and answer != prompt.answer]


Maker = TypeVar("Maker", bound=Callable[..., Task])
_TASKS: Registry[Callable[..., Task]] = Registry("task")


@overload
def register_task(name: Maker, /) -> Maker: ...
@overload
def register_task(name: str, /) -> Callable[[Maker], Maker]: ...
@overload
def register_task(name: str, make: Maker, /) -> Maker: ...
def register_task(name: Any, make: Any = None, /) -> Any:
    """Make a task known to `get_task` and the command line.

    At the definition: ``@register_task`` for a class with a ``name``, ``@register_task("name")``
    for any function that returns a task. ``register_task("name", make)`` does the same later. A
    name may be registered again, with a warning: the new task takes the place of the old one.

    Raises:
        TaskError: Without a name, or when nothing is given that could make a task.
    """
    if isinstance(name, str) and make is None:
        return lambda maker: register_task(name, maker)
    if make is None:
        name, make = getattr(name, "name", ""), name
    if not callable(make):
        raise TaskError(
            f"A task is registered with its class or a function that makes it, got {make!r:.60}."
        )
    return _TASKS.add(name, make)


def available_tasks() -> list[str]:
    """Names that `get_task` knows, sorted."""
    return sorted(_TASKS)


def get_task(name: str, **options: object) -> Task:
    """A registered task by its name.

    Args:
        name: For example ``"addition-cued"``; `available_tasks` lists them.
        **options: Passed to the task's constructor.

    Raises:
        TaskError: For an unknown name, with the nearest known one.
    """
    make = _TASKS[name]
    known = inspect.signature(make)
    try:
        known.bind(**options)
    except TypeError as error:
        given = ", ".join(f"{key}={value!r:.40}" for key, value in options.items())
        raise TaskError(
            f"Task {name!r} cannot be made with {given}: {error}; its options are "
            f"{listed(known.parameters)}."
        ) from None
    return make(**options)
