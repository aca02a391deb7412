"""A command in its sandbox: attacks from within by a real process, limits, what becomes of it when its parent dies."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import pty
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from isolating import engine, where_possible

from modelkeep.adapters import isolate, sandbox, seccomp
from modelkeep.adapters.isolate import Engine
from modelkeep.adapters.limits import UNLIMITED, WATCHED, Limits
from modelkeep.adapters.sandbox import READ, WRITE, Mount, Sandbox, Stream
from modelkeep.errors import NotTrusted, Unavailable

PYTHON = Path(sys.executable).resolve()
ATTACKS = Path(__file__).with_name("sandbox_attacks.py")


def room(folder, *mounts, **more):
    """A sandbox with a folder to write to at /written."""
    (folder / "written").mkdir(exist_ok=True)
    prefix = Mount(READ, str(PYTHON.parent.parent), str(PYTHON.parent.parent))
    more.setdefault("limits", UNLIMITED)
    return Sandbox(
        mounts=(Mount(WRITE, str(folder / "written"), "/written"), prefix, *mounts),
        folder="/written",
        written=folder / "written",
        environment=sandbox.environment(),
        **more,
    )


def run(folder, *command, **more):
    """How the command ended, and what it printed."""
    out = folder / "out"
    with out.open("wb") as said:
        finished = isolate.run(engine(), command, room(folder, **more), out=said.fileno(), err=said.fileno())
    assert finished.limited_by in (WATCHED, "cgroup")
    return finished.ended, out.read_text()


def python(folder, code, **more):
    return run(folder, str(PYTHON), "-I", "-S", "-c", code, **more)


# -- what it cannot reach --

SECRETS = ("/etc/shadow", "/etc/sudoers", "/proc/kcore", "/proc/kmsg", "/seen/keep/secret")
UNSEEN = (str(Path.home() / ".ssh"), "/var", "/run", "/boot", "/sys/fs", "/sys/kernel", str(ATTACKS.parent))
FIXED = (
    "/usr/x", "/etc/x", "/x", "/dev/x", "/sys/x", "/seen/x", "/data.csv", "/etc/passwd", "/etc/ld.so.cache", "/attacks.py",
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger",
)  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a process in a sandbox found, all ways tried once."""
    if engine() is None:
        return None
    folder = tmp_path_factory.mktemp("attacked")
    secret, data, seen = folder / "keep", folder / "data.csv", folder / "seen"
    for path in (secret, seen / "keep"):
        path.mkdir(parents=True)
        (path / "secret").write_text("x")
    data.write_text("a,b\n")
    with contextlib.ExitStack() as after:
        where = listeners(folder, after)
        leaked = after.enter_context((secret / "secret").open("rb"))
        os.set_inheritable(leaked.fileno(), True)
        outside = {
            **where,
            "secrets": [*SECRETS, str(secret / "secret")],
            "unseen": [*UNSEEN, str(secret)],
            "fixed": FIXED,
            "refused": seccomp.REFUSED,
            "data": "/data.csv",
            "pid": os.getpid(),
        }
        given = {"/data.csv": data, "/seen": seen, "/attacks.py": ATTACKS}
        mounts = [Mount(READ, str(path), target) for target, path in given.items()]
        os.environ["MODELKEEP_TEST_TOKEN"] = "secret"
        after.callback(os.environ.pop, "MODELKEEP_TEST_TOKEN")
        sandboxed = room(folder, *mounts, hidden=(seen / "keep",))
        said = isolate.ask(engine(), (str(PYTHON), "-I", "-S", "/attacks.py", json.dumps(outside)), sandboxed)
    return json.loads(said)


def listeners(folder, after):
    """Sockets of this machine that somebody listens at."""
    families = (socket.AF_INET, socket.AF_UNIX, socket.AF_UNIX)
    inet, abstract, named = (after.enter_context(socket.socket(family)) for family in families)
    inet.bind(("127.0.0.1", 0))
    abstract.bind(f"\0modelkeep-{os.getpid()}")
    named.bind(str(folder / "agent"))
    for one in (inet, abstract, named):
        one.listen()
    return {"inet": inet.getsockname(), "abstract": f"modelkeep-{os.getpid()}", "socket": str(folder / "agent")}


