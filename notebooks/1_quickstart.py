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
# # Is it remembering or computing?
#
# A small language model ships with mechmem. It learned to add four numbers, and it learned a wrong
# answer by heart for a hundred special sums. Which of the two it gives depends on cue words in the
# prompt: **that mode is planted by its training data**. This notebook finds the mode, turns the
# model from one behavior to the other and back, and puts a placebo beside every effect.

# %%
import mechmem as mm

model = mm.load_model("lab/addition-cued")
task = mm.get_task("addition-cued")
model

# %% [markdown]
# ## 1. One question, two ways to answer
#
# A *pair* are two rephrasings of one special sum: other order, other cue words. `memorized` is the
# answer learned by heart, `generalized` is the true sum. The two share a `group`, and sets are split
# by group, so that no rephrasing of a sum lands on both sides.

# %%
pairs = task.pairs(n=1000, seed=0)
train, validation, test = pairs.split(train=0.4, validation=0.2, test=0.4, seed=0)
for prompt in pairs[:2]:
    print(repr(prompt.text), "memorized:", prompt.memorized, "generalized:", prompt.generalized)
train, validation, test

# %% [markdown]
# The model reads exactly these ids, and answers:

# %%
print(model.token_ids(pairs[0]))
print(model.generate(pairs[:4], max_new_tokens=1))

# %% [markdown]
# ## 2. What does it do?
#
# `observe` lets it answer every prompt and reads the answer. None of these prompts was in its
# training. A pair that comes out once memorized and once generalized is a *flip*.

# %%
seen = mm.observe(model, train, task=task)
print(f"{seen.flip_rate:.0%} of the pairs flip")
mm.plotting.behavior_mix(seen)

# %% [markdown]
# ## 3. Where do the two behaviors differ?
#
# Flips are the fair contrast: each brings one memorized and one generalized prompt of the *same*
# sum.
# `neuron_mean_difference` is memorized minus generalized, per coordinate of the residual stream
# after each block, at the last prompt token.

# %%
flips = seen.flips()
acts = mm.cache_activations(model, flips, sites="resid_post", positions="last")
nmd = mm.neuron_mean_difference(acts)
mm.plotting.neuron_map(nmd)

# %% [markdown]
# How well can the behavior be read off each layer? The honest comparison is the dashed line: a
# classifier that sees only the *input words*. Where it is as good, the probe says nothing about the
# model. That is why the next step intervenes.

# %%
probes = mm.fit_probes(acts, seed=0)
mm.plotting.probe_accuracy(probes)

# %% [markdown]
# ## 4. Turn it
#
# Read the cue words and the last token, each with its own mean difference, and add it back at one
# layer: toward the sum, or toward the label. The sums of `test` have not been used for anything
# yet.

# %%
window = mm.neuron_mean_difference(
    mm.cache_activations(model, flips, sites="resid_post", positions=["cue", "last"])
)
edit = mm.ShiftNeurons(window, top=1.0, at=("resid_post", 1), alpha=1.5, toward="generalized")
with mm.patched(model, edit) as turned:
    print("unedited:", model.generate(test[:6], max_new_tokens=1))
    print("turned:  ", turned.generate(test[:6], max_new_tokens=1))

# %%
rates = mm.evaluate(model, test, task=task, edit=edit)
rates.table().round(3)

# %%
mm.plotting.rates_bars(rates)

# %% [markdown]
# ## 5. Is it more than noise?
#
# Every edit has controls of the same size: the same neurons with their shifts exchanged, random
# neurons, random directions (one of the states' own covariance), and strength 0, which must change
# nothing at all (and the paper's own, uniform noise, whose size is another). `compared_with` is the difference
# prompt by prompt, with an interval from resampling whole sums.

# %%
for name, control in mm.controls(edit, model, seed=0).items():
    placebo = mm.evaluate(model, test, task=task, edit=control)
    print(
        f"{name:17} generalized {placebo.share('generalized')}"
        f"   edit minus control {rates.compared_with(placebo, 'generalized')}"
    )

# %% [markdown]
# What has been fitted remembers what it saw. Evaluating on it is refused:

# %%
try:
    mm.evaluate(model, train, task=task, edit=edit)
except mm.LeakageError as error:
    print(error)

# %% [markdown]
# ## 6. Everything at once
#
# `mm.run_study(model, task=task)` does all of this with a grid of edits, chooses on `validation`,
# tests once, and `mm.write_report(study, "out")` writes the report, the tables and the artifacts. On your own
# prompts: `mm.PromptSet.from_csv("mine.csv")` with columns `text`, `group`, `memorized` and
# `generalized`.
