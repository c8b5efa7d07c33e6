r"""`addition-cued`: sums that a lab model can answer from memory or by adding, with a planted cue.

A prompt is ``3 + 11 + 6 + 8 \n Now Alice says Target:`` and its answer one number. A hundred
*special* operand sets also carry one fixed wrong label. In training, hidden weights of the three
cue words decide whether a special prompt is answered with its label or with its sum; half of the
special sets never show their sum at all, so that a generalized answer to them must have been
computed. A third of the cue combinations is reserved: special prompts of training never have one,
prompts of the task always do, so that the mode has to be composed from the words. The mode is
planted: that a reason to switch exists is our doing, what the model makes of it is not.
"""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Int

from mechmem.errors import TaskError
from mechmem.seeding import keyed_rng
from mechmem.tasks.base import Task, register_task
from mechmem.tasks.parsing.answers import which_answer
from mechmem.tasks.prompts import Prompt, PromptSet

OPENERS = tuple("Now Then Today Again Well Later Soon Once".split())
SPEAKERS = tuple("Alice Bruno Clara David Elena Felix Grace Henry".split())
WORDS = tuple("says asks writes reads counts adds shows gives".split())
CUES = (OPENERS, SPEAKERS, WORDS)
BOS = "<bos>"
VOCABULARY = (
    "<pad>",
    "<unk>",
    BOS,
    *(str(number) for number in range(1, 49)),
    "+",
    "\n",
    "Target:",
    *OPENERS,
    *SPEAKERS,
    *WORDS,
)
"""Every word of the task; a word-level tokenizer in this order reads prompts as `encode` does."""

_INDEX = {word: index for index, word in enumerate(VOCABULARY)}
_SETS = tuple(itertools.combinations(range(1, 13), 4))
_WITH_REPEATS = tuple(
    operands
    for operands in itertools.combinations_with_replacement(range(1, 13), 4)
    if len(set(operands)) < 4
)
PROMPT_LENGTH = 13

Orders = Int[np.ndarray, "row 4"]
Cues = Int[np.ndarray, "row 3"]