@where_possible
def test_it_is_nobody_and_can_become_nobody_else(found):
    none = dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), "0" * 16)
    assert found["identity"][:3] == [sandbox.USER, sandbox.USER, "run"]
    assert found["status"] == {**none, "NoNewPrivs": "1", "Seccomp": "2"}
    assert found["root"] == "EINVAL"  # there is no such user


@where_possible
def test_it_reads_nothing_that_it_was_not_given(found):
    refusals = {"ENOENT", "EACCES", "EPERM"}
    assert set(found["read"].values()) <= refusals, found["read"]
    assert set(found["root of the first"].values()) <= refusals, found["root of the first"]
    assert not any(found["seen"].values()), found["seen"]
    assert found["lock"] == "done"  # that file it was given


@where_possible
def test_it_writes_to_nothing_of_the_machine(found):
    """As root outside, too: a file of /proc that steers the machine belongs to that user, whoever he is inside."""
    assert set(found["write"].values()) <= {"EROFS", "EACCES", "EPERM", "ENOENT"}, found["write"]


@where_possible
def test_it_reaches_no_socket_outside_and_has_its_own_loopback(found):
    assert found["sockets"].pop("inet") == "ECONNREFUSED"
    assert found["sockets"].pop("abstract") == "ECONNREFUSED"
    assert found["sockets"].pop("path") in ("ENOENT", "EACCES")
    assert found["sockets"].pop("raw") == "EPERM"
    assert set(found["sockets"].values()) == {"EAFNOSUPPORT"}, found["sockets"]
    assert found["loopback"] == "done"


@where_possible
def test_it_is_refused_what_its_filter_refuses(found):
    assert set(found["refused"].values()) == {"EPERM"}, found["refused"]
    assert len(found["refused"]) > 50
    assert set(found["unshare"]) == set(found["clone"]) == set(found["typing"]) == {"EPERM"}
    assert (found["clone3"], found["setns"]) == ("ENOSYS", "EPERM")
    assert (found["i386"], found["x32"]) == ("signal 31", "signal 31")


@where_possible
def test_it_has_no_process_terminal_descriptor_or_variable_of_ours(found):
    assert len(found["processes"]) <= 3
    assert found["identity"][3] == 1
    assert found["signal"] == "ESRCH"
    assert (found["terminal"], found["stdin"]) == ("ENXIO", "/dev/null")
    assert found["descriptors"] == ["0", "1", "2", "3"]  # the last one lists them
    for names in (found["environment"], found["environment of the first"]):
        assert "MODELKEEP_TEST_TOKEN" not in names
        assert "HOME" in names


def test_the_filter_of_every_machine_is_a_program_that_ends_in_a_verdict():
    for machine in ("x86_64", "aarch64"):
        plain = seccomp.program(machine, network=False, pinned=False, counted=False)
        assert len(plain) % 8 == 0
        assert plain[-8:] == b"\x06\0\0\0\0\0\xff\x7f"
        assert len(seccomp.program(machine, network=True, pinned=True, counted=True)) == len(plain) + 11 * 8
    with pytest.raises(Unavailable, match="riscv64"):
        seccomp.program("riscv64", network=False, pinned=False, counted=False)


# -- what it is given --


@where_possible
def test_a_sealed_file_is_read_and_is_on_no_disk(tmp_path):
    sealed = Stream("/data/loans@3/rows.csv", lambda: [b"x" * 300_000, b"end"])
    code = "import sys; d = open('/data/loans@3/rows.csv').read(); print(len(d), d[-3:])"
    code += "; print([line.split()[2] for line in open('/proc/mounts') if 'rows.csv' in line])"
    ended, said = python(tmp_path, code, streams=(sealed,))
    assert (ended.code, said) == (0, "300003 end\n['tmpfs']\n")
    assert not any((tmp_path / "written").iterdir())


@where_possible
def test_nothing_runs_on_half_of_a_sealed_file(tmp_path):
    def broken():
        yield b"half"
        raise NotTrusted("the rest does not verify")

    with pytest.raises(NotTrusted, match="the rest does not verify"):
        python(tmp_path, "open('/written/ran', 'w')", streams=(Stream("/data/x", broken),))
    assert not any((tmp_path / "written").iterdir())


