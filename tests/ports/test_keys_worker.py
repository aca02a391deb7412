"""The worker thread that providers are called on: deadlines, order, errors, forks."""

import os
import threading
import time

import pytest

from modelkeep.adapters.keys.worker import Worker
from modelkeep.errors import Denied, Unavailable


def test_it_gives_what_the_call_gives():
    worker = Worker("the thing")
    assert worker.call(lambda: 7, 5) == 7
    assert worker.call(lambda: threading.current_thread().daemon, 5)


def test_it_raises_what_the_call_raises():
    worker = Worker("the thing")

    def fail():
        raise Denied("no")

    with pytest.raises(Denied, match="no"):
        worker.call(fail, 5)
    with pytest.raises(SystemExit):  # also what is no Exception: the caller decides
        worker.call(lambda: exec("raise SystemExit"), 5)
    assert worker.call(lambda: 1, 60) == 1


def test_a_call_that_hangs_is_given_up_and_what_waits_behind_it_never_happens():
    worker, go, done = Worker("the thing"), threading.Event(), []
    assert worker.call(lambda: 1, 60) == 1
    with pytest.raises(Unavailable, match=r"the thing did not answer within 0\.8 seconds"):
        worker.call(go.wait, 0.8)
    with pytest.raises(Unavailable, match=r"was not asked within 0\.05 seconds"):
        worker.call(lambda: done.append("destroyed"), 0.05)
    go.set()
    assert worker.call(lambda: 1, 60) == 1
    assert done == []


def test_several_threads_go_on_beside_one_that_hangs():
    worker, go = Worker("the thing", threads=2), threading.Event()
    with pytest.raises(Unavailable):
        worker.call(go.wait, 0.05)
    assert worker.call(lambda: 1, 60) == 1
    go.set()


def test_one_thread_runs_calls_in_order():
    worker, seen = Worker("the thing"), []

    def work(number):
        seen.append(("in", number))
        time.sleep(0.002)
        seen.append(("out", number))

    callers = [threading.Thread(target=worker.call, args=(lambda n=n: work(n), 60)) for n in range(5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(seen[at][0] == "in" and seen[at + 1] == ("out", seen[at][1]) for at in range(0, 10, 2))


def test_a_forked_child_has_threads_of_its_own():
    worker = Worker("the thing")
    assert worker.call(os.getpid, 60) == os.getpid()
    child = os.fork()
    if child == 0:
        os._exit(0 if worker.call(os.getpid, 60) == os.getpid() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert worker.call(os.getpid, 60) == os.getpid()
