"""Who a process is and what it may still do: ids, capabilities, seccomp. credentials(7), capabilities(7), seccomp(2)."""

from __future__ import annotations

import os

from utsuwa.kernel import ffi as ctypes
from utsuwa.kernel.door import SYSCALLS, call_libc, call_os, libc, prototype

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_CAPBSET_DROP = 1, 4, 8, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 36, 38, 47
PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_CLEAR_ALL = 2, 4
_PRCTL = {
    1: "PR_SET_PDEATHSIG", 4: "PR_SET_DUMPABLE", 8: "PR_SET_KEEPCAPS", 24: "PR_CAPBSET_DROP", 36: "PR_SET_CHILD_SUBREAPER",
    38: "PR_SET_NO_NEW_PRIVS", 47: "PR_CAP_AMBIENT",
}
SECCOMP_SET_MODE_FILTER = 1
_LINUX_CAPABILITY_VERSION_3 = 0x20080522

_prctl = prototype("prctl", ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_capset = prototype("capset", ctypes.c_void_p, ctypes.c_void_p)


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def prctl(operation: int, argument: int, second: int = 0) -> None:
    """One operation on the calling process, PR_*. Raises OSError naming it. prctl(2)."""
    name = _PRCTL.get(operation, str(operation))
    call_libc("prctl", (name, argument, second), name, _prctl, operation, argument, second, 0, 0)


def setgroups(groups: list[int]) -> None:
    """Set the supplementary groups. Raises OSError. setgroups(2)."""
    call_os("setgroups", (",".join(map(str, groups)),), groups, os.setgroups, groups)


def setresgid(gid: int) -> None:
    """Set real, effective and saved group id. Raises OSError. setresgid(2)."""
    call_os("setresgid", (gid, gid, gid), gid, os.setresgid, gid, gid, gid)


def setresuid(uid: int) -> None:
    """Set real, effective and saved user id. Raises OSError. setresuid(2)."""
    call_os("setresuid", (uid, uid, uid), uid, os.setresuid, uid, uid, uid)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the calling thread's capability sets, each a 64-bit mask. Raises OSError. capset(2)."""
    header = _CapHeader(_LINUX_CAPABILITY_VERSION_3, 0)
    low, high = 0xFFFFFFFF, 32
    data = (_CapData * 2)(
        _CapData(effective & low, permitted & low, inheritable & low), _CapData(effective >> high, permitted >> high, inheritable >> high)
    )
    call_libc("capset", (f"{effective:#x}", f"{permitted:#x}", f"{inheritable:#x}"), "capability sets", _capset, ctypes.byref(header), ctypes.byref(data))


def seccomp(program: bytes, flags: int, description: str) -> None:
    """Load a compiled BPF filter (struct sock_filter[], 8 bytes each) for this thread. Raises OSError. seccomp(2)."""
    fprog = _SockFprog(len(program) // 8, program)
    call_libc("seccomp", ("SECCOMP_SET_MODE_FILTER", flags, description), description, libc.syscall, ctypes.c_long(SYSCALLS["seccomp"]), ctypes.c_long(SECCOMP_SET_MODE_FILTER), ctypes.c_long(flags), ctypes.byref(fprog))
