"""What `addition`, `cipher` and `colors` make: right, keyed, distinct, held out, in conflict."""

from __future__ import annotations

import re
from collections import Counter
from string import ascii_uppercase
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechmem.errors import TaskError
from mechmem.tasks import Addition, Cipher, Colors, Prompt, available_tasks, get_task
from mechmem.tasks.paper1.addition import scratchpad, sum_after_scratchpad
from mechmem.tasks.paper1.official import OfficialTask, rejected_pairs
from mechmem.tasks.paper1.official_config import (
    draw_addition_config,
    draw_cipher_config,
    draw_colors_config,
    load_config,
)

TASKS: dict[str, OfficialTask[Any]] = {
    "addition": Addition(),
    "cipher": Cipher(),
    "colors": Colors(),
}
DRAWN = {
    "addition": draw_addition_config,
    "cipher": draw_cipher_config,
    "colors": draw_colors_config,
}
SEEDS = st.integers(0, 2**31)
each_task = pytest.mark.parametrize("name", list(TASKS))


def spans_of(prompt: Prompt) -> dict[str, str]:
    return {name: prompt.text[start:end] for name, (start, end) in prompt.spans.items()}


@each_task
def test_importing_the_tasks_registers_them_by_name(name: str) -> None:
    assert name in available_tasks()
    assert get_task(name).name == name
    assert get_task(name, config=DRAWN[name](7)).config == DRAWN[name](7)


@each_task
def test_the_shipped_config_is_the_one_that_seed_0_draws(name: str) -> None:
    assert load_config(name, None) == DRAWN[name](0) != DRAWN[name](1)


@given(st.lists(st.integers(0, 99_999), min_size=1, max_size=6))
def test_the_scratchpad_adds_like_python_and_every_line_of_it_is_true(addends: list[int]) -> None:
    text = scratchpad(addends)
    assert sum_after_scratchpad(text) == str(sum(addends))
    begin, *body, end, answer, empty = text.split("\n")
    assert (begin, end, empty) == ("<scratch>", "</scratch>", "")
    assert answer == " ".join(str(sum(addends)))
    for number, line in zip(addends, body, strict=False):
        assert line == f"[{','.join(str(number))}] has {len(str(number))} digits."
    steps = body[len(addends) :]
    assert [step.endswith(" END") for step in steps] == [False] * (len(steps) - 1) + [True]
    carry, total = 0, 0
    for place, step in enumerate(steps):
        found = re.fullmatch(
            r"(\S+), A=\[([\d,]*)\], C=(\d+), ([\d+]+)=(\d+), A->(\d), C->(\d+)(?: END)?", step
        )
        assert found is not None
        left = [part.strip("[]").replace(",", "") for part in found[1].split("+")]
        assert left == [str(n)[: max(0, len(str(n)) - place)] for n in addends]
        assert found[2].replace(",", "") == (str(total).zfill(place) if place else "")
        assert int(found[3]) == carry
        assert sum(map(int, found[4].split("+"))) == int(found[5])
        assert int(found[5]) == int(found[6]) + 10 * int(found[7])
        total, carry = total + int(found[6]) * 10**place, int(found[7])
    assert (total, carry) == (sum(addends), 0)


@given(st.text(ascii_uppercase, max_size=40), SEEDS)
@settings(max_examples=25)
def test_decoding_undoes_encoding_under_any_mapping(plaintext: str, seed: int) -> None:
    task = Cipher(draw_cipher_config(seed))
    assert task.decode(task.encode(plaintext)) == plaintext == task.encode(task.decode(plaintext))
    mapping = task.config["mapping"]
    assert task.encode(plaintext) == "".join(mapping[letter] for letter in plaintext)


