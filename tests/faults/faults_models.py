"""Loading a model, its tokens, sites and positions."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import helpers
import torch
from fault_scene import Fault, Scene, word_tokenizer
from transformers import BertConfig, BertForMaskedLM

import mechmem as mm
from mechmem.models.tokenizing import Tokens


def prompt(words: int, **fields: Any) -> mm.Prompt:
    return mm.Prompt(**{"id": "a", "text": helpers.sentence(words), **fields})


def saved(s: Scene) -> Any:
    """The folder of a tiny model with its tokenizer."""
    folder = s.folder / "model"
    helpers.tiny_gpt2().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    s.settled()
    return folder


def truncated(s: Scene) -> None:
    weights = saved(s) / "model.safetensors"
    s.file("model/model.safetensors", weights.read_bytes()[:2000])
    mm.load_model(s.folder / "model")


def broken_config(s: Scene) -> None:
    saved(s)
    s.file("model/config.json", '{"model_type": "gpt2",')
    mm.load_model(s.folder / "model")


def other_type(s: Scene) -> None:
    config = json.loads((saved(s) / "config.json").read_text())
    s.file("model/config.json", json.dumps({**config, "model_type": "nothing"}))
    mm.load_model(s.folder / "model")


def encoder(s: Scene) -> None:
    config = BertConfig(
        vocab_size=48, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8, architectures=["BertForMaskedLM"],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        made = BertForMaskedLM(config)
    mm.load_model(made, tokenizer=word_tokenizer())


def bare_module(s: Scene) -> None:
    mm.load_model(torch.nn.Identity(), tokenizer=word_tokenizer())


def in_memory(**options: Any):
    return lambda s: mm.load_model(helpers.tiny_gpt2(), **options)


def lab(**options: Any):
    return lambda s: mm.load_model("lab/addition-cued", **options)


def in_train_mode(s: Scene) -> None:
    model = s.fresh()
    model.tl.train()
    try:
        model.logits("w1 w2")
    finally:
        assert model.tl.training


def one_token(s: Scene) -> None:
    asked = [prompt(1), prompt(9, id="b")]
    bare = s.fresh(tokenizer=helpers.word_tokenizer(adds_bos=False))
    assert [len(item.ids) for item in bare.tokenize(asked)] == [1, 9]
    alone = torch.cat([bare.logits(item) for item in asked])
    helpers.close(bare.logits(asked), alone)
    assert len(bare.generate(asked, max_new_tokens=2)) == 2


def full_context(s: Scene) -> None:
    asked = prompt(helpers.N_CTX - 1)
    assert len(s.model.token_ids(asked)) == helpers.N_CTX
    assert s.model.logits(asked).isfinite().all()
    (done,) = s.model.complete(asked, max_new_tokens=8)
    assert len(done.ids) <= 1


def no_pad(s: Scene) -> None:
    tokenizer = helpers.word_tokenizer(pad=False)
    model = s.fresh(tokenizer=tokenizer)
    asked = [prompt(3), prompt(9, id="b")]
    helpers.close(model.logits(asked), torch.cat([model.logits(item) for item in asked]))
    assert tokenizer.pad_token is None


def no_bos(s: Scene) -> None:
    model = s.fresh(tokenizer=helpers.word_tokenizer(bos=False, adds_bos=False))
    assert model.token_ids("w0 w1") == [4, 5]


def slow_spans(s: Scene) -> None:
    from transformers import PreTrainedTokenizer

    class Slow(PreTrainedTokenizer):
        @property
        def vocab_size(self) -> int:
            return 48

        def get_vocab(self) -> dict[str, int]:
            return word_tokenizer().get_vocab()

        def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
            return text.split()

        def _convert_token_to_id(self, token: str) -> int:
            return self.get_vocab().get(token, 2)

        def _convert_id_to_token(self, index: int) -> str:
            return word_tokenizer().convert_ids_to_tokens(index)

    # Set behind load_model: TransformerLens loads tokenizers again by their name.
    slow = Tokens(Slow(bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"))
    replace(s.model, tokens=slow).logits(prompt(3, spans={"cue": (0, 2)}))


def read(**where: Any):
    return lambda s: mm.cache_activations(s.model, s.prompts, **where)


FAULTS = [
    Fault(
        "load a lab model that does not ship",
        lambda s: mm.load_model("lab/addition-ceud"),
        mm.ModelError,
        "No lab model 'lab/addition-ceud' ships with mechmem; there are 'lab/addition',",
        "Did you mean 'lab/addition-cued'?",
    ),
    Fault(
        "load a number",
        lambda s: mm.load_model(7),
        mm.ModelError,
        "Cannot load a model from int",
        "give a name, a folder, a transformers model, a HookedTransformer or a TransformerBridge.",
    ),
    Fault(
        "load a bare torch module",
        bare_module,
        mm.ModelError,
        "Identity has no `config`, so it is not a transformers model",
        "load_model takes transformers, HookedTransformer and TransformerBridge models.",
    ),
    Fault(
        "load an encoder",
        encoder,
        mm.ModelError,
        "is BertForMaskedLM, not a causal language model",
        "needs a ...ForCausalLM model.",
    ),
    Fault(
        "load an in-memory model without its tokenizer",
        in_memory(),
        mm.ModelError,
        "An in-memory transformers model needs its tokenizer",
        "load_model(model, tokenizer=...)",
    ),
    Fault(
        "load a folder without config.json",
        lambda s: mm.load_model(s.file("empty/readme.txt").parent),
        mm.ModelError,
        "holds no model: there is no config.json in it.",
        "Save one there with model.save_pretrained(folder) and tokenizer.save_pretrained(folder).",
    ),
    Fault(
        "load a folder that does not exist",
        lambda s: mm.load_model(s.folder / "nowhere"),
        mm.ModelError,
        "nowhere does not exist",
        "Check the path",
    ),
    Fault(
        "load a folder whose config.json is cut off",
        broken_config,
        mm.ModelError,
        "config.json cannot be read as a model's configuration",
        "Save it again",
    ),
    Fault(
        "load a folder of an unknown model type",
        other_type,
        mm.ModelError,
        "TransformerLens cannot load …model type `nothing`",
        "Check that its files are whole, and that TransformerLens knows this architecture.",
    ),
    Fault(
        "load a folder whose weights are cut off",
        truncated,
        mm.ModelError,
        "TransformerLens cannot load …Error while deserializing header",
        "Check that its files are whole",
    ),
    Fault(
        "load a folder without a tokenizer",
        lambda s: (
            helpers.tiny_gpt2().save_pretrained(s.folder / "m"),
            s.settled(),
            mm.load_model(s.folder / "m"),
        ),
        mm.ModelError,
        "No tokenizer can be loaded from",
        "Save one there with tokenizer.save_pretrained(folder), or pass tokenizer=.",
    ),
    Fault(
        "misspell a keyword of load_model (TransformerLens swallows some)",
        lab(device_maap="auto"),
        mm.ModelError,
        "load_model has no option 'device_maap'",
        "Did you mean 'device_map'?",
    ),
    Fault(
        "ask TransformerLens's processing of load_model",
        lab(fold_ln=True),
        mm.ModelError,
        "load_model has no option 'fold_ln'",
        "options are 'tokenizer', 'device', 'dtype'",
    ),
    Fault(
        "give an option that would have no effect",
        lambda s: mm.load_model(s.model, dtype="bfloat16"),
        mm.ModelError,
        "dtype='bfloat16' would have no effect on a Model that is loaded already",
        "Leave it out.",
    ),
    Fault(
        "place an in-memory model by device_map",
        in_memory(tokenizer=word_tokenizer(), device_map="auto"),
        mm.ModelError,
        "'device_map': an in-memory model is placed already.",
        "Place it with from_pretrained(..., device_map=...), or load it from its folder.",
    ),
    Fault(
        "consume a model on disk",
        lab(consume=True),
        mm.ModelError,
        "consume=True is for in-memory models",
        "Leave it out.",
    ),
    Fault(
        "load in an unknown dtype",
        lab(dtype="float7"),
        mm.ModelError,
        "'float7' is not a floating dtype",
        "use 'float32', 'bfloat16' or 'float16'.",
    ),
    Fault(
        "load in an integer dtype",
        lab(dtype=torch.int8),
        mm.ModelError,
        "torch.int8 is not a floating dtype",
        "use 'float32', 'bfloat16' or 'float16'.",
    ),
    Fault(
        "load an in-memory model to an unknown device",
        in_memory(tokenizer=word_tokenizer(), device="gpu"),
        mm.ModelError,
        "'gpu' is not a device",
        "use 'cpu', 'cuda', 'cuda:1' or 'mps'.",
    ),
    Fault(
        "load from a name to an unknown device",
        lab(device="gpu"),
        mm.ModelError,
        "'gpu' is not a device",
        "use 'cpu', 'cuda', 'cuda:1' or 'mps'.",
    ),
    Fault(
        "force a BOS token on a tokenizer without one",
        in_memory(tokenizer=helpers.word_tokenizer(bos=False, adds_bos=False), prepend_bos=True),
        mm.ModelError,
        "prepend_bos=True, but this tokenizer has no BOS token",
        "leave prepend_bos out, or set tokenizer.bos_token before loading.",
    ),
    Fault(
        "run a model in train mode",
        in_train_mode,
        mm.ModelError,
        "The model is in train mode, where dropout makes every pass different",
        "call model.eval() on it first.",
    ),
    Fault(
        "misspell a keyword of generate",
        lambda s: s.model.generate(s.prompts, max_tokens=3),
        TypeError,
        "got an unexpected keyword argument 'max_tokens'",
    ),
    Fault(
        "generate no token",
        lambda s: s.model.generate(s.prompts, max_new_tokens=0),
        mm.ModelError,
        "got 0",
        "max_new_tokens must be an integer from 1",
    ),
    Fault(
        "generate one and a half tokens",
        lambda s: s.model.generate(s.prompts, max_new_tokens=1.5),
        mm.ModelError,
        "got 1.5",
        "max_new_tokens must be an integer from 1",
    ),
    Fault(
        "score fewer answers than prompts",
        lambda s: s.model.logprobs(s.prompts, ["w1"]),
        mm.PromptError,
        "16 prompts need as many answers, got 1 answer(s)",
        "give one continuation for every prompt, in order.",
    ),
    Fault(
        "score an answer without tokens",
        lambda s: s.model.logprobs("w1 w2", [""]),
        mm.PromptError,
        "The continuation '' of prompt '0' has no tokens",
        "give text that the model could write",
    ),
    Fault(
        "score an answer that does not fit the context",
        lambda s: s.model.logprobs(prompt(helpers.N_CTX - 1), ["w1 w2 w3"]),
        mm.PromptError,
        "has 34 tokens to read, but the model reads at most 32.",
        "Shorten one of them.",
    ),
    Fault(
        "run a prompt of one token",
        one_token,
        None,
        "alone and beside longer ones, the same logits; it can be continued",
    ),
    Fault(
        "run a prompt as long as the context",
        full_context,
        None,
        "it runs; there is room for one more token, so generation ends there",
    ),
    Fault(
        "run a prompt longer than the context",
        lambda s: s.model.logits(prompt(helpers.N_CTX)),
        mm.PromptError,
        "Prompt 'a' has 33 tokens, but the model reads at most 32.",
        "Shorten it, or have prompts cut with model.truncating",
    ),
    Fault(
        "run a prompt without tokens",
        lambda s: s.fresh(tokenizer=helpers.word_tokenizer(adds_bos=False)).logits(" "),
        mm.PromptError,
        "Prompt '0' has no tokens: its text is ' '",
        "give it text",
    ),
    Fault(
        "use a tokenizer without a pad token",
        no_pad,
        None,
        "batches are padded under a mask; the tokenizer is not changed",
    ),
    Fault("use a tokenizer without a BOS token", no_bos, None, "no BOS token is added"),
    Fault(
        "ask for a chat template that the tokenizer lacks",
        lambda s: s.model.logits(prompt(3, chat=mm.Chat(system="w1"))),
        mm.PromptError,
        "Prompt 'a' asks for a chat template, but this tokenizer has none",
        "remove `chat`, or set tokenizer.chat_template before loading.",
    ),
    Fault(
        "name spans for a slow tokenizer",
        slow_spans,
        mm.ModelError,
        "Named spans need a fast tokenizer (character offsets); this one is Slow",
        "Use integer positions instead.",
    ),
    Fault(
        "name a span that covers no token",
        lambda s: s.model.logits(mm.Prompt(id="a", text="w1   w2", spans={"gap": (3, 4)})),
        mm.PromptError,
        "Span 'gap' of prompt 'a' covers no token: ' '",
        "move its (start, end)",
    ),
    Fault(
        "misspell a stream",
        read(sites="resid_psot"),
        mm.SiteError,
        "Unknown stream 'resid_psot'; streams are 'resid_pre', 'z'",
        "Did you mean 'resid_post'?",
    ),
    Fault(
        "name a layer that the model lacks",
        read(sites=("resid_post", 3)),
        mm.SiteError,
        "Layer 3 of 'resid_post' is out of range: the model has 3 layers",
        "0 to 2 (or -1 for the last)",
    ),
    Fault(
        "name a negative layer that the model lacks",
        read(sites=("resid_post", -4)),
        mm.SiteError,
        "Layer -4 of 'resid_post' is out of range",
        "0 to 2 (or -1 for the last)",
    ),
    Fault(
        "name a layer by a bare integer",
        read(sites=3),
        mm.SiteError,
        "A site needs a stream and a layer, got 3",
        "write ('resid_post', 3).",
    ),
    Fault(
        "name layers by a list of integers",
        read(sites=[0, 1]),
        mm.SiteError,
        "0 is not a site",
        "write a stream name for every layer or ('resid_post', 3).",
    ),
    Fault(
        "name a layer by True",
        read(sites=[("resid_post", True)]),
        mm.SiteError,
        "('resid_post', True) is not a site",
        "write a stream name for every layer or ('resid_post', 3).",
    ),
    Fault(
        "name no site",
        read(sites=[]),
        mm.SiteError,
        "No sites given",
        "for example sites='resid_post' for every layer.",
    ),
    Fault(
        "misspell the name of a span",
        read(positions="ceu"),
        mm.PositionError,
        "Unknown position 'ceu' for prompt 'g0.0'; allowed are 'last', 'prompt'",
        "Did you mean 'cue'?",
    ),
    Fault(
        "read generated tokens of prompts",
        read(positions="generated"),
        mm.PositionError,
        "positions='generated' is for edits: a prompt that is only read has no generated tokens.",
        "Read 'last' (the state before the first generated token) instead.",
    ),
    Fault(
        "read ragged positions",
        read(positions="all"),
        mm.PositionError,
        "positions='all' means between 5 and 7 tokens in these prompts, so they cannot be stacked",
        "use 'mean', 'last', or a span with the same number of tokens everywhere.",
    ),
    Fault(
        "read a position beyond a prompt",
        read(positions=30),
        mm.PositionError,
        "Position 30 is outside prompt 'g0.0', which has 5 tokens",
        "0 to 4, or -1 for the last",
    ),
    Fault(
        "pool and read at once",
        read(positions=["mean", "last"]),
        mm.PositionError,
        "'mean' pools the whole prompt; it cannot be combined",
        "read the two one after the other",
    ),
    Fault(
        "name a position by 1.5",
        read(positions=1.5),
        mm.PositionError,
        "1.5 is not a position",
        "use one of 'last', 'prompt'",
    ),
    Fault(
        "name a position by True",
        read(positions=True),
        mm.PositionError,
        "True is not a position",
        "an integer, the name of a span, or a list of these.",
    ),
    Fault(
        "name no position",
        read(positions=[]),
        mm.PositionError,
        "No positions given",
        "for example positions='last'.",
    ),
]
