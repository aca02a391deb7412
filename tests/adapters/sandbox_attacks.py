"""Tries every way out of a sandbox that its author knows, and prints as JSON how each try ended. Standard library alone.

Run with one argument, JSON: where things are on the machine outside.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import pty
import socket
import sys
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
MACHINE = ["x86_64", "aarch64"].index(platform.machine())
UNSHARE, CLONE, CLONE3, IOCTL = (272, 97)[MACHINE], (56, 220)[MACHINE], 435, (16, 29)[MACHINE]
NEWNS, NEWCGROUP, NEWTIME, NEWUSER, NEWPID, NEWNET = 0x20000, 0x02000000, 0x80, 0x10000000, 0x20000000, 0x40000000
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
ODD_FAMILIES = (
    9,
    15,
    16,
    17,
    21,
    29,
    30,
    31,
    38,
    40,
    44,
)  # X.25, key, netlink, packet, RDS, CAN, TIPC, Bluetooth, ALG, vsock, XDP


def name(code):
    return errno.errorcode.get(code, str(code))


def tried(action, *arguments):
    """``done``, or the name of the error."""
    try:
        action(*arguments)
    except OSError as cause:
        return name(cause.errno)
    return "done"


def call(number, *arguments):
    ctypes.set_errno(0)
    given = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return "done" if LIBC.syscall(ctypes.c_long(number), *given) >= 0 else name(ctypes.get_errno())


def read(path):
    with Path(path).open("rb") as stream:
        return stream.read(100)


def write(path):
    with Path(path).open("ab") as stream:
        stream.write(b"x")


def connect(family, address):
    with socket.socket(family) as one:
        one.settimeout(2)
        one.connect(address)


def in_a_child(action):
    """How a child ends that does this: ``signal N`` or ``exit N``."""
    child = os.fork()
    if not child:
        action()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return f"signal {-code}" if code < 0 else f"exit {code}"


def call_as_i386():
    """getpid by ``int 0x80``, whose numbers are others than those that the filter knows."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()


def type_into_a_terminal():
    """To one of our own; also with bits set in the upper half of the number, at which the kernel does not look."""
    _, terminal = pty.openpty()
    return [
        call(IOCTL, terminal, asked, ctypes.byref(ctypes.c_char(b"x"))) for asked in (TIOCSTI, TIOCLINUX, 1 << 40 | TIOCSTI)
    ]


def sockets(outside):
    return {
        "inet": tried(connect, socket.AF_INET, tuple(outside["inet"])),
        "abstract": tried(connect, socket.AF_UNIX, "\0" + outside["abstract"]),
        "path": tried(connect, socket.AF_UNIX, outside["socket"]),
        "raw": tried(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1),
        **{str(family): tried(socket.socket, family, socket.SOCK_DGRAM) for family in ODD_FAMILIES},
    }


def calls(outside):
    known = {one: numbers[MACHINE] for one, numbers in outside["refused"].items() if numbers[MACHINE] >= 0}
    return {
        "refused": {one: call(number, 0, 0, 0, 0, 0, 0) for one, number in known.items()},
        "unshare": [call(UNSHARE, flag) for flag in (NEWUSER, NEWNS, NEWNET, NEWTIME)],
        "clone": [call(CLONE, flag | 17, 0, 0, 0, 0) for flag in (NEWUSER, NEWNS, NEWPID, NEWNET, NEWCGROUP)],
        "clone3": call(CLONE3, 0, 0),
        "setns": call((308, 268)[MACHINE], os.open("/proc/1/ns/mnt", os.O_RDONLY), 0),
        "typing": type_into_a_terminal(),
        "i386": in_a_child(call_as_i386) if MACHINE == 0 else "signal 31",
        "x32": in_a_child(lambda: call(0x40000000 | 39)) if MACHINE == 0 else "signal 31",
    }


def attacks(outside):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    shown = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
    of_the_first = [one.partition(b"=")[0].decode() for one in Path("/proc/1/environ").read_bytes().split(b"\0")]
    return {
        "identity": [os.getuid(), os.getgid(), os.uname().nodename, os.getppid()],
        "status": {key: status[key].strip() for key in shown},
        "processes": [path.name for path in Path("/proc").iterdir() if path.name.isdigit()],
        "root": tried(os.setuid, 0),
        "descriptors": sorted(path.name for path in Path("/proc/self/fd").iterdir()),
        "stdin": str(Path("/proc/self/fd/0").readlink()),
        "terminal": tried(os.open, "/dev/tty", os.O_RDWR),
        "environment": sorted(os.environ),
        "environment of the first": of_the_first,
        "read": {path: tried(read, path) for path in outside["secrets"]},
        "root of the first": {path: tried(read, f"/proc/1/root{path}") for path in outside["secrets"]},
        "seen": {path: os.path.lexists(path) for path in outside["unseen"]},
        "write": {path: tried(write, path) for path in outside["fixed"]},
        "signal": tried(os.kill, outside["pid"], 0),
        "lock": tried(lambda: fcntl.flock(os.open(outside["data"], os.O_RDONLY), fcntl.LOCK_SH)),
        "loopback": tried(lambda: socket.create_server(("127.0.0.1", 0))),
        "sockets": sockets(outside),
        **calls(outside),
    }


if __name__ == "__main__":
    print(json.dumps(attacks(json.loads(sys.argv[1]))))
