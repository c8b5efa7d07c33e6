"""Builders for tests: tiny models made from a config, local tokenizers, and plain recomputation.

Nothing here uses the library's own engine: what it computes is the expectation of the tests.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jaxtyping
import numpy as np
import torch
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers import decoders as token_decoders
from tokenizers import models as token_models
from tokenizers import trainers as token_trainers
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import mechmem as mm
from mechmem.caching import Provenance, Seen
from mechmem.models.tokenizing import TokenizedPrompt

N_CTX = 32


@contextmanager
def as_users_run_it() -> Iterator[None]:
    """Without the type checks of the test suite: what a wrongly typed value meets in real use."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


WORDS = [f"w{number}" for number in range(40)]
SPECIAL = ["<bos>", "<eos>", "<unk>", "<pad>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def word_tokenizer(
    adds_bos: bool = True, bos: bool = True, pad: bool = True, chat: bool = False
) -> PreTrainedTokenizerFast:
    """One token per blank-separated word ``w0`` ... ``w39``."""
    words = [*SPECIAL, *WORDS, "[user]", "[system]", "[assistant]"]
    vocabulary = {word: index for index, word in enumerate(words)}
    core = Tokenizer(token_models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>" if bos else None,
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>" if pad else None,
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@lru_cache
def _bpe() -> str:
    core = Tokenizer(token_models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = token_decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    core.train_from_iterator(
        ["the answer is twelve", "the animal of the answer", "one two three 12 123 1234"] * 8,
        token_trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return core.to_str()


def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE like GPT-2's: one special token for everything, no BOS added, no pad."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_bpe()),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )


def tiny_gpt2(seed: int = 0, n_layer: int = 3, n_positions: int = N_CTX) -> GPT2LMHeadModel:
    """A random GPT-2, large enough in its weights that every token matters."""
    config = GPT2Config(
        vocab_size=48,
        n_positions=n_positions,
        n_embd=16,
        n_layer=n_layer,
        n_head=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=3,
        initializer_range=0.4,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    return _seeded(GPT2LMHeadModel, config, seed)


def tiny_llama(seed: int = 0, n_layer: int = 2, n_positions: int = N_CTX) -> LlamaForCausalLM:
    """A random Llama with grouped queries."""
    config = LlamaConfig(
        vocab_size=48,
        max_position_embeddings=n_positions,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=n_layer,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=3,
        initializer_range=0.4,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    return _seeded(LlamaForCausalLM, config, seed)


def _seeded(make: Callable[[Any], Any], config: Any, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.2)
    return model.eval()


HOOKED = os.environ.get("MECHMEM_TEST_CLASS") == "HookedTransformer"
"""Run the suite on TransformerLens 3's `HookedTransformer` instead of on a bridge."""


@dataclass
class Bench:
    """A model twice: as plain transformers (the expectation) and as mechmem loads it."""

    hf: Any
    tokenizer: PreTrainedTokenizerFast
    model: mm.Model

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])


@lru_cache
def bench(kind: str = "gpt2") -> Bench:
    """The shared tiny model of a kind. Tests must leave it as they found it."""
    return fresh_bench(kind)


def fresh_bench(kind: str = "gpt2", seed: int = 0, **options: Any) -> Bench:
    """A model of its own, for tests that do something to it."""
    hf = {"gpt2": tiny_gpt2, "llama": tiny_llama}[kind](seed=seed)
    tokenizer = word_tokenizer()
    if HOOKED and not options:
        from models.hooked3 import hooked_from

        return Bench(hf, tokenizer, mm.load_model(hooked_from(hf, kind), tokenizer=tokenizer))
    return Bench(hf, tokenizer, mm.load_model(hf, tokenizer=tokenizer, **options))


def sentence(length: int, seed: int = 0) -> str:
    """``length`` random words."""
    rng = np.random.default_rng(seed * 1000 + length)
    return " ".join(f"w{k}" for k in rng.integers(0, 40, length))


def ragged(n: int = 7, seed: int = 0, **fields: Any) -> mm.PromptSet:
    """Prompts of very different lengths, in no order."""
    lengths = [3, 11, 1, 7, 20, 5, 14, 2, 9, 4, 17, 6]
    return mm.PromptSet(
        mm.Prompt(id=f"p{k}", text=sentence(lengths[k % 12], seed + k), **fields) for k in range(n)
    )


def contrast_set(n_groups: int = 12, seed: int = 0, spread: bool = True) -> mm.PromptSet:
    """Two prompts per group, one of each behavior and label; with a two-token span ``cue``."""
    rng = np.random.default_rng(seed)
    prompts = []
    for group in range(n_groups):
        for member, (behavior, label) in enumerate(
            [("memorized", "memory"), ("generalized", "reasoning")]
        ):
            words = [f"w{k}" for k in rng.integers(0, 40, 4 + (group % 3 if spread else 0))]
            text = " ".join(words)
            start = len(words[0]) + 1
            end = start + len(words[1]) + 1 + len(words[2])
            prompts.append(
                mm.Prompt(
                    id=f"g{group}.{member}",
                    text=text,
                    group=f"g{group}",
                    behavior=behavior,
                    label=label,
                    memorized="w1",
                    generalized="w2",
                    spans={"cue": (start, end)},
                )
            )
    return mm.PromptSet(prompts)


def tokenized(length: int, name: str = "p", spans: Mapping[str, tuple[int, ...]] | None = None):
    """A tokenized prompt of a given length, ids 10, 11, ..."""
    return TokenizedPrompt(name, tuple(range(10, 10 + length)), spans or {})


def close(got: Any, want: Any, tolerance: float = 1e-5) -> None:
    """Equal relative to the size of what is compared."""
    got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    assert got.shape == want.shape, (got.shape, want.shape)
    scale = max(float(np.abs(want).max(initial=0.0)), 1e-30)
    gap = float(np.abs(got - want).max(initial=0.0)) / scale
    assert gap <= tolerance, f"differ by {gap:.3g} of {scale:.3g}"


def differs(got: Any, want: Any, tolerance: float = 1e-3) -> None:
    """Really different, so that an agreement elsewhere means something."""
    got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    assert float(np.abs(got - want).max()) > tolerance * float(np.abs(want).max())


HandEdit = Callable[[Tensor, Tensor], Tensor]
"""From states ``[token, feature]`` and absolute positions ``[token]`` to the changed states."""


def blocks(hf: Any) -> Any:
    """The blocks of a plain transformers model."""
    return hf.transformer.h if hasattr(hf, "transformer") else hf.model.layers


def _parts(block: Any) -> dict[str, nn.Module]:
    """Attention, its last linear map, MLP, its last linear map, and the two norms."""
    if hasattr(block, "ln_1"):
        return {
            "attn": block.attn,
            "o": block.attn.c_proj,
            "mlp": block.mlp,
            "down": block.mlp.c_proj,
            "norm1": block.ln_1,
            "norm2": block.ln_2,
        }
    return {
        "attn": block.self_attn,
        "o": block.self_attn.o_proj,
        "mlp": block.mlp,
        "down": block.mlp.down_proj,
        "norm1": block.input_layernorm,
        "norm2": block.post_attention_layernorm,
    }


@contextmanager
def hand_edited(hf: Any, edits: Mapping[tuple[str, int], Sequence[HandEdit]]) -> Iterator[None]:
    """Plain PyTorch hooks on the transformers model, for batches of one unpadded text."""
    handles: list[Any] = []
    replaced: list[Any] = []

    def run(functions: Sequence[HandEdit], states: Tensor) -> Tensor:
        assert states.shape[0] == 1
        at = torch.arange(states.shape[1])
        out = states[0]
        for function in functions:
            out = function(out, at)
        return out[None]

    def on_output(functions: Sequence[HandEdit]) -> Callable[..., Any]:
        def hook(module: Any, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (run(functions, output[0]), *output[1:])
            return run(functions, output)

        return hook

    def on_input(functions: Sequence[HandEdit]) -> Callable[..., Any]:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            if args:
                return (run(functions, args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": run(functions, kwargs["hidden_states"])}

        return hook

    def through_middle(block: Any, functions: Sequence[HandEdit]) -> Callable[..., Any]:
        parts = _parts(block)
        named = list(inspect.signature(type(block).forward).parameters)[2:]

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            kwargs |= dict(zip(named, args, strict=False))
            attended = parts["attn"](hidden_states=parts["norm1"](hidden_states), **kwargs)
            attended = attended[0] if isinstance(attended, tuple) else attended
            middle = run(functions, hidden_states + attended)
            return middle + parts["mlp"](parts["norm2"](middle))

        return forward

    try:
        for (stream, layer), functions in edits.items():
            block = blocks(hf)[layer]
            parts = _parts(block)
            if stream == "resid_mid":
                block.forward = through_middle(block, functions)
                replaced.append(block)
            elif stream in ("resid_pre", "z", "mlp_post"):
                module = {"resid_pre": block, "z": parts["o"], "mlp_post": parts["down"]}[stream]
                handles.append(
                    module.register_forward_pre_hook(on_input(functions), with_kwargs=True)
                )
            else:
                module = {"attn_out": parts["attn"], "mlp_out": parts["mlp"], "resid_post": block}
                handles.append(module[stream].register_forward_hook(on_output(functions)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for block in replaced:
            del block.forward


def hf_logits(
    hf: Any, ids: Sequence[int], edits: Mapping[tuple[str, int], Sequence[HandEdit]] | None = None
) -> Tensor:
    """Logits ``[token, vocab]`` of one text, all at once, without a cache."""
    with torch.no_grad(), hand_edited(hf, edits or {}):
        return hf(torch.tensor([list(ids)]), use_cache=False).logits[0]


def hf_greedy(
    hf: Any,
    ids: Sequence[int],
    n: int,
    edits: Mapping[tuple[str, int], Sequence[HandEdit]] | None = None,
    eos: Sequence[int] = (1,),
) -> list[int]:
    """Greedy continuation, the whole text computed again for every token."""
    text, out = list(ids), []
    for _ in range(n):
        token = int(hf_logits(hf, text, edits)[-1].argmax())
        if token in eos:
            break
        out.append(token)
        text.append(token)
    return out


def hf_states(
    hf: Any,
    ids: Sequence[int],
    sites: Sequence[tuple[str, int]],
    edits: Mapping[tuple[str, int], Sequence[HandEdit]] | None = None,
) -> dict[tuple[str, int], Tensor]:
    """States ``[token, feature]`` by plain hooks."""
    seen: dict[tuple[str, int], Tensor] = {}

    def keeper(site: tuple[str, int]) -> HandEdit:
        def keep(states: Tensor, at: Tensor) -> Tensor:
            seen[site] = states.clone()
            return states

        return keep

    both = {site: list(functions) for site, functions in (edits or {}).items()}
    for site in sites:
        both.setdefault(site, []).append(keeper(site))
    hf_logits(hf, ids, both)
    return seen


def at_positions(change: Callable[[Tensor], Tensor], where: Callable[[Tensor], Tensor]) -> HandEdit:
    """``change`` on the tokens for which ``where(positions)`` is true."""

    def edit(states: Tensor, at: Tensor) -> Tensor:
        return torch.where(where(at)[:, None], change(states), states)

    return edit


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer."""
    return copy.deepcopy(dict(module.state_dict()))


def hook_count(model: mm.Model) -> int:
    """All hooks on a TransformerLens model: its own lists and PyTorch's."""
    own = sum(len(point.fwd_hooks) for point in set(model.tl.hook_dict.values()))
    torch_hooks = sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.tl.modules()
    )
    return own + torch_hooks


def made_states(
    arrays: Mapping[tuple[str, int], np.ndarray],
    classes: Sequence[str | None],
    groups: Sequence[str] | None = None,
    columns: Sequence[str] = ("last",),
    positions: Any = "last",
    token_ids: Sequence[tuple[int, ...]] | None = None,
) -> mm.Activations:
    """`Activations` from arrays ``[example, position, d]``, as if read from the tiny model."""
    n = len(classes)
    groups = groups or [f"g{k // 2}" for k in range(n)]
    prompts = mm.PromptSet(
        mm.Prompt(id=str(k), text=f"w{k % 40} of {groups[k]}", group=groups[k], behavior=classes[k])
        for k in range(n)
    )
    ids = tuple(token_ids) if token_ids is not None else tuple((0, 4 + k % 40) for k in range(n))
    tokens = [TokenizedPrompt(str(k), ids[k], {}) for k in range(n)]
    return mm.Activations(
        {mm.Site(*site): torch.as_tensor(value) for site, value in arrays.items()},
        prompts,
        tuple(columns),
        ids,
        Provenance(bench().model.info, Seen.of(prompts, tokens), positions),
    )
