"""`mechmem export` and `mechmem bake`: saved directions, for other tools."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechmem.cli.app import command, progress_bar
from mechmem.cli.config import save_config
from mechmem.cli.output import say

if TYPE_CHECKING:
    from mechmem.analysis import Directions

Saved = Annotated[
    Path, typer.Argument(help="Saved directions, for example STUDY/artifacts/directions.")
]
Sites = Annotated[
    list[str] | None, typer.Option("--site", help="stream.layer; default every one that is saved.")
]
Toward = Annotated[str | None, typer.Option(help="The class to point to; default its own.")]
Alpha = Annotated[float, typer.Option(help="In lengths of the direction.")]


class Way(StrEnum):
    """What to write into the weights."""

    add = "add"
    project_out = "project-out"


@command()
def export(
    directions: Saved,
    file: Annotated[Path, typer.Argument(help="Ends in .gguf, .pt or .safetensors.")],
    sites: Sites = None,
    alpha: Alpha = 1.0,
    toward: Toward = None,
) -> None:
    """Write saved directions for llama.cpp and repeng, steering-vectors, or as plain tensors.

    Example: mechmem export mechmem-demo/artifacts/directions steer.gguf --site resid_post.2
    """
    from mechmem.patching import export_vectors

    say(export_vectors(_chosen(directions, sites), file, alpha=alpha, toward=toward))


@command()
def bake(
    model: Annotated[
        str, typer.Argument(help="lab/ or real/ name, folder, .gguf file or hub name.")
    ],
    directions: Saved,
    out: Annotated[Path, typer.Option(help="Folder for the new model and its tokenizer.")],
    edit: Annotated[Way, typer.Option(help="Add the direction, or remove it everywhere.")],
    sites: Sites = None,
    alpha: Annotated[
        float | None, typer.Option(help="With add: in lengths of the direction; default 1.")
    ] = None,
    toward: Annotated[
        str | None, typer.Option(help="With add: the class to point to; default its own.")
    ] = None,
) -> None:
    """Write an edit along saved directions into the weights of a model.

    The new weights are compared with the edit's hooks before they are written.

    Example: mechmem bake ./my-model saved/r --out new --edit project-out --site resid_post.2
    """
    from mechmem.artifacts import check_writable
    from mechmem.models import load_model
    from mechmem.patching import AddDirection, Edit, ProjectOut
    from mechmem.patching import bake as bake_weights
    from mechmem.writing import whole_folder

    if edit is Way.project_out:
        for option, value in {"--alpha": alpha, "--toward": toward}.items():
            if value is not None:
                raise typer.BadParameter(
                    "project-out removes the direction whole and toward no class; leave it out, or "
                    "take --edit add",
                    param_hint=option,
                )
    strength = 1.0 if alpha is None else alpha
    check_writable(out)
    edits: list[Edit] = []
    for direction in _chosen(directions, sites):
        if edit is Way.add:
            edits.append(AddDirection(direction, alpha=strength, toward=toward))
        else:
            edits.append(ProjectOut(direction, at="everywhere"))
    with progress_bar("baking"):
        loaded = load_model(model)
        baked = bake_weights(loaded, edits)
        with whole_folder(out) as draft:
            baked.save_pretrained(draft)
            loaded.tokens.tokenizer.save_pretrained(draft)
    save_config(out)
    say(out)


def _chosen(path: Path, sites: list[str] | None) -> Directions:
    from mechmem.analysis import Directions
    from mechmem.models import Site

    held = Directions.load(path)
    if not sites:
        return held
    return Directions({Site.from_key(key): held[Site.from_key(key)] for key in sites})
