"""Folders of models and adapters as files: looked at before any library reads or builds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mechmem.errors import ArtifactError, ModelError, listed
from mechmem.manifests import check_digests, checked, file_digest, read_json, regular
from mechmem.models.booting import check_causal, check_quantized, first_words
from mechmem.models.sizes import check_held, check_size, held_in

NOTES = ("training.json", "manifest.json")
"""Files in which a folder of ours says what was written there."""
WEIGHTS = (".safetensors", ".bin")
WEIGHT_FILES = (
    "model.safetensors", "model.safetensors.index.json", "model-?????-of-?????.safetensors",
    "pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-?????-of-?????.bin",
)  # fmt: skip
"""What `save_pretrained` calls weights, whole or in parts."""


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds no causal language model.

    Raises:
        ModelError: When it is missing, something in it is not a file, or its configuration is not
            one that a model can be made from, or asks for more weights than its files hold.
    """
    from transformers import AutoConfig

    if not folder.is_dir():
        what = "is a file, but not a GGUF file" if folder.exists() else "does not exist"
        raise ModelError(
            f"{folder} {what}. Check the path: it takes a folder with a model and its tokenizer, "
            "or a .gguf file."
        )
    note = folder / "config.json"
    if not note.exists():
        packed = sorted(folder.glob("*.gguf"))
        raise ModelError(
            f"{folder} holds no model: there is no config.json in it. "
            + (
                f"Give the path of one of its GGUF files: {listed(map(str, packed), 3)}."
                if packed
                else "Save one there with model.save_pretrained(folder) and "
                "tokenizer.save_pretrained(folder)."
            )
        )
    object_in(note, "a model's configuration")
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return  # remote code, or a type of its own: TransformerLens decides
    except Exception as error:  # every kind of configuration has errors of its own
        raise ModelError(
            f"{note} does not describe a model: {first_words(error)}. Mend it, or save the model "
            "there again."
        ) from error
    check_causal(config, str(folder))
    check_size(config, str(folder))
    check_quantized(config, str(folder))
    dense = getattr(config, "quantization_config", None) is None
    check_held(config, held_in(folder, packed=not dense), str(folder))


def check_written(folder: Path) -> None:
    """Refuse a folder of ours of which a weight is not the one that was written.

    Raises:
        ModelError: Naming the file.
    """
    for note in NOTES:
        try:
            said = read_json(folder / note, "a record")
        except ArtifactError:
            continue
        digests = said.get("digests") if isinstance(said, dict) else None
        if isinstance(digests, dict):
            own = {name: mark for name, mark in digests.items() if name.endswith(WEIGHTS)}
            way = f"Make it again; if the change is yours, remove {folder / note}."
            try:
                check_digests(folder, own, way)
            except ArtifactError as error:
                raise ModelError(str(error)) from error


def written_weights(folder: Path) -> dict[str, str]:
    """The digest of every file of weights in a folder, for its record."""
    files = sorted(path for path in folder.iterdir() if path.name.endswith(WEIGHTS))
    return {path.name: file_digest(path) for path in files}


def object_in(file: Path, what: str) -> dict[str, Any]:
    """The object that a JSON file of a folder holds, where everything in the folder is a file.

    Raises:
        ModelError: For anything else: a pipe beside it would be waited on without end.
    """
    try:
        for path in file.parent.iterdir():
            if path.exists() and not path.is_dir():
                regular(path)
        found: dict[str, Any] = checked(read_json(file, what), dict, file)
    except (ArtifactError, OSError) as error:
        raise ModelError(str(error)) from error
    return found


def card_of(folder: Path) -> dict[str, Any]:
    """The manifest of a lab model, shipped or trained again; empty for any other model."""
    try:
        card = read_json(folder / "manifest.json", "a manifest")
    except ArtifactError:
        return {}
    return card if isinstance(card, dict) and "task_options" in card else {}
