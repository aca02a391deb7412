"""A worker thread for calls into code that may hang: a provider's module or SDK. The caller waits so long and no longer."""

import os
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

from modelkeep.errors import Unavailable

T = TypeVar("T")


class _Job(Generic[T]):
    """One call: what it gave or raised, and whether its caller still waits. As a context it keeps what is raised in it."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._turn = threading.Lock()
        self._begun = self._forgotten = False
        self._result: list[T] = []
        self._error: BaseException | None = None
        self._done = threading.Event()

    def run(self) -> None:
        """Run it, unless its caller went away before it began: what nobody waits for must not happen later."""
        with self._turn:
            if self._forgotten:
                return
            self._begun = True
        with self:
            self._result.append(self._work())

    def result(self, timeout: float, what: str) -> T:
        """What the call gave; raises what it raised, or Unavailable after ``timeout`` seconds."""
        if not self._done.wait(timeout):
            with self._turn:
                self._forgotten = True
            state = "did not answer" if self._begun else "is busy with a call that does not end, and was not asked"
            raise Unavailable(f"{what} {state} within {timeout:g} seconds")
        if self._error is not None:
            raise self._error
        return self._result[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None) -> bool:
        self._error = error
        self._done.set()
        return True


class Worker:
    """``threads`` daemon threads, made when first needed and again in a forked child. They never keep a process alive."""

    def __init__(self, what: str, threads: int = 1) -> None:
        """``what``: the system behind the calls, for messages."""
        self._what, self._threads = what, threads
        self._start = threading.Lock()
        self._pid = 0
        self._jobs: queue.SimpleQueue[_Job[object]] = queue.SimpleQueue()

    def call(self, work: Callable[[], T], timeout: float) -> T:
        """What ``work`` gives, from a worker thread. Raises what it raises, and Unavailable after ``timeout`` seconds."""
        if self._pid != os.getpid():
            self._begin()
        job = _Job(work)
        self._jobs.put(job)  # type: ignore[arg-type]  # a queue of jobs of any result
        return job.result(timeout, self._what)

    def _begin(self) -> None:
        with self._start:
            if self._pid != os.getpid():
                self._jobs = queue.SimpleQueue()
                for number in range(self._threads):
                    threading.Thread(target=_serve, args=(self._jobs,), name=f"keys-{number}", daemon=True).start()
                self._pid = os.getpid()


def _serve(jobs: "queue.SimpleQueue[_Job[object]]") -> None:
    while True:
        jobs.get().run()
