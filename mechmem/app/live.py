"""What needs the model: every number of the page, and the lines of Python that give the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from mechmem.analysis import Directions, InputWords, NeuronScores, fit_input_words
from mechmem.app.lines import Call, call, python
from mechmem.app.stopping import go_on, watched
from mechmem.app.view import DOSED, View, at_last
from mechmem.errors import EditError, PromptError, TaskError
from mechmem.evaluation import (
    Observations,
    TokenMap,
    evaluate_each,
    margin_map,
    observe,
    projection_map,
    side_effects,
)
from mechmem.evaluation.behavior import reader_for
from mechmem.evaluation.controls import control_draws
from mechmem.evaluation.rates import Rates, refuse_seen
from mechmem.models import Model, Site
from mechmem.patching import Edit, EditReport, patched
from mechmem.patching.margins import answer_ids
from mechmem.tasks import Choice, Prompt, PromptSet, Task

CONTROL_DRAWS = 10
"""Draws of the control in the dose-response; the first one is the control column."""
JUDGED_BY = 39
"""Draws at the strength that is set: one more would lie beyond all of them, on a side named
beforehand, once in 40 times."""
DOSES = tuple(float(x) for x in np.linspace(-3, 3, 13))
NEUTRAL = (
    "The weather this morning was",
    "She opened the door and",
    "In the last ten years the city has",
    "For breakfast they had bread and",
    "The train to the coast leaves at",
    "He put the book back on the",
    "Most of the people in the room were",
    "The river runs past the old",
)
"""Read where a task has no ordinary items of its own."""
KEPT_QUESTIONS = 30
"""Questions whose unedited answers are kept."""
_OWN = "mm.tasks.PromptAnswers({kind!r})\ntask.max_new_tokens = {n}"
NEURON_SHARE = 0.2
"""Share of the site's neurons that are shifted."""


@dataclass(frozen=True)
class Turned:
    """The three columns.

    Attributes:
        before, edit, control: What was observed.
        reports: Where edit and control fired.
        name: Which control.
        lines: The Python that gives the same.
    """

    before: Observations
    edit: Observations
    control: Observations
    reports: tuple[EditReport, EditReport]
    name: str
    lines: str


