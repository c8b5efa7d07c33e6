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
# # One direction between reasoning and memory, step by step
#
# The paper (arXiv 2503.23084, P2 below) contrasts questions that ask for reasoning with questions
# that ask for memory, takes the difference of their mean states, and steers along it. This notebook
# does so on `lab/recall-reasoning`, which answers `Q: what is the price of Cordor given 3 5 8 ?`
# with a stored value or with the sum, depending on the entity. **That is planted.** The classes here
# are *labels*, what a question asks for; what the model did is looked at separately.

# %%
from dataclasses import replace

import mechmem as mm
from mechmem.patching.margins import behavior_margins

model = mm.load_model("lab/recall-reasoning")
task = mm.get_task("recall-reasoning")
model

# %% [markdown]
# ## 1. Questions and labels
#
# The label comes from a score between 0 and 1: the share of an item's training prompts that were
# answered with the sum. Above 0.5 it is `reasoning`. With questions of your own the score comes from
# a judge or from you. An entity's two attributes share their kind, so **the entity is the group that
# has to be held out**.

# %%
questions = mm.PromptSet(
    replace(question, group=question.meta["entity"]) for question in task.questions(n=768, seed=0)
)
train, validation, test = questions.split(train=0.5, validation=0.2, test=0.3, seed=0)
for question in test[:2]:
    print(repr(question.text), question.label, question.meta["score"], "answer:", question.answer)
train, validation, test

# %% [markdown]
# What does the model do with them?

# %%
seen = mm.observe(model, test, task=task)
answers = seen.table()
answers["label"] = [question.label for question in test]
answers.groupby("label")["behavior"].value_counts(normalize=True).unstack().round(3)

# %% [markdown]
# Nearly everything is right, so an edit can hardly raise accuracy here. Keep that in mind below.
#
# ## 2. Directions by six methods
#
# States at the last token, at the input and after every block. All methods point toward `reasoning`
# and are as long as the class means lie apart along them, so `alpha` means the same for all.

# %%
acts = mm.cache_activations(model, train, sites="resid_post")
held = mm.cache_activations(model, test, sites="resid_post")
methods = ("difference_of_means", "mass_mean", "lda", "logistic", "pca", "leace")
how = {"toward": "reasoning", "by": "label"}

# %% [markdown]
# `pca` takes the first axis of paired differences and needs pairs that contain both classes. These
# questions have none, an entity is one or the other, and the method says so instead of pairing
# strangers:

# %%
found = {}
for method in methods:
    try:
        found[method] = mm.fit_directions(acts, method=method, **how)
    except mm.MechmemError as error:
        print(method, "->", error)
found["difference_of_means"]["resid_post", 2]

# %% [markdown]
# ## 3. Are the two told apart on entities the fit has not met?
#
# AUROC of the projection; one half is chance. Beside it: random directions, shuffled labels and the
# input tokens alone. The intervals resample entities.

# %%
separations = {name: mm.separation(r, held, by="label") for name, r in found.items()}
for name, separation in separations.items():
    print(f"{name:20}", separation.table()["auroc"].round(2).tolist())
r = found["difference_of_means"]
mm.plotting.separation_profile(separations["difference_of_means"])

# %%
separations["difference_of_means"].table().round(2)

# %% [markdown]
# A high AUROC says that the label can be read along this line. It does not say that the model reads
# it.
#
# ## 4. Geometry
#
# Cosine of each state with the direction, by layer; then the two main axes of the training states
# with the held-out ones projected into them. The axes are those of the training states alone.

# %%
mm.plotting.cosine_profile(mm.cosine_profile(r, held, by="label"))

# %%
site = ("resid_post", 2)
mm.plotting.state_map(mm.state_map(acts, site, direction=r, others={"held out": held}))

# %% [markdown]
# In this plane the classes are no two clouds: it holds a third of the direction, and what varies most
# between states is something else.
#
# ## 5. Does the score go with the projection?
#
# Most scores here are 0 or 1; only the disputed entities lie between. A correlation therefore
# mostly repeats the separation. The band is that of random directions.

# %%
scores = {question.id: question.meta["score"] for question in test}
correlation = mm.score_correlation(r, held, scores, by="label")
mm.plotting.score_correlation(correlation, site=site)

# %%
disputed = test.filter(lambda question: 0 < question.meta["score"] < 1)
among = mm.score_correlation(r, held.select(disputed), scores, by="label")
print(disputed)
columns = ["layer", "spearman", "spearman_low", "spearman_high", "random_low", "random_high"]
among.table().drop_duplicates("layer")[[*columns, "n", "groups"]].round(2)

# %% [markdown]
# Among the disputed alone the question is whether the projection is graded. Six entities are too few
# to say: every interval reaches down to 0, and random directions do as well as the estimates.
#
# ## 6. Choosing a direction by rule
#
# `select_direction` asks of every candidate: does projecting it out lower the score of its class
# (*bypass*), does adding it raise the score of the other (*induce*), does it leave neutral prompts
# alone (*kl*)? The score here is the margin between sum and stored value, so only questions with
# both answers serve. Candidates in the last fifth of the layers are dropped, and where none passes,
# nothing is chosen.

