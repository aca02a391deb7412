"""A server process does not go on without one of its threads."""

import subprocess
import sys

import pytest

PROGRAM = """
import threading, time
from modelkeep.adapters.process import harden
harden()
def work(secret):
    raise RuntimeError(secret)
threading.Thread(target=work, args=("the secret",), name="integrity").start()
time.sleep(20)
"""


def test_a_thread_that_dies_takes_the_process_with_it_and_quotes_no_value():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "thread integrity died of RuntimeError in " in done.stderr
    assert "work:" in done.stderr
    assert "secret" not in done.stderr


BROKEN = """
import time
from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.process import harden
from modelkeep.app.evidence import Repeated
from modelkeep.workflows.follow import AdmissionFollower
from modelkeep.workflows.watch import Watchers
harden()
def broken(*_):
    raise KeyError("the secret")
{thread}.start()
time.sleep(20)
"""


@pytest.mark.parametrize(
    ("thread", "name"),
    [
        ("Repeated('decisions', 0.01, broken, print)", "decisions"),
        ("AdmissionFollower(None, None, SystemClock(), publish=print, also=[broken])", "admission"),
        ("Watchers(broken, print)", "extraction-evidence"),
    ],
)
def test_what_a_gateway_repeats_ends_it_on_an_error_that_nobody_foresaw(thread, name):
    """These catch what is modelkeep's own, and report it; anything else must not be taken for that, or pass in silence."""
    done = subprocess.run(
        [sys.executable, "-c", BROKEN.format(thread=thread)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 3 and not done.stdout
    assert f"thread {name} died of KeyError in " in done.stderr and "secret" not in done.stderr
