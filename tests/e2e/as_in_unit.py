"""Run a command with what the systemd unit takes from it: the system calls outside its filter, and memory that is both written
and run. ``python as_in_unit.py FILE COMMAND...``; FILE holds the numbers of the system calls allowed, as JSON.
"""

import ctypes
import json
import os
import struct
import sys

_NO_NEW_PRIVS, _SECCOMP, _MDWE = 38, 22, 65
_LOAD, _EQUALS, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _EPERM = 0x7FFF0000, 0x00050001


def main() -> None:
    with open(sys.argv[1]) as file:  # noqa: PTH123  # what it imports is kept small
        numbers = json.load(file)
    code = [struct.pack("HBBI", _LOAD, 0, 0, 0)]
    for number in numbers:
        code += [struct.pack("HBBI", _EQUALS, 0, 1, number), struct.pack("HBBI", _RETURN, 0, 0, _ALLOW)]
    code.append(struct.pack("HBBI", _RETURN, 0, 0, _EPERM))
    buffer = ctypes.create_string_buffer(b"".join(code))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_MDWE, 1, 0, 0, 0),
        (_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_SECCOMP, 2, ctypes.c_ulong(ctypes.addressof(header)), 0, 0),
    ):
        if libc.prctl(*arguments):
            sys.exit(f"prctl {arguments[0]}: {os.strerror(ctypes.get_errno())}")
    os.execvp(sys.argv[2], sys.argv[2:])


main()
