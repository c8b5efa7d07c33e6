"""Tables as people bring them: the rows as written, or an error that names the row."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import as_users_run_it

import mechmem as mm
from mechmem.caching.provenance import Seen
from mechmem.models.tokenizing import TokenizedPrompt
from mechmem.tasks import Cipher
from mechmem.tasks.facts.rows import read_facts
from mechmem.tasks.own_prompts import check_own_pairs
from mechmem.tasks.paper1.official_files import read_rows
from mechmem.tasks.questions.rows import load_rows

HEAD = "text,group,memorized,generalized\n"


def read(tmp_path: Path, body: str, head: str = HEAD) -> list[tuple[str, str, str | None]]:
    file = tmp_path / "prompts.csv"
    file.write_text(head + body, encoding="utf-8", newline="")
    return [(p.text, p.group, p.memorized) for p in mm.PromptSet.from_csv(file)]


class TestCsv:
    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ("Q?,g1,white,blue,\nR?,g1,white,blue,\n", "line 2: 5 cells where the header has 4"),
            ("Q?,g1,white,blue\nA, B.,g1,white,blue\n", "line 3: 5 cells .* goes in quotes"),
            ("A, B.,g1,white,\n", "line 2: 5 cells where the header has 4"),
            ("Q?,g1,white,blue\nR?,g1\n", "line 3: 2 cells .* Fill the row up"),
            ('"Q.,g1,white,blue\nR.,g2,a,b\nS is "w".,g3,a,b\n', "line 2: .*quote .* not closed"),
            ('"a\nb",g,a,b\n"Q,g1,white,blue\nR,g2,a,b\n', "line 4: .*quote .* not closed"),
            ('"He said \\"hi\\" to me",g1,white,blue\n', r'line 2: .*twice: "He said ""hi"""'),
        ],
    )
    def test_a_row_that_was_not_meant_so_is_named(
        self, tmp_path: Path, body: str, message: str
    ) -> None:
        with pytest.raises(mm.PromptError, match=message):
            read(tmp_path, body)

    @pytest.mark.parametrize("more", ["", "Zoe,g3,white,blue\n"])
    def test_rows_inside_a_cell_are_refused_unless_the_row_is_quoted(
        self, tmp_path: Path, more: str
    ) -> None:
        with pytest.raises(
            mm.PromptError, match="line 2: a quote that opens here closes in line 3"
        ):
            read(tmp_path, 'Bob,g1,white,"blue\nLily,g2,white,blue"\n' + more)
        assert read(tmp_path, '"a\nb,c,d,e","g","x","y"\n') == [("a\nb,c,d,e", "g", "x")]
        prose = '"Well, one, two, three\nand, so, it, goes",g,x,y\n'
        assert len(read(tmp_path, prose)) == 1

    def test_rows_without_any_text_are_no_prompts(self, tmp_path: Path) -> None:
        rows = read(tmp_path, "Q1,g1,white,blue\n,,,\n\nQ2,g1,white,blue\n,,,\n")
        assert [text for text, *_ in rows] == ["Q1", "Q2"]
        assert read(tmp_path, "Q1,g1,white,blue\n , , , \n") == [("Q1", "g1", "white")]

    def test_names_of_columns_are_read_without_blanks_around(self, tmp_path: Path) -> None:
        assert read(tmp_path, "Q,g,a,b\n", "text, group , memorized,generalized\n") == [
            ("Q", "g", "a")
        ]
        frame = pd.DataFrame({"text": ["Q"], " group": ["g"]})
        assert mm.PromptSet.from_pandas(frame).groups == ["g"]

    def test_empty_columns_of_a_spreadsheet_are_dropped(self, tmp_path: Path) -> None:
        head = "text,group,memorized,generalized,,\n"
        assert read(tmp_path, "Q,g,a,b,,\n", head) == [("Q", "g", "a")]
        with pytest.raises(mm.PromptError, match="line 2: 6 cells where the header has 4"):
            read(tmp_path, "Q,g,a,b,,x\n", head)

    @pytest.mark.parametrize(
        ("head", "message"),
        [("text,id,text\n", "'text' more than once"), ("a,,text\n", "a column without a name")],
    )
    def test_a_header_names_every_column_once(
        self, tmp_path: Path, head: str, message: str
    ) -> None:
        with pytest.raises(mm.PromptError, match=message):
            read(tmp_path, "a,b,c\n", head)

    def test_long_cells_line_breaks_and_doubled_quotes_are_kept(self, tmp_path: Path) -> None:
        long = "x" * 200_000
        rows = read(tmp_path, f'"a ""b""\r\nc",g,a,b\r\n{long},h,a,b\r\n')
        assert [row[0] for row in rows] == ['a "b"\r\nc', long]


