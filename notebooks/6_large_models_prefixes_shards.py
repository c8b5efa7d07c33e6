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
# # Large models, shared beginnings, shards
#
# What changes when the model has billions of weights and the prompts are a million: you plan first,
# run common beginnings once, keep statistics instead of states, and let several processes share the
# work. Everything is shown on small models, for **what must hold is that the numbers stay the same**.
# Times are those of a small processor and mean nothing elsewhere.

# %%
import os
import tempfile
from pathlib import Path

import pandas as pd
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, set_seed

import mechmem as mm

work = Path(tempfile.mkdtemp())
model = mm.load_model("lab/colors")
task = mm.get_task("colors")
pairs = task.pairs(n=300, seed=0)
print(len(model.token_ids(pairs[0])), "tokens:", pairs[0].text)

# %% [markdown]
# ## 1. Plan before you run
#
# The plan says how many tokens will be computed, in how many batches, with how much memory and, from
# one timed batch, about how long. `token_budget` is the size of a batch in tokens, padding included:
# lower it when memory is short.

# %%
for budget in (8192, 1024):
    print(budget, "->", mm.plan_extraction(model, pairs, token_budget=budget))
    print()

# %% [markdown]
# ## 2. Shared beginnings
#
# Prompts that begin alike (a header of worked examples, a chat template) run their common beginning
# once; its keys and values are handed on. The lab models are too short for a long header, so this is
# a GPT-2 with **random weights** and about 290 tokens in front of every question. Only cost and
# equality can be seen here.

# %%
set_seed(0)
tokenizer = AutoTokenizer.from_pretrained(Path(mm.models.__file__).parent / "lab" / "colors")
config = GPT2Config(
    vocab_size=len(tokenizer), n_positions=400, n_embd=128, n_layer=4, n_head=4,
    bos_token_id=None, eos_token_id=None,
)  # fmt: skip
wide = mm.load_model(AutoModelForCausalLM.from_config(config), tokenizer=tokenizer)
header = " ".join(prompt.text for prompt in pairs[200:207])
long = mm.PromptSet(
    mm.Prompt(id=prompt.id, text=f"{header} {prompt.text}", group=prompt.group)
    for prompt in pairs[:60]
)
for share in (True, False):
    print(f"share_prefixes={share}:", mm.plan_extraction(wide, long, share_prefixes=share))
    print()

# %%
shared = mm.cache_activations(wide, long)
whole = mm.cache_activations(wide, long, share_prefixes=False)
pd.DataFrame(
    {
        "site": str(site),
        "largest difference": float((shared[site] - whole[site]).abs().max()),
        "largest state": float(whole[site].abs().max()),
    }
    for site in shared.sites
)

# %% [markdown]
# The difference is rounding. Nothing is shared where it could not be proved to be the same: behind an
# edit that changes the beginning, under hooks of somebody else, with sliding windows that prompts
# outgrow.
#
# ## 3. States on disk, and going on after a kill
#
# `extract_activations` writes shards, each whole or not at all. To see what a kill leaves, one of the
# shards is deleted; the same call makes just that one, with the same bytes.

# %%
folder = work / "states"
store = mm.extract_activations(model, pairs, folder, sites=[("resid_post", 2)], shard_rows=128)
shards = sorted(folder.rglob("*.safetensors"))
print(len(store), "states in", len(shards), "shards, complete:", store.complete)
bytes_before = shards[1].read_bytes()
shards[1].unlink()
print("after the kill, missing:", len(mm.ActivationStore(folder).missing))
store = mm.extract_activations(model, pairs, folder, sites=[("resid_post", 2)], shard_rows=128)
print("again, complete:", store.complete, " same bytes:", shards[1].read_bytes() == bytes_before)

# %% [markdown]
# Rows are read from disk when asked for. Other settings under the same folder are refused, not mixed:

# %%
print(store["resid_post", 2][[4, 0]].shape)
try:
    mm.extract_activations(model, pairs, folder, sites=[("resid_post", 1)], shard_rows=128)
except mm.MechmemError as error:
    print(str(error).replace(str(work), "..."))

# %% [markdown]
# ## 4. Statistics without states
#
# For the mean difference, correlations and effect sizes, counts, means and second moments are enough.
# They are float64, merge exactly, and stay the same size however many prompts there are. The
# bootstrap resamples **groups**, so that rephrasings are not counted as independent.

# %%
adder, sums = mm.load_model("lab/addition-cued"), mm.get_task("addition-cued")
train, validation, test = sums.pairs(n=300, seed=0).split(
    train=0.5, validation=0.2, test=0.3, seed=0
)
flips = mm.observe(adder, train, task=sums).flips()
moments = mm.cache_moments(adder, flips, by="behavior", bootstrap=200, seed=0)
stored = mm.cache_activations(adder, flips)
a, b = mm.neuron_mean_difference(moments).table(), mm.neuron_mean_difference(stored).table()
numbers = a.select_dtypes("number").columns
print(flips)
print("moments against states:", float((a[numbers] - b[numbers]).abs().max().max()))

