"""Paths beneath a descriptor: openat2(2) and what is made there; single writes to /proc and to cgroups.

A path that comes from an image, an archive or a container is resolved only here, with RESOLVE_IN_ROOT, never as a string on the host.
"""

from __future__ import annotations

import os
import stat

from utsuwa.kernel import ffi as ctypes
from utsuwa.kernel.door import SYSCALLS, call_os, close, is_real, label, labels, libc, look, show

RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT = 1, 2, 4, 8, 16
IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
O_PATH = os.O_PATH
PROC_SUPER_MAGIC = 0x9FA0
_long = ctypes.c_long


class _OpenHow(ctypes.Structure):
    """struct open_how of openat2(2): three 64-bit fields."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(dirfd: int, path: str, flags: int, mode: int = 0, resolve: int = IN_ROOT) -> int:
    """Open beneath a directory; O_CLOEXEC is added. Raises OSError naming the path; EAGAIN (a racing rename) is tried again. openat2(2)."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    name = os.path.join(labels.get(dirfd, ""), path.lstrip("/")) if labels.get(dirfd) else path
    for attempt in range(32):
        try:
            fd = look(libc.syscall, _long(SYSCALLS["openat2"]), _long(dirfd), os.fsencode(path), ctypes.byref(how), _long(ctypes.sizeof(how)), what=f"openat2 {name}")
        except BlockingIOError:
            if attempt == 31:
                raise
        else:
            return label(fd, name)
    raise AssertionError("unreachable")


class _Statfs(ctypes.Structure):
    """The start of struct statfs, and room for the rest. statfs(2)."""

    _fields_ = (("f_type", ctypes.c_long), *((f"rest{number}", ctypes.c_long) for number in range(31)))


def file_system(fd: int) -> int:
    """Return the magic number of the file system that a descriptor (O_PATH too) lies on. Raises OSError. fstatfs(2)."""
    found = _Statfs()
    look(libc.fstatfs, ctypes.c_int(fd), ctypes.byref(found), what="fstatfs")
    return int(found.f_type)


def mkdirat(dirfd: int, name: str, mode: int) -> None:
    """Make one directory, `name` without a slash, beneath `dirfd`. Raises OSError. mkdirat(2)."""
    call_os("mkdir", (os.path.join(labels.get(dirfd, "."), name), f"{mode:o}"), name, lambda: os.mkdir(name, mode, dir_fd=dirfd))


def mknodat(dirfd: int, name: str, mode: int, device: int) -> None:
    """Make a device node, FIFO or regular file beneath `dirfd`; the umask applies. Raises OSError. mknodat(2)."""
    kind = {stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFIFO: "p", stat.S_IFREG: "f"}.get(stat.S_IFMT(mode), "?")
    shown = (os.path.join(labels.get(dirfd, "."), name), kind, f"{stat.S_IMODE(mode):o}", os.major(device), os.minor(device))
    call_os("mknodat", shown, name, lambda: os.mknod(name, mode, device, dir_fd=dirfd))


def fchmodat(dirfd: int, name: str, mode: int) -> None:
    """Set a mode past the umask; part of making the node, so not recorded by itself. fchmodat(2)."""
    if is_real():
        os.chmod(name, mode, dir_fd=dirfd)


def symlinkat(target: str, dirfd: int, name: str) -> None:
    """Make a symbolic link beneath `dirfd`. Raises OSError. symlinkat(2)."""
    call_os("symlinkat", (target, os.path.join(labels.get(dirfd, "."), name)), name, lambda: os.symlink(target, name, dir_fd=dirfd))


def mkdir(path: str, mode: int) -> None:
    """Make a cgroup (a directory of the host that is kernel state). Raises OSError. mkdir(2)."""
    call_os("mkdir", (path, f"{mode:o}"), path, os.mkdir, path, mode)


def rmdir(path: str) -> None:
    """Remove a cgroup. Raises OSError. rmdir(2)."""
    call_os("rmdir", (path,), path, os.rmdir, path)


def write_file(path: str, text: str, dirfd: int | None = None) -> None:
    """Make one write(2) to a file of /proc or a cgroup, which takes a value in one call. Raises OSError naming it.

    Beneath `dirfd`, a mount of our own: no symlink is followed and no other mount entered.
    """
    name = os.path.join(labels.get(dirfd, ""), path) if dirfd is not None else path

    def write() -> None:
        if dirfd is None:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        else:
            fd = openat2(dirfd, path, os.O_WRONLY, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV)
        try:
            os.write(fd, text.encode())
        finally:
            close(fd)

    call_os("write", (name, text), name, write)


def make_directories(root: int, path: str, mode: int = 0o755) -> int:
    """Return an O_PATH descriptor of the directory `path` beneath `root`, making what is missing. Raises OSError.

    Idempotent. Walks one component at a time so that each is resolved in the root: a symlink planted in the image leads nowhere else.
    """
    try:
        return openat2(root, path, O_PATH | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        pass
    done = ""
    for part in [p for p in path.split("/") if p not in ("", ".")]:
        parent = openat2(root, done or ".", O_PATH | os.O_DIRECTORY)
        try:
            if part != "..":
                mkdirat(parent, part, mode)
        except FileExistsError:
            pass
        finally:
            close(parent)
        done = f"{done}/{part}" if done else part
    return openat2(root, path, O_PATH | os.O_DIRECTORY)


__all__ = [
    "IN_ROOT", "O_PATH", "PROC_SUPER_MAGIC", "RESOLVE_BENEATH", "RESOLVE_IN_ROOT", "RESOLVE_NO_MAGICLINKS", "RESOLVE_NO_SYMLINKS", "RESOLVE_NO_XDEV", "close",
    "fchmodat", "file_system", "make_directories", "mkdir", "mkdirat", "mknodat", "openat2", "rmdir", "show", "symlinkat", "write_file",
]
