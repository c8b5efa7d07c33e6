"""The parity matrix: batched, padded, cached, hooked runs against plain one-by-one runs.

``PYTHONPATH=.:tests python -m models.parity docs/reliability.md`` measures every cell and writes
the part and the files of the installed TransformerLens.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from models.hooked3 import HAS_HOOKED_TRANSFORMER, HOOKED_FAMILIES, hooked_transformer
from models.plain import PARALLEL, greedy, plain_pass
from models.zoo import CAPPED, FAMILIES, SLIDING, build, tokenizer
from torch import Tensor

import mechmem as mm
from mechmem.artifacts import versions
from mechmem.models.check.site_check import checked_hooks
from mechmem.models.engine.batching import Batch, Feed
from mechmem.models.engine.capabilities import choose_attention
from mechmem.models.positions import Positions
from mechmem.models.sites import STREAMS, Site
from mechmem.models.tokenizing import TokenizedPrompt

STEPS = 3
LENGTHS = (11, 4, 8)
"""Prompt lengths: ragged, and longer as well as shorter than the sliding window of six."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LIMIT = 1e-4
SKIPPED = "–"


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix.

    Attributes:
        error: Largest distance over tokens, prompts and tensors, in units of the tensor's length.
        limit: What it may be: `LIMIT` in float32, the noise of the plain model in bfloat16.
        worst: The tensor it was found at.
        skipped: Why the cell was not measured; empty when it was.
    """

    family: str
    kind: str
    side: str
    cached: bool
    dtype: str
    error: float = math.nan
    limit: float = math.nan
    worst: str = ""
    skipped: str = ""

    @property
    def holds(self) -> bool:
        # Two runs that round on their own differ by the root of two times what each is off.
        return bool(self.skipped) or self.error <= (1.5 if self.dtype == "bf16" else 1) * self.limit


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(4, 64, (n,), generator=generator).tolist() for n in LENGTHS]


def streams(family: str) -> list[str]:
    return [s for s in STREAMS if not (family in PARALLEL and s == "resid_mid")]


def change(width: int) -> Any:
    """A linear edit that is no mere shift: remove a direction, add another."""
    generator = torch.Generator().manual_seed(width)
    off, on = torch.randn(2, width, generator=generator)
    off = off / off.norm()

    def act(h: Tensor) -> Tensor:
        flat = h.flatten(2)
        gone = flat - (flat @ off.to(flat))[..., None] * off.to(flat)
        return (gone + 0.5 * on.to(flat)).reshape(h.shape)

    return act


@dataclass
class Edit:
    site: Site
    act: Any
    where: Positions = Positions(("each_step",))

    def apply(self, activation: Tensor, feed: Feed) -> Tensor:
        mask = feed.mask(self.where).reshape(*feed.index.shape, *[1] * (activation.ndim - 2))
        return torch.where(mask, self.act(activation), activation)


@dataclass
class Look:
    site: Site
    value: Tensor | None = None

    def read(self, activation: Tensor, feed: Feed) -> None:
        self.value = activation.detach().clone()


class Family:
    """A family's plain model in one dtype, what it computes, and how noisy that is."""

    def __init__(self, name: str, dtype: str, rows: Sequence[int] | None = None) -> None:
        self.name, self.dtype = name, dtype
        self.plain = build(name, DTYPES[dtype])
        if dtype == "bf16" and name not in CAPPED:
            # The fused kernel rounds otherwise than eager attention, in transformers as in mechmem.
            self.plain.set_attn_implementation("sdpa")
        self.prompts = prompts() if rows is None else [prompts()[row] for row in rows]
        self.forced = [self.greedy(ids)[0] for ids in self.prompts]
        self.texts = [a + b for a, b in zip(self.prompts, self.forced, strict=True)]

    @property
    def sites(self) -> list[Site]:
        return [Site(s, k) for s in streams(self.name) for k in range(2)]

    def width(self, site: Site) -> int:
        return int(self.reference()[0][0][site].shape[-1])

    def greedy(self, ids: Sequence[int], edit: Any = None) -> tuple[list[int], float]:
        return greedy(self.plain, self.name, ids, STEPS, edit)

    @cache  # noqa: B019
    def reference(self, site: Site | None = None, exact: bool = False) -> list[Any]:
        """States and logits of every text, edited at ``site`` from the last prompt token on."""
        model = build(self.name, DTYPES[self.dtype]).float() if exact else self.plain
        out = []
        for ids, text in zip(self.prompts, self.texts, strict=True):
            at = range(len(ids) - 1, len(text))
            edit = None if site is None else (site, change(self.width(site)), at)
            out.append(plain_pass(model, self.name, text, edit))
        return out

    @cache  # noqa: B019
    def noise(self, site: Site | None = None) -> dict[str, float]:
        """How far the plain model in its dtype is from itself in float32, by tensor."""
        found = self.compare(self.reference(site), self.reference(site, exact=True))
        return {name: max(value, LIMIT) for name, value in found.items()}

    def compare(self, found: list[Any], expected: list[Any]) -> dict[str, float]:
        worst: dict[str, float] = {}
        for row, ids in enumerate(self.prompts):
            pairs = {str(site): (found[row][0][site], expected[row][0][site]) for site in self.sites
                     if site in found[row][0]}  # fmt: skip
            pairs["logits"] = (found[row][1], expected[row][1])
            for name, (one, other) in pairs.items():
                one, other = one.double()[len(ids) - 1 :], other.double()[len(ids) - 1 :]
                error = float(((one - other).norm(dim=-1) / other.norm(dim=-1)).max())
                worst[name] = max(worst.get(name, 0.0), error)
        return worst