@where_possible
def test_with_the_network_it_has_that_of_the_machine(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]})); print('connected')"
        assert python(tmp_path, code, network=True)[1] == "connected\n"
        netlink = """
import socket
for protocol in (0, 9):  # NETLINK_ROUTE, NETLINK_AUDIT
    try:
        socket.socket(16, 3, protocol)
        print("made")
    except OSError as cause:
        print(cause.errno)
"""
        assert python(tmp_path, netlink, network=True)[1] == "made\n97\n"


@where_possible
def test_how_it_ends_is_told(tmp_path):
    ended, said = run(tmp_path, "/bin/sh", "-c", "echo out; echo err >&2; exit 7")
    assert (ended, sorted(said.split())) == ((7, "the command ended with 7"), ["err", "out"])
    assert run(tmp_path, "/bin/sh", "-c", "kill -9 $$")[0].code == 137
    with pytest.raises(Unavailable, match="was not run: execvp /nothing: No such file"):
        run(tmp_path, "/nothing")


@where_possible
def test_a_terminal_of_ours_is_not_its_own(tmp_path):
    """Started from a shell, that is: with a terminal that controls us, and that it would otherwise share."""
    code = "import os\ntry: os.open('/dev/tty', os.O_RDWR)\nexcept OSError as e: print('refused', e.errno)\nprint(os.isatty(1))"
    child, terminal = pty.fork()
    if not child:
        os._exit(0 if python(tmp_path, code) == ((0, "the command ended with 0"), f"refused {errno.ENXIO}\nFalse\n") else 1)
    with contextlib.suppress(OSError):
        while os.read(terminal, 1000):  # until the other end is closed
            pass
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# -- limits --


@where_possible
def test_one_process_gets_no_more_memory_than_there_is_for_all(tmp_path):
    ended, said = python(tmp_path, "x = bytearray(400 << 20)", limits=Limits(memory=200 << 20))
    assert (ended.code, said.splitlines()[-1]) == (1, "MemoryError") or "bytes of memory" in ended.why


@where_possible
@pytest.mark.parametrize(
    "code",
    [
        "import os, time\nfor _ in range(3): os.fork() or (bytearray(b'x') * (120 << 20), time.sleep(60))\ntime.sleep(60)",
        "import mmap, time; m = mmap.mmap(-1, 300 << 20); [m.write(b'x' * (150 << 20)) for _ in range(2)]; time.sleep(60)",
        "import time\nfor n in '/tmp/a', '/dev/shm/b', '/dev/shm/c': open(n, 'wb').write(b'x' * (90 << 20))\ntime.sleep(60)",
    ],
    ids=["together", "shared", "files in memory"],
)
def test_all_processes_together_get_no_more_memory(tmp_path, code):
    ended, _ = python(tmp_path, code, limits=Limits(memory=200 << 20))
    assert (ended.code, ended.why) == (137, f"the command was stopped: it used more than {200 << 20:,} bytes of memory")


@where_possible
def test_where_memory_is_limited_none_is_had_that_no_process_holds(tmp_path):
    """Files in memory and System V segments: written and let go of, they are in no process that could be looked at."""
    code = """
import ctypes, os, platform
numbers = {"x86_64": (319, 447, 29), "aarch64": (279, 447, 194)}[platform.machine()]
libc = ctypes.CDLL(None, use_errno=True)
print([(libc.syscall(number, 0, 4096, 0o1600), ctypes.get_errno())[1] for number in numbers])
"""
    assert python(tmp_path, code, limits=Limits(memory=1 << 30))[1] == "[1, 1, 1]\n"


@where_possible
def test_a_fork_bomb_comes_to_an_end(tmp_path):
    """By the kernel, which refuses more, or, where it lets root have more, by being stopped."""
    bomb = """
import os, time
made = 0
while made < 400:
    try:
        made += bool(os.fork()) or time.sleep(60)
    except OSError:
        print(made, flush=True)
        os._exit(3)
time.sleep(60)
"""
    ended, said = python(tmp_path, bomb, limits=Limits(processes=40))
    stopped = ended.why == "the command was stopped: it had more than 40 processes"
    assert stopped or (ended.code == 3 and int(said) < 40)


