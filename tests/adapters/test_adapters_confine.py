"""Programs of others, confined: what hostile ones try, on the real kernel, and that nothing of them is left."""

import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from modelkeep.adapters import confine
from modelkeep.adapters.confine import DEFAULT_LIMITS, MAX_OUTPUT, Limits, inside, run_confined
from modelkeep.errors import Unavailable

SECRET = b"plaintext of a model " * 100
SMALL = Limits(memory=256 << 20, seconds=20.0)


def ran(code, limits=SMALL, data=SECRET):
    return run_confined([sys.executable, "-I", "-c", code], memoryview(data), "model.pkl", limits)


def said(code, limits=SMALL):
    done = ran(code, limits)
    assert (done.code, done.problem) == (0, ""), done
    return done.output.decode()


def test_it_reads_the_bytes_and_nothing_else_is_there():
    code = f"import os; print(open('/run/model.pkl', 'rb').read() == {SECRET!r}, os.getcwd(), os.listdir('.'))"
    assert said(code) == "True /run ['model.pkl']\n"
    assert inside("model.pkl") == "/run/model.pkl"


@pytest.mark.parametrize("size", [0, 1, 5 << 20])
def test_all_sizes(size):
    done = ran("import os; print(os.path.getsize('/run/model.pkl'))", data=bytes(size))
    assert (done.code, done.output) == (0, b"%d\n" % size)


def test_the_environment_is_a_constant(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    names = said("import os; print(sorted(os.environ))")
    assert "AWS" not in names and "HOME" in names
    assert said("import os; print(os.environ['HOME'], os.environ['TMPDIR'])") == "/run /run\n"


def test_no_disk_can_be_written(tmp_path):
    places = [str(tmp_path), "/tmp", "/var/tmp", "/dev/shm", "/dev", "/proc", "/root", "/", str(Path.cwd())]
    code = f"""
import os
for place in {places!r}:
    try:
        open(os.path.join(place, "leak"), "w").write("x")
        print("wrote", place)
    except OSError:
        pass
try:
    os.truncate({str(tmp_path / "mine")!r}, 0)
    print("truncated")
except OSError:
    pass
open("/run/scratch", "w").write("memory is there")
"""
    (tmp_path / "mine").write_text("mine")
    assert said(code) == ""
    assert (tmp_path / "mine").read_text() == "mine" and not Path("/run/scratch").exists()


def test_no_network_and_no_socket_that_is_a_file(tmp_path):
    with socket.socket(socket.AF_UNIX) as local, socket.socket() as tcp:
        local.bind(str(tmp_path / "socket"))
        local.listen()
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        code = f"""
import socket
for family, address in ((socket.AF_INET, {tcp.getsockname()!r}), (socket.AF_UNIX, {str(tmp_path / "socket")!r})):
    try:
        with socket.socket(family) as link:
            link.connect(address)
            print("connected", address)
    except OSError as refusal:
        print(refusal.errno)
"""
        assert said(code) == "13\n13\n"


def test_no_keyring_and_no_lock_of_the_host(tmp_path):
    """The session keyring is inherited, and stays; a file that can only be read can be locked, such as one of a keep."""
    (tmp_path / "lock").write_text("")
    calls = confine._MACHINES[platform.machine()][1][3:]
    code = f"""
import ctypes, fcntl
libc = ctypes.CDLL(None, use_errno=True)
for number in {calls!r}:
    ctypes.set_errno(0)
    print(libc.syscall(number, b"user", b"leak", b"x", 1, -3), ctypes.get_errno())
try:
    fcntl.flock(open({str(tmp_path / "lock")!r}), fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("locked")
except OSError as refusal:
    print(refusal.errno)
"""
    assert said(code) == "-1 13\n" * len(calls) + "13\n"


def test_no_interface_is_up():
    """Below the refusal of sockets: the network namespace has nothing but a loopback that is down."""
    code = (
        "print([line.split(':')[0].strip() for line in open('/proc/net/dev').readlines()[2:]], open('/proc/net/route').read())"
    )
    assert said(code).strip() == "['lo']"


def test_no_privilege_is_left_and_none_can_be_had():
    code = """
import ctypes, os
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print(os.getuid(), *(int(status[name], 16) for name in ("CapEff", "CapPrm", "NoNewPrivs", "Seccomp")))
libc = ctypes.CDLL(None, use_errno=True)
libc.unshare(0x10020000)
for place in (b"/", b"/run", b"/proc"):
    print(libc.mount(b"none", place, None, ctypes.c_ulong(32 | 4096), None), libc.umount2(place, 2))
"""
    assert said(code) == "65534 0 0 1 2\n" + "-1 -1\n" * 3


def test_it_sees_no_process_of_the_host_and_can_kill_none():
    code = """
import os
print(sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()))
try:
    os.kill(-1, 9)
except OSError as refusal:
    print(type(refusal).__name__)
"""
    assert said(code).splitlines()[0] == "[1, 2]"


def test_memory_and_files_in_memory_have_an_end():
    assert "MemoryError" in ran("bytearray(1 << 30)").errors
    code = """
try:
    with open("/run/big", "wb") as big:
        while True:
            big.write(bytes(1 << 24))
except OSError as refusal:
    print(refusal.errno)
"""
    assert ran(code).output.strip() in {b"27", b"28"} or ran(code).code == 128 + 25  # EFBIG, ENOSPC, or SIGXFSZ


def test_one_that_never_ends_is_ended():
    done = ran("import time\nwhile True: time.sleep(1000)", Limits(256 << 20, 0.4))
    assert done.problem == "it did not end within 0.4 seconds"


def test_what_it_started_ends_with_it():
    """A grandchild in a session of its own holds our pipe open: were it alive, there would be no end of output."""
    code = """
import os, time
if os.fork() == 0:
    os.setsid()
    os.fork()
    time.sleep(1000)
print("done")
"""
    assert said(code) == "done\n"


def test_it_ends_with_whoever_started_it():
    """After kill -9 nobody is left to stop it."""
    mark = f"mark-{os.getpid()}"
    code = f"""
import sys
from modelkeep.adapters.confine import *
run_confined([sys.executable, "-I", "-c", "import time; time.sleep(1000)", {mark!r}], memoryview(b"x"), "model.pkl", Limits())
"""
    with subprocess.Popen([sys.executable, "-c", code]) as starter:
        while len(those_with(mark)) < 4:  # the starter, what it started, the namespace's first process, and the program
            assert starter.poll() is None
        starter.kill()
    while those_with(mark):
        pass


def those_with(mark):
    """Processes in whose command line ``mark`` stands."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(path)
        except OSError:
            continue
    return found


def test_one_that_talks_without_end_is_stopped():
    done = ran("import os\nwhile True: os.write(1, bytes(65536))")
    assert len(done.output) == MAX_OUTPUT + 1
    assert done.problem == "it said more than 16 MiB"


def test_complaints_without_end_do_no_harm():
    done = ran("import os\nfor _ in range(200): os.write(2, b'x' * 65536)\nos.write(2, b'the end')")
    assert done.code == 0 and done.errors.endswith("the end") and len(done.errors) <= 2000


@pytest.mark.parametrize(("code", "status"), [("import os; os.abort()", 134), ("raise SystemExit(7)", 7), ("1 / 0", 1)])
def test_how_it_ended(code, status):
    assert ran(code).code == status


def test_no_core_is_left():
    assert said("import resource; print(resource.getrlimit(resource.RLIMIT_CORE))") == "(0, 0)\n"


def test_nothing_is_run_where_the_kernel_refuses():
    """A process that may make no namespaces, as in a container with the usual profile: here by a limit of its own."""
    code = f"""
import ctypes, sys
from modelkeep.adapters.confine import *
from modelkeep.errors import Unavailable
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x10000000) == 0  # a user namespace in which no other may be made
open("/proc/sys/user/max_user_namespaces", "w").write("0")
try:
    run_confined([sys.executable, "-c", "print(1)"], memoryview(b"x"), "model.pkl", {SMALL!r})
