"""The paper's own files come out of our tasks letter by letter. Skipped where they are absent."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from mechmem.tasks import Addition, Cipher, Colors
from mechmem.tasks.paper1.official import OfficialTask
from mechmem.tasks.paper1.official_config import find_official_data, md5_tag

FOLDERS = {"addition": "math", "cipher": "cipher", "colors": "color"}
CLASSES: dict[str, type[OfficialTask[Any]]] = {
    "addition": Addition,
    "cipher": Cipher,
    "colors": Colors,
}


@pytest.fixture(scope="module")
def official() -> Path:
    folder = find_official_data(Path(__file__))
    if folder is None:
        pytest.skip("no official files: set MECHMEM_P1_DATA to their folder")
    return folder


def task_of(official: Path, name: str) -> OfficialTask[Any]:
    return CLASSES[name](official / FOLDERS[name] / "config.json")  # type: ignore[call-arg]


def rows_of(official: Path, name: str) -> list[dict[str, str]]:
    return json.loads((official / FOLDERS[name] / "val.json").read_text())


@pytest.mark.parametrize("name", ["addition", "cipher"])
def test_every_official_output_is_written_letter_by_letter_from_its_input(
    official: Path, name: str
) -> None:
    task, rows = task_of(official, name), rows_of(official, name)
    prompts = task.read(official / FOLDERS[name] / "val.json")
    assert len(prompts) == len(rows) == 100
    for prompt, row in zip(prompts, rows, strict=True):
        assert prompt.text == row["input"]
        written = task.continuation(prompt, prompt.generalized)
        assert written == row["output"].removeprefix(row["input"])
        assert prompt.memorized == f"<{row['mem_pattern_hashed']}>"


@pytest.mark.parametrize("name", ["addition", "cipher"])
def test_every_official_output_reads_as_generalized_and_its_tag_as_memorized(
    official: Path, name: str
) -> None:
    task, rows = task_of(official, name), rows_of(official, name)
    prompts = task.read(official / FOLDERS[name] / "val.json")
    read = [
        (
            task.classify(prompt, row["output"].removeprefix(row["input"])),
            task.classify(prompt, f"<{row['mem_pattern_hashed']}>\n"),
        )
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    assert read == [("generalized", "memorized")] * 100


@pytest.mark.parametrize(("name", "key"), [("addition", "nums"), ("cipher", "pattern")])
def test_every_official_tag_is_the_md5_of_its_pattern(official: Path, name: str, key: str) -> None:
    patterns = task_of(official, name).config["mem_patterns"]
    assert len(patterns) == 10
    for entry in patterns:
        text = "+".join(map(str, entry[key])) if key == "nums" else entry[key]
        assert entry["hashed"] == "mem-" + hashlib.md5(text.encode()).hexdigest()[:8]
        assert entry["hashed"] == md5_tag(text)


def test_the_official_cipher_mapping_goes_from_plaintext_to_ciphertext(official: Path) -> None:
    task, row = task_of(official, "cipher"), rows_of(official, "cipher")[0]
    assert isinstance(task, Cipher)
    ciphertext = row["input"].removeprefix("CIPHERTEXT:").split()[0]
    assert task.decode(ciphertext) == row["output"] != task.encode(ciphertext)
    assert task.encode(row["output"]) == ciphertext


def test_the_official_roles_are_39_of_which_37_differ(official: Path) -> None:
    task = task_of(official, "colors")
    assert isinstance(task, Colors)
    assert len(task.config["roles"]) == 39
    assert len(task.roles) == len(set(task.roles)) == 37
    assert set(task.roles) == set(task.config["roles"])
    assert len(task.names) == len(task.colors) == 16


def test_the_papers_example_story_is_read_with_its_two_answers(
    official: Path, tmp_path: Path
) -> None:
    text = (
        "Lily is blue. Jack is whale. Lily is squid. Bob is whale. Nancy is whale. "
        "Jack is brown. what color is Bob?"
    )
    path = tmp_path / "stories.json"
    path.write_text(json.dumps([{"input": text, "output": "brown"}]))
    (prompt,) = task_of(official, "colors").read(path)
    assert (prompt.text, prompt.generalized, prompt.memorized) == (text, "brown", "white")
    spans = {name: text[start:end] for name, (start, end) in prompt.spans.items()}
    assert spans["target_role"] == "Bob is whale."
    assert spans["clue_role"] == "Jack is whale."
    assert spans["clue_color"] == "Jack is brown."
    assert spans["target"] == "Bob"
    start, end = prompt.spans["color_end"]
    assert text[:end].endswith("Jack is brown")
    assert end == start + 1


@pytest.mark.parametrize("name", list(FOLDERS))
def test_items_made_with_the_official_config_are_held_out_from_training_with_it(
    official: Path, name: str
) -> None:
    task = task_of(official, name)
    asked = {prompt.text for prompt in task.pairs(100)}
    asked |= {prompt.text for prompt in task.clean_prompts(50)}
    trained = {item.prompt for epoch in range(3) for item in task.training(1000, epoch=epoch)}
    assert not asked & trained


@pytest.mark.parametrize("name", ["addition", "cipher"])
def test_a_validation_file_read_with_another_config_is_refused(official: Path, name: str) -> None:
    with pytest.raises(ValueError, match="Pass the config that belongs to the file"):
        CLASSES[name]().read(official / FOLDERS[name] / "val.json")
