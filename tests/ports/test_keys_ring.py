"""What only a ring file can do wrong: its mode, its place, its passphrase, other processes, a full disk, kill -9."""

import fcntl
import os
import resource
import signal
import stat
import subprocess
import sys

import pytest
from key_providers import Clock

from modelkeep.adapters.keys.ring import PURPOSE, RingFile
from modelkeep.adapters.keys.uri import open_keys
from modelkeep.container import Passphrase, pack_bytes, unpack_bytes
from modelkeep.crypto.kdf import Argon2Params
from modelkeep.crypto.wrap import unwrap_key
from modelkeep.errors import Conflict, Denied, Invalid, Missing, NotTrusted, Unavailable

WORD, CHEAP = b"a ring's passphrase", Argon2Params(64, 1, 1)
KEY, CONTEXT = bytes(range(32)), b"context"


def ring(path, word=WORD, timeout=5.0):
    return RingFile(f"file:{path}", lambda: word, timeout=timeout, clock=Clock(), params=CHEAP)


@pytest.fixture
def path(tmp_path):
    ring(tmp_path / "ring.keep").create()
    return tmp_path / "ring.keep"


def test_it_is_a_keep_file_that_opens_without_this_class(path):
    wrapped = ring(path).wrapper().wrap(KEY, CONTEXT)
    plain = unpack_bytes(path.read_bytes(), [Passphrase(WORD)], purpose="keys/ring")
    import base64
    import json

    (version,) = json.loads(plain)["versions"]
    assert unwrap_key(base64.b64decode(version["key"]), wrapped, CONTEXT) == KEY


def test_open_keys_stretches_the_passphrase_as_rfc_9106_recommends(tmp_path):
    open_keys(f"file:{tmp_path}/r.keep", passphrase=lambda: WORD).create()
    from modelkeep.container import BytesReader, PassphraseStanza, parse_recipients, split_file

    block = split_file(BytesReader((tmp_path / "r.keep").read_bytes())).block
    (stanza,) = parse_recipients(block).stanzas
    assert isinstance(stanza, PassphraseStanza)
    assert stanza.params == Argon2Params()


def test_the_file_is_its_owners_alone_and_nothing_lies_beside_it_but_the_lock(path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    ring(path).rotate()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(each.name for each in path.parent.iterdir()) == [".ring.keep.lock", "ring.keep"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_file_open_to_others_is_not_trusted(path, mode):
    path.chmod(mode)
    with pytest.raises(NotTrusted, match="0600"):
        ring(path).wrapper()


def test_a_link_is_not_followed(path, tmp_path):
    (tmp_path / "link.keep").symlink_to(path)
    with pytest.raises(Unavailable):
        ring(tmp_path / "link.keep").wrapper()
    with pytest.raises(Conflict):
        ring(tmp_path / "link.keep").create()


def test_a_wrong_passphrase_an_empty_one_and_none(path):
    with pytest.raises(NotTrusted, match="wrong key or passphrase"):
        ring(path, b"guess").wrapper()
    with pytest.raises(Invalid, match="empty"):
        ring(path, b"").wrapper()
    with pytest.raises(Invalid, match="passphrase"):
        open_keys(f"file:{path}")


def test_the_passphrase_is_asked_for_once_and_not_before_it_is_needed(path):
    asked = []

    def ask():
        asked.append(1)
        return WORD

    keys = RingFile(f"file:{path}", ask, timeout=5.0, clock=Clock(), params=CHEAP)
    assert asked == []
    keys.rotate()
    keys.disable(1)
    keys.wrapper().unwrap(keys.wrapper().wrap(KEY, CONTEXT), CONTEXT)
    assert asked == [1]


def test_a_file_sealed_for_another_purpose_is_not_a_ring(path):
    plain = unpack_bytes(path.read_bytes(), [Passphrase(WORD)], purpose=PURPOSE)
    path.write_bytes(pack_bytes(plain, [Passphrase(WORD, CHEAP)], purpose="keys/model-kek"))
    with pytest.raises(NotTrusted, match="is for 'keys/model-kek'"):
        ring(path).wrapper()


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        b"{}",
        b"[]",
        b'{"name":"ring-1","versions":[]}',
        b'{"name":"ring-1","versions":[{"version":2,"state":"primary","created":1,"key":""}]}',
        b'{"name":"ring-1","versions":[{"version":1,"state":"nice","created":1,"key":""}]}',
        b'{"name":"ring-1","versions":[],"format":2}',
        b'{"name":"ring-1","versions":[{"version":1,"state":"primary","created":1,"key":"!"}]}',
    ],
)
def test_content_that_no_ring_has_is_not_trusted(path, plain):
    path.write_bytes(pack_bytes(plain, [Passphrase(WORD, CHEAP)], purpose=PURPOSE))
    with pytest.raises(NotTrusted):
        ring(path).wrapper()


