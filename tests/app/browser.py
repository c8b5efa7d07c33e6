"""A headless Chromium that is driven through a pipe; it reaches this machine and nothing else."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_START = "import os, sys; r, w = map(int, sys.argv[1:3]); a, b = os.dup(r), os.dup(w); " + (
    "a, b = (os.dup(a) if a < 5 else a), (os.dup(b) if b < 5 else b); "
    "os.dup2(a, 3); os.dup2(b, 4); os.execv(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """One browser; `Tab` is a window of it."""

    def __init__(self, chromium: str, downloads: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        options = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--remote-debugging-pipe", f"--user-data-dir={self._folder.name}",
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "about:blank",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, str(theirs_in), str(theirs_out), chromium, *options],
            pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._rest, self._count = b"", 0
        self.events: list[dict[str, Any]] = []
        self.send(
            "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)}
        )

    def send(self, method: str, params: Any = None, session: str | None = None) -> Any:
        self._count += 1
        asked = {"id": self._count, "method": method, "params": params or {}}
        os.write(
            self._out, json.dumps(asked | ({"sessionId": session} if session else {})).encode()
        )
        os.write(self._out, b"\0")
        end = time.time() + 60
        while time.time() < end:
            while b"\0" in self._rest:
                one, _, self._rest = self._rest.partition(b"\0")
                found = json.loads(one)
                if found.get("id") == self._count:
                    assert "error" not in found, found
                    return found["result"]
                self.events.append(found)
            if select.select([self._in], [], [], 1)[0]:
                self._rest += os.read(self._in, 1 << 20)
        raise TimeoutError(method)

    def close(self) -> None:
        try:
            self.send("Browser.close")
            self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait(20)
            os.close(self._in)
            os.close(self._out)
            self._folder.cleanup()


class Tab:
    """A window of a browser."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser = browser
        target = browser.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = {"targetId": target, "flatten": True}
        self.session = browser.send("Target.attachToTarget", attached)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.do(f"{domain}.enable")
        self.do(
            "Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1,
            mobile=False,
        )  # fmt: skip
        self.do("Page.navigate", url=url)

    def do(self, method: str, **params: Any) -> Any:
        return self.browser.send(method, params, self.session)

    def js(self, text: str) -> Any:
        found = self.do("Runtime.evaluate", expression=text, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, str(found)[:500]
        return found["result"].get("value")

    def until(self, text: str, seconds: float = 60.0) -> None:
        end = time.time() + seconds
        while time.time() < end:
            if self.js(text):
                return
            time.sleep(0.05)
        raise AssertionError(f"never: {text}; the page says {self.text('bar')}")

    def text(self, name: str) -> str:
        return str(self.js(f"(document.getElementById({name!r}) || {{}}).innerText || ''"))

    def click(self, name: str) -> None:
        self.js(f"document.getElementById({name!r}).click()")

    def type(self, name: str, text: str) -> None:
        self.js(f"{{const e = document.getElementById({name!r}); e.focus(); e.select();}}")
        self.do("Input.insertText", text=text)

    def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            self.do(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    def mouse(self, x: float, y: float) -> None:
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = "none" if kind == "mouseMoved" else "left"
            self.do("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)
            time.sleep(0.2)

    def picture(self, path: Path) -> Path:
        shot = self.do("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def seen(self, *methods: str) -> list[dict[str, Any]]:
        """What happened in this window."""
        own = [one for one in self.browser.events if one.get("sessionId") == self.session]
        return [one["params"] for one in own if one["method"] in methods]