class TestNumbers:
    def test_whole_numbers_beside_an_empty_cell_stay_whole(self, tmp_path: Path) -> None:
        frame = pd.DataFrame(
            {"text": ["a", "b", "c"], "memorized": [7, 7, None], "generalized": [3, 3, 8]}
        )
        frame.to_parquet(tmp_path / "p.parquet")
        for prompts in (
            mm.PromptSet.from_pandas(frame),
            mm.PromptSet.from_parquet(tmp_path / "p.parquet"),
            mm.PromptSet.from_records(frame.to_dict("records")),
            mm.PromptSet.from_datasets(frame.to_dict("records")),
        ):
            assert [p.memorized for p in prompts] == ["7", "7", None]
            assert [p.generalized for p in prompts] == ["3", "3", "8"]

    def test_decimals_stay_decimals_and_a_row_number_of_pandas_is_no_column(
        self, tmp_path: Path
    ) -> None:
        frame = pd.DataFrame({"text": ["a", "b"], "answer": [1.5, None]}, index=[7, 9])
        frame.to_parquet(tmp_path / "p.parquet")
        prompts = mm.PromptSet.from_parquet(tmp_path / "p.parquet")
        assert [(p.answer, p.meta) for p in prompts] == [("1.5", {}), (None, {})]

    @pytest.mark.parametrize(("line", "why"), [
        ('{"text":"a","text":"b"}', "'text' occurs twice in one object"),
        ('{"text":"a","meta":{"x":1,"x":2}}', "'x' occurs twice in one object"),
        (f'{{"text":{"9" * 5000}}}', "Exceeds the limit"),
    ], ids=["twice", "twice inside", "digits"])  # fmt: skip
    def test_json_lines_that_would_lose_a_value(self, tmp_path: Path, line, why) -> None:
        file = tmp_path / "a.jsonl"
        file.write_text('{"text":"c"}\n' + line + "\n")
        with pytest.raises(mm.PromptError, match=f"line 2: not JSON .*{why}"):
            mm.PromptSet.from_jsonl(file)

    def test_an_empty_cell_of_text_is_named_as_one(self, tmp_path: Path) -> None:
        frame = pd.DataFrame({"id": ["a", "b"], "text": ["x", None]})
        (tmp_path / "a.jsonl").write_text('{"text":"x"}\n{"id":"b","text":null}\n')
        frame.to_parquet(tmp_path / "a.parquet")
        for read in (
            lambda: mm.PromptSet.from_pandas(frame),
            lambda: mm.PromptSet.from_jsonl(tmp_path / "a.jsonl"),
            lambda: mm.PromptSet.from_parquet(tmp_path / "a.parquet"),
        ):
            with pytest.raises(mm.PromptError, match=r"Row 1 has an empty cell in .* 'text'"):
                read()

    def test_nan_in_json_lines_is_left_out(self, tmp_path: Path) -> None:
        file = tmp_path / "p.jsonl"
        file.write_text('{"text":"a","group":NaN,"memorized":NaN,"answer":8}\n{"text":"b"}\n')
        assert [(p.group, p.memorized, p.answer) for p in mm.PromptSet.from_jsonl(file)] == [
            ("0", None, "8"),
            ("1", None, None),
        ]

    @pytest.mark.parametrize("cell", [True, ["a"], {"a": 1}])
    def test_a_cell_that_is_neither_text_nor_number_is_named(self, cell: object) -> None:
        with pytest.raises(mm.PromptError, match="Row 0: column 'memorized' must be text or a num"):
            mm.PromptSet.from_records([{"text": "a", "memorized": cell}])

    @pytest.mark.parametrize("number", ["Infinity", "-Infinity"])
    def test_infinity_is_no_answer(self, tmp_path: Path, number: str) -> None:
        file = tmp_path / "p.jsonl"
        file.write_text(f'{{"text":"a","memorized":{number}}}\n')
        with pytest.raises(mm.PromptError, match=r"column 'memorized' is -?inf"):
            mm.PromptSet.from_jsonl(file)

    @pytest.mark.parametrize("form", ["jsonl", "json", "rows", "table"])
    def test_questions_are_read_without_empty_cells(self, tmp_path: Path, form: str) -> None:
        nan = float("nan")
        rows = [
            {"question": "q1", "group": nan, "answer": 7.0},
            {"question": "q2", "group": "g", "answer": nan},
        ]
        body = [json.dumps(row) for row in rows]
        (tmp_path / "q.jsonl").write_text("\n".join(body))
        (tmp_path / "q.json").write_text(f"[{','.join(body)}]")
        data = {"rows": rows, "table": pd.DataFrame(rows)}.get(form, tmp_path / f"q.{form}")
        first, second = mm.get_task("reasoning").read(data)
        assert (first.answer, second.answer, second.group) == ("7", None, "g")
        assert first.group.startswith("q-")

    def test_a_named_index_is_a_column(self) -> None:
        frame = pd.DataFrame({"group": ["g", "h"], "text": ["a", "b"]}).set_index("group")
        assert mm.PromptSet.from_pandas(frame).groups == ["g", "h"]
        with pytest.raises(mm.PromptError, match="'text' more than once"):
            mm.PromptSet.from_pandas(frame.set_index("text", drop=False))

    def test_a_fact_without_a_name_is_not_about_nan(self) -> None:
        with pytest.raises(mm.PromptError, match="has no 'true'"):
            read_facts([{"question": "q", "subject": "s", "true": float("nan"), "other": "o"}])

    def test_a_column_twice_is_refused(self) -> None:
        frame = pd.DataFrame([["a", "b"]], columns=["text", "text"])
        with pytest.raises(mm.PromptError, match="'text' more than once"):
            mm.PromptSet.from_pandas(frame)


