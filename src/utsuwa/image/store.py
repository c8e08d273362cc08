"""Blobs and layers on disk: staged in private, published by rename, removed through the trash.

    ROOT/oci-layout, index.json, blobs/sha256/…   an OCI image layout: `skopeo copy oci:ROOT:NAME …` reads it
    ROOT/layers/CHAINID/fs                        a layer unpacked, read-only from then on
    ROOT/layers/.tmp-*                            a pull at work; its flock says that the pull lives
    ROOT/trash                                    decided to be garbage, not yet deleted

A file is published and its row written in one transaction, and a file is thrown away in a transaction that has seen no row for it. So
what lies here without a row, seen from inside a transaction, is garbage, and nobody's work in progress. Leaves out the order of a
pull (engine.images) and what is in the rows (state.images).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import sys

from utsuwa import ledger
from utsuwa.kernel.door import look, prototype
from utsuwa.kernel.tree import remove_tree
from utsuwa.spec.reference import is_digest, is_hex
from utsuwa.state import images

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from utsuwa.state.db import Database
    from utsuwa.state.paths import Paths

STAGE = ".tmp-"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def blob_path(paths: Paths, digest: str) -> str:
    """Return where a blob lies. Raises ValueError for text that is no digest: it would be a path of a stranger's choosing (CVE-2024-3727)."""
    if not is_digest(digest):
        raise ValueError(digest)
    return f"{paths.root}/blobs/{digest.replace(':', '/')}"


def has_blob(paths: Paths, digest: str) -> bool:
    """Whether a blob is there. It was verified when it came."""
    return os.path.exists(blob_path(paths, digest))


def has_layer(paths: Paths, chain: str) -> bool:
    """Whether a layer is there, unpacked and whole."""
    return os.path.exists(paths.layer(chain))


