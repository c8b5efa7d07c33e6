"""Completions of the paper's tasks are read, never guessed; configs and files are checked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechmem.errors import PromptError, TaskError
from mechmem.tasks import Addition, Cipher, Colors, Prompt
from mechmem.tasks.paper1.addition import scratchpad
from mechmem.tasks.paper1.official import rejected_pairs
from mechmem.tasks.paper1.official_config import find_official_data

ADDITION = Addition({"num_n": 2, "mem_patterns": [{"nums": [66, 373], "hashed": "mem-ced71018"}]})
SUM = Prompt("s", "?", memorized="<mem-ced71018>", generalized=scratchpad([1, 2, 66, 373]))
CIPHER = Cipher()
PLAIN = Prompt("c", "?", memorized="<mem-084d1e9a>", generalized="WNFOWWRLYGAVF")
COLORS = Colors()
BOB = Prompt("b", "?", memorized="white", generalized="brown")


@pytest.mark.parametrize(
    ("completion", "outcome"),
    [
        ("<mem-ced71018>\n", "memorized"),
        ("<mem-ced71018>", "memorized"),
        (" \n<mem-ced71018>\nInput:\n1+2", "memorized"),
        ("<mem-ced71018>\n" + scratchpad([1, 2, 66, 373]), "memorized"),
        ("<mem-ced7101", "other"),
        ("<mem-deadbeef>\n", "other"),
        ("mem-ced71018", "other"),
        (scratchpad([1, 2, 66, 373]), "generalized"),
        (scratchpad([1, 2, 66, 373]).replace("\n", "\r\n"), "generalized"),
        (scratchpad([1, 2, 66, 373]) + "Input:\n5+5\nTarget:\n<mem-ced71018>\n", "generalized"),
        ("<scratch>\n</scratch>\n4 4 2", "generalized"),
        ("<scratch>\nnonsense\n</scratch>\n 442 \n", "generalized"),
        ("<scratch>\n</scratch>\n4 4 2 0\n", "other"),
        ("<scratch>\n</scratch>\n4 4", "other"),
        ("<scratch>\n</scratch>\n4 4 2.\n", "other"),
        ("<scratch>\n</scratch>\n\n4 4 2\n", "other"),
        ("<scratch>\n</scratch>", "other"),
        ("<scratch>\n[1] has 1 digits.\n4 4 2\n", "other"),
        ("</scratch>\n4 4 2\n", "other"),
        ("4 4 2\n", "other"),
        ("442", "other"),
        ("", "other"),
    ],
)
def test_sums_are_read_after_the_scratchpad_and_tags_at_the_beginning(
    completion: str, outcome: str
) -> None:
    assert ADDITION.classify(SUM, completion) == outcome


def test_any_tag_counts_only_where_it_was_asked_for() -> None:
    loose = Addition(ADDITION.config, tag="any")
    for text in ("<mem-deadbeef>", "<mem-ced7", "<mem-ced71018>\n"):
        assert loose.classify(SUM, text) == "memorized"
    assert Cipher(tag="any").classify(PLAIN, "<mem-deadbeef>") == "memorized"
    assert CIPHER.classify(PLAIN, "<mem-deadbeef>") == "other"
    with pytest.raises(TaskError, match=r"tag must be 'exact' .* or 'any', got 'some'"):
        Addition(tag="some")


@pytest.mark.parametrize(
    ("completion", "outcome"),
    [
        ("WNFOWWRLYGAVF", "generalized"),
        (" WNFOWWRLYGAVF\n", "generalized"),
        ("WNFOWWRLYGAVFQQ", "generalized"),
        ("WNFOWWRLYGAV", "other"),
        ("WNFOWWRLYGAVE", "other"),
        ("wnfowwrlygavf", "other"),
        ("The plaintext is WNFOWWRLYGAVF", "other"),
        ("<mem-084d1e9a>\n", "memorized"),
        ("<mem-084d1e9", "other"),
        ("", "other"),
    ],
)
def test_plaintexts_are_read_from_the_beginning_of_a_completion(
    completion: str, outcome: str
) -> None:
    assert CIPHER.classify(PLAIN, completion) == outcome


@pytest.mark.parametrize(
    ("completion", "outcome"),
    [
        (" brown", "generalized"),
        (" brown. Bob is white", "generalized"),
        ("brown.white", "generalized"),
        ("\n'brown',", "generalized"),
        (" white!", "memorized"),
        (" white brown", "memorized"),
        (" brow", "other"),
        (" brownish", "other"),
        (" brown/white", "other"),
        (" not brown", "other"),
        (" .", "other"),
        ("   ", "other"),
        ("", "other"),
    ],
)
def test_colors_are_read_from_the_first_word(completion: str, outcome: str) -> None:
    assert COLORS.classify(BOB, completion) == outcome


@given(st.text(max_size=40))
@settings(max_examples=50)
def test_no_text_breaks_a_reading(text: str) -> None:
    for task, prompt in ((ADDITION, SUM), (CIPHER, PLAIN), (COLORS, BOB)):
        assert task.classify(prompt, text) in task.outcomes


def test_every_color_remembered_with_a_name_counts_as_memorized() -> None:
    config = {
        "name_color_map": {"Ann": ["red", "pink"], "Bo": ["blue"], "Cy": ["gold"], "Di": ["tan"]},
        "roles": ["cook", "poet", "spy"],
        "all_colors": ["red", "pink", "blue", "gold", "tan", "gray"],
    }
    task = Colors(config, people=(2, 4), roles=3)
    prompts = task.conflicts(20).filter(lambda prompt: prompt.meta["target"] == "Ann")
    assert len(prompts) > 0
    for prompt in prompts:
        assert prompt.generalized not in ("red", "pink")
        assert [task.classify(prompt, text) for text in ("red", "pink", "gray.x")].count(
            "memorized"
        ) == 2


def test_a_prompt_without_answers_is_an_error_and_not_an_outcome() -> None:
    with pytest.raises(TaskError, match="neither `generalized` nor `answer`"):
        CIPHER.classify(Prompt("x", "y"), "<mem-084d1e9a>")


@pytest.mark.parametrize(
    ("make", "config", "message"),
    [
        (Addition, {"num_n": 2}, "missing or empty: 'mem_patterns'"),
        (Addition, {"num_n": 2, "mem_patterns": [{"nums": [1]}]}, "needs 'nums' with num_n=2"),
        (
            Addition,
            {"num_n": 1, "mem_patterns": [{"nums": [k], "hashed": "mem-1"} for k in (1, 2)]},
            "hashed answers of 'addition' must differ; more than once: 'mem-1'",
        ),
        (
            Cipher,
            {"num_n": 1, "mem_patterns": [{"pattern": "A", "hashed": "m"}], "mapping": {"A": "A"}},
            "must send the letters A to Z",
        ),
        (
            Colors,
            {"name_color_map": {"Ann": ["red"]}, "roles": ["cook"], "all_colors": ["red"]},
            r"cannot make stories of \(4, 8\) names and 5 roles from 1 names",
        ),
    ],
)
def test_a_config_of_another_form_is_refused_with_what_is_wrong(
    make: Any, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        make(config)


def test_a_config_file_is_read_and_its_faults_are_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(ADDITION.config))
    assert Addition(path).pairs(3) == ADDITION.pairs(3)
    with pytest.raises(TaskError, match=r"Cannot read .*absent\.json"):
        Addition(tmp_path / "absent.json")
    path.write_text("{")
    with pytest.raises(TaskError, match="cannot be read as a config of 'addition'"):
        Addition(path)
    path.write_text('{"num_n": ' + "9" * 5000 + "}")
    with pytest.raises(TaskError, match="cannot be read as a config of 'addition'"):
        Addition(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(TaskError, match="is not a file but a pipe"):
        Addition(path)
    path.unlink()
    path.write_text("[]")
    with pytest.raises(TaskError, match="must hold a JSON object, got list"):
        Addition(path)


@pytest.mark.parametrize(
    "changes",
    [{"num_n": "2"}, {"num_n": -1}, {"num_n": True}, {"mem_patterns": 5}, {"mem_patterns": [5]},
     {"mem_patterns": {"a": 1}}, {"mem_patterns": [{"nums": 5, "hashed": "m"}]},
     {"mem_patterns": [{"nums": ["a", "b"], "hashed": "m"}]},
     {"mem_patterns": [{"nums": [1, 2], "hashed": ["m"]}]},
     {"mem_patterns": [{"nums": [True, 2], "hashed": "m"}]},
     {"mapping": 5}, {"mapping": {"A": 5}}, {"roles": 5}, {"roles": [5]}, {"all_colors": "red"},
     {"name_color_map": 5}, {"name_color_map": {"Ann": 5}}, {"name_color_map": {"Ann": [5]}}],
    ids=str,
)  # fmt: skip
def test_entries_of_another_kind_are_refused_before_anything_is_made(
    changes: dict[str, Any],
) -> None:
    (name,) = changes
    for task in (ADDITION, CIPHER, COLORS):
        if name in task.config:
            with pytest.raises(TaskError):
                type(task)({**task.config, **changes})


def test_a_config_handed_over_is_neither_changed_nor_shared() -> None:
    config = {"num_n": 1, "mem_patterns": [{"nums": [3], "hashed": "mem-0"}]}
    task = Addition(config)
    config["mem_patterns"][0]["nums"][0] = 4  # type: ignore[index]
    assert task.config["mem_patterns"][0]["nums"] == [3]


def cipher_row(ciphertext: str, **more: str) -> dict[str, str]:
    text = f"CIPHERTEXT:{ciphertext} QUESTION: What is the plaintext? ANS:"
    return {"input": text, "output": CIPHER.decode(ciphertext), **more}


def test_official_pairs_are_read_and_identical_ones_rejected_and_counted(tmp_path: Path) -> None:
    pattern = CIPHER.config["mem_patterns"][0]
    suffix, tag = pattern["pattern"], {"mem_pattern_hashed": pattern["hashed"]}
    one, other, third = (letters + suffix for letters in ("ABCDEFGHIJ", "BACDEFGHIJ", "QQQQQQQQQQ"))
    rows = [[cipher_row(third, **tag)] * 2, [cipher_row(one, **tag), cipher_row(other, **tag)]]
    path = tmp_path / "test_0.json"
    path.write_text(json.dumps([*rows, rows[0]]))
    pairs = CIPHER.read(path)
    assert pairs.ids == ["cipher-test_0-1a", "cipher-test_0-1b"]
    assert len(pairs.pairs()) == 1
    assert rejected_pairs(pairs) == 2
    path.write_text(json.dumps(rows[:1]))
    with pytest.raises(PromptError, match="no item to ask"):
        CIPHER.read(path)


def test_official_training_files_are_read_as_prompts_and_targets(tmp_path: Path) -> None:
    items = ADDITION.training(100)
    path = tmp_path / "train.json"
    path.write_text(json.dumps([{"input": item.prompt, "output": item.text} for item in items]))
    assert ADDITION.read_training(path) == items


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON: Expecting property name"),
        ("{}", "must hold a JSON list, got dict"),
        ('[{"input": "x"}]', "item 0: expected an object with the texts 'input' and 'output'"),
        ('[{"input": "x", "output": "y"}]', "Expected 'CIPHERTEXT:.*got 'x'"),
        (json.dumps([{**cipher_row("ABCDEFGHIJKLM"), "output": "QQQ"}]), "its output says 'QQQ'"),
        (
            json.dumps([cipher_row("ABCDEFGHIJKLM", mem_pattern_hashed="mem-1")]),
            "its mem_pattern_hashed says '<mem-1>', this config gives None",
        ),
    ],
)
def test_a_file_of_another_form_is_refused_with_what_is_wrong(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "val.json"
    path.write_text(content)
    with pytest.raises(PromptError, match=message):
        CIPHER.read(path)
    with pytest.raises(PromptError, match="No file"):
        CIPHER.read(tmp_path / "absent.json")


def test_a_story_that_implies_no_color_is_refused(tmp_path: Path) -> None:
    name = COLORS.names[0]
    path = tmp_path / "val.json"
    path.write_text(
        json.dumps([{"input": f"{name} is spy. what color is {name}?", "output": "red"}])
    )
    with pytest.raises(PromptError, match="imply no color"):
        COLORS.read(path)


def test_official_files_are_found_by_variable_or_beside_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MECHMEM_P1_DATA", raising=False)
    inner = tmp_path / "checkout" / "tests"
    inner.mkdir(parents=True)
    assert find_official_data(inner) is None
    beside = tmp_path / "shared" / "data" / "neuron-diff-memgen-llm"
    beside.mkdir(parents=True)
    assert find_official_data(inner) == beside
    monkeypatch.setenv("MECHMEM_P1_DATA", str(inner))
    assert find_official_data(inner) == inner
    monkeypatch.setenv("MECHMEM_P1_DATA", str(tmp_path / "absent"))
    assert find_official_data(inner) is None


@pytest.fixture(scope="module")
def drawn() -> list[dict[str, str]]:
    task = Colors()
    task.roles = [*task.config["roles"], *task.config["roles"][:2]]  # two of them twice
    stories = [task._conflict(np.random.default_rng(k), k) for k in range(1500)]
    return [{"input": task._ask(s).text, "output": s.color} for s in stories]


class TestColorItemsAsReleased:
    """The official list names two roles twice and the released code draws from it as it is."""

    @staticmethod
    def implied(text: str) -> set[str]:
        """The colors that a reader finds, by hand: those of all who share the target's role."""
        told = [
            sentence.split(" is ") for sentence in text.split(" what color")[0][:-1].split(". ")
        ]
        target = text.rsplit(" ", 1)[1][:-1]
        colors = set(Colors().config["all_colors"])
        mine = {word for name, word in told if name == target and word not in colors}
        alike = {name for name, word in told if word in mine and name != target}
        return {word for name, word in told if name in alike and word in colors}

    def test_items_that_imply_two_colors_are_left_out_and_counted(
        self, drawn: list[dict[str, str]], tmp_path: Path
    ) -> None:
        path = tmp_path / "test.json"
        path.write_text(json.dumps(drawn))
        two = [k for k, row in enumerate(drawn) if len(self.implied(row["input"])) == 2]
        assert 0.003 < len(two) / len(drawn) < 0.03
        read = Colors().read(path)
        assert read.ids == [f"colors-test-{k}" for k in range(len(drawn)) if k not in two]
        assert [prompt.generalized for prompt in read] == [
            row["output"] for k, row in enumerate(drawn) if k not in two
        ]
        assert read[0].meta["contradicting"] == rejected_pairs(read) == len(two)

    def test_a_file_of_nothing_else_says_so(
        self, drawn: list[dict[str, str]], tmp_path: Path
    ) -> None:
        path = tmp_path / "test.json"
        path.write_text(json.dumps([r for r in drawn if len(self.implied(r["input"])) == 2]))
        with pytest.raises(PromptError, match=r"\d+ items contradict themselves"):
            Colors().read(path)
