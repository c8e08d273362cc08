"""`system check`: what is on this machine, was made by this engine, and belongs to no container. Off the hot path.

`recover` finishes what a row leads to; this looks for the rest: it should find nothing, whoever was killed and wherever.
"""

from __future__ import annotations

import os
import time

from utsuwa.engine import containers, recover
from utsuwa.engine.remove import remove_in
from utsuwa.ledger import because

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from utsuwa.engine.context import Context

    Found = list[tuple[str, Callable[[], object]]]


def check(context: Context, *, repair: bool = False) -> list[str]:
    """Return a line for each thing left; with `repair` it is removed first. Idempotent; leaves alone what a living command works on."""
    lines = [f"container {container}, which nobody looks after" for container in recover.unfinished(context)]
    if repair:
        recover.recover(context)
    for look in (_monitors, _groups, _directories, _volumes):
        found = look(context)
        lines += [line for line, _ in found]
        for _, remove in found if repair else ():
            remove()
    from utsuwa.engine import network
    from utsuwa.image import store

    lines += network.leftovers(context, _known(context), repair=repair)
    lines += store.leftovers(context.paths, context.db)
    if repair:
        store.sweep(context.paths, context.db)
    return lines


def _known(context: Context) -> set[str]:
    """Asked for anew each time, after what is compared with it was made: whatever a living command makes has its row first."""
    return {row.id for row in containers.every(context)}


def _monitors(context: Context) -> Found:
    """Processes that hold the lock of a container without a row: monitors that outlive what they looked after."""
    held = {}
    start = context.paths.root + "/containers/"
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        for path in _open_paths(pid):
            container, _, name = path.removeprefix(start).removesuffix(" (deleted)").partition("/")
            if path.startswith(start) and name == "lock" and pid != os.getpid():
                held[pid] = container
    known = _known(context)
    return [(f"process {pid}, the monitor of {container}", lambda pid=pid: _end(pid)) for pid, container in sorted(held.items()) if container not in known]  # type: ignore[misc]


def _open_paths(pid: int) -> list[str]:
    try:
        return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:  # it has ended, or is not ours to look at
        return []


def _end(pid: int) -> None:
    from utsuwa.kernel.process import kill

    with because("the monitor of a container that is gone", "kill(2)", 1):
        try:
            kill(pid, 9)
        except ProcessLookupError:
            return


def _groups(context: Context) -> Found:
    """Control groups named by an id that this engine has had: its ledger is here. Another engine's are not ours to judge."""
    from utsuwa.container import cgroup

    orphans: dict[str, dict[str, str]] = {}
    for hierarchy, top in cgroup.discover().directories("/utsuwa").items():
        try:
            names = [entry.name for entry in os.scandir(top) if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            continue
        for name in names:
            if os.path.exists(f"{context.paths.root}/ledgers/{name}.jsonl"):
                orphans.setdefault(name, {})[hierarchy] = f"{top}/{name}"

    def remove(directories: dict[str, str]) -> None:
        cgroup.kill(directories, time.sleep)
        cgroup.remove(directories, time.sleep)

    known = _known(context)
    return [(f"control group /utsuwa/{name}", lambda where=where: remove(where)) for name, where in sorted(orphans.items()) if name not in known]  # type: ignore[misc]


def _directories(context: Context) -> Found:
    """Directories of containers without a row. Whoever makes one has entered its row before, whoever removes one deletes the row after."""
    paths = context.paths
    seen = [(base, name) for base in (paths.root + "/containers", paths.run + "/containers") for name in sorted(os.listdir(base))]
    known = _known(context)
    return [(f"directory {base}/{name}", lambda base=base, name=name: remove_in(base, name)) for base, name in seen if name not in known]  # type: ignore[misc]


def _volumes(context: Context) -> Found:
    """Volumes half filled, and files of anonymous ones that neither a row nor a container leads to. A named one is taken up by who names it next."""
    from utsuwa.state import volumes as rows
    from utsuwa.storage import volumes

    paths, db = context.paths, context.db
    found: Found = [(f"volume {paths.root}/volumes/{name}", lambda: volumes.sweep(paths)) for name in volumes.unfinished(paths)]
    for name in sorted(os.listdir(paths.root + "/volumes")):
        if len(name) == 64 and rows.find(db, name) is None and not rows.users(db, name):
            found.append((f"volume {paths.root}/volumes/{name}", lambda name=name: volumes.remove(db, paths, name)))  # type: ignore[misc]
    return found
