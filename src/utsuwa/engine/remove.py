"""Taking a container away: its network, its files, its rows. Idempotent, and the same whoever does it and however far it had come.

Order: what others could trip over first (processes, network), the row last: while it is there, the next command knows what to finish.
"""

from __future__ import annotations

import fcntl
import os
import time
from marshal import loads

from utsuwa import ledger
from utsuwa.container import cgroup
from utsuwa.engine import network
from utsuwa.kernel.process import boot_id, start_time
from utsuwa.kernel.tree import remove_tree
from utsuwa.state import lifecycle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.engine.context import Context

    Spec = dict[str, object]

KEPT_LEDGERS, SLACK = 50, 25
"""So many ledgers of removed containers stay; each 25th removal looks through them."""


def record_of(context: Context, container: str) -> Spec:
    """Return the container's record; {} where there is none (yet)."""
    rows = context.db.read("SELECT record FROM container WHERE id=?", container)
    return loads(rows[0][0]) if rows and rows[0][0] else {}  # type: ignore[arg-type] # noqa: S302 - our own database, 0700


class locked:  # noqa: N801 - reads as a sentence: `with locked(context, id)`
    """The container's lock, which its monitor holds for life: who has it knows that the monitor is gone. `held` says whether it was free.

    Without `wait` it only looks, and shares it: two who look do not take each other for a monitor.
    """

    __slots__ = ("_fd", "held", "path", "wait")

    def __init__(self, context: Context, container: str, *, wait: bool = True) -> None:
        self.path, self.wait, self._fd, self.held = context.paths.container(container) + "/lock", wait, -1, False

    def __enter__(self) -> locked:
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # no directory: nobody can hold it
            self.held = True
            return self
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX if self.wait else fcntl.LOCK_SH | fcntl.LOCK_NB)
            self.held = True
        except BlockingIOError:
            pass
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def remove_all(context: Context, container: str, *, volumes: bool = False) -> None:
    """Remove everything of a container whose monitor is gone (waits for that). Idempotent; safe against another who does the same.

    Its anonymous volumes go with `volumes`, when it was to be removed at its end (--rm), or when one who began to remove it wanted that.
    """
    _claim(context, container, volumes)
    with locked(context, container), _book(context, container):
        rows = context.db.read("SELECT phase FROM container WHERE id=?", container)
        if not rows:
            return  # another has done it: its address and ports may be somebody else's by now
        volumes = volumes or rows[0][0] == lifecycle.REMOVING_WITH_VOLUMES
        record = record_of(context, container)
        release(context, container, record)
        ledger.fault("remove:files")
        _retire(context, container)
        _anonymous_volumes(context, record, volumes)
        ledger.fault("remove:rows")
        while not _drop_rows(context, container):
            _empty_trash(context, container)


def _drop_rows(context: Context, container: str) -> bool:
    """Delete the rows, unless layers lose their last user with them: their files then go to the trash first, the row stays, and False is returned.

    A layer outlives its image while a container stands on it. Files and rows in one transaction: nobody can come to need them in between.
    """
    db = context.db
    with db.write():
        rows = db.read("SELECT chain FROM container_layer WHERE container=? AND chain NOT IN (SELECT chain FROM image_layer)", container)
        db.do("DELETE FROM container_layer WHERE container=?", container)
        if rows:
            from utsuwa.state import images

            for chain in images.forget_layers(db, [str(chain) for (chain,) in rows]):
                ledger.fault("remove:layer")
                _throw_away(context, container, f"{context.paths.root}/layers/{chain}")
            return False
        db.do("DELETE FROM container WHERE id=?", container)
    return True


def _claim(context: Context, container: str, volumes: bool) -> None:
    """Say in the row that it is going, and whose work that is: whoever finds us dead goes on. A row in flight says so already."""
    if context.db.read("SELECT 1 FROM container WHERE id=? AND phase='up'", container):
        owner = os.getpid(), start_time(os.getpid()), boot_id()
        with context.db.write():
            lifecycle.move(context.db, container, lifecycle.REMOVING_WITH_VOLUMES if volumes else lifecycle.REMOVING, owner)


