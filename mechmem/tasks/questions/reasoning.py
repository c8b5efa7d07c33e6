"""`reasoning`: questions to work out and questions to remember (arXiv 2503.23084, "LiReF")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mechmem.errors import TaskError, did_you_mean, listed
from mechmem.seeding import keyed_order
from mechmem.tasks.base import QuestionTask, register_task
from mechmem.tasks.parsing import Reading
from mechmem.tasks.prompts import Chat, Prompt, PromptSet
from mechmem.tasks.questions.forms import evaluation_prompts, extraction_prompts
from mechmem.tasks.questions.kinds import READINGS, judge_completion
from mechmem.tasks.questions.labels import THRESHOLD, Labels
from mechmem.tasks.questions.reader import read_questions


@register_task
class Reasoning(QuestionTask):
    """Question sets in the paper's two forms, and the reading of their answers.

    Args:
        data: Questions that `pairs` and `clean_prompts` draw from: a `PromptSet` from `read`, or
            anything that `read` takes.
        source: What the columns of ``data`` mean (`mechmem.tasks.questions.sources.SOURCES`).
        threshold: A score above it is labeled reasoning.
        chat: Wrap every prompt in the tokenizer's chat template; the paper does not.
        reading: ``"strict"``, or ``"paper"`` for the paper's own expressions.
        max_new_tokens: How far to generate. The paper stops at 200, which cuts many a worked
            answer; ours is 512. What is cut is counted (`Observations.truncated`).
        stop: Strings at which the model asks itself the next question.
    """

    name = "reasoning"

    def __init__(
        self,
        data: Any = None,
        source: str = "questions",
        *,
        threshold: float = THRESHOLD,
        chat: Chat | None = None,
        reading: str = "strict",
        max_new_tokens: int = 512,
        stop: Sequence[str] = ("\nQ:", "\nQuestion:", "\n\n以下是"),
    ) -> None:
        if reading not in READINGS:
            raise TaskError(
                f"reading must be one of {listed(READINGS)}, got {reading!r}."
                f"{did_you_mean(reading, READINGS)}"
            )
        ends = (stop,) if isinstance(stop, str) else tuple(stop)
        if not all(isinstance(end, str) and end for end in ends):
            raise TaskError(
                f"stop must be texts of at least one character, got {stop!r:.80}; stop=() ends "
                "nowhere."
            )
        whole = isinstance(max_new_tokens, int) and not isinstance(max_new_tokens, bool)
        if not whole or max_new_tokens < 1:
            raise TaskError(
                f"max_new_tokens must be a whole number from 1, got {max_new_tokens!r}."
            )
        if not 0 <= threshold <= 1:
            raise TaskError(f"threshold must lie in [0, 1] as scores do, got {threshold!r}.")
        self.source, self.threshold, self.chat, self.how = source, threshold, chat, reading
        self.max_new_tokens = max_new_tokens
        self.stop = ends
        self.data: PromptSet | None = None
        if data is not None:
            self.data = data if isinstance(data, PromptSet) else self.read(data)

    def read(
        self,
        data: Any,
        source: str | None = None,
        *,
        split: str | None = None,
        config: str | None = None,
        labels: Labels | None = None,
        english: Any = None,
    ) -> PromptSet:
        r"""Questions as ``Q: {question}\nA: ``, the form in which states are read.

        Args:
            data: A JSON, JSONL, CSV, TSV or Parquet file, a folder, a hub id, a data set, rows.
            source: What the columns mean; the task's own when left out.
            split, config: Of a hub data set or a saved one.
            labels: Scores to use in place of the data's own; all questions need one.
            english: The English part of MGSM (`read_questions`).

        Raises:
            PromptError: When a row lacks what its set must have.
        """
        prompts = read_questions(
            data,
            source or self.source,
            split=split,
            config=config,
            threshold=self.threshold,
            english=english,
        )
        if labels is not None:
            prompts = labels.apply(prompts, threshold=self.threshold)
        return self._chatted(prompts)

    def questions(self, n: int, seed: int = 0) -> PromptSet:
        """The data as they are, however many: `run_reasoning_study` takes the labeled ones."""
        return self._need("a study's questions")

    def extraction(self, prompts: PromptSet) -> PromptSet:
        """The same questions in the form in which states are read."""
        return self._chatted(extraction_prompts(prompts))

    def evaluation(
        self, prompts: PromptSet, examples: PromptSet | None = None, shots: int | None = None
    ) -> PromptSet:
        """The same questions in the form that asks for an answer (`evaluation_prompts`)."""
        return self._chatted(evaluation_prompts(prompts, examples, shots))

    def pairs(self, n: int, seed: int = 0) -> PromptSet:
        """``n`` pairs of variants of one question: GSM-Symbolic's instances, translations, yours.

        Raises:
            TaskError: When the data hold fewer groups of two.
        """
        groups = self._need("pairs").by_group()
        several = {name: members for name, members in groups.items() if len(members) > 1}
        chosen = keyed_order(several, seed, self.name, "pairs")[:n]
        if len(chosen) < max(n, 1):
            raise TaskError(
                f"{n} pairs were asked for; {len(several)} questions have two variants or more. "
                "Give variants of one question the same 'group'."
            )
        return PromptSet(prompt for name in chosen for prompt in several[name][:2])

    def clean_prompts(self, n: int, seed: int = 0) -> PromptSet:
        """``n`` questions with an answer, as the data have them."""
        data = self._need("clean prompts")
        answered = [prompt.id for prompt in data if prompt.answer is not None]
        if len(answered) < max(n, 1):
            raise TaskError(f"{n} questions were asked for; {len(answered)} have an answer.")
        return data.select(keyed_order(answered, seed, self.name, "clean")[:n])

    def classify(self, prompt: Prompt, completion: str) -> str:
        return self.judged(prompt, completion)[0]

    def judged(self, prompt: Prompt, completion: str) -> tuple[str, Reading]:
        """The outcome together with what was read, and why nothing was.

        Raises:
            TaskError: For a prompt without an answer that can be read.
        """
        kind = str(prompt.meta.get("kind", ""))
        if prompt.answer is None:
            raise TaskError(
                f"Prompt {prompt.id!r} has no answer to compare with (kind {kind!r}): code is "
                "never run here, and your own questions need an 'answer'."
            )
        if not kind:
            raise TaskError(
                f"Prompt {prompt.id!r} does not say what kind of answer it has. Questions get it "
                "when the task reads them: mm.get_task('reasoning').read(rows)."
            )
        return judge_completion(
            completion,
            kind,
            prompt.answer,
            options=prompt.meta.get("options", ()),
            aliases=prompt.meta.get("aliases", ()),
            language=str(prompt.meta.get("language", "en")),
            reading=self.how,
        )

    def _chatted(self, prompts: PromptSet) -> PromptSet:
        if self.chat is None:
            return prompts
        return PromptSet(replace(prompt, chat=self.chat) for prompt in prompts)

    def _need(self, what: str) -> PromptSet:
        if self.data is None:
            raise TaskError(
                f"The reasoning task has no questions to draw {what} from: "
                "get_task('reasoning', data=<file or PromptSet>, source='gsm8k')."
            )
        return self.data
