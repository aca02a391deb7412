import pytest
from access_house import House


@pytest.fixture
def house() -> House:
    """A keep with one account."""
    return House()
