"""A sealed process in memory: pace, forgetting, what a change of passphrase does to shares, and what is recorded."""

import itertools
import json
import os
import shutil
import signal
import sys

import pytest
from commandline import PASSPHRASE, copy_keep
from softhsm import Token

from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.localsocket import Peer
from modelkeep.app.keep import Keep
from modelkeep.app.unsealing import Unsealing
from modelkeep.custody.keys import MODEL_KEK
from modelkeep.errors import Invalid, Missing, ModelkeepError

ME = Peer(1, 0)
NEW = b"another passphrase of several words"


class Hands(SystemClock):
    """A clock that only the test moves on."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def folder(template, tmp_path):
    return copy_keep(template, tmp_path / "keep")


@pytest.fixture
def keep(folder):
    return Keep.open(folder, PASSPHRASE.encode())


def sealed(folder):
    said = []
    made = Unsealing(folder, "up", said.append, by_hand=True)
    made.here.clock = Hands()
    return made, made.here.clock, said


def give(made, text, what="share"):
    return made.hear({"do": what, "secret": text}, ME)


def acts(folder):
    return [row.summary for row in Keep.open(folder, PASSPHRASE.encode()).log_show(last=50) if row.summary.startswith("uns")]


def test_shares_given_are_forgotten_when_the_next_takes_too_long(keep, folder):
    shares = keep.shares_make(threshold=2, shares=2).shares
    made, clock, said = sealed(folder)
    assert give(made, shares[0])["shares"] == [1]
    clock.now += 601
    assert give(made, shares[1])["shares"] == [2]
    assert any("forgotten" in line for line in said)
    assert not give(made, shares[0])["sealed"] and made.opened.is_set()
    assert give(made, shares[0])["code"] == "conflict"
    assert acts(folder)[-1].startswith("unsealed how=shares")


def test_a_lock_while_it_is_being_unsealed_is_refused_and_not_taken_for_done(folder):
    made, _, _ = sealed(folder)
    assert made.hear({"do": "seal"}, ME)["sealed"] is True
    assert give(made, PASSPHRASE, "passphrase")["sealed"] is False
    assert made.hear({"do": "seal"}, ME)["code"] == "conflict"


def test_a_passphrase_that_is_no_bytes_is_refused(folder):
    made, _, _ = sealed(folder)
    assert give(made, "five \u20ac", "passphrase")["code"] == "invalid"


def test_every_wrong_guess_makes_the_next_wait_longer(folder):
    made, clock, _ = sealed(folder)
    waits = []
    for _ in range(4):
        assert give(made, "wrong words", "passphrase")["code"] == "not-trusted"
        refusal = give(made, PASSPHRASE, "passphrase")
        assert refusal["code"] == "over-budget"
        waits.append(refusal["retry_after"])
        clock.now += refusal["retry_after"]
    assert waits == [0.5, 1.0, 2.0, 4.0]
    assert give(made, PASSPHRASE, "passphrase")["sealed"] is False
    assert [line for line in acts(folder) if line.startswith("unsealed")] == ["unsealed how=passphrase uid=0"]


@pytest.mark.parametrize(
    "asked", [{}, {"do": "open"}, {"do": "share"}, {"do": "share", "secret": 3}, {"do": "share", "secret": "x"}]
)
def test_what_makes_no_sense_is_refused(folder, asked):
    made, _, _ = sealed(folder)
    assert made.hear(asked, ME)["code"] in ("invalid", "missing")
    assert not made.opened.is_set()


def test_an_unsealing_that_cannot_be_recorded_does_not_happen(folder):
    made, _, _ = sealed(folder)
    (folder / "log" / "releases" / "checkpoint").rename(folder / "log" / "releases" / "gone")
    refusal = give(made, PASSPHRASE, "passphrase")
    assert refusal["code"] in {kind.code for kind in ModelkeepError.__subclasses__()} | {"not-trusted", "unavailable"}
    assert not made.opened.is_set() and made.unlocked is None


def test_a_new_passphrase_leaves_the_shares_good_and_the_old_one_is_not(keep, folder):
    shares = keep.shares_make(threshold=2, shares=3).shares
    before = (folder / "unseal" / "shares.json").read_bytes()
    _, late = keep.keys_passwd(NEW)
    assert late == ()
    made, _, _ = sealed(folder)
    give(made, shares[2])
    assert give(made, shares[0])["sealed"] is False
    # and the escrow of before, from a backup, opens the ring of now for nobody
    (folder / "unseal" / "shares.json").write_bytes(before)
    again, _, _ = sealed(folder)
    give(again, shares[2])
    refusal = give(again, shares[0])
    assert refusal["code"] == "not-trusted" and not again.opened.is_set()
    assert "unseal with the passphrase, then run 'modelkeep shares make'" in refusal["message"]


def test_a_change_of_passphrase_that_is_killed_at_any_write_leaves_a_keep_that_passphrase_and_shares_open(
    keep, folder, tmp_path
):
    """One of the two passphrases opens it, and so do the shares: either all has changed, or nothing."""
    shares = keep.shares_make(threshold=2, shares=2).shares
    changed = set()
    for number in itertools.count(1):
        torn = copy_keep(folder, tmp_path / f"torn-{number}")
        done = killed_at(number, torn, lambda: Keep.open(torn, PASSPHRASE.encode()).keys_passwd(NEW))  # noqa: B023
        made, _, _ = sealed(torn)
        assert "code" not in give(made, shares[0]), (number, made)
        refusal = give(made, shares[1])
        assert refusal.get("sealed") is False, (number, refusal)
        words = [word for word in (PASSPHRASE, NEW.decode()) if "code" not in give(sealed(torn)[0], word, "passphrase")]
        assert len(words) == 1, number
        changed.add(words[0])
        shutil.rmtree(torn)
        if done:
            break
    assert changed == {PASSPHRASE, NEW.decode()} and number > 10


def killed_at(number, folder, act):
    """Do ``act`` in a process that is killed at its write ``number`` below ``folder``; whether it got to its end."""
    writes = {"os.rename", "os.link", "os.mkdir", "os.rmdir", "os.remove"}
    left = number

    def count(event, arguments):
        nonlocal left
        writing = event in writes or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if writing and str(arguments[0]).startswith(str(folder)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            sys.addaudithook(count)
            act()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def test_an_escrow_that_was_put_there_is_not_renewed(keep, folder, template, tmp_path):
    other = Keep.open(copy_keep(template, tmp_path / "other"), PASSPHRASE.encode())
    other.keys_passwd(b"what a thief has chosen")  # the same keep, and another key to it
    Keep.open(tmp_path / "other", b"what a thief has chosen").shares_make(threshold=2, shares=2)
    (folder / "unseal").mkdir(mode=0o700)
    forged = (tmp_path / "other" / "unseal" / "shares.json").read_bytes()
    (folder / "unseal" / "shares.json").write_bytes(forged)
    (folder / "unseal" / "shares.json").chmod(0o600)
    _, (late,) = keep.keys_passwd(NEW)
    assert "not made by whoever opened this key ring" in late
    assert (folder / "unseal" / "shares.json").read_bytes() == forged  # opens nothing, and shows what was tried


def test_recovery_takes_shares_away(keep, folder, template):
    keep.shares_make(threshold=2, shares=2)
    identity = json.loads((template.parent / "init.json").read_bytes())["recovery"]
    Keep.keys_recover(folder, identity, NEW)
    assert Keep.open(folder, NEW).unsealing_list() == ()


def test_a_key_that_model_keys_are_made_with_does_not_unseal(keep, folder):
    token = Token()
    keep.keys_move(token.uri("models"))
    with pytest.raises(Invalid, match="a key of its own"):
        keep.unsealing_provider(token.uri("models"))
    with pytest.raises(Missing, match="create it first"):
        keep.unsealing_provider(token.uri("nothing"))
    assert keep.premises.keyring([MODEL_KEK]).families


def test_what_is_made_and_dropped_is_logged_and_listed(keep, folder):
    made = keep.shares_make(threshold=3, shares=5)
    assert [row.what for row in keep.unsealing_list()] == [f"any 3 of 5 shares of set {made.set_id}"]
    keep.unsealing_drop("shares")
    assert keep.unsealing_list() == ()
    with pytest.raises(Missing, match="nothing of kind"):
        keep.unsealing_drop("shares")
    assert [line.split()[0] for line in acts(folder)] == ["unsealing.make", "unsealing.drop"]


def test_shares_that_were_made_anew_do_not_wait_for_those_given_before(keep, folder):
    former = keep.shares_make(threshold=2, shares=3).shares
    made, _, said = sealed(folder)
    assert give(made, former[0])["shares"] == [1]
    shares = keep.shares_make(threshold=2, shares=3).shares
    assert made.hear({"do": "status"}, ME)["shares"] == [] and "other shares were made" in said[-1]
    assert give(made, former[1])["code"] == "conflict"
    assert give(made, shares[0])["shares"] == [1], "its number is that of a share of the former set"
    assert give(made, shares[2])["sealed"] is False
    keep.unsealing_drop("shares")
    assert made.hear({"do": "status"}, ME)["shares"] == []
