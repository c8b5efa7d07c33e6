"""Batched, padded, cached and hooked runs equal plain one-by-one runs, on every family."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from models import parity
from models.hooked3 import HAS_HOOKED_TRANSFORMER, HOOKED_FAMILIES, hooked_transformer
from models.plain import plain_pass
from models.zoo import FAMILIES, build, tokenizer

import mechmem as mm
from mechmem.models.check.invariants import Finding
from mechmem.models.engine import forward
from mechmem.models.engine.gradients import margin_gradients
from mechmem.models.positions import Positions
from mechmem.models.sites import Site
from mechmem.models.tokenizing import TokenizedPrompt


@pytest.mark.parametrize("dtype", parity.DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_bridge_equals_the_plain_model_in_every_cell(family, dtype):
    # bfloat16 rounds alike at every layer: there the edits of the first one do.
    layers = (0, 1) if dtype == "fp32" else (0,)
    measured = list(parity.cells(family, dtype, layers=layers))
    for cell in measured:
        if cell.skipped:
            print(f"{family} {cell.kind} {cell.side} cache={cell.cached}: {cell.skipped}")
    assert {(c.kind, c.side, c.cached) for c in measured} == {
        (kind, side, cached)
        for kind in ("read", "edit", "generate")
        for side in ("left", "right")
        for cached in (True, False)
    }
    assert not [cell for cell in measured if not cell.holds]


@pytest.mark.tl3
@pytest.mark.parametrize("dtype", parity.DTYPES)
@pytest.mark.parametrize("family", HOOKED_FAMILIES)
def test_a_raw_hooked_transformer_equals_the_plain_model_in_every_cell(family, dtype):
    hooked = hooked_transformer(family, parity.DTYPES[dtype])
    model = mm.load_model(hooked, tokenizer=tokenizer(), prepend_bos=False)
    assert model.info.processing == "raw"
    assert not [cell for cell in parity.cells(family, dtype, model, (0,)) if not cell.holds]


@pytest.mark.tl3
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_processed_hooked_transformer_gives_the_same_probabilities_and_says_so(family):
    hooked = hooked_transformer(family, processed=True)
    model = mm.load_model(hooked, tokenizer=tokenizer(), prepend_bos=False)
    assert model.info.processing == "processed"
    plain = build(family)
    texts = [" ".join(str(token - 4) for token in ids) for ids in parity.prompts()]
    for ids, logits in zip(parity.prompts(), model.logits(texts), strict=True):
        expected = plain_pass(plain, family, ids)[1][-1].log_softmax(-1)
        assert float((logits.log_softmax(-1) - expected).abs().max()) < 1e-4


@pytest.mark.tl4
def test_hooked_transformer_is_gone_from_this_version():
    assert not HAS_HOOKED_TRANSFORMER


def test_a_processed_bridge_says_so_and_keeps_the_probabilities():
    plain = build("gpt2")
    model = mm.load_model(plain, tokenizer=tokenizer())
    model.tl.enable_compatibility_mode(disable_warnings=True)
    processed = mm.load_model(model.tl, tokenizer=tokenizer(), prepend_bos=False)
    assert processed.info.processing == "compatibility"
    assert mm.load_model(plain, tokenizer=tokenizer()).info.processing == "raw"
    ids = parity.prompts()[0]
    logits = processed.logits(" ".join(str(token - 4) for token in ids))[0]
    expected = plain_pass(plain, "gpt2", ids)[1][-1].log_softmax(-1)
    assert float((logits.log_softmax(-1) - expected).abs().max()) < 1e-4
    report = mm.models.check_model(processed)
    assert not report.refused


class DroppedMask:
    """A backend that forgets the attention mask."""

    def __init__(self, backend):
        self.kind, self.model, self.findings = backend.kind, backend.model, {}
        self.processing, self._inner = backend.processing, backend
        self.identity, self.fuses = backend.identity, False

    @property
    def shape(self):
        return self._inner.shape

    def forward(self, ids, mask, *, cache=None, use_cache=False, last_only=False):
        ones = torch.ones_like(mask)
        return self._inner.forward(ids, ones, cache=cache, use_cache=use_cache, last_only=last_only)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_the_matrix_notices_a_dropped_mask(family, monkeypatch):
    monkeypatch.setattr(forward, "honors_padding", lambda backend: True)  # waved through as well
    model = mm.load_model(build(family), tokenizer=tokenizer())
    backend = DroppedMask(model.backend)
    backend.findings.update(  # waved through, so that the matrix itself has to notice
        {Site(s, k): Finding(Site(s, k)) for s in mm.models.STREAMS for k in range(2)}
    )
    broken = replace(model, backend=backend)
    measured = list(parity.cells(family, "fp32", broken, (0,)))
    left = [cell for cell in measured if cell.side == "left" and not cell.skipped]
    assert left
    assert not any(cell.holds for cell in left if cell.kind != "generate")


@pytest.mark.parametrize("family", ["gpt2", "llama", "olmo2"])
def test_the_gradient_at_the_middle_stream_is_that_of_finite_differences(family):
    model = mm.load_model(build(family), tokenizer=tokenizer())
    plain = build(family).double()
    ids, site, step = parity.prompts()[1], Site("resid_mid", 0), 1e-2
    slope = margin_gradients(
        model.backend,
        [TokenizedPrompt("p", tuple(ids), {})],
        [(7,)],
        [(9,)],
        [site],
        [Positions.parse("last")],
    )[site, Positions.parse("last")]

    def margin(change):
        logits = plain_pass(plain, family, ids, (site, change, [len(ids) - 1]))[1][-1]
        return float(logits[7] - logits[9])

    for unit in (0, 5, 31):
        way = torch.zeros(32, dtype=torch.float64)
        way[unit] = step
        rise = margin(partial(torch.add, way)) - margin(partial(torch.add, -way))
        expected = rise / (2 * step)
        assert float(slope.gradients[0, 0, unit]) == pytest.approx(expected, rel=5e-3, abs=1e-4)


def test_the_files_of_the_page_hold_a_row_per_kind_format_and_family():
    def cell(kind, side, cached, dtype, error, skipped=""):
        return parity.Cell("gpt2", kind, side, cached, dtype, error, 2.0, f"{side}", skipped)

    made = [
        cell(kind, side, cached, dtype, 1.0 + (side == "right"), "why" if side + kind == no else "")
        for kind, no in (("generate", "rightgenerate"), ("read", ""), ("edit", ""))
        for dtype in ("bf16", "fp32")
        for side in ("left", "right")
        for cached in (True, False)
    ]
    rows = parity.grid(made)
    assert rows[0] == ["read", "fp32", "gpt2", "1.0e+00", "1.0e+00", "2.0e+00", "2.0e+00", "right"]
    assert rows[1] == ["read", "bf16", "gpt2", "0.50", "0.50", "1.00", "1.00", "right"]
    assert rows[5] == ["generate", "bf16", "gpt2", "1 of 9", "1 of 9", "–", "–", ""]
    assert len(rows) == 6
    assert "read fp32 2.0e+00; read bf16 1.00; " in parity.largest(rows)
    assert parity.lacking(made) == [
        ["why", "generate, right padding, cache off; generate, right padding, cache on", "all"]
    ]