def run(
    model: mm.Model, family: Family, side: str, cached: bool, edit: Edit | None = None
) -> list[Any]:
    """The same as `Family.reference` by the engine: batched, padded, with or without a cache."""
    backend = model.backend
    choose_attention(backend)
    own = [TokenizedPrompt(str(k), tuple(ids), {}) for k, ids in enumerate(family.prompts)]
    looks = [Look(site) for site in family.sites]
    edits = [] if edit is None else [edit]
    lengths = torch.tensor([len(ids) for ids in family.prompts])
    states: list[dict[Site, list[Tensor]]] = [{site: [] for site in family.sites} for _ in own]
    scores: list[list[Tensor]] = [[] for _ in own]

    def take(feed: Feed, logits: Tensor) -> None:
        for row, length in enumerate(lengths.tolist()):
            columns = feed.index[row] >= length - 1
            for look in looks:
                assert look.value is not None
                states[row][look.site].append(look.value[row, columns].flatten(1))
            scores[row].append(logits[row, columns])

    with torch.no_grad():
        if not cached:
            whole = [
                TokenizedPrompt(p.id, tuple(t), {}) for p, t in zip(own, family.texts, strict=True)
            ]
            batch = Batch.collate(whole, range(len(own)), 1, side=side)
            feed = Feed(tuple(own), batch.index, lengths, batch.rows)
            with checked_hooks(backend, feed, edits, looks):
                logits, _ = backend.forward(batch.ids, batch.mask)
            take(feed, logits)
        else:
            batch = Batch.collate(own, range(len(own)), 1, side=side)
            feed, ids, mask, kept = batch.feed(), batch.ids, batch.mask, None
            for step in range(STEPS + 1):
                with checked_hooks(backend, feed, edits, looks):
                    logits, kept = backend.forward(ids, mask, cache=kept, use_cache=True)
                take(feed, logits)
                if step < STEPS:
                    ids = torch.tensor([[forced[step]] for forced in family.forced])
                    mask = torch.cat([mask, torch.ones_like(ids)], 1)
                    feed = feed.step(step, torch.ones(len(own), dtype=torch.bool))
    pad = [len(ids) - 1 for ids in family.prompts]
    return [
        (
            {site: _from(torch.cat(parts), pad[row]) for site, parts in states[row].items()},
            _from(torch.cat(scores[row]), pad[row]),
        )
        for row in range(len(own))
    ]


def _from(tail: Tensor, before: int) -> Tensor:
    """Put back the prompt tokens that are not compared."""
    return torch.cat([tail.new_zeros(before, *tail.shape[1:]), tail])


def cells(
    name: str, dtype: str, model: mm.Model | None = None, layers: Sequence[int] = (0, 1)
) -> Iterator[Cell]:
    """Every cell of one family and dtype.

    Args:
        model: Measured instead of the bridge. In bfloat16 such a model rounds in its own order, so
            it is compared with its own one-by-one runs there (and with the plain model in float32).
        layers: Where edits are tried.
    """
    family = Family(name, dtype)
    alone = model if dtype == "bf16" else None
    model = model or mm.load_model(family.plain, tokenizer=tokenizer())
    for side in ("left", "right"):
        for cached in (True, False):
            base = Cell(name, "", side, cached, dtype)
            if cached and side == "right" and name in SLIDING:
                why = (
                    "a cached token after right padding counts padding into its sliding window; "
                    "the library generates after left padding only"
                )
                for kind in ("read", "edit", "generate"):
                    yield replace(base, kind=kind, skipped=why)
                continue
            yield _worst(
                replace(base, kind="read"), family, None, run(model, family, side, cached), alone
            )
            yield max(
                (
                    _worst(
                        replace(base, kind="edit"),
                        family,
                        site,
                        run(model, family, side, cached, Edit(site, change(family.width(site)))),
                        alone,
                    )
                    for site in family.sites
                    if site.layer in layers
                ),
                key=lambda cell: cell.error / cell.limit,
            )
            yield _generate(replace(base, kind="generate"), family, model)


