"""Directions that another tool made: safetensors, GGUF, `.pt` and NumPy files."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mechmem.analysis.directions import Direction, Directions
from mechmem.artifacts import MANIFEST, check_vectors
from mechmem.caching.provenance import Provenance, Seen
from mechmem.errors import ArtifactError, PromptError, SiteError, listed
from mechmem.manifests import regular
from mechmem.models.gguf_counts import check_counts
from mechmem.models.model import Model
from mechmem.models.sites import DEPTH, Site
from mechmem.numeric import natural
from mechmem.tasks.prompts import PromptSet

LARGEST_TENSORS = 4 << 30
"""Bytes of the largest file of directions that is read, unpacked."""


@dataclass
class _Read:
    """What a file holds: vectors by name, the facts it gives, and its own stream if it has one."""

    vectors: dict[str, Tensor]
    about: dict[str, str] = field(default_factory=dict)
    stream: str | None = None


def import_directions(
    path: str | Path,
    *,
    model: Model,
    toward: str | None = None,
    away: str | None = None,
    site: tuple[str, int] | None = None,
    stream: str | None = None,
    layers: Iterable[int] | None = None,
    seen: PromptSet | None = None,
) -> Directions:
    """Read directions made elsewhere, and say what the file does not.

    A GGUF control vector (repeng, llama.cpp) and the fields of steering-vectors (``.pt``) say that
    they are added to the output of block ``k``, which is ``("resid_post", k)``; files written by
    `mechmem.export_vectors` also say their classes. Nothing is ever unpickled.

    What is not known stays unknown: the class means along the direction are NaN, and without
    ``seen`` an evaluation on the prompts that it was made from cannot be refused.

    Args:
        path: ``.safetensors``, ``.gguf``, ``.pt``/``.pth``/``.bin`` (tensors only), ``.npy`` or
            ``.npz``. Tensors are ``[d]`` each, or one ``[layer, d]``.
        model: The model that the directions belong to; that they do is your word.
        toward, away: The class pointed to, and the one it comes from.
        site: Where a single vector lives.
        stream: Where vectors with a layer in their name live.
        layers: Layer of every row of a ``[layer, d]`` tensor; default 0, 1, ... for one row per
            layer of the model.
        seen: Prompts that the directions were made from, which will be refused in evaluations.

    Raises:
        ArtifactError: When the file cannot be read as tensors.
        SiteError: When the site is not known, or a vector does not fit the model.
        PromptError: When the class pointed to is not known.
    """
    file = Path(path)
    read = _read(file)
    goal = toward or read.about.get("toward")
    if not goal:
        raise PromptError(
            f"{file.name} does not say which class its directions point to; say it with toward=, "
            "for example toward='generalized'."
        )
    start = away or read.about.get("away") or f"not {goal}"
    check_vectors(file, read.vectors, read.about)
    placed = _placed(file, read, model, site, stream, layers)
    known = Seen() if seen is None else Seen.of(seen, model.encode(seen).rows)
    made = Provenance(model.info, known, "unknown", "", ())
    method = read.about.get("method") or f"imported from {file.suffix[1:]}"
    unknown = float("nan")
    out = {}
    for where in sorted(placed, key=lambda item: item.depth):
        vector = placed[where].detach()
        if vector.is_complex():
            raise ArtifactError(
                f"{file.name}: the vector for {where} is complex ({vector.dtype}); a direction has "
                "real numbers. Save its real part, if that is what it is."
            )
        vector = vector.to("cpu", torch.float64)
        _check_fits(file, where, vector, model)
        out[where] = Direction(vector, where, goal, start, unknown, unknown, made, method)
    return Directions(out)


def _check_fits(file: Path, where: Site, vector: Tensor, model: Model) -> None:
    model.sites([where])
    wide = {"mlp_post": model.info.d_mlp}.get(where.stream, model.info.d_model)
    if where.stream != "z" and vector.shape != (wide,):
        raise SiteError(
            f"{file.name} has a vector of shape {tuple(vector.shape)} for {where}, which is "
            f"{wide} wide in {model.info.name!r}. Import it for the model and stream it was made "
            "on."
        )
    if not bool(vector.isfinite().all()):
        raise ArtifactError(f"{file.name}: the vector for {where} is not finite. Make it again.")


def _placed(
    file: Path,
    read: _Read,
    model: Model,
    site: tuple[str, int] | None,
    stream: str | None,
    layers: Iterable[int] | None,
) -> dict[Site, Tensor]:
    """Every vector at its site: from its name, from the file's kind, or from what was said."""
    if not read.vectors:
        raise ArtifactError(f"{file.name} holds no tensor.")
    for name, tensor in read.vectors.items():
        if tensor.squeeze().ndim > 2:
            raise SiteError(
                f"{file.name}: {name!r} has the shape {tuple(tensor.shape)}, and directions are "
                "[d], or [layer, d]. Of a tensor [position, layer, d] save the position that you "
                "mean, for example tensor[-1], and say stream=."
            )
    if site is not None:
        if len(read.vectors) != 1:
            raise SiteError(
                f"{file.name} holds {len(read.vectors)} vectors ({listed(read.vectors, 4)}), and "
                "site= is the place of one. Say stream= instead."
            )
        (vector,) = read.vectors.values()
        return {model.sites([site])[0]: vector.squeeze()}
    if len(read.vectors) == 1 and next(iter(read.vectors.values())).ndim == 2:
        (table,) = read.vectors.values()
        rows = list(range(model.info.n_layers)) if layers is None else list(layers)
        if stream is None or len(rows) != len(table):
            raise SiteError(
                f"{file.name} holds one tensor of {len(table)} rows; say stream= and which layer "
                f"each row belongs to with layers= (the model has {model.info.n_layers} layers)."
            )
        return {Site(stream, layer): row for layer, row in zip(rows, table, strict=True)}
    out = {}
    for name, vector in read.vectors.items():
        where = _site_of(name, stream or read.stream)
        if where is None:
            raise SiteError(
                f"{file.name}: the tensor {name!r} does not say where it lives. Say stream= where "
                "names end in a layer, or site= for a single vector; for example "
                "site=('resid_post', 3)."
            )
        if where in out:
            raise SiteError(f"{file.name} has two tensors for {where}; keep one.")
        out[where] = vector
    return out


