"""The server: this machine only, nothing asked of any other, gone when it is closed."""

from __future__ import annotations

import hmac
import logging
import secrets
import socket
import threading
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dash import Dash
from flask import Response, abort, request
from werkzeug.serving import make_server

from mechmem.app.callbacks import connect
from mechmem.app.layout import TITLE, layout
from mechmem.app.page import Page
from mechmem.app.source import Source
from mechmem.errors import MechmemError

LOCAL = "127.0.0.1"
PORT = 8713
SHELL = """<!doctype html>
<html lang="en">
<head>
{%metas%}
<title>{%title%}</title>
<link rel="icon" href="data:,">
{%css%}
<style>STYLE</style>
</head>
<body>
{%app_entry%}
<footer>{%config%}{%scripts%}{%renderer%}</footer>
</body>
</html>"""


def make_app(page: Page) -> Dash:
    """The Dash application over a page; it serves its own assets."""
    here = Path(__file__).parent
    app = Dash(
        "mechmem",
        title=f"mechmem: {TITLE}",
        update_title="",
        assets_folder=str(here / "assets"),
        serve_locally=True,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
    )
    style = files("mechmem.reports").joinpath("templates", "page.css").read_text(encoding="utf-8")
    own = (here / "app.css").read_text(encoding="utf-8")
    app.index_string = SHELL.replace("STYLE", style + own)
    app.layout = lambda: layout(page.source)
    connect(app, page)
    return app


def guard(app: Dash, host: str, port: int, token: str) -> None:
    """Answer only to who asks this address by its name, from a page of its own, with the token."""
    names = {"localhost", LOCAL} if host == LOCAL else None
    cookie = f"mechmem-{port}"  # a browser sends it to every port of this address
    allowed = " ".join(["'self'", *app.csp_hashes()])
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'self' http://127.0.0.1:* http://localhost:*"
    )

    @app.server.before_request
    def check() -> Any:
        asked = urlsplit(f"//{request.host}").hostname
        if names is not None and asked not in names:
            abort(403)
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            abort(403)
        if token:
            given = request.args.get("token") or request.cookies.get(cookie, "")
            if not hmac.compare_digest(given.encode(), token.encode()):
                abort(403)
        return None

    @app.server.after_request
    def shielded(answer: Response) -> Response:
        answer.headers["Content-Security-Policy"] = policy
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Referrer-Policy"] = "no-referrer"
        answer.headers["Cache-Control"] = "no-store"
        if token and request.args.get("token"):
            answer.set_cookie(cookie, token, httponly=True, samesite="Strict")
        return answer


class OpenPage:
    """A page that is being served.

    Attributes:
        url: Where.
    """

    def __init__(
        self, source: Source, host: str = LOCAL, port: int | None = None, scratch: Any = None
    ) -> None:
        self._scratch = scratch  # where a study of this process was saved for the page
        self.page = Page(source)
        token = "" if host == LOCAL else secrets.token_urlsafe(24)
        app = make_app(self.page)
        taken = _free(host, port)
        guard(app, host, taken, token)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = make_server(host, taken, app.server, threaded=True)
        self._server.daemon_threads = True
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{taken}/" + (f"?token={token}" if token else "")
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Serve until `close` or Ctrl-C."""
        try:
            self._server.serve_forever()
        finally:
            self.close()

    def start(self) -> OpenPage:
        """Serve beside what else runs."""
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop the work and the server; no hook, thread or file is left."""
        self.page.worker.close()
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join(10)
            self._thread = None
        self._server.server_close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def __repr__(self) -> str:
        return f"OpenPage({self.url})"

    def _repr_html_(self) -> str:
        """The page, inside a notebook."""
        return (
            f'<iframe src="{self.url}" title="mechmem: {TITLE}" width="100%" height="900" '
            'style="border:1px solid #8A8F98"></iframe>'
        )


def _free(host: str, port: int | None) -> int:
    """The port asked for; else the usual one, or any where that is taken.

    Raises:
        MechmemError: When it cannot be had.
    """
    for wanted in (port,) if port is not None else (PORT, 0):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, wanted))
            except (OSError, OverflowError) as error:
                reason = error
                continue
            return int(probe.getsockname()[1])
    raise MechmemError(
        f"{host}:{port if port is not None else PORT} cannot be served on: {reason}. Give another "
        "--port, or another --host of this machine."
    )
