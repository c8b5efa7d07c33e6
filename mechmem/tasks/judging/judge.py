"""Judging questions: is this one to be worked out, or remembered? By any callable, or a model.

The judge prompt of arXiv 2503.23084 is unknown. `JUDGE_PROMPT` is ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mechmem.errors import PromptError, TaskError, shown
from mechmem.numeric import whole_number
from mechmem.tasks.judging.cache import JudgeCache
from mechmem.tasks.prompts import PromptSet
from mechmem.tasks.questions.labels import Labels, question_digest

JUDGE_PROMPT_VERSION = "mechmem-1"
JUDGE_PROMPT = """\
You rate questions by what it takes to answer them.

Give a number from 0 to 1:
0.0  pure memory: the answer is one fact that a person knows or does not know; no step leads to it.
0.25 mostly memory: a fact must be recalled and slightly adapted.
0.5  both to equal parts.
0.75 mostly reasoning: known rules must be combined in a few steps.
1.0  pure reasoning: all that is needed stands in the question; the answer is worked out in steps.

Rate the question, do not answer it. How hard it is does not matter, nor what it is about: a
question about mathematics may ask for a remembered name, one about history for an inference.

Question:
{question}

End with one line of this form:
Score: <number from 0 to 1>
"""
"""What a judge is asked. ``{question}`` is replaced; version `JUDGE_PROMPT_VERSION`."""

_NUMBER = (
    r"(?<![\w.,/-])(?:0(?:\.\d+)?|1(?:\.0+)?|\.\d+)(?![\w%/]|[.,]\d|\s*(?:/|%|-\s*\d|to\s+\d))"
)
_STATED = re.compile(r"\bscore[\"'*_]*\s*(?:is\s*:?|[:=])[\s\"'*_]*(\S*)", re.I)
_ALONE = re.compile(rf"[\s\"'*_`]*({_NUMBER})[\s\"'*_`.]*")


@runtime_checkable
class BatchJudge(Protocol):
    """A judge that answers several texts at once, and knows its own name.

    Attributes:
        name: Who judges; part of the cache's key and of the labels.
    """

    name: str

    def replies(self, texts: Sequence[str]) -> list[str]:
        """One reply per text, in order."""
        ...


AnyJudge = BatchJudge | Callable[[str], str | float]


def read_score(reply: str | float) -> float | None:
    """The score in a judge's reply, or ``None``: the last ``Score: x``, or a bare number.

    ``8/10``, ``80%``, ``0.6-0.8`` and numbers outside [0, 1] are not read.
    """
    if isinstance(reply, (int, float)):
        return float(reply) if not isinstance(reply, bool) and 0 <= reply <= 1 else None
    stated = list(_STATED.finditer(reply))
    if stated:
        rest = reply[stated[-1].start(1) :]
        found = re.match(_NUMBER, rest)
        return float(found[0]) if found else None
    found = _ALONE.fullmatch(reply)
    return float(found[1]) if found else None


def judge_questions(
    prompts: PromptSet,
    judge: AnyJudge,
    *,
    name: str | None = None,
    template: str = JUDGE_PROMPT,
    version: str | None = None,
    cache: str | Path | None = None,
    batch: int = 16,
    progress: Callable[[int], None] | None = None,
) -> Labels:
    """Ask a judge about every question; `Labels.apply` then puts the labels on.

    Every reply is written to ``cache`` before the next is asked for, under a key of judge, prompt
    and question: a run that was killed goes on where it stopped, and a changed prompt or judge
    asks anew. Replies are kept word for word.

    Args:
        prompts: From `read_questions`; only the question is shown, never the answer or options.
        judge: Any function from a text to a reply or a score, or a `BatchJudge`.
        name: Who judges; needed for a function without a name of its own.
        template: The judge's prompt, with ``{question}`` in it.
        version: A name for your template; ours has `JUDGE_PROMPT_VERSION`.
        cache: A JSON lines file; made when absent.
        batch: How many questions a `BatchJudge` gets at once.
        progress: Called with the number of questions that were just judged.

    Returns:
        `Labels`; a reply that cannot be read gives a score of ``None`` and is counted.

    Raises:
        TaskError: For a template without the place of the question, or a judge without a name, and
            for arguments of another kind, all before anything is asked.
    """
    whole_number(batch, "batch", error=TaskError)
    given: tuple[tuple[str, Any, Any, str], ...] = (
        ("prompts", prompts, PromptSet, "a PromptSet"),
        ("judge", judge, (BatchJudge, Callable), "a function of a text, or a BatchJudge"),
        ("name", name, (str, type(None)), "a text"),
        ("template", template, str, "a text"),
        ("version", version, (str, type(None)), "a text"),
        ("cache", cache, (str, Path, type(None)), "a path"),
        ("progress", progress, (Callable, type(None)), "a function of a number"),
    )
    for argument, value, kinds, said in given:
        if not isinstance(value, kinds):
            raise TaskError(f"{argument} must be {said}, got {shown(value, 80)}.")
    prompts.require("judge")
    if "{question}" not in template:
        raise TaskError("A judge's template needs the place '{question}'.")
    who = _name(judge, name)
    store = JudgeCache(cache, who)
    texts = {
        p.id: template.replace("{question}", str(p.meta.get("question", p.text))) for p in prompts
    }
    missing = list(dict.fromkeys(text for text in texts.values() if text not in store))
    if progress is not None and len(missing) < len(texts):
        progress(sum(text in store for text in texts.values()))
    size = batch if isinstance(judge, BatchJudge) else 1
    for part in (missing[start : start + size] for start in range(0, len(missing), size)):
        replies = judge.replies(part) if isinstance(judge, BatchJudge) else [judge(part[0])]
        if len(replies) != len(part):
            raise TaskError(f"The judge {who!r} gave {len(replies)} replies to {len(part)} texts.")
        for text, reply in zip(part, replies, strict=True):
            if isinstance(reply, bool) or not isinstance(reply, (str, int, float)):
                raise TaskError(
                    f"A judge replies with a text or a number, {who!r} gave {reply!r:.60}."
                )
            # A number beyond all scores is no number in JSON; as text it is as unreadable.
            kept = isinstance(reply, str) or -1e9 < reply < 1e9
            store.add(text, reply if kept else str(reply))
        if progress is not None:
            progress(sum(text in part for text in texts.values()))
    ours = JUDGE_PROMPT_VERSION if template == JUDGE_PROMPT else "own"
    return Labels(
        who,
        {name: read_score(store[text]) for name, text in texts.items()},
        {prompt.id: question_digest(prompt) for prompt in prompts},
        {"prompt": version or ours, "template": template},
    )


def _name(judge: AnyJudge, name: str | None) -> str:
    if name:
        return name
    own = judge.name if isinstance(judge, BatchJudge) else getattr(judge, "__name__", "")
    if not own or own == "<lambda>":
        raise PromptError(
            f"The judge {judge!r:.60} has no name, and replies are kept by it: pass name=."
        )
    return str(own)
