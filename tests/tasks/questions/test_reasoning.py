"""The question sets: what each row becomes, both prompt forms, and what is refused.

The files in ``data`` beside this file are written for these tests in the schemas of the real sets.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import mechmem as mm
from mechmem.errors import PromptError, TaskError
from mechmem.tasks import Reasoning
from mechmem.tasks.questions.rows import load_rows
from mechmem.tasks.questions.sources import SOURCES

DATA = Path(__file__).parent / "data"
FILES = {
    "mmlu-pro": "mmlu_pro.json",
    "gsm8k": "gsm8k.jsonl",
    "gsm-symbolic": "gsm_symbolic.jsonl",
    "mgsm": "mgsm_de.tsv",
    "popqa": "popqa.tsv",
    "c-eval": "ceval",
    "mbpp": "mbpp.jsonl",
    "humaneval": "humaneval.jsonl",
    "questions": "own.csv",
}


@pytest.fixture
def task() -> Reasoning:
    return Reasoning()


def read(source: str, **options: Any) -> mm.PromptSet:
    return Reasoning().read(DATA / FILES[source], source, **options)


def test_every_source_has_a_file_here() -> None:
    assert set(FILES) == set(SOURCES)


@pytest.mark.parametrize("source", sorted(FILES))
def test_the_extraction_form_is_the_papers_letter_by_letter(source: str) -> None:
    prompts = read(source)
    assert len(prompts) > 0
    for prompt in prompts:
        question = prompt.meta["question"]
        assert prompt.text == "Q: " + question + "\nA: "
        start, end = prompt.spans["question"]
        assert prompt.text[start:end] == question
        assert prompt.meta["source"] == source
        assert prompt.id.startswith(f"{source}-")
        assert prompt.chat is None


@pytest.mark.parametrize("source", sorted(FILES))
def test_prompts_come_back_from_disk(source: str, tmp_path: Path) -> None:
    prompts = read(source)
    assert mm.PromptSet.from_jsonl(prompts.to_jsonl(tmp_path / "p.jsonl")) == prompts


class TestWhatRowsBecome:
    def test_mmlu_pro_with_scores(self) -> None:
        prompts = read("mmlu-pro")
        first = prompts[0]
        assert (first.id, first.answer, first.label) == ("mmlu-pro-101", "C", "reasoning")
        assert first.meta["options"] == ["1", "2", "3", "4", "6", "8", "9", "12", "18", "24"]
        assert (first.meta["category"], first.meta["src"]) == ("physics", "made-physics")
        assert (first.meta["score"], first.meta["kind"]) == (0.9, "choice")
        labels = [p.label for p in prompts]
        assert labels.count("reasoning") == 4
        assert prompts[6].meta["score"] == 0.5
        assert prompts[6].label == "memory"  # 0.5 itself is memory in the paper

    def test_the_threshold_is_yours(self) -> None:
        prompts = Reasoning(threshold=0.85).read(DATA / "mmlu_pro.json", "mmlu-pro")
        assert [p.id for p in prompts if p.label == "reasoning"] == [
            "mmlu-pro-101",
            "mmlu-pro-103",
            "mmlu-pro-108",
        ]

    def test_mmlu_pro_without_scores_has_no_labels(self, task: Reasoning) -> None:
        prompts = task.read(DATA / "mmlu_pro_validation.jsonl", "mmlu-pro")
        assert {p.label for p in prompts} == {None}
        assert all("score" not in p.meta for p in prompts)

    @pytest.mark.parametrize("said", ["second", 4, -1, 1.5])
    def test_an_index_of_mmlu_pro_that_names_no_option_is_refused(self, tmp_path, said) -> None:
        row = {"question": "?", "options": ["x", "y", "z"], "answer_index": 1}
        (tmp_path / "q.jsonl").write_text(json.dumps(row), encoding="utf-8")
        assert Reasoning().read(tmp_path / "q.jsonl", "mmlu-pro")[0].answer == "B"
        (tmp_path / "q.jsonl").write_text(
            json.dumps({**row, "answer_index": said}), encoding="utf-8"
        )
        with pytest.raises(mm.PromptError, match="answer_index"):
            Reasoning().read(tmp_path / "q.jsonl", "mmlu-pro")

    def test_gsm8k(self) -> None:
        prompts = read("gsm8k")
        assert [p.answer for p in prompts] == ["126", "1400", "-2"]
        assert {p.label for p in prompts} == {"reasoning"}
        assert prompts.ids == ["gsm8k-0", "gsm8k-1", "gsm8k-2"]

    def test_variants_share_the_group_of_the_question_they_were_made_from(self) -> None:
        symbolic, original = read("gsm-symbolic"), read("gsm8k")
        assert symbolic.ids[:2] == ["gsm-symbolic-0-0", "gsm-symbolic-0-1"]
        assert symbolic.groups == [original.groups[0]] * 3 + [original.groups[1]] * 2
        assert [p.answer for p in symbolic] == ["126", "108", "120", "1800", "2200"]

    def test_translations_share_a_group_and_with_the_english_part_that_of_gsm8k(
        self, task: Reasoning
    ) -> None:
        german = read("mgsm")
        bengali = task.read(DATA / "mgsm_bn.jsonl", "mgsm")
        assert german.ids == ["mgsm-de-0", "mgsm-de-1"]
        assert bengali.ids == ["mgsm-bn-0", "mgsm-bn-1"]
        assert german.groups == bengali.groups == ["mgsm-0", "mgsm-1"]
        assert [p.meta["language"] for p in (*german, *bengali)] == ["de", "de", "bn", "bn"]
        assert [p.answer for p in (*german, *bengali)] == ["126", "1400"] * 2
        tied = read("mgsm", english=DATA / "mgsm_en.tsv")
        assert tied.groups == read("gsm8k").groups[:2]
        with pytest.raises(PromptError, match="english= is for the source 'mgsm'"):
            read("gsm8k", english=DATA / "mgsm_en.tsv")
        with pytest.raises(PromptError, match="2 rows and this one 3"):
            task.read(DATA / "gsm8k.jsonl", "mgsm", english=DATA / "mgsm_en.tsv")

    def test_a_folder_of_translations_is_counted_by_language(
        self, task: Reasoning, tmp_path: Path
    ) -> None:
        for name in ("mgsm_bn.jsonl", "mgsm_de.tsv", "mgsm_en.tsv"):
            (tmp_path / name).write_bytes((DATA / name).read_bytes())
        prompts = task.read(tmp_path, "mgsm")
        assert prompts.ids == [f"mgsm-{part}-{k}" for part in ("bn", "de", "en") for k in (0, 1)]
        assert prompts.groups == ["mgsm-0", "mgsm-1"] * 3
        (tmp_path / "other").mkdir()
        for name in ("german", "bengali"):  # no language is said: counted by file
            (tmp_path / "other" / f"{name}.tsv").write_bytes((DATA / "mgsm_de.tsv").read_bytes())
        other = task.read(tmp_path / "other", "mgsm")
        assert other.ids == [f"mgsm-{name}-{k}" for name in ("bengali", "german") for k in (0, 1)]
        assert other.groups == ["mgsm-0", "mgsm-1"] * 2

    @pytest.mark.parametrize("order", ["languages", "problems"])
    def test_rows_with_a_language_are_counted_by_it(
        self, task: Reasoning, order: str, tmp_path: Path
    ) -> None:
        rows = [
            {"question": f"{language} {k}", "answer_number": k, "language": language}
            for language in ("sw", "th")
            for k in range(3)
        ]
        if order == "problems":
            rows.sort(key=lambda row: row["answer_number"])
        (tmp_path / "all.json").write_text(json.dumps(rows))
        for data in (rows, pd.DataFrame(rows), tmp_path / "all.json"):
            for row, prompt in zip(rows, task.read(data, "mgsm"), strict=True):
                assert prompt.group == f"mgsm-{row['answer_number']}"
                assert prompt.id == f"mgsm-{row['language']}-{row['answer_number']}"

    def test_popqa(self) -> None:
        first = read("popqa")[0]
        assert (first.id, first.answer, first.label) == ("popqa-11", "politician", "memory")
        assert first.meta["aliases"] == ["political leader", "pol"]
        assert (first.meta["category"], str(first.meta["s_pop"])) == ("occupation", "142")

    def test_c_eval_takes_its_subject_from_the_file_and_labels_only_the_humanities(self) -> None:
        prompts = read("c-eval")
        assert prompts.ids == [
            "c-eval-chinese_language_and_literature-0",
            "c-eval-chinese_language_and_literature-1",
            "c-eval-high_school_physics-0",
        ]
        assert [p.label for p in prompts] == ["memory", "memory", None]
        assert [p.answer for p in prompts] == ["A", "C", "C"]
        assert prompts[0].meta["options"] == ["玉兔", "金乌", "白驹", "青龙"]

    def test_code_has_neither_label_nor_answer(self) -> None:
        for source in ("mbpp", "humaneval"):
            prompt = read(source)[0]
            assert (prompt.label, prompt.answer, "kind" in prompt.meta) == (None, None, False)
        assert read("humaneval")[0].id == "humaneval-HumanEval/900"

    def test_your_own_questions_need_a_question_and_a_label_or_a_score(self) -> None:
        prompts = read("questions")
        assert [p.label for p in prompts] == ["reasoning", "memory", "memory", "reasoning"]
        assert [p.meta.get("kind") for p in prompts] == ["number", "short", "choice", None]
        assert prompts[1].meta["aliases"] == ["A. Oak"]
        two_columns = Reasoning().read([{"question": "Why?", "label": "Reasoning"}])
        assert two_columns[0].label == "reasoning"

    def test_your_answer_that_begins_with_a_number_is_not_one(self, task: Reasoning) -> None:
        rows = [
            {"question": f"Question {k}?", "label": "memory", "answer": answer}
            for k, answer in enumerate(["50 Cent", "2 Chainz", "7 Years", "42", "$1,080", 2.5])
        ]
        prompts = task.read(rows)
        assert [p.meta["kind"] for p in prompts] == ["short"] * 3 + ["number"] * 3
        assert task.classify(prompts[0], "50 Cent") == "correct"
        assert task.classify(prompts[0], "50 dollars") == "wrong"
        rows[0]["kind"] = "number"
        assert task.classify(task.read(rows)[0], "The answer is 50.") == "correct"

    @pytest.mark.parametrize(("answer", "right"), [("1.234", "1234"), (1.234, "1,2340")])
    def test_your_text_is_read_in_its_language_and_your_number_as_it_is(
        self, task: Reasoning, answer: object, right: str
    ) -> None:
        row = {"question": "Wie weit?", "label": "memory", "answer": answer, "language": "de"}
        prompt = task.read([row])[0]
        assert prompt.meta["kind"] == "number"
        assert task.classify(prompt, f"Die Antwort ist {right}.") == "correct"

    def test_the_same_question_is_one_group_whatever_set_it_comes_from(
        self, task: Reasoning
    ) -> None:
        shelf = read("gsm8k")[0]
        mine = task.read([{"question": "  " + shelf.meta["question"].upper(), "label": "memory"}])
        assert mine.groups == [shelf.group]
        named = task.read([{"question": "x", "group": "g7"}])
        assert named.groups == ["g7"]


@pytest.mark.parametrize(
    ("source", "row", "message"),
    [
        (
            "gsm8k",
            {"question": "q", "answer": "no number"},
            "gsm8k, row 0: no number in the answer",
        ),
        ("gsm8k", {"question": "q"}, r"gsm8k, row 0 has no 'answer'; its columns are 'question'"),
        ("gsm8k", {"answer": "#### 1"}, "row 0 has no 'question'"),
        (
            "mmlu-pro",
            {"question": "q", "options": ["a"], "answer": "B"},
            "'B' is not a letter of its 1",
        ),
        ("mmlu-pro", {"question": "q", "options": "a, b", "answer": "A"}, "list written as JSON"),
        ("mmlu-pro", {"question": "q", "answer": "A"}, "options must be a list of texts, got None"),
        ("popqa", {"question": "q"}, "neither 'possible_answers' nor 'obj'"),
        ("questions", {"question": "q", "score": 1.2}, "from 0 .memory. to 1 .reasoning., got 1.2"),
        ("questions", {"question": "q", "score": "high"}, "got 'high'"),
        ("questions", {"question": "q", "label": "memories"}, "Did you mean 'memory'"),
        (
            "questions",
            {"question": "q", "label": "memory", "score": 0.9},
            "label 'memory' contradicts score 0.9",
        ),
        ("questions", {"question": "q", "kind": "essay"}, "kind 'essay' is not one of 'choice'"),
        ("questions", {"text": "q"}, "has no 'question'; its columns are 'text'"),
        (
            "c-eval",
            {"question": "q", "A": "x", "B": "y", "answer": "C"},
            "'C' is not a letter of its 2",
        ),
        (
            "c-eval",
            {"question": "q", "A": "x", "B": "y", "answer": "AB"},
            "'AB' is not a letter of its 2",
        ),
    ],
)
def test_a_row_that_lacks_something_is_named(
    source: str, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        Reasoning().read([row], source)


class TestWhereRowsComeFrom:
    ROWS = [
        {"question": "What is 2 + 2?", "answer": "#### 4"},
        {"question": "What is 3 + 5?", "answer": "#### 8"},
    ]

    def expect(self, data: Any, **options: Any) -> None:
        prompts = Reasoning().read(data, "gsm8k", **options)
        assert [(p.id, p.answer) for p in prompts] == [("gsm8k-0", "4"), ("gsm8k-1", "8")]

    def test_files_of_every_kind(self, tmp_path: Path) -> None:
        frame = pd.DataFrame(self.ROWS)
        (tmp_path / "a.json").write_text(json.dumps(self.ROWS))
        (tmp_path / "b.json").write_text(json.dumps({"data": self.ROWS}))
        (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.ROWS))
        frame.to_csv(tmp_path / "d.csv", index=False)
        frame.to_csv(tmp_path / "e.tsv", index=False, sep="\t")
        frame.to_parquet(tmp_path / "f.parquet")
        for path in sorted(tmp_path.iterdir()):
            self.expect(path)
            self.expect(str(path))

    def test_memory(self) -> None:
        self.expect(self.ROWS)
        self.expect(pd.DataFrame(self.ROWS))
        self.expect(iter(self.ROWS))

    def test_hugging_face_data_sets_in_memory_and_on_disk(self, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")
        one = datasets.Dataset.from_list(self.ROWS)
        several = datasets.DatasetDict({"train": one.select([0]), "test": one})
        self.expect(one)
        self.expect(several, split="test")
        self.expect(datasets.DatasetDict({"test": one}))
        one.save_to_disk(str(tmp_path / "one"))
        several.save_to_disk(str(tmp_path / "several"))
        self.expect(tmp_path / "one")
        self.expect(tmp_path / "several", split="test")
        with pytest.raises(PromptError, match="has the splits 'train', 'test'; choose one"):
            Reasoning().read(tmp_path / "several", "gsm8k")

    def test_a_hub_id_is_loaded_by_its_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        datasets = pytest.importorskip("datasets")
        asked: list[tuple[Any, ...]] = []

        def load(name: str, config: str | None, split: str | None) -> Any:
            asked.append((name, config, split))
            return datasets.Dataset.from_list(self.ROWS)

        monkeypatch.setattr(datasets, "load_dataset", load)
        self.expect("openai/gsm8k", config="main", split="test")
        assert asked == [("openai/gsm8k", "main", "test")]

    def test_a_hub_that_cannot_be_reached_is_said_so(self) -> None:
        pytest.importorskip("datasets")
        with pytest.raises(
            PromptError, match=r"'nobody/nothing-here'.*cannot be loaded: .*save_to"
        ):
            Reasoning().read("nobody/nothing-here", "gsm8k", split="test")

    def test_nothing_there(self, tmp_path: Path) -> None:
        for data in ("gsm8k", "missing.jsonl", "a/b/c", tmp_path / "no.json", tmp_path / "no.tsv"):
            with pytest.raises(PromptError, match=r"No file|Cannot read"):
                Reasoning().read(data, "gsm8k")
        with pytest.raises(PromptError, match=r"No \.json.* file in "):
            Reasoning().read(tmp_path, "gsm8k")
        with pytest.raises(PromptError, match="Did you mean 'gsm8k'"):
            Reasoning().read(self.ROWS, "gsm8")
        (tmp_path / "odd.json").write_text('{"question": 1}')
        with pytest.raises(PromptError, match="must hold a list of rows, got dict"):
            Reasoning().read(tmp_path / "odd.json", "gsm8k")
        (tmp_path / "odd.tsv").write_text("question\tanswer\nonly one cell\n")
        with pytest.raises(PromptError, match="row 1: 1 cells where 2 were expected"):
            Reasoning().read(tmp_path / "odd.tsv", "gsm8k")

    def test_a_folder_of_files_can_be_narrowed_by_split(self) -> None:
        assert len(load_rows(DATA / "ceval", split="val")) == 3
        with pytest.raises(PromptError, match="with 'test' in its name"):
            load_rows(DATA / "ceval", split="test")

    def test_arrays_of_parquet_become_plain_lists_and_numbers(self, tmp_path: Path) -> None:
        rows = json.loads((DATA / "mmlu_pro.json").read_text())
        pd.DataFrame(rows).to_parquet(tmp_path / "m.parquet")
        assert Reasoning().read(tmp_path / "m.parquet", "mmlu-pro") == read("mmlu-pro")
        popular = {"question": "q", "obj": "x", "s_pop": np.int64(3)}
        prompts = Reasoning().read([popular], "popqa")
        assert prompts[0].meta["s_pop"] == 3
        assert json.dumps(prompts.to_records())


class TestEvaluationForm:
    def test_mmlu_pro_has_five_examples_of_its_category(self, task: Reasoning) -> None:
        examples = task.read(DATA / "mmlu_pro_validation.jsonl", "mmlu-pro")
        first = task.evaluation(read("mmlu-pro")[:1], examples)[0]
        assert first.text.startswith(
            "The following are multiple choice questions (with answers) about physics. Think step "
            'by step and then finish your answer with "the answer is (X)" where X is the correct '
            "letter choice.\n\nQuestion:\nExample 1 in physics: what is 3 times 2?\nOptions:\n"
            "A. 5\nB. 6\nC. 1\nAnswer: Let's think step by step. 3 times 2 is 6, which is option "
            "(B). The answer is (B).\n\nQuestion:\nExample 2"
        )
        assert first.text.count("The answer is (B).") == 5
        assert first.text.endswith(
            "What is its acceleration in m/s^2?\nOptions:\nA. 1\nB. 2\nC. 3\nD. 4\nE. 6\nF. 8\n"
            "G. 9\nH. 12\nI. 18\nJ. 24\nAnswer: Let's think step by step."
        )
        assert "math" not in first.text.replace("mathematic", "")

    def test_a_category_without_examples_is_an_error_with_the_way_out(
        self, task: Reasoning
    ) -> None:
        examples = task.read(DATA / "mmlu_pro_validation.jsonl", "mmlu-pro")
        with pytest.raises(TaskError, match=r"5 worked choice examples of category 'history'.* 0"):
            task.evaluation(read("mmlu-pro"), examples)
        with pytest.raises(TaskError, match=r"Pass examples=task\.read"):
            task.evaluation(read("mmlu-pro"))
        assert len(task.evaluation(read("mmlu-pro"), shots=0)) == 8

    def test_gsm8k_has_eight_worked_examples_that_end_as_the_answer_should(
        self, task: Reasoning
    ) -> None:
        text = task.evaluation(read("gsm8k")[:1])[0].text
        assert text.startswith("As an expert problem solver, solve step by step the following ")
        assert text.count("A: Let's think step by step.") == 9
        assert text.count("The final answer is ") == 8
        assert text.endswith("on 3 such shelves?\nA: Let's think step by step.")
        assert "####" not in text

    def test_the_examples_of_ours_say_what_is_true(self) -> None:
        from mechmem.tasks.questions.forms import bundled_examples

        examples = bundled_examples()
        sums = {"33": 4 * 12 - 15, "54": 18 + 36, "5": 300 // 60, "6": 20 - 14, "21": 24 - 8 + 5}
        sums |= {"240": 3 * 80, "18": 50 - 32, "600": 4 * 150}
        assert [str(sums[str(e.answer)]) for e in examples] == [e.answer for e in examples]
        assert len(examples) == 8

    def test_your_examples_are_cleaned_of_their_notes(self, task: Reasoning) -> None:
        asked = task.evaluation(read("gsm8k")[:1], read("gsm8k"), shots=2)[0].text
        assert "A: Let's think step by step. She saves 1250-900=$350 a month. That is" in asked
        assert "$1,400. The final answer is 1400." in asked

    def test_a_question_is_never_its_own_example(self, task: Reasoning) -> None:
        asked = task.evaluation(read("gsm8k"), read("gsm8k"), shots=2)
        for prompt in asked:
            assert prompt.text.count(prompt.meta["question"]) == 1
        variants = task.evaluation(read("gsm-symbolic")[:1], read("gsm8k"), shots=2)[0]
        assert read("gsm8k")[0].meta["question"] not in variants.text.rsplit("Q:", 1)[0]
        with pytest.raises(TaskError, match="wants 3 worked number examples, there are 2"):
            task.evaluation(read("gsm8k"), read("gsm8k"), shots=3)

    def test_mgsm_takes_examples_of_its_language_where_there_are_any(self, task: Reasoning) -> None:
        german = read("mgsm")
        examples = read("gsm8k") + german[1:]
        text = task.evaluation(german[:1], examples, shots=1)[0].text
        assert "Rosa verdient" in text
        english = task.evaluation(german[:1], shots=1)[0].text
        assert "A baker fills" in english

    def test_popqa_is_asked_without_examples(self, task: Reasoning) -> None:
        assert task.evaluation(read("popqa"))[1].text == "Q: In what country is Tern Bay?\n\nA: "

    def test_c_eval_is_asked_in_chinese(self, task: Reasoning) -> None:
        prompts = read("c-eval")
        text = task.evaluation(prompts[:1], prompts, shots=1)[0].text
        assert text == (
            "以下是中国关于chinese language and literature考试的单项选择题\uff0c"
            "请选出其中的正确答案。\n\n“春”字的部首是____\nA. 三\nB. 人\nC. 日\nD. 大\n"
            "答案\uff1aC\n\n下列哪一个是月亮的别称\uff1f____\nA. 玉兔\nB. 金乌\nC. 白驹\n"
            "D. 青龙\n答案\uff1a"
        )

    def test_only_the_text_changes_and_comes_back(self, task: Reasoning) -> None:
        for source in ("gsm8k", "popqa", "mgsm"):
            prompts = read(source)
            asked = task.evaluation(prompts)
            for before, after in zip(prompts, asked, strict=True):
                start, end = after.spans["question"]
                assert after.text[start:end] == before.meta["question"]
                assert replace(after, text=before.text, spans=before.spans) == before
            assert task.extraction(asked) == prompts

    def test_what_has_no_answer_has_no_evaluation_form(self, task: Reasoning) -> None:
        for source in ("mbpp", "humaneval"):
            with pytest.raises(PromptError, match="code is never run here"):
                task.evaluation(read(source))
        with pytest.raises(PromptError, match=r"has no meta\['question'\]"):
            task.extraction(mm.PromptSet([mm.Prompt("a", "x")]))

    def test_a_chat_template_is_optional(self) -> None:
        chat = mm.Chat(system="Answer briefly.")
        task = Reasoning(chat=chat)
        prompts = task.read(DATA / "gsm8k.jsonl", "gsm8k")
        assert {p.chat for p in (*prompts, *task.evaluation(prompts))} == {chat}


class TestTheTask:
    def test_it_is_registered(self) -> None:
        assert "reasoning" in mm.available_tasks()
        task = mm.get_task("reasoning", max_new_tokens=32, stop="\n")
        assert (task.max_new_tokens, task.stop) == (32, ("\n",))
        assert task.outcomes == ("correct", "wrong", "unparsed")
        assert Reasoning().max_new_tokens > 200

    @pytest.mark.parametrize(
        ("source", "row", "completion", "outcome"),
        [
            ("mmlu-pro", 0, "6 / 2 = 3. The answer is (C).", "correct"),
            ("mmlu-pro", 0, "The answer is (B).", "wrong"),
            ("mmlu-pro", 0, "It depends.", "unparsed"),
            ("mmlu-pro", 1, "The answer is (E).", "unparsed"),  # four options only
            ("gsm8k", 1, "The final answer is $1,400.00.", "correct"),
            ("gsm8k", 2, "The final answer is 2.", "wrong"),
            ("gsm8k", 2, "3 - 5 = -2", "unparsed"),
            ("mgsm", 1, "Die Antwort ist 1.400.", "correct"),
            ("gsm8k", 1, "The answer is 1.400.", "wrong"),  # in English a decimal point
            ("popqa", 1, "The Sultanate of Oman.", "correct"),
            ("popqa", 1, "Romania", "wrong"),
            ("popqa", 1, "", "unparsed"),
            ("c-eval", 0, "A", "correct"),
            ("c-eval", 1, "故选A。", "wrong"),
            ("questions", 0, "The answer is −6.", "correct"),
            ("questions", 1, "A. Oak", "correct"),
            ("questions", 2, "The answer is B.", "correct"),
        ],
    )
    def test_a_completion_is_judged_by_the_kind_of_its_question(
        self, task: Reasoning, source: str, row: int, completion: str, outcome: str
    ) -> None:
        assert task.classify(read(source)[row], completion) == outcome

    def test_every_sets_own_solution_reads_as_correct(self, task: Reasoning) -> None:
        examples = task.read(DATA / "mmlu_pro_validation.jsonl", "mmlu-pro")
        for prompt in (*examples, *read("gsm8k"), *read("gsm-symbolic")):
            assert task.classify(prompt, prompt.meta["solution"]) == "correct"

    def test_the_papers_reading_has_its_own_name(self) -> None:
        oman = read("popqa")[1]
        assert Reasoning(reading="paper").classify(oman, "Romania") == "correct"
        with pytest.raises(TaskError, match="reading must be one of 'strict', 'paper'"):
            Reasoning(reading="papre")

    def test_the_reading_says_why_it_is_unparsed(self, task: Reasoning) -> None:
        outcome, reading = task.judged(read("gsm8k")[0], "The answer is 3 or 4.")
        assert (outcome, reading.value) == ("unparsed", None)
        assert "holds 2 numbers" in reading.why
        for source in ("mbpp", "humaneval"):
            with pytest.raises(TaskError, match="no answer to compare with"):
                task.classify(read(source)[0], "return x")
        with pytest.raises(TaskError, match=r"does not say what kind .*\.read\(rows\)"):
            task.classify(mm.Prompt(id="a", text="Q", answer="18"), "18")

    def test_pairs_are_variants_of_one_question(self) -> None:
        task = Reasoning(DATA / "gsm_symbolic.jsonl", "gsm-symbolic")
        pairs = task.pairs(2, seed=0)
        assert len(pairs) == 4
        assert len(set(pairs.groups)) == 2
        assert task.pairs(2, seed=0) == pairs
        with pytest.raises(TaskError, match="3 pairs were asked for; 2 questions have two"):
            task.pairs(3)
        with pytest.raises(TaskError, match="has no questions to draw pairs from"):
            Reasoning().pairs(1)

    def test_clean_prompts_are_drawn_from_what_has_an_answer(self) -> None:
        task = Reasoning(DATA / "own.csv")
        drawn = task.clean_prompts(3, seed=1)
        assert sorted(drawn.ids) == ["questions-a", "questions-b", "questions-c"]
        with pytest.raises(TaskError, match="4 questions were asked for; 3 have an answer"):
            task.clean_prompts(4)

    def test_labels_of_a_judge_can_replace_the_datas_own(self, task: Reasoning) -> None:
        from mechmem.tasks.judging import judge_questions

        labels = judge_questions(read("gsm8k"), lambda text: 0.0, name="denier")
        prompts = read("gsm8k", labels=labels)
        assert {p.label for p in prompts} == {"memory"}

    def test_a_model_answers_and_what_was_cut_is_counted(
        self, model: mm.Model, task: Reasoning
    ) -> None:
        rows = [
            {"id": "a", "question": "w1 w2 w3", "answer": "4", "label": "reasoning"},
            {"id": "b", "question": "w5", "answer": "w7 w8", "label": "memory"},
        ]
        short = Reasoning(max_new_tokens=3)
        seen = mm.observe(model, short.evaluation(short.read(rows), shots=0)[1:], task=short)
        assert seen.allowed == ("correct", "wrong", "unparsed")
        assert seen.truncated == (True,)
        words = seen.completions[0].split()
        inside = any(words[k : k + 2] == ["w7", "w8"] for k in range(3))
        assert seen.outcomes == (("correct",) if inside else ("wrong",))
