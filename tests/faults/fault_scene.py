"""What a bad-input case is, and the untouched world in which it happens."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from io import StringIO
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import torch

import mechmem as mm
from mechmem.analysis import Directions, NeuronScores
from mechmem.cli import main

SITE = ("resid_post", 1)


class Exited(Exception):
    """The command line ended: exit status and stderr."""

    def __init__(self, status: object, stderr: str) -> None:
        super().__init__(stderr)
        self.status = status


@dataclass(frozen=True)
class Fault:
    """One row of docs/faults.csv.

    Attributes:
        does: What somebody does, in words; unique.
        trigger: Does it.
        error: What is raised; ``None`` when it works.
        says: Parts of the message, in order, ``…`` between them. When it works: what happens.
        way_out: The part of the message that says what to do, written the same way.
    """

    does: str
    trigger: Callable[[Scene], Any]
    error: type[BaseException] | None
    says: str
    way_out: str = ""

    @property
    def parts(self) -> list[str]:
        """What the message must hold, whatever the order."""
        both = f"{self.says}…{self.way_out}"
        return [part.strip() for part in both.split("…") if part.strip()]

    @property
    def shown(self) -> str:
        """The class column."""
        if self.error is None:
            return "it works"
        return "exit status 1" if self.error is Exited else f"`{self.error.__name__}`"


class Scene:
    """A folder of its own, and a model, prompts and results that must stay as they are."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self._there: dict[str, bytes] | None = None
        self._fresh: list[tuple[mm.Model, bool]] = []

    def file(self, name: str, content: str | bytes = "") -> Path:
        """A file that lies there before."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        self.settled()
        return path

    def blocked(self) -> Path:
        """A folder that cannot be made, whoever runs this: a file is in its place."""
        return self.file("blocked", "a file") / "inside"

    def settled(self) -> None:
        """What lies in the folder now must lie there afterwards, and nothing else."""
        self._there = self._files()

    def fresh(self, **options: Any) -> mm.Model:
        """A model that the case may do something to; its hooks and mode are looked at as well."""
        made = mm.load_model(helpers.tiny_gpt2(), **{"tokenizer": word_tokenizer(), **options})
        self._fresh.append((made, made.tl.training))
        return made

    model = property(lambda self: world().model)
    prompts = property(lambda self: world().prompts)
    acts = property(lambda self: world().acts)
    scores = property(lambda self: world().scores)
    directions = property(lambda self: world().directions)

    @property
    def direction(self) -> Any:
        """One direction of the shared model."""
        return world().directions[SITE]

    @property
    def others(self) -> mm.PromptSet:
        """Prompts that share no group and no text with the fitted ones."""
        return world().others

    def bent(self, value: float) -> mm.Activations:
        """The shared states with one number replaced."""
        states = {site: state.clone() for site, state in self.acts.states.items()}
        states[mm.Site(*SITE)][0, 0, 0] = value
        return replace(self.acts, states=states)

    def _files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }

    def check_nothing_lost(self) -> None:
        """No hook, no partial file, no changed file."""
        assert self._files() == (self._there or {})
        for model, _ in self._fresh:
            assert not any(point.fwd_hooks for point in model.tl.hook_dict.values())


@dataclass(frozen=True)
class World:
    """What every case shares; a case leaves it as it found it."""

    model: mm.Model
    prompts: mm.PromptSet
    others: mm.PromptSet

    @cached_property
    def acts(self) -> mm.Activations:
        return mm.cache_activations(self.model, self.prompts, sites=["resid_pre", "resid_post"])

    @cached_property
    def scores(self) -> NeuronScores:
        return mm.neuron_mean_difference(self.acts)

    @cached_property
    def directions(self) -> Directions:
        return mm.difference_of_means(self.acts, toward="generalized")

    @cached_property
    def logits(self) -> torch.Tensor:
        return self.model.logits(self.others)


@lru_cache
def world() -> World:
    """Made once."""
    others = helpers.contrast_set(8, seed=77)
    renamed = [replace(p, id=f"o{p.id}", group=f"o{p.group}") for p in others]
    return World(helpers.bench().model, helpers.contrast_set(8), mm.PromptSet(renamed))


@lru_cache
def word_tokenizer() -> Any:
    return helpers.word_tokenizer()


@lru_cache
def other_model() -> mm.Model:
    """Another model of the same sizes."""
    return mm.load_model(helpers.tiny_gpt2(seed=5), tokenizer=word_tokenizer())


@lru_cache
def wide_directions() -> Directions:
    """Directions of width 64: hidden units of the MLP."""
    acts = mm.cache_activations(world().model, world().prompts, sites="mlp_post")
    return mm.difference_of_means(acts, toward="generalized")


@contextmanager
def all_as_before(scene: Scene) -> Iterator[None]:
    """Whatever happens inside, the shared world and the caller's state come out unchanged."""
    here = world()
    _ = here.logits
    tokenizer = repr(here.model.tokens.tokenizer)
    weights, hooks = helpers.weights_of(here.model.tl), helpers.hook_count(here.model)
    prompts = (here.prompts.to_records(), here.others.to_records())
    state = {site: value.clone() for site, value in here.acts.states.items()}
    torch_state, numpy_state, own = torch.get_rng_state(), np.random.get_state(), random.getstate()
    yield
    assert torch.is_grad_enabled()
    assert not here.model.tl.training
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert repr(np.random.get_state()) == repr(numpy_state)
    assert random.getstate() == own
    assert helpers.hook_count(here.model) == hooks
    assert repr(here.model.tokens.tokenizer) == tokenizer
    assert all(torch.equal(v, weights[k]) for k, v in here.model.tl.state_dict().items())
    assert all(p.requires_grad for p in here.model.tl.parameters() if p.is_floating_point())
    assert (here.prompts.to_records(), here.others.to_records()) == prompts
    assert all(torch.equal(value, state[site]) for site, value in here.acts.states.items())
    assert torch.equal(here.model.logits(here.others), here.logits)
    scene.check_nothing_lost()


def command(*arguments: str) -> None:
    """The command line in this process; its end is an `Exited`."""
    out, err, before = StringIO(), StringIO(), sys.argv
    sys.argv = ["mechmem", *arguments]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as end:
        assert "Traceback" not in err.getvalue()
        assert out.getvalue() == ""
        if end.code:
            raise Exited(end.code, err.getvalue()) from None
    finally:
        sys.argv = before
