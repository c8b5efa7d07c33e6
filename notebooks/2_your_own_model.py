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
# # Your own prompts, your own model
#
# What mechmem needs from you: prompts that can be answered in two ways that differ in the answer,
# rephrased at least once each, and a causal language model. Everything here stays on this machine.

# %%
import shutil
import tempfile
from pathlib import Path

import pandas as pd
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast, set_seed
from transformers.utils import logging

import mechmem as mm

logging.disable_progress_bar()
work = Path(tempfile.mkdtemp())

# %% [markdown]
# ## 1. A table of prompts
#
# Columns `text`, `group`, `memorized` and `generalized`. `group` ties rephrasings of one question;
# splits and intervals go by it. Here a table is made in pandas; a CSV file, JSON lines, Parquet or a
# Hugging Face data set do as well.

# %%
people = {"Bob": "white", "Lily": "pink", "Jack": "gray", "Nancy": "gold", "Tom": "silver"}
rows = []
for name, remembered in people.items():
    for other in people:
        for told in ("blue", "green"):
            facts = [f"{other} is a whale .", f"{other} is {told} .", f"{name} is a whale ."]
            for order in (facts, facts[::-1]):
                rows.append(
                    {
                        "text": " ".join([*order, f"what color is {name} ?"]),
                        "group": f"{name}-{other}-{told}",
                        "memorized": remembered,
                        "generalized": told,
                    }
                )
frame = pd.DataFrame(rows).query("not group.str.match(r'(\\w+)-\\1-')")
frame.to_csv(work / "mine.csv", index=False)
prompts = mm.PromptSet.from_csv(work / "mine.csv")
print(prompts)
frame.head(4)

# %% [markdown]
# A completion is memorized when it *begins* with the memorized answer and ends there at a word's end;
# likewise generalized; everything else is `other`. A table with a column missing is refused with the
# reason:

# %%
try:
    mm.PromptSet.from_pandas(frame.drop(columns="text"))
except mm.MechmemError as error:
    print(error)

# %% [markdown]
# ## 2. Spans: name the place where you expect the decision
#
# A span is a range of characters; it becomes the tokens that cover it, under any tokenizer, template
# and padding. Then `positions="role"` reads or edits there.


# %%
def marked(row):
    start = row["text"].index("whale")
    return mm.Prompt(**row, id=f"p{row.name}", spans={"role": (start, start + len("whale"))})


prompts = mm.PromptSet(marked(row) for _, row in frame.iterrows())
prompts[0]

# %% [markdown]
# ## 3. A model folder
#
# `mm.load_model` takes a folder written by `save_pretrained`, among others. To have one without a
# network, this makes a tiny GPT-2 with **random weights** and a tokenizer of our words.

# %%
words = sorted({word for prompt in prompts for word in prompt.text.split()} | set(people.values()))
vocabulary = {word: k for k, word in enumerate(["<pad>", "<unk>", "<end>", *words])}
core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
core.pre_tokenizer = WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
)
set_seed(0)
config = GPT2Config(
    vocab_size=len(vocabulary), n_positions=48, n_embd=32, n_layer=3, n_head=2,
    bos_token_id=None, eos_token_id=2,
)  # fmt: skip
AutoModelForCausalLM.from_config(config).save_pretrained(work / "random")
tokenizer.save_pretrained(work / "random")
model = mm.load_model(str(work / "random"))
model.info.architecture, model.info.n_layers, model.info.d_model, model.info.n_ctx

# %% [markdown]
# What exactly is it fed? Look once, always: a BOS or a template that is there twice, or not at all,
# changes every number.

# %%
ids = model.token_ids(prompts[0])
print(ids)
print(tokenizer.convert_ids_to_tokens(ids))

# %% [markdown]
# ## 4. Are its sites what their names say?
#
# `check_model` compares every stream of every layer with the model's own modules: reading, editing,
# padding. It proves that hooks and positions are right for this architecture; it says nothing about
# behavior.

# %%
report = mm.check_model(model)
report.table().head(8)

# %% [markdown]
# ## 5. When nothing flips
#
# A model with random weights remembers nothing. The study says so and shows what the model wrote
# instead of giving a number:

# %%
print(mm.observe(model, prompts))
try:
    mm.run_study(model, prompts=prompts, seed=0)
except mm.MechmemError as error:
    print(error)

# %% [markdown]
# This is what you will see most often at first. Usual reasons: the answer does not come first (let it,
# or write a task that reads it), answers need another form of the prompt, or the model does one of
# the two always. At least ten flips are needed in the training part; fifty are comfortable.
#
# ## 6. A model that has both behaviors
#
# Now as if it were yours: the folder of a lab model, with a CSV of questions that it can answer. Its
# mode follows cue words in the prompt; **that was planted by its training**.

# %%
shutil.copytree(Path(mm.models.__file__).parent / "lab" / "addition-cued", work / "my-model")
mine = mm.load_model(str(work / "my-model"))
table = mm.get_task("addition-cued").pairs(n=160, seed=5).to_pandas()
table[["text", "group", "memorized", "generalized"]].to_csv(work / "sums.csv", index=False)
sums = mm.PromptSet.from_csv(work / "sums.csv")
print(mm.observe(mine, sums))

# %%
study = mm.run_study(mine, prompts=sums, doses=(), seed=0)
print(study.answer())
for note in study.notes():
    print("-", note)

# %% [markdown]
# The table of the test set: the chosen edits, every control, and the difference to each with its
# interval. The edit was chosen on other sums, by a rule, before this set was touched.

# %%
columns = ["family", "kind", "control", "toward", "memorized", "generalized", "edit_minus_control"]
limits = ["edit_minus_control_low", "edit_minus_control_high"]
study.tables()["test"][[*columns, *limits]].head(12).round(2)

# %%
study.figures()["rates"]

# %% [markdown]
# `mm.write_report(study, folder)` writes the page, the tables, the manifest and what was fitted:

# %%
page = mm.write_report(study, work / "report")
print(page.name, sorted(path.name for path in page.parent.iterdir()))

# %% [markdown]
# `mm.open` opens a page on which to ask and turn instead of reading. A cell that ends in `opened` shows it inline; from
# a shell it is `mechmem open report`.

# %%
opened = mm.open(study, model=mine)

# %% [markdown]
# The same from a shell: `mechmem study sums.csv --model my-model --out report`. For answers that need
# another reading, write a task (`docs/how-to/task.md`).
