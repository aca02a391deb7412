"""Fixtures of the HTTP tests."""

from collections.abc import Iterator

import pytest
from gateway_support import Trained, train
from http_support import QUICK, Running


@pytest.fixture
def server() -> Iterator[Running]:
    """A server with short deadlines that says what it understood."""
    running = Running(**QUICK)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def trained() -> Trained:
    """A small three-class model."""
    return train()
