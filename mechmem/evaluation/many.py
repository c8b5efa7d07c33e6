"""Many edits on the same prompts: what each of them makes the model do, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mechmem.errors import PromptError
from mechmem.evaluation.behavior import Observations, as_observed, check_kinds, observe
from mechmem.evaluation.rates import Rates, check_before, refuse_seen
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET
from mechmem.models.engine.cells import touched
from mechmem.models.engine.generation import Completion
from mechmem.models.engine.grid import Grid
from mechmem.models.engine.many import Next, many_generate, many_logprobs, many_next, one_token
from mechmem.models.hooked import Model
from mechmem.models.tokens import PromptsLike, as_prompts
from mechmem.patching.apply import PatchedModel, patched_each
from mechmem.patching.base import Edit, as_edits
from mechmem.patching.margins import answer_ids
from mechmem.tasks.base import PromptAnswers, Task
from mechmem.tasks.prompts import PromptSet

__all__ = ["Bench", "evaluate_each"]


def evaluate_each(
    model: Model,
    prompts: PromptsLike,
    edits: Sequence[Edit | Sequence[Edit]],
    *,
    task: Task | None = None,
    before: Observations | None = None,
    allow_seen: bool = False,
    margins: bool = True,
    reuse: bool = True,
    seed: int = 0,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
) -> list[Rates]:
    """`evaluate` for many edits on the same prompts, with everything shared that they have in
    common: the blocks below an edit, the tokens before it, and the forward passes.

    Numbers equal those of `evaluate` up to rounding (float32: about 1e-6 of the logits' spread).

    Args:
        model, prompts, task, before, allow_seen, margins, seed: As in `evaluate`.
        edits: Each an edit, or a list that composes.
        reuse: False runs every edit by itself.
        token_budget: Most tokens in one batch.

    Raises:
        LeakageError, EditError, PromptError: As in `evaluate`, for any of the edits.
    """
    asked = as_prompts(prompts).require("evaluate")
    tokenized = model.tokenize(asked)
    if not allow_seen:
        for edit in edits:
            refuse_seen(as_edits(edit), asked, tokenized)
    if before is not None:
        check_before(before, model, asked, tokenized)
    with patched_each(model, edits) as views:
        plain = [PatchedModel.view(model)] if before is None else []
        bench = Bench(
            [*views, *plain], asked, task=task, margins=[margins] * len([*views, *plain]),
            reuse=reuse, token_budget=token_budget,
        )  # fmt: skip
        seen = bench.run(range(len(bench.views)))
    if before is None:
        before = seen.pop(len(views))
    return [Rates(seen[cell], before, seed) for cell in range(len(views))]


class Bench:
    """Views of one model under different edits, asked the same prompts.

    Args:
        views: From `patched_each`.
        prompts: What each of them is asked.
        task: Reads the completions; default the prompts' own answers.
        margins: Per view, whether both answers are scored.
        reuse: False runs every view by itself.
        token_budget: Most tokens in one batch.
    """

    def __init__(
        self,
        views: Sequence[PatchedModel],
        prompts: PromptSet,
        *,
        task: Task | None = None,
        margins: Sequence[bool],
        reuse: bool = True,
        token_budget: int = DEFAULT_TOKEN_BUDGET,
    ) -> None:
        for view in views:
            check_kinds(view, task)
        self.views, self.prompts, self.margins = list(views), prompts, list(margins)
        self.reader = task if task is not None else PromptAnswers.for_prompts(prompts)
        self.token_budget = token_budget
        if not self.views:
            raise PromptError("There is no edit to try; give at least one.")
        self.model: Model = self.views[0]
        self.tokenized = self.model.tokenize(prompts)
        self.grid = Grid(
            self.model.backend, self.tokenized, [view.interventions for view in self.views],
            pad_id=self.model.tokens.pad_id, token_budget=token_budget, reuse=reuse,
        )  # fmt: skip
        self._scored = [
            k
            for k, p in enumerate(prompts)
            if p.memorized is not None and p.generalized is not None
        ]
        self._answers = self._answer_ids() if any(margins) else []

    @property
    def writes(self) -> bool:
        """Whether text is generated; otherwise the next token decides."""
        return self.reader.max_new_tokens != 1

    def run(
        self, which: Sequence[int], watched: Mapping[int, Sequence[int]] | None = None
    ) -> dict[int, Observations]:
        """What some of the views do.

        Args:
            which: By their place in `views`.
            watched: Prompts whose logits are to be kept, by view, in ``logits``. What was written
                lies in ``texts``.
        """
        self.logits: dict[int, dict[int, Tensor]] = {}
        self.texts: dict[int, list[Completion]] = {}
        out = {cell: self._by_itself(cell) for cell in which if self._alone(cell)}
        rest = [cell for cell in which if cell not in out]
        done = self._written(rest) if self.writes else {}
        need = rest if not self.writes else [c for c in rest if c in (watched or {})]
        need = list(dict.fromkeys([*need, *(c for c in rest if self.margins[c] and self._single)]))
        heard = many_next(self.grid, need, self._candidates, watched) if need else {}
        margins = self._margins(rest, heard)
        for cell in rest:
            self.logits[cell] = heard[cell].logits if cell in heard else {}
            self.texts[cell] = done[cell] if self.writes else self._read(heard[cell].tokens)
            out[cell] = as_observed(
                self.views[cell],
                self.prompts,
                self.tokenized,
                self.reader,
                self.texts[cell],
                margins[cell],
            )
        return out

    def _alone(self, cell: int) -> bool:
        """Whether a view runs by itself. The unedited model does if one that edits nothing is to
        equal it to the bit."""
        cells = self.grid.cells
        alone = [cell] if cells[cell] else range(len(cells))
        return any(map(self.grid.alone, alone))

    def _by_itself(self, cell: int) -> Observations:
        return observe(
            self.views[cell], self.prompts, task=self.reader, margins=self.margins[cell],
            token_budget=self.token_budget,
        )  # fmt: skip

    def _read(self, tokens: Tensor) -> list[Completion]:
        decode, ends = self.model.tokens.decode, self.model.eos_ids
        return [one_token(token, decode, self.reader.stop, ends) for token in tokens.tolist()]

    def _written(self, cells: Sequence[int]) -> dict[int, list[Completion]]:
        """Text of every cell; those that touch the same tokens are written side by side, and the
        unedited model, which touches none, beside the first of them."""
        groups: dict[str, list[int]] = {}
        for cell in sorted(cells, key=lambda cell: not self.grid.cells[cell]):
            where = str(touched(self.grid.cells[cell]))
            if not self.grid.cells[cell] and groups:
                where = next(iter(groups))
            groups.setdefault(where, []).append(cell)
        out: dict[int, list[Completion]] = {}
        for members in groups.values():
            done = many_generate(
                self.model.backend, self.tokenized, [self.grid.cells[cell] for cell in members],
                self.model.tokens.decode, max_new_tokens=self.reader.max_new_tokens,
                stop=self.reader.stop, eos_ids=self.model.eos_ids, pad_id=self.model.tokens.pad_id,
                n_ctx=self.model.tokens.n_ctx, token_budget=self.token_budget,
            )  # fmt: skip
            out |= zip(members, done, strict=True)
        return out

    def _answer_ids(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        chosen = PromptSet(self.prompts[k] for k in self._scored)
        if not len(chosen):
            return []
        return list(zip(*answer_ids(self.model, chosen, self.reader), strict=True))

    @property
    def _single(self) -> bool:
        """Whether one pass gives the margins: both answers of every prompt are one token."""
        return bool(self._answers) and all(
            len(answer) == 1 for pair in self._answers for answer in pair
        )

    @property
    def _candidates(self) -> Tensor:
        out = torch.zeros(len(self.prompts), 2 if self._single else 0, dtype=torch.long)
        if self._single:
            out[self._scored] = torch.tensor([[a[0], b[0]] for a, b in self._answers])
        return out

    def _margins(self, cells: Sequence[int], heard: Mapping[int, Next]) -> dict[int, np.ndarray]:
        """Log-probability of the memorized answer minus that of the generalized one."""
        out = {cell: np.full(len(self.prompts), np.nan) for cell in cells}
        wanted = [cell for cell in cells if self.margins[cell] and self._answers]
        if not wanted:
            return out
        if self._single:
            for cell in wanted:
                scores = heard[cell].scores[self._scored].numpy()
                out[cell][self._scored] = scores[:, 0] - scores[:, 1]
            return out
        chosen = [self.tokenized[k] for k in self._scored]
        both = [
            many_logprobs(
                self.model.backend, chosen, [pair[k] for pair in self._answers],
                [self.grid.cells[cell] for cell in wanted], pad_id=self.model.tokens.pad_id,
                token_budget=self.token_budget,
            )
            for k in (0, 1)
        ]  # fmt: skip
        for cell, values in zip(wanted, (both[0] - both[1]).numpy(), strict=True):
            out[cell][self._scored] = values
        return out
