"""A layer's entries become a directory that overlayfs can use as a lower one.

Each layer has a directory of its own, so a deletion is written down and not carried out: `.wh.NAME` becomes a character device 0:0,
`.wh..wh..opq` an extended attribute. Docker does the same for overlay2.

Every name is a stranger's. A parent directory is resolved beneath the layer's descriptor (openat2, RESOLVE_IN_ROOT), so a symlink of the
same layer leads nowhere else; the last component is made with O_EXCL and never followed. Nothing is recorded in a ledger: these
are files of the engine's own state directory (kernel/calls.py).
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile

from utsuwa.errors import ImageError
from utsuwa.image.tar import COMPONENT_BYTES, entries
from utsuwa.kernel.door import close
from utsuwa.kernel.files import IN_ROOT, O_PATH, RESOLVE_NO_SYMLINKS, openat2
from utsuwa.kernel.process import in_user_namespace
from utsuwa.kernel.tree import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from utsuwa.image.tar import Entry, Stream

WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
DEPTH = 256
"""Bound on the components of a name."""
CACHED = 128
"""Directories held open: layers are sorted, so nearly every file's directory is among the last few."""
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LATEST = (1 << 34) - 1
"""Times are brought between 1970 and what ext4 can hold, 2446, as Docker brings them into its own bounds."""


def unpack(stream: Stream, root: int, *, in_userns: bool) -> int:
    """Unpack a layer into the empty directory `root`, a descriptor; return the bytes of its files.

    Not atomic: the caller unpacks into a directory that nobody knows yet, and renames. Raises ImageError naming the entry.
    """
    layer = _Layer(stream, root, in_userns)
    try:
        for entry in entries(stream):
            _worded(entry.name, layer.add, entry)
        layer.finish()
    finally:
        layer.close()
    return layer.size


def _worded(name: str, action: Callable[[Entry], None], entry: Entry) -> None:
    try:
        action(entry)
    except OSError as error:
        shown = ascii(name[:200])
        if error.errno == errno.EINVAL and in_user_namespace():
            raise ImageError(f"cannot give {shown} to {entry.uid}:{entry.gid}: not among this user's subordinate ids; add to /etc/subuid and /etc/subgid") from None
        raise ImageError(f"cannot unpack {shown}: {os.strerror(error.errno or 0).lower()}") from error


def clean(name: str) -> str:
    """Return the name relative to the layer's root, "" for the root itself. Raises ImageError for one that leads outside or has no end.

    Lexically, as Docker's filepath.Clean: `a/../b` is `b`, whatever `a` is.
    """
    path = os.path.normpath(name.lstrip("/"))
    if path == ".." or path.startswith("../"):
        raise ImageError(f"the layer has a name that leads outside: {name[:200]!a}")
    if path == ".":
        return ""
    if path.count("/") >= DEPTH:
        raise ImageError(f"the layer has a name of more than {DEPTH} components: {name[:60]!a}")
    if len(path) > COMPONENT_BYTES // 4 and max(map(len, os.fsencode(path).split(b"/"))) > COMPONENT_BYTES:
        raise ImageError(f"the layer has a name longer than {COMPONENT_BYTES} bytes: {name[:60]!a}")
    return path


