"""The line behind the open page: one at a time, in order, replaceable, and stopped for good."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mechmem.app.worker import Worker
from mechmem.errors import PromptError

LONG = 30.0


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


class Held:
    """Work that lasts until it is let go or stopped."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, check: Callable[[], None]) -> str:
        self.begun.set()
        while not self.go.is_set():
            check()
            time.sleep(0.005)
        return "held"


def test_a_result_is_kept_and_another_window_gets_it(worker: Worker) -> None:
    calls = []
    work = lambda check: calls.append(1) or len(calls)  # noqa: E731
    assert worker.ask("k", "one", "p", "counting", work, wait=LONG).value == 1
    assert worker.ask("k", "two", "p", "counting", work, wait=LONG).value == 1
    assert worker.result("k") == 1
    assert worker.result("other") is None


def test_all_work_is_done_by_one_thread_and_says_its_place(worker: Worker) -> None:
    held = Held()
    worker.ask("a", "one", "p", "first", held)
    assert held.begun.wait(LONG)
    name = lambda check: threading.current_thread().name  # noqa: E731
    b = worker.ask("b", "two", "p", "second", name)
    c = worker.ask("c", "three", "p", "third", name)
    assert worker.status("one") == ["first: at work"]
    assert worker.status("two") == ["second: place 2 in line"]
    assert worker.status("three") == ["third: place 3 in line"]
    held.go.set()
    assert b.done.wait(LONG)
    assert c.done.wait(LONG)
    assert b.value == c.value == "mechmem page"
    assert worker.status("one") == []


def test_what_is_asked_later_takes_the_place_of_what_waits_and_ends_what_runs(
    worker: Worker,
) -> None:
    held, never = Held(), []
    first = worker.ask("a", "w", "dose", "dosing", held, rank=2)
    assert held.begun.wait(LONG)
    old = worker.ask("b", "w", "turn", "turning", lambda check: never.append(1), rank=3)
    new = worker.ask("c", "w", "turn", "turning", lambda check: "new", rank=1, wait=LONG)
    assert first.error == "Stopped."
    assert old.error.startswith("Replaced")
    assert (new.value, never) == ("new", [])


def test_one_window_does_not_end_the_work_of_another(worker: Worker) -> None:
    held = Held()
    mine = worker.ask("a", "one", "p", "work", held, rank=5)
    assert held.begun.wait(LONG)
    other = worker.ask("b", "two", "p", "work", lambda check: 2, rank=0)
    worker.stop("two")
    assert other.error == "Stopped."
    held.go.set()
    assert mine.done.wait(LONG)
    assert mine.value == "held"


def test_work_that_is_stopped_ends_and_can_be_asked_for_again(worker: Worker) -> None:
    held = Held()
    job = worker.ask("a", "w", "p", "work", held)
    assert held.begun.wait(LONG)
    worker.stop("w")
    assert job.done.wait(LONG)
    assert job.error == "Stopped."
    held.go.set()
    assert worker.ask("a", "w", "p", "work", held, wait=LONG).error == "Stopped."
    worker.forget_failures()
    assert worker.ask("a", "w", "p", "work", held, wait=LONG).value == "held"


def test_a_refusal_keeps_its_words_and_the_line_goes_on(worker: Worker) -> None:
    def refuses(check: Callable[[], None]) -> None:
        raise PromptError("There is no prompt.")

    def breaks(check: Callable[[], None]) -> None:
        raise KeyError("x")

    assert worker.ask("a", "w", "p", "n", refuses, wait=LONG).error == "There is no prompt."
    assert worker.ask("b", "w", "p", "n", breaks, wait=LONG).error == "KeyError: 'x'"
    assert worker.ask("c", "w", "p", "n", lambda check: 3, wait=LONG).value == 3


def test_closing_ends_the_thread(worker: Worker) -> None:
    held, others = Held(), set(threading.enumerate())
    worker.ask("a", "w", "p", "work", held)
    assert held.begun.wait(LONG)
    worker.close(LONG)
    left = set(threading.enumerate()) - others
    assert not any(thread.name == "mechmem page" for thread in left)


def test_work_that_gave_way_is_done_when_it_is_asked_for_again(worker: Worker) -> None:
    held = Held()
    worker.ask("dose", "w", "dose", "dosing", held, rank=4)
    assert held.begun.wait(LONG)
    assert worker.busy("dose")
    worker.ask("slide 1", "w", "turn", "turning", lambda check: 1, rank=5)
    worker.ask("slide 2", "w", "turn", "turning", lambda check: 2, rank=1, wait=LONG)
    again = Held()
    again.go.set()
    assert worker.ask("dose", "w", "dose", "dosing", again, rank=4, wait=LONG).value == "held"
    assert worker.ask("slide 1", "w", "turn", "turning", lambda check: 1, wait=LONG).value == 1
    assert not worker.busy("dose")
