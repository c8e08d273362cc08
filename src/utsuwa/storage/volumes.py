"""Volumes and binds of a container: planned from what was asked, made on disk, removed.

A volume is ROOT/volumes/NAME/_data and a row. It appears in one rename, filled, so that a killed command leaves either none or a whole one;
what such a command was filling lies in ROOT/volumes/.tmp-*, which `sweep` takes away. Its files belong to containers and are hostile: they are
reached by descriptors only (copyup.py, kernel/tree.py).
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from utsuwa.errors import NotSupported, RuntimeFailure, UsageError
from utsuwa.kernel import files
from utsuwa.kernel.door import close, is_real
from utsuwa.kernel.tree import remove_tree
from utsuwa.state import volumes as rows
from utsuwa.storage.request import check_name, collect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.state.db import Database
    from utsuwa.state.paths import Paths
    from utsuwa.storage.request import Request

    Spec = dict[str, object]

TEMPORARY = ".tmp-"
DRIVER = "local"
_SAFE = files.RESOLVE_BENEATH | files.RESOLVE_NO_SYMLINKS | files.RESOLVE_NO_MAGICLINKS


# ------------------------------------------------------------------------------------------------------------------ plan

def plan(paths: Paths, specs: list[str], image_volumes: list[str]) -> tuple[list[Spec], list[Spec]]:
    """Return (mounts for config.json, outer before inner; what `make` has to make and inspect shows). Makes nothing. Raises UsageError.

    A shown mount has type, name, source, destination, mode, rw, propagation, driver, anonymous, copy and owner (chown to the user asked for).
    """
    points = [_point(paths, request) for request in collect(specs, image_volumes)]
    points.sort(key=lambda point: str(point["destination"]).count("/"))
    return [_mount(point) for point in points], points


def _point(paths: Paths, request: Request) -> Spec:
    anonymous = request.kind == "volume" and not request.source
    name = os.urandom(32).hex() if anonymous else request.source if request.kind == "volume" else ""
    return {
        "type": request.kind, "name": name, "source": data(paths, name) if name else request.source, "destination": request.destination,
        "mode": ",".join(request.options), "rw": not request.readonly, "propagation": request.propagation, "driver": DRIVER if name else "",
        "anonymous": anonymous, "copy": bool(name) and "nocopy" not in request.options, "owner": "U" in request.options,
    }


def _mount(point: Spec) -> Spec:
    # Read-only means all the way down, submounts too, as in Docker since 25.
    options = ["rbind", str(point["propagation"] or "rprivate"), *([] if point["rw"] else ["rro"])]
    return {"destination": point["destination"], "type": "bind", "source": point["source"], "options": options}


def data(paths: Paths, name: str) -> str:
    """Return where a volume's files are. `name` has been checked."""
    return f"{paths.root}/volumes/{name}/_data"


# ------------------------------------------------------------------------------------------------------------------ make

def make(db: Database, paths: Paths, points: list[Spec], layers: list[str], container: str = "", user: tuple[int, int] | None = None) -> None:
    """Make what `plan` planned: missing host directories, and volumes, new or empty ones filled with what the image has at that place.

    Idempotent. `layers` are the image's chain ids, bottom first; `user` (uid, gid) is whose a mount with option U becomes.
    Raises UsageError for a source that cannot be, RuntimeFailure when a volume cannot be filled; a volume half made is not left behind.
    """
    if not is_real():
        return
    for point in points:
        if point["owner"] and user is None:
            raise NotSupported(f"not yet supported: option U of the volume on {point['destination']}")
        if point["type"] == "bind":
            _make_source(str(point["source"]))
        else:
            _make_volume(db, paths, point, [paths.layer(chain) for chain in reversed(layers)], container)
        if point["owner"] and user is not None:
            from utsuwa.storage import ownership

            ownership.give(str(point["source"]), *user, host=point["type"] == "bind")


def _make_source(path: str) -> None:
    # Docker's -v makes a missing directory (--mount does not).
    if os.path.exists(path):
        return
    try:
        os.makedirs(path, 0o755, exist_ok=True)
    except OSError as error:
        raise UsageError(f"error while creating mount source path '{path}': mkdir {error.filename or path}: {(error.strerror or '').lower()}") from None


def _make_volume(db: Database, paths: Paths, point: Spec, lower: list[str], container: str) -> None:
    name = str(point["name"])
    row = rows.VolumeRow(name, time.time_ns(), anonymous=bool(point["anonymous"]), container=container)
    lower = lower if point["copy"] else []
    place = f"{paths.root}/volumes"
    try:
        top = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not _exists(top, name):
                _make_new(db, top, row, lower, str(point["destination"]))
            elif lower:
                _fill_empty(top, name, lower, str(point["destination"]))
            with db.write():
                rows.insert(db, row)
        finally:
            os.close(top)
    except OSError as error:
        raise RuntimeFailure(f"cannot make the volume {name}: {(error.strerror or str(error)).lower()}") from None


