"""Floor 7: many edits side by side, the choice on validation, one look at test."""

from mechmem.arguments import names_its_arguments
from mechmem.sweeps.result import Sweep, Tested
from mechmem.sweeps.sweep import sweep

__all__ = ["Sweep", "Tested", "sweep"]

names_its_arguments(globals())
