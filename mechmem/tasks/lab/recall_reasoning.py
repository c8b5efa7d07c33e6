r"""`recall-reasoning`: one question format whose answer is either stored or has to be worked out.

``Q: what is the price of Feldor given 3 5 8 ?\nA: ``: every question names an entity, an attribute
and three numbers. For some entities training always gave the attribute's stored value, drawn
arbitrarily, whatever the numbers are (*facts*); for others it always gave the sum of the numbers
(*computations*); for the rest, *disputed*, it gave the value in some prompts and the sum in the
others. Only the entity's name tells which, and names mean nothing: a reader who has never met an
entity cannot know. An item's reasoning score is the share of its training prompts that were
answered with the sum; above 0.5 its label is ``"reasoning"`` and the sum is right, otherwise the
label is ``"memory"`` and the stored value is right. So the wrong mode has an answer of its own: the
sum for memory items, the stored value for disputed reasoning items.

What the two attributes of an entity share is the planted reason to keep a mode per entity. With
``shared=False`` every pair of entity and attribute draws its kind by itself: the negative control.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import replace

import numpy as np
from jaxtyping import Int

from mechmem.errors import TaskError
from mechmem.numeric import whole_number
from mechmem.seeding import keyed_order, keyed_rng
from mechmem.tasks.base import QuestionTask, register_task
from mechmem.tasks.parsing.answers import folded, starts_with_answer
from mechmem.tasks.parsing.thoughts import without_thoughts
from mechmem.tasks.prompts import Prompt, PromptSet
from mechmem.tasks.questions.labels import label_of
from mechmem.tasks.questions.perturb import perturbed

ENTITIES = tuple(
    first + last
    for first in "Bal Cor Dun Fel Gar Hol Jan Kel Lum Mar Nor Pol".split()
    for last in "an bek dor fin gus lia mo tis".split()
)
ATTRIBUTES = ("price", "weight")
TEMPLATES = (
    "what is the {attribute} of {entity} given {numbers} ?",
    "given {numbers} what is the {attribute} of {entity} ?",
    "{entity} , with {numbers} , has which {attribute} ?",
    "tell me the {attribute} that {entity} with {numbers} has",
    "with {numbers} for {entity} the {attribute} is what ?",
    "which {attribute} does {entity} have , given {numbers} ?",
    "the {attribute} of {entity} at {numbers} is what ?",
    "for {numbers} do tell me {entity} 's {attribute} ?",
)
KINDS = ("fact", "disputed", "computation", "unseen")
_OF_EIGHT = (0, 0, 0, 1, 1, 2, 2, 2)
DISPUTED = (0.2, 0.3, 0.4, 0.6, 0.7, 0.8)
HELD_TEMPLATES = 3
LARGEST = 9
BOS = "<bos>"
_FILLERS = tuple(
    dict.fromkeys(word for text in TEMPLATES for word in text.split() if not word.startswith("{"))
)
RECALL_VOCABULARY = (
    "<pad>", "<unk>", BOS, "Q:", "\n", "A:",
    *(str(number) for number in range(1, 3 * LARGEST + 1)),
    *ENTITIES, *ATTRIBUTES, *_FILLERS,
)  # fmt: skip
"""Every word of the task, in the order of the lab model's word-level tokenizer."""

_INDEX = {word: index for index, word in enumerate(RECALL_VOCABULARY)}
_TRIPLES = tuple(itertools.combinations_with_replacement(range(1, LARGEST + 1), 3))


