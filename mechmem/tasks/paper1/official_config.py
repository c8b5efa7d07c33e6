"""Configs of the three paper tasks: the official JSON form, read, checked, or drawn by a seed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from mechmem.errors import ArtifactError, TaskError, listed
from mechmem.manifests import LARGEST, checked, parsed, regular
from mechmem.seeding import keyed_order, keyed_rng

DATA_VARIABLE = "MECHMEM_P1_DATA"
_SHAPES = {
    "num_n": int, "mem_patterns": [dict], "mapping": {str: str}, "name_color_map": {str: [str]},
    "roles": [str], "all_colors": [str],
}  # fmt: skip
DATA_FOLDER = Path("shared", "data", "neuron-diff-memgen-llm")


def md5_tag(text: str) -> str:
    """The memorized answer of a pattern: ``mem-`` and the first 8 hexadecimal digits of its md5."""
    return "mem-" + hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:8]


def load_config(task: str, config: Mapping[str, Any] | str | Path | None) -> dict[str, Any]:
    """A config as a dictionary of its own.

    Args:
        task: Name of the task, for the default and for messages.
        config: A dictionary, the path of a JSON file, or ``None`` for the one mechmem ships.

    Raises:
        TaskError: When the file is missing, or does not hold a JSON object.
    """
    if isinstance(config, Mapping):
        try:
            return dict(json.loads(json.dumps(dict(config))))
        except (TypeError, ValueError, RecursionError) as error:
            raise TaskError(
                f"A config of {task!r} must be what JSON can hold, got {config!r:.120} ({error})."
            ) from None
    if config is None:
        text, where = _shipped(task).encode(), f"the shipped config of {task!r}"
    else:
        where = str(config)
        try:
            text = regular(config, LARGEST).read_bytes()
        except (OSError, ArtifactError) as error:
            raise TaskError(
                f"Cannot read {where} ({getattr(error, 'strerror', None) or error}); give the path "
                f"of a config.json for {task!r}, a dictionary, or nothing for the shipped one."
            ) from error
    try:
        loaded = parsed(text, where, f"a config of {task!r}")
    except ArtifactError as error:
        raise TaskError(str(error)) from error
    if not isinstance(loaded, dict):
        raise TaskError(f"{where} must hold a JSON object, got {type(loaded).__name__}.")
    return loaded


def required(task: str, config: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Refuse a config that lacks one of its keys."""
    missing = [key for key in keys if not config.get(key)]
    if missing:
        raise TaskError(
            f"A config of {task!r} needs {listed(keys)}; missing or empty: {listed(missing)}."
        )
    try:
        checked(dict(config), {key: _SHAPES[key] for key in keys}, f"A config of {task!r}")
    except ArtifactError as error:
        raise TaskError(str(error)) from error


def tags_of(task: str, config: Mapping[str, Any], key: str) -> list[tuple[Any, str]]:
    """The memorized patterns with their answers, in order; ``key`` is where a pattern stands."""
    length, found = config["num_n"], []
    for entry in config["mem_patterns"]:
        if not _is_pattern(entry, key) or len(entry[key]) != length:
            raise TaskError(
                f"Every pattern of {task!r} needs {key!r} with num_n={length} items and 'hashed', "
                f"got {entry!r}."
            )
        found.append((entry[key], str(entry["hashed"])))
    for values, what in (
        ([str(pattern) for pattern, _ in found], "patterns"),
        ([tag for _, tag in found], "hashed answers"),
    ):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise TaskError(f"The {what} of {task!r} must differ; more than once: {listed(twice)}.")
    return found


def _is_pattern(entry: Any, key: str) -> bool:
    """Whether an entry has its answer, and its addends (whole numbers) or its letters."""
    shape = {key: [int] if key == "nums" else str, "hashed": (str, int)}
    try:
        checked(entry, shape, "")
    except ArtifactError:
        return False
    return True


def draw_addition_config(seed: int = 0, patterns: int = 10, largest: int = 999) -> dict[str, Any]:
    """A config of `addition`: that many pairs of last addends, each in 1..``largest``."""
    rng = keyed_rng(seed, "addition", "config")
    chosen: dict[tuple[int, ...], None] = {}
    while len(chosen) < min(patterns, largest**2):
        chosen[tuple(rng.integers(1, largest + 1, size=2).tolist())] = None
    entries = [{"nums": list(nums), "hashed": md5_tag("+".join(map(str, nums)))} for nums in chosen]
    return {"num_n": 2, "mem_patterns": entries}


def draw_cipher_config(seed: int = 0, patterns: int = 10, letters: int = 3) -> dict[str, Any]:
    """A config of `cipher`: a substitution of the 26 letters and that many ciphertext endings."""
    rng = keyed_rng(seed, "cipher", "config")
    chosen: dict[str, None] = {}
    while len(chosen) < min(patterns, 26**letters):
        chosen["".join(ascii_uppercase[k] for k in rng.integers(0, 26, size=letters))] = None
    shuffled = keyed_order(ascii_uppercase, seed, "cipher", "mapping")
    return {
        "num_n": letters,
        "mem_patterns": [{"pattern": text, "hashed": md5_tag(text)} for text in chosen],
        "mapping": dict(zip(ascii_uppercase, shuffled, strict=True)),
    }


def draw_colors_config(seed: int = 0, names: int = 16, roles: int = 37) -> dict[str, Any]:
    """A config of `colors`: up to 24 names, each with a color of its own, and up to 48 roles."""
    words = json.loads(_shipped("words"))
    chosen = keyed_order(words["names"], seed, "colors", "names")[:names]
    colors = keyed_order(words["colors"], seed, "colors", "colors")[:names]
    return {
        "name_color_map": {name: [color] for name, color in zip(chosen, colors, strict=True)},
        "roles": keyed_order(words["roles"], seed, "colors", "roles")[:roles],
        "all_colors": colors,
    }


def _shipped(name: str) -> str:
    file = resources.files("mechmem.tasks.paper1").joinpath("configs", f"{name}.json")
    return file.read_text(encoding="utf-8")


def find_official_data(start: str | Path | None = None) -> Path | None:
    """The folder of the official config and validation files, or ``None`` where there is none.

    It is looked for under the environment variable ``MECHMEM_P1_DATA`` and then as
    ``shared/data/neuron-diff-memgen-llm`` beside every folder above ``start``.

    Args:
        start: Where to look from; the working directory when left out.
    """
    named = os.environ.get(DATA_VARIABLE)
    if named:
        return Path(named) if Path(named).is_dir() else None
    here = Path(start if start is not None else Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / DATA_FOLDER).is_dir():
            return folder / DATA_FOLDER
    return None
