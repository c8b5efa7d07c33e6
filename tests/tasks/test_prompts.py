from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from helpers import as_users_run_it
from hypothesis import given, settings
from hypothesis import strategies as st

import mechmem as mm
from mechmem.tasks.base import PromptAnswers
from mechmem.tasks.parsing.answers import starts_with_answer

# Text that people really have: any character but lone surrogates and NUL (no CSV can hold it).
TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=12)
ANSWER = st.none() | TEXT.filter(str.strip)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)


ANSWERS = ("memorized", "generalized", "answer", "label", "behavior")


@st.composite
def prompt_fields(draw: st.DrawFn) -> list[dict]:
    ids = draw(st.lists(TEXT.filter(str.strip), unique=True, max_size=4))
    prompts = []
    for name in ids:
        text = draw(TEXT)
        spans = {}
        if text:
            start = draw(st.integers(0, len(text) - 1))
            spans = {"cue": (start, draw(st.integers(start + 1, len(text))))}
        chat = draw(st.none() | st.fixed_dictionaries({"system": st.none() | TEXT}))
        prompts.append(
            {
                "id": name,
                "text": text,
                "group": draw(TEXT),
                **{key: draw(ANSWER) for key in ANSWERS},
                "spans": spans,
                "chat": chat and {**chat, "assistant_prefix": draw(TEXT)},
                "meta": draw(st.dictionaries(TEXT, JSON, max_size=2)),
            }
        )
    return prompts


def _made(fields: list[dict]) -> mm.PromptSet:
    return mm.PromptSet(
        mm.Prompt(**{**row, "chat": row["chat"] and mm.Chat(**row["chat"])}) for row in fields
    )


NASTY = mm.PromptSet(
    [
        mm.Prompt(
            id="007",
            text='He said "1,5;\t<b>yes</b>"\r\nand\rleft\n\n\u2028 é 漢字 🙂 ',
            group="NA",
            memorized="null",
            generalized="1e5",
            answer="007",
            label="nan",
            behavior="memorized",
            spans={"cue": (0, 2), "last word": (3, 7)},
            chat=mm.Chat(system='Be, "brief".\n', assistant_prefix="\n"),
            meta={"n": 3, "nested": {"a": [1, None, "x,y"]}, "empty": ""},
        ),
        mm.Prompt(id="8", text="", group="007", chat=mm.Chat()),
        mm.Prompt(id="True", text=" 12 ", answer="1.0"),
        mm.Prompt(id="1.0", text="=1+2", meta={"id": "other", "text": "other"}),
    ]
)


def _same(one: mm.PromptSet, other: mm.PromptSet) -> None:
    assert list(one) == list(other)
    assert [type(value) for p in one for value in (p.id, p.text, p.group)] == [str] * 3 * len(one)


class TestRoundTrips:
    def test_nasty_texts_survive_jsonl(self, tmp_path) -> None:
        _same(mm.PromptSet.from_jsonl(NASTY.to_jsonl(tmp_path / "a" / "p.jsonl")), NASTY)

    def test_nasty_texts_survive_csv(self, tmp_path) -> None:
        _same(mm.PromptSet.from_csv(NASTY.to_csv(tmp_path / "a" / "p.csv")), NASTY)

    def test_nasty_texts_survive_parquet(self, tmp_path) -> None:
        _same(mm.PromptSet.from_parquet(NASTY.to_parquet(tmp_path / "a" / "p.parquet")), NASTY)

    def test_nasty_texts_survive_pandas_and_datasets(self) -> None:
        _same(mm.PromptSet.from_pandas(NASTY.to_pandas()), NASTY)
        _same(mm.PromptSet.from_datasets(NASTY.to_datasets()), NASTY)

    @settings(max_examples=60, deadline=None)
    @given(prompt_fields())
    def test_any_set_survives_jsonl_and_csv(self, tmp_path_factory, fields) -> None:
        prompts = _made(fields)
        folder = tmp_path_factory.mktemp("any")
        _same(mm.PromptSet.from_jsonl(prompts.to_jsonl(folder / "p.jsonl")), prompts)
        _same(mm.PromptSet.from_csv(prompts.to_csv(folder / "p.csv")), prompts)

    @settings(max_examples=30, deadline=None)
    @given(prompt_fields())
    def test_any_set_survives_tables(self, tmp_path_factory, fields) -> None:
        prompts = _made(fields)
        folder = tmp_path_factory.mktemp("any")
        _same(mm.PromptSet.from_pandas(prompts.to_pandas()), prompts)
        _same(mm.PromptSet.from_parquet(prompts.to_parquet(folder / "p.parquet")), prompts)
        _same(mm.PromptSet.from_datasets(prompts.to_datasets()), prompts)

    def test_an_empty_set_survives(self, tmp_path) -> None:
        empty = mm.PromptSet()
        assert len(mm.PromptSet.from_jsonl(empty.to_jsonl(tmp_path / "p.jsonl"))) == 0
        assert len(mm.PromptSet.from_csv(empty.to_csv(tmp_path / "p.csv"))) == 0

    def test_a_csv_from_a_spreadsheet_with_a_byte_order_mark_keeps_its_id_column(
        self, tmp_path
    ) -> None:
        path = tmp_path / "p.csv"
        path.write_bytes(b"\xef\xbb\xbfid,text\r\n007,hello\r\n")
        only = mm.PromptSet.from_csv(path)[0]
        assert (only.id, only.text, dict(only.meta)) == ("007", "hello", {})


