"""The command line: `mechmem demo`, `mechmem train`, ... Progress on stderr, results on stdout.

One file per group of commands; importing it here puts a command on the list, in this order.
"""

from __future__ import annotations

# isort: off
from mechmem.cli import studies, opening, sweeps, states, status, training, listing, exchange
from mechmem.cli import reports

# isort: on
from mechmem.cli.app import app
from mechmem.cli.entry import main

__all__ = [
    "app",
    "exchange",
    "listing",
    "main",
    "opening",
    "reports",
    "states",
    "status",
    "studies",
    "sweeps",
    "training",
]
