"""Short prompts that share rows: the mask by hand, the arrangement, and models against plain
transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from helpers import HOOKED, close
from hypothesis import given, settings
from hypothesis import strategies as st

import mechmem as mm
from mechmem.caching.memory import Memory
from mechmem.models.engine import packing
from mechmem.models.engine.batching import Batch, PlannedBatch
from mechmem.models.engine.forward import plan_passes
from mechmem.models.engine.packing import ENOUGH, can_pack, pack, packed_causal_mask
from mechmem.models.engine.plan import PassPlan, make_plan
from mechmem.models.engine.reading import last_block, take_states
from mechmem.models.positions import Positions
from mechmem.models.sites import STREAMS, Site
from mechmem.models.tokenizing import TokenizedPrompt
from tests.models.plain import PARALLEL, plain_pass
from tests.models.test_grid import Add, vector
from tests.models.zoo import FAMILIES, SLIDING, VOCAB, WINDOW, build, tokenizer

LENGTHS = (19, 2, 7, 11, 1, 5, 3, 13, 4, 1, 8)


@pytest.fixture(autouse=True)
def cheap(monkeypatch) -> None:
    """As on a model whose tokens cost something: on these, starting a pass is what costs."""
    monkeypatch.setattr("mechmem.models.engine.forward.pass_cost", lambda backend: 30.0)
    monkeypatch.setattr("mechmem.models.engine.forward.pair_cost", lambda backend: 1 / 256)


def asked(lengths: Sequence[int] = LENGTHS) -> list[TokenizedPrompt]:
    """Random tokens; no two prompts begin alike."""
    draw = torch.Generator().manual_seed(0)
    return [
        TokenizedPrompt(
            str(k), (4 + k, *torch.randint(4, VOCAB, (n - 1,), generator=draw).tolist()), {}
        )
        for k, n in enumerate(lengths)
    ]


def load(family: str = "gpt2") -> mm.Model:
    return mm.load_model(build(family), tokenizer=tokenizer())


def packed(model: mm.Model, prompts: Sequence[TokenizedPrompt], **how) -> bool:
    return plan_passes(model.backend, prompts, 8192, pack=True, **how).packs


def read(model, prompts, sites, positions="last", **how) -> dict[tuple[Site, int], torch.Tensor]:
    out = {}
    for taken in take_states(model.backend, prompts, sites, Positions.parse(positions), **how):
        for site, value in taken.states.items():
            out |= {(site, row): value[k] for k, row in enumerate(taken.rows)}
    assert len(out) == len(prompts) * len(sites)
    return out


class TestTheMask:
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_a_token_sees_earlier_tokens_of_its_own_prompt_and_no_others(self, side) -> None:
        prompts = asked((3, 2, 4))
        batch = Batch.collate(prompts, [0, 1, 2], 0, side=side, lane_of=[0, 0, 1])
        owner = [[0, 0, 0, 1, 1], [None, 2, 2, 2, 2] if side == "left" else [2, 2, 2, 2, None]]
        assert batch.ids.shape == (2, 5)
        assert batch.mask.tolist() == [[who is not None for who in row] for row in owner]
        assert batch.starts.tolist() == [[0, 0], [0, 3], [1, 1 if side == "left" else 0]]
        for row, (lane, start) in enumerate(batch.starts.tolist()):
            width = len(prompts[row].ids)
            assert tuple(batch.ids[lane, start : start + width].tolist()) == prompts[row].ids
            assert batch.index[lane, start : start + width].tolist() == list(range(width))
        got = packed_causal_mask(batch, torch.float32)
        for lane in range(2):
            for query in range(5):
                for key in range(5):
                    if owner[lane][query] is None:
                        continue  # nobody reads what padding sees
                    sees = owner[lane][key] == owner[lane][query] and key <= query
                    assert bool(got[lane, 0, query, key] == 0) == sees, (lane, query, key)
        assert got.min() == torch.finfo(torch.float32).min
        assert bool((got == 0).any(-1).all()), "a token without anything to see would be NaN"

    def test_positions_are_found_in_the_shared_row(self) -> None:
        prompts = asked((3, 2, 4))
        feed = Batch.collate(prompts, [0, 1, 2], 0, lane_of=[0, 0, 1]).feed()
        rows, columns = feed.at(Positions((0, "last")))
        assert rows[:, 0].tolist() == [0, 0, 1]
        assert columns.tolist() == [[0, 2], [3, 4], [1, 4]]
        mask = feed.mask(Positions(("last",)))
        assert mask.nonzero().tolist() == [[0, 2], [0, 4], [1, 4]]
        assert feed.mask(Positions(("all",))).sum() == 9
        assert feed.covers(Positions(("all",))) is None  # one place is padding


class TestTheArrangement:
    @settings(deadline=None, max_examples=300)
    @given(
        st.lists(st.integers(1, 60), min_size=1, max_size=60),
        st.integers(1, 300),
        st.integers(0, 60),
        st.integers(40, 120),
    )
    def test_every_prompt_stands_once_in_rows_that_are_wide_enough(
        self, lengths, budget, cost, context
    ) -> None:
        batches = list(pack(lengths, budget, cost, 0.01, context))
        assert sorted(row for item in batches for row in item.rows) == list(range(len(lengths)))
        for item in batches:
            work = PlannedBatch.of(item.rows, item.lane_of, [lengths[row] for row in item.rows])
            used: dict[int, int] = {}
            for row, lane in zip(item.rows, item.lane_of, strict=True):
                used[lane] = used.get(lane, 0) + lengths[row]
            assert list(used) == list(range(work.lanes))
            assert work.width == max(used.values())
            assert bool(work.lane_of) == (len(used) < len(item.rows))
            if len(item.rows) > 1:
                assert work.computed <= max(budget, max(lengths))
                assert work.computed <= max(ENOUGH * cost, 2 * max(lengths))
            if len(item.rows) > len(used):
                assert work.width <= max(context, max(lengths))

    def test_gaps_are_filled_with_the_longest_that_fits(self) -> None:
        (item,) = pack([10, 3, 7, 4, 2, 2, 2], 1000, 100, 0.01)
        assert item == ((0, 2, 1, 3, 4, 5, 6), (0, 1, 1, 2, 2, 2, 2))

    def test_short_prompts_are_not_put_into_rows_much_wider_than_they_are(self) -> None:
        batches = list(pack([400, *[10] * 200], 8192, 100, 1 / 128))
        assert batches[0].rows == (0,)
        assert all(item.lane_of.count(0) <= 2 for item in batches[1:])

    def test_no_row_of_several_outgrows_the_context_or_the_bound_on_pairs(self) -> None:
        for most, context in ((1500, 1500), (2048, math.inf)):
            batches = list(pack([1100, *[400] * 9], 10**6, 10**5, 0.0, context))
            wide = [
                sum([1100, *[400] * 9][row] for row, at in zip(*item, strict=True) if at == lane)
                for item in batches
                for lane in set(item.lane_of)
            ]
            assert sum(wide) == 1100 + 9 * 400
            assert max(wide) <= most
        assert [item.lane_of for item in pack([3000, 2], 10**6, 10**5, 0.0, 4096)] == [(0,), (0,)]

    def test_it_is_left_where_rows_are_full_anyway(self) -> None:
        assert not make_plan(asked([9] * 20), pass_cost=50, pair_cost=0.01).packs

    def test_halves_hold_whole_rows_then_whole_prompts(self) -> None:
        work = PlannedBatch.of(range(6), (0, 0, 1, 1, 1, 2), (6, 4, 1, 2, 5, 9))
        assert (work.lanes, work.width, work.computed) == (3, 10, 30)
        one, other = work.halves()
        assert (one.rows, one.lane_of, one.width) == ((0, 1), (0, 0), 10)
        assert (other.rows, other.lane_of, other.width) == ((2, 3, 4, 5), (0, 0, 0, 1), 9)
        # So a part of a row that did not fit is tried, and named by its own length.
        assert [(part.rows, part.width) for part in one.halves()] == [((0,), 6), ((1,), 4)]
        assert one.halves()[0].halves() == []

    def test_memory_is_that_of_the_rows(self) -> None:
        shared = PlannedBatch.of(range(6), (0, 0, 1, 1, 1, 2), (6, 4, 1, 2, 5, 9))
        alone = PlannedBatch((0, 1, 2), 10)
        memory = Memory(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
        assert memory.of(shared) == memory.of(alone) == 1 + 2 * 30 + 4 * 300

    def test_the_digest_knows_the_rows(self) -> None:
        prompts = asked((2, 2))
        plans = [
            PassPlan((PlannedBatch.of((0, 1), at, (2, 2)),), tuple(prompts))
            for at in ((0, 0), (0, 1))
        ]
        assert plans[0].digest != plans[1].digest


@pytest.mark.skipif(HOOKED, reason="rows are shared on bridges only")
class TestOnModels:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("positions", ["last", [0, -1]], ids=str)
    def test_states_equal_plain_transformers(self, family, positions) -> None:
        model = load(family)
        lengths = [n for n in LENGTHS if n <= WINDOW] if family in SLIDING else LENGTHS
        prompts = asked([n for n in lengths if n > 1 or isinstance(positions, str)])
        assert packed(model, prompts)
        streams = [s for s in STREAMS if not (s == "resid_mid" and family in PARALLEL)]
        sites = [Site(s, layer) for s in streams for layer in range(model.n_layers)]
        got = read(model, prompts, sites, positions)
        plain = build(family)
        for row, prompt in enumerate(prompts):
            want, _ = plain_pass(plain, family, prompt.ids)
            for site in sites:
                state = want[site].flatten(1)[[-1] if positions == "last" else positions]
                close(got[site, row].flatten(1), state, 1e-4)

    @pytest.mark.parametrize("positions", ["last", [0]], ids=str)
    def test_behind_a_last_block_that_runs_on_the_tokens_that_are_read(self, positions) -> None:
        model, prompts = load(), asked()
        sites = [Site("resid_post", 0), Site("resid_post", 1)]
        assert packed(model, prompts)
        assert last_block(model.backend, sites, []) == 1
        got = read(model, prompts, sites, positions)
        for row, prompt in enumerate(prompts):
            want, _ = plain_pass(build("gpt2"), "gpt2", prompt.ids)
            for site in sites:
                close(got[site, row], want[site][[-1] if positions == "last" else positions], 1e-4)

    def test_all_tokens_of_prompts_of_one_length(self) -> None:
        model, prompts = load("llama"), asked((9, 3, 3, 3))
        assert packed(model, prompts)
        site = Site("resid_post", 1)
        short = [item for item in prompts if len(item.ids) == 3]
        plan = plan_passes(model.backend, prompts, 8192, pack=True)
        (work,) = [work for work in plan.works if len(set(work.lane_of)) < len(work.rows)]
        mine = PassPlan((PlannedBatch.of(range(3), (0, 0, 0), (3, 3, 3)),), tuple(short))
        assert set(work.rows) >= {1, 2, 3}
        got = read(model, short, [site], "all", plan=mine)
        for row, prompt in enumerate(short):
            close(got[site, row], plain_pass(build("llama"), "llama", prompt.ids)[0][site], 1e-4)

    def test_few_passes_and_little_padding(self, monkeypatch) -> None:
        model, prompts, computed = load(), asked(), []
        sites = [Site("resid_post", 1)]
        read(model, prompts, sites)  # whatever is tried once has been tried
        own = type(model.backend).forward

        def forward(self, ids, mask, **options):
            computed.append(ids.numel())
            return own(self, ids, mask, **options)

        monkeypatch.setattr(type(model.backend), "forward", forward)
        read(model, prompts, sites)
        assert len(computed) == 1
        assert sum(computed) <= 1.1 * sum(LENGTHS)
        computed.clear()
        read(model, prompts, sites, share=False)
        assert sum(computed) > 1.5 * sum(LENGTHS)

    def test_memory_that_runs_out_halves_shared_rows(self, monkeypatch) -> None:
        model, prompts, tried = load(), asked(), []
        sites = [Site("resid_post", 0), Site("z", 1)]
        want = read(model, prompts, sites)
        own = type(model.backend).forward

        def forward(self, ids, mask, **options):
            tried.append(ids.numel())
            if ids.numel() > 20:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return own(self, ids, mask, **options)

        monkeypatch.setattr(type(model.backend), "forward", forward)
        got = read(model, prompts, sites)
        assert max(tried) > 20
        for key, value in got.items():
            close(value, want[key], 1e-5)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision_stays_finite_and_near(self, dtype) -> None:
        model = mm.load_model(build("llama", dtype), tokenizer=tokenizer())
        prompts, sites = asked(), [Site("resid_post", 1)]
        assert packed(model, prompts)
        got = read(model, prompts, sites)
        for key, value in read(model, prompts, sites, share=False).items():
            close(got[key], value, 16 * torch.finfo(dtype).eps)


@pytest.mark.skipif(HOOKED, reason="rows are shared on bridges only")
class TestARowForEveryPrompt:
    def test_with_edits_in_force(self) -> None:
        model = load()
        edit = Add(Site("resid_post", 0), "last", vector(32, 0))
        assert packed(model, asked())
        assert not packed(model, asked(), interventions=[edit])

    def test_where_more_than_states_is_wanted(self) -> None:
        assert not plan_passes(load().backend, asked(), 8192).packs

    def test_where_means_over_prompts_are_read(self, monkeypatch) -> None:
        model, site = load(), Site("resid_post", 1)
        monkeypatch.setattr(
            packing, "packed_causal_mask", lambda *args: pytest.fail("rows were shared")
        )
        monkeypatch.setattr(
            "mechmem.models.engine.forward.packed_causal_mask", packing.packed_causal_mask
        )
        got = read(model, asked(), [site], "mean")
        for row, prompt in enumerate(asked()):
            want = plain_pass(build("gpt2"), "gpt2", prompt.ids)[0][site]
            close(got[site, row], want.double().mean(0, keepdim=True), 1e-4)

    def test_when_told_not_to_share(self) -> None:
        assert not packed(load(), asked(), share=False)

    def test_for_hooks_of_the_user(self) -> None:
        model = load()
        point = model.tl.hook_dict["blocks.0.hook_resid_post"]
        point.add_hook(lambda tensor, hook: None)
        try:
            assert not packed(model, asked())
        finally:
            point.remove_hooks()

    def test_for_hooks_inside_the_transformers_model(self) -> None:
        model = load()
        handle = model.tl.original_model.transformer.register_forward_hook(lambda *args: None)
        try:
            assert not packed(model, asked())
        finally:
            handle.remove()
        assert packed(model, asked())

    @pytest.mark.parametrize("family", SLIDING)
    def test_where_a_prompt_is_longer_than_a_window(self, family) -> None:
        model, lengths = load(family), (WINDOW, 1, 2, 3, 1, 2)
        assert packed(model, asked(lengths))
        assert not packed(model, asked((WINDOW + 1, *lengths[1:])))

    def test_on_a_model_that_ignores_such_a_mask(self, monkeypatch) -> None:
        model = load("llama")
        own = type(model.backend).forward

        def deaf(self, ids, mask, **options):
            causal = torch.full(mask.shape[-2:], float("-inf")).triu(1)
            mask = causal.expand(mask.shape) if mask.ndim == 4 else mask
            return own(self, ids, mask, **options)

        monkeypatch.setattr(type(model.backend), "forward", deaf)
        self._refused(model)

    def test_on_a_model_that_ignores_positions(self, monkeypatch) -> None:
        model = load("gpt2")
        own = type(model.backend).forward

        def deaf(self, ids, mask, *, positions=None, **options):
            if positions is not None:
                positions = torch.arange(ids.shape[1]).expand_as(ids)
            return own(self, ids, mask, positions=positions, **options)

        monkeypatch.setattr(type(model.backend), "forward", deaf)
        self._refused(model)

    def test_on_a_model_that_takes_no_positions(self, monkeypatch) -> None:
        model = load("gpt2")
        own = type(model.backend).forward

        def strict(self, ids, mask, *, cache=None, use_cache=False, last_only=False, **options):
            if options.get("positions") is not None:
                raise TypeError("forward() got an unexpected keyword argument 'position_ids'")
            return own(self, ids, mask, cache=cache, use_cache=use_cache, last_only=last_only)

        monkeypatch.setattr(type(model.backend), "forward", strict)
        self._refused(model)

    def _refused(self, model: mm.Model) -> None:
        assert not can_pack(model.backend)
        assert not packed(model, asked())
        site = Site("resid_post", 1)
        family = {"GPT2LMHeadModel": "gpt2"}.get(
            type(model.backend.model.original_model).__name__, "llama"
        )
        got = read(model, asked(), [site])
        for row, prompt in enumerate(asked()):
            want, _ = plain_pass(build(family), family, prompt.ids)
            close(got[site, row], want[site][[-1]], 1e-4)

    def test_it_is_tried_once_per_model(self, monkeypatch) -> None:
        model = load()
        assert can_pack(model.backend)
        monkeypatch.setattr(packing, "_try_packing", lambda backend: pytest.fail("tried again"))
        assert can_pack(model.backend)
