"""`train`: a model on one of the paper's tasks, from scratch or fine-tuned, with its curves."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mechmem.artifacts import check_writable, versions, write_text
from mechmem.errors import ArtifactError, TaskError
from mechmem.evaluation.behavior import observe
from mechmem.manifests import file_digest
from mechmem.models.booting import parse_device
from mechmem.models.loading import load_model
from mechmem.models.tokenizing import Tokens
from mechmem.plotting.save import save_figure
from mechmem.plotting.training import training_curves
from mechmem.seeding import caller_state_kept, keyed_seed
from mechmem.tasks.base import Task, get_task
from mechmem.tasks.paper1.official import OfficialTask
from mechmem.training.data import Items, collate, encode, epoch_size
from mechmem.training.deterministic import StepProgress
from mechmem.training.loop import LogRow, fit, kept_row
from mechmem.training.models import start, with_adapters, write_model
from mechmem.training.record import (
    earlier_files,
    put_in_place,
    refuse_links,
    same_run,
    source_of,
    write_record,
)
from mechmem.training.settings import TrainingSettings
from mechmem.work_claims import STALE_CLAIM, claim_of, claimed
from mechmem.writing import csv_text

_RECORD, _CURVES, _FIGURE = "training.json", "curves.csv", "curves.html"
_WORK, _MADE = "work", "made"
_COLUMNS = ("step", "epoch", "loss", "validation_loss")


@dataclass(frozen=True)
class Training:
    """A finished run.

    Attributes:
        folder: A Hugging Face folder: ``load_model`` takes it. ``adapter`` in it holds the LoRA
            weights, ``curves.csv`` and ``curves.html`` the curves, ``training.json`` everything
            that is needed to do it again.
        curves: One row per evaluation: ``step``, ``epoch``, ``loss`` (training, mean since the row
            before), ``validation_loss``, shares of the outcomes, ``flip_rate``, ``n`` prompts.
        kept: The row whose checkpoint was kept.
        record: What ``training.json`` holds.
    """

    folder: Path
    curves: pd.DataFrame
    kept: LogRow
    record: dict[str, Any]

    def figure(self, *, theme: str = "light") -> Any:
        """The curves as a plotly figure."""
        return training_curves(self.curves, kept=self.kept["step"], theme=theme)


def train(
    task: OfficialTask[Any] | str,
    folder: str | Path,
    *,
    model: Any = "scratch",
    tokenizer: Any = None,
    settings: TrainingSettings | None = None,
    resume: bool = True,
    device: str | None = None,
    progress: StepProgress | None = None,
    **changes: Any,
) -> Training:
    """Train a model on a task of the paper and keep the checkpoint that shows both behaviors.

    ``mm.train("cipher", "out", steps=500, learning_rate=1e-3)`` trains a small GPT-2 from scratch;
    ``mm.train("colors", "out", model="some/model", settings=TrainingSettings.paper("colors"))``
    fine-tunes with the paper's LoRA settings.

    A run that was killed goes on from its last whole state when it is called again with the same
    arguments, and gives the same weights as one that was not.

    Args:
        task: ``colors``, ``addition`` or ``cipher``, by name or with its own config and options.
        folder: Where to write.
        model: ``"scratch"`` (a GPT-2 of 4 layers, width 128), a `transformers` configuration, a
            folder, a hub name or one of ours (``"real/smollm2-135m"``), or a `transformers` model,
            which stays as it is.
        tokenizer: A tokenizer; for a fresh model also ``"characters"``, ``"words"`` or a regular
            expression for `build_tokenizer`.
        settings: Where the changes start from; without them ``steps=`` or ``epochs=`` is needed.
        resume: False starts over: states of an earlier run are removed at once, and the files that
            it left in the folder when those of the new one take their place.
        device: ``"cpu"``, or the accelerator that `transformers` chooses when it is left out.
        progress: Called with (steps done, steps in all).
        **changes: Fields of `TrainingSettings`.

    Raises:
        TaskError: For a task that has no training items, or settings that do not fit.
        ModelError: When the model cannot be found, or the device is not there.
        ArtifactError: When the folder cannot be written, was changed, holds a run with another
            task, model, tokenizer or settings, or another process trains there.
    """
    chosen, wants = _task(task), parse_device(device)
    wanted = TrainingSettings(**changes) if settings is None else settings.changed(changes)
    target = Path(folder)
    record = {
        "task": chosen.name,
        **source_of(model, tokenizer),
        "settings": wanted.as_dict(),
        "config": {name: value for name, value in vars(chosen).items() if _plain(value)},
    }
    check_writable(target)
    with claimed(target / _RECORD) as mine:
        if not mine:
            raise ArtifactError(
                f"Another run trains into {target}; wait for it, or choose another folder. If it "
                f"was killed on another machine, {claim_of(target / _RECORD)} is free after "
                f"{STALE_CLAIM:.0f} seconds."
            )
        return _trained(chosen, target, record, model, tokenizer, wanted, resume, wants, progress)


def _trained(
    chosen: OfficialTask[Any],
    target: Path,
    record: dict[str, Any],
    model: Any,
    tokenizer: Any,
    wanted: TrainingSettings,
    resume: bool,
    wants: torch.device | None,
    progress: StepProgress | None,
) -> Training:
    """The run, in a folder that nobody else trains into."""
    work, earlier = target / _WORK, earlier_files(target / _RECORD)
    refuse_links(work)
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
        (target / _RECORD).unlink(missing_ok=True)
    done = same_run(target / _RECORD, record)
    if done is not None:
        return _finished(target, done)
    write_record(target / _RECORD, {**record, "files": earlier})
    with caller_state_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what the libraries say to each other
        body, own = start(model, tokenizer, chosen, wanted)
        trained = with_adapters(body, wanted) if wanted.method == "lora" else body
        context = getattr(body.config, "max_position_embeddings", None)
        tokens = Tokens(own, context)
        per_epoch = -(-epoch_size(chosen, wanted) // wanted.batch)
        steps = wanted.steps or max(1, round((wanted.epochs or 0) * per_epoch))
        every = wanted.evaluate_every or per_epoch
        rows = fit(
            trained,
            Items(chosen, wanted, tokens, steps * wanted.batch),
            lambda items: collate(items, wanted.loss, tokens.pad_id),
            wanted,
            steps,
            work,
            every=every,
            watch=behavior_watch(chosen, own, wanted, tokens, per_epoch),
            device=wants,
            progress=progress,
        )
        columns = [*_COLUMNS, *sorted({*rows[0]} - {*_COLUMNS})]
        # In one order: transformers sorts those of a state that was gone on from.
        rows = [{name: row[name] for name in columns} for row in rows]
        kept = kept_row(rows, wanted.keep)
        base = start(model, tokenizer, chosen, wanted)[0] if wanted.method == "lora" else None
        made = work / _MADE
        shutil.rmtree(made, ignore_errors=True)
        origin = str(model) if isinstance(model, (str, Path)) else None
        write_model(work / f"kept-{kept['step']}", base, own, made, wanted.method, origin)
    files = sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file())
    known = {**record, "files": sorted({*earlier, *files})}
    write_record(target / _RECORD, known)  # before they are there
    put_in_place(made, target, files, earlier)
    whole = {**record, "kept": kept, "rows": len(rows), "versions": versions(), "files": files}
    curves = pd.DataFrame(rows)
    write_text(target / _CURVES, csv_text(curves))
    save_figure(training_curves(curves, kept=kept["step"]), target / _FIGURE)
    digests = {name: file_digest(target / name) for name in (*files, _CURVES, _FIGURE)}
    whole = write_record(target / _RECORD, whole, digests)  # last: says it is finished
    shutil.rmtree(work, ignore_errors=True)
    return Training(target, curves, kept, whole)


def behavior_watch(
    task: OfficialTask[Any],
    tokenizer: Any,
    settings: TrainingSettings,
    tokens: Tokens,
    per_epoch: int,
) -> Callable[[Any, int], LogRow]:
    """What is measured every few steps: behavior on conflict pairs, loss on fresh items."""
    pairs = task.pairs(settings.evaluation_pairs, keyed_seed(settings.seed, "evaluation") % 2**31)
    # Epoch -1 is never trained on.
    items = encode(task.training(settings.validation_items, settings.seed, -1), tokens)

    def watch(model: Any, step: int) -> LogRow:
        with caller_state_kept():
            loss = _loss(model, items, settings, tokens.pad_id)
            seen = observe(load_model(model, tokenizer=tokenizer), pairs, task=task, margins=False)
        shares = {name: seen.outcomes.count(name) / len(seen) for name in seen.allowed}
        return {
            "epoch": step / per_epoch,
            "validation_loss": loss,
            **shares,
            "flip_rate": seen.flip_rate,
            "n": len(seen),
        }

    return watch


@torch.no_grad()
def _loss(model: Any, items: Any, settings: TrainingSettings, pad: int) -> float:
    training = model.training
    model.eval()
    total = count = 0.0
    for first in range(0, len(items), 64):
        batch = collate(items[first : first + 64], settings.loss, pad)
        batch = {name: value.to(model.device) for name, value in batch.items()}
        # Every item counts by its tokens, whichever batch it lies in.
        weight = float((batch["labels"][:, 1:] != -100).sum())
        total += weight * float(model(**batch).loss)
        count += weight
    model.train(training)
    return total / count


def _task(task: OfficialTask[Any] | str) -> OfficialTask[Any]:
    found: Task = get_task(task) if isinstance(task, str) else task
    if not isinstance(found, OfficialTask):
        name = getattr(found, "name", type(found).__name__)
        raise TaskError(
            f"train() needs a task with training items ('colors', 'addition', 'cipher'), got "
            f"{name!r}. Lab tasks have recipes of their own: train_lab_model."
        )
    return found


def _finished(folder: Path, record: dict[str, Any]) -> Training:
    try:
        curves = pd.read_csv(folder / _CURVES)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{folder / _CURVES} cannot be read: {error}. Train again with resume=False."
        ) from error
    return Training(folder, curves, record["kept"], record)


def _plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
