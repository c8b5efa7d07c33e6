"""When a completion is over: at an end token, or where a stop string is complete."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from mechmem.errors import PromptError

Decode = Callable[[Sequence[int]], str]


@dataclass
class Completion:
    """What the model wrote after one prompt.

    Attributes:
        ids: Generated token ids, without the end-of-sequence token.
        text: The same as text, cut at the stop string.
        finished: False when the limit of new tokens ended it.
    """

    ids: list[int] = field(default_factory=list)
    text: str = ""
    finished: bool = False


class StoppingCriteria:
    """Sees a completion grow token by token and says when it is over.

    Only the last tokens are turned into text at each step, and only where the newest one could end
    a stop string; the whole text is made once, at the end, and has the last word.

    Args:
        decode: Ids to text.
        stop: Strings that end a completion.
        eos_ids: Tokens that end a completion.
    """

    def __init__(self, decode: Decode, stop: Sequence[str], eos_ids: Sequence[int]) -> None:
        if not isinstance(stop, Iterable):
            raise PromptError(f"stop must be texts that end a completion, got {stop!r:.80}.")
        self.decode, self.stop, self.eos_ids = decode, tuple(stop), frozenset(eos_ids)
        empty = [text for text in self.stop if not isinstance(text, str) or not text]
        if empty:
            raise PromptError(
                f"A stop string must be text that can be written, got {empty[0]!r:.80}; leave it "
                "out, or give for example stop='\\n'."
            )
        # A token is at least one byte, but for those that leave no text.
        self._window = 8 + max((len(text.encode()) for text in self.stop), default=0)
        self._possible: dict[int, bool] = {}

    def ends(self, completion: Completion, token: int) -> bool:
        """Add a token; True when the completion is over."""
        if token in self.eos_ids:
            completion.finished = True
        else:
            completion.ids.append(token)
            completion.finished = bool(self.stop) and self._complete(completion.ids)
        return completion.finished

    def take(
        self, ids: Tensor, rows: Sequence[Completion], ages: list[int], room: int
    ) -> list[int]:
        """Write every row's token down, and say which rows go on.

        Args:
            ids: ``[row, 1]``.
            rows: What has been written.
            ages: How many tokens each row was given, those after its end too; one more afterwards.
            room: Most tokens of a row.
        """
        going = []
        for k, (token,) in enumerate(ids.tolist()):
            if not rows[k].finished and ages[k] < room:
                self.ends(rows[k], token)
            ages[k] += 1
            if not rows[k].finished and ages[k] < room:
                going.append(k)
        return going

    def close(self, completion: Completion) -> None:
        """Give a completion its text, and let it end at its first stop string."""
        ids = completion.ids
        completion.text = self.decode(ids)
        if self._found(completion.text) is None:
            return
        # The first token after which a stop string stands there: nearly always the last.
        while len(ids) > 1 and self._found(self.decode(ids[:-1])) is not None:
            ids.pop()
        completion.text, completion.finished = self.decode(ids), True
        completion.text = completion.text[: self._found(completion.text)]

    def _complete(self, ids: list[int]) -> bool:
        if not self._can_end(ids[-1]):
            return False
        if self._found(self.decode(ids[-self._window :])) is None:
            return False
        # A window may begin within a character, or without the blank of its first word.
        return self._found(self.decode(ids)) is not None

    def _can_end(self, token: int) -> bool:
        """Whether the token may hold the last character of a stop string."""
        if token not in self._possible:
            piece = self.decode([token])
            # A part of a character, which the next token completes, may be of a stop string too.
            self._possible[token] = "\ufffd" in piece or any(
                not text or _changes(text[-1]) or text[-1] in piece for text in self.stop
            )
        return self._possible[token]

    def _found(self, text: str) -> int | None:
        """Where the first stop string begins."""
        places = [at for at in (text.find(one) for one in self.stop) if at >= 0]
        return min(places, default=None)


def _changes(character: str) -> bool:
    """Whether a token alone may not show this character although it holds it: blanks are stripped,
    others are spread over several tokens."""
    return character == " " or not character.isascii()