# %%
low, high = moments.bootstrap.interval(("resid_post", 1), "memorized", "generalized")
means = b[(b["stream"] == "resid_post") & (b["layer"] == 1)].set_index("neuron")["mean_difference"]
found = pd.DataFrame({"difference": means, "low": low[0].numpy(), "high": high[0].numpy()})
apart = (found["low"] > 0) | (found["high"] < 0)
print(f"{apart.sum()} of {len(found)} intervals lie off 0; {0.05 * len(found):.0f} would by chance")
found.loc[found["difference"].abs().nlargest(5).index].round(2)

# %% [markdown]
# The intervals cover which sums happened to be asked, and nothing else: one model, one kind of
# prompt, no correction for looking at 64 coordinates.

# %%
mm.plotting.neuron_map(mm.neuron_mean_difference(moments))

# %% [markdown]
# ## 5. Several processes
#
# Under `torchrun`, or in a SLURM array with `RANK` and `WORLD_SIZE` set, every process makes the same
# plan and takes its share of the shards, dealt out by the tokens in them. They never talk to each
# other. Two ranks, here one after the other in this process:

# %%
for rank in range(2):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    mm.extract_moments(adder, flips, work / "sums", by="behavior", token_budget=400, shard_rows=32)
    print(f"rank {rank} is done; files there: {len(list((work / 'sums').rglob('*.safetensors')))}")
del os.environ["RANK"], os.environ["WORLD_SIZE"]
merged = mm.merge_moments(work / "sums")
c = mm.neuron_mean_difference(merged).table()
print("two ranks against one:", float((c[numbers] - a[numbers]).abs().max().max()))

# %% [markdown]
# ## 6. A sweep that goes on
#
# With `folder=` finished cells are stored under a hash of everything that decides them: edit, prompts,
# model, task. The same call after a kill computes what is missing, a unit of up to 16 cells at a
# time. One file is deleted here; its unit is made again, the others are read.

# %%
nmd = mm.neuron_mean_difference(merged)
grid = [
    mm.ShiftNeurons(nmd, top=top, alpha=alpha)
    for top in (0.05, 0.1, 0.2)
    for alpha in (1.0, 2.0, 3.0)
]
asked = {"task": sums, "validation": validation, "test": test, "draws": 1, "folder": work / "cells"}
first = mm.sweep(adder, grid, **asked)
files = sorted(path for path in (work / "cells").rglob("*") if path.is_file())
files[0].unlink()
kept = {path: path.stat().st_mtime_ns for path in files[1:]}
second = mm.sweep(adder, grid, **asked)
alone = sum(path.stat().st_mtime_ns == time for path, time in kept.items())
print(f"{len(files)} files, one deleted, {alone} of the others left alone")
print("same result:", first.test_table().equals(second.test_table()))
mm.plotting.sweep_cells(second)

# %% [markdown]
# Cells share blocks below the edit and run side by side. Four of them, drawn by the seed, are
# recomputed alone each time; more than 1e-4 of the logits' spread would be an error:

# %%
second.checked

# %% [markdown]
# What it found, beside its controls, on sums that chose nothing:

# %%
for toward in ("memorized", "generalized"):
    best = second.best
    print(f"toward {toward}: change {best.rates[toward].change(toward)}")
    print(f"    minus the strongest control {best.beyond_every_control(toward)}")

# %% [markdown]
# One draw of a control gives no interval, so neither effect is shown here: a claim needs 30 draws, and
# a study's refits.
#
# ## 7. Arithmetic for a model with 8 billion weights
#
# **Computed, not measured**: 32 layers, width 4096, 8 heads of keys and values with 128 each; one
# GPU at 40 % of 990 TFLOP/s; a million prompts of 500 tokens, of which all share 0 or 450.

# %%
weights, layers, width, prompts, length = 8e9, 32, 4096, 1e6, 500
speed = 0.4 * 990e12 / (2 * weights)  # tokens per second
print(f"weights in bf16: {2 * weights / 1e9:.0f} GB; {speed:,.0f} tokens/s")
for common in (0, 450):
    print(f"sharing {common} tokens: {prompts * (length - common) / speed / 3600:.1f} GPU hours")
print(f"states, last token, all layers, bf16: {prompts * layers * width * 2 / 1e9:.0f} GB")
print(f"moments of two classes, float64: {2 * layers * width * 2 * 8 / 1e6:.1f} MB")
print(f"keys and values of one token, bf16: {2 * layers * 8 * 128 * 2 / 1e3:.0f} KB")

# %% [markdown]
# So keep statistics, and store states for few sites or few prompts. For loading:
# `mm.load_model(name, device_map="auto", dtype=torch.bfloat16)`.
