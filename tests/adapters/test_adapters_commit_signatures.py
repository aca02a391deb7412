"""Who signed a commit: with real ssh and PGP keys, and every way in which a signature is not good."""

import hashlib
import subprocess

import pytest
from repositories import PgpKey, Repository, SshKey

from modelkeep.adapters.commit_signatures import CommitSignatures
from modelkeep.adapters.git import object_name
from modelkeep.errors import Invalid, Missing, Unavailable


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("signatures")


@pytest.fixture(scope="module")
def ada(folder):
    return SshKey.new(folder / "ada", "ada@acme.eu")


@pytest.fixture(scope="module")
def pgp(folder):
    made = PgpKey.new(folder / "gpg", "Ada <ada@acme.eu>")
    yield made
    made.close()


@pytest.fixture(scope="module")
def keys(ada, pgp, folder):
    """Both kinds of keys, the public halves, as a keep is given them."""
    return CommitSignatures(ada.signers, pgp.public_home(folder / "public"))


@pytest.fixture(scope="module")
def by_ssh(ada, folder):
    repository = Repository.new(folder / "ssh")
    return ada.sign(repository), repository.raw()


@pytest.fixture(scope="module")
def by_pgp(pgp, folder):
    repository = Repository.new(folder / "pgp")
    return pgp.sign(repository), repository.raw()


def forged(raw, old=b"\n\nwork", new=b"\n\nother"):
    """The same commit and signature over other words, under its own right name."""
    made = raw.replace(old, new)
    assert made != raw
    return object_name("commit", made, "sha1"), made


def test_good_signatures(keys, by_ssh, by_pgp):
    assert keys.check(*by_ssh) == ("good", "ada@acme.eu")
    assert keys.check(*by_pgp) == ("good", "Ada <ada@acme.eu>")


def test_good_in_a_repository_of_sha256(keys, ada, tmp_path):
    repository = Repository.new(tmp_path, algorithm="sha256")
    assert keys.check(ada.sign(repository), repository.raw()) == ("good", "ada@acme.eu")


def test_none(keys, tmp_path):
    repository = Repository.new(tmp_path)
    assert keys.check(repository("rev-parse", "HEAD"), repository.raw()) == ("none", "")


def test_a_signature_in_the_message_is_none(keys, tmp_path, by_ssh):
    lines = by_ssh[1].partition(b"gpgsig ")[2].partition(b"-----END")[0]
    repository = Repository.new(tmp_path)
    repository("commit", "-q", "--allow-empty", "-F", "-", given=b"work\n\ngpgsig " + lines)
    assert keys.check(repository("rev-parse", "HEAD"), repository.raw()) == ("none", "")


def test_over_other_words_is_bad(keys, by_ssh, by_pgp):
    assert keys.check(*forged(by_ssh[1])) == ("bad", "")
    assert keys.check(*forged(by_pgp[1])) == ("bad", "")


def test_two_signatures_are_bad(keys, by_ssh, by_pgp):
    """Which of them would count is nobody's business to choose."""
    one = by_pgp[1].partition(b"gpgsig ")[2].partition(b"\n\n")[0]
    double = by_ssh[1].replace(b"\n\n", b"\ngpgsig " + one + b"\n\n", 1)
    assert keys.check(object_name("commit", double, "sha1"), double) == ("bad", "")


def test_by_nobody_known_is_unknown(ada, pgp, by_ssh, by_pgp, tmp_path):
    eve = PgpKey.new(tmp_path / "g", "Eve")
    eve.close()
    other = CommitSignatures(SshKey.new(tmp_path / "eve", "eve@acme.eu").signers, eve.home)
    assert other.check(*by_ssh) == ("unknown", "")
    assert other.check(*by_pgp) == ("unknown", "")
    assert CommitSignatures().check(*by_ssh) == ("unknown", "")
    assert CommitSignatures(ada.signers).check(*by_pgp) == ("unknown", "")
    assert CommitSignatures(None, pgp.home).check(*by_ssh) == ("unknown", "")


def test_an_ssh_key_of_another_purpose_is_not_good(ada, by_ssh, tmp_path):
    signers = tmp_path / "signers"
    signers.write_text(ada.signers.read_text().replace('"git"', '"file"'))
    assert CommitSignatures(signers).check(*by_ssh)[0] in ("unknown", "bad")


def test_a_key_after_its_time_is_not_good(ada, by_ssh, tmp_path):
    signers = tmp_path / "signers"
    signers.write_text(ada.signers.read_text().replace('"git"', '"git",valid-before="20250101"'))
    assert CommitSignatures(signers).check(*by_ssh)[0] in ("unknown", "bad")


def test_a_revoked_pgp_key_is_bad(pgp, by_pgp, tmp_path):
    home = PgpKey(pgp.public_home(tmp_path / "home"), pgp.name)
    (revocation,) = (pgp.home / "openpgp-revocs.d").iterdir()
    home.gpg("--import", given=revocation.read_bytes().replace(b":-----BEGIN", b"-----BEGIN"))
    assert CommitSignatures(None, home.home).check(*by_pgp) == ("bad", "")


def test_another_object_than_the_name_says(keys, by_ssh):
    with pytest.raises(Invalid, match="another object"):
        keys.check(by_ssh[0], by_ssh[1] + b"x")
    with pytest.raises(Invalid, match="another object"):
        keys.check("0" * 40, b"")
    huge = b"tree " + b"0" * 300_000
    with pytest.raises(Invalid, match="another object"):
        keys.check(hashlib.sha1(b"commit %d\0" % len(huge) + huge).hexdigest(), huge)


def test_what_git_takes_for_no_commit(keys, by_ssh):
    with pytest.raises(Invalid, match="malformed"):
        keys.check(*forged(by_ssh[1], b"tree ", b"tri "))


def test_keys_that_are_not_there(by_ssh, tmp_path, monkeypatch):
    with pytest.raises(Missing, match=r"\[provenance\]"):
        CommitSignatures(tmp_path / "none").check(*by_ssh)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="ssh-keygen is not installed"):
        CommitSignatures(tmp_path / "none").check(*by_ssh)


def test_the_commits_own_repository_is_never_asked(keys, ada, tmp_path):
    """Its configuration would call any signature good."""
    repository = Repository.new(tmp_path / "code")
    eve = SshKey.new(tmp_path / "eve", "ada@acme.eu")
    commit = eve.sign(repository)
    repository("config", "gpg.ssh.allowedSignersFile", str(eve.signers))
    shown = subprocess.run(
        ["git", "log", "-1", "--format=%G?"], cwd=repository.folder, capture_output=True, text=True, check=True
    )
    assert shown.stdout == "G\n"
    assert keys.check(commit, repository.raw()) == ("unknown", "")
