"""A server process does not go on without one of its threads."""

import subprocess
import sys

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
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=15, check=False)
    assert done.returncode == 3
    assert "thread integrity died of RuntimeError in " in done.stderr
    assert "work:" in done.stderr
    assert "secret" not in done.stderr
