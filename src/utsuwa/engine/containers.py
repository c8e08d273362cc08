"""Containers as the database and their monitors' state files know them: found, listed, described. Only looks."""

from __future__ import annotations

import os
from marshal import loads

from utsuwa.engine import names
from utsuwa.engine.remove import locked, record_of
from utsuwa.errors import Conflict, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.engine.context import Context

    Spec = dict[str, object]

LOST = 137
_COLUMNS = "id, name, image, image_name, created, phase"


class Row:
    """One container's row: `created` in ns since the epoch, `phase` creating or up."""

    __slots__ = ("created", "id", "image", "image_name", "name", "phase")

    def __init__(self, id: str, name: str, image: str, image_name: str, created: int, phase: str) -> None:  # noqa: A002
        self.id, self.name, self.image, self.image_name, self.created, self.phase = id, name, image, image_name, created, phase


def find(context: Context, text: str) -> Row:
    """Return the container of this id, name, or unique prefix of an id. Raises NotFound, or Conflict for an ambiguous prefix."""
    name = text.removeprefix("/")
    rows = context.db.read(f"SELECT {_COLUMNS} FROM container WHERE id=?1 OR name=?1", name)  # noqa: S608 - our own columns
    if not rows and names.is_id_prefix(text):
        rows = context.db.read(f"SELECT {_COLUMNS} FROM container WHERE id>=?1 AND id<?2 LIMIT 2", text, text + "g")  # noqa: S608
        if len(rows) > 1:
            raise Conflict(f"cannot choose a container for {text}: several ids begin so; give more digits")
    if not rows:
        raise NotFound(f"No such container: {text}")
    return Row(*rows[0])  # type: ignore[arg-type]


def every(context: Context) -> list[Row]:
    """Return all containers, newest first."""
    return [Row(*row) for row in context.db.read(f"SELECT {_COLUMNS} FROM container ORDER BY created DESC")]  # type: ignore[arg-type] # noqa: S608


def state(context: Context, container: str) -> Spec:
    """Return the monitor's state.json, corrected by what the lock tells: a monitor that is gone without a record was lost, with code 137.

    `status` is creating, created, running or stopped.
    """
    found = _read_state(context.paths.container(container) + "/state.json")
    if found.get("status") == "stopped":
        return found
    with locked(context, container, wait=False) as lock:
        if not lock.held:
            return found or {"status": "creating", "pid": 0}
        found = _read_state(context.paths.container(container) + "/state.json")  # it may have ended between the two looks
        if found.get("status") in (None, "stopped"):
            return found or {"status": "creating", "pid": 0}
    return {**found, "status": "stopped", "pid": 0, "exit_code": LOST, "oom": False, "error": "monitor lost", "finished": found.get("finished") or found.get("started") or 0}


def _read_state(path: str) -> Spec:
    import json

    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)  # type: ignore[no-any-return]
    except (OSError, ValueError):
        return {}


def is_running(context: Context, container: str) -> bool:
    """Whether the container's program runs."""
    return state(context, container).get("status") == "running"


def details(context: Context, container: str) -> Spec:
    """Return all that is known of one container as plain data: what inspect and ps translate."""
    rows = context.db.read(f"SELECT {_COLUMNS}, record FROM container WHERE id=?", container)  # noqa: S608
    if not rows:
        raise NotFound(f"No such container: {container}")
    *columns, record = rows[0]
    row = Row(*columns)  # type: ignore[arg-type]
    known: Spec = loads(record) if record else {}  # type: ignore[arg-type] # noqa: S302 - our own database, 0700
    return {
        "id": row.id, "name": row.name, "image": row.image, "image_name": row.image_name, "created": row.created, "directory": context.paths.container(row.id),
        "config": known.get("config") or {}, "options": known.get("options") or {}, "network": known.get("network") or {}, "bundle": known.get("bundle") or {},
        "image_config": known.get("image_config") or {}, "volumes": known.get("volumes") or [], "state": state(context, row.id),
    }


__all__ = ["Row", "details", "every", "find", "is_running", "record_of", "state"]


def monitor_socket(context: Context, container: str) -> str:
    """Return the path of the monitor's socket."""
    return context.paths.container_run(container) + "/monitor.sock"


def alive(pid: int, start: int, boot: str) -> bool:
    """Whether the process that a row names still is that process: pid, start time and boot."""
    from utsuwa.kernel.process import boot_id, start_time

    return boot == boot_id() and start_time(pid) == start != 0 and os.path.exists(f"/proc/{pid}")
