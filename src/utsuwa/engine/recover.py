"""What the next command finishes for those that were killed: containers in flight whose engine is gone, and what a lost monitor left.

Costs one indexed query when nothing is in flight.
"""

from __future__ import annotations

import os

from utsuwa.engine import containers
from utsuwa.engine.remove import empty_trash, locked, record_of, release, remove_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.engine.context import Context


def recover(context: Context) -> None:
    """Finish the operations of engines that died. Idempotent; leaves alone what has a living owner."""
    for container, pid, start, boot in context.db.read("SELECT id, pid, start, boot FROM container WHERE phase!='up'"):
        if not containers.alive(int(pid), int(start), str(boot)):  # type: ignore[arg-type]
            finish(context, str(container))


def finish(context: Context, container: str) -> None:
    """Decide what a dead engine left: a running container goes on, one that ended is recorded or removed, one half made is undone."""
    with locked(context, container, wait=False) as lock:
        if not lock.held:  # the monitor lives: it undoes what has not started, and cleans up what ends
            return
    state = containers.state(context, container)
    record = record_of(context, container)
    options = record.get("options") or {}
    if state.get("status") == "creating" or options.get("remove"):  # type: ignore[attr-defined]
        remove_all(context, container)
        return
    settle(context, container)


def settle(context: Context, container: str) -> None:
    """Give back what a stopped container does not need and mark its row as settled. Idempotent."""
    with locked(context, container):
        release(context, container, record_of(context, container))
        with context.db.write():
            context.db.do("UPDATE container SET phase='up' WHERE id=?", container)


def cleanup(context: Context, container: str, *, ended: bool = False) -> None:
    """What a caller, or the monitor without one, does at the end: remove the container if it was asked to go, or settle it.

    `ended` says that it had started and is known to have ended.
    """
    if not context.db.read("SELECT 1 FROM container WHERE id=?", container):
        return
    options = record_of(context, container).get("options") or {}
    if options.get("remove") or not (ended or containers.state(context, container).get("status") == "stopped"):  # type: ignore[attr-defined]
        remove_all(context, container)
    else:
        settle(context, container)


def check(context: Context, *, repair: bool) -> list[str]:
    """Return what is left on this machine that belongs to no container; with `repair` remove it first, and return what was there."""
    from utsuwa.container import cgroup
    from utsuwa.engine import network
    from utsuwa.image import store

    known = {row.id for row in containers.every(context)}
    found = [f"row in flight {cid}" for cid, pid, start, boot in context.db.read("SELECT id, pid, start, boot FROM container WHERE phase!='up'") if not containers.alive(int(pid), int(start), str(boot))]  # type: ignore[arg-type]
    if repair:
        recover(context)
        known = {row.id for row in containers.every(context)}
    found += _directories(context, known, repair)
    found += _groups(context, cgroup.discover().directories("/utsuwa"), known, repair)
    found += network.leftovers(context, known, repair=repair)
    found += store.leftovers(context.paths, context.db)
    if repair:
        store.sweep(context.paths, context.db)
    return found


def _directories(context: Context, known: set[str], repair: bool) -> list[str]:
    paths, found = context.paths, []
    for kind, base in (("directory", paths.root + "/containers"), ("run directory", paths.run + "/containers")):
        for name in sorted(os.listdir(base)):
            if name not in known:
                found.append(f"{kind} {base}/{name}")
                if repair:
                    os.rename(f"{base}/{name}", f"{paths.root}/trash/{name}") if kind == "directory" else _remove_in(base, name)
    for name in os.listdir(paths.root + "/trash"):
        found.append(f"trash {name}")
        if repair:
            empty_trash(paths.root, name)
    return found


def _remove_in(base: str, name: str) -> None:
    from utsuwa.kernel.tree import remove_tree

    fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_tree(fd, name)
    finally:
        os.close(fd)


def _groups(context: Context, tops: dict[str, str], known: set[str], repair: bool) -> list[str]:
    """Control groups named by an id that this engine made and no longer knows. Another engine's (another root) are told by its ledgers' absence."""
    import time

    from utsuwa.container import cgroup

    orphans: dict[str, dict[str, str]] = {}
    for hierarchy, top in tops.items():
        try:
            names = [entry.name for entry in os.scandir(top) if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            continue
        for name in names:
            if name not in known and os.path.exists(f"{context.paths.root}/ledgers/{name}.jsonl"):
                orphans.setdefault(name, {})[hierarchy] = f"{top}/{name}"
    for directories in orphans.values() if repair else ():
        cgroup.kill(directories, time.sleep)
        cgroup.remove(directories, time.sleep)
    return [f"cgroup {name}" for name in sorted(orphans)]