def test_every_altered_byte_of_the_file_is_noticed(path):
    sealed = path.read_bytes()
    for at in range(0, len(sealed), 37):
        path.write_bytes(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])
        with pytest.raises(NotTrusted):
            ring(path).wrapper()
    for cut in (0, 1, len(sealed) // 2, len(sealed) - 1):
        path.write_bytes(sealed[:cut])
        with pytest.raises(NotTrusted):
            ring(path).wrapper()


def test_a_moved_ring_still_opens_what_it_wrapped(path, tmp_path):
    wrapper = ring(path).wrapper()
    wrapped = wrapper.wrap(KEY, CONTEXT)
    path.rename(tmp_path / "moved.keep")
    found = ring(tmp_path / "moved.keep").opens(wrapper.key_id)
    assert found.unwrap(wrapped, CONTEXT) == KEY


def test_another_ring_in_its_place_is_not_taken_for_it(path, tmp_path):
    keys = ring(path)
    wrapper = keys.wrapper()
    ring(tmp_path / "other.keep").create()
    (tmp_path / "other.keep").rename(path)
    with pytest.raises(Unavailable, match="another"):
        wrapper.wrap(KEY, CONTEXT)
    assert ring(path).opens(wrapper.key_id) is None


def test_another_process_that_holds_the_ring_is_waited_for_and_no_longer_than_allowed(path):
    with (path.parent / ".ring.keep.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match=r"for over 0\.1 s"):
            ring(path, timeout=0.1).rotate()
        assert ring(path).wrapper().key_id.endswith("/1")  # reading needs no lock
    assert ring(path).rotate().key_id.endswith("/2")


ROTATE = """
import sys
from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.keys.ring import RingFile
from modelkeep.crypto.kdf import Argon2Params
word, cheap = b"a ring's passphrase", Argon2Params(64, 1, 1)
keys = RingFile("file:" + sys.argv[1], lambda: word, timeout=30, clock=SystemClock(), params=cheap)
for _ in range(int(sys.argv[2])):
    print(keys.rotate().key_id, flush=True)
"""


def rotating(path, times):
    return subprocess.Popen([sys.executable, "-c", ROTATE, str(path), str(times)], stdout=subprocess.PIPE, text=True)


def test_processes_rotate_one_after_the_other(path):
    workers = [rotating(path, 3) for _ in range(2)]
    made = [line for worker in workers for line in worker.communicate()[0].split()]
    assert len(set(made)) == 6
    states = [info.state for info in ring(path).versions()]
    assert states.count("primary") == 1
    assert states[-1] == "primary"


def test_killed_at_any_moment_the_ring_is_whole(path):
    for turn in range(4):
        worker = rotating(path, 1_000_000)
        for _ in range(turn + 1):
            last = worker.stdout.readline().strip()
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
        latest = ring(path).wrapper()
        assert int(latest.key_id.rpartition("/")[2]) >= int(last.rpartition("/")[2])
        assert ring(path).opens(last) is not None
    ring(path).rotate()  # one that was killed between two names left the second
    assert sorted(each.name for each in path.parent.iterdir()) == [".ring.keep.lock", "ring.keep"]


def test_what_a_killed_writer_left_beside_the_ring_goes_with_the_next_change(path):
    """It holds keys, too: a version that is destroyed later would live on in it."""
    left, other = (path.with_name(f".{name}.0123456789ab.new") for name in ("ring.keep", "ring.keep.copy"))
    for each in (left, other):
        each.write_bytes(path.read_bytes())
    ring(path).rotate()
    assert not left.exists() and other.exists()


def test_a_full_disk_leaves_the_ring_as_it_was(path):
    before = path.read_bytes()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            ring(path).rotate()
        except Unavailable:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert path.read_bytes() == before


def test_a_destroyed_key_is_no_longer_in_the_file(path):
    keys = ring(path)
    keys.rotate()
    keys.disable(1)
    keys.destroy(1, grace_days=0)
    import json

    first, second = json.loads(unpack_bytes(path.read_bytes(), [Passphrase(WORD)], purpose=PURPOSE))["versions"]
    assert first["key"] == ""
    assert second["key"] != ""
    with pytest.raises(Denied):
        keys.wrapper(1).unwrap(bytes(112), CONTEXT)


def test_a_folder_that_is_not_there(tmp_path):
    for use in (ring(tmp_path / "no" / "r.keep").create, ring(tmp_path / "no" / "r.keep").versions):
        with pytest.raises(Missing):
            use()