@where_possible
def test_time_processors_and_what_is_written_are_limited(tmp_path):
    assert python(tmp_path, "import time; time.sleep(60)", limits=Limits(seconds=0.3))[0].why.endswith("longer than 0.3 s")
    code = """
import os
print(len(os.sched_getaffinity(0)))
try:
    os.sched_setaffinity(0, range(64))
except OSError as cause:
    print(cause.errno)
"""
    assert python(tmp_path, code, limits=Limits(cpus=1))[1] == "1\n1\n"
    large = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); open('/written/a', 'wb').write(b'x' * (2 << 20))"
    assert "OSError: [Errno 27]" in python(tmp_path, large, limits=Limits(disk=1 << 20))[1]
    many = "import time\nfor n in range(9): open(f'/written/b{n}', 'wb').write(b'x' * (1 << 19))\ntime.sleep(60)"
    assert "it wrote more than" in python(tmp_path, many, limits=Limits(disk=1 << 20))[0].why


@where_possible
def test_a_file_that_was_removed_and_is_open_is_written_to_the_disk_as_well(tmp_path):
    code = """
import os, time
for n in range(4):
    kept = os.open(f"{n}", os.O_CREAT | os.O_WRONLY)
    os.unlink(f"{n}")
    os.write(kept, b"x" * (1 << 19))
time.sleep(60)
"""
    assert "it wrote more than" in python(tmp_path, code, limits=Limits(disk=1 << 20))[0].why


@where_possible
def test_a_folder_that_cannot_be_looked_into_counts_as_too_much(tmp_path):
    """As root nothing is unreadable: then what is in it is counted."""
    code = """
import os, time
os.mkdir("h")
for n in range(4):
    open(f"h/{n}", "wb").write(b"x" * (1 << 19))
os.chmod("h", 0)
time.sleep(60)
"""
    assert "it wrote more than" in python(tmp_path, code, limits=Limits(disk=1 << 20))[0].why
    (tmp_path / "written" / "h").chmod(0o700)


# -- its end --

HOLD = "import fcntl, os, time; f = open('lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX); open('ready', 'w').close(); "


@where_possible
def test_nothing_that_it_started_is_left_when_it_ends(tmp_path):
    code = f"""
import os, time
if os.fork():
    while not os.path.exists("/written/ready"):
        time.sleep(0.01)
    os._exit(0)
os.setsid()
{HOLD}time.sleep(600)
"""
    assert python(tmp_path, code)[0].code == 0
    with (tmp_path / "written" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises when somebody still holds it


@where_possible
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 5), (signal.SIGINT, 5)])
def test_it_dies_with_its_parent_and_hears_what_the_parent_is_told(tmp_path, number, code):
    script = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have it ignored
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
from pathlib import Path
from test_adapters_isolate import python
handled = "import signal, os; [signal.signal(n, lambda *_: os._exit(5)) for n in (2, 15)]; "
sys.exit(python(Path({str(tmp_path)!r}), handled + {HOLD!r} + "time.sleep(600)")[0].code)
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd="/", start_new_session=True) as parent:
        ready = tmp_path / "written" / "ready"
        try:
            while not ready.exists():
                assert parent.poll() is None
            parent.send_signal(number)
            assert parent.wait(60) == code
        finally:
            parent.kill()
    with (tmp_path / "written" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # waits for the last of it to be gone


# -- refusals --


def a_bwrap(folder, says):
    folder.mkdir(exist_ok=True)
    path = folder / "bwrap"
    path.write_text(f"#!/bin/sh\n{says}\n")
    path.chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (None, "there is no 'bwrap' here: install bubblewrap"),
        ("echo bubblewrap 0.6.1", "isolation takes bubblewrap 0.8 or later"),
        ("echo nothing", "isolation takes bubblewrap 0.8 or later"),
        (
            "case $1 in --version) echo bubblewrap 0.11.0;; *) echo 'bwrap: No permissions to create new' >&2; exit 1;; esac",
            "No permissions to create new",
        ),
        ("case $1 in --version) echo bubblewrap 0.11.0;; *) exit 0;; esac", "does not say why"),
    ],
    ids=["none", "old", "unknown", "no user namespaces", "one that does nothing"],
)
def test_where_a_command_cannot_be_isolated_that_is_said(tmp_path, monkeypatch, says, why):
    monkeypatch.setenv("PATH", a_bwrap(tmp_path / "bin", says) if says else str(tmp_path / "empty"))
    with pytest.raises(Unavailable, match=why):
        Engine.find().probe()


def test_it_is_not_tried_on_another_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(Unavailable, match="no seccomp filter is known for riscv64"):
        room(tmp_path).filter()