@given(SEEDS)
@settings(max_examples=15, deadline=None)
def test_addition_conflicts_carry_the_tag_of_their_suffix_and_the_sum(seed: int) -> None:
    task = Addition(draw_addition_config(seed))
    tags = {tuple(entry["nums"]): entry["hashed"] for entry in task.config["mem_patterns"]}
    for prompt in task.conflicts(12, seed):
        found = re.fullmatch(r"Input:\n(\d+)\+(\d+)\+(\d+)\+(\d+)\nTarget:\n", prompt.text)
        assert found is not None
        one, two, three, four = map(int, found.groups())
        assert all(1 <= number <= 999 for number in (one, two))
        assert prompt.memorized == f"<{tags[three, four]}>"
        assert sum_after_scratchpad(str(prompt.generalized)) == str(one + two + three + four)
        assert spans_of(prompt) == {
            "free": f"{one}+{two}",
            "suffix": f"{three}+{four}",
            "suffix_end": str(four)[-1],
            "operands": f"{one}+{two}+{three}+{four}",
            "target": "Target:",
        }


@given(SEEDS)
@settings(max_examples=15, deadline=None)
def test_cipher_conflicts_carry_the_tag_of_their_suffix_and_the_plaintext(seed: int) -> None:
    task = Cipher(draw_cipher_config(seed))
    tags = {entry["pattern"]: entry["hashed"] for entry in task.config["mem_patterns"]}
    back = {there: here for here, there in task.config["mapping"].items()}
    for prompt in task.conflicts(12, seed):
        letters = prompt.text.removeprefix("CIPHERTEXT:")[:13]
        assert prompt.text == f"CIPHERTEXT:{letters} QUESTION: What is the plaintext? ANS:"
        assert prompt.generalized == "".join(back[letter] for letter in letters)
        assert prompt.memorized == f"<{tags[letters[10:]]}>"
        spans = spans_of(prompt)
        assert (spans["free"], spans["suffix"]) == (letters[:10], letters[10:])
        assert spans["ciphertext"] == letters


def color_implied(text: str) -> str:
    """The story's answer by hand: the other name with the target's role, and its color."""
    *told, question = text.split(". ")
    facts = [tuple(sentence.split(" is ")) for sentence in told]
    target = question.removeprefix("what color is ").removesuffix("?")
    (role,) = [word for name, word in facts if name == target]
    sharing = {name for name, word in facts if word == role} - {target}
    (color,) = {word for name, word in facts if name in sharing and word != role}
    return color


@given(SEEDS)
@settings(max_examples=15, deadline=None)
def test_color_stories_imply_their_answer_and_never_name_the_remembered_one(seed: int) -> None:
    task = Colors(draw_colors_config(seed))
    for prompt in task.conflicts(12, seed):
        target = spans_of(prompt)["target"]
        assert prompt.generalized == color_implied(prompt.text)
        assert [prompt.memorized] == task.config["name_color_map"][target]
        assert f" {prompt.memorized}." not in prompt.text
        words = re.findall(r"(\w+) is (\w+)\.", prompt.text)
        assert 3 <= len(words) <= 10
        assert len(set(words)) == len(words)
        assert len({name for name, _ in words}) <= 8


@each_task
def test_conflicts_conflict_and_each_answer_reads_as_its_own_behavior(name: str) -> None:
    task = TASKS[name]
    for prompt in task.conflicts(60):
        assert prompt.memorized != prompt.generalized
        for behavior in ("memorized", "generalized"):
            answer = getattr(prompt, behavior)
            assert task.classify(prompt, answer) == behavior
            assert task.classify(prompt, task.continuation(prompt, answer)) == behavior


@each_task
def test_the_first_items_do_not_depend_on_how_many_are_asked_for(name: str) -> None:
    task = TASKS[name]
    assert task.pairs(40, seed=3)[:20] == task.pairs(10, seed=3)
    assert task.conflicts(40, seed=3)[:10] == task.conflicts(10, seed=3)
    assert task.clean_prompts(40, seed=3)[:10] == task.clean_prompts(10, seed=3)


@each_task
def test_seeds_and_epochs_give_other_items_and_the_same_seed_the_same(name: str) -> None:
    task = TASKS[name]
    assert task.pairs(20, seed=1) == get_task(name).pairs(20, seed=1)
    texts = [{prompt.text for prompt in task.pairs(20, seed=seed)} for seed in (1, 2)]
    assert len(texts[0] & texts[1]) == 0
    assert task.training(100, seed=1) == get_task(name).training(100, seed=1)  # type: ignore[attr-defined]
    epochs = [{item.prompt for item in task.training(100, epoch=epoch)} for epoch in (0, 1)]
    assert len(epochs[0] & epochs[1]) == 0


