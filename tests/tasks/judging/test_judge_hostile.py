"""An endpoint that means no good: it drips, floods, stalls and echoes; and keys that are none."""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import as_users_run_it

import mechmem as mm
from mechmem.errors import ModelError
from mechmem.manifests import sealed
from mechmem.tasks.judging import EndpointJudge, judge_questions, read_score
from mechmem.tasks.judging.endpoint import LONGEST_REPLY

KEY = "sk-quite-secret-0123456789"
ASKED = mm.PromptSet([mm.Prompt(id="q", text="Why?")])
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


@pytest.mark.parametrize(
    "url",
    ["http://[::1", "http://localhost:99999", "http://localhost:abc", "http://localhost:0",
     "http://local\nhost", "http://a\x00b", "http://\ud800/", "http://xn--/", "", "ftp://x", 5],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_before_anything_is_asked(url: Any) -> None:
    with as_users_run_it(), pytest.raises(ModelError, match=r"begins with https://"):
        EndpointJudge(url, "m")


@pytest.mark.parametrize(
    "given",
    [{"timeout": "x"}, {"timeout": 0}, {"timeout": math.inf}, {"wait": -1}, {"wait": math.nan},
     {"retries": 1.5}, {"retries": "1"}, {"retries": True}, {"max_tokens": 0}, {"options": 5},
     {"options": {"a": {1}}}, {"key_env": 5}, {"model": 5}, {"sleep": 5}],
    ids=str,
)  # fmt: skip
def test_fields_that_make_no_request_are_refused_before_anything_is_asked(given: Any) -> None:
    (name,) = given
    with as_users_run_it(), pytest.raises(ModelError, match=rf"^{name} must be"):
        EndpointJudge("http://localhost:8000", **{"model": "m", **given})


class TestRepliesOnDisk:
    @pytest.fixture
    def cache(self, tmp_path: Path) -> Path:
        judge_questions(ASKED, lambda text: "Score: 0.25", name="a", cache=tmp_path / "r.jsonl")
        return tmp_path / "r.jsonl"

    def test_every_flipped_bit_is_refused_or_asked_again(self, cache: Path) -> None:
        whole, asked = cache.read_bytes(), []

        def judge(text: str) -> str:
            asked.append(text)
            return "Score: 0.25"

        for place in range(0, 8 * len(whole), 7):
            data = bytearray(whole)
            data[place // 8] ^= 1 << place % 8
            cache.write_bytes(data)
            asked.clear()
            try:
                labels = judge_questions(ASKED, judge, name="a", cache=cache)
            except mm.ArtifactError:
                continue
            assert asked or list(labels.scores.values()) == [0.25]

    @pytest.mark.parametrize("reply", [["a"], {}, None, True, 10**400, math.nan], ids=str)
    @pytest.mark.parametrize("seal", [dict, sealed])
    def test_a_reply_of_another_kind_is_refused(self, cache: Path, reply: Any, seal: Any) -> None:
        row = {**json.loads(cache.read_text()), "reply": reply}
        cache.write_text(json.dumps(seal(row)) + "\n")
        with pytest.raises(mm.ArtifactError, match=r"line 1 is not a reply"):
            judge_questions(ASKED, lambda text: 0.5, name="a", cache=cache)

    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "r.jsonl")
        with pytest.raises(mm.ArtifactError, match="is not a file but a pipe"):
            judge_questions(ASKED, lambda text: 0.5, name="a", cache=tmp_path / "r.jsonl")

    @pytest.mark.parametrize("reply", [10**400, -(10**400), math.nan, math.inf, 1e300, 2, -0.1])
    def test_a_number_beyond_all_scores_is_unread_now_and_later(
        self, tmp_path: Path, reply: float
    ) -> None:
        for _ in "ab":
            labels = judge_questions(ASKED, lambda text: reply, name="a", cache=tmp_path / "r")
            assert list(labels.scores.values()) == [None]
