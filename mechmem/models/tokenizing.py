"""From a prompt to token ids, in one place: one BOS at most, template included, spans located."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from mechmem.errors import MechmemWarning, ModelError, PromptError, listed
from mechmem.models.encoded import EncodedPrompts as EncodedPrompts
from mechmem.models.encoded import PromptsLike as PromptsLike
from mechmem.models.encoded import TokenizedPrompt as TokenizedPrompt
from mechmem.models.encoded import as_prompts as as_prompts
from mechmem.models.spelling import pieces, token_text
from mechmem.models.templates import rendered
from mechmem.tasks.prompts import Prompt

_Spelled = tuple[list[int], list[tuple[int, int]]]


class Tokens:
    """The only way from text to ids and back.

    The caller's tokenizer is copied and never changed. A missing pad token is harmless: batches
    are padded with an arbitrary id under a mask.

    Args:
        tokenizer: A Hugging Face tokenizer.
        n_ctx: Longest prompt the model can read, in tokens; ``None`` for no limit.
        prepend_bos: ``None`` follows the tokenizer's own habit (the habit it was trained with);
            ``True`` and ``False`` force exactly one, or no, beginning-of-sequence token. A chat
            template follows its own habit: by default a prompt in it is fed as
            ``apply_chat_template(tokenize=True)`` gives it.
        vocab_size: How many tokens the model embeds; ``None`` where that is not known.
    """

    def __init__(
        self,
        tokenizer: Any,
        n_ctx: int | None = None,
        prepend_bos: bool | None = None,
        vocab_size: int | None = None,
    ) -> None:
        self.tokenizer = copy.deepcopy(tokenizer)
        self.n_ctx = n_ctx
        self.vocab_size = vocab_size
        self.prepend_bos = prepend_bos
        self.truncate: str | None = None
        self.bos_id: int | None = self.tokenizer.bos_token_id
        if prepend_bos and self.bos_id is None:
            raise ModelError(
                "prepend_bos=True, but this tokenizer has no BOS token; leave prepend_bos out, "
                "or set tokenizer.bos_token before loading."
            )
        pad = self.tokenizer.pad_token_id
        self.pad_id: int = pad if pad is not None else (self.tokenizer.eos_token_id or 0)

    def encode(self, prompts: PromptsLike) -> EncodedPrompts:
        """Tokenize prompts, in order; what this encoded already comes back as it is.

        Raises:
            PromptError: For a prompt without tokens or longer than the context, naming it.
        """
        if isinstance(prompts, EncodedPrompts) and prompts.tokens is self:
            return prompts
        asked = as_prompts(prompts)
        rows = [self._encode_one(prompt) for prompt in asked]
        cut = [row.id for row in rows if row.cut]
        if cut:
            warnings.warn(
                f"{len(cut)} of {len(rows)} prompts were cut on the {self.truncate} to "
                f"{self.n_ctx} tokens, as asked: {listed(cut, 5)}.",
                MechmemWarning,
                stacklevel=3,
            )
        return EncodedPrompts(asked, rows, self)

    def truncating(self, side: str) -> Tokens:
        """The same, but prompts longer than the context lose tokens on one side instead of being
        refused; every call says which.

        Raises:
            PromptError: Unless side is ``"left"`` or ``"right"``.
        """
        if side not in ("left", "right"):
            raise PromptError(f"Prompts are cut on the 'left' or the 'right', not on {side!r}.")
        cutting = copy.copy(self)
        cutting.truncate = side
        return cutting

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, special tokens included: they are what was written, too."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def token_text(self, token_id: int) -> str:
        """One token as text; a part of a letter as its bytes, ``<0xE8>``."""
        return token_text(self.tokenizer, token_id)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Every token as the text that it adds; see `mechmem.models.spelling.pieces`."""
        return pieces(self.tokenizer, ids)

    def continuation(
        self, prompt: Prompt, text: str, row: TokenizedPrompt | None = None
    ) -> tuple[int, ...]:
        """Ids of ``text`` when it follows the prompt: from the joined text where the prompt's own
        tokens stay the same, otherwise from ``text`` alone.

        SentencePiece puts a blank before a text that stands alone. Behind a prompt that ends in a
        blank this would be a second one, so there the text is taken from behind a line break.

        Args:
            prompt: What comes before.
            text: What follows it.
            row: The prompt's own tokens, where they are known.
        """
        text_before, plain = rendered(self.tokenizer, prompt)[0], prompt.chat is not None
        whole = row is not None and not row.cut
        head = list(row.ids) if row and whole else self._ids(text_before, plain=plain)[0]
        joined = self._ids(text_before + text, plain=plain)[0]
        if joined[: len(head)] == head and len(joined) > len(head):
            return self._embedded(prompt, joined[len(head) :])
        alone = [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]
        if not alone:
            raise PromptError(
                f"The continuation {text!r} of prompt {prompt.id!r} has no tokens; give text that "
                "the model could write."
            )
        if not self._adds(head, alone, text):
            for anchor in ("\n", "=", "("):
                before = self.tokenizer(anchor, add_special_tokens=False)["input_ids"]
                both = self.tokenizer(anchor + text, add_special_tokens=False)["input_ids"]
                behind = list(both[len(before) :])
                if both[: len(before)] == before and self._adds(head, behind, text):
                    return self._embedded(prompt, behind)
        return self._embedded(prompt, alone)

    def _adds(self, head: Sequence[int], ids: Sequence[int], text: str) -> bool:
        """Whether ids behind a prompt's last tokens spell a text, no blank more or less."""
        last = list(head[-8:])
        return bool(ids) and self.decode([*last, *ids]) == self.decode(last) + text

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the vocabulary and of how a probe text is tokenized."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        probe = self._ids("One 1+2=3 probe.\n")[0]
        return hashlib.sha256(repr((vocabulary, probe)).encode()).hexdigest()[:16]

    def _encode_one(self, prompt: Prompt) -> TokenizedPrompt:
        try:
            prompt.text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"Prompt {prompt.id!r} has {error.object[error.start]!r} at character "
                f"{error.start}, which is not a character of UTF-8. Read the text again with its "
                "right encoding, or remove it."
            ) from None
        text, shift = rendered(self.tokenizer, prompt)
        ids, offsets = self._ids(text, bool(prompt.spans), prompt.chat is not None)
        if self.bos_id is not None and ids[:2] == [self.bos_id] * 2:
            raise PromptError(
                f"Prompt {prompt.id!r} in its chat template begins with {text!r:.60}, which has "
                f"more than one BOS token ({self.tokenizer.bos_token!r}): transformers would feed "
                "them all, and no model is trained so. Take one out of tokenizer.chat_template or "
                "of the text, or load with prepend_bos=True, which feeds exactly one."
            )
        self._embedded(prompt, ids)
        if not ids:
            raise PromptError(
                f"Prompt {prompt.id!r} has no tokens: its text is {prompt.text!r}; give it text, "
                "or leave it out."
            )
        ids, offsets, cut = self._fitted(prompt, ids, offsets)
        spans: dict[str, tuple[int, ...]] = {}
        straddling = []
        for name, (start, end) in prompt.spans.items():
            low, high = start + shift, end + shift
            inside = [k for k, (a, b) in enumerate(offsets) if a < high and b > low and b > a]
            if not inside:
                raise PromptError(
                    f"Span {name!r} of prompt {prompt.id!r} covers no token"
                    f"{' that is left after cutting' if cut else ''}: "
                    f"{prompt.text[start:end]!r}; move its (start, end), or leave it out."
                )
            # A byte-level token may carry the blank before the word; that is not straddling.
            first, last = offsets[inside[0]], offsets[inside[-1]]
            if text[first[0] : low].strip() or text[high : last[1]].strip():
                straddling.append(name)
            spans[name] = tuple(inside)
        return TokenizedPrompt(prompt.id, tuple(ids), spans, tuple(straddling), prompt.group, cut)

    def _fitted(
        self, prompt: Prompt, ids: list[int], offsets: list[tuple[int, int]]
    ) -> tuple[list[int], list[tuple[int, int]], int]:
        """Ids that fit the context, their offsets, and how many were cut because that was asked."""
        if self.n_ctx is None or len(ids) <= self.n_ctx:
            return ids, offsets, 0
        if self.truncate is None:
            raise PromptError(
                f"Prompt {prompt.id!r} has {len(ids)} tokens, but the model reads at most "
                f"{self.n_ctx}. Shorten it, or have prompts cut with model.truncating('left') or "
                "('right'); mechmem never cuts one silently."
            )
        cut = len(ids) - self.n_ctx
        first = int(ids[0] == self.bos_id)  # a beginning-of-sequence token stays
        gone = slice(first, first + cut) if self.truncate == "left" else slice(self.n_ctx, None)
        ids, offsets = list(ids), list(offsets)
        del ids[gone], offsets[gone]
        return ids, offsets, cut

    def _ids(self, text: str, with_offsets: bool = False, plain: bool = False) -> _Spelled:
        """Ids and character offsets.

        Args:
            plain: A text whose template has put its special tokens already.
        """
        if with_offsets and not getattr(self.tokenizer, "is_fast", False):
            raise ModelError(
                "Named spans need a fast tokenizer (character offsets); this one is "
                f"{type(self.tokenizer).__name__}. Use integer positions instead."
            )
        encoded = self.tokenizer(
            text, return_offsets_mapping=with_offsets, verbose=False, truncation=False,
            add_special_tokens=not plain,
        )  # fmt: skip
        ids = list(encoded["input_ids"])
        offsets = [tuple(pair) for pair in encoded["offset_mapping"]] if with_offsets else []
        tail = () if plain else self._tail
        if tail and tuple(ids[-len(tail) :]) == tail:
            ids, offsets = ids[: -len(tail)], offsets[: -len(tail)]
        if plain and self.prepend_bos is None:
            return ids, offsets
        return self._with_one_bos(ids, offsets)

    @cached_property
    def _tail(self) -> tuple[int, ...]:
        """What the tokenizer puts behind every text, an end token for example: a model that is
        to go on must not be told that the text is over."""
        bare = list(self.tokenizer("1", add_special_tokens=False)["input_ids"])
        full = list(self.tokenizer("1")["input_ids"])
        for start in range(len(full) - len(bare), -1, -1):
            if bare and full[start : start + len(bare)] == bare:
                return tuple(full[start + len(bare) :])
        return ()

    def _embedded(self, prompt: Prompt, ids: Sequence[int]) -> tuple[int, ...]:
        """The ids, all of which the model has an embedding for.

        Raises:
            PromptError: Naming the first token that it lacks.
        """
        if self.vocab_size is not None and ids and max(ids) >= self.vocab_size:
            lost = next(token for token in ids if token >= self.vocab_size)
            raise PromptError(
                f"Prompt {prompt.id!r} has the token {self.decode([lost])!r} (id {lost}), but the "
                f"model embeds {self.vocab_size} tokens. Its tokenizer knows more than it was "
                "trained with: use the model's own, or resize_token_embeddings and train."
            )
        return tuple(ids)

    def _with_one_bos(self, ids: list[int], offsets: list[tuple[int, int]]) -> _Spelled:
        bos = self.bos_id
        if bos is None:
            return ids, offsets
        # A text that spells out the BOS token keeps that one; a second, from the tokenizer, goes.
        leading = 0
        while leading < len(ids) and ids[leading] == bos:
            leading += 1
        keep = min(leading, 1) if self.prepend_bos is None else int(self.prepend_bos)
        ids, offsets = ids[leading:], offsets[leading:]
        return [bos] * keep + ids, ([(0, 0)] * keep + offsets) if offsets else []