class Live:
    """A model with what was fitted on it.

    Args:
        model: The unedited model.
        task: Reads completions; ``None`` for the prompts' own answers.
        directions, scores: What edits are made of; ``None`` where nothing was fitted.
        flips: What the input-words baseline is fitted on.
        known: Prompts of the study's test part; a wording equal to one of them is that prompt.
        head: The first lines of the Python that is shown.
        reading: How the prompts' own answers are read; default as text.
        lacking: Why there are no directions, where there are none.
    """

    def __init__(
        self,
        model: Model,
        task: Task | None,
        directions: Directions | None,
        scores: NeuronScores | None,
        flips: PromptSet | None,
        known: PromptSet | None,
        head: Mapping[str, str],
        reading: str | Choice | None = None,
        lacking: str = "none was fitted here",
    ) -> None:
        self.model, self.task = watched(model), task
        self.directions, self.scores, self.flips = directions, scores, flips
        self.known = {prompt.text: prompt for prompt in known or ()}
        self.chat = next((prompt.chat for prompt in self.known.values()), None)
        self.head, self.reading, self.lacking = dict(head), reading, lacking
        self._seen: dict[tuple[Any, ...], Observations] = {}

    def under(self, check: Callable[[], None], work: Callable[[View], Any], view: View) -> Any:
        """Do one piece of work that ``check`` may end by raising."""
        backend: Any = self.model.backend
        backend.check = check
        try:
            return work(view)
        finally:
            backend.check = go_on

    def prompts(self, view: View) -> PromptSet:
        """The wordings as prompts. All typed ones are one group: they ask one question."""
        if not view.texts:
            raise PromptError("There is no prompt yet: type one, or choose one of the study.")
        made = []
        answers = (view.memorized or None, view.generalized or None)
        first = self.known.get(view.texts[0])
        # The two fields show the first wording's answers; where they do, each keeps its own.
        own = first is not None and (first.memorized, first.generalized) == answers
        for k, text in enumerate(view.texts):
            one = self.known.get(text)
            if one is None or not (own or (one.memorized, one.generalized) == answers):
                one = Prompt(
                    f"typed {k + 1}", text, group="typed", memorized=answers[0],
                    generalized=answers[1], answer=None if one is None else one.answer,
                    chat=self.chat,
                )  # fmt: skip
            made.append(one)
        return PromptSet(made)

    def reader(self, prompts: PromptSet) -> Task:
        """What reads the answers. Without a task it reads on for no longer than a typed answer
        takes, and two tokens that show where it ends."""
        reader = reader_for(prompts, self.task, self.reading)
        if self.task is None and reader.outcomes[:2] == reader.behaviors:
            sides = answer_ids(self.model, self.model.encode(prompts), reader)
            reader.max_new_tokens = 2 + max(len(ids) for side in sides for ids in side)
        return reader

    def ask(self, view: View) -> Observations:
        """What the unedited model does on every wording; asked once."""
        key = (view.texts, view.memorized, view.generalized)
        if key not in self._seen:
            prompts = self.prompts(view)
            self._seen[key] = observe(self.model, prompts, task=self.reader(prompts))
            if len(self._seen) > KEPT_QUESTIONS:
                del self._seen[next(iter(self._seen))]
        return self._seen[key]

    def asked(self, view: View) -> tuple[Observations, pd.DataFrame | None, pd.DataFrame]:
        """The same with what the input words alone would predict, and the shares."""
        seen = self.ask(view)
        return seen, self.words(seen.prompts), Rates(seen).table()

    def words(self, prompts: PromptSet) -> pd.DataFrame | None:
        """What the input words alone would have predicted; ``None`` where nothing was fitted."""
        if self._input_words is None:
            return None
        return self._input_words.predict(self.model, prompts)

    @cached_property
    def _input_words(self) -> InputWords | None:
        if self.flips is None or not len(self.flips):
            return None
        by = "behavior" if any(p.behavior for p in self.flips) else "label"
        return fit_input_words(self.model, self.flips, by=by)

    def map(self, view: View) -> TokenMap:
        """The map of one wording."""
        prompts = self.prompts(view)
        return self._map(view, prompts[min(view.shown, len(prompts) - 1)])

    def _map(self, view: View, prompt: Prompt) -> TokenMap:
        one = PromptSet([prompt])
        if view.map == "margin":
            return margin_map(self.model, one, task=self.task)
        return projection_map(self.model, self.fitted("A projection"), one)

    def everywhere(self, view: View) -> pd.DataFrame:
        """In how many wordings the map's last token lies beyond random directions, per site."""
        out = [at_last(self._map(view, one).rows) for one in self.prompts(view)]
        rows = pd.concat([rows.assign(wordings=len(out)) for rows in out])
        found = rows.groupby(["stream", "layer"], as_index=False, sort=False)
        return found.agg(beyond=("beyond", "sum"), wordings=("wordings", "first"))

    def neurons(self, view: View, most: int = 10) -> pd.DataFrame:
        """The neurons of the chosen site, best first, with their ranks among all scored."""
        if self.scores is None or not view.site:
            return pd.DataFrame()
        table = self.scores.table()
        table["rank"] = table["correlation"].abs().rank(ascending=False, method="min").astype(int)
        site = Site.from_key(view.site)
        mine = table[(table["stream"] == site.stream) & (table["layer"] == site.layer)]
        columns = ["rank", "neuron", "position", "correlation", "mean_difference", "effect_size"]
        return mine.sort_values("rank").head(most)[columns]

    def edit(self, view: View) -> tuple[Edit, str]:
        """The edit that is set, and the line of Python that makes it."""
        r = self.fitted("An edit")
        site = Site.from_key(view.site) if view.site else r.sites[len(r.sites) // 2]
        aimed = {"toward": view.toward or r[site].toward}
        dosed = {"alpha": view.strength, **aimed}
        where = {"positions": view.where}
        away = {r[site].toward: r[site].away, r[site].away: r[site].toward}
        vector = Call(f"r[{site.stream!r}, {site.layer}]", r[site])
        if view.kind == "add where":
            inner = call("AddDirection", vector, **dosed, **where)
            made = call("OnlyWhere", inner, gate=vector, when=away.get(aimed["toward"], ""))
        elif view.kind == "neurons":
            if self.scores is None:
                raise EditError("No neurons were scored in this study; add the direction instead.")
            held = Call("scores", self.scores)
            made = call("ShiftNeurons", held, top=NEURON_SHARE, **dosed, at=[tuple(site)], **where)
        elif view.kind == "add":
            made = call("AddDirection", vector, **dosed, **where)
        elif view.kind == "set":
            made = call("SetProjection", vector, **aimed, **where)
        else:
            made = call("ProjectOut", vector, **where)
        assert isinstance(made.value, Edit)
        return made.value, made.text

    def control(self, view: View) -> str:
        """The strictest control of this edit."""
        edit, _ = self.edit(view)
        names = [name for name in edit.controls(self.model, 0) if name != "alpha 0"]
        if not names:
            raise EditError("This edit has no control of the same size here; choose another kind.")
        return min(names, key=lambda name: not name.startswith("covariance"))

    def turn(self, view: View) -> Turned:
        """Unedited, edited, and under a control of the same size, on the same wordings."""
        prompts, (edit, line), name = self.prompts(view), self.edit(view), self.control(view)
        reader, model = self.reader(prompts), self.model
        refuse_seen(edit, model.encode(prompts), "evaluate an edit")
        before = self.ask(view)
        seen, reports = [], []
        for one in (edit, edit.controls(self.model, 0)[name]):
            with patched(model, one) as view_of:
                seen.append(observe(view_of, prompts, task=reader))
                reports.append(view_of.edit_report())
        lines = self.lines(view, line, name)
        return Turned(before, seen[0], seen[1], (reports[0], reports[1]), name, lines)

    def cost(self, view: View) -> pd.DataFrame:
        """KL on neutral prompts, in nats per token, under the edit and its control."""
        edit, _ = self.edit(view)
        found = side_effects(
            self.model, edit, clean=self.neutral, toward=[edit_toward(edit)],
            control=self.control(view), draws=CONTROL_DRAWS,
        )  # fmt: skip
        table = found.table()
        return table[table["measure"] == "kl"]

    @cached_property
    def neutral(self) -> PromptSet:
        """Prompts that the edit is not about."""
        try:
            found = self.task.clean_prompts(16, 0) if self.task is not None else None
        except TaskError:
            found = None
        if found is None:
            return PromptSet(Prompt(f"neutral {k}", text) for k, text in enumerate(NEUTRAL))
        return PromptSet(replace(prompt, answer=None) for prompt in found)

    def dose(self, view: View) -> pd.DataFrame:
        """`beyond` at all strengths."""
        if view.kind not in DOSED:
            raise EditError(f"To {view.kind} has no strength, so there is no dose to respond to.")
        return self._beside(view, DOSES, CONTROL_DRAWS)

    def beyond(self, view: View) -> pd.DataFrame:
        """Margin and shares under the edit, beside all draws of its control.

        Columns: ``strength, kind, margin, margin_low, margin_high`` (the control's: over its draws
        and wordings, middle 95 % of its draws), ``margin_least, margin_most`` of its draws,
        ``share`` of the class steered to, ``draws``.
        """
        return self._beside(view, (view.strength,), JUDGED_BY)

    def _beside(self, view: View, doses: Sequence[float], draws: int) -> pd.DataFrame:
        prompts, name = self.prompts(view), self.control(view)
        reader, model = self.reader(prompts), self.model
        edits: list[Edit] = []
        for strength in doses:
            aimed, _ = self.edit(replace(view, strength=strength))
            edits += [aimed, *control_draws(aimed, self.model, draws=draws)[name]]
        done = evaluate_each(model, prompts, edits, task=reader, before=self.ask(view))
        rows: list[dict[str, Any]] = []
        each = len(edits) // len(doses)
        for k, strength in enumerate(doses):
            seen = [one.after for one in done[k * each : (k + 1) * each]]
            for kind, some in (("edit", seen[:1]), ("control", seen[1:])):
                rows.append({"strength": strength, "kind": kind, **_over(some, view.toward)})
        return pd.DataFrame(rows).assign(control=name, wordings=len(prompts))

    def lines(self, view: View, edit: str, control: str) -> str:
        """Python that gives the three columns."""
        prompts, head = self.prompts(view), dict(self.head)
        if self.task is None:
            reader: Any = self.reader(prompts)
            head["task"] = _OWN.format(kind=reader.kind, n=reader.max_new_tokens)
            if reader.choice is not None:
                head["task"] += f"\ntask = mm.tasks.with_reading(task, mm.{reader.choice!r})"
        return python(head, prompts, edit, control)

    def fitted(self, what: str) -> Directions:
        if self.directions is None:
            raise EditError(
                f"{what} needs a direction, and {self.lacking}. Open a saved study (mechmem study "
                "... --out FOLDER, mechmem open FOLDER), or give another --task, on which one is "
                "fitted."
            )
        return self.directions


def edit_toward(edit: Any) -> str:
    """The class that an edit is steered to; empty for one that is not."""
    inner = getattr(edit, "edit", edit)
    return str(getattr(inner, "toward", "") or "")


def _over(some: list[Observations], toward: str) -> dict[str, float]:
    """Mean margin of the wordings under an edit, or under several draws with their spread."""
    margins = np.stack([one.margins for one in some]).mean(1)
    shares = [
        one.outcomes.count(toward) / len(one) if toward in one.allowed else float("nan")
        for one in some
    ]
    low, high = (float(x) for x in np.quantile(margins, (0.025, 0.975)))
    return {
        "margin": float(margins.mean()), "margin_low": low, "margin_high": high,
        "margin_least": float(margins.min()), "margin_most": float(margins.max()),
        "share": float(np.mean(shares)), "draws": len(some),
    }  # fmt: skip
