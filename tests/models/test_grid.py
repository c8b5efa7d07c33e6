"""Cells of a grid that share blocks, tokens and passes equal what each of them gives alone."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from helpers import HOOKED, bench, close, differs, fresh_bench, hook_count
from models.hooked3 import HAS_HOOKED_TRANSFORMER, HOOKED_FAMILIES, hooked_transformer

import mechmem as mm
from mechmem.models.check.site_check import require_sites
from mechmem.models.engine.generation import generate
from mechmem.models.engine.grid import Grid, many_logits
from mechmem.models.engine.scoring import (
    answer_logprobs,
    last_logits,
    many_generate,
    many_logprobs,
    one_token,
)
from mechmem.models.engine.shared_forward import can_resume, resumed
from mechmem.models.positions import Positions
from mechmem.models.sites import STREAMS, Site
from tests.models.plain import PARALLEL, greedy, plain_pass
from tests.models.zoo import FAMILIES, SLIDING, build, tokenizer

POSITIONS = ("all", "last", (0, -1))


@dataclass
class Add:
    """Adds a vector, the simplest intervention there is."""

    site: Site
    spec: str | tuple[int, ...]
    vector: torch.Tensor

    @property
    def where(self) -> Positions:
        spec = self.spec
        return Positions.parse(list(spec) if isinstance(spec, tuple) else spec)

    def apply(self, activation: torch.Tensor, feed) -> torch.Tensor:
        flat = activation.flatten(2)
        moved = flat + self.vector.to(flat) * feed.mask(self.where)[..., None].to(flat)
        return moved.reshape(activation.shape)

    def at(self, length: int) -> list[int]:
        if self.spec == "all":
            return list(range(length))
        return [length - 1] if self.spec == "last" else sorted({k % length for k in self.spec})


def vector(width: int, seed: int) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def prompts() -> mm.PromptSet:
    """Ragged, in no order; two begin alike, one is a single token."""
    rng = random.Random(0)

    def words(n: int) -> str:
        return " ".join(str(rng.randrange(60)) for _ in range(n))

    head = words(9)
    texts = [words(3), words(11), f"{head} {words(2)}", words(1), f"{head} {words(4)}"]
    return mm.PromptSet(mm.Prompt(id=f"p{k}", text=text) for k, text in enumerate(texts))


@cache
def loaded(family: str) -> tuple[object, mm.Model]:
    plain = build(family)
    return plain, mm.load_model(plain, tokenizer=tokenizer())


def width_of(model: mm.Model, stream: str) -> int:
    return {"z": model.info.n_heads * int(model.tl.cfg.d_head), "mlp_post": model.info.d_mlp}.get(
        stream, model.info.d_model
    )


def every_cell(model: mm.Model, family: str) -> list[Add]:
    streams = [s for s in STREAMS if not (s == "resid_mid" and family in PARALLEL)]
    return [
        Add(Site(stream, layer), spec, vector(width_of(model, stream), 10 * layer + k))
        for layer in range(model.n_layers)
        for k, stream in enumerate(streams)
        for spec in (POSITIONS if family in ("gpt2", "llama") else POSITIONS[:2])
    ]


def by_hand(plain: object, family: str, ids: tuple[int, ...], edit: Add | None) -> torch.Tensor:
    change = None
    if edit is not None:
        change = (edit.site, lambda h: h + edit.vector.reshape(h.shape[2:]), edit.at(len(ids)))
    return plain_pass(plain, family, ids, change)[1][-1]


def compared(plain: object, model: mm.Model, family: str, edits: list[Add]) -> None:
    asked = model.tokenize(prompts())
    got = many_logits(model.backend, asked, [*([edit] for edit in edits), []])
    for k, edit in enumerate([*edits, None]):
        want = torch.stack([by_hand(plain, family, prompt.ids, edit) for prompt in asked])
        close(got[k], want, 1e-4)


class TestEveryCellEqualsPlainTransformers:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_at_every_stream_layer_and_position(self, family) -> None:
        plain, model = loaded(family)
        assert can_resume(model.backend)
        compared(plain, model, family, every_cell(model, family))

    @pytest.mark.skipif(not HAS_HOOKED_TRANSFORMER, reason="needs TransformerLens 3")
    @pytest.mark.parametrize("family", HOOKED_FAMILIES)
    def test_on_a_hooked_transformer(self, family) -> None:
        model = mm.load_model(hooked_transformer(family), tokenizer=tokenizer())
        assert can_resume(model.backend)
        edits = [
            edit
            for edit in every_cell(model, family)
            if edit.site.stream in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        ]
        compared(build(family), model, family, edits)

    @pytest.mark.parametrize("family", ["gpt2", "llama"])
    def test_in_bfloat16_to_its_own_rounding(self, family) -> None:
        model = mm.load_model(build(family, torch.bfloat16), tokenizer=tokenizer())
        asked = model.tokenize(prompts())
        edits = every_cell(model, family)[::6]
        got = many_logits(model.backend, asked, [[edit] for edit in edits])
        for k, edit in enumerate(edits):
            alone = [
                last_logits(model.backend, [p], interventions=[edit], share=False)[0] for p in asked
            ]
            close(got[k], torch.stack(alone), 0.05)

    @pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
    def test_several_interventions_per_cell_and_a_text_for_every_cell(self, family) -> None:
        plain, model = loaded(family)
        asked = model.tokenize(prompts())
        edits = [Add(Site("resid_post", k % 2), "each_step", vector(32, k)) for k in range(5)]
        got = many_generate(
            model.backend, asked, [*([edit] for edit in edits), []], model.tokens.decode,
            max_new_tokens=4,
        )  # fmt: skip
        for k, edit in enumerate([*edits, None]):
            for row, prompt in enumerate(asked):
                change = None if edit is None else (edit.site, lambda h, v=edit.vector: h + v)
                want, lead = greedy(plain, family, prompt.ids, 4, change)
                assert lead > 1e-4
                assert got[k][row].ids == want
        both = [edits[0], edits[1]]
        joint = many_logits(model.backend, asked, [both, both[::-1], [edits[0]]])
        alone = last_logits(model.backend, asked, interventions=both, share=False)
        close(joint[0], alone, 1e-4)
        close(joint[1], alone, 1e-4)
        differs(joint[2], alone)

    def test_log_probabilities_of_answers_of_several_tokens(self) -> None:
        _, model = loaded("gpt2")
        asked = model.tokenize(prompts())
        answers = [tuple(range(5, 6 + k % 3)) for k in range(len(asked))]
        cells = [[Add(Site("resid_post", 0), spec, vector(32, 3))] for spec in POSITIONS]
        got = many_logprobs(model.backend, asked, answers, [*cells, []])
        for k, cell in enumerate([*cells, []]):
            want = answer_logprobs(model.backend, asked, answers, interventions=cell, share=False)
            close(got[k], want, 1e-4)


class TestWhatIsShared:
    def test_blocks_below_the_edit_and_tokens_before_it_are_not_run_again(
        self, monkeypatch
    ) -> None:
        _, model = loaded("gpt2")
        asked = model.tokenize(prompts())
        assert can_resume(model.backend)
        ran = {block: [] for block in model.tl.blocks}
        kind = type(model.tl.blocks[0])
        own = kind.forward

        def forward(self, *args, **kwargs):
            ran[self].append(args[0].shape[0] * args[0].shape[1])
            return own(self, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", forward)
        cells = [[Add(Site("resid_post", 0), "last", vector(32, k))] for k in range(6)]
        many_logits(model.backend, asked, cells)
        below, above = (ran[block] for block in model.tl.blocks)
        # Once for everybody; then one token per prompt and cell, in the upper block only.
        assert sum(above) == sum(below) + len(cells) * len(asked)
        for tokens in ran.values():
            tokens.clear()
        cells = [[Add(Site("resid_post", 0), "all", vector(32, k))] for k in range(6)]
        many_logits(model.backend, asked, cells)
        below, above = (ran[block] for block in model.tl.blocks)
        assert len(below) == 1  # nothing above it is needed without edits
        assert sum(above) == len(cells) * sum(below)

    def test_edits_by_nothing_and_hooked_models_run_by_themselves(self) -> None:
        _, model = loaded("gpt2")
        asked = model.tokenize(prompts())

        class Nothing(Add):
            where = Positions(())

        still = Nothing(Site("resid_post", 0), "all", torch.zeros(32))
        grid = Grid(model.backend, asked, [[still], []])
        assert grid.alone(0)
        assert not grid.alone(1)
        point = model.tl.hook_dict["blocks.1.hook_resid_post"]
        point.add_hook(lambda tensor, hook: tensor.roll(1, -1))
        try:
            edit = Add(Site("resid_post", 0), "all", vector(32, 1))
            assert Grid(model.backend, asked, [[edit]]).alone(0)
            got = many_logits(model.backend, asked, [[edit]])
            want = last_logits(model.backend, asked, interventions=[edit])
            close(got[0], want, 0.0)
        finally:
            point.remove_hooks()
        differs(got[0], last_logits(model.backend, asked, interventions=[edit]))

    @pytest.mark.parametrize("family", SLIDING)
    def test_windows_that_prompts_outgrow_share_blocks_but_no_tokens(self, family) -> None:
        _, model = loaded(family)
        asked = model.tokenize(prompts())
        edit = Add(Site("resid_post", 1), "last", vector(32, 1))
        (way,) = Grid(model.backend, asked, [[edit]]).routes
        assert way.whole
        assert way.start == 2

    def test_a_small_token_budget_and_few_rows_at_a_time_change_nothing(self) -> None:
        _, model = loaded("llama")
        asked = model.tokenize(prompts())
        cells = [[edit] for edit in every_cell(model, "llama")[::5]]
        wide = many_logits(model.backend, asked, cells)
        close(many_logits(model.backend, asked, cells, token_budget=16), wide, 1e-5)

    def test_a_batch_that_does_not_fit_in_memory_is_halved(self, monkeypatch) -> None:
        _, model = loaded("gpt2")
        asked = model.tokenize(prompts())
        cells = [[edit] for edit in every_cell(model, "gpt2")[::10]]
        want = many_logits(model.backend, asked, cells)
        own = type(model.backend).forward

        def forward(self, ids, mask, **options):
            if ids.shape[0] > 4:
                raise torch.OutOfMemoryError("out of memory, for a test")
            return own(self, ids, mask, **options)

        monkeypatch.setattr(type(model.backend), "forward", forward)
        close(many_logits(model.backend, asked, cells), want, 1e-5)


class TestNothingStaysBehind:
    def test_neither_hooks_nor_replaced_blocks_after_an_exception(self) -> None:
        _, model = loaded("gpt2")
        asked = model.tokenize(prompts())
        before = last_logits(model.backend, asked)
        hooks = hook_count(model)

        class Broken(Add):
            def apply(self, activation, feed):
                raise RuntimeError("on purpose")

        for spec in ("all", "last"):
            cell = [Broken(Site("resid_post", 1), spec, vector(32, 1))]
            with pytest.raises(RuntimeError, match="on purpose"):
                many_logits(model.backend, asked, [cell])
        assert hook_count(model) == hooks
        assert not any("forward" in block.__dict__ for block in model.tl.blocks)
        close(last_logits(model.backend, asked), before, 0.0)

    def test_a_replaced_forward_of_somebody_else_comes_back(self) -> None:
        if HOOKED:
            pytest.skip("one class is enough")
        model = fresh_bench().model
        block = model.tl.blocks[0]
        own = block.forward
        theirs = lambda *args, **kwargs: own(*args, **kwargs)  # noqa: E731
        block.__dict__["forward"] = theirs
        with resumed(model.backend, 2, torch.zeros(1, 1, 16)):
            assert block.__dict__["forward"] is not theirs
        assert block.__dict__["forward"] is theirs


def test_the_completion_of_one_token_is_what_generating_one_gives() -> None:
    model = bench().model
    asked = model.tokenize([f"w{k} w{k + 1}" for k in range(20)])
    decode = model.tokens.decode
    logits = last_logits(model.backend, asked)
    tokens = logits.argmax(-1).tolist()
    for stop in ((), ("w1",), (decode([tokens[0]]),)):
        for ends in ((), tuple(tokens[1:3])):
            want = generate(model.backend, asked, decode, max_new_tokens=1, stop=stop, eos_ids=ends)
            got = [one_token(token, decode, stop, ends) for token in tokens]
            assert got == want


def test_sites_that_are_not_truthful_are_refused_before_anything_runs() -> None:
    _, model = loaded("gpt_neox")
    cell = [Add(Site("resid_mid", 0), "all", vector(32, 0))]
    with pytest.raises(mm.SiteError, match="parallel"):
        many_logits(model.backend, model.tokenize(prompts()), [cell])
    with pytest.raises(mm.SiteError):
        require_sites(model.backend, [Site("resid_mid", 0)])
