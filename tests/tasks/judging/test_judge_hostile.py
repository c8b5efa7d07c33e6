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
from mechmem.tasks.judging import JUDGE_PROMPT, EndpointJudge, judge_questions, read_score
from mechmem.tasks.judging.cache import JudgeCache
from mechmem.tasks.judging.endpoint import LONGEST_REPLY, _Answer

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


def test_looking_up_a_name_ends_with_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()

    def stalls(*asked: Any, **options: Any) -> list[Any]:
        done.wait(12)
        raise OSError("nobody there")

    monkeypatch.setattr(socket, "getaddrinfo", stalls)
    before, began = set(threading.enumerate()), time.monotonic()
    with pytest.raises(ModelError, match=r"the last: timed out after 0\.4 seconds"):
        judged("http://judge.example", retries=0)
    assert time.monotonic() - began < 6
    # What still looks up keeps no process from ending.
    assert all(thread.daemon for thread in set(threading.enumerate()) - before)
    done.set()


def test_a_judge_that_waits_long_counts_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    judge = EndpointJudge("http://localhost:9", "m", retries=1200, wait=1e5, sleep=slept.append)
    monkeypatch.setattr(EndpointJudge, "_post", lambda self, text: _Answer(500, None, b"no"))
    with pytest.raises(ModelError, match="in 1201 attempts"):
        judge.replies(["x"])
    assert slept == [60.0] * 1200


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
     {"wait": 1e300}, {"timeout": 10**400}, {"max_tokens": 10**5000}, {"retries": 10**5000},
     {"retries": 1.5}, {"retries": "1"}, {"retries": True}, {"max_tokens": 0}, {"options": 5},
     {"options": {"a": {1}}}, {"key_env": 5}, {"model": 5}, {"sleep": 5}],
    ids=lambda given: "".join(given),
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

    @pytest.mark.parametrize(
        "tail",
        [b"my notes", b'{"key": 5, "mine": true}', b'{"keys"', b"\0" * 9, b'["a"]', b"\xff"],
    )
    @pytest.mark.parametrize("before", ["nothing", "replies"])
    def test_a_file_of_somebody_else_is_left_as_it_is(
        self, cache: Path, before: str, tail: bytes
    ) -> None:
        whole = (cache.read_bytes() if before == "replies" else b"") + tail
        cache.write_bytes(whole)
        with pytest.raises(mm.ArtifactError, match=r"line \d is not a reply of a judge"):
            judge_questions(ASKED, lambda text: 0.5, name="b", cache=cache)
        assert cache.read_bytes() == whole

    @pytest.mark.parametrize("length", [1, 5, 9, 20, 90, -2])
    def test_a_line_that_was_cut_off_goes_when_the_next_is_kept(
        self, cache: Path, length: int
    ) -> None:
        whole = cache.read_bytes()
        torn = whole + whole[:length]
        cache.write_bytes(torn)
        cache.chmod(0o400)
        kept = JudgeCache(cache, "b")
        assert cache.read_bytes() == torn
        kept.add("one", 0.5)
        kept.add("two", 0.25)
        assert cache.read_bytes().startswith(whole)
        assert len(JudgeCache(cache, "b")) == 3

    def test_a_whole_line_without_its_end_is_kept(self, cache: Path) -> None:
        whole = cache.read_bytes()
        cache.write_bytes(whole[:-1])
        text = JUDGE_PROMPT.replace("{question}", "Why?")
        assert JudgeCache(cache, "a")[text] == "Score: 0.25"
        JudgeCache(cache, "b").add("one", 0.5)
        assert cache.read_bytes().startswith(whole)
        assert len(JudgeCache(cache, "b")) == 2

    def test_what_another_wrote_meanwhile_is_not_cut_off(self, cache: Path) -> None:
        with cache.open("ab") as handle:
            handle.write(b'{"key": "cut')
        one, other = JudgeCache(cache, "one"), JudgeCache(cache, "other")
        one.add("text", 0.5)
        other.add("text", 0.25)
        assert len(JudgeCache(cache, "one")) == 3

    def test_a_file_that_cannot_be_written_is_named(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept = JudgeCache(cache, "b")

        def refuses(*given: Any, **options: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuses)
        with pytest.raises(mm.ArtifactError, match=r"r\.jsonl: Permission denied"):
            kept.add("one", 0.5)


class Several:
    """A judge of several texts at once."""

    name = "several"

    def replies(self, texts: Any) -> list[str]:
        return ["Score: 0.5" for _ in texts]


@pytest.mark.parametrize(
    ("name", "values"),
    [("batch", (0, -1, 1.5, "x", math.nan, True)), ("template", (5, None)), ("cache", (5, b"r")),
     ("progress", (5,)), ("name", (5, ["a"])), ("version", (5,)), ("judge", (5, None)),
     ("prompts", (5, None, "Why?"))],
)  # fmt: skip
def test_arguments_of_another_kind_are_refused_before_anything_is_asked(
    name: str, values: tuple[Any, ...]
) -> None:
    asked: list[str] = []

    class Counts(Several):
        def replies(self, texts: Any) -> list[str]:
            asked.extend(texts)
            return super().replies(texts)

    for value in values:
        settings = {"prompts": ASKED, "judge": Counts(), name: value}
        if name == "judge":
            settings["name"] = "x"
        with as_users_run_it(), pytest.raises(mm.MechmemError, match=rf"^{name} must be"):
            judge_questions(settings.pop("prompts"), settings.pop("judge"), **settings)
    assert asked == []
