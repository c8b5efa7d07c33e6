"""`Choice`: a behavior read without writing, from which of two answers is likelier."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mechmem.errors import TaskError, listed

READINGS = ("text", "choice")
LENGTHS = ("sum", "mean")
UNDECIDED = "undecided"


@dataclass(frozen=True)
class Choice:
    """A reading by choice: which of a prompt's answers the model finds likelier. Nothing is
    written, so a model that writes something else first has a behavior all the same; it need not
    be the one that it would show in writing.

    Attributes:
        within: The first answer must be likelier than the best other, or the other way round, by
            more than this; what is closer is ``undecided``. In nats (nats per token for
            ``"mean"``).
        length: ``"sum"`` adds the log-probabilities of all tokens of an answer, so a longer answer
            has more to lose. ``"mean"`` divides the sum by the number of tokens. By ``"sum"`` an
            answer that begins another can never lose to it; such prompts are undecided.
    """

    within: float = 0.1
    length: str = "sum"

    def __post_init__(self) -> None:
        number = isinstance(self.within, (int, float)) and not isinstance(self.within, bool)
        if not number or not 0 <= self.within < math.inf:
            raise TaskError(
                f"within={self.within!r} is not a distance in nats; give a number from 0, such as "
                "0.1."
            )
        if self.length not in LENGTHS:
            raise TaskError(
                f"length={self.length!r} is not a rule for answers of several tokens; say one of "
                f"{listed(LENGTHS)}."
            )