class _book:  # noqa: N801
    """Write what is done to the container's own ledger, while it has one."""

    __slots__ = ("_fd", "_recording")

    def __init__(self, context: Context, container: str) -> None:
        self._fd, self._recording = -1, None
        if ledger.current() is not ledger._nobody:  # noqa: SLF001 - the launch's ledger is this container's already
            return
        try:
            self._fd = os.open(context.paths.container(container) + "/ledger.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except OSError:
            return
        self._recording = ledger.recording(ledger.Ledger("engine", ledger.to_file(self._fd)))

    def __enter__(self) -> None:
        if self._recording is not None:
            self._recording.__enter__()

    def __exit__(self, *_: object) -> None:
        if self._recording is not None:
            self._recording.__exit__(None, None, None)
            os.close(self._fd)


def release(context: Context, container: str, record: Spec) -> None:
    """Give back what a stopped container does not need: its control groups and its network. Idempotent."""
    linux: Spec = (record.get("config") or {}).get("linux") or {}  # type: ignore[attr-defined]
    path = str(linux.get("cgroupsPath") or "")
    if path:
        directories = {name: where for name, where in cgroup.discover().directories(path).items() if os.path.isdir(where)}
        if directories:
            cgroup.kill(directories, time.sleep)
            cgroup.remove(directories, time.sleep)
    network.release(context, container, record.get("network") or {})  # type: ignore[arg-type]


def _retire(context: Context, container: str) -> None:
    """Move the directory out of the way in one rename, keep the ledger, delete the rest."""
    paths = context.paths
    directory = paths.container(container)
    try:
        os.rename(directory + "/ledger.jsonl", f"{paths.root}/ledgers/{container}.jsonl")
        _prune(paths.root + "/ledgers")
    except FileNotFoundError:
        pass
    _throw_away(context, container, directory)
    _empty_trash(context, container)
    remove_in(paths.run + "/containers", container)


def _throw_away(context: Context, container: str, path: str) -> None:
    """Move something of a container's to the trash, under a name that leads back to it and that nobody else has. Idempotent."""
    try:
        os.rename(path, f"{context.paths.root}/trash/{container}.{os.urandom(4).hex()}")
    except FileNotFoundError:
        return


def _empty_trash(context: Context, container: str) -> None:
    """Delete what was thrown away of a container, by us or by one who was killed after that. Idempotent."""
    trash = context.paths.root + "/trash"
    for name in os.listdir(trash):
        if name.startswith(container + "."):
            remove_in(trash, name)


def remove_in(directory: str, name: str) -> None:
    """Delete one entry of a directory of ours, whatever a container left in it. Idempotent."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_tree(fd, name)
    finally:
        os.close(fd)


def _prune(directory: str) -> None:
    names = os.listdir(directory)
    if len(names) <= KEPT_LEDGERS + SLACK:
        return
    ages = []
    for name in names:
        try:
            ages.append((os.stat(f"{directory}/{name}").st_mtime_ns, name))
        except FileNotFoundError:
            continue
    for _, name in sorted(ages)[:-KEPT_LEDGERS]:
        try:
            os.unlink(f"{directory}/{name}")
        except FileNotFoundError:
            continue


def _anonymous_volumes(context: Context, record: Spec, wanted: bool) -> None:
    volumes: list[Spec] = record.get("volumes") or []  # type: ignore[assignment]
    options: Spec = record.get("options") or {}  # type: ignore[assignment]
    names = [str(volume["name"]) for volume in volumes if volume.get("anonymous")]
    if names and (wanted or options.get("remove")):
        from utsuwa.storage import volumes as store

        for name in names:
            store.remove(context.db, context.paths, name)
        trash = context.paths.root + "/trash"
        store.sweep(context.paths)  # one was being filled when its engine was killed
        for name in os.listdir(trash):  # what one who was killed here had thrown away and not deleted
            if name.startswith("volume-") and name[7:].rpartition("-")[0] in names:
                remove_in(trash, name)
