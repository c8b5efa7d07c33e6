"""`mechmem sweep`: a grid of edits, chosen on validation prompts, tested once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechmem.cli.app import Seed, command, progress_bar, step_of
from mechmem.cli.asking import Asked, ReadingOption, load_asked
from mechmem.cli.config import save_config
from mechmem.cli.output import Format, Output, is_first, print_result, say

if TYPE_CHECKING:
    import pandas as pd

    from mechmem.sweeps.result import Sweep


class Family(StrEnum):
    """What kinds of edits a grid can hold."""

    direction = "direction"
    neurons = "neurons"


@command()
def sweep(
    task: Annotated[
        str,
        typer.Argument(
            help="A task (see `mechmem tasks`), or a .csv/.jsonl/.parquet file of prompts."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "--join",
            help="Folder to write to; run again, or meanwhile and elsewhere, it goes on there.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="lab/ or real/ name, folder, .gguf file or hub name; default the task's lab model."
        ),
    ] = None,
    edits: Annotated[
        list[Family] | None,
        typer.Option("--edit", help="direction: add it at a layer; neurons: shift the top ones."),
    ] = None,
    layers: Annotated[
        list[int] | None, typer.Option("--layer", help="Of the direction; default every layer.")
    ] = None,
    alphas: Annotated[list[float] | None, typer.Option("--alpha", help="Default 1, 2, 4.")] = None,
    tops: Annotated[
        list[float] | None, typer.Option("--top", help="Share of neurons; default 0.05, 0.1.")
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pairs of rephrasings that the task makes; default: the lab model's own number, "
            "or 600.",
        ),
    ] = None,
    reading: ReadingOption = None,
    draws: Annotated[int, typer.Option(min=1, help="Random draws per control.")] = 30,
    seed: Seed = 0,
    output: Output = Format.table,
) -> None:
    """Try a grid of edits on validation prompts and test each family's winner once.

    Fitting takes 40 % of the groups, choosing 20 %, testing 40 %. Finished cells are kept in the
    folder: a sweep that was stopped goes on there, and processes that are started with the same
    --join folder, or under torchrun, share it.

    Example: mechmem sweep addition-cued --out my-sweep --edit direction --alpha 1 --alpha 2
    """
    from mechmem.artifacts import check_writable, write_text
    from mechmem.writing import csv_text

    check_writable(out)
    families = edits or list(Family)
    for option, given, family in (("--layer", layers, "direction"), ("--top", tops, "neurons")):
        if given and Family(family) not in families:
            raise typer.BadParameter(f"only --edit {family} has one", param_hint=option)
    asked = load_asked(task, model, pairs, reading)
    with progress_bar("loading") as bar:

        def told(line: str) -> None:
            bar.set_description_str(step_of(line))
            bar.update(1)

        grid = {
            "edits": families,
            "layers": layers,
            "alphas": alphas or [1.0, 2.0, 4.0],
            "tops": tops or [0.05, 0.1],
        }
        found = _run(asked, grid, out / "cells", draws, seed, told)
    if not is_first():
        return  # rank 0 prints and writes for all
    for name, table in {"validation": found.table(), "test": found.test_table()}.items():
        write_text(out / "tables" / f"{name}.csv", csv_text(table))
    save_config(out)
    table = _short(found) if output is Format.table else found.test_table()
    print_result(table, output, said=_said(found))
    say(f"tables: {out / 'tables'}", err=True)


def _run(
    asked: Asked, grid: dict[str, Any], cells: Path, draws: int, seed: int, told: Any
) -> Sweep:
    from mechmem.analysis import difference_of_means, neuron_mean_difference
    from mechmem.caching import cache_activations
    from mechmem.evaluation import observe
    from mechmem.patching import AddDirection, Edit, ShiftNeurons
    from mechmem.studies.behavior.run import SHARES
    from mechmem.sweeps.sweep import sweep as run_sweep

    model, task = asked.load()
    prompts = asked.prompts if task is None else task.pairs(asked.number(model), seed)
    assert prompts is not None
    parts = prompts.split(**SHARES, seed=seed)
    told("observing the training prompts")
    seen = observe(model, parts.train, task=task, reading=asked.reading, margins=False)
    flips, (first, second) = seen.flips(), seen.behaviors
    acts = cache_activations(model, flips.require("fit edits on flips"), sites="resid_post")
    edits: dict[str, list[Edit]] = {}
    if Family.direction in grid["edits"]:
        r = difference_of_means(acts, toward=second)
        chosen = model.sites("resid_post")
        if grid["layers"] is not None:
            chosen = model.sites([("resid_post", layer) for layer in grid["layers"]])
        edits["direction"] = [
            AddDirection(r[site], alpha=alpha) for site in chosen for alpha in grid["alphas"]
        ]
    if Family.neurons in grid["edits"]:
        scores = neuron_mean_difference(acts, first=first, second=second)
        edits["neurons"] = [
            ShiftNeurons(scores, top=top, alpha=alpha)
            for top in grid["tops"]
            for alpha in grid["alphas"]
        ]
    return run_sweep(
        model,
        edits,
        task=task,
        reading=asked.reading,
        validation=parts.validation,
        test=parts.test,
        draws=draws,
        seed=seed,
        folder=cells,
        progress=told,
    )


def _short(found: Sweep) -> pd.DataFrame:
    """The test table for people: the share steered to, and what the edit does beyond a control."""
    import pandas as pd

    from mechmem.evaluation import Rates

    plain = Rates(found.before)
    outcomes = plain.after.allowed[:2]
    first = {"setting": "unedited", "toward": "", "share": "", "edit minus control": ""}
    first |= {"draws, spread": "", "moved by edit, control": ""}
    first["share"] = ", ".join(f"{name} {plain.share(name)}" for name in outcomes)
    rows = [first]
    for tested in found.tested:
        for toward, rates in tested.rates.items():
            share = str(rates.share(toward))
            rows.append({"setting": tested.family, "toward": toward, "share": share})
            for name in tested.controls[toward]:
                row = {"setting": f"  {name}", "toward": toward}
                row["share"] = str(tested.control_share(toward, name, toward))
                gap = tested.beyond(toward, name)
                row["edit minus control"] = str(gap)
                row["draws, spread"] = f"{gap.draws}, {gap.spread:.3f}"
                row["moved by edit, control"] = f"{gap.size:.3g}, {gap.control_size:.3g}"
                rows.append(row)
    return pd.DataFrame(rows)


def _said(found: Sweep) -> str:
    best = found.best
    gaps = {toward: best.beyond_every_control(toward) for toward in best.rates}
    told = "; ".join(f"toward {toward} {gap}" for toward, gap in gaps.items())
    edit = ", ".join(f"{k} {v}" for k, v in best.edit.describe().items() if k != "toward")
    return (
        f"Chosen on validation among {len(found.cells)}: {edit}. On the test prompts, the share "
        f"steered to minus the share under the control it beats by least: {told}."
    )