class _Layer:
    """One layer being unpacked. Directories get their owner, mode and time last: making files in them changes times, and a mode may forbid it."""

    def __init__(self, stream: Stream, root: int, in_userns: bool) -> None:
        self._stream, self._root, self._in_userns = stream, root, in_userns
        self._opaque = "user.overlay.opaque" if in_userns else "trusted.overlay.opaque"
        self._fds: dict[str, int] = {}
        self._directories: dict[str, Entry] = {}
        self.size = 0
        status = os.fstat(root)
        # What a new file gets by itself needs no further call: our own ids (unless a setgid bit is inherited) and a mode the umask spares.
        self._ids = None if status.st_mode & stat.S_ISGID else (os.geteuid(), os.getegid())
        self._touchy = 0o7000 | _umask()

    def close(self) -> None:
        for fd in self._fds.values():
            close(fd)
        self._fds.clear()

    def add(self, entry: Entry) -> None:
        path = clean(entry.name)
        directory, _, name = path.rpartition("/")
        if name.startswith(WHITEOUT):
            self._whiteout(directory, name)
            return
        if entry.kind == tarfile.DIRTYPE:
            self._directory(directory, name, entry)
            self._directories[path] = entry
            return
        if not name:
            raise ImageError(f"the layer has a name that only a directory can have: {entry.name[:200]!a}")
        make = _MAKERS.get(entry.kind, _Layer._file)
        parent = self._open(directory)
        try:
            make(self, parent, name, entry)
        except FileExistsError:
            self._replace(parent, name)
            make(self, self._open(directory), name, entry)

    # ------------------------------------------------------------------------------------------------ directories

    def _open(self, path: str) -> int:
        """Return an O_PATH descriptor of a directory of this layer, made if missing; it stays valid until the next call."""
        fd = self._fds.get(path)
        if fd is not None:
            return fd
        try:
            fd = openat2(self._root, path or ".", O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            directory, _, name = path.rpartition("/")
            parent = self._open(directory)
            try:
                self._mkdir(parent, name, 0o755)
            except FileExistsError:
                raise ImageError(f"cannot unpack into {path[:200]!a}: it is a symlink that leads nowhere") from None
            fd = openat2(self._root, path, O_PATH | os.O_DIRECTORY)
        if len(self._fds) >= CACHED:
            close(self._fds.pop(next(iter(self._fds))))
        self._fds[path] = fd
        return fd

    def _mkdir(self, parent: int, name: str, mode: int) -> None:
        os.mkdir(name, mode, dir_fd=parent)
        if mode & self._touchy:
            os.chmod(name, mode, dir_fd=parent)

    def _directory(self, directory: str, name: str, entry: Entry) -> None:
        if not name:
            return  # the root is there
        parent = self._open(directory)
        mode = 0o700 | (entry.mode & 0o777)
        try:
            self._mkdir(parent, name, mode)
        except FileExistsError:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                return
            self._replace(parent, name)
            parent = self._open(directory)
            self._mkdir(parent, name, mode)
            if stat.S_ISCHR(status.st_mode) and not status.st_rdev:  # deleted from the layers below, and made anew
                self._make_opaque(parent, name)

    def _replace(self, parent: int, name: str) -> None:
        """Remove what an earlier entry of this layer made: the later one counts. Descriptors of what is gone must not be used again."""
        remove_tree(parent, name)
        self.close()

    def _make_opaque(self, parent: int, name: str) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.setxattr(fd, self._opaque, b"y")
        finally:
            os.close(fd)

    def _whiteout(self, directory: str, name: str) -> None:
        if name == OPAQUE:
            self._make_opaque(self._open(directory), ".")
            return
        target = name[len(WHITEOUT):]
        if target.startswith(WHITEOUT):
            return  # aufs's own bookkeeping: .wh..wh.plnk, .wh..wh.aufs
        if target in ("", ".", ".."):
            raise ImageError(f"the layer has a whiteout of nothing: {name!a} in {'/' + directory[:200]!a}")
        parent = self._open(directory)
        try:
            os.mknod(target, stat.S_IFCHR, 0, dir_fd=parent)
        except FileExistsError:
            # Whiteouts concern the layers below, whatever the order in this one. OCI image-spec, layer.md, "Whiteouts".
            if stat.S_ISDIR(os.stat(target, dir_fd=parent, follow_symlinks=False).st_mode):
                self._make_opaque(parent, target)

    def finish(self) -> None:
        """Give the directories their attributes."""
        for path, entry in self._directories.items():
            _worded(entry.name, lambda entry, path=path: self._finish_directory(path, entry), entry)  # type: ignore[misc]

    def _finish_directory(self, path: str, entry: Entry) -> None:
        try:
            fd = openat2(self._root, path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            return  # a later entry replaced it
        except OSError as error:
            if error.errno == errno.ELOOP:
                return
            raise
        try:
            self._describe(fd, entry)
        finally:
            close(fd)

    # ------------------------------------------------------------------------------------------------------ files

    def _describe(self, fd: int, entry: Entry) -> None:
        """Set owner, then mode (a change of owner clears setuid), then attributes (and capabilities), then time."""
        if (entry.uid, entry.gid) != self._ids:
            os.fchown(fd, entry.uid, entry.gid)
        if entry.mode & self._touchy or entry.kind == tarfile.DIRTYPE:
            os.fchmod(fd, entry.mode)
        if entry.xattrs:
            _set_xattrs(fd, entry.xattrs)
        time = _time(entry)
        os.utime(fd, ns=(time, time))

    def _file(self, parent: int, name: str, entry: Entry) -> None:
        fd = os.open(name, _NEW, entry.mode & 0o777, dir_fd=parent)
        try:
            self.size += entry.real_size
            if entry.sparse is not None:
                self._fill_sparse(fd, entry)
            else:
                for piece in self._stream.pieces(entry.size):
                    _write(fd, piece)
            self._describe(fd, entry)
        finally:
            os.close(fd)

    def _fill_sparse(self, fd: int, entry: Entry) -> None:
        for offset, length in entry.sparse or ():
            os.lseek(fd, offset, os.SEEK_SET)
            for piece in self._stream.pieces(length):
                _write(fd, piece)
        os.ftruncate(fd, entry.real_size)

    def _symlink(self, parent: int, name: str, entry: Entry) -> None:
        os.symlink(entry.linkname, name, dir_fd=parent)
        self._describe_name(parent, name, entry)

    def _describe_name(self, parent: int, name: str, entry: Entry) -> None:
        if (entry.uid, entry.gid) != self._ids:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if entry.kind != tarfile.SYMTYPE and entry.mode & self._touchy:
            os.chmod(name, entry.mode, dir_fd=parent)
        time = _time(entry)
        os.utime(name, ns=(time, time), dir_fd=parent, follow_symlinks=False)

    def _link(self, parent: int, name: str, entry: Entry) -> None:
        """A hard link to what an earlier entry of this layer made, itself even where that is a symlink."""
        directory, _, target = clean(entry.linkname).rpartition("/")
        if not target:
            raise ImageError(f"the layer has a hard link to a directory: {entry.name[:200]!a}")
        try:
            source = openat2(self._root, directory or ".", O_PATH | os.O_DIRECTORY)
            try:
                os.link(target, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
            finally:
                close(source)
        except (FileNotFoundError, NotADirectoryError):
            raise ImageError(f"the layer has a hard link to what is not in it: {entry.name[:200]!a} to {entry.linkname[:200]!a}") from None

    def _node(self, parent: int, name: str, entry: Entry) -> None:
        if entry.kind == tarfile.FIFOTYPE:
            os.mkfifo(name, entry.mode, dir_fd=parent)
        elif self._in_userns:
            return  # mknod is refused there whatever the capabilities (mknod(2), EPERM); Docker and Podman leave it out too
        else:
            kind = stat.S_IFCHR if entry.kind == tarfile.CHRTYPE else stat.S_IFBLK
            os.mknod(name, kind | (entry.mode & 0o777), os.makedev(*entry.device), dir_fd=parent)
        self._describe_name(parent, name, entry)


_MAKERS = {
    tarfile.SYMTYPE: _Layer._symlink, tarfile.LNKTYPE: _Layer._link,  # noqa: SLF001 - the class's own table
    tarfile.CHRTYPE: _Layer._node, tarfile.BLKTYPE: _Layer._node, tarfile.FIFOTYPE: _Layer._node,  # noqa: SLF001
}


def _write(fd: int, piece: memoryview) -> None:
    written = os.write(fd, piece)
    while written < len(piece):
        written += os.write(fd, piece[written:])


def _time(entry: Entry) -> int:
    return min(max(entry.mtime, 0), _LATEST * 1_000_000_000)


def _umask() -> int:
    """Return the umask without setting it, which would be seen by every thread. proc(5), /proc/PID/status."""
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o777


def _set_xattrs(fd: int, xattrs: dict[str, bytes]) -> None:
    """Set file capabilities and user attributes. Others are the host's business, and overlay's own would rewire the stack of layers."""
    for name, value in xattrs.items():
        if name == "security.capability" or (name.startswith("user.") and not name.startswith("user.overlay.")):
            try:
                os.setxattr(fd, name, value)
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.EPERM):  # as Docker: a file system or a user namespace without them
                    raise


def read_file(root: int, path: str, most: int) -> tuple[bool, bytes | None]:
    """Look for one file in a layer: (whether this layer decides, content or None where it is no regular file of `most` bytes).

    For /etc/passwd and /etc/group of an image: no symlink is followed, nothing but a regular file is opened (CVE-2024-9676: a FIFO waits
    for ever, and a device node does whatever its driver does).
    """
    directory, _, name = path.rpartition("/")
    try:
        parent = openat2(root, directory or ".", O_PATH | os.O_NOFOLLOW, 0, IN_ROOT | RESOLVE_NO_SYMLINKS)
    except FileNotFoundError:
        return False, None
    except OSError:
        return True, None
    try:
        return _read_in(parent, name, most)
    finally:
        close(parent)


def _read_in(parent: int, name: str, most: int) -> tuple[bool, bytes | None]:
    if not stat.S_ISDIR(os.fstat(parent).st_mode):
        return True, None
    try:
        fd = os.open(name, O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except FileNotFoundError:
        return is_opaque(parent), None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            return True, None
        with open(f"/proc/self/fd/{fd}", "rb") as file:
            return True, file.read(most)
    finally:
        os.close(fd)


def is_opaque(directory: int) -> bool:
    """Whether a directory of a layer, given by a descriptor, hides those below it."""
    names = os.listxattr(f"/proc/self/fd/{directory}")
    return "trusted.overlay.opaque" in names or "user.overlay.opaque" in names
