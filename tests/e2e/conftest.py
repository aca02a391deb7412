"""One running keep for every test that leaves it as it was."""

import pytest
from commandline import Cli, copy_keep
from e2e_house import House


@pytest.fixture(scope="session")
def open_house(template, desk, tmp_path_factory):
    """A keep that runs for the whole session; tests that break things start their own."""
    folder = tmp_path_factory.mktemp("open-house")
    cli = Cli(copy_keep(template, folder / "keep"), desk / "pass")
    house = House(cli, folder).start()
    yield house
    house.stop()
