"""Opening a page in headless Chromium: what it became, what it said, where it wanted to go."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

OWN_ERRANDS = (".google.com", ".googleapis.com", ".gvt1.com")
"""Hosts that a browser asks on its own account; none of our pages names them."""


@dataclass(frozen=True)
class Page:
    """A page after its scripts have run.

    Attributes:
        dom: The document as it is then.
        console: What it wrote to the console, errors of its scripts and policy included.
        requests: Addresses that it wanted from the network.
    """

    dom: str
    console: list[str]
    requests: list[str]


def open_page(chromium: str, path: Path, *options: str) -> Page:
    """Open a local file without any network, wait for its scripts, and look at it."""
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "net.json"
        done = subprocess.run(
            [
                chromium,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--disable-component-update",
                "--no-first-run",
                "--host-resolver-rules=MAP * ~NOTFOUND",
                f"--user-data-dir={scratch}/profile",
                f"--log-net-log={log}",
                "--enable-logging=stderr",
                "--virtual-time-budget=20000",
                *options,
                "--dump-dom",
                path.resolve().as_uri(),
            ],
            capture_output=True,
            timeout=180,
            check=True,
        )
        traffic = json.loads(log.read_text(encoding="utf-8"))["events"]
    urls = {str((event.get("params") or {}).get("url", "")) for event in traffic}
    said = done.stderr.decode("utf-8", "replace").splitlines()
    return Page(
        done.stdout.decode("utf-8", "replace"),
        [line for line in said if re.search(r"CONSOLE[:(]", line)],
        sorted(url for url in urls if url.startswith(("http", "ws")) and not _own(url)),
    )


def _own(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return f".{host}".endswith(OWN_ERRANDS)
