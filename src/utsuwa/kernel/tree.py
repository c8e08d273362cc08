"""Removing a tree whose files are hostile: by directory descriptors, never following a link, never by a string path.

Not recorded: these are files of the engine's own state directory.
"""

from __future__ import annotations

import os


def remove_tree(dirfd: int, name: str) -> None:
    """Remove `name` beneath `dirfd`, file or tree. Idempotent: what is gone already is fine. Raises OSError for what will not go.

    A directory that cannot be read (overlay's work/work is mode 000) is made ours first.
    """
    try:
        os.unlink(name, dir_fd=dirfd)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        _remove_directory(dirfd, name)


def _remove_directory(dirfd: int, name: str) -> None:
    try:
        os.rmdir(name, dir_fd=dirfd)  # most are empty: one call instead of five
    except FileNotFoundError:
        return
    except OSError:
        pass
    else:
        return
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=dirfd)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=dirfd)
        fd = os.open(name, flags, dir_fd=dirfd)
    try:
        with os.scandir(fd) as entries:
            children = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        if children and not os.fstat(fd).st_mode & 0o200:
            os.fchmod(fd, 0o700)
        for child, is_directory in children:
            if is_directory:
                _remove_directory(fd, child)
            else:
                remove_tree(fd, child)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=dirfd)
