"""`hidden_states`: the rows that transformers calls ``output_hidden_states``, as `Activations`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mechmem.caching.activations import Activations
from mechmem.caching.extract import cache_activations
from mechmem.errors import PositionError
from mechmem.models.final_norm import final_norm
from mechmem.models.model import Model
from mechmem.models.positions import Positions, PositionSpec
from mechmem.models.sites import NORMED, Site
from mechmem.models.tokenizing import PromptsLike


def hidden_states(
    model: Model, prompts: PromptsLike, *, positions: PositionSpec = "last", **options: Any
) -> Activations:
    """The embedding, the output of every block but the last, and the last one after the final norm.

    These are the ``n_layers + 1`` rows of transformers' ``output_hidden_states=True``, which P1's
    released code ranks over. The first is ``("resid_pre", 0)``, the last ``("ln_final", n_layers -
    1)``, a site for reading only: nothing of the model can be edited there, and its scale is that
    of the norm, not of the residual stream.

    Args:
        model: From `load_model`.
        prompts, positions: As in `cache_activations`; a norm cannot be taken of a mean, so
            ``"mean"`` is refused.
        options: Further arguments of `cache_activations`.

    Raises:
        PositionError: For ``positions="mean"``.
    """
    if Positions.parse(positions).pooled:
        raise PositionError(
            "The norm of a mean is not the mean of the norms: read hidden states at single "
            "positions, for example positions='last'."
        )
    last = Site("resid_post", model.n_layers - 1)
    asked = [Site("resid_pre", 0), *model.sites("resid_post")]
    acts = cache_activations(model, prompts, sites=asked, positions=positions, **options)
    states = {site: state for site, state in acts.states.items() if site != last}
    states[Site(NORMED, last.layer)] = final_norm(model, acts[last])
    return replace(acts, states=states)
