"""What an answer is and where it ends; what cannot be read is said to be so, never guessed."""

from mechmem.tasks.parsing.choice import NO_STATEMENT, read_choice, read_choice_paper
from mechmem.tasks.parsing.number import bare_number, canonical_number, gold_number, read_number
from mechmem.tasks.parsing.short import match_short, match_short_paper
from mechmem.tasks.parsing.statements import Reading

__all__ = [
    "NO_STATEMENT",
    "Reading",
    "bare_number",
    "canonical_number",
    "gold_number",
    "match_short",
    "match_short_paper",
    "read_choice",
    "read_choice_paper",
    "read_number",
]
