"""A judge behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from mechmem.errors import ModelError, shown
from mechmem.numeric import whole_number

RETRIED = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))
LOCAL_HOSTS = frozenset(("localhost", "127.0.0.1", "::1"))
LONGEST_WAIT = 60.0
MOST = 10**6
LONGEST_REPLY = 4_000_000
LONGEST_COMPLAINT = 2000


class _Answer(NamedTuple):
    """What came back, in time and whole (a complaint only up to its beginning)."""

    status: int
    retry_after: str | None
    body: bytes


@dataclass(frozen=True)
class EndpointJudge:
    """Judge with the model behind ``POST {url}/chat/completions``.

    The key is read from the environment when a request is made. It is never kept, printed or
    cached, never follows a redirect, and leaves this machine over https only.

    Attributes:
        url: The base address, such as ``https://api.openai.com/v1`` or ``http://localhost:8000/v1``.
        model: The model's name there.
        key_env: Name of the environment variable that holds the key; ``None`` for no key.
        timeout: Seconds from the beginning of one request to the end of its reply.
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
        parts = _split(self.url)
        _check_fields(self)
        if parts.username or parts.password:
            raise ModelError("No key in the url: name an environment variable in key_env=.")
        if self.key_env and parts.scheme == "http" and parts.hostname not in LOCAL_HOSTS:
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
                self.sleep(min(LONGEST_WAIT, max(asked, self.wait * 2 ** min(attempt - 1, 60))))
            asked = 0.0
            try:
                answer = self._post(text)
                if answer.status == 200:
                    return self._blotted(_content(answer.body))
            except _failures() as error:
                problem = self._clean(str(error) or type(error).__name__)
                continue
            except _refusals() as error:
                raise ModelError(
                    f"{self.name} cannot be asked: {self._clean(str(error))}. Check url=."
                ) from error
            problem = f"HTTP {answer.status} {self._clean(answer.body)}"
            if answer.status not in RETRIED:
                raise ModelError(
                    f"{self.name} refuses: {problem}. Check url=, model= and key_env=."
                )
            asked = _seconds(answer.retry_after)
        raise ModelError(
            f"{self.name} gave no answer in {self.retries + 1} attempts; the last: {problem}. "
            "What was judged so far is in the cache: run again to go on."
        )

    def _post(self, text: str) -> _Answer:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
            **self.options,
        }
        # No compression: the limit on a reply is one on what crosses the wire.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self.key_env:
            headers["Authorization"] = f"Bearer {self._key()}"
        content = json.dumps(body).encode()
        # A loop of its own in a thread of its own: a notebook has one running already.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, self._asked(headers, content)).result()

    async def _asked(self, headers: Mapping[str, str], content: bytes) -> _Answer:
        """One request under one deadline; a redirect, which would carry the key on, is refused."""
        httpx = _httpx()
        asyncio.get_running_loop().set_default_executor(_Lookups())
        url = f"{self.url.rstrip('/')}/chat/completions"
        proxies = urlsplit(self.url).hostname not in LOCAL_HOSTS
        try:
            async with (
                asyncio.timeout(self.timeout),
                httpx.AsyncClient(trust_env=proxies, timeout=None) as client,
                client.stream("POST", url, headers=headers, content=content) as answer,
            ):
                good = answer.status_code == 200
                received = b""
                async for chunk in answer.aiter_raw():
                    received += chunk
                    if good and len(received) > LONGEST_REPLY:
                        raise _Unusable(f"a reply of more than {LONGEST_REPLY} bytes")
                    if not good and len(received) > LONGEST_COMPLAINT:
                        break
                return _Answer(answer.status_code, answer.headers.get("Retry-After"), received)
        except TimeoutError:
            raise TimeoutError(f"timed out after {self.timeout:g} seconds") from None

    def _key(self) -> str:
        key = os.environ.get(self.key_env or "", "").strip()
        if not key:
            raise ModelError(
                f"The environment variable {self.key_env!r} is empty; put the key there, or say "
                "key_env=None for an endpoint without one."
            )
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ModelError(
                f"The environment variable {self.key_env!r} holds a blank, a line break or a "
                "character that no key has; set it again (it is not shown here)."
            )
        return key

    def _blotted(self, text: str) -> str:
        """A text without the key, as it is and as JSON writes it: some servers echo headers."""
        key = os.environ.get(self.key_env or "", "").strip()
        for secret in {key, json.dumps(key)[1:-1], *key.split()} if key else ():
            text = text.replace(secret, "***")
        return text

    def _clean(self, text: str | bytes) -> str:
        """The beginning of a message, in one line, the key blotted out."""
        plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return " ".join(self._blotted(plain).split())[:200]


def _httpx() -> Any:
    try:
        import httpx
    except ImportError:
        raise ModelError(
            "A judge behind an endpoint needs the package `httpx`: pip install 'mechmem[judge]'."
        ) from None
    return httpx


def _failures() -> tuple[type[Exception], ...]:
    """What may pass when the request is made again."""
    httpx = _httpx()
    return (OSError, httpx.HTTPError, httpx.StreamError, _Unusable)


def _refusals() -> tuple[type[Exception], ...]:
    """What is the address's fault."""
    return (_httpx().InvalidURL, UnicodeError, ExceptionGroup)


def _split(url: str) -> SplitResult:
    """The parts of an address that can be asked.

    Raises:
        ModelError: For any other.
    """
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        if whole and find_spec("httpx"):
            whole = bool(_httpx().URL(url).host)
    except Exception:  # urllib, idna and httpx have errors of their own
        whole = False
    if not whole or not str(url).isprintable():
        raise ModelError(
            f"An endpoint's url begins with https:// (or http://localhost), got {url!r:.200}."
        )
    return parts


def _check_fields(judge: EndpointJudge) -> None:
    """Refuse what no request could be made with, before the first is.

    Raises:
        ModelError: Naming the field.
    """
    for name, least in (("retries", 0), ("max_tokens", 1)):
        value = whole_number(getattr(judge, name), name, least, error=ModelError)
        if value > MOST:
            raise ModelError(f"{name} must be at most {MOST:,}, got {shown(value, 80)}.")
    for name in ("timeout", "wait"):
        value = getattr(judge, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or value > MOST or not (value >= 0 if name == "wait" else value > 0):
            raise ModelError(
                f"{name} must be a number of seconds up to {MOST:,}, got {shown(value, 80)}."
            )
    for name in ("model", "key_env"):
        value = getattr(judge, name)
        if not (isinstance(value, str) and value) and not (name == "key_env" and value is None):
            raise ModelError(f"{name} must be a name, got {value!r:.80}.")
    try:
        json.dumps(dict(judge.options), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(
            f"options must be fields of a request, as JSON holds them, got {judge.options!r:.80} "
            f"({error})."
        ) from None
    if not callable(judge.sleep):
        raise ModelError(f"sleep must be a function of seconds, got {judge.sleep!r:.80}.")


class _Lookups(ThreadPoolExecutor):
    """Looks names up, each in a thread that neither a deadline nor the end of Python waits for."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def work() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        future.set_running_or_notify_cancel()
        threading.Thread(target=work, daemon=True).start()
        return future


class _Unusable(ValueError):
    """A reply that is none."""


def _content(body: bytes) -> str:
    """The reply's text; an error says what else came."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        shown = body[:80].decode("utf-8", "replace")
        raise _Unusable(f"no chat completion, but {shown!r}") from None
    if not isinstance(content, str):
        raise _Unusable(f"a chat completion without text: {content!r:.60}")
    # Half of a character is JSON, but no file can hold it.
    return content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0
