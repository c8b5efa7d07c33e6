"""Topics confound labels: how much of the label the topic alone gives away, and balanced samples.

In the paper's MMLU-Pro items, reasoning is mostly mathematics and physics, memory mostly
humanities: a direction between the labels may be one between topics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Int

from mechmem.errors import PromptError
from mechmem.seeding import keyed_order, keyed_rng
from mechmem.tasks.prompts import PromptSet

NO_TOPIC = "(none)"


@dataclass(frozen=True)
class TopicBalance:
    """How topics and labels go together.

    Attributes:
        counts: Prompts by topic (rows) and label (columns).
        majority: Share of the most frequent label: what guessing without the topic gets right.
        by_topic: Share that guessing each topic's most frequent label gets right, counted on the
            prompts themselves. A probe that does no better may have learned the topic.
        dealt: The same with the labels dealt out anew among the groups, middle and 97.5 % point of
            199 draws: small topics give a label away by chance.
        one_sided: Topics in which only one label occurs.
    """

    counts: pd.DataFrame
    majority: float
    by_topic: float
    dealt: tuple[float, float]
    one_sided: tuple[str, ...]

    @property
    def confounded(self) -> bool:
        """Whether topics give more away than they would if labels were dealt out anew."""
        return self.by_topic > self.dealt[1]


def topic_balance(prompts: PromptSet, by: str = "category", seed: int = 0) -> TopicBalance:
    """Counts of topic by label over the labeled prompts.

    Args:
        prompts: With labels; those without one are left out.
        by: Key of the meta that holds the topic.
        seed: Keys the dealing.

    Raises:
        PromptError: When no prompt has a label.
    """
    rows = [(_topic(p.meta.get(by)), p.label, p.group) for p in prompts if p.label is not None]
    if not rows:
        raise PromptError("No prompt has a label; read a set that has them, or apply Labels.")
    frame = pd.DataFrame(rows, columns=[by, "label", "group"])
    counts = pd.crosstab(frame[by], frame["label"])
    return TopicBalance(
        counts,
        float(counts.sum().max() / len(rows)),
        _by_topic(counts.to_numpy()),
        _dealt(frame.sort_values([by, "group"]), by, seed),
        tuple(str(name) for name in counts.index[(counts > 0).sum(axis=1) < 2]),
    )


def _by_topic(counts: Int[np.ndarray, "topic label"]) -> float:
    return float(counts.max(axis=1).sum() / counts.sum())


def _dealt(frame: pd.DataFrame, by: str, seed: int) -> tuple[float, float]:
    """A group keeps its prompts together and takes the label of another group."""
    topics, labels = (pd.factorize(frame[name], sort=True)[0] for name in (by, "label"))
    groups, _ = pd.factorize(frame["group"])
    own = labels[np.unique(groups, return_index=True)[1]]
    rng = keyed_rng(seed, "topic balance")
    found = []
    for _ in range(199):
        counts = np.zeros((topics.max() + 1, labels.max() + 1), dtype=int)
        np.add.at(counts, (topics, rng.permutation(own)[groups]), 1)
        found.append(_by_topic(counts))
    return float(np.median(found)), float(np.quantile(found, 0.975))


def balanced_by_topic(prompts: PromptSet, by: str = "category", seed: int = 0) -> PromptSet:
    """As many prompts of each label within every topic, drawn by key, in their order.

    Topics in which a label is missing drop out. Which prompts stay depends on the seed and the
    ids, not on the order.

    Raises:
        PromptError: When nothing is left, or fewer than two labels occur.
    """
    labels = sorted({p.label for p in prompts if p.label is not None})
    if len(labels) < 2:
        raise PromptError(f"Balancing needs two labels or more, got {labels}.")
    cells: dict[tuple[str, str], list[str]] = {}
    for prompt in prompts:
        if prompt.label is not None:
            cells.setdefault((_topic(prompt.meta.get(by)), prompt.label), []).append(prompt.id)
    kept: set[str] = set()
    for topic in {name for name, _ in cells}:
        members = [cells.get((topic, label), []) for label in labels]
        size = min(map(len, members))
        for ids in members:
            kept.update(keyed_order(ids, seed, "topic", topic)[:size])
    if not kept:
        raise PromptError(
            f"No topic ({by!r}) has prompts of all labels {labels}: the topic decides the label, "
            "and these prompts cannot tell the two apart."
        )
    return prompts.filter(lambda prompt: prompt.id in kept)


def _topic(value: object) -> str:
    return str(value) if value not in (None, "") else NO_TOPIC
