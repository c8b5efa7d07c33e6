"""`run_study`: the whole question, asked once, with every control beside the effect."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mechmem.analysis.directions import Directions, difference_of_means
from mechmem.analysis.geometry import Separation, separation
from mechmem.analysis.neurons import NeuronScores, neuron_mean_difference
from mechmem.analysis.probes import Probes, fit_probes
from mechmem.analysis.token_projections import TokenProjections
from mechmem.artifacts import versions
from mechmem.caching.activations import Activations
from mechmem.caching.extract import cache_activations
from mechmem.errors import PromptError, TaskError
from mechmem.evaluation.behavior import Observations, observe
from mechmem.experiments.cells import check_sharing
from mechmem.experiments.costs import DOSES, clean_cost, dose_response
from mechmem.experiments.grids import default_grid
from mechmem.experiments.sweep import Sweep, sweep
from mechmem.experiments.token_reading import read_answers
from mechmem.models.hooked import Model, ModelInfo
from mechmem.patching import Edit
from mechmem.tasks.base import BEHAVIORS, Task
from mechmem.tasks.own_prompts import check_own_pairs
from mechmem.tasks.prompts import PromptSet

__all__ = ["Study", "run_study"]

SHARES = {"train": 0.4, "validation": 0.2, "test": 0.4}
MIN_FLIPS = 10
STEERED = {"validation": 240, "test": 480}
"""Most prompts of a part on which edits are tried; flips are rare, so fitting takes more."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Study:
    """What a study found; every part is a result object of its own.

    Attributes:
        model: The model asked.
        card: The manifest of a shipped model, else empty.
        task: Name of the task.
        seed: Keys splits, controls and resampling.
        splits: Prompts of each part; parts share no group.
        observed: What the unedited model did, per part.
        flips: Flips of the training part, on which everything is fitted.
        scores: Residual-stream neurons at the last prompt token, every layer.
        mlp_scores: MLP neurons at the last prompt token, every layer.
        window_scores: Residual neurons at the task's own positions; `scores` where it has none.
        directions: Difference of means per site at the last prompt token.
        separation: Along those directions, on the flips of the test part.
        probes: On the training flips, cross-validated by group.
        sweep: Edits chosen on validation, tested once.
        dose: Rates over a range of alphas on the test part, the edit beside a placebo.
        clean: Accuracy on ordinary items, unedited and under the chosen edit.
        tokens: The first test flips, token by token along the direction.
        negative: The same study on a model without a shared mode, if there is one.
        seconds: Wall-clock time.
    """

    model: ModelInfo
    card: Mapping[str, Any]
    task: str
    seed: int
    splits: Mapping[str, PromptSet]
    observed: Mapping[str, Observations]
    flips: PromptSet
    scores: NeuronScores
    mlp_scores: NeuronScores
    window_scores: NeuronScores
    directions: Directions
    separation: Separation
    probes: Probes
    sweep: Sweep
    dose: pd.DataFrame
    clean: pd.DataFrame
    tokens: TokenProjections | None
    negative: Study | None
    seconds: float

    def answer(self) -> str:
        """The result in one honest sentence, made from the numbers."""
        from mechmem.experiments.report import sentence

        return sentence(self)

    def notes(self) -> list[str]:
        """What has to be said beside it: cost, the published form, probes, negative control."""
        from mechmem.experiments.wording import notes

        return notes(self)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table by name."""
        from mechmem.experiments.report import tables

        return tables(self)

    def figures(self) -> dict[str, Any]:
        """Every figure by name, as plotly figures."""
        from mechmem.experiments.report import figures

        return figures(self)

    def save(self, folder: str | Path) -> Path:
        """Write ``report.html``, the tables as CSV and the artifacts as safetensors and JSON.

        Returns:
            The path of the report.

        Raises:
            ArtifactError: When the folder cannot be written.
        """
        from mechmem.experiments.report import write

        return write(self, Path(folder))

    def manifest(self) -> dict[str, Any]:
        """What is needed to do it again, JSON-ready."""
        return {
            "task": self.task,
            "seed": self.seed,
            "model": self.model.as_dict(),
            "card": dict(self.card),
            "versions": versions(),
            "splits": {
                name: {"prompts": len(part), "groups": sorted(set(part.groups))}
                for name, part in self.splits.items()
            },
            "chosen": [tested.edit.describe() for tested in self.sweep.tested],
        }


def run_study(
    model: Model,
    *,
    task: Task | None = None,
    prompts: PromptSet | None = None,
    n: int = 600,
    seed: int = 0,
    grid: Callable[[NeuronScores, NeuronScores, Directions], Mapping[str, Sequence[Edit]]] = (
        default_grid
    ),
    negative: tuple[Model, Task] | None = None,
    doses: Sequence[float] = DOSES,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> Study:
    """Does this model remember or compute, where is that decided, and can it be turned?

    Observes pairs of rephrasings, splits them by group (40 % training, 20 % validation, 40 % test),
    fits neurons, directions and probes on the training flips, chooses an edit per family on
    validation, and runs the winners and their controls once on test. Edits are tried on at most 240
    validation and 480 test prompts; what is fitted and observed takes all.

    Args:
        model: From `load_model`.
        task: Makes pairs and reads completions.
        prompts: Your own rephrased prompts with `memorized` and `generalized`, instead of the
            task's.
        n: Pairs to make, when the task makes them.
        seed: Keys splits, controls and resampling.
        grid: From neuron scores, window scores and directions to edits by family.
        negative: A model (with its task) in which no effect is expected; only the winning family
            of edits is tried on it.
        doses: Multiples of the chosen alpha for the dose-response; empty to leave it out.
        folder: Where finished edits of the sweep are stored, so that a study that was stopped goes
            on. Processes that share the work (``RANK``, ``WORLD_SIZE``) meet there; each of them
            returns the whole study.
        progress: Called with a line for every step.

    Raises:
        ArtifactError: When processes share the work without a folder.
        PromptError: When there are too few prompts, or too few flips to contrast the behaviors.
    """
    started = time.monotonic()
    say = progress or (lambda line: None)
    place = None if folder is None else Path(folder)
    check_sharing(place)
    if prompts is not None and not isinstance(prompts, PromptSet):
        raise PromptError(
            f"prompts must be a PromptSet, got {type(prompts).__name__} {prompts!r:.60}; read a "
            "file with mm.PromptSet.from_csv or from_jsonl."
        )
    if isinstance(task, str):
        raise TaskError(f"task must be a task, got {task!r}; use mm.get_task({task!r}).")
    if prompts is None:
        if task is None:
            raise PromptError(
                "A study needs a task, or prompts=, or both; for example "
                "run_study(model, task=mm.get_task('addition-cued'))."
            )
        prompts = task.pairs(n, seed)
    else:
        check_own_pairs(prompts, MIN_FLIPS, SHARES["train"])
    parts = prompts.split(**SHARES, seed=seed)._asdict()
    observed = {}
    for name, part in parts.items():
        say(f"observing the {name} prompts")
        observed[name] = observe(model, part, task=task)
    flips = observed["train"].flips()
    if len(flips) // 2 < MIN_FLIPS:
        raise PromptError(_too_few(observed["train"]))
    say(f"reading the states of {len(flips)} flips")
    acts = cache_activations(model, flips, sites=["resid_pre", "resid_post"])
    acts = _first_and_posts(acts)
    scores = neuron_mean_difference(_posts(acts))
    mlp_scores = neuron_mean_difference(cache_activations(model, flips, sites="mlp_post"))
    window_scores = _window(model, flips, task, scores)
    directions = difference_of_means(acts, toward=BEHAVIORS[1])
    say("measuring the separation on test flips")
    test_flips = observed["test"].flips()
    held_out = cache_activations(model, test_flips, sites=acts.sites)
    apart = separation(directions, held_out, seed=seed)
    say("fitting probes and their baselines")
    probes = fit_probes(acts, seed=seed)
    steered = {name: _first_groups(parts[name], most) for name, most in STEERED.items()}
    found = sweep(
        model,
        grid(scores, window_scores, directions),
        task=task,
        validation=steered["validation"],
        test=steered["test"],
        seed=seed,
        folder=place,
        progress=say,
    )
    say("dose and response, and the cost on clean items")
    dose = dose_response(model, found, steered["test"], task, seed, doses)
    clean = clean_cost(model, found, task, seed)
    inner = None
    if negative is not None:
        say("the same on the model without a shared mode")
        inner = run_study(
            negative[0],
            task=negative[1],
            n=n,
            seed=seed,
            grid=lambda *fitted: {found.best.family: grid(*fitted)[found.best.family]},
            doses=(),
            folder=place,
        )
    return Study(
        model.info,
        dict(model.card),
        task.name if task is not None else "own prompts",
        seed,
        parts,
        observed,
        flips,
        scores,
        mlp_scores,
        window_scores,
        directions,
        apart,
        probes,
        found,
        dose,
        clean,
        read_answers(model, directions, probes, found),
        inner,
        time.monotonic() - started,
    )


def _first_groups(part: PromptSet, most: int) -> PromptSet:
    """Whole groups in their order, about ``most`` prompts; parts are drawn at random already."""
    if len(part) <= most:
        return part
    kept = set(part[:most].groups)
    return PromptSet(prompt for prompt in part if prompt.group in kept)


def _too_few(seen: Observations) -> str:
    """What the model did instead of flipping, with an example."""
    pairs = seen.prompts.pairs()
    if not pairs:
        return (
            f"None of {len(seen)} training prompts has a rephrasing: no two share a `group`. Give "
            "the rephrasings of one question the same group."
        )
    shares = {name: seen.outcomes.count(name) for name in seen.allowed}
    prompt, wrote = seen.prompts[0], seen.completions[0]
    return (
        f"Only {len(seen.flips()) // 2} of {len(pairs)} training pairs are flips (outcomes "
        f"{shares}); a contrast needs at least {MIN_FLIPS} in the training part, which is "
        f"{SHARES['train']:.0%} of the groups. For example, after {prompt.text!r:.80} the model "
        f"wrote {wrote!r:.60}, where {prompt.memorized!r} or {prompt.generalized!r} was looked "
        "for. Use more pairs, or a model that shows both behaviors."
    )


def _first_and_posts(acts: Activations) -> Activations:
    """The embedding (input of block 0) and the output of every block, each state once."""
    keep = {
        site: state
        for site, state in acts.states.items()
        if site.stream == "resid_post" or site.layer == 0
    }
    return replace(acts, states=keep)


def _posts(acts: Activations) -> Activations:
    states = {site: state for site, state in acts.states.items() if site.stream == "resid_post"}
    return replace(acts, states=states)


def _window(
    model: Model, flips: PromptSet, task: Task | None, scores: NeuronScores
) -> NeuronScores:
    positions = list(task.read_spans) if task is not None else ["last"]
    if positions == ["last"]:
        return scores
    return neuron_mean_difference(cache_activations(model, flips, positions=positions))
