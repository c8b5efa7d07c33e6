"""The entry point: errors in one line, exit statuses."""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from contextlib import suppress
from typing import Any

import typer

from mechmem.cli.app import app
from mechmem.cli.output import clean, say
from mechmem.errors import MechmemError

ERROR, USAGE, STOPPED, PIPE = 1, 2, 130, 141
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors of a file that is open already: nobody's own are left to here, so it is stdout."""


def main() -> None:
    """Run a command. An error is one line on stderr, with a traceback after ``--debug``."""
    debug = "--debug" in sys.argv
    own = warnings.formatwarning
    warnings.formatwarning = lambda *found: clean(own(*found))
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        try:
            status: Any = app(args=arguments, prog_name="mechmem", standalone_mode=False)
        finally:  # typer has put one of its own there
            sys.excepthook = _uncaught
        if sys.stdout is not None:
            sys.stdout.flush()
    except MechmemError as error:
        if debug:
            raise
        say(f"mechmem: {_one_line(error)}", err=True)
        status = ERROR
    except (KeyboardInterrupt, typer.Abort):
        say("mechmem: stopped", err=True)
        status = STOPPED
    except SystemExit:
        # typer ends a command whose reader has gone with status 1 and a stdout that keeps quiet.
        if type(sys.stdout).__name__ != "PacifyFlushWrapper":
            raise
        status = PIPE
    except BrokenPipeError:
        # Python flushes stdout once more at the end, which must find somebody who listens.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = PIPE
    except OSError as error:
        _settle()
        if debug or error.filename is not None or error.errno not in FULL:
            raise
        with suppress(OSError):  # stderr may lie on the same disk
            say(f"mechmem: cannot write the result: {error.strerror}", err=True)
        _settle()
        status = ERROR
    except Exception as error:
        if debug or not hasattr(error, "format_message"):
            raise
        status = _usage(error)
    sys.exit(status if isinstance(status, int) else 0)


def _uncaught(*found: Any) -> None:
    """A traceback, which may quote strangers."""
    say("".join(traceback.format_exception(*found)), err=True)


def _settle() -> None:
    """What can no longer be written is not tried again at Python's end, which would be told."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _usage(error: Any) -> int:
    """What typer says to a wrong option, in one line; its help where nothing was asked for."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(error.format_message())
        return USAGE
    where = context.command_path if context is not None else "mechmem"
    text = _one_line(error.format_message()).rstrip(".")
    say(f"{where}: {text}. See `{where} --help`.", err=True)
    return USAGE


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