def _worst(
    cell: Cell, family: Family, site: Site | None, found: list[Any], alone: mm.Model | None
) -> Cell:
    expected = family.reference(site) if alone is None else _one_by_one(alone, family, site)
    errors = family.compare(found, expected)
    noise = family.noise(site) if family.dtype == "bf16" else dict.fromkeys(errors, LIMIT)
    name = max(errors, key=lambda key: errors[key] / noise[key])
    label = name if site is None else f"{name} after an edit at {site}"
    return replace(cell, error=errors[name], limit=noise[name], worst=label)


def _one_by_one(model: mm.Model, family: Family, site: Site | None) -> list[Any]:
    edit = None if site is None else Edit(site, change(family.width(site)))
    singles = [Family(family.name, family.dtype, [row]) for row in range(len(family.prompts))]
    return [run(model, single, "left", False, edit)[0] for single in singles]


def _generate(cell: Cell, family: Family, model: mm.Model) -> Cell:
    """The engine's own greedy text: how much of it differs, where the plain model is sure."""
    if cell.side == "right":
        return replace(cell, skipped="generation pads on the left, whatever the tokenizer's side")
    return replace(cell, error=float(wrong_tokens(family, model, cell.cached)), limit=0.0)


def wrong_tokens(family: Family, model: mm.Model, cached: bool) -> int:
    """Prompts continued otherwise than by the plain model, edited and not."""
    wrong = 0
    for site in (None, Site("resid_post", 0), Site("attn_out", 1)):
        act = None if site is None else change(family.width(site))
        view = model if site is None else model.with_interventions([Edit(site, act)])
        for ids, new in zip(family.prompts, generated(view, family.prompts, cached), strict=True):
            expected, lead = family.greedy(ids, None if site is None else (site, act))
            sure = family.dtype == "fp32" or lead > 0.05
            wrong += sure and new != expected
    return wrong


def generated(model: mm.Model, ids: list[list[int]], cached: bool) -> list[list[int]]:
    """Greedy text by the engine with its cache, or by recomputing with one more token each time."""
    texts = [" ".join(str(token - 4) for token in row) for row in ids]
    if cached:
        model = replace(model)
        model.__dict__["eos_ids"] = ()
        return [list(done.ids) for done in model.complete(texts, STEPS)]
    new: list[list[int]] = [[] for _ in ids]
    for _ in range(STEPS):
        own = tuple(TokenizedPrompt(str(k), tuple(row), {}) for k, row in enumerate(ids))
        whole = [
            TokenizedPrompt(p.id, (*p.ids, *done), {}) for p, done in zip(own, new, strict=True)
        ]
        batch = Batch.collate(whole, range(len(ids)), 1)
        feed = Feed(own, batch.index, torch.tensor([len(row) for row in ids]), batch.rows)
        with torch.no_grad(), checked_hooks(model.backend, feed, model.interventions):
            logits, _ = model.backend.forward(batch.ids, batch.mask, last_only=True)
        for row, token in zip(new, logits[:, -1].argmax(-1).tolist(), strict=True):
            row.append(token)
    return new


HEADS = {
    f"{side}, cache {'on' if on else 'off'}": (side, on)
    for side in ("left", "right")
    for on in (True, False)
}
COLUMNS = ("kind", "dtype", "family", *HEADS, "worst at")
LACKING = ("why", "what was not measured", "families")


