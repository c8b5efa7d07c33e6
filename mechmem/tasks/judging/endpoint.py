"""A judge behind an OpenAI-compatible endpoint, with nothing but the standard library."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import IO, Any
from urllib.parse import urlsplit

from mechmem.errors import ModelError

RETRIED = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))
LOCAL = frozenset(("localhost", "127.0.0.1", "::1"))
LONGEST_WAIT = 60.0


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *args: Any) -> None:
        return None


@dataclass(frozen=True)
class EndpointJudge:
    """Judge with the model behind ``POST {url}/chat/completions``.

    The key is read from the environment when a request is made. It is never kept, printed or
    cached, never follows a redirect, and leaves this machine over https only.

    Attributes:
        url: The base address, such as ``https://api.openai.com/v1`` or ``http://localhost:8000/v1``.
        model: The model's name there.
        key_env: Name of the environment variable that holds the key; ``None`` for no key.
        timeout: Seconds until one request counts as failed.
        retries: How often a request that failed for a passing reason is made again.
        wait: Seconds before the first retry, doubled each time; a server's ``Retry-After`` rules.
        max_tokens: How long a reply may be.
        options: Other fields of the request.
        sleep: How to wait.
    """

    url: str
    model: str
    key_env: str | None = None
    timeout: float = 60.0
    retries: int = 4
    wait: float = 1.0
    max_tokens: int = 256
    options: Mapping[str, Any] = field(default_factory=dict)
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ModelError(
                f"An endpoint's url begins with https:// (or http://localhost), got {self.url!r}."
            )
        if parts.username or parts.password:
            raise ModelError("No key in the url: name an environment variable in key_env=.")
        if self.key_env and parts.scheme == "http" and parts.hostname not in LOCAL:
            raise ModelError(
                f"A key does not travel over plain http to {parts.hostname!r}; use https, or "
                "key_env=None."
            )

    @property
    def name(self) -> str:
        """The model and where it runs; under it replies are kept."""
        return f"{self.model} at {urlsplit(self.url).netloc}"

    def replies(self, texts: Sequence[str]) -> list[str]:
        """One reply per text, in order, one request each.

        Raises:
            ModelError: When the key is missing, the endpoint refuses, or every retry failed.
        """
        return [self._reply(text) for text in texts]

    def _reply(self, text: str) -> str:
        problem, asked = "", 0.0
        for attempt in range(self.retries + 1):
            if attempt:
                self.sleep(min(LONGEST_WAIT, max(asked, self.wait * 2 ** (attempt - 1))))
            asked = 0.0
            try:
                return _content(self._post(text))
            except ModelError:
                raise
            except urllib.error.HTTPError as error:
                with error:
                    problem = f"HTTP {error.code} {self._clean(error.read(2000))}"
                if error.code not in RETRIED:
                    raise ModelError(
                        f"{self.name} refuses: {problem}. Check url=, model= and key_env=."
                    ) from None
                asked = _seconds(error.headers.get("Retry-After"))
            except (OSError, HTTPException, ValueError) as error:
                problem = self._clean(str(error) or type(error).__name__)
        raise ModelError(
            f"{self.name} gave no answer in {self.retries + 1} attempts; the last: {problem}. "
            "What was judged so far is in the cache: run again to go on."
        )

    def _post(self, text: str) -> bytes:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
            **self.options,
        }
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key_env:
            headers["Authorization"] = f"Bearer {self._key()}"
        request = urllib.request.Request(  # the scheme was checked above
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
        )
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
        if urlsplit(self.url).hostname in LOCAL:
            handlers.append(urllib.request.ProxyHandler({}))
        answer: IO[bytes]
        with urllib.request.build_opener(*handlers).open(request, timeout=self.timeout) as answer:
            return answer.read()

    def _key(self) -> str:
        key = os.environ.get(self.key_env or "", "").strip()
        if not key:
            raise ModelError(
                f"The environment variable {self.key_env!r} is empty; put the key there, or say "
                "key_env=None for an endpoint without one."
            )
        return key

    def _clean(self, text: str | bytes) -> str:
        """The beginning of a message, in one line, the key blotted out."""
        plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        key = os.environ.get(self.key_env or "", "").strip()
        plain = plain.replace(key, "***") if key else plain
        return " ".join(plain.split())[:200]


def _content(body: bytes) -> str:
    """The reply's text; a `ValueError` says what else came."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        shown = body[:80].decode("utf-8", "replace")
        raise ValueError(f"no chat completion, but {shown!r}") from None
    if not isinstance(content, str):
        raise ValueError(f"a chat completion without text: {content!r:.60}")
    return content


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0
