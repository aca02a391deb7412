"""Tests of what runs in a sandbox, on machines that let nothing be isolated, too (a container without user namespaces)."""

import functools

import pytest

from modelkeep.adapters.isolate import Engine
from modelkeep.errors import Unavailable

REFUSAL = "this machine does not let a command be isolated|cannot be isolated here|there is no 'bwrap' here|bubblewrap 0.8 or"


@functools.cache
def engine():
    """The one that works here; None where none does."""
    try:
        found = Engine.find()
        found.probe()
    except Unavailable:
        return None
    return found


def where_possible(test):
    """Where nothing can be isolated, the test is that this is said, and nothing run."""

    @functools.wraps(test)
    def either(*arguments, **named):
        if engine() is None:
            with pytest.raises(Unavailable, match=REFUSAL):
                Engine.find().probe()
        else:
            test(*arguments, **named)

    return either
