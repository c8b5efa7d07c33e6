"""Training items of a task as token ids, in one endless order that every resume finds again."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from mechmem.errors import TaskError
from mechmem.models.tokenizing import Tokens
from mechmem.tasks.paper1.official import OfficialTask, TrainingText
from mechmem.tasks.prompts import Prompt
from mechmem.training.settings import TrainingSettings

TrainingItem = tuple[tuple[int, ...], int]
"""Token ids of prompt, answer and end; and how many of them are the prompt's."""


class Items(torch.utils.data.Dataset[TrainingItem]):
    """All items of a run in the order in which they are trained; an epoch is made when needed.

    Item ``i`` depends on the task, the settings and ``i`` alone, so a resumed run goes on with
    exactly the items that an uninterrupted one would see.
    """

    def __init__(
        self, task: OfficialTask[Any], settings: TrainingSettings, tokens: Tokens, total: int
    ) -> None:
        self.task, self.settings, self.tokens, self.total = task, settings, tokens, total
        self.size = epoch_size(task, settings)
        fresh = settings.fresh
        self.fresh = task.fresh_each_epoch if fresh is None else fresh
        self._made: tuple[int, list[TrainingText]] | None = None

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> TrainingItem:
        epoch, row = divmod(index, self.size)
        if self._made is None or self._made[0] != epoch:
            self._made = (epoch, self._epoch(epoch))
        return encode([self._made[1][row]], self.tokens)[0]

    def _epoch(self, epoch: int) -> list[TrainingText]:
        if self.fresh or epoch == 0:
            return self.task.training(self.size, self.settings.seed, epoch)
        # The same items every epoch, but in another order.
        fixed = self.task.training(self.size, self.settings.seed, 0)
        order = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
        return [fixed[k] for k in torch.randperm(self.size, generator=order).tolist()]


def epoch_size(task: OfficialTask[Any], settings: TrainingSettings) -> int:
    """Items of one epoch."""
    return settings.samples or task.training_size


def encode(texts: Sequence[TrainingText], tokens: Tokens) -> list[TrainingItem]:
    """Training items as the model is to read them: the prompt exactly as it is asked later.

    Raises:
        TaskError: When one is longer than the model's context.
    """
    unlimited = copy.copy(tokens)
    unlimited.n_ctx = None  # the whole item is measured below, not its prompt alone
    end = tokens.tokenizer.eos_token_id
    out = []
    for text in texts:
        prompt = Prompt(id="training", text=text.prompt)
        row = unlimited.encode(prompt).rows[0]
        head, tail = row.ids, tokens.continuation(prompt, text.target, row)
        ids = (*head, *tail, *(() if end is None else (end,)))
        if tokens.n_ctx is not None and len(ids) > tokens.n_ctx:
            raise TaskError(
                f"A training item has {len(ids)} tokens, but the model reads at most "
                f"{tokens.n_ctx}: {text.text!r:.80}. Use a model with a longer context."
            )
        out.append((ids, len(head)))
    return out


def collate(items: Sequence[TrainingItem], loss: str, pad: int) -> dict[str, torch.Tensor]:
    """A batch, padded on the right; what does not count for the loss is labeled -100."""
    longest = max(len(ids) for ids, _ in items)
    ids = torch.full((len(items), longest), pad)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, (sequence, head) in enumerate(items):
        values = torch.tensor(sequence)
        ids[row, : len(sequence)], mask[row, : len(sequence)] = values, 1
        first = head if loss == "answer" else 0
        labels[row, first : len(sequence)] = values[first:]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
