"""Lists every public name of a room on its API page when the site is built."""

from __future__ import annotations

import ast
import importlib
import inspect
from typing import Any

MARK = "<!-- every public name -->"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with its mark replaced by one entry per name."""
    if MARK not in markdown:
        return markdown
    room = f"mechmem.{page.file.src_path.rsplit('/', 1)[-1].removesuffix('.md')}"
    return markdown.replace(MARK, "\n\n".join(f"::: {path}" for path in public_paths(room)))


def public_paths(room: str) -> list[str]:
    """Dotted paths of a room's public names, each where it is defined, sorted by name."""
    module = importlib.import_module(room)
    home = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            home |= {alias.asname or alias.name: node.module for alias in node.names}
    own = [name for name, one in vars(module).items() if getattr(one, "__module__", "") == room]
    names = getattr(module, "__all__", [name for name in own if not name.startswith("_")])
    return [f"{home.get(name, room)}.{name}" for name in sorted(names, key=str.casefold)]
