"""Directions and neuron shifts as files that other tools add to a model's residual stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mechmem.analysis.directions import Direction, Directions
from mechmem.artifacts import VECTORS, VECTORS_DIGEST, vectors_digest, whole_file
from mechmem.caching.provenance import Provenance
from mechmem.errors import ArtifactError, EditError, SiteError, listed
from mechmem.models.model import Model
from mechmem.models.sites import Site
from mechmem.patching.base import Edit, check_number, signed

Exportable = Direction | Directions | Edit | Sequence[Edit]

VECTOR_SUFFIXES = (".gguf", ".pt", ".safetensors")


def export_vectors(
    what: Exportable,
    path: str | Path,
    *,
    model: Model | None = None,
    alpha: float = 1.0,
    toward: str | None = None,
    layers: Iterable[int] | None = None,
    model_hint: str | None = None,
) -> Path:
    """Write what an edit adds to the residual stream, for another tool; the suffix says for which.

    ``.gguf`` is a control vector as repeng writes and llama.cpp reads it: float32 tensors
    ``direction.k``, each added to the output of block ``k`` (from 0) at every position, which is
    ``("resid_post", k)``. llama.cpp refuses ``direction.0``. ``.pt`` holds the fields of
    steering-vectors: ``SteeringVector(**torch.load(path, weights_only=True))``, the same layers,
    layer 0 included. ``.safetensors`` holds one tensor per site under the site's key, any stream.

    What is exported is what an edit at all positions does. It does not make a vector that works in
    one runtime work in another with other weights (a quantized model is another model).

    Args:
        what: A `Direction`, `Directions`, an `AddDirection`, a `ShiftNeurons`, or a list of these
            edits, whose sums are written. Edits must act at ``positions="all"``, since the file
            cannot say where.
        path: Ends in ``.gguf``, ``.pt`` or ``.safetensors``.
        model: Needed for edits.
        alpha, toward: For directions: their length and the class pointed to. Edits bring their own.
        layers: Only these layers of the file's own numbering, default all.
        model_hint: Kind of model in a GGUF file, as ``config.model_type``; default from the model.

    Returns:
        The path.

    Raises:
        EditError: For an edit that a plain vector cannot express.
        SiteError: For a site that the file cannot hold.
        ArtifactError: For an unknown suffix, or a file that cannot be written.
    """
    target = Path(path)
    if target.suffix not in VECTOR_SUFFIXES:
        raise ArtifactError(
            f"{target.name!r} does not say what to write; end it in one of "
            f"{listed(VECTOR_SUFFIXES)}."
        )
    vectors, about, made = _vectors(what, model, alpha, toward)
    if layers is not None:
        wanted = list(layers)
        # The file's own numbers: layers of sites, or blocks to whose output a file adds.
        number = (lambda site: site.layer) if target.suffix == ".safetensors" else _block
        vectors = {site: value for site, value in vectors.items() if number(site) in wanted}
        if not vectors:
            raise SiteError(f"None of the layers {listed(wanted)} has a vector to export.")
    info = made.model
    about |= {"model": info.name, "fingerprint": info.fingerprint, "format": VECTORS}
    for site, value in vectors.items():
        if not bool(value.isfinite().all()):
            raise EditError(
                f"The vector for {site} is beyond the range of float32 with alpha={alpha:g}; "
                "export it with a smaller one."
            )
    if target.suffix == ".safetensors":
        tensors = {site.key: value.contiguous() for site, value in vectors.items()}
        about[VECTORS_DIGEST] = vectors_digest(tensors, about)
        with whole_file(target) as partial:
            save_file(tensors, partial, metadata=about)
        return target
    blocks: dict[int, Tensor] = {}
    for site, value in sorted(vectors.items(), key=lambda item: item[0].depth):
        block = _block(site)
        if block is None:
            raise SiteError(
                f"A {target.suffix} file adds to the output of blocks, and {site} is no such "
                "place. Export resid_post (or resid_pre of a later block), or write .safetensors."
            )
        blocks[block] = blocks[block] + value if block in blocks else value
    if target.suffix == ".pt":
        with whole_file(target) as partial:
            torch.save({"layer_activations": blocks, "layer_type": "decoder_block"}, partial)
        return target
    if 0 in blocks:
        raise SiteError(
            "llama.cpp refuses a vector at the output of block 0 (`direction.0`). Leave it out "
            "with layers=range(1, ...), or write .pt or .safetensors."
        )
    return _write_gguf(target, blocks, about, model_hint or _hint(info.architecture))


def _vectors(
    what: Exportable, model: Model | None, alpha: float, toward: str | None
) -> tuple[dict[Site, Tensor], dict[str, str], Provenance]:
    """float32 ``[d]`` per site, facts for the file, and where it all came from."""
    if isinstance(what, Direction):
        what = Directions({what.site: what})
    if isinstance(what, Directions):
        first = next(iter(what))
        sign = signed(toward, first.toward, first.away)
        size = sign * check_number(alpha, "alpha")
        goal, start = (first.toward, first.away)[::sign]
        about = {"toward": goal, "away": start, "method": first.method}
        return {d.site: (d.vector * size).float() for d in what}, about, first.provenance
    edits = list(what) if isinstance(what, Sequence) else [what]
    if not edits:
        raise EditError("There is no edit to export; give a direction or an edit.")
    if toward is not None or alpha != 1.0:
        raise EditError("Edits bring their own alpha and toward; set them on the edit.")
    if model is None:
        raise EditError("Exporting an edit needs model=, the model that it is meant for.")
    total: dict[Site, Tensor] = {}
    for edit in edits:
        for site, value in edit.exported(model).items():
            total[site] = total[site] + value if site in total else value
    goals = "+".join(dict.fromkeys(str(edit.describe().get("toward", "")) for edit in edits))
    names = "+".join(dict.fromkeys(type(edit).__name__ for edit in edits))
    made = edits[0].provenance
    if made is None:
        raise EditError(f"{type(edits[0]).__name__} does not say which model it belongs to.")
    return (
        {site: value.float() for site, value in total.items()},
        {"toward": goals, "away": "", "method": names},
        made,
    )


def _block(site: Site) -> int | None:
    """The block whose output a site is, counted from 0."""
    if site.stream == "resid_post":
        return site.layer
    return site.layer - 1 if site.stream == "resid_pre" and site.layer > 0 else None


def _hint(architecture: str) -> str:
    for tail in ("ForCausalLM", "LMHeadModel"):
        architecture = architecture.removesuffix(tail)
    return architecture.lower()


def _write_gguf(target: Path, blocks: dict[int, Tensor], about: dict[str, str], hint: str) -> Path:
    gguf: Any = need_gguf()
    named = {f"direction.{block}": value.contiguous() for block, value in blocks.items()}
    about[VECTORS_DIGEST] = vectors_digest(named, about)
    with whole_file(target) as partial:
        writer = gguf.GGUFWriter(partial, "controlvector")
        writer.add_string("controlvector.model_hint", hint)
        writer.add_uint32("controlvector.layer_count", len(blocks))
        for key, fact in about.items():
            writer.add_string(f"mechmem.{key}", fact)
        for name, value in named.items():
            writer.add_tensor(name, value.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return target


def need_gguf() -> Any:
    """The `gguf` package.

    Raises:
        ArtifactError: When it is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ArtifactError(
            "GGUF files need the gguf package: pip install 'mechmem[exchange]'."
        ) from error
    return gguf