class Lock:
    """An exclusive flock on RUN/locks/NAME.lock, waited for; the file is gone when nobody holds it.

    `waited` is true when somebody else held it first. Released by the kernel when its holder dies.
    """

    __slots__ = ("_fd", "_path", "waited")

    def __init__(self, paths: Paths, name: str) -> None:
        self._path, self._fd, self.waited = f"{paths.run}/locks/{name}.lock", -1, False

    def __enter__(self) -> Lock:
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                self._take(fd)
                if _is_at(fd, self._path):  # else its last holder removed the file between our open and our lock
                    self._fd = fd
                    return self
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _take(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.waited = True
            fcntl.flock(fd, fcntl.LOCK_EX)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.unlink(self._path)
        os.close(self._fd)


def _is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


class Stage:
    """A private directory of one pull: blobs and layers are written here, and reach their places by rename.

    Use as a context manager: whatever was not published goes with it. After a crash `sweep` finds its lock free and removes it.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths, self._fd = paths, -1
        self.path = ""

    def __enter__(self) -> Stage:
        _spread(f"{self._paths.root}/layers")
        while True:
            self.path = f"{self._paths.root}/layers/{STAGE}{os.urandom(8).hex()}"
            os.mkdir(self.path, 0o700)
            self._fd = os.open(self.path, _DIRECTORY)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            if _is_at(self._fd, self.path):  # else a sweep came between the two
                return self
            os.close(self._fd)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # remove_tree takes the same lock by a descriptor of its own: held here, it would wait for us. A sweep that comes between does the same work.
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        remove_tree(-100, self.path)  # AT_FDCWD; the path is absolute and ours
        os.close(self._fd)

    def create_blob(self, digest: str) -> int:
        """Return a descriptor, open for reading and writing, of a new file for a blob."""
        return os.open(digest.replace(":", "-"), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._fd)

    def write_blob(self, digest: str, data: bytes) -> None:
        """Stage a small blob, already verified. Idempotent."""
        if self.has_blob(digest):
            return
        with open(self.create_blob(digest), "wb") as file:
            file.write(data)

    def has_blob(self, digest: str) -> bool:
        return os.path.exists(f"{self.path}/{digest.replace(':', '-')}")

    def create_layer(self, chain: str) -> int:
        """Return a descriptor of a new, empty directory for a layer."""
        os.makedirs(f"{self.path}/{chain}/fs", 0o755)
        os.chmod(f"{self.path}/{chain}/fs", 0o755)  # noqa: S103 - the root of every container of this image, whatever our umask
        return os.open(f"{self.path}/{chain}/fs", _DIRECTORY)

    def finish_layer(self, chain: str, size: int) -> None:
        """Write down the bytes of a layer's files beside it: its row may be lost, and is made anew from here."""
        _write(f"{self.path}/{chain}/size", str(size))

    def layer_size(self, chain: str) -> int:
        """Return the bytes of a layer's files, staged or published."""
        with open(f"{os.path.dirname(self.layer_path(chain))}/size", encoding="ascii") as file:
            return int(file.read(20))

    def layer_path(self, chain: str) -> str:
        """Return the directory of a layer: the staged one, or the published one."""
        staged = f"{self.path}/{chain}/fs"
        return staged if os.path.exists(staged) else self._paths.layer(chain)

    def sync(self) -> None:
        """Bring everything to the disk, once: after a power failure a published layer is whole. syncfs(2)."""
        look(_syncfs, self._fd, what=f"syncfs {self.path}")

    def publish(self, digests: list[str], chains: list[str]) -> list[str]:
        """Move what is staged to its place and return what is then still missing. Call inside `with db.write():`.

        Idempotent; what another pull published first is left as it is: the same name means the same content.
        """
        missing = []
        for digest in digests:
            target = blob_path(self._paths, digest)
            if not os.path.exists(target):
                ledger.fault("pull:blob")
                missing += self._move(digest.replace(":", "-"), target, digest)
        for chain in chains:
            if not has_layer(self._paths, chain):
                ledger.fault("pull:layer")
                missing += self._move(chain, f"{self._paths.root}/layers/{chain}", chain)
        return missing

    def _move(self, name: str, target: str, what: str) -> list[str]:
        try:
            os.rename(f"{self.path}/{name}", target)
        except FileNotFoundError:
            if os.path.exists(f"{self.path}/{name}"):
                os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
                return self._move(name, target, what)
            return [what]
        return []


_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS, _FS_TOPDIR_FL = 0x80086601, 0x40086602, 0x20000


def _spread(directory: str) -> None:
    """Let ext4 put each directory made in `directory` in a part of the disk of its own (chattr +T). ioctl_iflags(2).

    Else it puts a new image where one was just removed, and looks past each inode freed in the last seconds again for every file: a
    pull soon after an rmi takes twice as long. Idempotent; other file systems have no such flag and no such trouble.
    """
    fd = os.open(directory, _DIRECTORY)
    try:
        flags = int.from_bytes(fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8)), sys.byteorder)
        if not flags & _FS_TOPDIR_FL:
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, (flags | _FS_TOPDIR_FL).to_bytes(8, sys.byteorder))
    except OSError:
        pass
    finally:
        os.close(fd)


_syncfs = prototype("syncfs", ctypes.c_int)


# -------------------------------------------------------------------------------------------------------------- garbage

def collect(paths: Paths, db: Database, blobs: set[str], chains: list[str]) -> None:
    """Throw away those of the files that no row needs, and what a removal that was killed here had left. Idempotent; after a crash `sweep` goes on."""
    with db.write():
        for digest in blobs:
            if not images.known_blob(db, digest):
                ledger.fault("rmi:blob")
                _discard(paths, blob_path(paths, digest))
        for chain in chains:
            if not images.known_chain(db, chain):
                ledger.fault("rmi:layer")
                _discard(paths, f"{paths.root}/layers/{chain}")
        for path in _unknown(paths, db):
            _discard(paths, path)
    ledger.fault("rmi:trash")
    empty_trash(paths)


def _discard(paths: Paths, path: str) -> None:
    try:
        os.rename(path, f"{paths.root}/trash/{os.urandom(8).hex()}")
    except FileNotFoundError:
        return


def empty_trash(paths: Paths) -> None:
    """Delete what was thrown away. Idempotent; one at a time, so that two do not delete under each other's feet."""
    trash = os.open(f"{paths.root}/trash", _DIRECTORY)
    try:
        fcntl.flock(trash, fcntl.LOCK_EX)
        for name in os.listdir(trash):
            remove_tree(trash, name)
    finally:
        os.close(trash)