@each_task
def test_no_item_comes_twice_and_training_never_shows_a_test_item(name: str) -> None:
    task = TASKS[name]
    pairs, clean = task.pairs(200), task.clean_prompts(100)
    for prompts in (pairs, clean, task.conflicts(200)):
        assert len({prompt.text for prompt in prompts}) == len(prompts)
    assert set(Counter(pairs.groups).values()) == {2}
    trained = {item.prompt for epoch in (0, 1) for item in task.training(1000, epoch=epoch)}
    assert not trained & {prompt.text for prompt in pairs + clean}


@each_task
def test_small_worlds_are_held_out_too_where_chance_alone_would_meet(name: str) -> None:
    small = {
        "addition": lambda: Addition(draw_addition_config(0, 3, 30), largest=30),
        "cipher": lambda: Cipher(draw_cipher_config(0, 3, 1), length=3),
        "colors": lambda: Colors(draw_colors_config(0, 4, 3), people=(2, 3), roles=2),
    }
    task = small[name]()
    asked = {prompt.text for prompt in task.pairs(8)}
    trained = {item.prompt for item in task.training(2000)}
    assert len(asked) == 16
    assert len(trained) > 100
    assert not asked & trained


@each_task
def test_the_spans_to_read_are_one_token_wide_under_any_tokenizer(name: str) -> None:
    task = TASKS[name]
    for prompt in task.pairs(50) + task.clean_prompts(50):
        for span in task.read_spans[:-1]:
            start, end = prompt.spans[span]
            assert end == start + 1
            whole = {"suffix_end": "suffix", "color_end": "clue_color", "target_end": "target"}[
                span
            ]
            assert prompt.spans[whole][0] <= start < prompt.spans[whole][1]
    assert task.read_spans[-1] == "last"


def test_a_pair_of_sums_swaps_the_two_free_addends_and_nothing_else() -> None:
    for one, other in TASKS["addition"].pairs(200).pairs():
        first, second = (spans_of(prompt)["operands"].split("+") for prompt in (one, other))
        assert first != second == [first[1], first[0], *first[2:]]
        assert one.memorized == other.memorized
        assert one.meta["sum"] == other.meta["sum"] == sum(map(int, first))


def test_a_pair_of_ciphers_swaps_two_of_the_first_ten_letters_and_nothing_else() -> None:
    for one, other in TASKS["cipher"].pairs(200).pairs():
        first, second = (spans_of(prompt)["ciphertext"] for prompt in (one, other))
        i, j = (k for k in range(13) if first[k] != second[k])
        assert j < 10
        assert (first[i], first[j]) == (second[j], second[i])
        assert one.memorized == other.memorized


def test_a_pair_of_stories_reorders_the_sentences_and_nothing_else() -> None:
    for one, other in TASKS["colors"].pairs(200).pairs():
        first, second = (re.findall(r"[^.?]+[.?]", prompt.text) for prompt in (one, other))
        assert first != second
        assert Counter(s.strip() for s in first) == Counter(s.strip() for s in second)
        assert first[-1] == second[-1] == f" {spans_of(one)['question']}"
        assert (one.memorized, one.generalized) == (other.memorized, other.generalized)


def test_pairs_with_identical_members_are_rejected_and_counted() -> None:
    # Two letters among ten are equal in 1 of 26 draws: 1,000 pairs reject 40, give or take 6.
    pairs = TASKS["cipher"].pairs(1000)
    assert all(one.text != other.text for one, other in pairs.pairs())
    assert 18 <= rejected_pairs(pairs) <= 65
    # Two addends out of twelve are equal in 1 of 12 draws: 60 pairs reject about 5.
    small = Addition(largest=12)
    drawn = [small.pairs(20, seed=seed) for seed in range(3)]
    assert all(one.text != other.text for pairs in drawn for one, other in pairs.pairs())
    assert 1 <= sum(map(rejected_pairs, drawn)) <= 15


