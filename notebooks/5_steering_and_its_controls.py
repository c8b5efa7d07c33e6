# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Steering and its controls
#
# Every kind of edit, where it acts, what it must be compared with, and what can be taken away from
# here. The model is `lab/addition-cued`, whose mode is planted; see the first notebook.

# %%
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import mechmem as mm

model = mm.load_model("lab/addition-cued")
task = mm.get_task("addition-cued")
train, _, test = task.pairs(n=400, seed=0).split(train=0.6, validation=0.0, test=0.4, seed=0)
flips = mm.observe(model, train, task=task).flips()
acts = mm.cache_activations(model, flips, sites="resid_post")
before = mm.observe(model, test, task=task)
print(flips, before)

# %% [markdown]
# ## 1. An edit is data
#
# It names an operation, values, sites, positions and a strength. It acts inside a `with` block, on a
# view of the model; afterwards the model is as it was.

# %%
r = mm.difference_of_means(acts, toward="generalized")
leace = mm.fit_directions(acts, method="leace", toward="generalized")
nmd = mm.neuron_mean_difference(acts)
site = ("resid_post", 1)
edit = mm.AddDirection(r[site], alpha=2.0, positions="last")

plain = model.logits(test)
with mm.patched(model, edit) as edited:
    changed = edited.logits(test)
print("largest change of a logit inside:", float((changed - plain).abs().max()))
print("and after the block:", float((model.logits(test) - plain).abs().max()))
edit.describe()

# %% [markdown]
# The report says where it fired, on how many tokens, and how far it moved them. An edit whose hook
# was never called is an error.

# %%
edited.edit_report().table().round(2)

# %% [markdown]
# ## 2. Every kind, each beside a control of its own size
#
# One row per edit on prompts that no fit has seen. `beyond` is the change of the generalized share
# minus that of the control named, paired prompt by prompt. An interval that holds 0 shows nothing.
# None of the settings was chosen: they show what the kinds are, not which is best. Eleven intervals
# are looked at without a correction.

# %%
top = nmd.top(0.1)
edits = {
    "AddDirection": edit,
    "ProjectOut": mm.ProjectOut(r[site], positions="last"),
    "ScaleProjection": mm.ScaleProjection(r[site], scale=1.0, positions="last"),
    "SetProjection": mm.SetProjection(r[site], toward="generalized", positions="last"),
    "Erase": mm.Erase(leace[site], positions="last"),
    "ShiftNeurons": mm.ShiftNeurons(nmd, top=0.1, alpha=2.0, toward="generalized"),
    "ClampNeurons": mm.ClampNeurons(top, minimum=-0.1, maximum=0.1),
    "AblateNeurons": mm.AblateNeurons(top, mode="mean"),
    "AblateHeads": mm.AblateHeads({("z", 1): [0, 1]}, mode="zero"),
    "AblateSites": mm.AblateSites(("mlp_out", 1), mode="zero"),
    "SkipLayers": mm.SkipLayers(("resid_post", 1)),
}


def beside_controls(name, edit):
    rates = mm.evaluate(model, test, task=task, edit=edit, before=before)
    rows = []
    for control, placebo in mm.controls(edit, model, seed=0).items():
        if control == "alpha 0":
            continue
        other = mm.evaluate(model, test, task=task, edit=placebo, before=before)
        rows.append((rates.compared_with(other, "generalized"), control))
    beyond, against = min(rows, key=lambda row: abs(row[0].value))
    return {
        "edit": name,
        "generalized": str(rates.share("generalized")),
        "other": str(rates.share("other")),
        "change": str(rates.change("generalized")),
        "closest control": against,
        "beyond it": str(beyond),
    }


pd.DataFrame([beside_controls(name, edit) for name, edit in edits.items()])

# %% [markdown]
# Read `other` as well: an edit that makes the model answer nonsense has moved the share of
# generalized answers, too, and has steered nothing. `SkipLayers` and `AblateSites` do that here.
# Of those that were meant to steer, the added direction and `SetProjection` go well beyond their
# controls; the shift of the top neurons at this strength does **not** go beyond shifts of the
# lowest-ranking ones, and LEACE's eraser moves nothing.
#
# `PatchActivations` takes the states of another prompt. For whole sets of pairs
# `activation_patching` does it site by site with its own two controls: donors of other sums, and
# donors of the recipient's own class.

# %%
held_flips = before.flips()
patching = mm.activation_patching(
    model,
    held_flips,
    toward="generalized",
    sites="resid_post",
    positions=["cue", "last"],
    task=task,
)
patching.table().round(2)

# %% [markdown]
# Compare `recovery` with its two controls. At the last token after block 0, donors of *another* sum
# and even donors of the recipient's own class change the margin as much: what is patched there
# breaks the recipient's answer more than it carries the mode. After the last block recovery is 1 by
# construction, for that state is the answer.
#
# ## 3. Where: one language for reading and editing
#
# The same direction, added at other positions. Named spans come from the prompts: here `cue`, the
# cue words.

