"""P1's detection and intervention by name: as the paper describes them, and as its code does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mechmem.analysis.neurons import NeuronScores, neuron_mean_difference
from mechmem.analysis.ranking import CONSTANTS_FIRST
from mechmem.caching.activations import Activations
from mechmem.caching.extract import cache_activations
from mechmem.caching.hidden_states import hidden_states
from mechmem.errors import EditError, MechmemError, listed
from mechmem.models.model import Model
from mechmem.models.sites import NORMED, Site
from mechmem.models.tokenizing import PromptsLike
from mechmem.patching.shifting import ShiftNeurons


@dataclass(frozen=True)
class P1Preset:
    """Which states P1 ranks neurons over, which blocks it edits, and its grid.

    Attributes:
        name: How it is asked for.
        rows: ``"outputs"``: the output of every block. ``"hidden_states"``: the embedding, the
            output of every block but the last, and the last one after the final norm.
        edited: Share of the blocks, from the first, that are edited.
        tops: Shares of all ranked neurons.
        alphas: Strengths, in mean differences.
        read: Position that is read.
        positions: Where the shift is added.
        by: Ranking, see `mechmem.NeuronScores.top`.
    """

    name: str
    rows: str
    edited: float
    tops: tuple[float, ...] = (0.05, 0.10)
    alphas: tuple[float, ...] = (1.0, 3.0, 5.0)
    read: str = "last"
    positions: str = "each_step"
    by: str = "correlation"

    def states(self, model: Model, prompts: PromptsLike, **options: Any) -> Activations:
        """The states that are ranked; ``options`` go to `mechmem.cache_activations`."""
        if self.rows == "hidden_states":
            return hidden_states(model, prompts, positions=self.read, **options)
        return cache_activations(model, prompts, sites="resid_post", positions=self.read, **options)

    def scores(self, model: Model, prompts: PromptsLike, **options: Any) -> NeuronScores:
        """Neuron scores of prompts that carry behaviors, such as ``observe(...).flips()``."""
        return neuron_mean_difference(self.states(model, prompts), **options)

    def edited_blocks(self, n_layers: int) -> int:
        """How many blocks, from the first, are edited: all, or 25 of 28 and in proportion."""
        return (
            n_layers
            if self.edited == 1
            else max(1, min(round(self.edited * n_layers), n_layers - 1))
        )

    def edit(
        self,
        scores: NeuronScores,
        *,
        top: float = 0.05,
        alpha: float = 1.0,
        toward: str = "generalized",
    ) -> ShiftNeurons:
        """One shift of this preset.

        Args:
            scores: From `scores`, or from states of the same sites.
            top: Share (float) or number (integer) of the neurons of all ranked sites.
            alpha: In mean differences.
            toward: The class to steer to.

        Raises:
            EditError: For scores of other sites than the preset ranks.
        """
        last = max(site.layer for site in scores.sites)
        ranked = [Site("resid_post", layer) for layer in range(last + 1)]
        if self.rows == "hidden_states":
            ranked = [Site("resid_pre", 0), *ranked[:-1], Site(NORMED, last)]
        if set(scores.sites) != set(ranked):
            raise EditError(
                f"{self.name} ranks {listed(map(str, ranked), 4)}, but these scores are of "
                f"{listed(map(str, scores.sites), 4)}; make them with preset.scores(model, flips)."
            )
        if self.edited == 1:
            return ShiftNeurons(scores, top=top, alpha=alpha, toward=toward, by=self.by,
                                positions=self.positions)  # fmt: skip
        if isinstance(top, float) and 0 < top <= 1:
            top = max(1, int(top * scores.total))  # rounded down, as the code does
        return ShiftNeurons(
            scores, top=top, alpha=alpha, toward=toward, by=self.by, positions=self.positions,
            at=[Site("resid_post", layer) for layer in range(self.edited_blocks(last + 1))],
            among="scored",
        )  # fmt: skip

    def slots(self, scores: NeuronScores, top: float = 0.05) -> dict[str, int]:
        """Where the chosen neurons lie: how many there are, how many of them never vary, how many
        are edited at all, and how many of those vary."""
        edit = self.edit(scores, top=top)
        chosen = scores.top(edit.top, by=self.by)
        last = max(site.layer for site in scores.sites)
        edited = [Site("resid_post", layer) for layer in range(self.edited_blocks(last + 1))]
        never = {site: chosen.mask(site) & scores.constant(site) for site in chosen.index}
        return {
            "chosen": len(chosen),
            "constant": sum(int(mask.sum()) for mask in never.values()),
            "edited": sum(len(rows) for site, rows in chosen.index.items() if site in edited),
            "edited_varying": sum(
                len(rows) - int(never[site].sum())
                for site, rows in chosen.index.items()
                if site in edited
            ),
        }

    def grid(self, scores: NeuronScores, toward: str = "generalized") -> list[ShiftNeurons]:
        """Every share with every strength: {5 %, 10 %} x {1, 3, 5}."""
        return [
            self.edit(scores, top=top, alpha=alpha, toward=toward)
            for top in self.tops
            for alpha in self.alphas
        ]


P1_PRESETS = {
    "p1-paper": P1Preset("p1-paper", "outputs", 1.0),
    "p1-code": P1Preset("p1-code", "hidden_states", 25 / 28, by=CONSTANTS_FIRST),
}


def p1_preset(name: str) -> P1Preset:
    """P1 as it is described (``"p1-paper"``) or as its released code does it (``"p1-code"``).

    Both read the last prompt token, rank by |Pearson r| over all rows together, and add ``alpha``
    times the mean difference at the last position of every pass.

    ``p1-paper`` ranks and edits the outputs of all blocks. ``p1-code`` ranks the ``n_layers + 1``
    rows of transformers' hidden states, in which the embedding takes part and the last row is taken
    after the final norm, and edits the blocks 0 to 24 of 28 only: what was chosen in the embedding
    row, in the last row and in the last blocks is never used. On a model of another depth the same
    share of the blocks is edited, the last one never.

    Neurons that never vary come **first** in ``p1-code``: their correlation is NaN, and the code's
    ``argsort(abs(r))[::-1]`` puts NaN in front. Where all prompts end in one and the same token, as
    P1's do, the whole embedding row is of this kind, takes its slots before any other and is never
    edited: 3,072 of the 4,454 slots of "5 %" at the size of Llama-3.2-3B. `P1Preset.slots` counts
    them. Where no neuron is constant, the order is that of |r|. (The code's loop over Llama layers
    writes into batch row 0 where a layer returns a tensor; that is a defect and not repeated here.)

    Source: arXiv 2412.18497, and ``ntumslab/neuron-diff-memgen-llm`` (``ITI.py``, ``get_NMD.py``).

    Raises:
        MechmemError: For another name.
    """
    if name not in P1_PRESETS:
        raise MechmemError(f"Unknown preset {name!r}; allowed are {listed(P1_PRESETS)}.")
    return P1_PRESETS[name]