class RecallWorld:
    """Everything the seed draws: kinds, stored values, held-out phrasings and operands.

    Args:
        seed: Draws the world; a shipped model's manifest names its own.
        shared: Whether the kind belongs to the entity; False deals the kinds out again over all
            pairs of entity and attribute.

    Attributes:
        kind: ``[entity, attribute]`` index into `KINDS`; of eight entities three have facts, two
            are disputed, three are computed. A third of the computed pairs is never asked about in
            training (``"unseen"``), always one attribute of an entity whose other one is.
        score: ``[entity, attribute]`` share of training prompts answered with the sum.
        value: ``[entity, attribute]`` stored value, distributed like the sums; 0 where none is.
        held_templates: ``[entity, attribute, template]`` True where training never uses it.
        held_triples: Operand multisets that training never uses.
    """

    def __init__(self, seed: int = 0, shared: bool = True) -> None:
        self.seed = seed
        rng = np.random.default_rng([seed, 0])
        shape = (len(ENTITIES), len(ATTRIBUTES))
        of_entity = rng.permutation(np.resize(_OF_EIGHT, shape[0]))
        kind = np.repeat(of_entity[:, None], shape[1], axis=1)
        computed = np.flatnonzero(of_entity == 2)
        silent = rng.permutation(computed)[: 2 * len(computed) // 3]
        kind[silent, rng.integers(shape[1], size=len(silent))] = 3
        score = np.where(kind >= 2, 1.0, 0.0)
        disputed = rng.permutation(np.flatnonzero(of_entity == 1))
        score[disputed] = np.resize(DISPUTED, len(disputed))[:, None]
        dealt = np.arange(kind.size) if shared else rng.permutation(kind.size)
        self.kind, self.score = (table.flat[dealt].reshape(shape) for table in (kind, score))
        triples = np.array(_TRIPLES)[rng.permutation(len(_TRIPLES))]
        held = len(triples) // 6
        self.held_triples, self.triples = triples[:held], triples[held:]
        stored = self.kind < 2
        self.value = np.zeros(shape, np.int64)
        self.value[stored] = rng.integers(1, LARGEST + 1, size=(int(stored.sum()), 3)).sum(1)
        order = rng.random((*shape, len(TEMPLATES))).argsort(-1)
        self.held_templates = order < HELD_TEMPLATES

    def training_rows(
        self, steps: int, batch: int, without: Collection[str] = ()
    ) -> Int[np.ndarray, "row token"]:
        """Training rows in order, prompt and answer as indices into `RECALL_VOCABULARY`.

        Args:
            steps, batch: How many.
            without: Items, named like the groups of the task's prompts, that are never asked about.
        """
        rng = np.random.default_rng([self.seed, 1])
        total = steps * batch
        asked = np.argwhere(self.kind != KINDS.index("unseen"))
        pairs = np.array([one for one in asked if item(*map(int, one)) not in without])
        entity, attribute = pairs[rng.integers(len(pairs), size=total)].T
        allowed = np.where(self.held_templates[entity, attribute], -1.0, 1.0)
        template = (allowed * rng.random(allowed.shape)).argmax(1)
        numbers = rng.permuted(self.triples[rng.integers(len(self.triples), size=total)], axis=1)
        summed = rng.random(total) < self.score[entity, attribute]
        answer = np.where(summed, numbers.sum(1), self.value[entity, attribute])
        return np.column_stack([encode(template, entity, attribute, numbers), number_index(answer)])


@register_task
class RecallReasoning(QuestionTask):
    """The task on one `RecallWorld`.

    Its prompts are always held out: a phrasing of the pair and operands that training never used;
    stored value and sum differ. A group is a pair of entity and attribute. The study of reasoning
    and memory divides by ``meta["entity"]`` instead, since an entity's two pairs share their kind.

    Args:
        seed: The world; use the one of the model's manifest.
        shared: False for the negative control.
    """

    name = "recall-reasoning"
    max_new_tokens = 1

    def __init__(self, seed: int = 0, shared: bool = True) -> None:
        self.world = RecallWorld(seed, shared)

    def questions(self, n: int, seed: int = 0, kinds: tuple[str, ...] = KINDS) -> PromptSet:
        """``n`` questions, spread evenly over the pairs of these kinds, with label and score.

        ``memorized`` is the stored value where there is one, ``generalized`` the sum, ``answer``
        the right one of the two.

        Raises:
            TaskError: When ``n`` is no number from 1 to 20,000, or a kind is unknown.
        """
        whole_number(n, "n", most=20_000, error=TaskError)
        if not kinds or set(kinds) - set(KINDS):
            raise TaskError(f"kinds must be some of {list(KINDS)}, got {list(kinds)!r:.80}.")
        wanted = [KINDS.index(kind) for kind in kinds]
        names = [f"{e}-{a}" for e, a in np.argwhere(np.isin(self.world.kind, wanted))]
        order = keyed_order(names, seed, self.name, "order")
        rng = keyed_rng(seed, self.name, "questions")
        out: dict[str, Prompt] = {}
        while len(out) < n:
            entity, attribute = map(int, order[len(out) % len(order)].split("-"))
            prompt = self._drawn(entity, attribute, rng)
            out.setdefault(prompt.id, prompt)
        return PromptSet(out.values())

    def extraction(self, prompts: PromptSet) -> PromptSet:
        """The same prompts, tied by entity: its two attributes share their kind."""
        return PromptSet(replace(p, group=str(p.meta.get("entity", p.group))) for p in prompts)

    def pairs(self, n: int, seed: int = 0) -> PromptSet:
        """``n`` pairs of questions about one item each, other phrasing and other numbers."""
        rng = keyed_rng(seed, self.name, "pairs")
        first = self.questions(n, seed)
        taken, out = set(first.ids), []
        for prompt in first:
            entity, attribute = prompt.meta["pair"]
            while (other := self._drawn(entity, attribute, rng)).id in taken:
                pass
            taken.add(other.id)
            out += [prompt, other]  # next to each other, so that they are a pair of their group
        return PromptSet(out)

    def clean_prompts(self, n: int, seed: int = 0) -> PromptSet:
        """``n`` computations on pairs that training never asked about."""
        return self.questions(n, seed, ("unseen",))

    def perturbations(self, items: PromptSet) -> PromptSet:
        """Every item with one of its numbers moved by one, up or down: up to six variants each.

        Phrasing and everything else stay; the right answer is that of the new numbers. Where the
        new sum is the stored value, the variant is left out. The numbers may be ones that training
        used; the phrasing is held out, so no variant was in training.

        Raises:
            TaskError: For a prompt that this task has not made.
        """
        out = []
        for prompt in items:
            if prompt.meta.get("source") != self.name:
                raise TaskError(f"Prompt {prompt.id!r} is not one of {self.name}'s own questions.")
            (entity, attribute), numbers = prompt.meta["pair"], np.array(prompt.meta["numbers"])
            value = int(self.world.value[entity, attribute])
            for k, step in itertools.product(range(len(numbers)), (-1, 1)):
                moved = numbers.copy()
                moved[k] += step
                if not 1 <= moved[k] <= LARGEST or moved.sum() == value:
                    continue
                variant = self._asked(entity, attribute, prompt.meta["template"], moved)
                changes = {
                    name: getattr(variant, name)
                    for name in ("text", "generalized", "answer", "spans", "meta")
                }
                out.append(perturbed(prompt, f"{k}{step:+d}", **changes))
        return PromptSet(out)

    def classify(self, prompt: Prompt, completion: str) -> str:
        completion = without_thoughts(completion)
        if starts_with_answer(completion, prompt.answer or ""):
            return "correct"
        return "wrong" if folded(completion).isdecimal() else "unparsed"

    def _drawn(self, entity: int, attribute: int, rng: np.random.Generator) -> Prompt:
        world = self.world
        value = int(world.value[entity, attribute])
        while True:
            template = int(rng.choice(np.flatnonzero(world.held_templates[entity, attribute])))
            numbers = rng.permutation(world.held_triples[rng.integers(len(world.held_triples))])
            if numbers.sum() != value:
                break
        return self._asked(entity, attribute, template, numbers)

    def _asked(self, entity: int, attribute: int, template: int, numbers: np.ndarray) -> Prompt:
        value = int(self.world.value[entity, attribute])
        question = _question(template, entity, attribute, numbers)
        score = float(self.world.score[entity, attribute])
        label, total = label_of(score), str(numbers.sum())
        group = item(entity, attribute)
        return Prompt(
            id=f"{group}.{template}.{'-'.join(map(str, numbers))}",
            text=f"Q: {question}\nA: ",
            group=group,
            memorized=str(value) if value else None,
            generalized=total,
            answer=total if label == "reasoning" else str(value),
            label=label,
            spans={"question": (3, 3 + len(question))},
            meta={
                "source": self.name,
                "question": question,
                "kind": "short",
                "item": KINDS[self.world.kind[entity, attribute]],
                "pair": [entity, attribute],
                "entity": ENTITIES[entity],
                "template": template,
                "numbers": [int(number) for number in numbers],
                "category": ATTRIBUTES[attribute],
                "score": score,
            },
        )


def encode(
    template: np.ndarray, entity: np.ndarray, attribute: np.ndarray, numbers: np.ndarray
) -> Int[np.ndarray, "row token"]:
    """Prompts as indices into `RECALL_VOCABULARY`, the beginning-of-sequence word first."""
    length = len(f"Q: {TEMPLATES[0]} \n A:".split(" ")) + 3
    ids = np.empty((len(template), length), dtype=np.int64)
    for k, text in enumerate(TEMPLATES):
        rows = np.flatnonzero(template == k)
        words = [BOS, *f"Q: {text} \n A:".replace("{numbers}", "{0} {1} {2}").split(" ")]
        for column, word in enumerate(words):
            if word == "{entity}":
                ids[rows, column] = entity[rows] + _INDEX[ENTITIES[0]]
            elif word == "{attribute}":
                ids[rows, column] = attribute[rows] + _INDEX[ATTRIBUTES[0]]
            elif word.startswith("{"):
                ids[rows, column] = number_index(numbers[rows, int(word[1])])
            else:
                ids[rows, column] = _INDEX[word]
    return ids


def item(entity: int, attribute: int) -> str:
    """Name of a pair of entity and attribute: the group of its prompts."""
    return f"{ENTITIES[entity]}.{ATTRIBUTES[attribute]}"


def number_index(values: np.ndarray) -> np.ndarray:
    """Index of a number's word in `RECALL_VOCABULARY`."""
    return values - 1 + _INDEX["1"]


def _question(template: int, entity: int, attribute: int, numbers: np.ndarray) -> str:
    return TEMPLATES[template].format(
        entity=ENTITIES[entity],
        attribute=ATTRIBUTES[attribute],
        numbers=" ".join(map(str, numbers)),
    )
