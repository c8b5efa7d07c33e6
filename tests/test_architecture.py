"""The house of the package: imports run downwards only, files stay small, names keep their word."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import mechmem as mm

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mechmem"
FLOORS = {
    "errors": 0,
    "arguments": 0,
    "numeric": 0,
    "digests": 0,
    "seeding": 0,
    "progress": 0,
    "style": 0,
    "manifests": 0,
    "writing": 0,
    "work_claims": 0,
    "artifacts": 0,
    "tasks": 1,
    "models": 2,
    "caching": 3,
    "analysis": 4,
    "patching": 5,
    "evaluation": 6,
    "plotting": 6,
    "sweeps": 7,
    "training": 7,
    "studies": 8,
    "reports": 9,
    "app": 10,
    "cli": 11,
    "__main__": 12,
}
LONGEST = 350


@dataclass(frozen=True)
class Import:
    """One import statement: where it stands, and the dotted name it reaches."""

    path: Path
    line: int
    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line}: {self.source} imports {self.target}"


def module_name(package: Path, path: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(package: Path) -> Iterator[Import]:
    """Every import in every file, those inside functions and type-checking blocks too.

    The package's own ``__init__`` names all rooms, lazily, and stands outside the floors.
    """
    modules = {module_name(package, path) for path in package.rglob("*.py")}
    for path in sorted(package.rglob("*.py")):
        source = module_name(package, path)
        if source == package.name:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(path, node.lineno, source, alias.name)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    up = path.relative_to(package.parent).parts[: -node.level]
                    base = ".".join((*up, base)) if base else ".".join(up)
                for alias in node.names:
                    full = f"{base}.{alias.name}"
                    whole = full in modules or base == package.name
                    yield Import(path, node.lineno, source, full if whole else base)


def upward_imports(package: Path) -> list[str]:
    """Imports of a room above, of the package as a whole, or of a room that has no floor."""
    found = []
    for step in imports_of(package):
        here, there = step.source.split(".")[1], step.target.split(".")
        if there[0] != package.name:
            continue
        if len(there) == 1 or there[1] not in FLOORS or FLOORS[there[1]] > FLOORS.get(here, -1):
            found.append(str(step))
    return found


def circles(package: Path) -> list[list[str]]:
    """Groups of modules that import one another, directly or by way of others."""
    modules = {module_name(package, path) for path in package.rglob("*.py")}
    reached: dict[str, set[str]] = {name: set() for name in modules}
    for step in imports_of(package):
        if step.target in modules and step.target != step.source:
            reached[step.source].add(step.target)
    for middle in modules:
        for name in modules:
            if middle in reached[name]:
                reached[name] |= reached[middle]
    groups = {tuple(sorted(o for o in reached[n] if n in reached[o])) for n in modules}
    return [list(group) for group in sorted(groups) if group]


def foreign_imports(package: Path, library: str, room: str) -> list[str]:
    """Imports of a library outside the one room that may know it."""
    return [
        str(step)
        for step in imports_of(package)
        if step.target.split(".")[0] == library and step.source.split(".")[1] != room
    ]


def long_files(package: Path) -> list[str]:
    lengths = {path: path.read_text(encoding="utf-8").count("\n") for path in package.rglob("*.py")}
    return [f"{path.name}: {length} lines" for path, length in lengths.items() if length > LONGEST]


class TestTheHouse:
    def test_imports_run_downwards_only(self) -> None:
        assert upward_imports(PACKAGE) == []

    def test_no_module_imports_itself_by_way_of_others(self) -> None:
        assert circles(PACKAGE) == []

    def test_only_the_models_room_imports_transformer_lens(self) -> None:
        assert foreign_imports(PACKAGE, "transformer_lens", "models") == []
        known = [step for step in imports_of(PACKAGE) if step.target.startswith("transformer_lens")]
        assert known, "nothing imports TransformerLens any more, so this test looks at nothing"

    def test_every_room_has_a_floor(self) -> None:
        rooms = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
        rooms |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
        assert rooms <= set(FLOORS)

    def test_no_file_is_too_long_for_one_idea(self) -> None:
        assert long_files(PACKAGE) == []


class TestTheChecksThemselves:
    """Each check finds what it is there to find, in a small package that breaks every rule."""

    @pytest.fixture
    def crooked(self, tmp_path: Path) -> Path:
        package = tmp_path / "mechmem"
        files = {
            "__init__.py": "from mechmem.cli import *\n",
            "errors.py": "",
            "tasks/__init__.py": "from mechmem.errors import x\n",
            "tasks/base.py": "def f():\n    from ..models import loading\n",
            "models/__init__.py": "import transformer_lens\n",
            "models/loading.py": "from mechmem.models.model import Model\n",
            "models.model.py": "def f():\n    from mechmem.models import loading\n",
            "caching/__init__.py": "from transformer_lens.utilities import x\n",
            "caching/store.py": "from mechmem import Model\n",
            "patching/__init__.py": "\n" * (LONGEST + 1),
        }
        for name, text in files.items():
            (package / name).parent.mkdir(parents=True, exist_ok=True)
            (package / name).write_text(text, encoding="utf-8")
        return package

    def test_an_upward_import_is_found_inside_a_function_and_when_relative(
        self, crooked: Path
    ) -> None:
        assert upward_imports(crooked) == [
            "store.py:1: mechmem.caching.store imports mechmem.Model",
            "base.py:2: mechmem.tasks.base imports mechmem.models.loading",
        ]

    def test_a_circle_is_found(self, crooked: Path) -> None:
        assert circles(crooked) == [["mechmem.models.loading", "mechmem.models.model"]]

    def test_a_foreign_import_is_found(self, crooked: Path) -> None:
        assert foreign_imports(crooked, "transformer_lens", "models") == [
            "__init__.py:1: mechmem.caching imports transformer_lens.utilities"
        ]

    def test_a_long_file_is_found(self, crooked: Path) -> None:
        assert long_files(crooked) == [f"__init__.py: {LONGEST + 1} lines"]


class TestPublicNames:
    @pytest.mark.parametrize("name", mm.__all__)
    def test_every_name_that_is_promised_is_there(self, name: str) -> None:
        assert getattr(mm, name) is not None

    @pytest.mark.parametrize("room", sorted(set(FLOORS) - {"__main__"}))
    def test_every_room_keeps_its_own_list(self, room: str) -> None:
        module = importlib.import_module(f"mechmem.{room}")
        assert [name for name in getattr(module, "__all__", ()) if not hasattr(module, name)] == []

    def test_they_are_as_many_as_one_can_know(self) -> None:
        rooms = [name for name in mm.__all__ if inspect.ismodule(getattr(mm, name))]
        assert len(mm.__all__) - len(rooms) - len(["__version__"]) <= 100

    def test_an_unknown_name_is_an_attribute_error(self) -> None:
        with pytest.raises(AttributeError, match="no attribute 'cache_everything'"):
            _ = mm.cache_everything

    def test_importing_mechmem_loads_nothing_heavy(self) -> None:
        code = (
            "import sys, mechmem; dir(mechmem); "
            "print([m for m in ('torch', 'transformers', 'transformer_lens', 'pandas') "
            "if m in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[]"


class TestTheProjectFiles:
    def test_what_is_declared_is_what_is_pinned(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        wanted = list(project["dependencies"])
        for extra in project["optional-dependencies"].values():
            wanted += extra
        names = {canonical(re.split(r"[\[<>=!~ ]", line)[0]) for line in wanted}
        assert names <= set(pins("constraints.txt"))

    def test_pins_are_plain_versions(self) -> None:
        for file in ("constraints.txt", "constraints-tl3.txt"):
            found = pins(file)
            odd = [
                v for v in found.values() if not re.fullmatch(r"\d+(\.\d+)*([abc]\d+|\.\w+)?", v)
            ]
            assert odd == []
            assert len(found) > 50

    def test_the_two_environments_differ_in_transformer_lens(self) -> None:
        new, old = pins("constraints.txt"), pins("constraints-tl3.txt")
        assert new["transformer-lens"].startswith("4.")
        assert old["transformer-lens"] == "3.9.0"
        assert new["torch"] == old["torch"]

    def test_pre_commit_runs_the_pinned_checks(self) -> None:
        text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
        found = pins("constraints.txt")
        assert f"rev: v{found['ruff']}\n" in text
        assert f"({found['mypy']}, " in text


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonical(name): version for name, version in pairs}
