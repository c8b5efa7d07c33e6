"""Coverage and width of the intervals, on samples whose truth is known.

    python docs/pages/coverage.py [--samples 2000]

Writes ``docs/coverage.csv`` and the table of ``docs/coverage.md``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from mechmem.analysis.association import group_auroc, group_correlation
from mechmem.analysis.intervals import Estimate, group_mean
from mechmem.seeding import keyed_rng

DOCS = Path(__file__).parent.parent
Draw = Callable[[np.random.Generator, int], np.ndarray]
# Members of a group, and the share of members (of a number: of the variance) that is the group's.
DESIGNS = {
    "one each": (1, 0.0),
    "pairs": (2, 0.0),
    "pairs, half shared": (2, 0.5),
    "pairs, all shared": (2, 1.0),
    "1 to 10, independent": (0, 0.0),
    "1 to 10, half shared": (0, 0.5),
    "1 to 10, all shared": (0, 1.0),
}
GROUPS = (10, 20, 50, 200)


def members(rng: np.random.Generator, groups: int, size: int) -> np.ndarray:
    sizes = np.full(groups, size) if size else rng.integers(1, 11, groups)
    return np.repeat(np.arange(groups), sizes)


def counts(rng: np.random.Generator, index: np.ndarray, shared: float, draw: Draw) -> np.ndarray:
    own, group = draw(rng, len(index)), draw(rng, int(index.max()) + 1)[index]
    return np.where(rng.random(len(index)) < np.sqrt(shared), group, own)


def numbers(rng: np.random.Generator, index: np.ndarray, shared: float) -> np.ndarray:
    group, own = rng.normal(size=int(index.max()) + 1)[index], rng.normal(size=len(index))
    return np.sqrt(shared) * group + np.sqrt(1 - shared) * own


def names(index: np.ndarray) -> list[str]:
    return [f"g{k}" for k in index]


def share(rng: np.random.Generator, index: np.ndarray, shared: float, truth: float) -> Estimate:
    draw = lambda r, n: (r.random(n) < truth).astype(float)  # noqa: E731
    return group_mean(counts(rng, index, shared, draw), names(index), kind="share")


def change(
    rng: np.random.Generator, index: np.ndarray, shared: float, up: float, down: float
) -> Estimate:
    draw = lambda r, n: r.choice([1.0, -1.0, 0.0], n, p=[up, down, 1 - up - down])  # noqa: E731
    return group_mean(counts(rng, index, shared, draw), names(index), kind="change")


def mean(rng: np.random.Generator, index: np.ndarray, shared: float) -> Estimate:
    return group_mean(numbers(rng, index, shared), names(index), kind="mean")


def area(
    rng: np.random.Generator, index: np.ndarray, shared: float, truth: float, within: bool
) -> Estimate:
    """The classes lie in groups of their own, or side by side within the groups."""
    positive = (np.arange(len(index)) if within else index) % 2 == 0
    far = np.sqrt(2) * stats.norm.ppf(truth)
    return group_auroc(numbers(rng, index, shared) + far * positive, positive, names(index))


def correlation(
    rng: np.random.Generator, index: np.ndarray, shared: float, rho: float, ranks: bool
) -> Estimate:
    one, noise = numbers(rng, index, shared), numbers(rng, index, shared)
    return group_correlation(
        one, rho * one + np.sqrt(1 - rho**2) * noise, names(index), ranks=ranks
    )


def settings() -> Iterator[tuple[str, str, float, Callable[..., Estimate]]]:
    for truth in (0.03, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.97):
        yield "share", f"{truth}", truth, partial(share, truth=truth)
    for up, down in ((0.03, 0), (0.05, 0), (0.1, 0.05), (0.3, 0), (0.3, 0.2), (0.9, 0)):
        yield "change", f"+{up} -{down}", up - down, partial(change, up=up, down=down)
    yield "mean", "normal", 0.0, mean
    for truth in (0.5, 0.7, 0.9, 0.97):
        for within in (False, True):
            kind = "AUROC within groups" if within else "AUROC"
            yield kind, f"{truth}", truth, partial(area, truth=truth, within=within)
    for rho in (0.0, 0.3, 0.7, 0.95):
        yield "Pearson", f"{rho}", rho, partial(correlation, rho=rho, ranks=False)
        truth = 6 / np.pi * np.arcsin(rho / 2)
        yield "Spearman", f"{rho}", truth, partial(correlation, rho=rho, ranks=True)


def wilson(value: float, groups: float) -> float:
    z = 1.959964
    inner = value * (1 - value) / groups + z**2 / 4 / groups**2
    return float(2 * z * np.sqrt(max(inner, 0.0)) / (1 + z**2 / groups))


def measured(samples: int) -> pd.DataFrame:
    rows = []
    for quantity, setting, truth, make in settings():
        for design, (size, shared) in DESIGNS.items():
            if quantity == "AUROC within groups" and (size != 2 or shared == 1):
                continue  # members that share all leave no area but that of the classes
            for groups in GROUPS:
                rng = keyed_rng(0, "coverage", quantity, setting, design, groups)
                found, oracle = [], []
                for _ in range(samples):
                    index = members(rng, groups, size)
                    one = make(rng, index, shared)
                    found.append((one.value, one.low, one.high))
                    sizes = np.bincount(index)
                    oracle.append(wilson(one.value, sizes.sum() ** 2 / (sizes**2).sum()))
                value, low, high = np.array(found).T
                known = np.isfinite(low)
                width = float((high - low)[known].mean())
                if quantity == "share":
                    best = float(np.mean(oracle))
                else:
                    best = float(2 * np.quantile(np.abs(value - truth), 0.95))
                rows.append(
                    {
                        "quantity": quantity,
                        "setting": setting,
                        "design": design,
                        "groups": groups,
                        "coverage": float(((low <= truth) & (truth <= high))[known].mean()),
                        "width": width,
                        "oracle": best,
                        "ratio": width / best,
                        "without_width": float((high - low <= 0).mean()),
                        "known": float(known.mean()),
                    }
                )
        print(quantity, setting, flush=True)
    return pd.DataFrame(rows)


def grouped(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The settings of each quantity (and number of groups) together, in words of the page."""
    rows = []
    for key, part in frame.groupby(by, sort=False):
        coverage, ratio = part["coverage"], part["ratio"]
        said = (f"{coverage.min():.1%}", f"{coverage.mean():.1%}")
        said += (f"{ratio.median():.2f}", f"{ratio.max():.2f}")
        rows.append([*key, len(part), *said])
    names = ["settings", "coverage, least", "mean", "width / oracle, median", "most"]
    return pd.DataFrame(rows, columns=[*by, *names])


def summary(frame: pd.DataFrame) -> str:
    """The table of the page: a row per quantity."""
    table = grouped(frame, ["quantity"])
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=DOCS)
    given = parser.parse_args()
    frame = measured(given.samples)
    frame.round(4).to_csv(given.out / "coverage.csv", index=False)
    by_groups = grouped(frame, ["quantity", "groups"])
    by_groups.to_csv(given.out / "coverage-by-groups.csv", index=False)
    page = given.out / "coverage.md"
    if page.exists():
        text = page.read_text(encoding="utf-8")
        page.write_text(
            re.sub(r"(?s)(<!-- table -->\n).*?(?=\n<!-- end -->)", rf"\1{summary(frame)}", text),
            encoding="utf-8",
        )
    print(summary(frame))


if __name__ == "__main__":
    main()
