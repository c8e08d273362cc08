"""User namespaces from outside: who owns one, what it lies in, and the set-user-id helpers that may map other people's ids into it."""

from __future__ import annotations

import fcntl
import os

from utsuwa.kernel.door import announce, is_real

NS_GET_USERNS, NS_GET_PARENT, NS_GET_OWNER_UID = 0xB701, 0xB702, 0xB704
_OUTPUT_LIMIT = 4096


def owner_uid(fd: int) -> int:
    """Return the user id that owns the user namespace `fd` stands for (only looks). Raises OSError. ioctl_ns(2), NS_GET_OWNER_UID."""
    return int.from_bytes(fcntl.ioctl(fd, NS_GET_OWNER_UID, bytes(4)), "little")


def parent(fd: int) -> tuple[int, int]:
    """Return (device, inode) of the user namespace that `fd`'s lies in (only looks). Raises OSError: EPERM above our own. ioctl_ns(2), NS_GET_PARENT."""
    above = fcntl.ioctl(fd, NS_GET_PARENT)
    try:
        info = os.fstat(above)
    finally:
        os.close(above)
    return info.st_dev, info.st_ino


def posix_spawn(argv: list[str], environ: dict[str, str], file_actions: list[tuple[int | str, ...]]) -> int:
    """Start a program with exactly this environment; `file_actions` as os.posix_spawn takes them. Returns its pid. Raises OSError. posix_spawn(3)."""
    if not announce("posix_spawn", tuple(argv)):
        return 0
    try:
        return os.posix_spawn(argv[0], argv, environ, file_actions=file_actions)
    except OSError as error:
        raise OSError(error.errno, f"posix_spawn {argv[0]}: {os.strerror(error.errno or 0).lower()}") from None


def spawn_and_wait(argv: list[str]) -> tuple[int, str]:
    """Run a helper program to its end; returns (exit status, or 128 and the signal; what it wrote to standard error). posix_spawn(3), waitpid(2)."""
    if not is_real():
        announce("posix_spawn", tuple(argv))
        return 0, ""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        actions: list[tuple[int | str, ...]] = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0), (os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, writing, 2)]
        pid = posix_spawn(argv, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}, actions)
        os.close(writing)
        writing = -1
        text = b""
        while len(text) < _OUTPUT_LIMIT and (part := os.read(reading, _OUTPUT_LIMIT)):
            text += part
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:  # SIGCHLD is ignored: what it did shows in what is mapped
        code = 0
    return (128 - code if code < 0 else code), text.decode(errors="replace").strip()
