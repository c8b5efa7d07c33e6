"""Tokenizers of every habit load, are never changed, and never give two BOS tokens."""

from __future__ import annotations

import pytest
import torch
from models.plain import plain_pass
from models.zoo import FAMILIES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, ByT5Tokenizer, PreTrainedTokenizerFast

import mechmem as mm

CORPUS = ["the color of the orange is blue", "3 + 11 + 6 = 20", "ring a bell, münchen 你好"] * 3


def word_level(**special):
    words = {word: k for k, word in enumerate(["<unk>", "<bos>", *"abcdefgh"])}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **special)


def byte_level(add_bos):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    core.train_from_iterator(CORPUS, trainer)
    if add_bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


MAKERS = {
    "words without any special token": lambda: word_level(),
    "words with BOS and no pad": lambda: word_level(bos_token="<bos>"),
    "byte-level BPE": lambda: byte_level(add_bos=False),
    "byte-level BPE that adds BOS": lambda: byte_level(add_bos=True),
    "slow, in Python, without BOS": lambda: ByT5Tokenizer(),
}
BOS_BY_ITSELF = ("byte-level BPE that adds BOS",)
TEXTS = ["a b c a", "b", "the color of a bell"]


def fed(tokenizer, text):
    """What the tokenizer gives, but for the end token that ByT5's puts behind every text."""
    ids = tokenizer(text)["input_ids"]
    return ids[:-1] if isinstance(tokenizer, ByT5Tokenizer) else ids


def state_of(tokenizer):
    return (
        len(tokenizer), tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token,
        tokenizer.bos_token, tokenizer.eos_token, tokenizer.get_vocab(),
        [tokenizer(text)["input_ids"] for text in TEXTS],
    )  # fmt: skip


def plain_model(vocab_size, family="llama"):
    config = FAMILIES[family]()
    config.vocab_size = vocab_size
    config.pad_token_id = config.eos_token_id = config.bos_token_id = None
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.mark.parametrize("kind", MAKERS)
def test_the_model_is_fed_what_the_tokenizer_itself_gives(kind):
    tokenizer = MAKERS[kind]()
    before = state_of(tokenizer)
    plain = plain_model(len(tokenizer))
    model = mm.load_model(plain, tokenizer=tokenizer)
    logits = model.logits(TEXTS)
    model.generate(TEXTS, 2)
    for text, row in zip(TEXTS, logits, strict=True):
        ids = fed(tokenizer, text)
        assert model.token_ids(text) == ids
        expected = plain_pass(plain, "llama", ids)[1][-1]
        assert float((row - expected).abs().max()) < 1e-5
    assert state_of(tokenizer) == before


@pytest.mark.parametrize("kind", MAKERS)
def test_from_a_folder_it_is_the_same(tmp_path, kind):
    tokenizer = MAKERS[kind]()
    plain = plain_model(len(tokenizer))
    plain.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = mm.load_model(tmp_path)
    assert [model.token_ids(text) for text in TEXTS] == [fed(tokenizer, t) for t in TEXTS]
    other = mm.load_model(plain, tokenizer=tokenizer)
    assert float((model.logits(TEXTS) - other.logits(TEXTS)).abs().max()) < 1e-5
    assert model.info.tokenizer == other.info.tokenizer


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if "BOS" in kind and "slow" not in kind])
def test_there_is_at_most_one_bos(kind):
    tokenizer = MAKERS[kind]()
    plain = plain_model(len(tokenizer))
    bos = tokenizer.bos_token_id
    for asked, wanted in ((None, int(kind in BOS_BY_ITSELF)), (True, 1), (False, 0)):
        model = mm.load_model(plain, tokenizer=tokenizer, prepend_bos=asked)
        assert model.token_ids("a b").count(bos) == wanted
        spelled = model.token_ids(tokenizer.bos_token + "a b")
        assert spelled.count(bos) == (1 if asked is None else wanted)


def test_a_bos_that_does_not_exist_cannot_be_forced():
    with pytest.raises(mm.ModelError, match="no BOS token"):
        mm.load_model(plain_model(10), tokenizer=word_level(), prepend_bos=True)


def test_the_padding_side_of_the_tokenizer_changes_nothing():
    tokenizer = word_level(bos_token="<bos>")
    plain, results = plain_model(len(tokenizer)), []
    for side in ("left", "right"):
        tokenizer.padding_side = side
        model = mm.load_model(plain, tokenizer=tokenizer)
        results.append(model.logits(["a b c d", "a"]))
        assert tokenizer.padding_side == side
    assert torch.equal(*results)