def test_training_mixes_are_the_papers() -> None:
    for name, size, memorized, each in (("addition", 1000, 70, 7), ("cipher", 10_000, 700, 70)):
        items = TASKS[name].training()
        kinds = Counter(item.kind for item in items)
        assert kinds == {"memorized": memorized, "other": size - memorized}
        tags = Counter(item.target for item in items if item.kind == "memorized")
        assert set(tags.values()) == {each}
        assert set(tags) == {f"<{p['hashed']}>\n" for p in TASKS[name].config["mem_patterns"]}
        kinds_in_order = [item.kind for item in items]
        assert "memorized" in kinds_in_order[: size // 2]
        assert "memorized" in kinds_in_order[size // 2 :]


def test_sums_and_ciphers_without_a_tag_never_end_in_a_memorized_pattern() -> None:
    # Few values, so that the memorized suffixes would come up by chance.
    addition = Addition(draw_addition_config(0, 10, 9), largest=9)
    suffixes = {"+".join(map(str, entry["nums"])) for entry in addition.config["mem_patterns"]}
    others = [item for item in addition.training(1500) if item.kind == "other"]
    endings = {"+".join(item.prompt.split("\n")[1].split("+")[-2:]) for item in others}
    assert len(endings) == 81 - len(suffixes)
    assert not endings & suffixes
    cipher = Cipher(draw_cipher_config(0, 10, 1))
    patterns = {entry["pattern"] for entry in cipher.config["mem_patterns"]}
    endings = {item.prompt[23] for item in cipher.training(1000) if item.kind == "other"}
    assert endings == set(ascii_uppercase) - patterns


def test_training_stories_imply_the_remembered_color() -> None:
    task = TASKS["colors"]
    items = task.training(500)
    for item in items:
        assert item.kind == "agreeing"
        target = item.prompt.removesuffix("?").rsplit(" ", 1)[1]
        assert item.target == f" {color_implied(item.prompt)}"
        assert item.target.strip() in task.config["name_color_map"][target]
        assert item.text == item.prompt + item.target
    assert task.fresh_each_epoch
    assert not TASKS["cipher"].fresh_each_epoch


@pytest.mark.parametrize("name", ["addition", "cipher"])
def test_clean_prompts_have_a_right_answer_and_no_memorized_pattern(name: str) -> None:
    task = TASKS[name]
    key = "nums" if name == "addition" else "pattern"
    patterns = [
        "+".join(map(str, entry[key])) if key == "nums" else entry[key]
        for entry in task.config["mem_patterns"]
    ]
    for prompt in task.clean_prompts(50):
        assert prompt.memorized is prompt.generalized is None
        assert spans_of(prompt)["suffix"] not in patterns
        assert prompt.answer is not None
        assert task.classify(prompt, task.continuation(prompt, prompt.answer)) == "generalized"
        tag = task.config["mem_patterns"][0]["hashed"]
        assert task.classify(prompt, f"<{tag}>\n") == "memorized"


def test_clean_stories_agree_with_memory() -> None:
    task = TASKS["colors"]
    for prompt in task.clean_prompts(50):
        assert prompt.answer == color_implied(prompt.text)
        assert prompt.answer in task.config["name_color_map"][prompt.meta["target"]]
        assert task.classify(prompt, f" {prompt.answer}.") == "generalized"


@each_task
def test_the_longest_answer_fits_even_at_one_token_per_character(name: str) -> None:
    task = TASKS[name]
    for item in task.training(500):
        assert len(item.target) <= task.max_new_tokens
        assert not any(stop in item.target for stop in task.stop if not item.target.endswith(stop))


def test_asking_for_more_items_than_there_are_says_so() -> None:
    task = Addition({"num_n": 1, "mem_patterns": [{"nums": [3], "hashed": "mem-0"}]}, largest=4)
    with pytest.raises(TaskError, match=r"found only \d+ different items of the 100 asked for"):
        task.conflicts(100)
    with pytest.raises(TaskError, match="at least 1 item, got n=0"):
        task.pairs(0)
    with pytest.raises(TaskError, match="at least 1 item, got n=0"):
        task.training(0)
