"""Trials: asked once, strict, and never a way to lose an error that is about something else."""

from __future__ import annotations

import logging

import pytest
import torch
from helpers import fresh_bench

import mechmem as mm
from mechmem.models.engine.capabilities import forget, holds, same_logits, tried


def raising(error: Exception) -> bool:
    raise error


def test_a_question_is_asked_once_per_model_until_it_is_forgotten() -> None:
    asked: list[str] = []
    one, other = fresh_bench().model.backend, fresh_bench().model.backend

    def answer() -> int:
        asked.append("x")
        return len(asked)

    assert [tried(one, "q", answer), tried(one, "q", answer), tried(other, "q", answer)] == [
        1,
        1,
        2,
    ]
    assert tried(one, ("q", 1), answer) == 3
    forget(one)
    assert tried(one, "q", answer) == 4
    assert tried(other, "q", answer) == 2


def test_it_runs_without_gradients_and_without_hooks_of_the_user() -> None:
    model = fresh_bench().model
    fired: list[int] = []
    model.tl.add_hook("blocks.0.hook_resid_post", lambda tensor, hook: fired.append(1))
    ids = torch.tensor([[5, 6, 7]])

    def run() -> bool:
        logits, _ = model.backend.forward(ids, torch.ones_like(ids))
        return logits.requires_grad

    assert not tried(model.backend, "grad", run)
    assert not fired
    run()
    assert fired


def test_a_model_that_raises_does_not_hold_and_the_log_says_why(caplog) -> None:
    with caplog.at_level(logging.INFO, "mechmem"):
        assert not holds("flying", lambda: raising(TypeError("no wings")))
        assert not holds("swimming", lambda: False)
        assert holds("walking", lambda: True)
    assert [record.message for record in caplog.records] == [
        "flying: no, TypeError: no wings", "swimming: no, the numbers differ",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()], ids=["cuda", "cpu"]
)
def test_memory_that_runs_out_says_nothing_about_the_model(error) -> None:
    backend = fresh_bench().model.backend
    with pytest.raises(type(error)):
        tried(backend, "q", lambda: holds("anything", lambda: raising(error)))
    assert tried(backend, "q", lambda: True)


def test_train_mode_is_refused_and_not_remembered() -> None:
    model = fresh_bench().model
    model.tl.train()
    with pytest.raises(mm.ModelError, match="train mode"):
        tried(model.backend, "q", lambda: False)
    model.tl.eval()
    assert tried(model.backend, "q", lambda: True)


class TestSameLogits:
    def test_up_to_rounding(self) -> None:
        plain = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
        assert same_logits(plain + 1e-6, plain)
        assert not same_logits(plain * 1.001, plain)
        assert not same_logits(plain.roll(1, -1), plain)

    def test_a_large_common_part_hides_nothing(self) -> None:
        noise = torch.randn(2, 50, generator=torch.Generator().manual_seed(1))
        plain = (100 + noise[:1]).bfloat16()
        assert not same_logits((100 + noise[1:]).bfloat16(), plain)
        assert same_logits(plain + 8, plain)  # a constant changes no probability

    def test_every_row_counts_and_nan_never_holds(self) -> None:
        plain = torch.randn(3, 50, generator=torch.Generator().manual_seed(2))
        bad = plain.clone()
        bad[1] = bad[1].flip(0)
        assert not same_logits(bad, plain)
        bad[1] = float("nan")
        assert not same_logits(bad, plain)
