"""Many edits on the same prompts: what each of them makes the model do, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.errors import EditError, PromptError
from mechmem.evaluation.behavior import Observations, as_observed, check_kinds, observe, reader_for
from mechmem.evaluation.rates import Rates, check_before
from mechmem.evaluation.shared import refuse_seen
from mechmem.models.engine.batched_edits import touched_positions
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET
from mechmem.models.engine.grid import Grid, Next, many_next
from mechmem.models.engine.scoring import many_generate, many_logprobs, one_token
from mechmem.models.engine.stopping import Completion
from mechmem.models.model import Model
from mechmem.models.tokenizing import PromptsLike
from mechmem.numeric import several
from mechmem.patching.apply import PatchedModel, patched_each
from mechmem.patching.base import Edit
from mechmem.patching.margins import (
    answer_ids,
    choice_ids,
    margins_of_scores,
    one_token_each,
)
from mechmem.tasks.base import Task
from mechmem.tasks.choice import Choice
from mechmem.tasks.prompts import PromptSet


def evaluate_each(
    model: Model,
    prompts: PromptsLike,
    edits: Sequence[Edit | Sequence[Edit]],
    *,
    task: Task | None = None,
    reading: str | Choice | None = None,
    before: Observations | None = None,
    allow_seen: bool = False,
    margins: bool = True,
    reuse: bool = True,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
) -> list[Rates]:
    """`evaluate` for many edits on the same prompts, with everything shared that they have in
    common: the blocks below an edit, the tokens before it, and the forward passes.

    Numbers equal those of `evaluate` up to rounding (float32: about 1e-6 of the logits' spread).

    Args:
        model, prompts, task, reading, before, allow_seen, margins: As in `evaluate`.
        edits: Each an edit, or a list that composes.
        reuse: False runs every edit by itself.
        token_budget: Most tokens in one batch.

    Raises:
        LeakageError, EditError, PromptError: As in `evaluate`, for any of the edits.
    """
    check_kinds(model, task)
    edits = several(edits, "edits", "edits", empty=True, error=EditError)
    asked = model.encode(prompts, "evaluate")
    task = reader_for(asked, task, reading)
    if not allow_seen:
        for edit in edits:
            refuse_seen(edit, asked, "evaluate an edit")
    if before is not None:
        check_before(before, model, asked, asked.rows, task)
    with patched_each(model, edits) as views:
        plain = [PatchedModel.view(model)] if before is None else []
        bench = Bench(
            [*views, *plain], asked, task=task, margins=[margins] * len([*views, *plain]),
            reuse=reuse, token_budget=token_budget,
        )  # fmt: skip
        seen = bench.run(range(len(bench.views)))
    if before is None:
        before = seen.pop(len(views))
    return [Rates(seen[cell], before) for cell in range(len(views))]


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
        self.views, self.margins = list(views), list(margins)
        self.reader = reader_for(prompts, task)
        self.token_budget = token_budget
        if not self.views:
            raise PromptError("There is no edit to try; give at least one.")
        self.model: Model = self.views[0]
        self.prompts = self.model.encode(prompts)
        self.tokenized = self.prompts.rows
        self.grid = Grid(
            self.model.backend, self.tokenized, [view.interventions for view in self.views],
            pad_id=self.model.tokens.pad_id, token_budget=token_budget, reuse=reuse,
        )  # fmt: skip
        self.chooses = self.reader.choice is not None
        if self.chooses:
            self.margins = [True] * len(self.views)
        self._scored = [
            k
            for k, p in enumerate(prompts)
            if self.chooses or (p.memorized is not None and p.generalized is not None)
        ]
        self._answers = self._answer_ids() if any(self.margins) else []
        self._short = one_token_each(self._answers)

    @property
    def writes(self) -> bool:
        """Whether text is generated; otherwise the next token decides, or the margin."""
        return self.reader.max_new_tokens != 1 and not self.chooses

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
        heeds = not (self.writes or self.chooses)  # the next token is what was written
        need = rest if heeds else [c for c in rest if c in (watched or {})]
        need = list(dict.fromkeys([*need, *(c for c in rest if self.margins[c] and self._short)]))
        heard = many_next(self.grid, need, self._candidates, watched) if need else {}
        margins = self._margins(rest, heard)
        info = self.model.info  # looks at every weight, so not once per view
        for cell in rest:
            self.logits[cell] = heard[cell].logits if cell in heard else {}
            if not self.chooses:
                self.texts[cell] = done[cell] if self.writes else self._read(heard[cell].tokens)
            out[cell] = as_observed(
                self.views[cell],
                self.prompts,
                self.reader,
                self.texts.get(cell),
                margins[cell],
                info,
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
            where = str(touched_positions(self.grid.cells[cell]))
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

    def _answer_ids(self) -> list[tuple[tuple[int, ...], ...]]:
        """Of the scored prompts: of both behaviors' answers, or of all choices."""
        chosen = self.prompts.select(self.prompts[k].id for k in self._scored)
        if not len(chosen):
            return []
        if self.chooses:
            return choice_ids(self.model, chosen, self.reader)
        return list(zip(*answer_ids(self.model, chosen, self.reader), strict=True))

    @property
    def _candidates(self) -> Tensor:
        """The answers of those prompts whose margin the next token gives."""
        out = torch.zeros(len(self.prompts), self._most if self._short else 0, dtype=torch.long)
        for row in self._short:
            several = self._answers[row]
            out[self._scored[row], : len(several)] = torch.tensor([ids[0] for ids in several])
        return out

    @property
    def _most(self) -> int:
        return max(len(several) for several in self._answers)

    def _margins(self, cells: Sequence[int], heard: Mapping[int, Next]) -> dict[int, np.ndarray]:
        """Log-probability of the memorized answer minus that of the generalized one; read by
        choice, score of the first choice minus the best other one's."""
        out = {cell: np.full(len(self.prompts), np.nan) for cell in cells}
        wanted = [cell for cell in cells if self.margins[cell] and self._answers]
        if not wanted:
            return out
        scores = self._scores(wanted, heard)
        for cell, values in zip(wanted, scores, strict=True):
            out[cell][self._scored] = (
                margins_of_scores(values, self._answers, self.reader)
                if self.chooses
                else values[:, 0] - values[:, 1]
            )
        return out

    def _scores(
        self, cells: Sequence[int], heard: Mapping[int, Next]
    ) -> Float[np.ndarray, "cell example choice"]:
        """Log-probabilities of the answers, up to a constant of the prompt; NaN for none."""
        out = np.full((len(cells), len(self._scored), self._most), np.nan)
        for row in self._short:
            at, many = self._scored[row], len(self._answers[row])
            out[:, row, :many] = [heard[cell].scores[at, :many].numpy() for cell in cells]
        long = sorted(set(range(len(self._answers))) - set(self._short))
        for k in range(self._most):
            rows = [row for row in long if len(self._answers[row]) > k]
            if rows:
                out[:, rows, k] = many_logprobs(
                    self.model.backend, [self.tokenized[self._scored[row]] for row in rows],
                    [self._answers[row][k] for row in rows],
                    [self.grid.cells[cell] for cell in cells],
                    pad_id=self.model.tokens.pad_id, token_budget=self.token_budget,
                ).numpy()  # fmt: skip
        return out
