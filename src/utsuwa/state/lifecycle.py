"""The phases of a container's row, and every way from one to another. What its processes do is the monitor's to tell (state.json); this says whose work it is.

    creating ──▶ up ──▶ removing ──▶ (no row)
        └──────────────────────────────▲       undone: by its engine, or by whoever finds that one dead

A row in flight (creating, removing) names the process that works on it: pid, start time, boot. engine/recover.py finishes what has lost its owner.
"""

from __future__ import annotations

from utsuwa.errors import Conflict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.state.db import Database

    Owner = tuple[int, int, str]

CREATING, UP, REMOVING, REMOVING_WITH_VOLUMES = "creating", "up", "removing", "removing with volumes"
GOING = (REMOVING, REMOVING_WITH_VOLUMES)
_WAYS = {
    (CREATING, UP): UP, (UP, UP): UP, (UP, REMOVING): REMOVING, (UP, REMOVING_WITH_VOLUMES): REMOVING_WITH_VOLUMES,
    # In flight already: whoever finds its owner dead removes it.
    (CREATING, REMOVING): CREATING, (CREATING, REMOVING_WITH_VOLUMES): CREATING,
    # Nothing brings back what is going, and who began decides about the volumes.
    **{(going, wanted): going for going in GOING for wanted in (UP, *GOING)},
}
"""(from, wanted) → what it becomes."""


def move(db: Database, container: str, wanted: str, owner: Owner | None = None) -> str:
    """Move a container's row to a phase, with its new `owner`; return the phase it is in then, "" where there is no row. Idempotent.

    Call inside `with db.write():`. Raises Conflict naming from and to where no way leads there.
    """
    rows = db.read("SELECT phase FROM container WHERE id=?", container)
    if not rows:
        return ""
    now = str(rows[0][0])
    if (now, wanted) not in _WAYS:
        raise Conflict(f"container {container[:12]} cannot go from {now} to {wanted}")
    phase = _WAYS[now, wanted]
    if phase != now:
        db.do("UPDATE container SET phase=? WHERE id=?", phase, container)
        if owner is not None:
            db.do("UPDATE container SET pid=?, start=?, boot=? WHERE id=?", *owner, container)
    return phase
