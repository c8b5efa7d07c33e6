"""The page before anything is computed."""

from __future__ import annotations

import secrets
from typing import Any

from dash import dcc, html

from mechmem.app.page import PARTS
from mechmem.app.show import visible
from mechmem.app.source import Source
from mechmem.app.view import EDITS, MOST_WORDINGS, POSITIONS, View
from mechmem.style import TOOLBAR

TITLE = "Is it remembering or thinking?"
WHERE = {
    "each_step": "last token and new ones",
    "last": "last prompt token",
    "prompt": "the whole prompt",
    "all": "every token",
}
SOON, LATER = 400, 2000
"""Milliseconds between two looks at the line, while something is awaited and while nothing is."""
VECTOR_SUFFIXES = (".gguf", ".pt", ".safetensors")
"""Those of `mechmem.patching.exporting`, which would load torch before the page is drawn."""


def layout(source: Source) -> Any:
    """The whole page; every window gets a name of its own, by which its work is known."""
    view = source.first_view()
    return html.Div(
        [
            dcc.Location(id="address", refresh=False),
            dcc.Store(id="window", data=secrets.token_hex(8)),
            dcc.Store(id="view", data=view.as_dict()),
            dcc.Store(id="theme", data="light"),
            *(dcc.Store(id=f"{name}-{kind}") for name in PARTS for kind in ("key", "beat")),
            dcc.Interval(id="tick", interval=SOON),
            dcc.Download(id="download"),
            html.A("Skip to the prompt", href="#ask-part", className="skip"),
            _top(source),
            html.Main(
                [_ask(source, view), _where(source, view), _turn(source, view), _keep()],
                id="main",
            ),
            html.Div(
                [
                    html.Span(id="status", role="status"),
                    html.Span(id="refused", role="alert"),
                    html.Button("Stop", id="stop", className="plain"),
                ],
                id="bar",
            ),
        ]
    )


def _top(source: Source) -> Any:
    study = source.study
    about = f"Model {visible(source.model_name)}"
    if study is not None:
        about += f", task {visible(study.task)}, seed {study.seed}"
    planted = source.card.get("planted")
    parts: list[Any] = [html.P(source.verdict, className="verdict")]
    if planted:
        parts.append(
            html.P(
                "Planted mode: this model was trained on purpose to do both, with a reason to "
                "switch between them."
            )
        )
    limits = html.Ul([html.Li(visible(line)) for line in source.limits])
    parts.append(html.Details([html.Summary("What this does not show"), limits], open=True))
    return html.Header(
        [
            html.P(about, className="kicker"),
            html.H1(TITLE),
            html.Div(parts, className="answer"),
        ]
    )


def typed(name: str, label: str, value: str) -> Any:
    """A line to type, under its name."""
    line = dcc.Input(id=name, value=value, type="text", autoComplete="off", spellCheck=False)
    return html.Div([html.Label(label, htmlFor=name), line], className="field")


def choices(name: str, label: str, options: dict[str, str], value: str) -> Any:
    """One of a few, as buttons that the arrow keys walk."""
    return html.Fieldset(
        [
            html.Legend(label),
            dcc.RadioItems(
                id=name, options=[{"value": k, "label": v} for k, v in options.items()], value=value
            ),
        ]
    )


def pick(
    name: str, label: str, options: dict[str, str], value: str | None, hidden: bool = False
) -> Any:
    """One of many."""
    return html.Div(
        [
            html.Label(label, htmlFor=name, id=f"{name}-label"),
            dcc.Dropdown(
                id=name, options=[{"value": k, "label": v} for k, v in options.items()],
                value=value, clearable=False, searchable=len(options) > 12,
                placeholder="my own prompt" if name == "question" else None,
            ),
        ],
        className="field", id=f"{name}-field", hidden=hidden,
    )  # fmt: skip


def _section(name: str, title: str, about: str, *parts: Any) -> Any:
    return html.Section(
        [html.H2(title, id=f"h-{name}"), html.P(about, className="soft"), *parts],
        id=f"{name}-part",
        **{"aria-labelledby": f"h-{name}"},
    )


