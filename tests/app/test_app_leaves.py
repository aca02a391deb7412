"""Certificates of the keep's own authority are renewed before they end, also in a gateway that cannot make one."""

import socket
import threading

import pytest
from commandline import PASSPHRASE, copy_keep
from cryptography import x509

from modelkeep.adapters.certificates import Certificates, not_after, renewal_due
from modelkeep.adapters.clock import SystemClock
from modelkeep.app.control import open_control
from modelkeep.app.handover import CONTROL_NAME, LeafWatch, follow_ring, open_for, send_leaf
from modelkeep.app.keep import Keep
from modelkeep.custody.keys import FAMILIES, GATEWAY_FAMILIES

DAYS = 86_400 * 10**9


class Later(SystemClock):
    """A clock that is some days ahead."""

    days = 0

    def now_ns(self):
        return super().now_ns() + self.days * DAYS


@pytest.fixture
def keep(template, tmp_path):
    made = Keep.open(copy_keep(template, tmp_path / "keep"), PASSPHRASE.encode())
    made.premises.clock = Later()
    return made


def names(chain):
    found = x509.load_pem_x509_certificate(chain).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return found.value.get_values_for_type(x509.DNSName)


def test_up_renews_a_gateways_certificate_when_a_third_of_its_life_is_left(keep, monkeypatch):
    opened, sent, said = open_for(keep.premises, GATEWAY_FAMILIES), [], []
    watch = LeafWatch(keep.premises, opened.leaf, sent.append, said.append)
    monkeypatch.setattr("modelkeep.app.handover.LEAF_SECONDS", -1.0)
    watch.look()
    assert sent == []
    keep.premises.clock.days = 61
    watch.look()
    watch.look()
    (fresh,) = sent
    assert not_after(fresh.chain) > not_after(opened.leaf.chain) + 60 * 86_400 and said == ["the certificate was renewed"]
    assert CONTROL_NAME not in names(fresh.chain)
    (keep.premises.directory / "tls" / "ca.pem").write_bytes(b"junk")
    keep.premises.clock.days = 150
    watch.look()
    watch.look()
    assert len(sent) == 1 and len(said) == 2 and "could not be renewed" in said[1]


def test_a_gateway_takes_a_certificate_over_through_its_socket(keep):
    opened = open_for(keep.premises, GATEWAY_FAMILIES)
    shown, came = Certificates(opened.leaf), threading.Event()
    ours, theirs = socket.socketpair()

    def show(leaf):
        shown.show(leaf)
        came.set()

    thread = follow_ring(theirs.detach(), lambda _: None, pytest.fail, show=show)
    keep.premises.clock.days = 61
    assert shown.renewal_due(keep.premises.clock.now_ns() / 1e9)
    send_leaf(ours, keep.premises.issue_leaf(keep.premises.keyring(["tls-ca"])))
    assert came.wait(60)
    ours.close()
    thread.join(60)
    assert not shown.renewal_due(keep.premises.clock.now_ns() / 1e9)


def test_control_renews_its_own_with_its_own_name(keep):
    said = []
    control = open_control(keep.premises.directory, open_for(keep.premises, FAMILIES), said.append)
    try:
        control._leaf()
        assert said == []
        control.keep.premises.clock = Later()
        control.keep.premises.clock.days = 61
        control._leaf()
        assert said == ["control: the certificate was renewed"]
        assert CONTROL_NAME in names(control.shown._identity.chain)
        assert not renewal_due(control.shown._identity.chain, control.keep.premises.clock.now_ns() / 1e9)
    finally:
        control.keep.premises.clock = SystemClock()
        control.stop()
