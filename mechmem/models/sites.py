"""Sites: a stream and a layer by name, never a bare layer integer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mechmem.errors import SiteError, did_you_mean, listed, shown
from mechmem.numeric import natural

STREAMS = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post")
"""Every stream, in the order in which a sequential block computes them."""

NORMED = "ln_final"
"""The residual stream after the final norm, what the unembedding reads: no place of a block, so it
can be neither asked for by name nor edited; `mechmem.hidden_states` makes it."""

MODULES = ("attn_module", "mlp_module")
"""What the modules of the two branches give back. They differ from ``attn_out`` and ``mlp_out``
where a norm stands between a branch and the stream (Gemma 2, OLMo 2); hooks that were written for
transformers' modules sit here."""

DEPTH = {
    stream: index
    for index, stream in enumerate(
        (
            "resid_pre", "z", "attn_module", "attn_out", "resid_mid", "mlp_post", "mlp_module",
            "mlp_out", "resid_post", NORMED,
        )
    )
}  # fmt: skip


class Site(NamedTuple):
    """One place in the network: a stream (TransformerLens's name and meaning) of one block.

    Streams: ``resid_pre`` and ``resid_post`` are the residual stream before and after the block,
    ``resid_mid`` between attention and MLP, ``attn_out`` and ``mlp_out`` what the two branches add,
    ``mlp_post`` the MLP's hidden units, ``z`` the heads' outputs before the output projection.
    """

    stream: str
    layer: int

    def __str__(self) -> str:
        return f"{self.stream}[{self.layer}]"

    @property
    def key(self) -> str:
        """The site as one word for file keys and tables, ``"resid_post.3"``."""
        return f"{self.stream}.{self.layer}"

    @property
    def depth(self) -> tuple[int, int]:
        """Sorts sites in the order in which a forward pass reaches them."""
        return (self.layer, DEPTH[self.stream])

    @classmethod
    def from_key(cls, key: str) -> Site:
        """The inverse of `key`."""
        stream, _, layer = key.rpartition(".")
        number = natural(layer)
        if stream not in DEPTH or number is None:
            raise SiteError(f"{key!r:.80} is not a site key; an example is 'resid_post.3'.")
        return cls(stream, number)


SiteSpec = str | tuple[str, int] | Site | Iterable[str | tuple[str, int] | Site]


def parse_sites(spec: SiteSpec, n_layers: int) -> list[Site]:
    """Sites from what users type.

    Args:
        spec: ``"resid_post"`` (every layer), ``("resid_post", 3)``, or a list of such. A negative
            layer counts from the end.
        n_layers: Number of blocks of the model.

    Returns:
        The sites without repetition, in the order asked for.

    Raises:
        SiteError: For an unknown stream, a layer that is out of range, or a bare integer.
    """
    items: Any = [spec] if isinstance(spec, str) or _is_site(spec) else spec
    if isinstance(items, Mapping):
        raise SiteError(
            f"Sites are a list, got the dictionary {spec!r:.80}; write one ('resid_post', 3) for "
            "every layer of a stream."
        )
    if isinstance(items, (int, float)) or not isinstance(items, Iterable):
        raise SiteError(
            f"A site needs a stream and a layer, got {spec!r}; write ('resid_post', {spec!r})."
        )
    sites: dict[Site, None] = {}
    for item in items:
        if isinstance(item, str):
            stream, layers = item, list(range(n_layers))
        elif _is_site(item):
            stream, layers = item[0], [_checked_layer(item, n_layers)]
        else:
            raise SiteError(
                f"{item!r} is not a site; write a stream name for every layer or "
                f"('resid_post', 3). Streams: {listed(STREAMS)}."
            )
        if stream == NORMED:
            raise SiteError(
                f"{NORMED!r} is not a place of a block: mm.hidden_states(model, prompts) reads it, "
                "and an edit acts before the norm, for example at ('resid_post', -1)."
            )
        if stream not in DEPTH:
            raise SiteError(
                f"Unknown stream {stream!r}; streams are {listed(STREAMS)}."
                f"{did_you_mean(stream, STREAMS)}"
            )
        sites.update(dict.fromkeys(Site(stream, layer) for layer in layers))
    if not sites:
        raise SiteError("No sites given; for example sites='resid_post' for every layer.")
    return list(sites)


def as_site(value: Any) -> Site:
    """The one site that a user names.

    Raises:
        SiteError: For anything but the name of a stream and a layer.
    """
    pair = tuple(value) if isinstance(value, (tuple, list)) and len(value) == 2 else ("", "")
    if not (isinstance(pair[0], str) and hasattr(pair[1], "__index__")) or pair[1] is True:
        raise SiteError(
            f"A site is a stream and a layer, such as ('resid_post', 3), got {shown(value, 80)}."
        )
    return Site(pair[0], int(pair[1]))


def named(spec: SiteSpec) -> str:
    """What a user typed as one readable word: ``"resid_post.1"``, ``"resid_pre+mlp_out"``."""
    if isinstance(spec, str):
        return spec
    items: list[Any] = [spec] if _is_site(spec) else list(spec)
    return "+".join(item if isinstance(item, str) else Site(*item).key for item in items)


def _is_site(item: object) -> bool:
    return (
        isinstance(item, tuple)
        and len(item) == 2
        and isinstance(item[0], str)
        and isinstance(item[1], int)
        and not isinstance(item[1], bool)
    )


def _checked_layer(item: tuple[str, int], n_layers: int) -> int:
    stream, layer = item
    if not -n_layers <= layer < n_layers:
        raise SiteError(
            f"Layer {layer} of {stream!r} is out of range: the model has {n_layers} layers, "
            f"0 to {n_layers - 1} (or -1 for the last)."
        )
    return layer % n_layers
