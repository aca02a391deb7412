"""Fixtures of the HTTP tests."""

from collections.abc import Iterator

import pytest
from http_support import QUICK, Running


@pytest.fixture
def server() -> Iterator[Running]:
    """A server with short deadlines that says what it understood."""
    running = Running(**QUICK)
    yield running
    running.stop()
