"""One thread that does all the work, in a line that says its place and can be stopped."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from mechmem.errors import MechmemError

KEPT_RESULTS = 300
"""Results that are kept, so that two windows, or a slide back, need no second computation."""


class Stopped(BaseException):
    """Ends the work that somebody stopped. No `Exception`, so that nothing takes it for a trial
    that failed."""


@dataclass(eq=False)
class Job:
    """One piece of work.

    Attributes:
        key: What its result is known by.
        window, panel: Who asked; a newer job takes the place of an older one of the same two.
        work: Called in the worker's thread, with a function that raises when the job was stopped.
        name: What the line calls it.
        rank: Lower ones go first.
        value, error: What came out.
        displaced: Gave way to newer work; asked for again, it is done again.
    """

    key: Hashable
    window: str
    panel: str
    work: Callable[[Callable[[], None]], Any]
    name: str
    rank: int = 0
    value: Any = None
    error: str = ""
    displaced: bool = False
    done: threading.Event = field(default_factory=threading.Event)
    stopped: threading.Event = field(default_factory=threading.Event)


class Worker:
    """The line, and the one thread that works it off: hooks on a model are not for several."""

    def __init__(self) -> None:
        self._line: list[Job] = []
        self._running: Job | None = None
        self._results: OrderedDict[Hashable, Job] = OrderedDict()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.forgotten = 0

    def ask(
        self,
        key: Hashable,
        window: str,
        panel: str,
        name: str,
        work: Callable[[Callable[[], None]], Any],
        *,
        rank: int = 0,
        wait: float = 0.0,
    ) -> Job:
        """The job of this key: finished, waiting, or newly put in line.

        Args:
            wait: Seconds to wait for it.
        """
        with self._changed:
            job = self._results.get(key) or self._waiting(key)
            if job is None:
                for other in list(self._line):
                    if (other.window, other.panel) == (window, panel):
                        self._line.remove(other)
                        other.displaced = True
                        self._end(other, "Replaced by what was asked later.")
                now = self._running
                if now is not None and now.window == window and rank <= now.rank:
                    now.displaced = True
                    now.stopped.set()
                job = Job(key, window, panel, work, name, rank)
                self._line.append(job)
                self._line.sort(key=lambda one: one.rank)
                self._start()
                self._changed.notify_all()
        job.done.wait(wait)
        return job

    def result(self, key: Hashable) -> Any:
        """What came out, or ``None`` where nothing has yet."""
        with self._changed:
            job = self._results.get(key)
            return None if job is None or job.error else job.value

    def error(self, key: Hashable) -> str:
        """Why it was refused, if it was."""
        with self._changed:
            job = self._results.get(key)
            return "" if job is None else job.error

    def busy(self, key: Hashable) -> bool:
        """Whether it is in line or at work."""
        with self._changed:
            return self._waiting(key) is not None

    def status(self, window: str) -> list[str]:
        """What this window waits for, in words; the work that runs first."""
        with self._changed:
            line = [*([self._running] if self._running else []), *self._line]
            return [
                f"{job.name}: {'at work' if job is self._running else f'place {k + 1} in line'}"
                for k, job in enumerate(line)
                if job.window == window
            ]

    def stop(self, window: str | None = None) -> None:
        """End what this window (or everybody) waits for."""
        with self._changed:
            for job in list(self._line):
                if window in (None, job.window):
                    self._line.remove(job)
                    self._end(job, "Stopped.")
            if self._running is not None and window in (None, self._running.window):
                self._running.displaced = False
                self._running.stopped.set()

    def forget_failures(self) -> None:
        """What failed or was stopped is tried again when it is asked for again."""
        with self._changed:
            for key in [key for key, job in self._results.items() if job.error]:
                del self._results[key]
                self.forgotten += 1

    def close(self, seconds: float = 10.0) -> None:
        """Stop everything and wait for the thread."""
        self.stop()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(seconds)

    def _waiting(self, key: Hashable) -> Job | None:
        line = [*self._line, *([self._running] if self._running else [])]
        return next((job for job in line if job.key == key and not job.stopped.is_set()), None)

    def _end(self, job: Job, error: str) -> None:
        job.error = error
        if not (error and job.displaced):
            self._results[job.key] = job
        while len(self._results) > KEPT_RESULTS:
            self._results.popitem(last=False)
        job.done.set()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mechmem page", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._line and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                job = self._running = self._line.pop(0)
            error = self._did(job)
            with self._changed:
                self._running = None
                self._end(job, error)

    def _did(self, job: Job) -> str:
        def check() -> None:
            if job.stopped.is_set():
                raise Stopped

        try:
            check()
            job.value = job.work(check)
        except Stopped:
            return "Stopped."
        except MechmemError as refusal:
            return str(refusal)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""
