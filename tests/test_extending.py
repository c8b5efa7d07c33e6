"""A task, an edit, a direction method and a figure from outside, each one class or function."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from torch import Tensor

import mechmem as mm
from mechmem import plotting
from mechmem.analysis.direction_methods import METHODS, Contrast, Fitted, Options, register_method
from mechmem.patching.base import Change, at_random, kept_to, tokens_of
from mechmem.seeding import keyed_rng

README = Path(__file__).resolve().parents[1] / "README.md"


@dataclass(frozen=True)
class Push(mm.Edit):
    """``h + alpha r`` at one site, with its control and its way into files."""

    r: mm.Direction
    toward: str = "generalized"
    alpha: float = 1.5
    force: bool = False

    @property
    def provenance(self):
        return self.r.provenance

    @property
    def where(self):
        return tokens_of("all")

    @property
    def step(self) -> Tensor:
        return self.r.vector * (self.alpha if self.toward == self.r.toward else -self.alpha)

    def changes(self, model: mm.Model) -> dict[mm.Site, Change]:
        where, step = self.where, self.step
        return {self.r.site: lambda h, feed: kept_to(feed, where, h, lambda s: s + step.to(s))}

    def controls(self, model: mm.Model, seed: int) -> dict[str, mm.Edit]:
        drawn = at_random(self.r.vector, keyed_rng(seed, "push"))
        return {"another way": replace(self, r=replace(self.r, vector=drawn))}

    def exported(self, model: mm.Model) -> dict[mm.Site, Tensor]:
        return {self.r.site: self.step}


def median_direction(contrast: Contrast, options: Options) -> Fitted:
    """Difference of the medians, coordinate by coordinate."""
    states, target = contrast.stacked("medians")
    return Fitted(np.median(states[target == 1], 0) - np.median(states[target == 0], 0))


@dataclass(frozen=True)
class Pushed:
    """A result of a plugin's own."""

    rates: mm.Rates


def pushed_shares(result: Pushed | pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """Shares under the push, as dots."""
    frame = result.rates.table() if isinstance(result, Pushed) else result
    fig = go.Figure(go.Scatter(x=frame["share"], y=frame["outcome"], mode="markers"))
    return plotting.house_style(fig, theme, "Pushed")


@pytest.fixture(scope="module")
def outside():
    """What a plugin would do when it is imported."""
    Addition = type(mm.get_task("addition-cued"))

    @mm.register_task
    class Toy(Addition):
        name = "toy-addition"

    register_method("medians")(median_direction)
    plotting.figure_of(Pushed)(pushed_shares)
    yield Toy
    METHODS.pop("medians")
    plotting.FIGURES.pop("pushed_shares")


def test_the_readmes_lines_run_with_them(outside, capsys) -> None:
    text = README.read_text(encoding="utf-8")
    code = re.search(r"## Fifteen lines\n\n```python\n(.*?)```", text, re.S).group(1)
    for old, new in (
        ('mm.get_task("addition-cued")', 'mm.get_task("toy-addition")'),
        ("n=1000", "n=300"),
        (
            'mm.ShiftNeurons(nmd, top=1.0, at=("resid_post", 1), alpha=1.5, toward="generalized")',
            'Push(mm.fit_directions(acts.at("last"), method="medians", toward="generalized")'
            '["resid_post", 1])',
        ),
    ):
        assert old in code
        code = code.replace(old, new)
    names = {"Push": Push}
    exec(compile(code, "README", "exec"), names)
    assert "edit minus another way" in capsys.readouterr().out
    rates = names["rates"]
    fig = plotting.figure(Pushed(rates))
    assert list(fig.data[0].x) == [rates.share(name).value for name in rates.after.allowed]
    assert plotting.figure(rates.table(), "pushed_shares").to_json() == fig.to_json()


def test_they_go_through_sweeps_and_files_like_those_that_ship(outside, tmp_path) -> None:
    model, task = mm.load_model("lab/addition-cued"), mm.get_task("toy-addition")
    train, held, test = task.pairs(n=240, seed=0).split(train=0.5, validation=0.2, test=0.3)
    flips = mm.observe(model, train, task=task).flips()
    acts = mm.cache_activations(model, flips, sites=("resid_post", 1))
    r = mm.fit_directions(acts, method="medians", toward="generalized")["resid_post", 1]
    states = acts["resid_post", 1][:, 0].double().numpy()
    kind = np.array([p.behavior for p in flips])
    axis = np.median(states[kind == "generalized"], 0) - np.median(states[kind == "memorized"], 0)
    assert abs(float(r.unit @ torch.from_numpy(axis / np.linalg.norm(axis)))) > 1 - 1e-9
    found = mm.sweep(model, [Push(r)], task=task, validation=held, test=test, draws=5)
    gap = found.best.beyond("generalized", "another way")
    assert gap.draws == 5
    assert gap.size == pytest.approx(gap.control_size, rel=1e-4)
    written = mm.export_vectors(Push(r), tmp_path / "push.safetensors", model=model)
    back = mm.import_directions(written, model=model, toward="generalized")["resid_post", 1]
    torch.testing.assert_close(back.vector, Push(r).step, rtol=1e-5, atol=1e-6)
    with pytest.raises(mm.EditError, match="Push is not a linear map that weights could express"):
        mm.bake(model, Push(r))
