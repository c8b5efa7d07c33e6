"""The scripts that write pages run for hours: at least every name and keyword in them is known."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mechmem as mm

ROOT = Path(__file__).parents[2]
SCRIPTS = [*ROOT.glob("docs/pages/*.py"), *ROOT.glob("tests/benchmarks/*.py")]


def known(tree: ast.Module) -> dict[str, Any]:
    """What a script imports of mechmem, by the names that it gives."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "mechmem":
            home = importlib.import_module(str(node.module))
            found |= {name.asname or name.name: getattr(home, name.name) for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.asname: mm for name in node.names if name.name == "mechmem"}
    return found


def called(tree: ast.Module, names: dict[str, Any]) -> Iterator[tuple[int, Any, list[str]]]:
    """Line, function and keywords of every call of what was imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            path, part = [], node.func
            while isinstance(part, ast.Attribute):
                path.append(part.attr)
                part = part.value
            if isinstance(part, ast.Name) and part.id in names and (path or part.id != "mm"):
                one = names[part.id]
                for name in reversed(path):
                    one = getattr(one, name)
                yield node.lineno, one, [key.arg for key in node.keywords if key.arg]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_keyword_is_one(script: Path) -> None:
    tree = ast.parse(script.read_text(encoding="utf-8"))
    for line, one, keywords in called(tree, known(tree)):
        if isinstance(one, type) and issubclass(one, Exception):
            continue
        parameters = inspect.signature(one).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            unknown = set(keywords) - set(parameters)
            assert not unknown, f"{script.name}:{line}: {one.__name__} has no {unknown}"