# %%
rows = []
for where in ("last", "cue", "operands", "each_step", "prompt", "all"):
    placed = mm.AddDirection(r[site], alpha=2.0, positions=where)
    placebo = mm.controls(placed, model, seed=0)["random direction"]
    rates, other = (
        mm.evaluate(model, test, task=task, edit=e, before=before) for e in (placed, placebo)
    )
    with mm.patched(model, placed) as view:
        view.logits(test)
    report = view.edit_report().table()
    rows.append(
        {
            "positions": where,
            "tokens moved": int(report["tokens"].sum()),
            "change": str(rates.change("generalized")),
            "minus random direction": str(rates.compared_with(other, "generalized")),
        }
    )
pd.DataFrame(rows)

# %% [markdown]
# For answers of one token `each_step` is the last prompt token, and `all` is the prompt. At the cue
# words alone this direction does nothing: it was read at the last token, and what is written there
# is coded otherwise.
#
# ## 4. How much: dose and response
#
# Both directions and the placebo of the same length. If the placebo's line rises along, the dose
# is noise.

# %%
response = mm.evaluation.margin_response(
    model, edits["ShiftNeurons"], test, task=task, doses=[0, 0.5, 1, 1.5, 2]
)
mm.plotting.margin_response(response)

# %% [markdown]
# ## 5. Only where a probe says so
#
# A gate lets the edit through at tokens that lie on one side of a classifier. It reads the state
# *before* the edit. `closed` counts tokens that were left alone.

# %%
probe = mm.fit_directions(acts, method="logistic", toward="generalized")
gated = mm.OnlyWhere(edit, probe[site], when="memorized")
with mm.patched(model, gated) as view:
    view.logits(test)
print(view.edit_report().table()[["tokens", "closed"]].to_dict("records"))
rows = []
for name, one in {"everywhere": edit, "only where memorized": gated}.items():
    rates = mm.evaluate(model, test, task=task, edit=one, before=before)
    rows.append(
        {
            "gate": name,
            "memorized became generalized": str(rates.given("memorized", "generalized")),
            "generalized stayed": str(rates.given("generalized", "generalized")),
        }
    )
pd.DataFrame(rows)

# %%
pd.DataFrame([beside_controls("OnlyWhere", gated)])

# %% [markdown]
# The gate leaves generalized answers alone, and misses some memorized ones that it does not recognize.
# Its controls act behind the same gate.

# %% [markdown]
# ## 6. Several edits: order matters at one site
#
# Different sites act in the order of the network, however they are listed. At one site the listed
# order counts: adding and then projecting out leaves nothing along `r`; projecting out and then
# adding leaves exactly `r`.

# %%
add, remove = mm.AddDirection(r[site], alpha=1.0), mm.ProjectOut(r[site])
for name, both in {"add, remove": [add, remove], "remove, add": [remove, add]}.items():
    with mm.patched(model, both) as view:
        states = mm.cache_activations(view, test[:50], sites=[site])
    along = r[site].project(states[site][:, 0])
    print(f"{name}: projection {float(along.mean()):+.4f} +- {float(along.std()):.1e}")
print(f"length of r: {r[site].norm:.4f}")

# %% [markdown]
# Strength 0 is the unedited model to the bit:

# %%
with mm.patched(model, mm.AddDirection(r[site], alpha=0.0)) as view:
    print(torch.equal(view.logits(test), plain))

# %% [markdown]
# ## 7. Taking it away
#
# Where the mathematics allow it an edit becomes weights. `bake` returns a new transformers model, compared
# with the hooks before you get it; what no weights can say is refused.

# %%
everywhere = mm.ProjectOut(r[site], at="everywhere")
baked = mm.bake(model, everywhere)
with mm.patched(model, everywhere) as view:
    hooked = view.logits(test[:8])
ids = [torch.tensor([model.token_ids(prompt)]) for prompt in test[:8]]
with torch.no_grad():
    weights = torch.cat([baked(one).logits[:, -1] for one in ids])
print("hooks and weights differ by at most", float((hooked - weights).abs().max()))
try:
    mm.bake(model, edit)
except mm.MechmemError as error:
    print("refused:", error)

# %% [markdown]
# Control vectors for other tools: one tensor per site, and the layout of steering-vectors. (`.gguf`
# for llama.cpp needs the `gguf` package.) Other tools add at every position, so an edit that acts
# at the last token only is refused.

# %%
folder = Path(tempfile.mkdtemp())
saved = mm.export_vectors(r, folder / "r.safetensors")
mm.export_vectors(mm.AddDirection(r[site], alpha=2.0), folder / "steer.pt", model=model)
back = mm.import_directions(saved, model=model, toward="generalized", away="memorized")
print(np.array_equal(np.asarray(back[site]), np.asarray(r[site], dtype=np.float32)))
try:
    mm.export_vectors(edit, folder / "last.pt", model=model)
except mm.MechmemError as error:
    print("refused:", error)
