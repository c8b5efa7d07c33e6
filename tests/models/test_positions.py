from __future__ import annotations

import pytest
import torch
from helpers import as_users_run_it, tokenized
from hypothesis import given, settings
from hypothesis import strategies as st

import mechmem as mm
from mechmem.models.engine.batching import Batch, Feed
from mechmem.models.engine.plan import plan_batches
from mechmem.models.positions import Positions
from mechmem.models.tokenizing import TokenizedPrompt

WORDS = ["last", "prompt", "generated", "each_step", "all"]


@st.composite
def prompt_lists(draw: st.DrawFn) -> list[TokenizedPrompt]:
    out = []
    for k in range(draw(st.integers(1, 5))):
        length = draw(st.integers(1, 8))
        start = draw(st.integers(0, length - 1))
        end = draw(st.integers(start + 1, length))
        out.append((length, f"p{k}", {"cue": tuple(range(start, end))}))
    return out


def _made(rows) -> list[TokenizedPrompt]:
    return [tokenized(*row) for row in rows]


SPECS = st.lists(st.sampled_from([*WORDS, "cue", 0, -1]), min_size=1, max_size=3) | st.sampled_from(
    [*WORDS, "cue", 0, -1]
)


def _meant(spec, prompt: TokenizedPrompt, position: int) -> bool:
    """What the words say, one token at a time."""
    length = len(prompt.ids)
    for part in spec if isinstance(spec, list) else [spec]:
        if part == "all":
            return True
        if part == "prompt" and position < length:
            return True
        if part == "generated" and position >= length:
            return True
        if part == "each_step" and position >= length - 1:
            return True
        if part == "last" and position == length - 1:
            return True
        if part == "cue" and position in prompt.spans["cue"]:
            return True
        if isinstance(part, int) and position == (part if part >= 0 else length + part):
            return True
    return False


class TestOneMeaning:
    @settings(deadline=None, max_examples=150)
    @given(prompt_lists(), SPECS, st.sampled_from(["left", "right"]))
    def test_a_mask_says_the_same_under_both_paddings(self, rows, spec, side) -> None:
        prompts = _made(rows)
        where = Positions.parse(spec)
        batch = Batch.collate(prompts, range(len(prompts)), 3, side=side)
        mask = batch.feed().mask(where)
        width = max(len(prompt.ids) for prompt in prompts)
        assert mask.shape == (len(prompts), width)
        for k, prompt in enumerate(prompts):
            pad = width - len(prompt.ids) if side == "left" else 0
            for column in range(width):
                inside = 0 <= column - pad < len(prompt.ids)
                assert bool(mask[k, column]) == (inside and _meant(spec, prompt, column - pad))

    @settings(deadline=None, max_examples=100)
    @given(prompt_lists(), SPECS, st.integers(0, 3), st.data())
    def test_a_cached_step_says_the_same_as_the_whole_text(self, rows, spec, step, data) -> None:
        prompts = _made(rows)
        where = Positions.parse(spec)
        live = torch.tensor([data.draw(st.booleans()) for _ in prompts])
        feed = Batch.collate(prompts, range(len(prompts)), 3).feed().step(step, live)
        assert feed.index[:, 0].tolist() == [
            len(prompt.ids) + step if on else -1
            for prompt, on in zip(prompts, live.tolist(), strict=True)
        ]
        mask = feed.mask(where)
        assert mask.shape == (len(prompts), 1)
        for k, prompt in enumerate(prompts):
            wanted = bool(live[k]) and _meant(spec, prompt, len(prompt.ids) + step)
            assert bool(mask[k, 0]) == wanted

    @settings(deadline=None, max_examples=100)
    @given(prompt_lists(), st.integers(1, 4), SPECS)
    def test_an_answer_fed_after_the_prompt_counts_as_generated(self, rows, extra, spec) -> None:
        prompts = _made(rows)
        longer = [TokenizedPrompt(p.id, p.ids + (9,) * extra, p.spans) for p in prompts]
        batch = Batch.collate(longer, range(len(prompts)), 3)
        lengths = torch.tensor([len(prompt.ids) for prompt in prompts])
        mask = Feed(tuple(prompts), batch.index, lengths, batch.rows).mask(Positions.parse(spec))
        for k, prompt in enumerate(prompts):
            for column, position in enumerate(batch.index[k].tolist()):
                wanted = position >= 0 and _meant(spec, prompt, position)
                assert bool(mask[k, column]) == wanted

    @settings(deadline=None, max_examples=100)
    @given(prompt_lists(), SPECS, st.sampled_from(["left", "right"]))
    def test_columns_point_at_the_tokens_in_the_order_given(self, rows, spec, side) -> None:
        prompts = _made(rows)
        where = Positions.parse(spec)
        batch = Batch.collate(prompts, range(len(prompts)), 3, side=side)
        columns = batch.feed().columns(where)
        for k, prompt in enumerate(prompts):
            found = [int(c) for c in columns[k] if c >= 0]
            positions = [int(batch.index[k, c]) for c in found]
            assert positions == [at for _, at in where.columns(prompt)]
            ids = [int(batch.ids[k, c]) for c in found]
            assert ids == [prompt.ids[at] for at in positions]