# %%
both = validation.filter(lambda question: bool(question.memorized and question.generalized))


def toward_the_sum(view, prompts):
    return -behavior_margins(view, prompts, task=task)


selection = mm.select_direction(model, r, validation=both, score=toward_the_sum, by="label")
selection.table().round(3)

# %% [markdown]
# **No candidate passes**: adding the direction raises the margin toward the sum, but on average it stays
# below 0, so none induces. Projecting it out after block 1 lowers the margin of reasoning questions
# much, and moves the other answers much, too.
#
# ## 7. Steering: both signs, both classes, beside random directions
#
# The sign that helps one class depends on the label, which nobody has at inference time. So every
# strength is tried with both signs on both classes. The strength is chosen on `validation` and used
# once on `test`.

# %%
tried = mm.steering_grid(model, r, validation, alphas=(0.5, 1.0, 2.0), task=task, draws=1, seed=0)
mm.plotting.steering_grid(tried)

# %%
rows = tried.table()
edits = rows[(rows["kind"] == "edit") & (rows["alpha"] > 0)]
layer, alpha = edits.groupby(["layer", "alpha"])["share"].mean().idxmax()
print(f"chosen on validation, one sign for all questions: after block {layer}, alpha {alpha}")
site = ("resid_post", int(layer))
edit = mm.AddDirection(r[site], alpha=float(alpha))
rates = mm.evaluate(model, test, task=task, edit=edit)
print("accuracy:", rates.share("correct"), " change:", rates.change("correct"))
for name, control in mm.controls(edit, model, seed=0).items():
    placebo = mm.evaluate(model, test, task=task, edit=control)
    print(f"  minus {name}: {rates.compared_with(placebo, 'correct')}")

# %% [markdown]
# Accuracy had nothing to gain. Does the direction at least turn answers? On memory questions, how
# often does the *sum* come out (`generalized`), where the stored value is right? Without a task the
# prompts' own two answers are read. The setting is fixed in advance: four times the direction after
# block 2.

# %%
memory = mm.PromptSet(
    replace(question, answer=None)
    for question in test
    if question.label == "memory" and question.memorized and question.generalized
)
strong = mm.AddDirection(r["resid_post", 2], alpha=4.0)
turned = mm.evaluate(model, memory, edit=strong)
print(memory)
print("unedited:", mm.evaluate(model, memory).share("generalized"))
print("edited:  ", turned.share("generalized"), " neither:", turned.share("other"))
for seed in range(3):
    placebo = mm.controls(strong, model, seed=seed)["random direction"]
    pushed = mm.evaluate(model, memory, edit=placebo)
    print(f"  minus random direction {seed}: {turned.compared_with(pushed, 'generalized')}")

# %% [markdown]
# Beyond random directions more sums come out, a few in a hundred. But more than half of the answers
# are then **neither of the two**: the push mostly breaks the answer. A direction that separates the
# labels well is, as far as these edits go, not what decides between the routes here.
#
# ## 8. A case study
#
# One question of each class, the answer to it under a growing push toward reasoning. This is an
# illustration, chosen by its place in the list and nothing else.

# %%
asked = [question for question in test if question.memorized and question.generalized]
cases = [next(q for q in asked if q.label == label) for label in ("memory", "reasoning")]
for case in cases:
    print(f"{case.text!r} ({case.label}; stored {case.memorized}, sum {case.generalized})")
    for alpha in (-8.0, -4.0, 0.0, 4.0, 8.0):
        toward = "reasoning" if alpha >= 0 else "memory"
        push = mm.AddDirection(r["resid_post", 2], alpha=abs(alpha), toward=toward)
        with mm.patched(model, push) as pushed:
            print(f"    alpha {alpha:+.0f}: {pushed.generate([case], max_new_tokens=1)[0]}")

# %% [markdown]
# ## 9. Solved, and still solved when it changes a little?
#
# Perturbational memorization (LiMem, arXiv 2410.23123): an item counts as memorized as far as it is
# solved and its local variants are not. Here one number moves by one. LiMem = accuracy x (1 -
# consistency).

# %%
items = test.filter(lambda question: question.label == "reasoning")[:60]
variants = task.perturbations(items)
limem = mm.evaluation.perturbational_memorization(model, items, variants, task=task)
limem.summary().round(3)

# %% [markdown]
# What was solved stays solved when a number moves: by this measure the answers to reasoning questions
# are worked out, not remembered. The measure sees nothing but answers; it does not say how.
#
# ## In one call
#
# `mm.run_reasoning_study(model, task=task)` or `mechmem study reasoning` does all of this with its own splits,
# tests once, and writes the page.
