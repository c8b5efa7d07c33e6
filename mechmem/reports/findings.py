"""What was found: the figures and tables of the report with what to read in them."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from mechmem.evaluation.controls import CONTROL_NAMES
from mechmem.evaluation.rates import Rates
from mechmem.reports.examples import examples
from mechmem.reports.html_parts import csv_link, figure, frame_table, say
from mechmem.studies.behavior.results import BehaviorResults
from mechmem.studies.behavior.words import negative_note

__all__ = ["behavior", "chosen", "turned", "where"]

Tables = Mapping[str, pd.DataFrame]
Figures = Mapping[str, go.Figure]


def behavior(study: BehaviorResults, tables: Tables, figures: Figures) -> str:
    """What the unedited model does, with examples."""
    out = [
        _figure(
            figures,
            "behavior_mix",
            "How often each kind of answer came, without any edit, in each part of the prompts.",
            frame_table(
                tables["behavior_mix"],
                "Shares with 95 % intervals",
                folded="Numbers",
                link="behavior_mix",
            ),
        )
    ]
    if "margins" in figures:
        out.append(
            _figure(
                figures,
                "margins",
                "How much likelier the model finds the memorized answer than the generalized one, "
                "before it writes anything. Prompts near 0 hang in the balance. Test prompts.",
            )
        )
    return "".join(out) + examples(study)


def turned(study: BehaviorResults, tables: Tables, figures: Figures) -> str:
    """The edit beside its controls, its dose, its cost, and the negative control."""
    best = study.sweep.best
    towards = list(best.rates)
    told = "".join(
        f"<dt>{say(name)}</dt><dd>{say(CONTROL_NAMES[name])}</dd>"
        for name in best.controls[towards[0]]
        if name in CONTROL_NAMES
    )
    edit = ", ".join(
        f"{key} {value}"
        for key, value in best.edit.describe().items()
        if key not in ("edit", "toward")
    )
    out = [
        f"<p>The chosen edit is <b>{say(best.family)}</b> "
        f"({say(type(best.edit).__name__)}: {say(edit)}). An effect counts only as far as it goes "
        "beyond every control, which is an edit of the same size without the contrast in it. A "
        "control can move answers too: that is what any push of this size does to the model.</p>"
        f"<dl>{told}</dl>",
        frame_table(
            tables["summary"],
            "Test prompts: share of each answer, with 95 % intervals. “Edit minus control” is the "
            "share steered to, paired prompt by prompt; for the other families it is against the "
            "control that they beat by least. " + _counts(best.rates[towards[0]]),
            strong=["unedited", *(f"toward {name}" for name in towards)],
            link="summary",
        ),
        _figure(
            figures,
            "rates",
            "Strong bars: the edit. Pale bars: the unedited model and the controls. Gray: answers "
            "that are neither, which is what a crude edit produces.",
        ),
    ]
    if "dose" in tables:
        out.append(
            _figure(
                figures,
                "dose_response",
                "To the right the model is steered toward generalized, to the left toward "
                "memorized; alpha is the strength. If the edit works as meant, the blue line rises "
                "to the right, the orange one to the left, further than the dashed lines, which "
                "show what a random direction of the same length does.",
                frame_table(tables["dose"], "Every point", folded="Numbers", link="dose"),
            )
        )
    for toward in towards:
        out.append(
            _figure(
                figures,
                f"transitions_{toward}",
                "Rows: the answer without the edit. Columns: the answer with it, on the same "
                "prompts.",
            )
        )
    if "clean" in tables:
        out.append("<h3>What it costs elsewhere</h3>")
        out.append(
            frame_table(
                tables["clean"],
                "Accuracy on ordinary items that have one right answer, with 95 % intervals",
                link="clean",
            )
        )
    return "".join(out) + _negative(study, tables, figures)


def _negative(study: BehaviorResults, tables: Tables, figures: Figures) -> str:
    if study.negative is None:
        return ""
    return (
        "<h3>The negative control</h3>"
        f"<p>{say(negative_note(study))} Here the same family of edits was fitted, chosen and "
        "tested anew.</p>"
        + _figure(
            figures,
            "negative_rates",
            "The same figure for the model in which nothing is there to be found. Bars that differ "
            "from the dotted line here tell how much a search finds by itself.",
            frame_table(
                tables["negative_behavior_mix"],
                "What that model does, unedited",
                folded="Numbers",
                link="negative_behavior_mix",
            ),
        )
    )


def where(study: BehaviorResults, tables: Tables, figures: Figures) -> str:
    """Where the behaviors look different inside the model."""
    return "".join(
        [
            "<p>These figures show where the two behaviors look different inside the model. They "
            "say where to edit, not what causes the behavior.</p>",
            _figure(
                figures,
                "depth_profile",
                "The size of the mean difference of the two behaviors at the last prompt token, on "
                "the training flips, in units of the spread there. The gray band is what is left "
                "when the two behaviors of a pair are exchanged at random.",
                frame_table(
                    tables["depth_profile"],
                    "Root mean square over the neurons of a site",
                    folded="Numbers",
                    link="depth_profile",
                ),
            ),
            _figure(
                figures,
                "neuron_map",
                "Neurons of the residual stream at the last prompt token, on the training flips. "
                "Orange: higher when the model goes on to answer from memory; blue: higher when it "
                "goes on to compute.",
            ),
            _figure(
                figures,
                "layer_distribution",
                f"Bars: where the {_chosen_neurons(tables)} neurons lie that correlate most with "
                "the behavior. Gray marks: where they would lie if layers did "
                "not matter.",
                frame_table(
                    tables["layer_distribution"],
                    "Chosen neurons per layer",
                    folded="Numbers",
                    link="layer_distribution",
                ),
            ),
            _figure(
                figures,
                "separation",
                "AUROC is the chance that a generalized prompt lies further along the direction "
                "than a memorized one: 0.5 is guessing. The gray band is what random directions "
                "reach.",
                frame_table(
                    tables["separation"],
                    "Per site, on test flips",
                    folded="Numbers",
                    link="separation",
                ),
            ),
            _figure(
                figures,
                "probes",
                "A classifier reads the behavior off the states of instances that it has not seen. "
                "Where the line of states is not above the band of the input tokens alone, the "
                "prompt's wording already gives the behavior away. Shuffled labels show what the "
                "method finds where there is nothing; with pairs of one each, it can fall a "
                "little below one half.",
                frame_table(
                    tables["probes"],
                    "Per site, cross-validated on training flips",
                    folded="Numbers",
                    link="probes",
                ),
            ),
            _figure(
                figures,
                "mlp_neuron_map",
                "Hidden units of the MLPs instead of the residual stream. Both tables of all "
                f"neurons: {csv_link('neurons')}, {csv_link('mlp_neurons')}.",
            ),
        ]
    )


def _chosen_neurons(tables: Tables) -> str:
    return f"{int(tables['layer_distribution']['chosen'].sum()):,}"


def chosen(tables: Tables) -> str:
    """What the sweep tried and chose."""
    return (
        "<p>Every setting was tried on the validation prompts. Its score is the smaller of the two "
        "gains, toward memorized and toward generalized, so that only edits that steer both ways "
        "score high. The winner of each family went to the test prompts, once.</p>"
        + figure(
            "sweep",
            "Validation score of every setting",
            f"Green: a gain, violet: a loss. All rates: {csv_link('validation')}.",
        )
        + frame_table(
            tables["beyond_controls"].loc[:, :"groups"],
            "Test prompts: the winner of each family against the control that it beats by least",
            link="beyond_controls",
        )
    )


def _counts(rates: Rates) -> str:
    share = rates.share(rates.after.allowed[0])
    return f"n = {share.n:,} prompts in {share.groups} groups"


def _figure(figures: Figures, name: str, caption: str, numbers: str = "") -> str:
    title = str(figures[name].layout.title.text or name)
    return figure(name, title, caption, numbers)