class TestFromRecords:
    def test_unknown_columns_are_kept_as_meta_and_the_id_defaults_to_the_row(self) -> None:
        rows = [{"text": "a", "source": "web", "id": None}, {"text": "b", "meta": {"k": 1}}]
        prompts = mm.PromptSet.from_records(rows)
        assert prompts.ids == ["0", "1"]
        assert dict(prompts[0].meta) == {"source": "web"}
        assert dict(prompts[1].meta) == {"k": 1}

    def test_numbers_become_text(self) -> None:
        prompt = mm.PromptSet.from_records([{"id": 7, "text": "x", "answer": 12, "group": 3}])[0]
        assert (prompt.id, prompt.answer, prompt.group) == ("7", "12", "3")

    def test_a_table_with_missing_cells(self) -> None:
        frame = pd.DataFrame({"text": ["a", "b"], "answer": ["x", None], "score": [np.nan, 2.0]})
        one, two = mm.PromptSet.from_pandas(frame)
        assert (one.answer, two.answer) == ("x", None)
        assert dict(one.meta) == {}
        assert dict(two.meta) == {"score": 2.0}

    @pytest.mark.parametrize(
        ("row", "parts"),
        [
            ({"prompt": "a"}, ["Row 1", "'text'", "'prompt'"]),
            ({"text": "a", "spans": "{"}, ["Row 1", "'spans'", "not JSON"]),
            ({"text": "a", "spans": [1, 2]}, ["Row 1", "'spans'", "object"]),
            ({"text": "a", "spans": {"cue": 3}}, ["Row 1", "'cue'", "3", "start"]),
            ({"text": "a", "spans": {"cue": [0, "x"]}}, ["Row 1", "'cue'", "start"]),
            ({"text": "a", "spans": {"cue": [0, 5]}}, ["'cue'", "(0, 5)", "1 characters"]),
            ({"text": "a", "chat": {"sytem": "x"}}, ["Row 1", "'sytem'", "system"]),
            ({"text": ["a", "b"]}, ["Row 1", "text", "list"]),
            ({"text": "a", "answer": {"x": 1}}, ["Row 1", "answer", "dict"]),
            ({"text": None}, ["Row 1", "'text'"]),
        ],
    )
    def test_a_bad_row_is_named_with_the_way_out(self, row, parts) -> None:
        with pytest.raises(mm.PromptError) as caught:
            mm.PromptSet.from_records([{"text": "fine"}, row])
        for part in parts:
            assert part in str(caught.value)

    def test_rows_that_are_no_rows_are_named(self) -> None:
        with as_users_run_it(), pytest.raises(mm.PromptError, match=r"Row 0.*'just text'"):
            mm.PromptSet.from_records(["just text"])  # type: ignore[list-item]

    def test_a_broken_line_is_named(self, tmp_path) -> None:
        path = tmp_path / "p.jsonl"
        path.write_text('{"text": "a"}\n\n{"text": \n', encoding="utf-8")
        with pytest.raises(mm.PromptError, match=r"line 3: not JSON"):
            mm.PromptSet.from_jsonl(path)

    def test_a_line_that_is_no_object_is_named(self, tmp_path) -> None:
        path = tmp_path / "p.jsonl"
        path.write_text("[1]\n", encoding="utf-8")
        with pytest.raises(mm.PromptError, match=r"line 1: expected an object"):
            mm.PromptSet.from_jsonl(path)

    def test_a_missing_file_is_named(self, tmp_path) -> None:
        for read in (mm.PromptSet.from_jsonl, mm.PromptSet.from_csv, mm.PromptSet.from_parquet):
            with pytest.raises(mm.PromptError, match=r"No file .*nothere"):
                read(tmp_path / "nothere")

    def test_files_that_are_something_else_are_named(self, tmp_path) -> None:
        path = tmp_path / "odd"
        path.write_bytes(b"\xff\xfe\x00 nothing")
        for read in (mm.PromptSet.from_jsonl, mm.PromptSet.from_csv, mm.PromptSet.from_parquet):
            with pytest.raises(mm.MechmemError, match=r"odd"):
                read(path)

    @pytest.mark.parametrize(
        "fields",
        [{"meta": {"odd": {1, 2}}}, {"meta": {"a": (1, 2)}}, {"meta": {"a": {1: 2}}},
         {"meta": {"a": float("nan")}}, {"meta": {"a": 10**5000}}, {"meta": {1: 2}},
         {"label": ""}, {"behavior": ""}, {"answer": ""}, {"group": 1}, {"label": 5}],
    )  # fmt: skip
    def test_what_a_file_would_give_back_otherwise_is_refused_by_name(self, fields) -> None:
        (name,) = fields
        with as_users_run_it(), pytest.raises(mm.PromptError, match=rf"'q'.*{name}"):
            mm.Prompt(id="q", text="a", **fields)

    def test_unknown_columns_of_tables_become_what_json_holds(self) -> None:
        row = {"text": "a", "n": np.int64(3), "pair": (1, 2), "when": pd.Timestamp("2024-01-02"),
               "many": np.arange(2)}  # fmt: skip
        assert mm.PromptSet.from_records([row])[0].meta == {
            "n": 3, "pair": [1, 2], "when": "2024-01-02 00:00:00", "many": [0, 1],
        }  # fmt: skip

    def test_an_unwritable_place_is_named(self, tmp_path) -> None:
        (tmp_path / "file").write_text("x")
        for write in (NASTY.to_jsonl, NASTY.to_csv, NASTY.to_parquet):
            with pytest.raises(mm.ArtifactError, match=r"Cannot write"):
                write(tmp_path / "file" / "p")


