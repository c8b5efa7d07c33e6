"""Which control changes which part of the page."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dash import Dash, Input, Output, State, ctx, dcc, html, no_update

from mechmem.app import show
from mechmem.app.downloads import saved
from mechmem.app.layout import LATER, SOON, VECTOR_SUFFIXES, WHERE
from mechmem.app.page import PARTS, Page
from mechmem.app.source import Source
from mechmem.app.view import MOST_WORDINGS, POSITIONS, View
from mechmem.errors import MechmemError

VIEW_SETTINGS = ("map", "shown", "strength", "toward", "kind", "site", "positions")
_COUNT = itertools.count(1)


def connect(app: Dash, page: Page) -> None:
    """Register every callback."""
    _gather(app, page)
    _panels(app, page)
    _keep(app, page)


def _gather(app: Dash, page: Page) -> None:
    rows = range(MOST_WORDINGS)

    @app.callback(
        output={
            "view": Output("view", "data"),
            "said": Output("status", "children", allow_duplicate=True),
            "refused": Output("refused", "children"),
            "wordings": [Output(f"wording-{k}", "value") for k in rows],
            "hidden": [Output(f"row-{k}", "hidden") for k in rows],
            "memorized": Output("memorized", "value"),
            "generalized": Output("generalized", "value"),
            "where": Output("positions", "options", allow_duplicate=True),
            "which": Output("shown", "options"),
            "strength": Output("strength-said", "children"),
            "set": {name: Output(name, "value") for name in VIEW_SETTINGS},
            "question": Output("question", "value"),
            "soon": Output("tick", "interval", allow_duplicate=True),
            "beats": [Output(f"{part}-beat", "data", allow_duplicate=True) for part in PARTS],
            "stale": [
                Output(name, "className", allow_duplicate=True) for name in ("map-all", "dose")
            ],
        },
        inputs={
            "ask": Input("ask", "n_clicks"),
            "more": Input("more", "n_clicks"),
            "own": Input("own", "n_clicks"),
            "address": Input("address", "hash"),
            "question": Input("question", "value"),
            "click": Input("map-figure", "clickData"),
            "set_": {name: Input(name, "value") for name in VIEW_SETTINGS},
        },
        state={
            "texts": [State(f"wording-{k}", "value") for k in rows],
            "hidden": [State(f"row-{k}", "hidden") for k in rows],
            "memorized": State("memorized", "value"),
            "generalized": State("generalized", "value"),
            "view": State("view", "data"),
            "theme": State("theme", "data"),
            "known": [State(f"{part}-key", "data") for part in PARTS],
        },
        prevent_initial_call="initial_duplicate",
    )
    def gather(
        ask: Any, more: Any, own: Any, address: Any, question: Any, click: Any, set_: Any,
        texts: Any, hidden: Any, memorized: Any, generalized: Any, view: Any, theme: Any,
        known: Any,
    ) -> Any:  # fmt: skip
        nothing = {
            "view": no_update, "said": no_update, "refused": no_update,
            "wordings": [no_update] * len(rows), "hidden": [no_update] * len(rows),
            "memorized": no_update, "generalized": no_update, "where": no_update,
            "which": no_update, "strength": no_update, "question": no_update,
            "set": dict.fromkeys(VIEW_SETTINGS, no_update), "soon": no_update,
            "beats": [no_update] * len(PARTS), "stale": [no_update] * 2,
        }  # fmt: skip
        linked = str(address or "").startswith("#view=")
        triggers = list(ctx.triggered_prop_ids.values()) or (["address"] if linked else [])
        if not linked:
            triggers = [one for one in triggers if one != "address"]
        if "more" in triggers:
            first = next((k for k in rows if hidden[k]), None)
            return {**nothing, "hidden": [h and k != first for k, h in enumerate(hidden)]}
        if "own" in triggers:
            return {
                **nothing, "wordings": [""] * len(rows), "hidden": [k > 0 for k in rows],
                "memorized": "", "generalized": "", "question": None,
            }  # fmt: skip
        said = {
            **set_, "wordings": texts, "memorized": memorized, "generalized": generalized,
            "question": question, "click": click, "address": address,
        }  # fmt: skip
        try:
            now = new = View.from_dict(view)
            for trigger in triggers:
                if trigger == "ask":
                    page.worker.forget_failures()
                new = step(page.source, new, trigger, said)
        except (MechmemError, KeyError, TypeError, ValueError) as error:
            return {**nothing, "refused": show.visible(error)}
        shows = page.shows(new, theme)
        behind = [shows[part] != old for part, old in zip(PARTS, known, strict=True)]
        if not triggers or (new == now and not any(behind)):
            return {**nothing, "refused": ""}
        out: dict[str, Any] = {
            **nothing, "view": new.as_dict(), "strength": f"{new.strength:g}", "soon": SOON,
            "said": "" if new != now else no_update, "refused": "",
            # the dose waits for the columns, which wake it
            "beats": [
                next(_COUNT) if late and part != "dose" else no_update
                for part, late in zip(PARTS, behind, strict=True)
            ],
            "stale": [
                "stale" if page.key(panel, new) != page.key(panel, now) else no_update
                for panel in ("map", "dose")
            ],
            # a control that is being moved is not told where it is
            "set": {
                name: value if name not in triggers and str(value) != str(set_[name]) else no_update
                for name in VIEW_SETTINGS
                for value in [str(new.shown) if name == "shown" else getattr(new, name)]
            },
        }  # fmt: skip
        if {"address", "question", "ask"} & set(triggers):
            count = max(1, len(new.texts))
            out |= {
                "wordings": [*new.texts, *[""] * (len(rows) - len(new.texts))],
                "hidden": [k >= count for k in rows],
                "memorized": new.memorized, "generalized": new.generalized,
                "where": position_options(page.tokens(new), new),
                "which": [{"value": str(k), "label": f"wording {k + 1}"} for k in range(count)],
            }  # fmt: skip
        return out


def _panels(app: Dash, page: Page) -> None:
    rows = range(MOST_WORDINGS)

    def about(part: str) -> tuple[Any, ...]:
        """What a part is drawn on, and what it knows then."""
        return (
            Input(f"{part}-beat", "data"), Input("theme", "data"), State("view", "data"),
            State("window", "data"), State(f"{part}-key", "data"),
        )  # fmt: skip

    @app.callback(
        [*(Output(f"said-{k}", "children") for k in rows), Output("shares", "children"),
         Output("words-key", "data")],
        *about("words"),
    )  # fmt: skip
    def words(_: Any, theme: str, view: Any, window: str, old: Any) -> Any:
        now = View.from_dict(view)
        key = page.shows(now, theme)["words"]
        if key == old:
            return [no_update] * (len(rows) + 2)
        said, below = page.words(now, window)
        return [*said, below.parts, key if below.settled else "waiting"]

    @app.callback(
        Output("map-figure", "figure"), Output("map-holder", "hidden"),
        Output("map-found", "children"), Output("neurons", "children"),
        Output("map-all", "className"), Output("positions", "options"), Output("map-key", "data"),
        *about("map"),
    )  # fmt: skip
    def where(_: Any, theme: str, view: Any, window: str, old: Any) -> Any:
        now = View.from_dict(view)
        key = page.shows(now, theme)["map"]
        if key == old:
            return [*[no_update] * 4, "", no_update, no_update]
        figure, neurons, below = page.map(now, window, theme)
        if figure is None and not below.settled and old is not None:
            return [*[no_update] * 4, "stale", no_update, "waiting"]
        places = position_options(page.tokens(now), now)
        shown = no_update if figure is None else figure
        known = key if below.settled else "waiting"
        return shown, figure is None, below.parts, neurons, "", places, known

    @app.callback(
        Output("columns", "children"), Output("columns", "className"), Output("lines", "children"),
        Output("turn-key", "data"), *about("turn"),
    )  # fmt: skip
    def turn(_: Any, theme: str, view: Any, window: str, old: Any) -> Any:
        now = View.from_dict(view)
        key = page.shows(now, theme)["turn"]
        if key == old:
            return no_update, "", no_update, no_update
        below, lines = page.turn(now, window)
        if not below.settled and not lines and old is not None:
            return no_update, "stale", no_update, "waiting"
        return below.parts, "", lines or no_update, key if below.settled else "waiting"

    @app.callback(
        Output("dose", "children"), Output("dose", "className"), Output("dose-key", "data"),
        *about("dose"),
    )  # fmt: skip
    def dose(_: Any, theme: str, view: Any, window: str, old: Any) -> Any:
        now = View.from_dict(view)
        key = page.shows(now, theme)["dose"]
        if key == old:
            return no_update, "", no_update
        below = page.dose(now, window, theme)
        if not below.settled and old is not None:
            return no_update, no_update, "waiting"
        return below.parts, "", key if below.settled else "waiting"

    @app.callback(
        Output("status", "children"), Output("tick", "interval"), Output("link", "children"),
        *(Output(f"{part}-beat", "data") for part in PARTS),
        Input("tick", "n_intervals"), Input("stop", "n_clicks"), State("view", "data"),
        State("theme", "data"), State("window", "data"), State("address", "href"),
        State("status", "children"), State("link", "children"),
        *(State(f"{part}-key", "data") for part in PARTS),
    )  # fmt: skip
    def status(
        tick: Any, stop: Any, view: Any, theme: str, window: str, href: Any, said: Any, linked: Any,
        *known: Any,
    ) -> Any:  # fmt: skip
        """Looks at the line for all parts, and wakes those for which there is news."""
        now = View.from_dict(view)
        if ctx.triggered_id == "stop":
            page.worker.stop(window)
        shows = page.shows(now, theme)
        behind = [shows[part] != old for part, old in zip(PARTS, known, strict=True)]
        beats = [
            next(_COUNT) if tick and late and not page.busy(part, now) else no_update
            for part, late in zip(PARTS, behind, strict=True)
        ]
        line = "; ".join(page.status(window)) or "Ready."
        link = str(href or "").partition("#")[0] + now.link()
        return (
            no_update if line == said else line,
            SOON if any(behind) else LATER,
            no_update if link == linked else link,
            *beats,
        )

    if page.source.study is None:
        _menus(app, page)


def _menus(app: Dash, page: Page) -> None:
    """Sites and questions of a model without a study, once directions are fitted."""

    @app.callback(
        Output("site", "options"), Output("site", "value", allow_duplicate=True),
        Output("toward", "options"), Output("toward", "value", allow_duplicate=True),
        Output("question", "options"), Output("question", "value", allow_duplicate=True),
        Output("question-field", "hidden"),
        Input("words-key", "data"), State("site", "value"), State("view", "data"),
        prevent_initial_call=True,
    )  # fmt: skip
    def menus(_: Any, site: Any, view: Any) -> Any:
        source, now = page.source, View.from_dict(view)
        if not source.sites or site:
            return [no_update] * 7
        first = source.first_view()
        groups = source.groups()[:200]
        sites = [{"value": key, "label": key.replace(".", " ")} for key in source.sites]
        question = groups[0] if groups and not now.texts else no_update
        return sites, now.site or first.site, [*source.classes], (
            now.toward if now.toward in source.classes else first.toward
        ), groups, question, not groups  # fmt: skip


def _keep(app: Dash, page: Page) -> None:
    @app.callback(
        Output("download", "data"), Output("saved", "children"),
        Input("save-report", "n_clicks"), Input("save-csv", "n_clicks"),
        *(Input(f"save-vector{k}", "n_clicks") for k in range(len(VECTOR_SUFFIXES))),
        State("view", "data"), State("window", "data"), prevent_initial_call=True,
    )  # fmt: skip
    def save(*given: Any) -> Any:
        view, window = View.from_dict(given[-2]), given[-1]
        try:
            name, packed = saved(page, str(ctx.triggered_id), view, window)
        except MechmemError as error:
            return no_update, show.refusal(str(error))
        note = html.P(f"{name}: {len(packed):,} bytes", className="soft")
        return dcc.send_bytes(packed, name), note


def step(source: Source, view: View, trigger: str, set_: Mapping[str, Any]) -> View:
    """The next view, after something was clicked, chosen or moved.

    Args:
        source: What is open.
        view: The view until now.
        trigger: Which control it was.
        set_: What every control says.

    Raises:
        MechmemError: For a link that is none, or a value that no control has.
    """
    if trigger == "address":
        return source.own(View.from_link(set_["address"]))
    if trigger == "question":
        wordings = source.wordings(set_["question"])
        if not wordings:
            return view
        return replace(
            view,
            texts=tuple(one["text"] for one in wordings),
            memorized=str(wordings[0].get("memorized") or ""),
            generalized=str(wordings[0].get("generalized") or ""),
            shown=0,
        )
    if trigger == "ask":
        texts = [text for text in set_["wordings"] if text]
        return replace(
            view, texts=tuple(texts), memorized=set_["memorized"] or "",
            generalized=set_["generalized"] or "", live=True,
        )  # fmt: skip
    if trigger == "map-figure":
        point = (set_["click"] or {}).get("points", [{}])[0]
        site = str(point.get("y", "")).replace(" ", ".")
        if site not in source.sites and source.sites:
            return view
        return replace(view, site=site, positions=str(int(point["x"])), live=True)
    if trigger == "shown":
        return replace(view, shown=int(set_["shown"] or 0), live=True)
    if trigger == "strength":
        return replace(view, strength=float(set_["strength"] or 0), live=True)
    value = str(set_[trigger] or "")
    return replace(view, **{trigger: value}, live=True)


def position_options(tokens: Sequence[str], view: View) -> list[dict[str, str]]:
    """The words, and every token of the wording that the map is of."""
    places = {name: WHERE[name] for name in POSITIONS}
    places |= {str(k): f"token {k}: {piece}" for k, piece in enumerate(tokens)}
    places.setdefault(view.positions, f"token {view.positions} of the prompt")
    return [{"value": value, "label": label} for value, label in places.items()]
