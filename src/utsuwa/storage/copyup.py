"""Copy-up: what an image has at a volume's place becomes the content of the new volume.

Both sides are hostile: the image's files, and the volume's when a running container has it. So everything goes by descriptors: the source is
resolved in the image's root (RESOLVE_IN_ROOT, no magic links), no link is ever followed below, nothing that exists is opened for writing
(O_EXCL). CVE-2020-1726, CVE-2021-41089, CVE-2024-9676.
"""

from __future__ import annotations

import errno
import os
import stat

from utsuwa.errors import RuntimeFailure
from utsuwa.kernel import files, mount
from utsuwa.kernel.door import close
from utsuwa.ledger import because

DEPTH_MAX = 256
"""Directories within each other: two descriptors are held for each."""
CHUNK = 1 << 30
_OVERLAY = ("trusted.overlay.", "user.overlay.")
_READ_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_INSIDE = files.RESOLVE_BENEATH | files.RESOLVE_NO_SYMLINKS | files.RESOLVE_NO_MAGICLINKS


def open_image(lower: list[str]) -> int:
    """Return a descriptor of the image's root: layers, top first, merged by a detached read-only overlay that is attached nowhere. overlayfs."""
    if len(lower) == 1:
        return os.open(lower[0], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    with because("a new volume begins with what the image has at its place", "overlayfs", 5):
        context = mount.fsopen("overlay")
        try:
            for directory in lower:
                mount.fsconfig(context, mount.FSCONFIG_SET_STRING, "lowerdir+", directory)
            if not _owns_everything():
                mount.fsconfig(context, mount.FSCONFIG_SET_FLAG, "userxattr")
            mount.fsconfig(context, mount.FSCONFIG_CMD_CREATE)
            return mount.fsmount(context, mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOSUID)
        finally:
            close(context)


def _owns_everything() -> bool:
    """Whether we are in the first user namespace, where overlay's marks are in trusted.*; elsewhere they are in user.*"""
    with open("/proc/self/uid_map", "rb") as file:
        return file.read().split() == [b"0", b"0", b"4294967295"]


def fill(root: int, path: str, volume: int) -> bool:
    """Copy what the image has at `path`, with owners, modes, times, xattrs, links and holes, into the empty directory `volume`.

    Returns False when the image has no directory there. After an error the volume is half filled and the caller's to remove.
    Raises RuntimeFailure for what cannot be copied, OSError (ENOSPC) naming nothing.
    """
    try:
        source = files.openat2(root, path.lstrip("/") or ".", os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            return False
        raise
    try:
        _Copy(volume).directory(source, volume, "", 0)
    finally:
        close(source)
    return True


class _Copy:
    """One run: `links` knows where in the volume the first name of a file with several went."""

    __slots__ = ("_links", "_volume")

    def __init__(self, volume: int) -> None:
        self._volume = volume
        self._links: dict[tuple[int, int], str] = {}

    def directory(self, source: int, target: int, place: str, depth: int) -> None:
        """Copy the entries, then the directory's own attributes: its times would not last otherwise."""
        if depth > DEPTH_MAX:
            raise RuntimeFailure(f"cannot fill the volume: directories of the image are nested deeper than {DEPTH_MAX}")
        for name in os.listdir(source):
            info = os.stat(name, dir_fd=source, follow_symlinks=False)
            kind = stat.S_IFMT(info.st_mode)
            if kind == stat.S_IFCHR and info.st_rdev == 0:
                continue  # a whiteout, seen where one layer is looked at alone
            if kind == stat.S_IFDIR:
                self._enter(source, target, name, place, depth)
            elif not self._link(info, target, name):
                self._KINDS.get(kind, _Copy._leave)(self, source, target, name, info)
                if info.st_nlink > 1:
                    self._links[info.st_dev, info.st_ino] = place + name
        _attributes(source, target)

    def _enter(self, source: int, target: int, name: str, place: str, depth: int) -> None:
        os.mkdir(name, 0o700, dir_fd=target)
        below = os.open(name, _READ_DIRECTORY, dir_fd=source)
        try:
            made = os.open(name, _READ_DIRECTORY, dir_fd=target)
            try:
                self.directory(below, made, f"{place}{name}/", depth + 1)
            finally:
                os.close(made)
        finally:
            os.close(below)

    def _link(self, info: os.stat_result, target: int, name: str) -> bool:
        first = self._links.get((info.st_dev, info.st_ino)) if info.st_nlink > 1 else None
        if first is None:
            return False
        parent, _, last = first.rpartition("/")
        held = files.openat2(self._volume, parent or ".", os.O_PATH | os.O_DIRECTORY, resolve=_INSIDE)
        try:
            os.link(last, name, src_dir_fd=held, dst_dir_fd=target, follow_symlinks=False)
        finally:
            close(held)
        return True

    def _file(self, source: int, target: int, name: str, _info: os.stat_result) -> None:
        # O_NONBLOCK: should a FIFO have taken the file's place, the open must not wait for its writer.
        reading = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
        try:
            info = os.fstat(reading)
            if not stat.S_ISREG(info.st_mode):
                raise RuntimeFailure(f"cannot fill the volume: {name} changed while it was copied")
            writing = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=target)
            try:
                _data(reading, writing, info.st_size)
                _attributes(reading, writing)
            finally:
                os.close(writing)
        finally:
            os.close(reading)

    def _symlink(self, source: int, target: int, name: str, info: os.stat_result) -> None:
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
        os.utime(name, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=target, follow_symlinks=False)

    def _node(self, _source: int, target: int, name: str, info: os.stat_result) -> None:
        try:
            os.mknod(name, stat.S_IFMT(info.st_mode) | 0o600, info.st_rdev, dir_fd=target)
        except PermissionError:
            raise RuntimeFailure(f"cannot fill the volume: the image has a device node there, {name}, which only root may make") from None
        made = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=target)
        try:
            if stat.S_IFMT(os.fstat(made).st_mode) != stat.S_IFMT(info.st_mode):
                raise RuntimeFailure(f"cannot fill the volume: {name} changed while it was copied")
            # By the descriptor: chmod by name would follow a link that a container has put there.
            own = f"/proc/self/fd/{made}"
            os.chown(own, info.st_uid, info.st_gid)
            os.chmod(own, stat.S_IMODE(info.st_mode))
            os.utime(own, ns=(info.st_atime_ns, info.st_mtime_ns))
        finally:
            os.close(made)

    def _leave(self, _source: int, _target: int, _name: str, _info: os.stat_result) -> None:
        """A socket belongs to a process that is not there: nothing to copy."""

    _KINDS = {stat.S_IFREG: _file, stat.S_IFLNK: _symlink, stat.S_IFIFO: _node, stat.S_IFCHR: _node, stat.S_IFBLK: _node}  # noqa: RUF012 - a table


def _data(reading: int, writing: int, size: int) -> None:
    """Copy the bytes and keep the holes: an image's file of one terabyte of nothing must not fill the disk."""
    os.ftruncate(writing, size)
    place = 0
    while place < size:
        try:
            start = os.lseek(reading, place, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        place = min(os.lseek(reading, start, os.SEEK_HOLE), size)
        os.lseek(reading, start, os.SEEK_SET)
        os.lseek(writing, start, os.SEEK_SET)
        while start < place:
            sent = os.sendfile(writing, reading, None, min(place - start, CHUNK))
            if not sent:
                return  # it became shorter
            start += sent


def _attributes(source: int, target: int) -> None:
    """Owner first, which clears set-user-id bits and file capabilities; then mode, xattrs, times. chown(2)"""
    info = os.fstat(source)
    os.fchown(target, info.st_uid, info.st_gid)
    os.fchmod(target, stat.S_IMODE(info.st_mode))
    for name in os.listxattr(source):
        if name.startswith(_OVERLAY):
            continue
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.ENODATA):
                raise
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