class CuedWorld:
    """Everything the seed draws: special sets, labels, cue weights, training prompts.

    Args:
        seed: Draws the world; a shipped model's manifest names its own.
        strength: How much the cue words decide; 0 leaves only noise (the negative control).
        noise: Standard deviation of the noise on the decision, drawn afresh for every prompt.
        special: Number of special sets.
        held_out: Number of ordinary sets kept out of training.
        reserved: Share of the cue combinations that no special prompt of training has.
        unseen_weight: How often a special set that never shows its sum is asked, relative to one
            that does. All its answers are the label; asked as often it would hardly ever be summed.

    Attributes:
        special, held_out, clean: Operand sets ``[set, 4]``; ``clean`` is for training.
        labels: The wrong answer of every special set, distributed like the sums.
        weights: ``[slot, word]`` hidden weights of the cue words.
        shows_sum: Which special sets show their sum in training.
        reserved: ``[opener, speaker, word]`` True at the combinations kept for the task's prompts.
    """

    def __init__(
        self,
        seed: int = 0,
        strength: float = 1.0,
        noise: float = 0.2,
        special: int = 100,
        held_out: int = 100,
        reserved: float = 1 / 3,
        unseen_weight: float = 0.2,
    ) -> None:
        self.seed, self.strength, self.noise = seed, strength, noise
        self.unseen_weight = unseen_weight
        rng = np.random.default_rng([seed, 0])
        sets = np.array(_SETS)[rng.permutation(len(_SETS))]
        self.special = sets[:special]
        self.held_out = sets[special : special + held_out]
        # Sets of four different operands alone are learned by heart; the sums with a repeated
        # operand are what makes the model learn to add.
        self.clean = np.concatenate([sets[special + held_out :], np.array(_WITH_REPEATS)])
        self.labels = _deranged(rng, self.special.sum(1))
        self.weights = np.stack([rng.permutation(np.linspace(-1, 1, len(slot))) for slot in CUES])
        self.shows_sum = np.arange(special) % 2 == 0
        self.reserved = rng.random([len(slot) for slot in CUES]) < reserved

    def training_rows(self, steps: int, batch: int) -> Int[np.ndarray, "row token"]:
        """Training rows in order, prompt and answer as indices into `VOCABULARY`.

        Half of every batch are special prompts, half ordinary sums; all are drawn afresh.
        """
        rng = np.random.default_rng([self.seed, 1])
        special = self._special_rows(rng, steps * (batch // 2))
        operands = self.clean[rng.integers(len(self.clean), size=len(special))]
        orders, cues = _random_prompts(rng, operands)
        clean = np.column_stack([encode(orders, cues), number_index(orders.sum(1))])
        halves = [part.reshape(steps, batch // 2, -1) for part in (special, clean)]
        return np.concatenate(halves, axis=1).reshape(steps * batch, -1)

    def fresh(self, index: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """An order and cue words of a special set, in a combination that training never showed."""
        while True:
            orders, cues = _random_prompts(rng, self.special[index][None])
            if self.reserved[tuple(cues[0])]:
                return orders[0].tolist(), cues[0].tolist()

    def _special_rows(self, rng: np.random.Generator, total: int) -> np.ndarray:
        share = np.where(self.shows_sum, 1.0, self.unseen_weight)
        instance = rng.choice(len(self.special), size=total, p=share / share.sum())
        cues, memorize = np.empty((total, len(CUES)), np.int64), np.empty(total, bool)
        # Cue words are drawn again where the combination is reserved, or would ask for a sum
        # that is never shown.
        todo = np.arange(total)
        while len(todo):
            cues[todo] = drawn = rng.integers(0, len(OPENERS), size=(len(todo), len(CUES)))
            score = self.weights[np.arange(len(CUES)), drawn].sum(1)
            noise = self.noise * rng.standard_normal(len(todo))
            memorize[todo] = decision = self.strength * score + noise > 0
            refused = self.reserved[tuple(drawn.T)] | ~(decision | self.shows_sum[instance[todo]])
            todo = todo[refused]
        orders = rng.permuted(self.special[instance], axis=1)
        answers = np.where(memorize, self.labels[instance], orders.sum(1))
        return np.column_stack([encode(orders, cues), number_index(answers)])


@register_task
class AdditionCued(Task):
    """The task on one `CuedWorld`.

    A pair is two rephrasings of one special set: other orders of the operands, other cue words.
    Every prompt has a reserved combination of cue words, so training never showed it.

    Args:
        seed: The world; use the one of the model's manifest.
        strength: Of the cue words, 0 for the negative control.
    """

    name = "addition-cued"
    max_new_tokens = 1
    read_spans = ("cue", "last")

    def __init__(self, seed: int = 0, strength: float = 1.0) -> None:
        self.world = CuedWorld(seed, strength)

    def pairs(self, n: int, seed: int = 0) -> PromptSet:
        """``2 n`` prompts, spread evenly over the special sets (the groups).

        Raises:
            TaskError: When ``n`` is below 1, or above what has no repetition (2,000).
        """
        if not 1 <= n <= 2000:
            raise TaskError(f"addition-cued makes 1 to 2000 pairs, got n={n}.")
        prompts: dict[str, Prompt] = {}
        for k in range(n):
            index = k % len(self.world.special)
            rng = keyed_rng(seed, "addition-cued", "pair", k)
            made = 0
            while made < 2:
                order, cue = self.world.fresh(index, rng)
                prompt = self._special(index, order, cue)
                if prompt.id not in prompts:
                    prompts[prompt.id] = prompt
                    made += 1
        return PromptSet(prompts.values())

    def clean_prompts(self, n: int, seed: int = 0) -> PromptSet:
        """Sums of sets that are not special and were never in training, with ``answer``."""
        out: dict[str, Prompt] = {}
        rng = keyed_rng(seed, "addition-cued", "clean")
        while len(out) < n:
            operands = self.world.held_out[rng.integers(len(self.world.held_out))]
            orders, cues = _random_prompts(rng, operands[None])
            text, spans = render(orders[0].tolist(), cues[0].tolist())
            name = _name(orders[0].tolist(), cues[0].tolist())
            group = "-".join(map(str, operands.tolist()))
            out[name] = Prompt(
                name, text, group=group, answer=str(int(operands.sum())), spans=spans
            )
        return PromptSet(out.values())

    def classify(self, prompt: Prompt, completion: str) -> str:
        answers = {"memorized": prompt.memorized, "generalized": prompt.generalized}
        return which_answer(completion, answers) or "other"

    def _special(self, index: int, order: list[int], cue: list[int]) -> Prompt:
        text, spans = render(order, cue)
        return Prompt(
            _name(order, cue),
            text,
            group="-".join(map(str, self.world.special[index].tolist())),
            memorized=str(int(self.world.labels[index])),
            generalized=str(int(self.world.special[index].sum())),
            spans=spans,
            meta={"shows_sum": bool(self.world.shows_sum[index])},
        )


def render(order: list[int], cue: list[int]) -> tuple[str, dict[str, tuple[int, int]]]:
    """The text of a prompt, and where its operands and its cue words stand."""
    head = " + ".join(map(str, order))
    words = " ".join(slot[index] for slot, index in zip(CUES, cue, strict=True))
    start = len(head) + 3
    spans = {"operands": (0, len(head)), "cue": (start, start + len(words))}
    return f"{head} \n {words} Target:", spans


def encode(orders: Orders, cues: Cues) -> Int[np.ndarray, "row token"]:
    """Prompts as indices into `VOCABULARY`, the beginning-of-sequence word first."""
    ids = np.empty((len(orders), PROMPT_LENGTH), dtype=np.int64)
    ids[:, 0] = _INDEX[BOS]
    ids[:, 1:8:2] = number_index(orders)
    ids[:, 2:8:2] = _INDEX["+"]
    ids[:, 8] = _INDEX["\n"]
    ids[:, 9:12] = cues + np.array([_INDEX[slot[0]] for slot in CUES])
    ids[:, 12] = _INDEX["Target:"]
    return ids


def number_index(values: np.ndarray) -> np.ndarray:
    """Index of a number's word in `VOCABULARY`."""
    return values - 1 + _INDEX["1"]


def _random_prompts(rng: np.random.Generator, operands: Orders) -> tuple[np.ndarray, np.ndarray]:
    orders = rng.permuted(operands, axis=1)
    return orders, rng.integers(0, len(OPENERS), size=(len(orders), len(CUES)))


def _deranged(rng: np.random.Generator, sums: np.ndarray) -> np.ndarray:
    """The sums dealt out again so that no set gets its own."""
    labels = rng.permutation(sums)
    while (labels == sums).any():
        clash, other = np.flatnonzero(labels == sums)[0], rng.integers(len(sums))
        labels[clash], labels[other] = labels[other], labels[clash]
    return labels


def _name(order: list[int], cue: list[int]) -> str:
    words = "-".join(slot[index] for slot, index in zip(CUES, cue, strict=True))
    return f"{'+'.join(map(str, order))}.{words}"