def _exists(top: int, name: str) -> bool:
    """Whether the volume is there. Raises OSError when its place is taken by something that is no directory."""
    try:
        close(files.openat2(top, name + "/_data", os.O_PATH | os.O_DIRECTORY, resolve=_SAFE))
    except FileNotFoundError:
        return False
    return True


def _make_new(db: Database, top: int, row: rows.VolumeRow, lower: list[str], destination: str) -> None:
    """Make a volume beside its place, fill it, and rename it there with its row in one transaction. A second maker's is thrown away."""
    _sweep(top)
    temporary, held = _temporary(top)
    try:
        os.mkdir("_data", 0o755, dir_fd=held)
        inner = os.open("_data", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=held)
        try:
            os.fchmod(inner, 0o755)  # whatever the umask
            if lower:
                _fill(lower, destination, inner)
        finally:
            os.close(inner)
        with db.write():
            rows.insert(db, row)
            os.rename(temporary, row.name, src_dir_fd=top, dst_dir_fd=top)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
    finally:
        os.close(held)  # first: removing takes the same lock
        remove_tree(top, temporary)  # gone already after the rename


def _temporary(top: int) -> tuple[str, int]:
    """Make a directory of our own and hold its lock, by which `sweep` knows that it is in use."""
    while True:
        name = TEMPORARY + os.urandom(8).hex()
        os.mkdir(name, 0o700, dir_fd=top)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=top)
        except FileNotFoundError:
            continue
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return name, fd
        os.close(fd)  # swept between mkdir and flock


def unfinished(paths: Paths) -> list[str]:
    """Return what killed commands were filling, by name. Looks only."""
    top = os.open(paths.root + "/volumes", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _dead(top)
    finally:
        os.close(top)


def sweep(paths: Paths) -> list[str]:
    """Remove what killed commands were filling; return the names. For `system check --repair`; `make` does it too."""
    top = os.open(paths.root + "/volumes", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _sweep(top)
    finally:
        os.close(top)


def _sweep(top: int) -> list[str]:
    dead = _dead(top, sweep=True)
    for name in dead:
        remove_tree(top, name)
    return dead


def _dead(top: int, *, sweep: bool = False) -> list[str]:
    """Return the temporary directories whose lock is free, and let go of it: whoever held it is gone, and their names are used once.

    An empty one may be somebody's who has not taken the lock yet: a sweep removes it under the lock, and its maker makes another.
    """
    dead = []
    for name in os.listdir(top):
        if not name.startswith(TEMPORARY):
            continue
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.listdir(fd) or not sweep:
                dead.append(name)
            else:
                os.rmdir(name, dir_fd=top)
        except (BlockingIOError, FileNotFoundError):
            continue
        finally:
            os.close(fd)
    return dead


def _fill_empty(top: int, name: str, lower: list[str], destination: str) -> None:
    """Fill a volume that is there but empty, in place: a running container may have it. Never one that has anything (CVE-2020-1726)."""
    fd = files.openat2(top, name + "/_data", os.O_RDONLY | os.O_DIRECTORY, resolve=_SAFE)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if not os.listdir(fd):
            _fill(lower, destination, fd)
    finally:
        close(fd)


def _fill(lower: list[str], destination: str, volume: int) -> None:
    from utsuwa.storage import copyup

    root = copyup.open_image(lower)
    try:
        copyup.fill(root, destination, volume)
    finally:
        close(root)


# ---------------------------------------------------------------------------------------------------------------- remove

def remove(db: Database, paths: Paths, name: str) -> bool:
    """Remove a volume, row and files. Idempotent. Returns False, and leaves it, when it is anonymous and two containers or more have it.

    One container may still have it: the one that is being removed. Decided and moved to the trash in one transaction, deleted afterwards.
    """
    check_name(name)
    trash = "volume-" + name[:200] + "-" + os.urandom(4).hex()
    with db.write():
        row = rows.find(db, name)
        if row is not None and row.anonymous and rows.users(db, name) > 1:
            return False
        rows.forget(db, name)
        try:
            os.rename(f"{paths.root}/volumes/{name}", f"{paths.root}/trash/{trash}")
        except FileNotFoundError:
            return True
    fd = os.open(paths.root + "/trash", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_tree(fd, trash)
    finally:
        os.close(fd)
    return True