def _site_of(name: str, stream: str | None) -> Site | None:
    own, _, layer = name.rpartition(".")
    number = natural(layer)
    if own in DEPTH and number is not None:
        return Site(own, number)
    found = re.search(r"([0-9]+)$", name)
    number = natural(found[1]) if found else None
    return None if number is None or stream is None else Site(stream, number)


def _read(file: Path) -> _Read:
    readers = {
        ".safetensors": _safetensors,
        ".gguf": _gguf,
        ".pt": _torch,
        ".pth": _torch,
        ".bin": _torch,
        ".npy": _numpy,
        ".npz": _numpy,
    }
    if file.suffix not in readers:
        raise ArtifactError(
            f"{file.name!r} is not a file of directions that can be read; readable are "
            f"{listed(readers)}."
        )
    try:
        regular(file, LARGEST_TENSORS)
        _refuse_bombs(file)
        return readers[file.suffix](file)
    except FileNotFoundError as error:
        raise ArtifactError(f"{file} is missing.") from error
    except ArtifactError:
        raise
    except Exception as error:  # each library has its own family of errors for a broken file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArtifactError(
            f"{file} cannot be read as tensors: {reason:.200} Nothing is ever unpickled; save "
            "plain tensors, or a dictionary of them."
        ) from error


def _refuse_bombs(file: Path) -> None:
    """Refuse an archive that unpacks to more than any set of directions, or whose checksums do not
    fit: torch does not look at them."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as held:
        size = sum(item.file_size for item in held.infolist())
        if size > LARGEST_TENSORS:
            raise ArtifactError(
                f"{file} unpacks to {size:,} bytes, more than the {LARGEST_TENSORS:,} that are "
                "read; it holds no directions. Save the vectors alone."
            )
        changed = held.testzip()
    if changed is not None:
        raise ArtifactError(
            f"{file} was changed: the checksum of {changed!r:.80} does not fit. Save it again."
        )


def _safetensors(file: Path) -> _Read:
    try:
        with safe_open(file, framework="pt") as opened:
            about = dict(opened.metadata() or {})
            names = [name for name in opened.keys() if name != MANIFEST]  # noqa: SIM118
            return _Read({name: opened.get_tensor(name) for name in names}, about)
    except SafetensorError as error:
        raise ArtifactError(f"{file} is not a safetensors file: {error}. Save it again.") from error


def _gguf(file: Path) -> _Read:
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ArtifactError(
            "GGUF files need the gguf package: pip install 'mechmem[exchange]'."
        ) from error
    check_counts(file)
    reader: Any = gguf.GGUFReader(file)
    about = {}
    for name, entry in reader.fields.items():
        if name.startswith("mechmem.") or name == "general.architecture":
            about[name.rpartition(".")[2]] = str(entry.contents())
    if about.pop("architecture", "") != "controlvector":
        raise ArtifactError(
            f"{file} is a GGUF file of another kind; a control vector has the architecture "
            "'controlvector'."
        )
    vectors = {
        str(tensor.name): torch.from_numpy(np.array(tensor.data, dtype=np.float32))
        for tensor in reader.tensors
        if tensor.name.startswith("direction.")
    }
    return _Read(vectors, about, "resid_post")


def _torch(file: Path) -> _Read:
    held: Any = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(held, Mapping) and isinstance(held.get("layer_activations"), Mapping):
        kind = held.get("layer_type", "decoder_block")
        if kind != "decoder_block":
            raise ArtifactError(
                f"{file} holds a steering vector for {kind!r}; of those, only 'decoder_block' has "
                "a site that is the same in every model. Load its tensors and save them as "
                ".safetensors with site keys, for example 'mlp_out.3'."
            )
        return _Read(_named(file, held["layer_activations"]), {}, "resid_post")
    return _Read(_named(file, held if isinstance(held, Mapping) else {"": held}))


def _named(file: Path, held: Mapping[Any, Any]) -> dict[str, Tensor]:
    wrong = [name for name, value in held.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ArtifactError(
            f"{file} holds more than tensors ({listed(wrong, 4)}); save tensors only, by name."
        )
    odd = [name for name, value in held.items() if not _plain(value)]
    if odd:
        raise ArtifactError(
            f"{file}: {listed(odd, 4)} is sparse, quantized or without data (meta), and a "
            "direction is plain numbers. Save it with .to_dense() or .dequantize()."
        )
    return {str(name): value for name, value in held.items()}


def _plain(value: Tensor) -> bool:
    plain = value.layout == torch.strided and not value.is_quantized and not value.is_nested
    return plain and value.device.type != "meta"


def _numpy(file: Path) -> _Read:
    held: Any = np.load(file, allow_pickle=False)
    arrays = {"": held} if isinstance(held, np.ndarray) else dict(held)
    return _Read({name: torch.from_numpy(np.asarray(value)) for name, value in arrays.items()})
