import pytest

from modelkeep.access.networks import Networks

KEY = bytes(range(32))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.254", True),
        ("192.0.2.1", "192.0.3.1", False),
        ("192.0.2.1", "::ffff:192.0.2.9", True),
        ("2001:db8:1:1::1", "2001:db8:1:ffff::2", True),
        ("2001:db8:1::1", "2001:db8:2::1", False),
    ],
)
def test_addresses_of_one_network_have_one_name(one, other, same):
    networks = Networks(KEY)
    assert (networks.name(one) == networks.name(other)) is same
    assert len(networks.name(one)) == 8


@pytest.mark.parametrize("address", ["", "127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "unix", "1.2.3"])
def test_what_says_nothing_of_a_network_has_no_name(address):
    assert Networks(KEY).name(address) == b""


def test_names_depend_on_the_key_and_are_kept():
    networks = Networks(KEY)
    assert networks.name("192.0.2.1") != Networks(bytes(32)).name("192.0.2.1")
    assert networks.name("192.0.2.1") is networks.name("192.0.2.1")
