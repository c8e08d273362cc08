"""Volumes in the database: that they exist, since when, and whether somebody named them. Leaves out the files: storage.volumes owns those."""

from __future__ import annotations

from marshal import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.state.db import Database, Row

VERSION = 1


class VolumeRow:
    """One volume: `created` in ns since the epoch, `anonymous` when its name was made up, `container` the id it was made for, `labels`."""

    __slots__ = ("anonymous", "container", "created", "labels", "name")

    def __init__(self, name: str, created: int, *, anonymous: bool = False, container: str = "", labels: dict[str, str] | None = None) -> None:
        self.name, self.created, self.anonymous, self.container, self.labels = name, created, anonymous, container, labels or {}


def find(db: Database, name: str) -> VolumeRow | None:
    """Return a volume by its name, None when there is none."""
    rows = db.read("SELECT name, created, record FROM volume WHERE name=?", name)
    return _row(rows[0]) if rows else None


def every(db: Database) -> list[VolumeRow]:
    """Return all volumes in the order of their names."""
    return [_row(row) for row in db.read("SELECT name, created, record FROM volume ORDER BY name")]


def _row(row: Row) -> VolumeRow:
    name, created, record = row
    version, anonymous, container, labels = loads(record)  # type: ignore[arg-type] # noqa: S302 - our own database, 0700
    if version != VERSION:
        raise ValueError(f"volume record of version {version}")
    return VolumeRow(str(name), int(created), anonymous=anonymous, container=container, labels=labels)  # type: ignore[arg-type]


def insert(db: Database, row: VolumeRow) -> bool:
    """Enter a volume; False when the name is there already, which stays as it was. Call inside `with db.write():`."""
    record = dumps((VERSION, row.anonymous, row.container, row.labels))
    return db.do("INSERT OR IGNORE INTO volume VALUES (?,?,?)", row.name, row.created, record) == 1


def forget(db: Database, name: str) -> bool:
    """Remove a volume's row; False when there was none. Call inside `with db.write():`."""
    return db.do("DELETE FROM volume WHERE name=?", name) == 1


def users(db: Database, name: str) -> int:
    """Return how many containers' records hold a name of 64 hexadecimal digits, which stands for nothing else."""
    return int(db.read("SELECT count(*) FROM container WHERE instr(record, ?)", name.encode())[0][0] or 0)
