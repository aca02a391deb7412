"""A seccomp filter for a program that trains a model: what it may not ask the kernel for, as the bytes that bubblewrap loads.

A list of refusals, at least as long as the one of container engines for a container without capabilities: mounts and new
namespaces, other processes' memory, keyrings, BPF, performance counters, userfaultfd, io_uring, kernel modules, kexec, clocks,
NUMA placement; sockets of all families but those named; what types into a terminal (TIOCSTI). Whatever asks in the numbers of
another architecture (i386, x32) is killed. A program that is refused sees EPERM and goes on.

Sources: seccomp(2), Documentation/userspace-api/seccomp_filter.rst, moby/profiles/seccomp/default.json.
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

from modelkeep.errors import Unavailable

REFUSED: dict[str, tuple[int, int]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "create_module": (174, -1),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "get_kernel_syms": (177, -1),
    "get_mempolicy": (239, 236),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, -1),
    "iopl": (172, -1),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mbind": (237, 235),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, -1),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "query_module": (178, -1),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "_sysctl": (156, -1),
    "sysfs": (139, -1),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, -1),
    "userfaultfd": (323, 282),
    "ustat": (136, -1),
    "vhangup": (153, 58),
}
"""System calls that are refused whatever they are asked for, by number on x86_64 and aarch64; -1: that machine has none."""

_IOCTL, _SOCKET, _SOCKETPAIR, _CLONE, _CLONE3 = (16, 29), (41, 198), (53, 199), (56, 220), (435, 435)
_SCHED_SETAFFINITY = (203, 122)
_UNCOUNTED = ((319, 279), (447, 447), (29, 194))
"""memfd_create, memfd_secret and shmget: memory that no process has mapped, so that no look at processes counts it."""
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32 = 0x40000000
_TYPES_INTO_A_TERMINAL = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_NAMESPACES = 0x7E020000  # CLONE_NEWNS | CGROUP | UTS | IPC | USER | PID | NET
_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16
_LOAD, _EQUAL, _ANY_OF, _AT_LEAST, _GIVE = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data


class _Line(NamedTuple):
    """One instruction of classic BPF."""

    code: int
    yes: int
    no: int
    value: int


def program(machine: str, *, network: bool, pinned: bool, counted: bool) -> bytes:
    """The filter for ``machine`` (``x86_64``, ``aarch64``), as an array of ``struct sock_filter``.

    ``network``: also let it ask for addresses (route netlink), as the resolver does; ``pinned``: let it not choose its
    processors, which somebody has chosen; ``counted``: nor have memory that is counted for no process. Raises Unavailable for
    another machine.
    """
    if machine not in _MACHINES:
        raise Unavailable(f"no seccomp filter is known for {machine} machines: a run cannot be isolated here")
    column, arch = _MACHINES[machine]
    refused = [numbers[column] for numbers in REFUSED.values() if numbers[column] >= 0]
    if pinned:
        refused.append(_SCHED_SETAFFINITY[column])
    if counted:
        refused += [numbers[column] for numbers in _UNCOUNTED]
    lines = [
        _Line(_LOAD, 0, 0, _ARCH),
        *_unless(_Line(_EQUAL, 1, 0, arch), _KILL),
        _Line(_LOAD, 0, 0, _NUMBER),
        *_unless(_Line(_AT_LEAST, 0, 1, _X32), _KILL),
    ]
    for number in refused:
        lines += _unless(_Line(_EQUAL, 0, 1, number), _ERRNO | _EPERM)
    # What makes processes: glibc falls back to clone(2), whose flags can be read, when there is no clone3(2).
    lines += _unless(_Line(_EQUAL, 0, 1, _CLONE3[column]), _ERRNO | _ENOSYS)
    lines += _on(_CLONE[column], 0, _unless(_Line(_ANY_OF, 0, 1, _NAMESPACES), _ERRNO | _EPERM))
    asked = [line for request in _TYPES_INTO_A_TERMINAL for line in _unless(_Line(_EQUAL, 0, 1, request), _ERRNO | _EPERM)]
    lines += _on(_IOCTL[column], 1, asked)
    lines += _on(_SOCKET[column], 0, _families([_UNIX, _INET, _INET6], route=network))
    lines += _on(_SOCKETPAIR[column], 0, _families([_UNIX], route=False))
    return b"".join(struct.pack("=HBBI", *line) for line in (*lines, _Line(_GIVE, 0, 0, _ALLOW)))


def _unless(test: _Line, verdict: int) -> list[_Line]:
    """Give ``verdict`` where ``test`` falls through, and go on where it skips one line."""
    return [test, _Line(_GIVE, 0, 0, verdict)]


def _on(number: int, argument: int, lines: list[_Line]) -> list[_Line]:
    """``lines`` over the low half of an argument of one system call; past them, the number is loaded again."""
    inner = [_Line(_LOAD, 0, 0, _ARGUMENTS + 8 * argument), *lines, _Line(_LOAD, 0, 0, _NUMBER)]
    return [_Line(_EQUAL, 0, len(inner), number), *inner]


def _families(known: Iterable[int], *, route: bool) -> list[_Line]:
    """Refuse a socket of another family. ``route``: but netlink's protocol 0 (NETLINK_ROUTE) is let through, too."""
    netlink = [_Line(_EQUAL, 0, 2, _NETLINK), _Line(_LOAD, 0, 0, _ARGUMENTS + 16), _Line(_EQUAL, 1, 0, 0)] if route else []
    families = list(known)
    tests = [_Line(_EQUAL, len(families) - index + len(netlink), 0, family) for index, family in enumerate(families)]
    return [*tests, *netlink, _Line(_GIVE, 0, 0, _ERRNO | _EAFNOSUPPORT)]
