"""`Model`: a TransformerLens model behind one face, whatever it was made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from mechmem.errors import ModelError, PromptError
from mechmem.models.architectures import architecture, context_length
from mechmem.models.engine.backends import Backend, backend_for
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET
from mechmem.models.engine.capabilities import has_hooks
from mechmem.models.engine.generation import generate
from mechmem.models.engine.hooks import Intervention
from mechmem.models.engine.scoring import answer_logprobs, last_logits
from mechmem.models.engine.stopping import Completion
from mechmem.models.identity import settle_weights
from mechmem.models.sites import Site, SiteSpec, parse_sites
from mechmem.models.tokenizing import (
    EncodedPrompts,
    PromptsLike,
    TokenizedPrompt,
    Tokens,
    as_prompts,
)


@dataclass(frozen=True)
class ModelInfo:
    """The facts of a model that results depend on.

    Attributes:
        name: What it was loaded from.
        architecture: Its Hugging Face or TransformerLens architecture name.
        kind: ``"TransformerBridge"`` or ``"HookedTransformer"``.
        processing: ``"raw"`` weights, or ``"compatibility"`` / ``"processed"`` ones. Directions of
            the two are not comparable.
        n_layers, d_model, n_heads, d_mlp, vocab_size, n_ctx: Sizes; an `n_ctx` of 0 is not a limit.
        dtype: Of the weights.
        fingerprint: Hash of every weight, of `processing` and of the settings that say what is
            computed with them (heads, norms, rotation, windows, caps).
        tokenizer: Hash of the vocabulary and the tokenizer's habits.
    """

    name: str
    architecture: str
    kind: str
    processing: str
    n_layers: int
    d_model: int
    n_heads: int
    d_mlp: int
    vocab_size: int
    n_ctx: int
    dtype: str
    fingerprint: str
    tokenizer: str

    @property
    def is_tiny(self) -> bool:
        """Whether its matrices are so small that threads only wait for each other."""
        return self.d_model <= 256

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Model:
    """A loaded model. Make one with `mechmem.load_model`.

    It never changes the TransformerLens model it holds: hooks are attached for a single forward
    pass and taken away after it, the user's own hooks stay and run first.

    Attributes:
        backend: Drives the TransformerLens model.
        tokens: From prompts to ids and back.
        name: What it was loaded from.
        card: The manifest of a lab model, shipped or trained again, else empty.
        interventions: Edits in force (see `mechmem.patched`).
        loaded: The arguments of `load_model` that make it again in another process; empty for a
            model that came from memory.
    """

    backend: Backend
    tokens: Tokens
    name: str
    card: Mapping[str, Any] = field(default_factory=dict)
    interventions: tuple[Intervention, ...] = ()
    loaded: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def wrap(
        cls,
        tl_model: Any,
        tokenizer: Any,
        name: str,
        *,
        prepend_bos: bool | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> Model:
        """Wrap a TransformerLens model that exists already."""
        backend = backend_for(tl_model)
        settle_weights(tl_model)
        sizes = int(tl_model.cfg.d_vocab) or None
        tokens = Tokens(tokenizer, context_length(tl_model), prepend_bos, sizes)
        return cls(backend, tokens, name, dict(card or {}))

    def __repr__(self) -> str:
        info = self.info
        return (
            f"Model({self.name!r}: {info.architecture}, {info.n_layers} layers, d_model "
            f"{info.d_model}, {info.kind} {info.processing} {info.dtype})"
        )

    @property
    def tl(self) -> Any:
        """The TransformerLens model itself, for everything TransformerLens can do."""
        return self.backend.model

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return int(self.tl.cfg.n_layers)

    @property
    def info(self) -> ModelInfo:
        """Sizes, processing and fingerprints, of the model as it is now.

        Weights are hashed when this is first asked for, and again whenever a glance at them shows
        that they have changed since.
        """
        cfg = self.tl.cfg
        parameter = next(self.tl.parameters())
        return ModelInfo(
            name=self.name,
            architecture=architecture(self.tl),
            kind=self.backend.kind,
            processing=self.backend.processing,
            n_layers=int(cfg.n_layers),
            d_model=int(cfg.d_model),
            n_heads=int(cfg.n_heads),
            d_mlp=int(cfg.d_mlp or 0),
            vocab_size=int(cfg.d_vocab),
            n_ctx=self.tokens.n_ctx or 0,
            dtype=str(parameter.dtype).removeprefix("torch."),
            fingerprint=self.backend.identity.fingerprint(self.backend.processing),
            tokenizer=self.tokens.fingerprint,
        )

    def check_for_folder(self, folder: str | Path) -> None:
        """Look at the model before what it computes is kept in a folder, beside what it computed
        there before: every weight is read again, and hooks of others leave no mark in `info`.

        Raises:
            ModelError: When somebody else has hooked the model.
        """
        if has_hooks(self.tl):
            raise ModelError(
                f"{self.name} has hooks that are not mechmem's, and {folder} would mix what it "
                "computes with and without them. Remove them (model.tl.reset_hooks()), or leave "
                "the folder out."
            )
        self.backend.identity.fingerprint(self.backend.processing, anew=True)

    def sites(self, spec: SiteSpec) -> list[Site]:
        """Sites of this model from what users type; see `mechmem.models.sites.parse_sites`."""
        return parse_sites(spec, self.n_layers)

    def encode(self, prompts: PromptsLike, purpose: str = "run") -> EncodedPrompts:
        """Prompts with the ids and span positions that the model reads, to be handed on: whoever
        asks about them, or about a part of them, does not tokenize them again.

        Raises:
            PromptError: For no prompts (saying for what purpose), for one without tokens, or for
                one longer than the context.
        """
        return self.tokens.encode(as_prompts(prompts).require(purpose))

    def tokenize(self, prompts: PromptsLike) -> list[TokenizedPrompt]:
        """Ids and span positions of every prompt, in order: the rows of `encode`."""
        return list(self.encode(prompts).rows)

    def token_ids(self, prompt: PromptsLike) -> list[int]:
        """Exactly the ids the model is fed for one prompt, BOS and chat template included."""
        return list(self.encode(prompt).rows[0].ids)

    def logits(
        self, prompts: PromptsLike, *, token_budget: int = DEFAULT_TOKEN_BUDGET
    ) -> Float[Tensor, "example vocab"]:
        """Logits (float32, on the CPU) for the token after every prompt.

        Args:
            prompts: A `PromptSet`, a text, or a list of prompts or texts.
            token_budget: Most tokens in one batch, padding included.
        """
        return last_logits(
            self.backend,
            self.encode(prompts).rows,
            interventions=self.interventions,
            pad_id=self.tokens.pad_id,
            token_budget=token_budget,
        )

    def generate(
        self,
        prompts: PromptsLike,
        max_new_tokens: int = 16,
        *,
        stop: Sequence[str] = (),
        token_budget: int = DEFAULT_TOKEN_BUDGET,
    ) -> list[str]:
        """Greedy continuations as text, in order; see `complete` for ids and whether they ended."""
        done = self.complete(prompts, max_new_tokens, stop=stop, token_budget=token_budget)
        return [completion.text for completion in done]

    def complete(
        self,
        prompts: PromptsLike,
        max_new_tokens: int = 16,
        *,
        stop: Sequence[str] = (),
        token_budget: int = DEFAULT_TOKEN_BUDGET,
    ) -> list[Completion]:
        """Greedy continuations with their ids: at every step the likeliest token by the raw logits,
        whatever penalties or suppressed tokens the model's generation_config names.

        Raises:
            ModelError: When ``max_new_tokens`` is not an integer from 1.
        """
        if not _is_count(max_new_tokens):
            raise ModelError(
                f"max_new_tokens must be an integer from 1, got {max_new_tokens!r}; 16 is usual."
            )
        return generate(
            self.backend,
            self.encode(prompts).rows,
            self.tokens.decode,
            max_new_tokens=max_new_tokens,
            stop=[stop] if isinstance(stop, str) else stop,
            eos_ids=self.eos_ids,
            interventions=self.interventions,
            pad_id=self.tokens.pad_id,
            n_ctx=self.tokens.n_ctx,
            token_budget=token_budget,
        )

    def logprobs(
        self,
        prompts: PromptsLike,
        answers: Iterable[str],
        *,
        token_budget: int = DEFAULT_TOKEN_BUDGET,
    ) -> Float[Tensor, " example"]:
        """Log-probability (nats, float64) of a given continuation after every prompt.

        Args:
            prompts: What to condition on.
            answers: One continuation each, exactly as it would follow (white space included).

        Raises:
            PromptError: When there are more or fewer answers than prompts, or one does not fit.
        """
        asked = self.encode(prompts, "score")
        texts = [answers] if isinstance(answers, str) else list(answers)
        if len(texts) != len(asked):
            raise PromptError(
                f"{len(asked)} prompts need as many answers, got {len(texts)} answer(s); "
                "give one continuation for every prompt, in order."
            )
        wanted = [asked.following(row, text) for row, text in enumerate(texts)]
        return self.answer_scores(asked.rows, wanted, token_budget)

    def answer_scores(
        self,
        prompts: Sequence[TokenizedPrompt],
        answers: Sequence[tuple[int, ...]],
        token_budget: int = DEFAULT_TOKEN_BUDGET,
    ) -> Float[Tensor, " example"]:
        """Log-probability (nats, float64) of answers given as ids; a prompt may come several times.

        Raises:
            PromptError: When one does not fit.
        """
        for prompt, answer in zip(prompts, answers, strict=True):
            length = len(prompt.ids) + len(answer) - 1  # its last token is scored, never read
            if self.tokens.n_ctx is not None and length > self.tokens.n_ctx:
                raise PromptError(
                    f"Prompt {prompt.id!r} with its answer has {length} tokens to read, but the "
                    f"model reads at most {self.tokens.n_ctx}. Shorten one of them."
                )
        return answer_logprobs(
            self.backend,
            prompts,
            answers,
            interventions=self.interventions,
            pad_id=self.tokens.pad_id,
            token_budget=token_budget,
        )

    def truncating(self, side: str) -> Model:
        """A view of this model that cuts prompts longer than its context instead of refusing them.

        Every call that cuts warns (`MechmemWarning`) which prompts lost tokens; a beginning-of-
        sequence token stays.

        Args:
            side: ``"left"`` keeps the end of a prompt, ``"right"`` its beginning.
        """
        return replace(self, tokens=self.tokens.truncating(side))

    def with_interventions(self, interventions: Iterable[Intervention]) -> Model:
        """A view of this model on which further interventions act, after those already there."""
        return replace(self, interventions=(*self.interventions, *interventions))

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion."""
        known: list[int] = []
        source = getattr(self.tl, "original_model", None)
        configured = getattr(getattr(source, "generation_config", None), "eos_token_id", None)
        for value in (configured, self.tokens.tokenizer.eos_token_id):
            known += value if isinstance(value, list) else [] if value is None else [value]
        return tuple(dict.fromkeys(known))


def _is_count(value: Any) -> bool:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return whole and int(value) >= 1
