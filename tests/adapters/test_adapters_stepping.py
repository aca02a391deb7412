"""Declared steps: what they are told when they are not confined."""

from modelkeep.adapters.confine import DEFAULT_LIMITS
from modelkeep.adapters.stepping import run_step

TELL = b"import os, sys\nprint(sorted(os.environ), open(sys.argv[1]).read(), sys.argv[2:])"


def test_an_unconfined_step_is_told_its_input_and_its_parameters_and_nothing_of_its_users_environment(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "CANARY")
    said = run_step(TELL, "tell.py", {"least": "5"}, memoryview(b"rows"), DEFAULT_LIMITS, confined=False)
    assert said == b"['LC_ALL', 'PATH'] rows ['least=5']\n"
