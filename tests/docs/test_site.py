"""The documentation builds without a warning, and the code on its pages runs as it stands."""

from __future__ import annotations

import importlib
import re
import runpy
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from docs.before import BEFORE
from helpers import as_users_run_it

import mechmem as mm

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    page
    for page in (ROOT / "docs").rglob("*.md")
    if "```python" in page.read_text(encoding="utf-8")
)


def code_of(page: Path) -> str:
    """Every Python block of a page, one after the other, at the lines where they stand."""
    lines, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = line == "```python" and not inside
            lines.append("")
        else:
            lines.append(line if inside else "")
    return "\n".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    code = code_of(page)
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "page.py"
    script.write_text(code, encoding="utf-8")  # line numbers are those of the page
    name = f"page_{page.stem.replace('-', '_')}"
    with ExitStack() as held, as_users_run_it():
        made = BEFORE[page.stem](monkeypatch, held) if page.stem in BEFORE else {}
        runpy.run_path(str(script), init_globals=dict(made), run_name=name)


def test_the_site_builds_without_a_warning(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {page.relative_to(tmp_path / "site") for page in (tmp_path / "site").rglob("*.html")}
    assert {Path("index.html"), Path("words.html"), Path("api/analysis.html")} <= pages
    absent = {}
    for room in mm._ROOMS:
        html = (tmp_path / "site" / "api" / f"{room}.html").read_text(encoding="utf-8")
        names = importlib.import_module(f"mechmem.{room}").__all__
        absent[room] = [
            name for name in names if not re.search(rf'id="mechmem\.[\w.]*{name}"', html)
        ]
    assert absent == {room: [] for room in mm._ROOMS}


def test_no_page_loads_anything_from_another_server():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in config  # the theme would ask for web fonts otherwise
    assert "extra_javascript:" not in config
    (styles,) = re.findall(r"^extra_css:\n((?:  - .*\n)+)", config, re.M)
    for style in re.findall(r"- (.*)", styles):
        text = (ROOT / "docs" / style).read_text(encoding="utf-8")
        assert not re.search(r"@import|url\(|//", text)