def _ask(source: Source, view: View) -> Any:
    first, second = source.classes
    groups = source.groups()[:200]
    rows = [
        html.Div(
            [
                html.Div(
                    [
                        html.Label(f"Wording {k + 1}", htmlFor=f"wording-{k}"),
                        dcc.Textarea(
                            id=f"wording-{k}", value=view.texts[k] if k < len(view.texts) else "",
                            rows=2, spellCheck=False,
                        ),
                    ]
                ),
                html.Div(id=f"said-{k}", className="said"),
            ],
            id=f"row-{k}",
            className="row",
            hidden=k >= max(1, len(view.texts)),
        )
        for k in range(MOST_WORDINGS)
    ]  # fmt: skip
    return _section(
        "ask",
        "Remembering or thinking?",
        "Ask one question in up to eight wordings. The answer tells which the model did; the "
        "margin is how much likelier it finds one of the two answers than the other (log "
        "probability, in nats): near 0 it hangs in the balance.",
        html.Div(
            [
                pick(
                    "question",
                    "Question of the study" if source.study else "Question of the task",
                    {g: g for g in groups},
                    groups[0] if groups else None,
                    not groups,
                ),
                typed("memorized", f"Answer that is {first}", view.memorized),
                typed("generalized", f"Answer that is {second}", view.generalized),
            ],
            className="fields",
        ),
        html.Div(rows, className="rows"),
        html.Div(
            [
                html.Button("Ask the model", id="ask", className="main"),
                html.Button("One wording more", id="more", className="plain"),
                html.Button("My own prompt", id="own", className="plain"),
                html.Span("Ctrl+Enter asks, too.", className="soft"),
            ],
            className="buttons",
        ),
        html.Div(id="shares", role="status"),
    )


def _where(source: Source, view: View) -> Any:
    which = {str(k): f"wording {k + 1}" for k in range(max(1, len(view.texts)))}
    shown = {
        "projection": "projection on the direction between the classes",
        "margin": "margin of the two answers after each layer",
    }
    return _section(
        "where",
        "Where?",
        "Each cell is one token's state after one layer; blank ones lie no farther out than along "
        "random directions. The direction was fitted at the last prompt token: read the last "
        "column first. A click chooses the site and the position for the push below.",
        html.Div(
            [choices("map", "The map shows", shown, view.map), pick("shown", "Of", which, "0")],
            className="fields",
        ),
        html.Div(
            [
                html.Div(id="map-found", role="status"),
                html.Div(
                    dcc.Graph(id="map-figure", responsive=True, config=TOOLBAR),
                    id="map-holder",
                    hidden=True,
                    role="figure",
                    **{"aria-label": "Map of layers and tokens"},
                ),
                html.Div(id="neurons"),
            ],
            id="map-all",
        ),
    )


def _turn(source: Source, view: View) -> Any:
    first, second = source.classes
    sites = {key: key.replace(".", " ") for key in source.sites} or {"": "no direction yet"}
    return _section(
        "turn",
        "Turn it",
        "Push the state and see whether the answer turns, beside a control: a push of the same "
        "size in a direction that was not fitted to the two classes. What goes no further than the "
        "control is no effect; whether what goes further is one, only a study's refits test.",
        html.Div(
            [
                html.Div(
                    [
                        html.Label(
                            [
                                "Strength, in distances between the classes: ",
                                html.B(f"{view.strength:g}", id="strength-said"),
                            ],
                            htmlFor="strength",
                        ),
                        dcc.Input(
                            id="strength",
                            type="range",
                            min=-3,
                            max=3,
                            step=0.1,
                            value=view.strength,
                            debounce=0.1,
                            list="strengths",
                        ),
                        html.Datalist(
                            [html.Option(value=str(k)) for k in range(-3, 4)], id="strengths"
                        ),
                        html.Div(
                            [html.Span(str(k)) for k in range(-3, 4)],
                            className="ticks",
                            **{"aria-hidden": "true"},
                        ),
                    ],
                    className="field slide",
                ),
                choices("toward", "Toward", {first: first, second: second}, view.toward),
                pick("kind", "Kind of edit", dict(EDITS), view.kind),
                pick("site", "Site", sites, view.site),
                pick(
                    "positions",
                    "Positions",
                    {name: WHERE[name] for name in POSITIONS},
                    view.positions,
                ),
            ],
            className="fields",
        ),
        html.Div(id="columns", role="status", **{"aria-live": "polite"}),
        html.Div(id="dose"),
    )


def _keep() -> Any:
    return _section(
        "keep",
        "Keep it",
        "What is on the screen, as files. Tools that load a vector add it at every token, not only "
        "at the positions chosen here.",
        html.Div(
            [
                html.Button("Report (HTML)", id="save-report", className="plain"),
                html.Button("Tables (CSV, zipped)", id="save-csv", className="plain"),
                *(
                    html.Button(f"Vector ({suffix})", id=f"save-vector{k}", className="plain")
                    for k, suffix in enumerate(VECTOR_SUFFIXES)
                ),
            ],
            className="buttons",
        ),
        html.Div(id="saved", role="status"),
        html.P(
            [
                "A link to this view, on this computer: ",
                html.Code(id="link", className="prompt"),
                dcc.Clipboard(target_id="link", title="Copy the link", n_clicks=0),
            ],
            className="linked",
        ),
        html.Details(
            [
                html.Summary("The Python lines that give the three columns"),
                html.Pre(id="lines", tabIndex="0"),
            ],
            open=True,
        ),
    )
