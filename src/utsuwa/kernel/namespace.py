"""Namespaces: unshare(2), setns(2), and the names a UTS namespace holds. namespaces(7)."""

from __future__ import annotations

import os

from utsuwa.kernel import ffi as ctypes
from utsuwa.kernel.door import call_libc, flag_names, prototype, show

CLONE_NEWTIME, CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x80, 0x20000, 0x2000000, 0x4000000
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x8000000, 0x10000000, 0x20000000, 0x40000000
CLONE = {
    "CLONE_NEWUSER": CLONE_NEWUSER, "CLONE_NEWNS": CLONE_NEWNS, "CLONE_NEWPID": CLONE_NEWPID, "CLONE_NEWNET": CLONE_NEWNET,
    "CLONE_NEWUTS": CLONE_NEWUTS, "CLONE_NEWIPC": CLONE_NEWIPC, "CLONE_NEWCGROUP": CLONE_NEWCGROUP, "CLONE_NEWTIME": CLONE_NEWTIME,
}

_unshare = prototype("unshare", ctypes.c_int)
_setns = prototype("setns", ctypes.c_int, ctypes.c_int)
_sethostname = prototype("sethostname", ctypes.c_char_p, ctypes.c_size_t)


def unshare(flags: int) -> None:
    """Leave namespaces for new ones of our own; `flags` is a mask of CLONE_NEW*. Raises OSError. unshare(2)."""
    names = flag_names(flags, CLONE)
    call_libc("unshare", (names,), names, _unshare, flags)


def setns(fd: int, flags: int) -> None:
    """Join the namespace `fd` stands for, or with a pidfd all those in `flags` of its process. Raises OSError. setns(2)."""
    names = flag_names(flags, CLONE)
    call_libc("setns", (show(fd), names), names, _setns, fd, flags)


def sethostname(name: str) -> None:
    """Set the host name of this UTS namespace. Raises OSError. sethostname(2)."""
    encoded = os.fsencode(name)
    call_libc("sethostname", (name,), name, _sethostname, encoded, len(encoded))
