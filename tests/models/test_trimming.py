"""The MLP of the last block runs on the tokens that are read, where nobody could tell."""

from __future__ import annotations

import pytest
import torch
from helpers import HOOKED, bench, close, fresh_bench

import mechmem as mm
from mechmem.models.check.site_check import require_sites
from mechmem.models.engine.capabilities import forget
from mechmem.models.engine.reading import can_trim, last_block, take_states
from mechmem.models.positions import Positions
from mechmem.models.sites import Site
from mechmem.models.tokenizing import TokenizedPrompt
from tests.models.plain import plain_pass
from tests.models.test_grid import Add, prompts, vector
from tests.models.zoo import FAMILIES, build, tokenizer

TOP = Site("resid_post", 1)


@pytest.fixture
def model() -> mm.Model:
    return bench().model


@pytest.fixture
def computed(model, monkeypatch) -> list[int]:
    """How many tokens every pass through the MLP of the last block has."""
    kind, seen = type(model.tl.blocks[1].mlp), []
    own = kind.forward

    def forward(self, states, *args, **kwargs):
        if self is model.tl.blocks[1].mlp:
            seen.append(states.shape[0] * states.shape[1])
        return own(self, states, *args, **kwargs)

    can_trim(model.backend, 1)
    require_sites(model.backend, [TOP, Site("mlp_post", 1), Site("attn_out", 1)])
    monkeypatch.setattr(kind, "forward", forward)
    return seen


def asked_of(model: mm.Model) -> list[TokenizedPrompt]:
    """Ragged prompts of two tokens and more."""
    return [item for item in model.tokenize(prompts()) if len(item.ids) > 1]


def read(model, sites, positions="last", edits=()):
    asked = asked_of(model)
    out = {}
    for taken in take_states(
        model.backend, asked, sites, Positions.parse(positions), interventions=edits
    ):
        for site, value in taken.states.items():
            for k, row in enumerate(taken.rows):
                out[site, row] = value[k]
    return out


@pytest.mark.skipif(HOOKED, reason="families are bridges")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("positions", ["last", [0, -1]], ids=str)
def test_states_equal_plain_transformers(family, positions) -> None:
    plain = build(family)
    model = mm.load_model(plain, tokenizer=tokenizer())
    sites = [Site("resid_post", layer) for layer in range(model.n_layers)]
    assert last_block(model.backend, sites, []) == model.n_layers - 1
    got = read(model, sites, positions)
    for row, item in enumerate(asked_of(model)):
        want, _ = plain_pass(build(family), family, item.ids)
        for site in sites:
            at = [-1] if positions == "last" else positions
            close(got[site, row], want[site][at], 1e-4)


def test_other_tokens_are_left_out(model, computed) -> None:
    read(model, [TOP])  # trials of the model come first
    computed.clear()
    read(model, [TOP])
    trimmed = sum(computed)
    computed.clear()
    read(model, [TOP, Site("mlp_post", 1)])
    assert trimmed == len(asked_of(model))
    assert sum(computed) >= sum(len(item.ids) for item in asked_of(model))


def test_a_stream_that_is_examined_on_first_use_is_examined_whole() -> None:
    model = fresh_bench().model
    got = read(model, [Site("mlp_post", 0), TOP])
    assert not model.backend.findings[Site("mlp_post", 0)].reason
    for key, value in read(model, [Site("mlp_post", 0), TOP, Site("mlp_post", 1)]).items():
        if key in got:
            close(got[key], value, 1e-5)


class TestEverythingRuns:
    def whole(self, model, computed) -> None:
        assert sum(computed) >= sum(len(item.ids) for item in asked_of(model))

    def test_when_all_of_it_is_read(self, model, computed) -> None:
        read(model, [TOP], "mean")
        self.whole(model, computed)

    @pytest.mark.skipif(HOOKED, reason="only a bridge has mlp_module")
    def test_when_what_the_mlp_writes_is_read_as_well(self, model, computed) -> None:
        site = Site("mlp_module", 1)
        got = read(model, [site, TOP])
        self.whole(model, computed)
        for key, value in read(model, [site]).items():
            assert torch.equal(got[key], value)

    def test_when_an_edit_acts_in_that_block(self, model, computed) -> None:
        edit = Add(Site("resid_post", 1), "last", vector(model.info.d_model, 0))
        read(model, [TOP], edits=[edit])
        self.whole(model, computed)

    def test_when_somebody_has_hooked_the_model(self, model, computed) -> None:
        point = model.tl.hook_dict["blocks.1.hook_resid_post"]
        point.add_hook(lambda tensor, hook: tensor.flip(1))
        try:
            got = read(model, [TOP])
            self.whole(model, computed)
        finally:
            point.remove_hooks()
        assert any(not torch.equal(got[key], value) for key, value in read(model, [TOP]).items())

    def test_when_the_block_ends_in_another_stream(self, model) -> None:
        assert last_block(model.backend, [Site("attn_out", 1)], []) is None


def test_an_mlp_that_mixes_tokens_is_not_trimmed(monkeypatch) -> None:
    model = mm.load_model(build("llama"), tokenizer=tokenizer()) if not HOOKED else bench().model
    kind = type(model.tl.blocks[0].mlp)
    own = kind.forward

    def mixing(self, states, *args, **kwargs):
        return own(self, states + states.mean(1, keepdim=True), *args, **kwargs)

    monkeypatch.setattr(kind, "forward", mixing)
    forget(model.backend)
    try:
        assert not can_trim(model.backend, 1)
        assert last_block(model.backend, [TOP], []) is None
    finally:
        forget(model.backend)


def test_the_mlp_is_its_own_again_after_an_error(model, monkeypatch) -> None:
    can_trim(model.backend, 1)
    read(model, [TOP])  # trials of the model come first
    monkeypatch.setattr(
        type(model.backend), "forward", lambda *a, **k: (_ for _ in ()).throw(KeyError("broken"))
    )
    with pytest.raises(KeyError, match="broken"):
        read(model, [TOP])
    assert "forward" not in model.tl.blocks[1].mlp.__dict__
