"""What the next command finishes for those that were killed: containers half made or half removed, and those whose monitor was lost.

Costs one indexed query, one directory of the running containers, and a try of each one's lock. `leftovers` looks for what no row leads to.
"""

from __future__ import annotations

import os
import time

from utsuwa.engine import containers
from utsuwa.engine.remove import locked, record_of, release, remove_all, remove_in
from utsuwa.errors import UtsuwaError
from utsuwa.kernel.process import boot_id
from utsuwa.state import lifecycle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.engine.context import Context

    Spec = dict[str, object]


def recover(context: Context) -> None:
    """Finish what is unfinished. Idempotent; leaves alone what has a living owner or monitor. Never raises: what resists is told by `system check`."""
    for container in unfinished(context):
        try:
            finish(context, container)
        except (OSError, UtsuwaError):
            continue
    if not _is_known_boot(context):
        fd = os.open(context.paths.run + "/boot", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.write(fd, boot_id().encode())
        os.close(fd)


def unfinished(context: Context) -> list[str]:
    """Return the ids of containers that nobody looks after: no living owner of their row, no monitor with their lock, and not yet settled. Looks only.

    A container that is settled has no run directory; after a reboot none has one, and all are looked at once.
    """
    owned = {str(row[0]): row[1:] for row in context.db.read("SELECT id, pid, start, boot FROM container WHERE phase!='up'")}
    found = [container for container, owner in owned.items() if not _owner_lives(*owner) and _is_free(context, container)]  # type: ignore[arg-type]
    names = os.listdir(context.paths.run + "/containers") if _is_known_boot(context) else [row.id for row in containers.every(context)]
    for container in names:
        # The row is looked at after the lock: who made it was its owner until its monitor had the lock.
        if container not in owned and _is_free(context, container) and context.db.read("SELECT 1 FROM container WHERE id=? AND phase='up'", container):
            found.append(container)
    return found


def _owner_lives(pid: int, start: int, boot: str) -> bool:
    """Whether the process that a row names still works: one that was killed and that its parent has not waited for keeps its number. proc_pid_stat(5)"""
    if not containers.alive(pid, start, boot):
        return False
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return os.read(fd, 4096).rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)


def _is_known_boot(context: Context) -> bool:
    """Whether a command of this boot has been here. A run directory may outlast one: /tmp does on some machines."""
    try:
        fd = os.open(context.paths.run + "/boot", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return os.read(fd, 64).decode() == boot_id()
    finally:
        os.close(fd)


def _is_free(context: Context, container: str) -> bool:
    with locked(context, container, wait=False) as lock:
        return lock.held


def finish(context: Context, container: str) -> None:
    """Decide what a dead engine or monitor left: one that had started is recorded as lost, or removed if it was to be; one half made or half removed is undone."""
    if not _is_free(context, container):  # its monitor lives: it undoes what has not started, and cleans up what ends
        return
    [(phase,)] = context.db.read("SELECT phase FROM container WHERE id=?", container) or [("",)]
    state = containers.state(context, container)
    options: Spec = record_of(context, container).get("options") or {}  # type: ignore[assignment]
    if phase in lifecycle.GOING or options.get("remove") or not state.get("started"):
        remove_all(context, container)
    else:
        settle(context, container, state)


def settle(context: Context, container: str, state: Spec | None = None) -> None:
    """Give back what a stopped container does not need and mark its row as settled. Idempotent. `state` is written down where its monitor could not.

    One that somebody is removing stays so marked: whoever finds them dead goes on with that.
    """
    with locked(context, container):
        if state is not None and state.get("error"):
            _write_state(context.paths.container(container) + "/state.json", {**state, "finished": time.time_ns()})
        release(context, container, record_of(context, container))
        with context.db.write():
            lifecycle.move(context.db, container, lifecycle.UP)
        remove_in(context.paths.run + "/containers", container)  # last: it leads the next command here


def _write_state(path: str, state: Spec) -> None:
    from utsuwa.ledger.encode import dumps

    fd = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.write(fd, dumps(state).encode())
    os.close(fd)
    os.rename(path + ".tmp", path)


def cleanup(context: Context, container: str, *, ended: bool = False) -> None:
    """What a caller, or the monitor without one, does at the end: remove the container if it was asked to go, or settle it.

    `ended` says that it had started and is known to have ended.
    """
    if not context.db.read("SELECT 1 FROM container WHERE id=?", container):
        return
    options = record_of(context, container).get("options") or {}
    state = {} if ended else containers.state(context, container)
    if options.get("remove") or not (ended or state.get("started")):  # type: ignore[attr-defined]
        remove_all(context, container)
    else:
        settle(context, container, state)
