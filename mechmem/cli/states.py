"""`mechmem extract` and `mechmem merge`: the states of a model, on disk."""

from __future__ import annotations

import json
import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mechmem.cli.app import Seed, command, progress_bar
from mechmem.cli.asking import read_prompts
from mechmem.cli.config import save_config
from mechmem.cli.output import say


class Engine(StrEnum):
    """Who does the work."""

    process = "process"
    ray = "ray"


@command()
def extract(
    model: Annotated[
        str, typer.Argument(help="lab/ or real/ name, folder, .gguf file or hub name.")
    ],
    prompts: Annotated[Path, typer.Argument(help="A .csv, .jsonl or .parquet file of prompts.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "--join",
            help="Folder to write to; run again, or meanwhile and elsewhere, it goes on there.",
        ),
    ],
    sites: Annotated[
        list[str] | None, typer.Option(help="A stream, or stream.layer; several times for several.")
    ] = None,
    positions: Annotated[
        str, typer.Option(help="last, mean, a number, or a span's name.")
    ] = "last",
    by: Annotated[
        str | None,
        typer.Option(help="Keep statistics per class only: behavior or label."),
    ] = None,
    bootstrap: Annotated[int, typer.Option(help="Replicates, with --by.")] = 0,
    seed: Seed = 0,
    engine: Annotated[
        Engine, typer.Option(help="Who does the work: this process, or actors on a Ray cluster.")
    ] = Engine.process,
    address: Annotated[
        str | None, typer.Option(help="Of the cluster; default RAY_ADDRESS, or one started here.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the plan and stop.")] = False,
) -> None:
    """Read a model's states on prompts into a folder; under torchrun every rank does its share.

    Started several times with one --join folder, on machines that see it, every worker takes what
    nobody else is at, and returns when all is done; see `mechmem status`.

    Example: mechmem extract lab/addition-cued prompts.jsonl --out states --sites resid_post.2
    """
    from mechmem.caching import extract_activations, extract_moments, plan_extraction
    from mechmem.models import Site, load_model

    if bootstrap and by is None:
        raise typer.BadParameter(
            "replicates are kept of statistics per class only: give --by, or leave it out",
            param_hint="--bootstrap",
        )
    if address is not None:
        if engine != "ray":
            raise typer.BadParameter("only --engine ray has a cluster", param_hint="--address")
        os.environ["RAY_ADDRESS"] = address
    asked = read_prompts(prompts)
    number = re.fullmatch(r"-?\d+", positions)
    where = int(positions) if number else positions
    wanted = [Site.from_key(name) if "." in name else name for name in sites or ["resid_post"]]
    with progress_bar("loading"):
        loaded = load_model(model)
    if dry_run:
        say(plan_extraction(loaded, asked, sites=wanted, positions=where))
    elif by is None:
        store = extract_activations(
            loaded, asked, out, sites=wanted, positions=where, engine=engine, progress=True
        )
        save_config(out)
        say(store)
    else:
        found = extract_moments(
            loaded, asked, out, by=by, sites=wanted, positions=where, bootstrap=bootstrap,
            seed=seed, engine=engine, progress=True,
        )  # fmt: skip
        save_config(out)
        say(f"{out}: {found.counts if found else 'other ranks are still at work'}")


@command()
def merge(
    folder: Annotated[Path, typer.Argument(help="What `mechmem extract --by` wrote to.")],
    out: Annotated[Path, typer.Option(help="File to write, without a suffix.")],
) -> None:
    """Add up the statistics that several processes wrote.

    Example: mechmem merge states --out moments
    """
    from mechmem.caching import merge_moments

    moments = merge_moments(folder)
    say(json.dumps(moments.counts))
    written = moments.save(out)
    save_config(out)
    say(f"wrote {written}", err=True)
