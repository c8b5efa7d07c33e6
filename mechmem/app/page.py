"""What each part of the page shows for a view: no browser and no callback is needed to call it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from dash import html

from mechmem.app import show
from mechmem.app.source import Source
from mechmem.app.view import DOSED, MOST_WORDINGS, View
from mechmem.app.worker import Job, Worker
from mechmem.style import template

if TYPE_CHECKING:
    from mechmem.app.live import Live

PANELS: Mapping[str, tuple[str, int]] = {
    "ask": ("asking", 0),
    "turn": ("turning", 1),
    "map": ("mapping", 2),
    "cost": ("KL on neutral prompts", 3),
    "beyond": ("draws of the control", 3),
    "everywhere": ("mapping all wordings", 5),
    "dose": ("dose and response", 4),
}
"""What is computed: its name in the line, and who goes first."""

_READS: Mapping[str, tuple[str, ...]] = {
    "ask": (),
    "map": ("shown", "map"),
    "everywhere": ("map",),
    "turn": ("site", "kind", "toward", "strength", "positions"),
    "cost": ("site", "kind", "toward", "strength", "positions"),
    "beyond": ("site", "kind", "toward", "strength", "positions"),
    "dose": ("site", "kind", "toward", "positions"),
}
"""What of a view each reads besides the prompts."""

PARTS: Mapping[str, tuple[str, ...]] = {
    "words": ("ask",),
    "map": ("map", "everywhere"),
    "turn": ("turn", "cost", "beyond"),
    "dose": ("turn", "dose"),
}
"""The parts of the page, and what each of them waits for."""

NEURON_COLUMNS = {
    "rank": "rank of all", "neuron": "neuron", "position": "position", "correlation": "r",
    "mean_difference": "mean difference", "effect_size": "d",
}  # fmt: skip
WAIT = 0.6
"""Seconds that an answer may take before the page says that it waits."""


@dataclass(frozen=True)
class Shown:
    """One part of the page.

    Attributes:
        parts: What stands there.
        settled: False while something is still being computed.
    """

    parts: Any
    settled: bool


class Page:
    """The parts of a page over one source, and the one worker behind them."""

    def __init__(self, source: Source) -> None:
        self.source, self.worker = source, Worker()
        self._live: Live | None = None
        self._loading = threading.Lock()

    def live(self) -> Live:
        """The model, loaded when it is first needed; in the worker's thread."""
        with self._loading:
            if self._live is None:
                from mechmem.app.loading import load_live

                self._live = load_live(self.source)
                self.source.learn(self._live)
            return self._live

    def status(self, window: str) -> list[str]:
        """What this window waits for, in words."""
        lines = self.worker.status(window)
        if lines and self._live is None:
            lines[0] = f"loading {self.source.model_name}, which takes a moment"
        return lines

    def key(self, panel: str, view: View) -> tuple[Any, ...]:
        """What the result of a panel depends on."""
        if view.kind not in DOSED:
            view = replace(view, strength=1.0)  # it has none
        own = (getattr(view, name) for name in _READS[panel])
        return (panel, view.texts, view.memorized, view.generalized, *own)

    def job(self, panel: str, view: View, window: str, wait: float = WAIT) -> Job:
        """The work of a panel, asked for once."""
        name, rank = PANELS[panel]

        def work(check: Callable[[], None]) -> Any:
            live = self.live()
            check()
            return live.under(check, getattr(live, "asked" if panel == "ask" else panel), view)

        return self.worker.ask(
            self.key(panel, view), window, panel, name, work, rank=rank, wait=wait
        )

    def done(self, panel: str, view: View) -> Any:
        """The result of a panel if it is there; it is not asked for."""
        return self.worker.result(self.key(panel, view))

    def shows(self, view: View, theme: str) -> dict[str, str]:
        """What each part of the page is of; as long as this stays, the part may stay."""
        again = self.worker.forgotten
        return {
            "words": repr((view.live, again, self.key("ask", view))),
            "map": repr((view.live, again, theme, view.site, self.key("map", view))),
            "turn": repr((view.live, again, self.key("cost", view))),
            "dose": repr((view.live, again, theme, view.strength, self.key("dose", view))),
        }

    def busy(self, part: str, view: View) -> bool:
        """Whether something that a part waits for is in line or at work."""
        return any(self.worker.busy(self.key(panel, view)) for panel in PARTS[part])

    def words(self, view: View, window: str) -> tuple[list[Any], Shown]:
        """What stands beside every wording, and the shares below them."""
        if not view.live:
            return self._saved_words(view)
        job = self.job("ask", view, window)
        blank: list[Any] = [[] for _ in range(MOST_WORDINGS)]
        if not job.done.is_set():
            return blank, Shown(show.waiting(self.status(window)), False)
        if job.error:
            return blank, Shown(show.refusal(job.error), True)
        seen, words, table = job.value
        row_of = {prompt.text: k for k, prompt in enumerate(seen.prompts)}
        said = [
            show.wording(seen, row_of[text], words) if text in row_of else [] for text in view.texts
        ]
        groups = len(set(seen.prompts.groups))
        about = (
            f"Shares over {show.plural(len(seen), 'wording')} of "
            f"{show.plural(groups, 'question')}, with 95 % intervals over questions; wordings of "
            "one question are not independent."
        )
        counts = [f"{seen.outcomes.count(name)} {name}" for name in seen.allowed]
        said_first = f"Of {show.plural(len(seen), 'wording')}: {', '.join(counts)}."
        found = [html.P(said_first, className="found"), show.shares(table, about)]
        if seen.allowed[-1] in seen.outcomes:
            neither = (
                "what was written begins with neither answer above. Type the two that you expect."
                if seen.reading == "text"
                else "the two answers are about as likely."
            )
            found.insert(1, html.P(f"{seen.allowed[-1]}: {neither}", className="soft"))
        return said + blank[len(said) :], Shown(found, True)

    def _saved_words(self, view: View) -> tuple[list[Any], Shown]:
        rows = self.source.saved_rows(view.texts)
        said = [
            show.saved_wording(rows.loc[text], self.source.classes) if text in rows.index else []
            for text in view.texts
        ]
        note = html.P(
            "These are the study's own results; the model is not loaded yet. Ask it, or change "
            "anything, and it is.",
            className="soft",
        )
        return said + [[]] * (MOST_WORDINGS - len(said)), Shown(note, True)

    def map(self, view: View, window: str, theme: str) -> tuple[go.Figure | None, Any, Shown]:
        """The map of one wording, the neurons of the site, and what the map says in words."""
        if not view.live:
            return None, [], self._saved_figure("separation", theme)
        if not view.texts:
            return None, [], Shown([], True)
        job = self.job("map", view, window)
        if not job.done.is_set():
            return None, [], Shown(show.waiting(self.status(window)), False)
        if job.error:
            return None, [], self._refused(job.error, "ask", view)
        found, neurons = job.value, self.live().neurons(view)
        from mechmem import plotting

        figure = plotting.token_map(found, theme=theme)
        beside: Any = []
        if not neurons.empty:
            site = view.site.replace(".", " ")
            scores = self.live().scores
            total = scores.total if scores is not None else 0
            beside = show.table(
                neurons,
                f"Whatever the wording: neurons of {site} that differ most between the classes, "
                f"ranked by |r| among all {total} of every site that were scored. A difference is "
                "not yet a cause.",
                NEURON_COLUMNS,
            )
        there = len(view.texts) < 2 or self.job("everywhere", view, window, wait=0.0).done.is_set()
        first, *more = self.map_found(view)
        said = [html.P(first, className="found"), *map(html.P, more)]
        return figure, beside, Shown(said, there)

    def map_found(self, view: View) -> list[str]:
        """What the map of one wording says, and those of all."""
        mapped, asked = self.done("map", view), self.done("ask", view)
        if mapped is None:
            return []
        outcome = asked[0].outcomes[min(view.shown, len(asked[0]) - 1)] if asked else None
        everywhere = self.done("everywhere", view) if len(view.texts) > 1 else None
        more = [] if everywhere is None else [show.everywhere_words(everywhere)]
        return [show.map_words(mapped, outcome), *more]

    def _refused(self, error: str, before: str, view: View) -> Shown:
        """A refusal in its own words, once on the page."""
        said = self.worker.error(self.key(before, view)) == error
        return Shown([] if said else show.refusal(error), True)

    def tokens(self, view: View) -> list[str]:
        """The tokens of the wording that the map is of, once it is there."""
        found = self.done("map", view)
        if found is None:
            return []
        pieces = found.rows.drop_duplicates("position").sort_values("position")["token"]
        return [show.visible(piece) for piece in pieces]

    def turn(self, view: View, window: str) -> tuple[Shown, str]:
        """The three columns, and the Python that gives them."""
        if not view.live:
            note = "Move anything here and the model is loaded."
            return Shown(html.P(note, className="soft"), True), "# nothing has been asked yet"
        if not view.texts:
            return Shown([], True), "# nothing has been asked yet"
        job = self.job("turn", view, window)
        if not job.done.is_set():
            return Shown(show.waiting(self.status(window)), False), ""
        if job.error:
            return self._refused(job.error, "ask", view), "# refused, see above"
        later = [self.job(name, view, window, wait=0.0) for name in ("cost", "beyond")]
        parts = [show.columns(job.value, self.done("cost", view), self.turn_found(view))]
        parts += [show.refusal(one.error) for one in later if one.error]
        return Shown(parts, all(one.done.is_set() for one in later)), job.value.lines

    def turn_found(self, view: View) -> str:
        """Whether the push did more than its control, and what both of them changed."""
        turned = self.done("turn", view)
        if turned is None:
            return ""
        sides, aim = turned.before.behaviors, None
        if view.kind in DOSED and view.strength and view.toward:
            # What is shown are answers: a class of questions goes by the answer of its side.
            aim = sides[(view.toward == self.source.classes[0]) != (view.strength > 0)]
        beyond = show.beyond_words(self.done("beyond", view), sides, aim)
        return f"{beyond} {show.moved_words(turned, aim)}".strip()

    def dose(self, view: View, window: str, theme: str) -> Shown:
        """The dose-response with the control's band."""
        if not view.live:
            return self._saved_figure("dose_response", theme)
        if view.kind not in DOSED:
            return Shown(html.P("This kind of edit has no strength.", className="soft"), True)
        if not view.texts:
            return Shown([], True)
        if not self.job("turn", view, window, wait=0.0).done.is_set():
            return Shown([], False)  # first the three columns
        job = self.job("dose", view, window, wait=0.0)
        if not job.done.is_set():
            return Shown(show.waiting(self.status(window)), False)
        if job.error:
            return self._refused(job.error, "turn", view)
        if job.value["margin"].isna().all():
            return Shown(html.P("no margin: two answers are needed", className="soft"), True)
        figure = show.dose(job.value, view.strength, self.source.classes, view.toward, theme)
        return Shown(show.graph(figure, "dose-figure", "Margin against strength"), True)

    def _saved_figure(self, name: str, theme: str) -> Shown:
        """A figure that the study saved, in this theme."""
        if name not in self._figures:
            return Shown(html.P("The study has no figure for this.", className="soft"), True)
        figure = go.Figure(self._figures[name]).update_layout(template=template(theme))
        note = html.P("From the study, over all its test prompts:", className="soft")
        return Shown([note, show.graph(figure, f"saved-{name}", name)], True)

    @cached_property
    def _figures(self) -> dict[str, go.Figure]:
        return {} if self.source.study is None else self.source.study.figures()