def _dead_stages(paths: Paths) -> list[str]:
    """Return the paths of stages whose pull is gone: their lock is free."""
    dead = []
    for name in os.listdir(f"{paths.root}/layers"):
        if not name.startswith(STAGE):
            continue
        try:
            fd = os.open(f"{paths.root}/layers/{name}", _DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            dead.append(f"{paths.root}/layers/{name}")
        except BlockingIOError:
            pass
        finally:
            os.close(fd)
    return sorted(dead)


def _dead_locks(paths: Paths, *, remove: bool = False) -> list[str]:
    """Return the lock files whose holder was killed before it could remove them; with `remove` remove them, which only who holds one may."""
    dead = []
    for name in os.listdir(f"{paths.run}/locks"):
        if name.startswith(("image-", "layer-", "index")):
            try:
                fd = os.open(f"{paths.run}/locks/{name}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(fd, f"{paths.run}/locks/{name}"):
                    dead.append(f"{paths.run}/locks/{name}")
                    if remove:
                        os.unlink(dead[-1])
            except BlockingIOError:
                pass
            finally:
                os.close(fd)
    return sorted(dead)


def _unknown(paths: Paths, db: Database) -> list[str]:
    """Return the paths of layers and blobs without a row. Call inside `with db.write():`."""
    found = []
    for name in os.listdir(f"{paths.root}/layers"):
        if not name.startswith(STAGE) and not (is_hex(name) and images.known_chain(db, name)):
            found.append(f"{paths.root}/layers/{name}")
    for algorithm in os.listdir(f"{paths.root}/blobs"):
        for name in os.listdir(f"{paths.root}/blobs/{algorithm}"):
            if not images.known_blob(db, f"{algorithm}:{name}"):
                found.append(f"{paths.root}/blobs/{algorithm}/{name}")
    return sorted(found)


def leftovers(paths: Paths, db: Database) -> list[str]:
    """Return what is on disk and belongs to no image and no living pull, as paths. Changes nothing."""
    with db.write():
        found = _unknown(paths, db)
    return _dead_stages(paths) + _dead_locks(paths) + found + [f"{paths.root}/trash/{name}" for name in sorted(os.listdir(f"{paths.root}/trash"))]


def sweep(paths: Paths, db: Database) -> None:
    """Remove what `leftovers` names. Idempotent; safe beside pulls and removals at work."""
    sweep_stages(paths)
    with db.write():
        for path in _unknown(paths, db):
            _discard(paths, path)
    empty_trash(paths)
    write_index(paths, db)


def sweep_stages(paths: Paths) -> None:
    """Remove what killed pulls left: the cheap part of `sweep`, done by each pull."""
    for path in _dead_stages(paths):
        _discard(paths, path)
    _dead_locks(paths, remove=True)
    if os.listdir(f"{paths.root}/trash"):
        empty_trash(paths)


# ----------------------------------------------------------------------------------------------------------- OCI layout

_REF_NAME = "org.opencontainers.image.ref.name"


def write_index(paths: Paths, db: Database) -> None:
    """Write index.json anew from the database, atomically. OCI image-spec, image-layout.md.

    It lists the manifests for this machine's platform, which are complete here; an index for many platforms is kept as a blob.
    """
    import json

    with Lock(paths, "index"):
        manifests = []
        for image in images.every(db):
            try:
                with open(blob_path(paths, image.manifest), "rb") as file:
                    data = file.read()
                media_type = json.loads(data).get("mediaType") or "application/vnd.oci.image.manifest.v1+json"
            except (OSError, ValueError):
                continue  # being removed just now
            descriptor = {"mediaType": media_type, "digest": image.manifest, "size": len(data)}
            names: list[dict[str, object]] = [{"annotations": {_REF_NAME: name}} for name, _ in image.references]
            manifests += [{**descriptor, **name} for name in names or [{}]]
        _write(f"{paths.root}/index.json", json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests}))
        if not os.path.exists(f"{paths.root}/oci-layout"):
            _write(f"{paths.root}/oci-layout", '{"imageLayoutVersion": "1.0.0"}')


def _write(path: str, text: str) -> None:
    with open(os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(f"{path}.new", path)