def grid(measured: Sequence[Cell]) -> list[list[str]]:
    """A row per kind, number format and family, as `COLUMNS` says."""
    rows: dict[tuple[str, str, str], dict[tuple[str, bool], Cell]] = {}
    for cell in measured:
        row = rows.setdefault((cell.kind, cell.dtype, cell.family), {})
        row[cell.side, cell.cached] = cell
    shown = []
    for key, found in rows.items():
        where = "" if key[0] == "generate" else _worst_at(list(found.values()))
        shown.append([*key, *(_shown(found[head]) for head in HEADS.values()), where])
    order = list(dict.fromkeys(cell.family for cell in measured))
    places = [("read", "edit", "generate"), tuple(DTYPES), tuple(order)]
    return sorted(shown, key=lambda row: [k.index(x) for k, x in zip(places, row[:3], strict=True)])


def largest(rows: Sequence[Sequence[str]]) -> str:
    """One line: the largest error of every kind and number format."""
    said: dict[tuple[str, str], str] = {}
    for kind, dtype, _, *cells, _ in rows:
        here = [cell for cell in cells if cell != SKIPPED] + [said.get((kind, dtype), "0")]
        said[kind, dtype] = max(here, key=lambda cell: float(cell.split()[0]))
    return "; ".join(f"{kind} {dtype} {most}" for (kind, dtype), most in said.items())


def lacking(measured: Sequence[Cell]) -> list[list[str]]:
    """What was not measured: a row per reason and families, as `LACKING` says."""
    families = dict.fromkeys(cell.family for cell in measured)
    found: dict[str, dict[str, dict[str, None]]] = {}
    for c in measured:
        if c.skipped:
            what = f"{c.kind}, {c.side} padding, cache {'on' if c.cached else 'off'}"
            found.setdefault(c.skipped, {}).setdefault(what, {})[c.family] = None
    rows = []
    for why, cells in sorted(found.items()):
        names: dict[str, list[str]] = {}
        for what, who in sorted(cells.items()):
            same = "all" if len(who) == len(families) else ", ".join(who)
            names.setdefault(same, []).append(what)
        rows += [[why, "; ".join(whats), who] for who, whats in names.items()]
    return rows


def _worst_at(found: Sequence[Cell]) -> str:
    worst = max(found, key=lambda c: -1 if c.skipped else c.error / c.limit)
    return worst.worst if worst.error > 0 else "nowhere"


def _shown(cell: Cell) -> str:
    if cell.skipped:
        return SKIPPED
    if cell.kind == "generate":
        return f"{cell.error:.0f} of 9"
    return f"{cell.error:.1e}" if cell.dtype == "fp32" else f"{cell.error / cell.limit:.2f}"


def measure(title: str, best_prefixes: Sequence[str], hooked: bool, page: Path) -> str:
    """A titled summary of every cell of some families; the cells go into a file beside the page."""
    measured = []
    for dtype in DTYPES:
        for name in best_prefixes:
            model = None
            if hooked:
                made = hooked_transformer(name, DTYPES[dtype])
                model = mm.load_model(made, tokenizer=tokenizer(), prepend_bos=False)
            measured += cells(name, dtype, model)
    for cell in measured:
        if not cell.holds:
            print("does not hold:", cell)
    held = sum(cell.holds and not cell.skipped for cell in measured)
    count = sum(not cell.skipped for cell in measured)
    summary = f"{held} of {count} measured cells hold"
    print(title, summary)
    rows = grid(measured)
    name = title.replace(", ", "-")
    file = page.with_suffix("") / f"{name}.csv"
    write_csv(file, COLUMNS, rows)
    lacks = page.with_suffix("") / f"{name}-not-measured.csv"
    write_csv(lacks, LACKING, lacking(measured))
    return (
        f"### {title}\n\n{summary} ([every cell]({page.stem}/{file.name})); "
        f"{len(measured) - count} were not measured ([why]({page.stem}/{lacks.name})). "
        f"Largest: {largest(rows)}.\n"
    )


def write_csv(file: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table into a file beside the page."""
    file.parent.mkdir(exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([columns, *rows])


def main(path: str) -> None:
    target = Path(path)
    known = versions()
    version = known["transformer-lens"]
    about = ", ".join(f"{name} {known[name]}" for name in ("torch", "transformers"))
    body = f"## TransformerLens {version}\n\nMeasured with {about}, on a CPU.\n\n"
    body += measure(f"TransformerBridge, {version}", list(FAMILIES), False, target)
    if HAS_HOOKED_TRANSFORMER:
        hooked = measure(f"HookedTransformer, {version}", list(HOOKED_FAMILIES), True, target)
        body += f"\n{hooked}"
    start, end = (f"<!-- {word} of TransformerLens {version[0]} -->" for word in ("start", "end"))
    text = target.read_text(encoding="utf-8")
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    target.write_text(f"{before}{start}\n\n{body}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
