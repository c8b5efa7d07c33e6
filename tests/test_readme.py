"""What the README shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import mechmem as mm

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_fifteen_lines_run_and_are_fifteen_at_most(capsys):
    code = CODE[0]
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 15
    assert len(set(re.findall(r"mm\.(\w+)", code))) <= 12
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "generalized" in printed
    assert "random direction" in printed


def test_the_code_for_your_own_prompts_runs_on_a_file_of_prompts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mm.get_task("addition-cued").pairs(120, 0).to_csv("my_prompts.csv")
    assert len(CODE) == 2
    code = CODE[1].replace("path/to/model", "lab/addition-cued")
    # Completions of 32 tokens, 20 fits and 30 draws are minutes; what runs is the same.
    assert "run_study(model, " in code
    code = code.replace("run_study(model, ", "run_study(model, shuffles=1, draws=2, ")
    exec(compile(code, "README.md", "exec"), {"mm": mm})
    assert "unseen prompts" in capsys.readouterr().out
    assert (tmp_path / "my-report" / "report.html").is_file()


def test_the_example_of_your_own_prompts_is_a_valid_file(tmp_path):
    (table,) = re.findall(r"```csv\n(.*?)```", README, re.S)
    (tmp_path / "mine.csv").write_text(table, encoding="utf-8")
    prompts = mm.PromptSet.from_csv(tmp_path / "mine.csv")
    assert len(prompts.pairs()) == 1
    assert all(prompt.memorized and prompt.generalized for prompt in prompts)


def test_every_page_that_the_readme_links_to_is_there():
    links = re.findall(r"\]\((docs/[^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []
