import errno
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.adapters.coldfile import ColdFile
from modelkeep.errors import NotTrusted, Unavailable
from modelkeep.extraction.accounts import Account, Accounts
from modelkeep.extraction.guard import Guard


def _state(account):
    found = {name: getattr(account, name) for name in account.__slots__}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in found.items()}


class Memory:
    """``Cold`` without a disk; ``full``: it takes nothing."""

    def __init__(self):
        self.slots, self.full = {}, False

    def put(self, slot, data):
        if self.full:
            raise Unavailable("full")
        self.slots[slot] = data

    def get(self, slot):
        return self.slots[slot]


@pytest.mark.parametrize("place", ["memory", "file"])
def test_where_an_account_s_state_lies_changes_nothing(place, digits, tmp_path):
    rng = np.random.default_rng(0)
    x = digits.unseen[:400] + 0.5 * rng.integers(0, 2, size=(400, 1))
    names, answers = [f"account-{i}" for i in rng.integers(9, size=400)], digits.predict(x)
    cold = Memory() if place == "memory" else ColdFile(tmp_path / "run")
    whole, tight = Guard(digits.profile), Guard(digits.profile, cold=cold, in_memory=2)
    for at in range(0, 400, 7):
        for guard in (whole, tight):
            guard.observe_many(names[at : at + 7], x[at : at + 7], answers[at : at + 7])
        assert tight.held().hot == 2 or at < 14
        if at == 70:
            whole.clear("account-1"), tight.clear("account-1")
            whole.forget("account-2"), tight.forget("account-2")
        if at == 140:
            whole.begin(30), tight.begin(30)
    assert tight.held().known == 9 and tight.subjects() == whole.subjects()
    for name in set(names):
        assert tight.verdict(name) == whole.verdict(name)
        assert _state(tight._accounts.get(name)) == _state(whole._accounts.get(name))


@settings(max_examples=30)
@given(st.integers(0, 300), st.integers(0, 2**40), st.floats(0, 1e250), st.integers(0, 2**32 - 1))
def test_an_account_comes_back_as_it_went(bets, count, value, seed):
    rng, account = np.random.default_rng(seed), Account(bets)
    account.stakes[:] = rng.exponential(size=(2, bets)) * 1e100
    account.names[:] = rng.integers(0, 2**64, size=1024, dtype=np.uint64)
    account.own[:] = rng.normal(size=account.own.shape).astype(np.float16)
    account.inverse[:] = rng.normal(size=account.inverse.shape)
    account.queries, account.effective, account.since, account.reviews, account.alarmed_at = count, count // 2, 3, 2, count
    account.spent = account.value = value
    assert _state(Account.unpack(account.pack(bets + 7), bets + 7)) == _state(account)
    with pytest.raises(NotTrusted):
        Account.unpack(account.pack(bets)[:-1], bets)


def test_without_room_for_the_coldest_they_stay():
    cold = Memory()
    accounts = Accounts(5, cold, 2)
    cold.full = True
    for name in "abcd":
        accounts.make(name)
        accounts.settle()
    assert accounts.hot == 4
    cold.full = False
    accounts.settle()
    assert accounts.hot == 2 and sorted(cold.slots) == [0, 1] and accounts.get("a") and accounts.get("nobody") is None


def test_a_forgotten_account_leaves_nothing_behind_where_it_was_cold():
    cold = Memory()
    accounts = Accounts(5, cold, 1)
    accounts.make("a").spent = 7.25
    accounts.make("b")
    accounts.settle()
    mark = np.float64(7.25).tobytes()
    assert mark in cold.slots[0]
    accounts.forget("a")
    assert mark not in cold.slots[0] and accounts.get("a") is None and list(accounts) == ["b"]


def test_an_account_that_is_forgotten_on_a_broken_disk_takes_no_other_s_place():
    """Its slot was then neither free nor in use, and the next account was put on top of one that was."""
    cold = Memory()
    accounts = Accounts(5, cold, 1)
    for spent, name in enumerate("abcd"):
        accounts.make(name).spent = float(spent)
        accounts.settle()
    cold.full = True
    with pytest.raises(Unavailable):
        accounts.forget("a")
    cold.full = False
    accounts.make("e").spent = 4.0
    accounts.settle()
    assert accounts.get("a") is None and [accounts.get(name).spent for name in "bcde"] == [1.0, 2.0, 3.0, 4.0]


def test_a_cold_file_has_no_name_and_tells_nothing_to_who_reads_the_disk(tmp_path):
    cold = ColdFile(tmp_path)
    cold.put(3, b"secret" * 100)
    cold.put(0, b"others" * 100)
    assert not list(tmp_path.iterdir())
    assert (cold.get(3), cold.get(0)) == (b"secret" * 100, b"others" * 100)
    raw = os.pread(cold._fd, 10_000, 0)
    assert b"secret" not in raw and b"others" not in raw


def test_a_cold_file_that_was_altered_is_refused(tmp_path):
    cold = ColdFile(tmp_path)
    for slot in range(3):
        cold.put(slot, bytes([slot]) * 50)
    length = 50 + 28
    first, second = os.pread(cold._fd, length, 0), os.pread(cold._fd, length, length)
    os.pwrite(cold._fd, second, 0)  # another slot's
    os.pwrite(cold._fd, bytes([second[20] ^ 1]), length + 20)
    os.ftruncate(cold._fd, 2 * length + 5)
    for slot in range(3):
        with pytest.raises(NotTrusted):
            cold.get(slot)
    os.pwrite(cold._fd, first, 0)
    assert cold.get(0) == bytes(50)


def test_a_cold_file_on_a_full_disk_says_so(tmp_path, monkeypatch):
    cold = ColdFile(tmp_path)
    cold.put(0, b"x" * 50)

    def full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(Unavailable, match="No space left"):
            cold.put(1, b"y" * 50)
    cold.put(1, b"z" * 50)
    assert cold.get(1) == b"z" * 50
