"""What was seen on a real pretrained model. For docs/real-model.md.

python docs/pages/real_model.py measure    # SmolLM2-135M-Instruct; about 10 minutes of CPU
python docs/pages/real_model.py page       # from docs/real-model/*.csv
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

import mechmem as mm
from mechmem.tasks.facts.conflict import WORDINGS

HERE = Path(__file__).parents[1]
FOLDER, PAGE = HERE / "real-model", HERE / "real-model.md"
MODEL, EVERY = "real/smollm2-135m", 3
"""Every third shipped fact is asked."""


def measure() -> None:
    """Ask the model and write the tables."""
    model = mm.load_model(MODEL)
    FOLDER.mkdir(exist_ok=True)
    tables = mm.read_labels(model).tables()
    tables["baselines"].to_csv(FOLDER / "reading.csv", index=False)
    tables["shape"].to_csv(FOLDER / "shape.csv", index=False)
    task = mm.get_task("conflict", wordings=list(WORDINGS))
    task.facts = task.facts[::EVERY]
    known = task.prepared(lambda prompts: mm.observe(model, prompts, task=task).outcomes)
    rows = []
    for name in WORDINGS:
        seen = mm.observe(model, known.prompts(name), task=known)
        counts = {outcome: seen.outcomes.count(outcome) for outcome in seen.allowed}
        margin = round(float(seen.margins.mean()), 2)
        rows.append({"wording": name, **counts, "n": len(seen), "asked": len(task.facts)})
        rows[-1]["mean_margin"] = margin
    pd.DataFrame(rows).to_csv(FOLDER / "wordings.csv", index=False)


def page() -> None:
    """Write the page from the tables."""
    reading, shape, wordings = (
        pd.read_csv(FOLDER / f"{name}.csv") for name in ("reading", "shape", "wordings")
    )
    chosen = shape[shape["site"] == reading["site"].iloc[0]].iloc[0]
    massive = shape[shape["largest_coordinate"] > 0.5]["layer"]
    n, asked = int(wordings["n"].iloc[0]), int(wordings["asked"].iloc[0])
    lines = [
        "# A real pretrained model",
        "",
        "SmolLM2-135M-Instruct (30 layers, Apache-2.0), as `real/smollm2-135m` loads it. Written",
        "by `docs/pages/real_model.py` from the tables in `docs/real-model/`. Nothing was edited:",
        "no direction has been turned on this model, and no verdict was given.",
        "",
        "## Reasoning and memory, read at the last token",
        "",
        "Difference of means on 120 MMLU-Pro questions; the layer was chosen on them alone:",
        f"{int(chosen['layer'])} (cross-fitted). AUROC with 95 % intervals on other questions,",
        "beside what the input alone tells (fitted on the same questions) and directions of",
        "dealt-out labels (2.5 to 97.5 %).",
        "",
        "| questions | n | direction | dealt-out labels | words | form | length |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in reading.itertuples():
        lines.append(
            f"| {row.set} | {row.n} | {row.x:.2f} [{row.x_low:.2f}, {row.x_high:.2f}] | "
            f"{row.shuffled_low:.2f} to {row.shuffled_high:.2f} | {row.words:.2f} | "
            f"{row.form:.2f} | {row.length:.2f} |"
        )
    lines += [
        "",
        "- Within one subject of MMLU-Redux the label is whether all options are numbers; the",
        "  model is not shown the options. Across subjects and in MMLU-Pro, topic is label.",
        "- Dealt-out labels reach far, and the direction is nearly the states' first principal",
        f"  component (cosine {chosen['cosine_with_first']:.2f}, "
        f"{chosen['first_component']:.0%} of the variance):",
        "  these two kinds differ along the axis on which questions differ most anyway.",
        f"- Massive activations: in layers {massive.min()} to {massive.max()} one coordinate holds "
        "more than half of the",
        f"  direction's squared length (up to {shape['largest_coordinate'].max():.0%}), so norms "
        "and cosines there are its own. At the chosen",
        f"  layer it holds {chosen['largest_coordinate']:.0%}, and {chosen['largest_of_mean']:.0%} "
        "of the mean state's.",
        "- Word problems (GSM8K) against facts are told apart by their words almost as well.",
        "",
        "## What it knows against what the prompt says",
        "",
        f"The task `conflict`, every third shipped fact: {n} of {asked} are known without a false",
        "statement. Behind one, read by choice (undecided within 0.1 nats):",
        "",
        "| wording | known | context | undecided | mean margin (nats) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in wordings.itertuples():
        lines.append(
            f"| {row.wording} | {row.known / row.n:.0%} | {row.context / row.n:.0%} | "
            f"{row.undecided / row.n:.0%} | {row.mean_margin:.2f} |"
        )
    lines += [
        "",
        "Both behaviors stand in one and the same wording, so the item decides too; saying it more",
        "often moves the mean. Wordings: `mechmem.tasks.facts.conflict.WORDINGS`.",
    ]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    {"measure": measure, "page": page}[sys.argv[1]]()
