"""Processes: fork, execve, signals, pidfds, sessions. Also the audit that init imports nothing after its fork."""

from __future__ import annotations

import os
from _struct import pack

from utsuwa.kernel import ffi as ctypes
from utsuwa.kernel.door import SYSCALLS, announce, call_libc, call_os, flag_names, is_real, label, libc, look, show
from utsuwa.kernel.namespace import CLONE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CLOSE_RANGE_CLOEXEC = 4
SIGCHLD = 17
CLONE_INTO_CGROUP = 0x200000000
_long = ctypes.c_long


def fork(role: str, child: Callable[[], None], group: int = -1) -> int:
    """Fork; `child` runs in the new process, which always leaves by os._exit. Returns the child's pid. fork(2).

    With `group`, a descriptor of a cgroup2 directory, it is born there: moving it later would wait for every CPU of the machine (see `clone`).
    Where the backend does nothing, `child` runs here and now, so that its steps are planned too, and 0 is returned.
    """
    if not announce("fork", (role, show(group)) if group >= 0 else (role,)):
        child()
        return 0
    return _parted(os.fork() if group < 0 else _clone3(0, group), child)


def clone(flags: int, role: str, child: Callable[[], None], group: int = -1) -> int:
    """Fork straight into new namespaces and a control group; `flags` is a mask of CLONE_NEW*. Otherwise as `fork`. clone(2), CLONE_INTO_CGROUP.

    The raw system call: os.fork knows no flags, and a separate unshare would need a second fork to enter a pid namespace. Safe only in a
    process with one thread, which the monitor is: the interpreter's own after-fork work concerns other threads.
    """
    names = flag_names(flags, CLONE)
    if not announce("clone", (names, role, show(group)) if group >= 0 else (names, role)):
        child()
        return 0
    return _parted(_clone3(flags, group), child)


def _clone3(flags: int, group: int) -> int:
    """clone3(2): struct clone_args is eleven 64-bit fields, the fifth the exit signal, the last the group."""
    arguments = pack("11Q", flags | (CLONE_INTO_CGROUP if group >= 0 else 0), 0, 0, 0, SIGCHLD, 0, 0, 0, 0, 0, max(group, 0))
    pid: int = libc.syscall(_long(SYSCALLS["clone3"]), ctypes.c_char_p(arguments), _long(len(arguments)))
    if pid < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"clone3 {flag_names(flags, CLONE)}: {os.strerror(number).lower()}")
    return pid


def _parted(pid: int, child: Callable[[], None]) -> int:
    if pid:
        return pid
    code = 1
    try:
        child()
        code = 0
    finally:
        os._exit(code)


def execve(path: str, argv: list[str], environ: dict[str, str]) -> None:
    """Become another program; returns only where the backend does nothing. Raises OSError naming the path. execve(2)."""
    if announce("execve", (path, *argv)):
        try:
            os.execve(path, argv, environ)
        except OSError as error:
            raise OSError(error.errno, f"execve {path}: {os.strerror(error.errno or 0).lower()}") from None


def kill(pid: int, signal: int) -> None:
    """Send a signal. Raises OSError. kill(2)."""
    call_os("kill", (pid, signal), pid, os.kill, pid, signal)


def pidfd_open(pid: int) -> int:
    """Return a descriptor of the process (only looks). Raises OSError: ESRCH. pidfd_open(2)."""
    return label(look(libc.syscall, _long(SYSCALLS["pidfd_open"]), _long(pid), _long(0), what=f"pidfd_open {pid}"), f"pid {pid}")


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    """Signal exactly the process the descriptor stands for, never a later one of the same number. pidfd_send_signal(2)."""
    call_libc("pidfd_send_signal", (show(pidfd), signal), signal, libc.syscall, _long(SYSCALLS["pidfd_send_signal"]), _long(pidfd), _long(signal), None, _long(0))


class _SigAction(ctypes.Structure):
    """struct sigaction of the kernel, not of libc; all zero is SIG_DFL."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("handler", "flags", "restorer", "mask"))


def default_internal_signals() -> None:
    """Give signals 32 and 33 their default action: posix_spawn(3) of glibc ignores them in what it starts, and its sigaction(3) refuses to say otherwise."""
    default = _SigAction()
    for number in (32, 33):
        look(libc.syscall, ctypes.c_long(SYSCALLS["rt_sigaction"]), ctypes.c_long(number), ctypes.byref(default), ctypes.c_void_p(None), ctypes.c_long(8), what="rt_sigaction")


def close_range(first: int, last: int, flags: int) -> None:
    """Close descriptors, or with CLOSE_RANGE_CLOEXEC mark them; not state of the container's, so not recorded. close_range(2)."""
    if is_real():
        look(libc.syscall, _long(SYSCALLS["close_range"]), _long(first), _long(last), _long(flags), what=f"close_range {first}")


def setsid() -> None:
    """Start a session of our own. setsid(2)."""
    call_os("setsid", (), "", os.setsid)


def start_time(pid: int) -> int:
    """Return the process's start in clock ticks since boot, 0 where there is none: with the pid it names one process. proc_pid_stat(5), field 22."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(fd, 4096).rpartition(b")")[2].split()[19])
        finally:
            os.close(fd)
    except OSError:
        return 0


def boot_id() -> str:
    """Return this boot's id: a pid of another boot names nobody. random(4), boot_id."""
    fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64).decode().strip()
    finally:
        os.close(fd)


def in_user_namespace() -> bool:
    """Whether 0 here is somebody else outside: the namespace's map is not the whole range. user_namespaces(7)"""
    with open("/proc/self/uid_map", "rb") as file:
        return file.read().split() != [b"0", b"0", b"4294967295"]