except Unavailable as refusal:
    print(refusal)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stdout.startswith("the kernel does not let another program be confined: unshare: "), done.stderr


def test_where_parts_of_proc_are_masked_it_sees_none_of_it():
    """As in most containers: there the kernel lets nobody mount a fresh one, and the host's is not shown instead."""
    code = f"""
import ctypes, os, sys
from modelkeep.adapters.confine import *
libc, user, group = ctypes.CDLL(None, use_errno=True), os.geteuid(), os.getegid()
assert libc.unshare(0x10020000) == 0
open("/proc/self/setgroups", "w").write("deny")
open("/proc/self/uid_map", "w").write(f"0 {{user}} 1")
open("/proc/self/gid_map", "w").write(f"0 {{group}} 1")
assert libc.mount(b"none", b"/", None, ctypes.c_ulong(16384 | 1 << 18), None) == 0
assert libc.mount(b"none", b"/proc/fs", b"tmpfs", ctypes.c_ulong(1), None) == 0
code = "import os; print(open('/run/model.pkl').read(), os.listdir('/proc'))"
print(run_confined([sys.executable, "-I", "-c", code], memoryview(b"it"), "model.pkl", {SMALL!r}).output)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stdout == "b'it []\\n'\n", done.stderr


def test_a_machine_whose_system_calls_are_not_known_runs_nothing(monkeypatch):
    """The program that locks itself in is this file: a copy of it that knows no machine refuses."""
    text = Path(confine.__file__).read_text("utf-8").replace('"x86_64"', '"none"').replace('"aarch64"', '"neither"')
    copy = os.memfd_create("copy")
    os.write(copy, text.encode())
    os.set_inheritable(copy, True)
    monkeypatch.setattr(confine, "__file__", f"/proc/{os.getpid()}/fd/{copy}")
    with pytest.raises(Unavailable, match="seccomp: system calls of"):
        ran("print(1)")
    os.close(copy)


def test_a_program_that_is_not_there():
    with pytest.raises(Unavailable, match="nowhere"):
        run_confined(["/nowhere/python"], memoryview(b"x"), "model.pkl", DEFAULT_LIMITS)
