"""Option U of -v: the files of a mount become the container's user's. Podman's; beneath descriptors, links never followed."""

from __future__ import annotations

import os
import stat

from utsuwa.errors import UsageError

PROTECTED = frozenset({
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr",  # noqa: S108
    "/var", "/var/lib",
})
"""Directories of the host that nobody means to give away."""
DEPTH_MAX = 256


def give(path: str, uid: int, gid: int, *, host: bool) -> None:
    """Change the owner of `path` and all below it. Idempotent. `host` says that the user typed the path. Raises UsageError, OSError."""
    if host and os.path.realpath(path) in PROTECTED:
        raise UsageError(f"cannot change the owner of {path}: it is a directory of the system; leave out option U")
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            _below(fd, uid, gid, 0)
        os.fchown(fd, uid, gid)
    finally:
        os.close(fd)


def _below(directory: int, uid: int, gid: int, depth: int) -> None:
    if depth > DEPTH_MAX:
        raise UsageError(f"cannot change the owner of the volume's files: directories are nested deeper than {DEPTH_MAX}")
    for name in os.listdir(directory):
        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode):
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                _below(fd, uid, gid, depth + 1)
            finally:
                os.close(fd)
        if (info.st_uid, info.st_gid) != (uid, gid):
            os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
