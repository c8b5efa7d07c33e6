"""From a finished training run to a folder that ships: the manifest, with what was measured."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from safetensors import safe_open

from mechmem.artifacts import versions, write_text
from mechmem.evaluation.behavior import observe
from mechmem.models.folders import written_weights
from mechmem.models.loading import load_model
from mechmem.tasks.paper1.official import OfficialTask
from mechmem.training.run import Training

MEASURED_PAIRS = 2000


def write_card(
    run: Training,
    task: OfficialTask[Any],
    *,
    options: dict[str, Any],
    design: str,
    study_pairs: int,
    study_steered: dict[str, int] | None = None,
    started: float,
    earlier: dict[str, Any] | None = None,
    pairs: int | None = None,
) -> None:
    """Measure the kept checkpoint on fresh pairs and write what the model is.

    Args:
        run: The finished run; its folder gets ``manifest.json``.
        task: What it was trained on.
        options: Those of the task, for `get_task`.
        design: What was done to get both behaviors, in plain words.
        study_pairs: Pairs that a study of this model needs for enough flips.
        study_steered: On how many prompts such a study tries edits, where its answers are long
            (``steered`` of `mechmem.run_study`).
        started: ``time.process_time()`` at the beginning.
        earlier: What the settings do not say, an earlier phase for example.
        pairs: On how many it is measured; default 2,000.
    """
    model = load_model(run.folder)
    settings = {
        name: value
        for name, value in run.record["settings"].items()
        if value is not None and not name.startswith("lora_")
    }
    manifest = {
        "task": task.name,
        "task_options": options,
        "design": design,
        "planted": False,
        "study_pairs": study_pairs,
        **({"study_steered": study_steered} if study_steered else {}),
        "parameters": _parameters(run.folder),
        "training": {
            **settings,
            **(earlier or {}),
            "kept_step": int(run.kept["step"]),
            "cpu_seconds": round(time.process_time() - started, 1),
        },
        "measured": measured(model, task, pairs or MEASURED_PAIRS),
        "versions": versions(),
        "digests": written_weights(run.folder),
    }
    write_text(run.folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    for name in ("curves.html", "training.json"):  # the one is large, the other is said above
        (run.folder / name).unlink(missing_ok=True)


def measured(model: Any, task: OfficialTask[Any], pairs: int) -> dict[str, Any]:
    """Behavior on held-out conflict pairs that no choice has seen, and on clean items."""
    seen = observe(model, task.pairs(pairs, seed=0), task=task, margins=False)
    clean_items = task.clean_prompts(max(1, pairs // 4), seed=0)
    clean = observe(model, clean_items, task=task, margins=False)
    return {
        "prompts": len(seen),
        **{name: round(seen.outcomes.count(name) / len(seen), 4) for name in seen.allowed},
        "flip_rate": round(seen.flip_rate, 4),
        "flips": len(seen.flips()) // 2,
        "clean_accuracy": round(clean.outcomes.count("generalized") / len(clean), 4),
    }


def _parameters(folder: Path) -> int:
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        return sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
