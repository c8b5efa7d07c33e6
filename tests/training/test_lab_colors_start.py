"""The hand-made start of the colors model does what it says, before any training."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2LMHeadModel

from mechmem.training.lab.colors import UnrelatedColors, _every_word, _ids
from mechmem.training.lab.colors_start import lay_out
from mechmem.training.models import small_gpt2
from mechmem.training.tokenizers import build_tokenizer


@pytest.fixture(scope="module")
def task():
    return UnrelatedColors()


@pytest.fixture(scope="module")
def tokenizer(task):
    return build_tokenizer(_every_word(task), "words", context=64)


def made(tokenizer, task, laid_out=True):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(small_gpt2(tokenizer))
    model.set_attn_implementation("eager")
    if laid_out:
        lay_out(model, _ids(tokenizer, task), seed=1)
    return model.eval()


def right(model, tokenizer, items):
    hits = 0
    for item in items:
        ids = torch.tensor([tokenizer(item.prompt)["input_ids"]])
        with torch.no_grad():
            said = int(model(ids).logits[0, -1].argmax())
        hits += tokenizer.decode([said]).strip() == item.target.strip()
    return hits / len(items)


def test_it_answers_most_stories_and_random_weights_answer_none(task, tokenizer):
    items = task.training(60, seed=2)
    assert right(made(tokenizer, task), tokenizer, items) >= 0.8
    assert right(made(tokenizer, task, laid_out=False), tokenizer, items) <= 0.2


def test_block_0_looks_two_words_and_one_word_back(task, tokenizer):
    ids = torch.tensor([tokenizer(task.training(1, seed=3)[0].prompt)["input_ids"]])
    with torch.no_grad():
        seen = made(tokenizer, task)(ids, output_attentions=True).attentions[0][0]
    places = torch.arange(2, ids.shape[1])
    assert torch.equal(seen[0, 2:].argmax(-1), places - 2)
    assert torch.equal(seen[1, 2:].argmax(-1), places - 1)


def test_block_3_looks_at_the_color_of_the_clue(task, tokenizer):
    model, found = made(tokenizer, task), 0
    prompts = task.pairs(10, seed=4)
    for prompt in prompts:
        encoded = tokenizer(prompt.text, return_offsets_mapping=True)
        with torch.no_grad():
            attention = model(torch.tensor([encoded["input_ids"]]), output_attentions=True)
        at = int(attention.attentions[3][0, 0, -1].argmax())
        start, end = encoded["offset_mapping"][at]
        found += prompt.text[start:end].strip() == prompt.generalized
    assert found >= 0.6 * len(prompts)


def test_colors_of_the_first_phase_have_nothing_to_do_with_the_names(task):
    items = task.training(400, seed=0)
    agreeing = 0
    for item in items:
        name = item.prompt.rsplit(" ", 1)[1].rstrip("?")
        agreeing += item.target.strip() in task.remembered[name]
    assert agreeing / len(items) < 0.15
