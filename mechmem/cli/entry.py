"""The entry point: errors in one line, exit statuses."""

from __future__ import annotations

import sys

import typer

from mechmem.cli.app import app
from mechmem.errors import MechmemError

__all__ = ["main"]


def main() -> None:
    """Entry point: an error is one line on stderr and exit status 1, a traceback with --debug."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments, standalone_mode=True)
    except MechmemError as error:
        if debug:
            raise
        typer.echo(f"mechmem: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("mechmem: stopped", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
