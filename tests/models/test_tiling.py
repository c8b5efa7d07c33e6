"""Cells abreast in one row: the mask by hand, and models that take no such mask."""

from __future__ import annotations

import pytest
import torch
from helpers import HOOKED, close

import mechmem as mm
from mechmem.models.engine import batched_edits
from mechmem.models.engine.batched_edits import PackedCells, packs_cells
from mechmem.models.engine.batching import Batch
from mechmem.models.engine.grid import Grid, many_logits
from mechmem.models.engine.prefixes import PrefixCache
from mechmem.models.engine.scoring import last_logits
from mechmem.models.sites import Site
from mechmem.models.tokenizing import TokenizedPrompt
from tests.models.test_grid import Add, prompts, vector
from tests.models.zoo import FAMILIES, SLIDING, build, tokenizer

FULL = [family for family in FAMILIES if family not in SLIDING]


def load(family: str) -> mm.Model:
    return mm.load_model(build(family), tokenizer=tokenizer())


def test_a_token_sees_its_beginning_and_its_own_cell_up_to_itself() -> None:
    # Prompt a: tokens 0 1 2 known, 3 4 new. Prompt b: 0 known, 1 new. So b's row is padded twice.
    asked = [TokenizedPrompt("a", (5, 6, 7, 8, 9), {}), TokenizedPrompt("b", (5, 6), {})]
    batch = Batch.collate(asked, [0, 1], 0, skip=[3, 1])
    seen = torch.tensor([[1, 1, 1], [0, 0, 1]])
    tiles = PackedCells(batch, 3, PrefixCache(seen, []))
    got = tiles.mask(torch.float32) == 0
    for row, (known, new) in enumerate([(3, 2), (1, 1)]):
        for query in range(6):
            cell, at = divmod(query, 2)
            for key in range(9):
                if key < 3:
                    sees = key >= 3 - known
                else:
                    other, there = divmod(key - 3, 2)
                    sees = other == cell and there <= at and there >= 2 - new
                assert bool(got[row, 0, query, key]) == sees, (row, query, key)
    assert tiles.mask(torch.float32).min() == torch.finfo(torch.float32).min


@pytest.mark.skipif(HOOKED, reason="cells stand abreast on bridges only")
class TestOnModels:
    @pytest.mark.parametrize("family", FULL)
    def test_more_tokens_abreast_than_the_context_holds(self, family) -> None:
        model = load(family)
        assert packs_cells(model.backend)
        asked = model.tokenize(prompts())
        assert model.tokens.n_ctx is not None
        count = model.tokens.n_ctx + 20
        edits = [Add(Site("resid_pre", 1), "last", vector(32, k)) for k in range(count)]
        got = many_logits(model.backend, asked, [[edit] for edit in edits])
        for k in (0, 7, count - 1):
            want = last_logits(model.backend, asked, interventions=[edits[k]], share=False)
            close(got[k], want, 1e-5)

    def test_a_model_that_ignores_such_a_mask_runs_all_tokens_of_every_cell(
        self, monkeypatch
    ) -> None:
        model = load("llama")
        own = type(model.backend).forward

        def deaf(self, ids, mask, **options):
            mask = torch.zeros_like(mask) if mask.ndim == 4 else mask
            return own(self, ids, mask, **options)

        monkeypatch.setattr(type(model.backend), "forward", deaf)
        assert not packs_cells(model.backend)
        self._falls_back(model)

    def test_a_model_that_refuses_it_does_as_well(self, monkeypatch) -> None:
        model = load("gpt2")
        own = type(model.backend).forward

        def strict(self, ids, mask, *, cache=None, use_cache=False, last_only=False):
            return own(self, ids, mask, cache=cache, use_cache=use_cache, last_only=last_only)

        monkeypatch.setattr(type(model.backend), "forward", strict)
        assert not packs_cells(model.backend)
        self._falls_back(model)

    def _falls_back(self, model: mm.Model) -> None:
        asked = model.tokenize(prompts())
        edits = [Add(Site("resid_post", 0), "last", vector(32, k)) for k in range(3)]
        grid = Grid(model.backend, asked, [[edit] for edit in edits])
        assert all(way.whole for way in grid.routes)
        got = many_logits(model.backend, asked, [[edit] for edit in edits])
        for k, edit in enumerate(edits):
            want = last_logits(model.backend, asked, interventions=[edit], share=False)
            close(got[k], want, 1e-5)

    def test_it_is_tried_once_per_model(self, monkeypatch) -> None:
        model = load("gpt2")
        assert packs_cells(model.backend)
        monkeypatch.setattr(
            batched_edits, "_try_packed_cells", lambda backend: pytest.fail("tried again")
        )
        assert packs_cells(model.backend)
