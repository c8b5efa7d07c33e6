"""Attention by the fused kernel: the same numbers, nothing written out, nothing left behind."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import fresh_bench
from models.zoo import CAPPED, FAMILIES, build, tokenizer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mechmem as mm
from mechmem.models.engine import attention
from mechmem.models.engine.attention import calls, fused, looked_into
from mechmem.models.engine.capabilities import choose_attention, forget

pytestmark = pytest.mark.skipif(
    fresh_bench().model.backend.kind != "TransformerBridge", reason="a bridge's attention"
)


def ragged(rows: int = 3, width: int = 11) -> tuple[Tensor, Tensor]:
    ids = torch.randint(4, 64, (rows, width), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, : 3 * row] = 0
    return ids, mask


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers_own_eager_attention_alone(family: str) -> None:
    plain = build(family)
    backend = mm.load_model(plain, tokenizer=tokenizer()).backend
    choose_attention(backend)
    assert backend.fuses == (family not in CAPPED)
    ids, mask = ragged()
    before = calls()
    with torch.no_grad():
        found, _ = backend.forward(ids, mask)
        for row in range(len(ids)):
            alone = ids[row : row + 1, 3 * row :]
            torch.testing.assert_close(found[row, 3 * row :], plain(alone).logits[0])
    assert calls() - before == (0 if family in CAPPED else 2)


@torch.no_grad()
def test_no_tensor_grows_with_the_square_of_the_length_where_nothing_is_padded() -> None:
    config = FAMILIES["llama"]()
    config.max_position_embeddings = 600
    plain = type(build("llama"))(config).eval()
    model = mm.load_model(plain, tokenizer=tokenizer())
    choose_attention(model.backend)
    ids = torch.randint(4, 64, (1, 600))

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple) else (out,):
                if isinstance(value, Tensor):
                    self.numbers = max(self.numbers, value.numel())
            return out

    def largest() -> int:
        with Largest() as seen:
            model.backend.forward(ids, torch.ones_like(ids), last_only=True)
        return seen.numbers

    assert largest() < 600 * 600 / 4
    model.backend.fuses = False
    assert largest() >= 600 * 600


def test_who_looks_at_a_pattern_sees_it_and_can_change_it() -> None:
    backend = mm.load_model(build("llama"), tokenizer=tokenizer()).backend
    choose_attention(backend)
    ids, mask = ragged(1)
    seen: list[Tensor] = []
    with torch.no_grad():
        quick, _ = backend.forward(ids, mask)
        point = backend.model.blocks[1].attn.hook_pattern
        point.add_hook(lambda tensor, hook: seen.append(tensor))
        assert looked_into(backend.model)
        shown, _ = backend.forward(ids, mask)
        torch.testing.assert_close(shown, quick)
        assert seen[0].shape == (1, 4, 11, 11)
        torch.testing.assert_close(seen[0].sum(-1), torch.ones(1, 4, 11))
        point.add_hook(lambda tensor, hook: torch.eye(11).expand_as(tensor))
        changed, _ = backend.forward(ids, mask)
        assert not torch.allclose(changed, quick, atol=1e-2)
        backend.model.reset_hooks()
        assert not looked_into(backend.model)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_nothing_is_left_behind_whatever_happens_inside(family: str) -> None:
    backend = mm.load_model(build(family), tokenizer=tokenizer()).backend
    own = [set(vars(block.attn)) for block in backend.model.blocks]

    def clean() -> bool:
        config = backend.model.original_model.config
        return config._attn_implementation == "eager" and own == [
            set(vars(block.attn)) for block in backend.model.blocks
        ]

    def broken_off() -> None:
        with fused(backend.model):
            assert not clean()
            raise KeyError

    with pytest.raises(KeyError):
        broken_off()
    assert clean()
    choose_attention(backend)
    ids, mask = ragged()
    backend.forward(ids, mask)
    assert clean()


def test_a_model_on_which_the_kernel_differs_keeps_the_bridge_s_own_way(
    monkeypatch, caplog
) -> None:
    backend = mm.load_model(build("llama"), tokenizer=tokenizer()).backend
    right = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *args, **more: 1.001 * right(*args, **more)
    )
    with caplog.at_level(logging.INFO, "mechmem"):
        choose_attention(backend)
    assert not backend.fuses
    assert "fused attention: no, the numbers differ" in caplog.messages
    monkeypatch.undo()
    forget(backend)
    choose_attention(backend)
    assert backend.fuses


class TestDeferred:
    """What stands for a tensor is that tensor to everybody who asks otherwise than attention."""

    def heads(self) -> tuple[Tensor, Tensor, Tensor]:
        gen = torch.Generator().manual_seed(0)
        return tuple(torch.randn(2, n, t, 5, generator=gen) for n, t in ((6, 4), (2, 7), (2, 7)))  # type: ignore[return-value]

    def test_keys_in_every_form(self) -> None:
        _, keys, _ = self.heads()
        held = attention._Heads(keys)
        spread = held[:, :, None, :, :].expand(2, 2, 3, 7, 5)
        together = spread.reshape(2, 6, 7, 5)
        want = keys.repeat_interleave(3, 1)
        assert isinstance(together, attention._Heads)
        for found, expected in (
            (held, keys), (spread, keys[:, :, None].expand(2, 2, 3, 7, 5)), (together, want),
            (held.repeat_interleave(3, dim=1), want), (together.transpose(2, 3), want.mT),
            (held[:1], keys[:1]), (together.reshape(12, 7, 5), want.reshape(12, 7, 5)),
            (torch.cat([together, together]), torch.cat([want, want])), (held + 1, keys + 1),
            (held.flatten(1), keys.flatten(1)), (together.transpose(0, 1), want.transpose(0, 1)),
        ):  # fmt: skip
            assert found.shape == expected.shape
            assert torch.equal(torch.as_tensor(attention._whole(found)), expected)

    def test_scores_that_anything_else_is_done_to(self) -> None:
        queries, keys, values = self.heads()
        held = attention._Heads(keys, 3)
        want = queries @ keys.repeat_interleave(3, 1).mT * 0.3
        for change in (
            torch.tanh,
            lambda s: s / 2,
            lambda s: s + 1.0,
            lambda s: s.masked_fill(s.isnan(), 1),
        ):
            scores = torch.matmul(queries, held.transpose(-2, -1)) * 0.3
            assert isinstance(scores, attention._Scores)
            torch.testing.assert_close(change(scores), change(want))
        pattern = F.softmax(torch.matmul(queries, held.transpose(-2, -1)) * 0.3, dim=-1)
        before = calls()
        found = torch.matmul(pattern, attention._Heads(values, 3))  # nothing said what is masked
        torch.testing.assert_close(found, want.softmax(-1) @ values.repeat_interleave(3, 1))
        assert calls() == before