class TestPrompt:
    def test_the_group_defaults_to_the_id(self) -> None:
        assert mm.Prompt(id="a", text="x").group == "a"

    @pytest.mark.parametrize("bad", ["", " \n", 3, None])
    def test_an_id_must_be_a_non_empty_string(self, bad) -> None:
        with as_users_run_it(), pytest.raises(mm.PromptError, match=r"non-empty string, got"):
            mm.Prompt(id=bad, text="x")

    def test_the_text_must_be_a_string(self) -> None:
        with (
            as_users_run_it(),
            pytest.raises(mm.PromptError, match=r"'a': text must be a string, got int"),
        ):
            mm.Prompt(id="a", text=3)  # type: ignore[arg-type]

    @pytest.mark.parametrize("span", [(2, 2), (-1, 2), (0, 4), (3, 1)])
    def test_a_span_outside_the_text_is_refused(self, span) -> None:
        with pytest.raises(mm.PromptError, match=r"'a': span 'cue'.*3 characters"):
            mm.Prompt(id="a", text="abc", spans={"cue": span})


class TestPromptSet:
    def test_a_repeated_id_is_refused_and_named(self) -> None:
        with pytest.raises(mm.PromptError, match=r"unique; more than once: 'a'"):
            mm.PromptSet([mm.Prompt(id="a", text="x"), mm.Prompt(id="a", text="y")])

    def test_plain_strings_are_refused_with_the_way_out(self) -> None:
        with as_users_run_it(), pytest.raises(mm.PromptError, match=r"from_texts"):
            mm.PromptSet(["hello"])  # type: ignore[list-item]

    def test_joining_two_sets_checks_the_ids_again(self) -> None:
        one = mm.PromptSet([mm.Prompt(id="a", text="x")])
        with pytest.raises(mm.PromptError, match=r"'a'"):
            one + one

    def test_pairs_are_consecutive_rephrasings_and_never_overlap(self) -> None:
        prompts = mm.PromptSet(
            mm.Prompt(id=name, text=name, group=name[0])
            for name in ["a1", "b1", "a2", "c1", "b2", "a3", "b3", "b4"]
        )
        names = [(one.id, other.id) for one, other in prompts.pairs()]
        assert names == [("a1", "a2"), ("b1", "b2"), ("b3", "b4")]

    def test_select_keeps_the_order_asked_for_and_names_what_is_missing(self) -> None:
        prompts = mm.PromptSet.from_texts(["x", "y", "z"])
        assert prompts.select(["2", "0"]).ids == ["2", "0"]
        with pytest.raises(mm.PromptError, match=r"'9'"):
            prompts.select(["9"])

    def test_an_empty_set_is_refused_where_something_is_to_run(self) -> None:
        with pytest.raises(mm.PromptError, match=r"No prompts to observe"):
            mm.PromptSet().require("observe")


GROUPS = st.lists(st.integers(0, 14), min_size=1, max_size=40)


def _grouped(groups: list[int]) -> mm.PromptSet:
    return mm.PromptSet(
        mm.Prompt(id=str(k), text="x", group=f"g{group}") for k, group in enumerate(groups)
    )


