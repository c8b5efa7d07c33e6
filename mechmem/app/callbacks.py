"""Which control changes which part of the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dash import Dash, Input, Output, State, ctx, dcc, html, no_update

from mechmem.app import show
from mechmem.app.keep import saved
from mechmem.app.layout import SUFFIXES, WHERE
from mechmem.app.page import Page
from mechmem.app.source import Source
from mechmem.app.view import MOST_WORDINGS, POSITIONS, View
from mechmem.errors import MechmemError

__all__ = ["connect", "step"]

SETTINGS = ("map", "shown", "strength", "toward", "kind", "site", "positions", "control")


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
            "wordings": [Output(f"wording-{k}", "value") for k in rows],
            "hidden": [Output(f"row-{k}", "hidden") for k in rows],
            "memorized": Output("memorized", "value"),
            "generalized": Output("generalized", "value"),
            "where": Output("positions", "options"),
            "which": Output("shown", "options"),
            "strength": Output("strength-said", "children"),
            "set": {name: Output(name, "value") for name in SETTINGS},
        },
        inputs={
            "ask": Input("ask", "n_clicks"),
            "more": Input("more", "n_clicks"),
            "address": Input("address", "hash"),
            "question": Input("question", "value" if page.source.groups() else "data"),
            "click": Input("map-figure", "clickData"),
            "set_": {name: Input(name, "value") for name in SETTINGS},
        },
        state={
            "texts": [State(f"wording-{k}", "value") for k in rows],
            "hidden": [State(f"row-{k}", "hidden") for k in rows],
            "memorized": State("memorized", "value"),
            "generalized": State("generalized", "value"),
            "view": State("view", "data"),
        },
        prevent_initial_call="initial_duplicate",
    )
    def gather(
        ask: Any, more: Any, address: Any, question: Any, click: Any, set_: Any, texts: Any,
        hidden: Any, memorized: Any, generalized: Any, view: Any,
    ) -> Any:  # fmt: skip
        trigger = ctx.triggered_id
        if trigger is None and str(address or "").startswith("#view="):
            trigger = "address"
        nothing = {
            "view": no_update, "said": no_update, "wordings": [no_update] * len(rows),
            "hidden": [no_update] * len(rows), "memorized": no_update, "generalized": no_update,
            "where": no_update, "which": no_update, "strength": no_update,
            "set": dict.fromkeys(SETTINGS, no_update),
        }  # fmt: skip
        if trigger is None or (trigger == "address" and not str(address).startswith("#view=")):
            return nothing
        if trigger == "more":
            first = next((k for k in rows if hidden[k]), None)
            return {**nothing, "hidden": [h and k != first for k, h in enumerate(hidden)]}
        said = {
            **set_, "wordings": texts, "memorized": memorized, "generalized": generalized,
            "question": question, "click": click, "address": address,
        }  # fmt: skip
        try:
            now = View.from_dict(view)
            if trigger == "ask":
                page.worker.forget_failures()
            new = step(page.source, now, trigger, said)
        except (MechmemError, KeyError, TypeError, ValueError) as error:
            return {**nothing, "said": show.visible(error)}
        if new == now:
            return nothing
        filled = trigger in ("address", "question", "ask")
        padded = [*new.texts, *[""] * (len(rows) - len(new.texts))]
        return {
            "view": new.as_dict(),
            "said": "",
            "wordings": padded if filled else [no_update] * len(rows),
            "hidden": [k >= max(1, len(new.texts)) for k in rows]
            if filled
            else [no_update] * len(rows),
            "memorized": new.memorized if filled else no_update,
            "generalized": new.generalized if filled else no_update,
            "where": position_options(new, WHERE),
            "strength": f"{new.strength:g}",
            "which": [
                {"value": str(k), "label": f"wording {k + 1}"}
                for k in range(max(1, len(new.texts)))
            ],
            "set": {name: getattr(new, name) for name in SETTINGS} | {"shown": str(new.shown)},
        }


def _panels(app: Dash, page: Page) -> None:
    rows = range(MOST_WORDINGS)
    often = (Input("view", "data"), Input("tick", "n_intervals"))

    def settled(key: Any, old: Any) -> bool:
        """Whether a tick has nothing new to tell."""
        return bool(ctx.triggered_id == "tick" and key == old)

    @app.callback(
        [*(Output(f"said-{k}", "children") for k in rows), Output("shares", "children"),
         Output("words-key", "data")],
        *often, State("window", "data"), State("words-key", "data"),
    )  # fmt: skip
    def words(view: Any, _: Any, window: str, old: Any) -> Any:
        now = View.from_dict(view)
        key = repr((now.live, page.key("ask", now)))
        if settled(key, old):
            return [no_update] * (len(rows) + 2)
        said, below = page.words(now, window)
        return [*said, below.parts, key if below.settled else None]

    @app.callback(
        Output("map-figure", "figure"), Output("map-holder", "hidden"),
        Output("map-found", "children"), Output("neurons", "children"), Output("map-key", "data"),
        *often, Input("theme", "data"), State("window", "data"), State("map-key", "data"),
    )  # fmt: skip
    def where(view: Any, _: Any, theme: str, window: str, old: Any) -> Any:
        now = View.from_dict(view)
        key = repr((now.live, now.site, theme, page.key("map", now)))
        if settled(key, old):
            return [no_update] * 5
        figure, neurons, below = page.map(now, window, theme)
        if not below.settled and old:
            return [no_update] * 4 + [None]
        shown = no_update if figure is None else figure
        return shown, figure is None, below.parts, neurons, key if below.settled else None

    @app.callback(
        Output("columns", "children"), Output("columns", "className"), Output("lines", "children"),
        Output("turn-key", "data"), *often, State("window", "data"), State("turn-key", "data"),
    )  # fmt: skip
    def turn(view: Any, _: Any, window: str, old: Any) -> Any:
        now = View.from_dict(view)
        key = repr((now.live, page.key("cost", now)))
        if settled(key, old):
            return [no_update] * 4
        below, lines = page.turn(now, window)
        if not below.settled and not lines and old is not None:
            return no_update, "stale", no_update, "waiting"
        return below.parts, "", lines or no_update, key if below.settled else "waiting"

    @app.callback(
        Output("dose", "children"), Output("dose-key", "data"), *often, Input("theme", "data"),
        State("window", "data"), State("dose-key", "data"),
    )  # fmt: skip
    def dose(view: Any, _: Any, theme: str, window: str, old: Any) -> Any:
        now = View.from_dict(view)
        key = repr((now.live, now.strength, theme, page.key("dose", now)))
        if settled(key, old):
            return no_update, no_update
        below = page.dose(now, window, theme)
        if not below.settled and old is not None:
            return no_update, "waiting"
        return below.parts, key if below.settled else "waiting"

    @app.callback(
        Output("status", "children"), Output("tick", "disabled"), Output("link", "children"),
        *often, Input("stop", "n_clicks"), State("window", "data"), State("address", "href"),
        *(State(f"{name}-key", "data") for name in ("words", "map", "turn", "dose")),
    )  # fmt: skip
    def status(view: Any, _: Any, stop: Any, window: str, href: Any, *keys: Any) -> Any:
        if ctx.triggered_id == "stop":
            page.worker.stop(window)
        waits = page.status(window)
        open_ = bool(waits) or any(key in (None, "waiting") for key in keys)
        link = str(href or "").partition("#")[0] + View.from_dict(view).link()
        idle = ctx.triggered_id == "tick" and not open_
        return "; ".join(waits) or "Ready.", idle, link


def _keep(app: Dash, page: Page) -> None:
    @app.callback(
        Output("download", "data"), Output("saved", "children"),
        Input("save-report", "n_clicks"), Input("save-csv", "n_clicks"),
        *(Input(f"save-vector{k}", "n_clicks") for k in range(len(SUFFIXES))),
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
        return View.from_link(set_["address"])
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


def position_options(view: View, where: Mapping[str, str]) -> list[dict[str, str]]:
    """The words, and the token that was clicked."""
    known = [{"value": name, "label": where[name]} for name in POSITIONS]
    if view.positions in POSITIONS:
        return known
    return [*known, {"value": view.positions, "label": f"token {view.positions} of the prompt"}]
