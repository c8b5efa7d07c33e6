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
# # "Think or Remember?" step by step
#
# The paper (arXiv 2412.18497, P1 below) asks at which neurons a model that remembers differs from
# one that generalizes, and steers it by shifting those neurons. This notebook walks through its
# steps on `lab/addition-cued`. The mode of that model is **planted by its training data**: the
# numbers show what each step measures and how to read it, not what large models do.
#
# Here a *neuron* is one coordinate of the residual stream, as in the paper.

# %%
from dataclasses import replace

import mechmem as mm

model = mm.load_model("lab/addition-cued")
task = mm.get_task("addition-cued")
pairs = task.pairs(n=600, seed=0)
parts = pairs.split(train=0.4, validation=0.2, test=0.4, seed=0)
train, validation, test = parts
parts

# %% [markdown]
# ## 1. Pairs and flips
#
# The two members of a pair ask for the same sum in other words. A pair that comes out once
# memorized and once generalized is a *flip*. Only flips of `train` are used for fitting: both
# classes then hold the same sums, equally often.

# %%
seen = mm.observe(model, train, task=task)
flips = seen.flips()
print(f"{seen.flip_rate:.0%} of {len(train) // 2} pairs flip: {flips}")
first, second = flips.pairs()[0]
for prompt in (first, second):
    print(repr(prompt.text), "->", prompt.behavior)

# %% [markdown]
# A flip could be a coin toss between two answers that are equally likely. The margin
# `log p(memorized) - log p(generalized)` tells. Here most answers are decided by several nats.

# %%
mm.plotting.margins(seen)

# %% [markdown]
# ## 2. States, and two readings of the paper
#
# The text and the released code differ in which states are ranked and which blocks are edited. Both
# are presets: `p1-paper` ranks the outputs of all blocks and edits all; `p1-code` ranks what
# transformers calls hidden states (embedding, all blocks but the last, the last one after the final
# norm) and edits the lower 25 of 28 blocks, here the same share.

# %%
paper, code = mm.p1_preset("p1-paper"), mm.p1_preset("p1-code")
scores, code_scores = paper.scores(model, flips), code.scores(model, flips)
for name, found in {"p1-paper": scores, "p1-code": code_scores}.items():
    print(f"{name}: {found.total} neurons of {[str(site) for site in found.sites]}")
print("blocks that p1-code edits:", code.edited_blocks(model.n_layers), "of", model.n_layers)

# %% [markdown]
# ## 3. Mean difference or correlation?
#
# `neuron_mean_difference` (NMD) is memorized minus generalized. The paper *ranks* neurons by
# correlation with the behavior and *shifts* them by the NMD. Ranking by NMD alone favors
# coordinates with a large scale, and states grow with depth.

# %%
mm.plotting.neuron_map(scores)

# %%
acts = paper.states(model, flips)
where = mm.layer_distribution(acts, top=0.1, draws=100, seed=0)
mm.plotting.layer_shares(where)

# %% [markdown]
# The gray bars show where a ranking chooses when the classes are exchanged inside the pairs, that is,
# when there is nothing to find: the raw mean difference then goes to the last block, where states are
# largest. A share within the lines of its gray bar says nothing about the behavior.
#
# Are the chosen neurons more than one draw of the data? Two halves of the sums choose for
# themselves:

# %%
halves = mm.split_halves(acts, top=0.1, splits=50, seed=0)
halves.table().round(2)

# %% [markdown]
# ## 4. Can the behavior be read?
#
# A classifier per layer, tested on sums that it was not fitted on. Three baselines stand beside it:
# shuffled labels, the input words alone, and the prompt's length alone.

# %%
probes = mm.fit_probes(acts, seed=0)
mm.plotting.probe_accuracy(probes)

# %%
curve = mm.learning_curve(acts, sizes=[4, 16, 32], repeats=2, seed=0)
mm.plotting.learning_curve(curve)

# %% [markdown]
# **The input words alone are about as good.** The cue words stand in the prompt, so a high accuracy
# shows that the words can be read from the states, not that the model decides there. Only an
# intervention can say more.

# %% [markdown]
# ## 5. Shift them: choose on validation, test once
#
# The paper's grid is {5 %, 10 %} of the neurons times alpha {1, 3, 5}. `sweep` runs every setting
# toward both behaviors on `validation`, chooses one setting, and writes it once on `test`. On 256
# neurons (the paper's model has 89,088) a shift of five mean differences in all layers is a lot.
#
# `p1-code` cannot be tried here. All these prompts end in one token, so the embedding row never
# varies, and the released code puts constant coordinates first. They take every slot:

# %%
print({f"{top:.0%}": code.slots(code_scores, top=top) for top in code.tops})

# %%
grid = {"p1-paper": paper.grid(scores)}
found = mm.sweep(model, grid, task=task, validation=validation, test=test, draws=2, seed=0)
mm.plotting.sweep_cells(found)

# %%
print("chosen:", found.best.family, found.best.edit.describe())
columns = ["memorized", "generalized", "other", "change", "change_low", "change_high"]
tested = found.test_table()
tested[tested["kind"].isin(["unedited", "edit"])][["family", "toward", *columns]].round(3)

# %% [markdown]
# ## 6. Controls
#
# The same size of push without the contrast: random neurons, exchanged shifts, a random direction,
# strength 0. `beyond` is the edit minus one control, paired prompt by prompt, with an interval over
# sums and draws; two draws give a wide one. What counts is the control that the edit beats by least.

# %%
for toward in ("memorized", "generalized"):
    rates = found.best.rates[toward]
    print(f"toward {toward}: {rates.share(toward)}, change {rates.change(toward)}")
    for name in found.best.controls[toward]:
        print(f"    minus {name:20} {found.best.beyond(toward, name)}")
    print(f"    minus the strongest   {found.best.beyond_every_control(toward)}")

# %%
mm.plotting.rates_bars(found)

# %% [markdown]
# With two draws no interval beyond every control lies above 0, either way, and **toward memorized the
# effect is weak**, under ten points. A study takes 30 draws, and its verdict refits. The first
# notebook's edit, which reads the cue words as well, does more; it is not the paper's.
#
# ## 7. Questions a reviewer asks
#
# **Switch or dial?** The share of an answer can jump although the margin moves steadily. A switch
# puts the whole way of a prompt's margin into one step. Here the mean margin moves little by little, and
# the control of the same length drifts along. Toward memorized the effect is gone again at alpha 2.

# %%
chosen = found.best.edit
response = mm.evaluation.margin_response(model, chosen, test, task=task, doses=[0, 0.5, 1, 1.5, 2])
mm.plotting.margin_response(response)

# %% [markdown]
# **Do only near-ties turn?** Answers in bins of their margin before the edit, beside the random
# neurons. Where both turn the same share, the edit has turned what anything would have turned. Toward
# memorized it turns mostly near-ties; toward generalized decided answers as well.

# %%
turned, controls = {}, {}
for toward, rates in found.best.rates.items():
    turned[f"toward {toward}"] = rates
    placebo = mm.controls(replace(chosen, toward=toward), model, seed=0)["random neurons"]
    controls[f"random neurons, {toward}"] = mm.evaluate(model, test, task=task, edit=placebo)
ties = mm.evaluation.near_ties(turned, controls=controls)
mm.plotting.near_ties(ties)

# %% [markdown]
# **What does it cost elsewhere?** Ordinary sums, on which nothing was learned by heart, beside random
# neurons shifted by the same length.

# %%
costs = mm.side_effects(model, chosen, clean=task.clean_prompts(200), task=task)
mm.plotting.side_effects(costs)