def test_a_cell_that_begins_a_formula_is_kept_or_made_inert_when_asked(tmp_path: Path) -> None:
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "1=1"]
    prompts = mm.PromptSet.from_texts(texts)
    prompts.to_csv(tmp_path / "a.csv")
    assert mm.PromptSet.from_csv(tmp_path / "a.csv") == prompts
    prompts.to_csv(tmp_path / "b.csv", formulas=False)
    inert = [p.text for p in mm.PromptSet.from_csv(tmp_path / "b.csv")]
    assert inert == [*(f"'{text}" for text in texts[:-1]), "1=1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": ""}, "stop must be texts of at least one character"),
        ({"stop": ("a", "")}, "stop must be texts"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number from 1, got 0"),
        ({"max_new_tokens": 1.5}, "max_new_tokens must be a whole number"),
        ({"threshold": float("nan")}, "threshold must lie in"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict[str, object], message: str) -> None:
    with as_users_run_it(), pytest.raises(mm.TaskError, match=message):
        mm.get_task("reasoning", **options)


class TestFields:
    @pytest.mark.parametrize(
        "name", ["group", "memorized", "generalized", "answer", "label", "behavior"]
    )
    @pytest.mark.parametrize("value", [1, 1.5, True, ["a"], 0])
    def test_a_text_field_is_text_or_refused(self, name: str, value: object) -> None:
        message = f"{name} must be a string or None, got"
        with as_users_run_it(), pytest.raises(mm.PromptError, match=message):
            mm.Prompt(id="a", text="x", **{name: value})

    def test_keys_spans_chats_and_empty_answers_that_no_file_keeps_are_refused(self) -> None:
        for fields, message in (
            ({"meta": {1: "a"}}, "meta must be a dictionary whose keys are text"),
            ({"meta": "a"}, "meta must be a dictionary"),
            ({"spans": {1: (0, 1)}}, "spans must be a dictionary whose keys are text"),
            ({"spans": {"a": (0.0, 1)}}, "a span is a pair"),
            ({"chat": "system"}, "chat must be a Chat or None, got 'system'"),
            ({"memorized": ""}, "memorized is an empty text"),
            ({"generalized": " \n"}, "generalized is an empty text or blanks"),
        ):
            with as_users_run_it(), pytest.raises(mm.PromptError, match=message):
                mm.Prompt(id="a", text="x", **fields)

    def test_a_name_is_the_same_whether_pandas_counts_in_floats_or_not(self) -> None:
        frame = pd.DataFrame({"text": ["a", "b"], "id": [1, 2], "group": [0, 1]})
        whole, floats = (
            mm.PromptSet.from_pandas(frame),
            mm.PromptSet.from_pandas(frame.astype({"id": float, "group": float})),
        )
        assert whole.groups == floats.groups == ["0", "1"]
        assert whole.ids == floats.ids == ["1", "2"]

    def test_what_is_saved_equals_what_is_loaded(self, tmp_path: Path) -> None:
        spans = {"s": [np.int64(0), 2]}
        with as_users_run_it():
            prompts = mm.PromptSet(
                [mm.Prompt(id="a", text="xyz", group="1", answer="2", spans=spans)]
            )
        prompts.to_csv(tmp_path / "p.csv")
        prompts.to_jsonl(tmp_path / "p.jsonl")
        assert mm.PromptSet.from_csv(tmp_path / "p.csv") == prompts
        assert mm.PromptSet.from_jsonl(tmp_path / "p.jsonl") == prompts


def test_a_header_of_tabbed_cells_is_no_question(tmp_path: Path) -> None:
    file = tmp_path / "q.tsv"
    file.write_text("Question\tanswer\nWhat?\tParis\n")
    (prompt,) = mm.get_task("reasoning").read(file)
    assert (prompt.meta["question"], prompt.answer) == ("What?", "Paris")


TEXT = "Zoë is in a café."
SAME = [
    TEXT,
    unicodedata.normalize("NFD", TEXT),
    TEXT + " ",
    TEXT + "\r\n",
    TEXT.replace(" ", "\u00a0"),
    "\ufeff" + TEXT.replace("is", "\u200bi\u00ads"),
    TEXT.translate({code: code + 0xFEE0 for code in range(0x21, 0x7F)}),
]


class TestLeaks:
    @pytest.mark.parametrize(("one", "other"), [("2²", "22"), ("Code: aB", "Code: Ab")])
    def test_texts_that_mean_something_else_are_two(self, one: str, other: str) -> None:
        assert mm.Prompt(id="a", text=one).same_text != mm.Prompt(id="a", text=other).same_text

    @pytest.mark.parametrize("again", SAME)
    def test_one_text_in_two_groups_is_noticed_however_it_is_written(self, again: str) -> None:
        texts = {"a": TEXT, "b": "2 " + TEXT, "c": again, "d": "3 " + TEXT}
        groups = dict(zip("abcd", "xxyy", strict=True))
        prompts = mm.PromptSet(
            mm.Prompt(id=name, group=groups[name], text=text, memorized="a", generalized="b")
            for name, text in texts.items()
        )
        with pytest.raises(mm.PromptError, match="stand in two groups"):
            check_own_pairs(prompts, 0, 0.4)

    @pytest.mark.parametrize("again", SAME)
    def test_a_fitted_text_is_refused_whatever_its_token_ids(self, again: str) -> None:
        """Another template date, or other blanks, give other ids."""
        fitted = mm.PromptSet([mm.Prompt(id="a", text=TEXT, chat=mm.Chat())])
        asked = mm.PromptSet([mm.Prompt(id="b", text=again, chat=mm.Chat())])
        other = mm.PromptSet([mm.Prompt(id="b", text=again, chat=mm.Chat(system="Be brief."))])
        seen = Seen.of(fitted, [TokenizedPrompt("a", (1, 2), {})])
        seen = Seen.from_dict(json.loads(json.dumps(seen.as_dict())))
        with pytest.raises(mm.LeakageError, match=r"0 by group, 1 by the same text\): 'b'"):
            seen.refuse(asked, [TokenizedPrompt("b", (1, 3), {})], "evaluate")
        seen.refuse(other, [TokenizedPrompt("b", (1, 3), {})], "evaluate")


@pytest.mark.parametrize(
    ("ending", "read"),
    [
        ("json", load_rows),
        ("tsv", load_rows),
        ("jsonl", load_rows),
        ("parquet", load_rows),
        ("json", read_facts),
        ("jsonl", mm.PromptSet.from_jsonl),
        ("json", read_rows),
        ("json", Cipher),
    ],
)
@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"[" * 100_000, b'{"question": ' * 50_000, b"\x00"]
)
def test_no_file_of_a_stranger_ends_raw(
    tmp_path: Path, ending: str, read: Callable[[Path], Any], content: bytes
) -> None:
    file = tmp_path / f"it.{ending}"
    file.write_bytes(content)
    with pytest.raises(mm.MechmemError, match=re.escape(str(file))):
        read(file)
