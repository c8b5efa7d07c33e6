"""From results to what stands on the page. All text goes in as text: nothing of it is markup."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go
from dash import dcc, html

from mechmem.app.view import at_last
from mechmem.style import GRAY, PALETTE, TOOLBAR, faded, house_style

if TYPE_CHECKING:
    from mechmem.app.live import Turned
    from mechmem.evaluation import Observations, TokenMap
    from mechmem.patching import EditReport

COLORED_OUTCOMES = {"memorized", "generalized", "correct", "wrong"}
SAME = {"known": "memorized", "context": "generalized"}


def visible(text: object) -> str:
    """Control characters made visible, so that what was written can be seen; lone halves of pairs
    too, which no page can hold."""
    return "".join(
        ch if ch.isprintable() or ch == "\n" else f"\\u{{{ord(ch):x}}}" for ch in str(text)
    )


def chip(outcome: str) -> Any:
    """An outcome in its color, always with its word."""
    name = SAME.get(outcome, outcome)
    return html.Span(
        visible(outcome), className=f"chip {name if name in COLORED_OUTCOMES else 'other'}"
    )


def written(text: str, mark: Sequence[bool] | None = None) -> Any:
    """What a model wrote; changed words marked."""
    said = visible(text.strip())
    if mark is None or not said:
        return html.Span(said or "(nothing)", className="prompt")
    words = said.split()
    parts: list[Any] = []
    for word, changed in zip(words, mark, strict=False):
        parts += [html.Mark(word) if changed else word, " "]
    return html.Span(parts, className="prompt")


def changed(before: str, after: str) -> list[bool]:
    """Which words of ``after`` are not those of ``before``."""
    one, other = visible(before.strip()).split(), visible(after.strip()).split()
    out = [True] * len(other)
    for block in difflib.SequenceMatcher(a=one, b=other, autojunk=False).get_matching_blocks():
        out[block.b : block.b + block.size] = [False] * block.size
    return out


def nats(margin: float, classes: tuple[str, str]) -> str:
    """A margin with its side: ``3.1 nats toward memorized``."""
    if margin != margin:
        return "no margin: two answers are needed"
    return f"{abs(margin):.2f} nats toward {visible(classes[int(margin < 0)])}"


def refusal(text: str) -> Any:
    """An error in its own words."""
    return html.P(visible(text), className="refusal", role="alert")


def waiting(lines: Sequence[str]) -> Any:
    """What is worked on."""
    return html.P("; ".join(lines) or "in line", className="soft", role="status")


def each_row(frame: pd.DataFrame) -> list[Any]:
    """Rows as named tuples, as in `mechmem.plotting.data`, which would load torch."""
    return list(frame.itertuples())


def share_with_interval(row: Any) -> str:
    """``62 % [24, 91]``."""
    return f"{100 * row.share:.0f} % [{100 * row.share_low:.0f}, {100 * row.share_high:.0f}]"


def shares(table: pd.DataFrame, about: str) -> Any:
    """Shares of the outcomes with their intervals."""
    cells = [
        html.Li([chip(str(row.outcome)), " ", share_with_interval(row)]) for row in each_row(table)
    ]
    return html.Div([html.P(about, className="soft"), html.Ul(cells, className="shares")])


def wording(seen: Observations, k: int, words: pd.DataFrame | None) -> list[Any]:
    """What the model did on one wording, and in gray what its words alone would predict."""
    said = (
        "" if words is None else f"input words alone predict: {visible(words['predicted'].iloc[k])}"
    )
    return [
        written(seen.completions[k]) if seen.reading == "text" else None,
        chip(seen.outcomes[k]),
        html.Span(nats(float(seen.margins[k]), seen.behaviors), className="number"),
        html.Span(said, className="gray"),
    ]


def saved_wording(row: Any, classes: tuple[str, str]) -> list[Any]:
    """The same from the table of a study."""
    return [
        written(str(row.completion)),
        chip(str(row.behavior)),
        html.Span(nats(float(row.margin), classes), className="number"),
    ]


def map_words(found: TokenMap, outcome: str | None = None) -> str:
    """Where the map leaves the band of chance at the last token, and whether the model's own
    outcome on that wording lies on the other side."""
    last, margin = at_last(found.rows), found.unit == "nats"
    out = last[last["beyond"]]
    side = {True: found.toward, False: found.away}
    end = last.iloc[-1]
    own = (
        f"After the last layer it is {abs(end['value']):.2f} nats toward {side[end['value'] > 0]}."
    )
    if out.empty:
        return (
            "At the last prompt token the margin goes beyond that of random directions after no "
            f"layer. {own}"
            if margin
            else "At the last prompt token no layer lies farther out than random directions do: "
            "this wording shows neither side there."
        )
    most = float(out["value"].abs().max())
    layers = ", ".join(f"{row.stream} {row.layer}" for row in each_row(out))
    if margin:
        return (
            "At the last prompt token the margin goes beyond that of random directions after "
            f"{layers}. {own}"
        )
    shown = sorted({side[value > 0] for value in out["value"]})
    sides = " and the ".join(shown)
    against = outcome in side.values() and outcome not in shown
    return (
        f"At the last prompt token this wording lies on the {sides} side, beyond random "
        f"directions, at {layers} (most: {most:.2f} {found.unit})."
        + (f" Its answer is {visible(outcome)} all the same, which this does not explain."
           if against else "")
    )  # fmt: skip


def everywhere_words(table: pd.DataFrame) -> str:
    """In how many of the wordings each layer shows something at the last token."""
    n = int(table["wordings"].iloc[0])
    counts = [f"{row.stream} {row.layer} in {row.beyond}" for row in each_row(table) if row.beyond]
    said = f"at {', '.join(counts)} of {n}" if counts else f"at no layer in any of {n}"
    return f"All wordings, last prompt token: beyond random directions {said}; by chance 1 in 20."


def graph(figure: go.Figure, name: str, label: str) -> Any:
    """A figure that a screen reader can name."""
    return html.Div(
        dcc.Graph(id=name, figure=figure, config=TOOLBAR, responsive=True),
        role="figure",
        **{"aria-label": label},
    )


def table(frame: pd.DataFrame, caption: str, columns: dict[str, str]) -> Any:
    """A table of numbers."""

    def cell(value: Any) -> Any:
        number = isinstance(value, float)
        said = f"{value:.3g}" if number else visible(value)
        return html.Td(said, className="number" if number or isinstance(value, int) else "")

    rows = [html.Tr([cell(value) for value in row]) for row in frame[list(columns)].values.tolist()]
    head = html.Tr([html.Th(title, scope="col") for title in columns.values()])
    return html.Div(
        html.Table([html.Caption(caption), html.Thead(head), html.Tbody(rows)]),
        className="wide", tabIndex="0", role="region", **{"aria-label": caption},
    )  # fmt: skip


def fired(report: EditReport) -> Any:
    """Where an edit fired, how far it moved the state, and whether it stayed closed."""
    lines = []
    for one in report.fired:
        said = (
            f"{one.site.stream} {one.site.layer}: {plural(one.tokens, 'token')} moved by "
            f"{one.distance:.2f} "
            f"({100 * one.relative:.0f} % of their length)"
        )
        if one.closed:
            share_closed = f"({100 * one.closed_share:.0f} %)"
            said += f"; stayed closed at {plural(one.closed, 'token')} {share_closed}"
        lines.append(html.Li(said))
    return html.Ul(lines, className="soft")


def plural(n: int, name: str) -> str:
    """``1 token``, ``2 tokens``."""
    return f"{n} {name}{'' if n == 1 else 's'}"


def columns(found: Turned, cost: pd.DataFrame | None, said: str) -> Any:
    """Unedited, edited and control, always together, under what they say."""
    names = ("Unedited", "Edited", f"Control: {found.name}, same size, one draw")
    seen = (found.before, found.edit, found.control)
    reports = (None, *found.reports)
    parts = []
    for k, (name, one, report) in enumerate(zip(names, seen, reports, strict=True)):
        rows = []
        for row in range(len(one)):
            mark = changed(found.before.completions[row], one.completions[row]) if k else None
            rows.append(
                html.Li(
                    [
                        html.Span(f"{row + 1}. ", className="soft"),
                        written(one.completions[row], mark) if one.reading == "text" else None,
                        chip(one.outcomes[row]),
                        html.Span(nats(float(one.margins[row]), one.behaviors), className="number"),
                    ]
                )
            )
        moved = (
            [fired(report)]
            if report is not None
            else [html.P("nothing is moved", className="soft")]
        )
        parts.append(
            html.Section(
                [html.H3(name), html.Ol(rows, className="answers"), *moved, html.P(_kl(cost, k))],
                className=("before", "edited", "control")[k],
                **{"aria-label": name},
            )
        )
    return html.Div([html.P(said, className="found"), html.Div(parts, className="three")])


def moved_words(found: Turned, aim: str | None = None) -> str:
    """What the push did beside its control, and whether that was the other way than ``aim``."""
    n = len(found.before)

    def turned(one: Observations) -> str:
        count = sum(a != b for a, b in zip(found.before.outcomes, one.outcomes, strict=True))
        gap = float((one.margins - found.before.margins).mean())
        side = one.behaviors[int(gap < 0)]
        moved = f", the margin moved by {abs(gap):.2f} nats toward {side}"
        if one is found.edit and aim is not None and side != aim:
            moved += f", away from {aim}"
        if abs(gap) < 0.005:
            moved = ", margin unchanged"
        return f"{count} of {n} outcomes changed{moved if gap == gap else ''}"

    return f"Edited: {turned(found.edit)}. Control, in one draw of it: {turned(found.control)}."


def beyond_words(
    table: pd.DataFrame | None, classes: tuple[str, str], aim: str | None = None
) -> str:
    """Whether the push did more than every draw of its control, and how often one more draw would,
    in one sentence."""
    if table is None:
        return ""
    edit, control = (table[table["kind"] == kind].iloc[0] for kind in ("edit", "control"))
    value, draws = edit["margin"], int(control["draws"])
    if value != value or draws < 2:
        return ""
    at = f"at strength {edit['strength']:g} the edit lies"
    if control["margin_least"] <= value <= control["margin_most"]:
        return f"No more than its control: {at} among {draws} draws."
    side = classes[int(value < control["margin_least"])]
    chance = f"{1 if aim else 2} in {draws + 1} by chance"
    if aim is not None and side != aim:
        return f"The wrong way: {at} beyond all {draws} draws on the {visible(side)} side."
    return (
        f"More than its control: {at} beyond all {draws} draws, on the {visible(side)} side "
        f"({chance})."
    )


def _kl(cost: pd.DataFrame | None, k: int) -> str:
    if cost is None:
        return "KL on neutral prompts: being measured" if k else "KL on neutral prompts: 0"
    row = cost.iloc[k]
    said = f"KL on {row['n']} neutral prompts: "
    if not k:
        return f"{said}0"
    ends = f" [{row['value_low']:.3f}, {row['value_high']:.3f}]"
    return f"{said}{row['value']:.3f} nats{ends if row['value_low'] == row['value_low'] else ''}"


def dose(
    frame: pd.DataFrame, now: float, classes: tuple[str, str], toward: str, theme: str
) -> go.Figure:
    """The mean margin of the wordings against the strength, beside the band of the control."""
    fig = go.Figure()
    control = frame[frame["kind"] == "control"]
    name = str(control["control"].iloc[0])
    x = control["strength"].tolist()
    fig.add_scatter(
        x=[*x, *x[::-1]],
        y=[*control["margin_high"].tolist(), *control["margin_low"].tolist()[::-1]],
        fill="toself", fillcolor=faded(GRAY, 0.25), line={"width": 0}, hoverinfo="skip",
        name=f"{name}, middle 95 % of {control['draws'].iloc[0]} draws",
    )  # fmt: skip
    for part, color, dash, called in (
        (control, GRAY, "dash", f"{name}, mean"),
        (frame[frame["kind"] == "edit"], PALETTE[0], "solid", "edit"),
    ):
        fig.add_scatter(
            x=part["strength"], y=part["margin"], mode="lines+markers", name=called,
            line={"color": color, "dash": dash, "width": 2.5},
            hovertext=[
                f"<b>{called}</b>, strength {row.strength:g}<br>margin {row.margin:+.2f} nats"
                + (f"<br>{100 * row.share:.0f} % steered to" if row.share == row.share else "")
                for row in each_row(part)
            ],
            hoverinfo="text",
        )  # fmt: skip
    fig.add_vline(x=now, line={"color": GRAY, "width": 1, "dash": "dot"})
    fig.add_hline(y=0, line={"color": GRAY, "width": 1})
    first, second = (visible(one).replace("<", "&lt;") for one in classes)
    aim = visible(toward).replace("<", "&lt;")
    fig.update_xaxes(
        title=f"strength, in distances between the classes; to the right: pushed toward {aim}",
        range=[-3.2, 3.2],
    )
    fig.update_yaxes(title=f"margin, nats<br>← {second} | {first} →", zeroline=False)
    n = int(frame["wordings"].iloc[0])
    about = f"mean over {plural(n, 'wording')}; dotted: the strength that is set"
    return house_style(fig, theme, "How the margin follows the strength", about, 420, bottom=58)
