"""`mechmem open`: the open page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mechmem.cli.app import command
from mechmem.cli.output import say


@command("open")
def open_(
    folder: Annotated[
        Path | None, typer.Argument(help="What `mechmem study` wrote to; its model is live.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="lab/ or real/ name, folder, .gguf file or hub name; default that of the study."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Without a folder: a task, on whose pairs a direction is fitted."),
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, help="Default 8713, or a free one.")] = None,
    host: Annotated[
        str, typer.Option(help="Another address of this machine; the page then wants its token.")
    ] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="Open it in the browser.")] = True,
) -> None:
    """Look and turn: is it remembering or thinking, where, and what does a push do?

    The page is served on this machine and asks nothing of any other.

    Example: mechmem open mechmem-demo
    """
    from mechmem.app import open_page

    if folder is None and model is None:
        raise typer.BadParameter("give the folder of a study, or --model, or both")
    page = open_page(folder, model=model, task=task, host=host, port=port)
    say(page.url)
    say("Ctrl-C closes it.", err=True)
    if browser:
        import webbrowser

        webbrowser.open(page.url)
    page.run()
