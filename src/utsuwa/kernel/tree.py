"""Removing a tree whose files are hostile: by directory descriptors, never following a link, never by a string path.

Not recorded: these are files of the engine's own state directory.
"""

from __future__ import annotations

import errno
import fcntl
import os

_ROUNDS = 8
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(dirfd: int, name: str) -> None:
    """Remove `name` beneath `dirfd`, file or tree. Idempotent: what is gone already is fine. Raises OSError for what will not go.

    A tree of any depth costs two descriptors and no recursion: directories that hold something are moved up into `name` and emptied there, so
    that a container cannot nest them deeper than we can follow. One that cannot be read (overlay's work/work is mode 000) is made ours first.
    """
    try:
        os.unlink(name, dir_fd=dirfd)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        _remove_directory(dirfd, name)


def _remove_directory(dirfd: int, name: str) -> None:
    """Remove one directory. Another who removes the same at the same time (a command and a monitor's clean-up) is no error for either."""
    for _ in range(_ROUNDS):
        try:
            os.rmdir(name, dir_fd=dirfd)  # most are empty: one call instead of five
        except FileNotFoundError:
            return
        except OSError as error:
            failure = error
        else:
            return
        try:
            _empty_tree(dirfd, name)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):  # the other was faster, or has just moved something up
                raise
    raise failure


def _empty_tree(dirfd: int, name: str) -> None:
    top = _open(dirfd, name)
    try:
        fcntl.flock(top, fcntl.LOCK_EX)  # one at a time: two would move each other's directories for ever
        waiting = _empty(top, top, 0)
        number = len(waiting)
        while waiting:
            below = waiting.pop()
            fd = _open(top, below)
            try:
                found = _empty(fd, top, number)
            finally:
                os.close(fd)
            os.rmdir(below, dir_fd=top)
            number += len(found)
            waiting += found
    finally:
        os.close(top)


def _open(dirfd: int, name: str) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=dirfd)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=dirfd)
        return os.open(name, _DIRECTORY, dir_fd=dirfd)


def _empty(fd: int, top: int, number: int) -> list[str]:
    """Remove what is in a directory; directories that hold something are moved to `top` under new names, which are returned."""
    with os.scandir(fd) as entries:
        children = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    if children and not os.fstat(fd).st_mode & 0o200:
        os.fchmod(fd, 0o700)
    moved: list[str] = []
    for child, is_directory in children:
        if not is_directory:
            remove_tree(fd, child)
            continue
        try:
            os.rmdir(child, dir_fd=fd)
        except FileNotFoundError:
            continue
        except OSError:
            new = f".removing-{os.urandom(4).hex()}-{number + len(moved)}"
            os.rename(child, new, src_dir_fd=fd, dst_dir_fd=top)
            moved.append(new)
    return moved
