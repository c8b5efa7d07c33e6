"""Facts and one-step problems with a right answer and a wrong one of the same kind."""

from __future__ import annotations

import json
from importlib import resources

from mechmem.errors import TaskError
from mechmem.seeding import keyed_order, keyed_rng
from mechmem.tasks.prompt import Prompt
from mechmem.tasks.prompts import PromptSet
from mechmem.tasks.questions.labels import LABELS

REASONING, MEMORY = LABELS
PROBLEMS = {
    "+": "{name} has {a} {things} and gets {b} more. How many {things} does {name} have?",
    "-": "{name} has {a} {things} and gives {b} away. How many {things} does {name} keep?",
    "x": "One box holds {a} {things}. How many {things} do {b} boxes hold?",
    ":": "{a} {things} are shared equally by {b} children. How many {things} does each get?",
}
NAMES = ("Tom", "Anna", "Sam", "Lucy", "Ben", "Mary")
THINGS = ("apples", "books", "coins", "cards", "pens", "shells")
LEAD = "The answer is"
MOST = 140
"""Facts that ship; of problems there are more."""


def right_and_wrong(n: int = 80, seed: int = 0) -> PromptSet:
    r"""Questions as ``Q: {question}\nA: {lead-in}``; `memorized` is the right answer, `generalized`
    a wrong one: of another fact of the same relation, or a number near.

    The two kinds have one form, but not the same words, and facts are of ten relations. For turning
    only: told apart by their words alone.

    Args:
        n: Of each kind: facts of the LRE data (MIT, shipped; at most 140), labeled memory, and
            sums, differences, products and quotients of small numbers, labeled reasoning.
        seed: Keys which ones, and the wrong answers.

    Raises:
        TaskError: For more than there are.
    """
    if not 0 < n <= MOST:
        raise TaskError(f"There are {MOST} questions of each kind, so n={n} cannot be had.")
    return _facts(n, seed) + _problems(n, seed)


def _facts(n: int, seed: int) -> PromptSet:
    path = resources.files("mechmem.tasks.questions") / "data" / "lre_facts.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    order = {name: k for k, name in enumerate(keyed_order([r["subject"] for r in rows], seed))}
    out = []
    for row in sorted(rows, key=lambda row: order[row["subject"]])[:n]:
        kind, right = row["relation"], row["answer"]
        others = {r["answer"] for r in rows if r["relation"] == kind} - {right}
        wrong = keyed_order(sorted(others), seed, "wrong", row["subject"])[0]
        out.append(
            _prompt(row["subject"], MEMORY, kind, row["question"], row["lead"], right, wrong)
        )
    return PromptSet(out)


def _problems(n: int, seed: int) -> PromptSet:
    out: dict[str, Prompt] = {}
    rng = keyed_rng(seed, "one-step problems")
    kinds = list(PROBLEMS)
    while len(out) < n:
        sign = kinds[len(out) % len(kinds)]
        a, b = (int(k) for k in rng.integers(2, 10, 2))
        first, right = {
            "+": (a, a + b), "-": (a + b, a), "x": (a, a * b), ":": (a * b, a)
        }[sign]  # fmt: skip
        step = int(rng.integers(1, 4))
        wrong = right - step if rng.random() < 0.5 and right > step else right + step
        name, things = (str(rng.choice(words)) for words in (NAMES, THINGS))
        text = PROBLEMS[sign].format(name=name, things=things, a=first, b=b)
        group = f"{first} {sign} {b}"
        if group not in out:
            out[group] = _prompt(group, REASONING, sign, text, LEAD, str(right), str(wrong))
    return PromptSet(out.values())


def _prompt(
    group: str, label: str, kind: str, question: str, lead: str, right: str, wrong: str
) -> Prompt:
    return Prompt(
        id=f"{label}: {question}",
        text=f"Q: {question}\nA: {lead}",
        group=group,
        memorized=right,
        generalized=wrong,
        answer=right,
        label=label,
        meta={"category": kind, "question": question},
    )