class TestBatches:
    @settings(deadline=None)
    @given(
        st.lists(st.integers(1, 30), min_size=1, max_size=30),
        st.integers(1, 64),
        st.integers(0, 8),
        st.one_of(st.none(), st.integers(1, 300)),
    )
    def test_every_prompt_runs_once_under_the_budget(self, lengths, budget, extra, kept) -> None:
        prompts = [tokenized(length, str(k)) for k, length in enumerate(lengths)]
        batches = list(plan_batches(prompts, budget, extra, kept))
        assert sorted(row for rows in batches for row in rows) == list(range(len(prompts)))
        for rows in batches:
            width = max(lengths[row] for row in rows)
            assert len(rows) == 1 or width * len(rows) <= budget
            most = budget if kept is None else kept  # without a cache all are read again
            assert len(rows) == 1 or (width + extra) * len(rows) <= most

    def test_collating_pads_on_the_side_asked_for(self) -> None:
        prompts = [tokenized(1, "a"), tokenized(3, "b")]
        left, right = (Batch.collate(prompts, [0, 1], 3, side=side) for side in ("left", "right"))
        assert left.ids.tolist() == [[3, 3, 10], [10, 11, 12]]
        assert right.ids.tolist() == [[10, 3, 3], [10, 11, 12]]
        assert left.mask.tolist() == [[0, 0, 1], [1, 1, 1]]
        assert right.index.tolist() == [[0, -1, -1], [0, 1, 2]]


class TestRefusals:
    @pytest.mark.parametrize("bad", [None, 1.5, True, ["last", None]])
    def test_what_is_no_position(self, bad) -> None:
        with as_users_run_it(), pytest.raises(mm.PositionError, match=r"'last'|not a position"):
            Positions.parse(bad)

    def test_none_at_all(self) -> None:
        with pytest.raises(mm.PositionError, match=r"No positions given.*positions='last'"):
            Positions.parse([])

    def test_mean_with_something_else(self) -> None:
        with pytest.raises(mm.PositionError, match=r"'mean' pools the whole prompt"):
            Positions.parse(["mean", "last"])

    def test_an_unknown_span_names_the_prompt_and_the_nearest(self) -> None:
        prompt = tokenized(4, "q7", {"cue": (1,)})
        with pytest.raises(mm.PositionError, match=r"'cues' for prompt 'q7'.*Did you mean 'cue'"):
            Positions.parse("cues").columns(prompt)

    @pytest.mark.parametrize("index", [4, -5])
    def test_an_integer_outside_the_prompt(self, index) -> None:
        with pytest.raises(mm.PositionError, match=rf"{index} is outside prompt 'q7'.*4 tokens"):
            Positions.parse(index).columns(tokenized(4, "q7"))

    @pytest.mark.parametrize("word", ["generated", "each_step"])
    def test_reading_what_is_only_there_while_generating(self, word) -> None:
        with pytest.raises(mm.PositionError, match=rf"{word}.*is for edits.*Read 'last'"):
            Positions.parse(word).check_stackable([tokenized(3)])

    def test_reading_different_numbers_of_tokens(self) -> None:
        with pytest.raises(mm.PositionError, match=r"between 2 and 3 tokens.*use 'mean'"):
            Positions.parse("prompt").check_stackable([tokenized(2), tokenized(3)])
