"""`fit`: `transformers.Trainer` over items in their order, watched every few steps, resumable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mechmem.errors import ArtifactError, ModelError
from mechmem.manifests import check_digests, checked, file_digest, is_whole, read_json, sealed
from mechmem.models.quiet import quiet_transformers
from mechmem.training.deterministic import StepProgress
from mechmem.training.settings import TrainingSettings
from mechmem.writing import write_text, written_to

LogRow = dict[str, float]
Watch = Callable[[Any, int], LogRow]
_WHOLE = "whole"
_MARK = {"files": {str: str}}
_OVER = "Start over with resume=False."


def fit(
    model: Any,
    items: Any,
    collate: Callable[[Sequence[Any]], dict[str, torch.Tensor]],
    settings: TrainingSettings,
    steps: int,
    work: Path,
    *,
    every: int,
    watch: Watch | None = None,
    loss: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor] | None = None,
    device: torch.device | None = None,
    progress: StepProgress | None = None,
) -> list[LogRow]:
    """Train a model in place; the kept checkpoint is written to ``work/kept-<step>``.

    Args:
        model: Trained in place, a peft model included.
        items: A dataset of at least ``steps * batch`` items, gone through in order.
        collate: Items to a batch.
        settings: See `TrainingSettings`.
        steps: Optimizer steps.
        work: Folder of states to resume from; what is whole there is gone on from.
        every: Steps between two calls of ``watch`` (the last step is always one).
        watch: Called with the model and the step, gives what it measured.
        loss: Of the model on a batch; the model's own on ``labels`` when left out.
        device: Where to train; `transformers` chooses when left out.
        progress: Called with (steps done, steps in all).

    Returns:
        One row per evaluation: step, mean training loss since the one before, and what was watched.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    saves = _saving_steps(settings, steps, every)
    since = {"sum": 0.0, "n": 0.0}

    class Watching(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **found: Any) -> None:
            step = int(state.global_step)
            if step % every == 0 or step == steps:
                row = {"step": step, "loss": since["sum"] / max(since["n"], 1.0)}
                since.update(sum=0.0, n=0.0)
                row.update(watch(found["model"], step) if watch is not None else {})
                state.log_history.append(row)
                if kept_row(state.log_history, settings.keep) is row:
                    _keep(found["model"], work / f"kept-{step}")
                control.should_save = step in saves
            if progress is not None:
                progress(step, steps)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step = int(state.global_step)
            best = int(kept_row(state.log_history, settings.keep)["step"])
            names = [f"checkpoint-{step}", f"kept-{best}"]
            found = sorted(file for name in names for file in (work / name).rglob("*"))
            digests = {
                file.relative_to(work).as_posix(): file_digest(file)
                for file in found
                if file.is_file() and file.name != _WHOLE
            }
            mark = json.dumps(sealed({"files": digests}))
            write_text(work / names[0] / _WHOLE, mark)
            for folder in (*work.glob("checkpoint-*"), *work.glob("kept-*")):
                if folder.name not in names:
                    shutil.rmtree(folder, ignore_errors=True)

    library: Any = Trainer

    class LoopTrainer(library):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(range(len(items)))

        def _save_checkpoint(self, *found: Any, **more: Any) -> None:
            with written_to(work):
                super()._save_checkpoint(*found, **more)

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any
        ) -> Any:
            own = super().compute_loss
            place = next(model.parameters()).device.type
            # Not the library's own switch: it would hold for whatever else this process trains.
            with torch.autocast(place, torch.bfloat16, enabled=settings.bf16):
                value = own(model, inputs, **more) if loss is None else loss(model, inputs)
            since["sum"] += float(value.detach())
            since["n"] += 1 / self.args.gradient_accumulation_steps
            return (value, None) if return_outputs else value

    micro = settings.micro_batch or settings.batch
    arguments = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.batch // micro,
        max_steps=steps,
        max_grad_norm=settings.clip,
        use_cpu=device is not None and device.type == "cpu",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=settings.seed,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # more would be given a batch each
    if device is not None and _place(arguments.device) != _place(device):
        raise ModelError(
            f"device={str(device)!r}: transformers trains on {arguments.device} here. Leave "
            "device= out, or hide the others, for example with CUDA_VISIBLE_DEVICES."
        )
    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad],
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(settings, steps))
    with quiet_transformers():
        trainer = LoopTrainer(
            model=model,
            args=arguments,
            train_dataset=items,
            data_collator=collate,
            optimizers=(optimizer, schedule),
            callbacks=[Watching()],
        )
        trainer.remove_callback(PrinterCallback)
        state = _newest_whole(work)
        trainer.train(resume_from_checkpoint=str(state) if state is not None else None)
    model.eval()
    return [dict(row) for row in trainer.state.log_history if "loss" in row and "step" in row]


def kept_row(rows: Sequence[LogRow], keep: str) -> LogRow:
    """The row whose checkpoint the rule keeps; the first of equals, except under ``"last"``.

    Where no evaluation showed both behaviors, ``"gen*mem"`` keeps the last.
    """
    rows = [row for row in rows if "loss" in row]
    if keep == "best-validation-loss":
        return min(rows, key=lambda row: row["validation_loss"])
    if keep == "gen*mem":
        best = max(rows, key=lambda row: row["generalized"] * row["memorized"])
        if best["generalized"] * best["memorized"] > 0:
            return best
    return rows[-1]


def _rate(settings: TrainingSettings, steps: int) -> Callable[[int], float]:
    def rate(step: int) -> float:
        rising = min(1.0, (step + 1) / (settings.warmup + 1))
        if settings.schedule == "constant":
            return rising
        left = (steps - step) / max(1, steps - settings.warmup)
        return min(rising, max(0.0, left))

    return rate


def _saving_steps(settings: TrainingSettings, steps: int, every: int) -> set[int]:
    """Evaluations after which a state to resume from is written."""
    apart = settings.save_every or max(1, steps // 20)
    apart = -(-apart // every) * every
    return {*range(apart, steps, apart), steps}


def _keep(model: Any, folder: Path) -> None:
    """Weights of the best checkpoint so far; older ones go when the next state is safe."""
    partial = folder.with_name(f"partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    with written_to(folder):
        model.save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def _newest_whole(work: Path) -> Path | None:
    """The newest state that was written to its end.

    Raises:
        ArtifactError: When a part of it, or of the weights kept so far, is gone or damaged.
    """
    found = {
        int(number): folder
        for folder in work.glob("checkpoint-*")
        if (number := folder.name.rsplit("-", 1)[1]).isascii()
        and number.isdecimal()
        and (folder / _WHOLE).exists()
    }
    if not found:
        return None
    newest = found[max(found)]
    mark = checked(read_json(newest / _WHOLE, "the mark of a state"), _MARK, newest / _WHOLE)
    if not is_whole(mark):
        raise ArtifactError(f"{newest / _WHOLE} was changed after it was written. {_OVER}")
    check_digests(work, mark["files"], f"The run cannot go on as it would have. {_OVER}")
    return newest


def _place(device: torch.device) -> tuple[str, int]:
    return device.type, device.index or 0
