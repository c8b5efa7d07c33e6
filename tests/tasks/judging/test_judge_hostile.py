"""An endpoint that means no good: it drips, floods, stalls and echoes; and keys that are none."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import mechmem as mm
from mechmem.errors import ModelError
from mechmem.tasks.judging import EndpointJudge, judge_questions, read_score
from mechmem.tasks.judging.endpoint import LONGEST_REPLY

KEY = "sk-quite-secret-0123456789"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def chat(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@contextmanager
def answering(
    *parts: bytes, pause: float = 0.0, repeat: int = 1
) -> Iterator[tuple[str, list[bytes]]]:
    """A server that sends the parts, one after the other, to whoever asks."""
    asked: list[bytes] = []
    done = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                with connection.makefile("rb") as stream:
                    head = b"".join(iter(stream.readline, b"\r\n"))
                    length = head.lower().split(b"content-length:")[1].split()[0]
                    asked.append(head + stream.read(int(length)))
                for part in parts * repeat:
                    connection.sendall(part)
                    if pause and done.wait(pause):
                        return
            except OSError:
                return

    def accept() -> None:
        while not done.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        done.set()
        listener.close()


def judged(url: str, **options: object) -> list[str]:
    settings = {"timeout": 0.4, "retries": 1, "sleep": lambda seconds: None, **options}
    return EndpointJudge(url, "m", **settings).replies(["x"])


@pytest.mark.parametrize(
    "first", [HEAD + b"Content-Length: 9999\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Slow: "]
)
def test_a_reply_that_drips_ends_with_the_deadline(first: bytes) -> None:
    with answering(first, *[b"a"] * 400, pause=0.05) as (url, _):
        began = time.monotonic()
        with pytest.raises(ModelError, match=r"in 2 attempts; the last: timed out after 0\.4 sec"):
            judged(url)
        assert time.monotonic() - began < 8  # two deadlines, not four hundred drops


def test_an_error_whose_body_never_comes_is_asked_again() -> None:
    with answering(b"HTTP/1.1 500 No\r\nContent-Length: 99\r\n\r\n", b"o", pause=30) as (
        url,
        asked,
    ):
        with pytest.raises(ModelError, match="in 2 attempts; the last: timed out"):
            judged(url)
        assert len(asked) == 2


def test_a_flood_is_cut_off() -> None:
    with (
        answering(HEAD + b"\r\n", *[b" " * 100_000] * (LONGEST_REPLY // 100_000 + 5)) as (url, _),
        pytest.raises(ModelError, match=f"a reply of more than {LONGEST_REPLY} bytes"),
    ):
        judged(url, timeout=60.0, retries=0)


def test_a_complaint_without_end_is_read_to_its_beginning_only() -> None:
    with (
        answering(b"HTTP/1.1 400 No\r\n\r\n", b"no way " * 1000, pause=0.01, repeat=50) as (url, _),
        pytest.raises(ModelError, match="refuses: HTTP 400 "),
    ):
        judged(url, timeout=60.0)


def test_deeply_nested_replies_are_no_replies() -> None:
    body = b"[" * 200_000
    with (
        answering(HEAD + b"\r\n" + body) as (url, _),
        pytest.raises(ModelError, match="the last: no chat completion"),
    ):
        judged(url, timeout=20.0, retries=0)


def test_an_echoed_key_lands_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    questions = mm.get_task("reasoning").read([{"question": "What is 1+1?"}])
    body = chat(f"Authorization: Bearer {KEY}\nScore: 0.5")
    with answering(HEAD + b"Connection: close\r\n\r\n" + body) as (url, asked):
        judge = EndpointJudge(url, "m", key_env="JUDGE_KEY", timeout=20)
        labels = judge_questions(questions, judge, cache=tmp_path / "r.jsonl")
    assert KEY.encode() in asked[0]
    assert list(labels.scores.values()) == [0.5]
    kept = (tmp_path / "r.jsonl").read_text()
    assert KEY not in kept
    assert "Bearer ***" in kept


@pytest.mark.parametrize("key", [f"{KEY}\nX-Other: 1", f"{KEY} two", f"{KEY}\u00e9", f"{KEY}\x07"])
def test_a_key_that_is_none_is_refused_unseen(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(ModelError, match="holds a blank, a line break or") as caught:
        judged("http://127.0.0.1:9", key_env="JUDGE_KEY")
    assert KEY not in str(caught.value)


def test_half_a_character_is_kept_by_cache_and_labels(tmp_path: Path) -> None:
    half = "\ud83d"
    questions = mm.PromptSet([mm.Prompt(id="q", text=f"Why {half}?", meta={"question": half})])
    body = chat(f"{half} Score: 0.5")
    cache = tmp_path / "r.jsonl"
    with answering(HEAD + b"Connection: close\r\n\r\n" + body) as (url, asked):
        labels = judge_questions(questions, EndpointJudge(url, "m", timeout=20), cache=cache)
        again = judge_questions(questions, EndpointJudge(url, "m", timeout=20), cache=cache)
        assert len(asked) == 1
    assert labels.scores == again.scores == {"q": 0.5}
    own = judge_questions(questions, lambda text: f"{half} Score: 0.25", name="own", cache=cache)
    assert own.scores == {"q": 0.25}
    assert cache.read_bytes().decode()


STARS = "*" * 40_000


@pytest.mark.parametrize("reply", [STARS, "score" + STARS, "score " * 20_000, "_" * 40_000])
def test_reading_a_long_reply_costs_little(reply: str) -> None:
    began = time.process_time()
    assert read_score(reply) is None
    assert read_score(f"{reply} Score: 0.5") == 0.5
    assert time.process_time() - began < 2  # was 27 seconds