class TestSplit:
    @settings(deadline=None)
    @given(GROUPS, st.integers(0, 5), st.randoms(use_true_random=False))
    def test_no_group_is_on_two_sides_and_order_does_not_matter(self, groups, seed, mixer) -> None:
        prompts = _grouped(groups)
        shares = {"train": 0.5, "validation": 0.2, "test": 0.3}
        if len(set(groups)) < 4:
            with pytest.raises(mm.PromptError, match=r"less than one group"):
                prompts.split(**shares, seed=seed)
            return
        parts = prompts.split(**shares, seed=seed)
        sides = [set(part.groups) for part in parts]
        assert sum(map(len, sides)) == len(set.union(*sides)) == len(set(groups))
        assert sum(map(len, parts)) == len(prompts)
        mixed = list(prompts)
        mixer.shuffle(mixed)
        again = mm.PromptSet(mixed).split(**shares, seed=seed)
        assert [set(part.ids) for part in again] == [set(part.ids) for part in parts]

    def test_parts_keep_the_order_of_the_set(self) -> None:
        parts = _grouped([3, 1, 2, 3, 1, 2, 4, 4]).split(train=0.5, test=0.5)
        for part in parts:
            assert [int(name) for name in part.ids] == sorted(int(name) for name in part.ids)

    def test_shares_are_shares_of_the_groups(self) -> None:
        prompts = _grouped([k // 3 for k in range(300)])
        train, validation, test = prompts.split(train=0.5, validation=0.2, test=0.1, seed=3)
        assert [len(set(part.groups)) for part in (train, validation, test)] == [50, 20, 10]

    def test_a_share_of_zero_is_an_empty_part(self) -> None:
        assert len(_grouped([1, 2, 3]).split(train=1.0).test) == 0

    def test_the_seed_decides(self) -> None:
        prompts = _grouped(list(range(40)))
        one, same, other = (prompts.split(train=0.5, seed=seed).train.ids for seed in (0, 0, 1))
        assert one == same != other

    @pytest.mark.parametrize(
        "shares", [{"train": 0.8, "test": 0.3}, {"train": -0.1}, {"test": 1.2}, {"test": np.nan}]
    )
    def test_impossible_shares_are_refused_with_an_example(self, shares) -> None:
        with pytest.raises(mm.PromptError, match=r"\[0, 1\].*for example split"):
            _grouped([1, 2]).split(**shares)

    def test_a_share_without_a_group_is_refused(self) -> None:
        with pytest.raises(mm.PromptError, match=r"test=0.1 of 3 groups is less than one group"):
            _grouped([1, 2, 3]).split(train=0.9, test=0.1)


class TestAnswers:
    @pytest.mark.parametrize(
        ("completion", "answer", "hit"),
        [
            (" 12\n", "12", True),
            ("12", "1", False),
            ("1.5", "1", False),
            ("1. Next", "1", True),
            ("  New   York is", "new york", True),
            ("Yorkshire", "York", False),
            ("", "1", False),
            ("anything", "", False),
            ("x 12", "12", False),
            ("blue!", "Blue", True),
        ],
    )
    def test_an_answer_counts_only_as_a_whole_word_at_the_start(
        self, completion, answer, hit
    ) -> None:
        assert starts_with_answer(completion, answer) is hit

    def test_of_two_answers_that_begin_alike_the_longer_one_written_counts(self) -> None:
        prompt = mm.Prompt(id="a", text="x", memorized="7", generalized="7 apples")
        reader = PromptAnswers()
        assert reader.classify(prompt, "7 apples") == "generalized"
        assert reader.classify(prompt, "7 pears") == "memorized"
        assert reader.classify(prompt, "8") == "other"

    def test_questions_are_correct_wrong_or_unparsed(self) -> None:
        prompts = mm.PromptSet([mm.Prompt(id="a", text="x", answer="7")])
        reader = PromptAnswers.for_prompts(prompts)
        assert [reader.classify(prompts[0], said) for said in ("7", "8", " ")] == [
            "correct",
            "wrong",
            "unparsed",
        ]

    def test_prompts_without_answers_are_named(self) -> None:
        with pytest.raises(mm.TaskError, match=r"missing on 'a'.*task="):
            PromptAnswers.for_prompts(mm.PromptSet([mm.Prompt(id="a", text="x")]))

    def test_an_unknown_task_names_the_nearest(self) -> None:
        with pytest.raises(mm.TaskError, match=r"Unknown task 'nothing-like-it'; known are"):
            mm.get_task("nothing-like-it")


def test_records_are_plain_json() -> None:
    again = json.loads(json.dumps(NASTY.to_records()))
    _same(mm.PromptSet.from_records(again), NASTY)
