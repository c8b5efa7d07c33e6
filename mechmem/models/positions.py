"""The one language for *where in the text*: the same words for reading and for editing.

Positions are absolute in a prompt's own tokens, so they mean the same under left or right padding
and with or without a KV cache.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mechmem.errors import MechmemWarning, PositionError, did_you_mean, listed
from mechmem.models.tokenizing import TokenizedPrompt

PositionSpec = str | int | Sequence[str | int]

_WORDS = ("last", "prompt", "generated", "each_step", "all", "mean")

_GENERATED = ("generated", "each_step", "all")


@dataclass(frozen=True)
class Positions:
    """A parsed position specification.

    Attributes:
        parts: Words, span names and integers, in the order given.
    """

    parts: tuple[str | int, ...]

    @classmethod
    def parse(cls, spec: PositionSpec | Positions) -> Positions:
        """Positions from what users type.

        Args:
            spec: ``"last"`` (the last prompt token), ``"prompt"``, ``"generated"``,
                ``"each_step"`` (last prompt token and every generated one), ``"all"``, an integer
                (from the start of the prompt, negative from its end), the name of a span of the
                prompts, or a list of these. ``"mean"`` (over the prompt) is for reading only.

        Raises:
            PositionError: For something that is none of these.
        """
        if isinstance(spec, Positions):
            return spec
        if isinstance(spec, Mapping):
            raise PositionError(f"Positions are a list, got the dictionary {spec!r:.80}.")
        single = isinstance(spec, (str, int)) or not isinstance(spec, Iterable)
        items: Any = [spec] if single else spec
        parts: tuple[Any, ...] = tuple(items)
        for part in parts:
            if isinstance(part, bool) or not isinstance(part, (str, int)):
                raise PositionError(
                    f"{part!r} is not a position; use one of {listed(_WORDS)}, an integer, "
                    "the name of a span, or a list of these."
                )
        if not parts:
            raise PositionError("No positions given; for example positions='last'.")
        if "mean" in parts and len(parts) > 1:
            raise PositionError(
                "'mean' pools the whole prompt; it cannot be combined; read the two one after "
                "the other."
            )
        return cls(parts)

    def __str__(self) -> str:
        return "+".join(str(part) for part in self.parts)

    @property
    def spec(self) -> str | int | list[str | int]:
        """What `parse` would take to make this again, JSON-ready."""
        return self.parts[0] if len(self.parts) == 1 else list(self.parts)

    @property
    def pooled(self) -> bool:
        """Whether the mean over the prompt is asked for."""
        return self.parts == ("mean",)

    @property
    def touches_generated(self) -> bool:
        """Whether generated tokens belong to it."""
        return any(part in _GENERATED for part in self.parts)

    @property
    def touches_prompt(self) -> bool:
        """Whether any prompt token belongs to it."""
        return self.parts != ("generated",)

    def columns(self, prompt: TokenizedPrompt) -> list[tuple[str, int]]:
        """Name and token index of every prompt token meant, in order, without repetition.

        Raises:
            PositionError: When this prompt lacks the position, naming the prompt and what it has.
        """
        seen: dict[int, str] = {}
        for part in self.parts:
            for name, index in self._part_columns(part, prompt):
                seen.setdefault(index, name)
        return [(name, index) for index, name in seen.items()]

    def check_stackable(self, prompts: Sequence[TokenizedPrompt]) -> list[str]:
        """Column names when these positions are read on these prompts.

        Raises:
            PositionError: For words that only make sense while text is generated, and when the
                prompts differ in how many tokens are meant.
        """
        for part in self.parts:
            if part in ("generated", "each_step"):
                raise PositionError(
                    f"positions={part!r} is for edits: a prompt that is only read has no generated "
                    "tokens. Read 'last' (the state before the first generated token) instead."
                )
        self._warn_of_straddling(prompts)
        columns = [self.columns(prompt) for prompt in prompts]
        if self.pooled:
            return ["mean"]
        counts = {len(row) for row in columns}
        if len(counts) > 1:
            raise PositionError(
                f"positions={str(self)!r} means between {min(counts)} and {max(counts)} tokens in "
                "these prompts, so they cannot be stacked; use 'mean', 'last', or a span with the "
                "same number of tokens everywhere."
            )
        return [name for name, _ in columns[0]] if columns else []

    def _warn_of_straddling(self, prompts: Sequence[TokenizedPrompt]) -> None:
        for part in self.parts:
            wide = [prompt.id for prompt in prompts if part in prompt.straddling]
            if wide:
                warnings.warn(
                    f"Span {part!r} begins or ends inside a token in {len(wide)} of {len(prompts)} "
                    f"prompts, so characters around it are read too: {listed(wide, 5)}.",
                    MechmemWarning,
                    stacklevel=4,
                )

    def _part_columns(self, part: str | int, prompt: TokenizedPrompt) -> list[tuple[str, int]]:
        length = len(prompt.ids)
        if isinstance(part, int):
            if not -length <= part < length:
                raise PositionError(
                    f"Position {part} is outside prompt {prompt.id!r}, which has {length} tokens: "
                    f"0 to {length - 1}, or -1 for the last."
                )
            return [(str(part), part % length)]
        if part in ("last", "each_step"):
            return [("last", length - 1)]
        if part == "generated":
            return []
        if part in ("prompt", "all", "mean"):
            return [(f"prompt[{index}]", index) for index in range(length)]
        if part not in prompt.spans:
            allowed = [*_WORDS, *prompt.spans]
            raise PositionError(
                f"Unknown position {part!r} for prompt {prompt.id!r}; allowed are "
                f"{listed(allowed)} or an integer.{did_you_mean(part, allowed)}"
            )
        return [(f"{part}[{k}]", index) for k, index in enumerate(prompt.spans[part])]
