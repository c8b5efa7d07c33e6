"""`run_study`: the whole question, asked once, with every control beside the effect."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mechmem.analysis.depth_profile import depth_profile
from mechmem.analysis.directions import difference_of_means
from mechmem.analysis.draws import DRAWS
from mechmem.analysis.exchange import Exchange
from mechmem.analysis.geometry import separation
from mechmem.analysis.neurons import neuron_mean_difference
from mechmem.analysis.probes import fit_probes
from mechmem.caching.activations import Activations
from mechmem.caching.extract import cache_activations
from mechmem.errors import MechmemError, MechmemWarning, PromptError, TaskError, listed
from mechmem.evaluation.advice import HOPELESS, FirstLook, first_look
from mechmem.evaluation.behavior import observe, reader_for
from mechmem.evaluation.models_compared import MIN_FLIPS
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET
from mechmem.models.model import Model
from mechmem.studies.behavior.costs import DOSES, clean_cost, dose_response
from mechmem.studies.behavior.pace import fitting_plan, measure_pace, spoken
from mechmem.studies.behavior.plan import REFINE, STEERED, Fit, GridRule, Plan, check_asked
from mechmem.studies.behavior.study import BehaviorStudy
from mechmem.studies.behavior.words import too_few
from mechmem.studies.defaults import OWN_PROMPTS, PLAN_LINE, SHUFFLES
from mechmem.studies.token_reading import project_answers
from mechmem.studies.verdict import verdict_of
from mechmem.sweeps.cells import check_sharing
from mechmem.sweeps.sweep import sweep
from mechmem.tasks.base import Task, with_reading
from mechmem.tasks.choice import Choice
from mechmem.tasks.own_prompts import check_own_pairs
from mechmem.tasks.prompts import PromptSet

SHARES = {"train": 0.4, "validation": 0.2, "test": 0.4}


def run_study(
    model: Model,
    *,
    task: Task | None = None,
    prompts: PromptSet | None = None,
    reading: str | Choice | None = None,
    n: int = 600,
    seed: int = 0,
    grid: GridRule | None = None,
    plan: Plan | None = None,
    budget: float | None = None,
    refine: Mapping[str, Sequence[float]] = REFINE,
    shuffles: int = SHUFFLES,
    draws: int = DRAWS,
    negative: tuple[Model, Task] | None = None,
    doses: Sequence[float] = DOSES,
    steered: Mapping[str, int] = STEERED,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    folder: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
    finished: Callable[[BehaviorStudy], object] | None = None,
) -> BehaviorStudy:
    """Does this model remember or compute, where is that decided, and can it be turned?

    Observes pairs of rephrasings, splits them by group (40 % training, 20 % validation, 40 % test),
    fits neurons, directions and probes on the training flips, chooses an edit per family on
    validation, and runs the winners and their controls once on test. Edits are tried on some of
    the prompts (``steered``); what is fitted and observed takes all.

    Args:
        model: From `load_model`.
        task: Makes pairs and reads completions.
        prompts: Your own rephrased prompts with `memorized` and `generalized`, instead of the
            task's.
        reading: ``"text"`` or ``"choice"`` (see `observe`); default the task's own, text for your
            own prompts.
        n: Pairs to make, when the task makes them.
        seed: Keys splits, controls and resampling.
        grid: The rule that makes edits, by family, from what was fitted (`Fit`), instead of the
            plan's. It is run again in every refit; one in which it makes none counts as 0.
        plan: What is tried; it goes before ``draws`` and ``steered``. By default all of `Plan`. A
            plan gives the same numbers on any machine.
        budget: Seconds. The plan is shrunk until it takes no longer on this machine; what was left
            out is said in the study, which saves the plan.
        refine: Per family, multiples of the best strength that are tried after the grid.
        shuffles: Refits of the whole recipe on exchanged behaviors, for the verdict; 0 leaves them
            out, and then nothing is tested.
        draws: Random draws per control of the winners.
        negative: A model (with its task) in which no effect is expected; only the winning family
            of edits is tried on it. When it fails, the study says so and keeps everything else.
        doses: Multiples of the chosen alpha for the dose-response; empty to leave it out.
        steered: Most validation and test prompts on which edits are tried. Where answers are long,
            fewer save most of the time; the intervals then grow.
        token_budget: Most tokens in one batch. A small model runs faster with more.
        folder: Where finished edits of the sweep are stored, so that a study that was stopped goes
            on. Processes that share the work (``RANK``, ``WORLD_SIZE``) meet there; each of them
            returns the whole study.
        progress: Called with a line for every step.
        finished: Called with the study, before its negative control runs, so that it can be saved.

    Raises:
        ArtifactError: When processes share the work without a folder.
        PromptError: When there are too few prompts, or too few flips to contrast the behaviors.
        MechmemError: For a ``steered`` that does not say how many prompts of both parts, doses or
            factors of ``refine`` that are no numbers, or a budget that no plan fits.
    """
    started = time.monotonic()
    check_asked(shuffles, steered, doses, refine, budget)
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
    if grid is not None and (plan is not None or budget is not None):
        raise MechmemError("A grid of your own is a plan by itself; leave out plan= and budget=.")
    whole = plan or Plan(draws=draws, validation=steered["validation"], test=steered["test"])
    if prompts is None:
        if task is None:
            raise PromptError(
                "A study needs a task, or prompts=, or both; for example "
                "run_study(model, task=mm.get_task('addition-cued'))."
            )
        task = with_reading(task, reading)
        say("asking what the task depends on")
        task = task.prepared(_asker(model, task, token_budget))
        prompts = task.pairs(n, seed)
    else:
        check_own_pairs(prompts, MIN_FLIPS, SHARES["train"])
    name = task.name if task is not None else OWN_PROMPTS
    task = reader_for(prompts, task, reading)
    first, second = task.behaviors
    parts = model.encode(prompts).split(**SHARES, seed=seed)._asdict()
    if name == OWN_PROMPTS:
        _advise(first_look(model, parts["train"], task, token_budget=token_budget))
    if grid is None and (progress is not None or budget is not None):
        say("timing a few prompts")
        whole, seconds = fitting_plan(
            whole,
            measure_pace(model, parts["train"], task, token_budget=token_budget),
            budget,
            {part_name: len(part) for part_name, part in parts.items()},
            model.n_layers,
            shuffles,
        )
        say(f"{PLAN_LINE}{_planned(whole, parts, model, shuffles)}, about {spoken(seconds)}")
    rule: GridRule = whole.grid if grid is None else grid
    tried = {part: _first_groups(parts[part], getattr(whole, part)) for part in STEERED}
    observed = {}
    for part_name, part in parts.items():
        say(f"observing the {part_name} prompts")
        # Only the margins of the test part are shown; with long answers they cost half the time.
        observed[part_name] = observe(
            model, part, task=task, margins=part_name == "test", token_budget=token_budget
        )
    flips = task.contrast(observed["train"].behaving)
    if len(flips) // 2 < MIN_FLIPS:
        pairs = len(flips) // 2
        raise PromptError(too_few(observed["train"], task, pairs, MIN_FLIPS, SHARES["train"]))
    say(f"reading the states of {len(flips)} flips")
    acts = cache_activations(model, flips, sites=["resid_pre", "resid_post"])
    acts = _first_and_posts(acts)
    depth = depth_profile(acts, first=first, second=second, seed=seed)
    last = _posts(acts)
    window = _window(model, flips, task, last)
    fit = Fit.of(last, window, flips, task.behaviors)
    mlp_scores = neuron_mean_difference(
        cache_activations(model, flips, sites="mlp_post"), first=first, second=second
    )
    directions = difference_of_means(acts, toward=second)
    exchange = Exchange(flips, stratum=task.stratum)
    reason = exchange.reason() if shuffles else ""
    say("fitting on exchanged behaviors")
    refits = [
        dict(rule(Fit.of(last, window, exchange.draw(seed, k), task.behaviors)))
        for k in range(0 if reason else shuffles)
    ]
    say("measuring the separation on test flips")
    test_flips = task.contrast(observed["test"].behaving)
    held_out = cache_activations(model, test_flips, sites=acts.sites)
    apart = separation(directions, held_out, seed=seed)
    say("fitting probes and their baselines")
    probes = fit_probes(acts, seed=seed)
    found = sweep(
        model,
        rule(fit),
        task=task,
        validation=tried["validation"],
        test=tried["test"],
        refits=refits,
        refine=refine,
        draws=whole.draws,
        seed=seed,
        token_budget=token_budget,
        folder=place,
        progress=say,
    )
    say("dose and response, and the cost on clean items")
    dose = dose_response(model, found, tried["test"], task, seed, doses, token_budget)
    clean = clean_cost(model, found, task, seed, token_budget)
    study = BehaviorStudy(
        model.info,
        dict(model.card),
        name,
        seed,
        parts,
        observed,
        flips,
        depth,
        fit.scores,
        mlp_scores,
        fit.window_scores,
        directions,
        apart,
        probes,
        found,
        dose,
        clean,
        project_answers(model, directions, probes, found),
        verdict_of(found, shuffles, reason),
        None,
        time.monotonic() - started,
        whole if grid is None else None,
    )
    if finished is not None:
        try:
            finished(study)
        except Exception as error:  # the study is worth more than its copy on disk
            _warn(f"Saving the study failed ({_reason(error)}); it goes on and is returned.")
    if negative is None:
        return study
    say("the same on the model without a shared mode")
    try:
        inner = run_study(
            negative[0],
            task=negative[1],
            reading=reading,
            n=n,
            seed=seed,
            grid=lambda fit: {found.best.family: rule(fit).get(found.best.family, ())},
            refine=refine,
            shuffles=shuffles,
            draws=whole.draws,
            doses=(),
            steered={part: getattr(whole, part) for part in STEERED},
            token_budget=token_budget,
            folder=place,
        )
    except (Exception, KeyboardInterrupt) as error:  # hours of the main study must not go with it
        reason = _reason(error)
        _warn(f"The negative control failed ({reason}); the main study is whole without it.")
        study = replace(study, failed_control=reason)
        inner = None
    return replace(study, negative=inner, seconds=time.monotonic() - started)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _warn(text: str) -> None:
    warnings.warn(text, MechmemWarning, stacklevel=3)


def _planned(plan: Plan, parts: Mapping[str, PromptSet], model: Model, shuffles: int) -> str:
    sizes = {name: len(part) for name, part in parts.items()}
    work = plan.work(sizes, model.n_layers, shuffles)
    left = plan.left_out(sizes, model.n_layers)
    return (
        f"the edits {listed(plan.families)} in at most {min(plan.layers, model.n_layers)} "
        f"layers with {shuffles} refits and {plan.draws} draws of each control, {work:,} answers "
        f"under an edit{'; left out: ' + '; '.join(left) if left else ''}"
    )


def _first_groups(part: PromptSet, most: int) -> PromptSet:
    """Whole groups in their order, about ``most`` prompts; parts are drawn at random already."""
    if len(part) <= most:
        return part
    kept = set(part[:most].groups)
    return part.filter(lambda prompt: prompt.group in kept)


def _advise(look: FirstLook | None) -> None:
    """Say at once what the first prompts show; stop where hardly one shows a behavior."""
    if look is not None and look.neither >= HOPELESS:
        raise PromptError(str(look))
    if look is not None:
        warnings.warn(str(look), MechmemWarning, stacklevel=3)


def _asker(model: Model, task: Task, token_budget: int) -> Callable[[PromptSet], Sequence[str]]:
    return lambda prompts: (
        observe(model, prompts, task=task, margins=False, token_budget=token_budget).outcomes
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


def _window(model: Model, flips: PromptSet, task: Task, last: Activations) -> Activations:
    positions = list(task.read_spans)
    if positions == ["last"]:
        return last
    return cache_activations(model, flips, positions=positions)
