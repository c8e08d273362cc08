"""The one table of a container's phases, and the database's own version."""

import pytest

from utsuwa.errors import Conflict, UtsuwaError
from utsuwa.state import lifecycle
from utsuwa.state.db import Database
from utsuwa.state.lifecycle import CREATING, REMOVING, REMOVING_WITH_VOLUMES, UP


@pytest.fixture
def db(tmp_path):
    db = Database(f"{tmp_path}/state.db")
    yield db
    db.close()


def add(db, phase):
    with db.write():
        db.do("INSERT INTO container VALUES ('c1', 'name', '', 'hello', 1, ?, 7, 8, 'boot', x'')", phase)


@pytest.mark.parametrize(("now", "wanted", "then"), [
    (CREATING, UP, UP), (UP, UP, UP), (UP, REMOVING, REMOVING), (UP, REMOVING_WITH_VOLUMES, REMOVING_WITH_VOLUMES), (CREATING, REMOVING, CREATING),
    (REMOVING, UP, REMOVING), (REMOVING, REMOVING_WITH_VOLUMES, REMOVING), (REMOVING_WITH_VOLUMES, REMOVING, REMOVING_WITH_VOLUMES),
])
def test_every_way_there_is(db, now, wanted, then):
    add(db, now)
    with db.write():
        assert lifecycle.move(db, "c1", wanted, (1, 2, "other")) == then
    owner = (1, 2, "other") if now != then else (7, 8, "boot")
    assert db.read("SELECT phase, pid, start, boot FROM container") == [(then, *owner)]


@pytest.mark.parametrize(("now", "wanted"), [(UP, CREATING), (REMOVING, CREATING), ("lost", UP), (UP, "paused")])
def test_no_other_way(db, now, wanted):
    add(db, now)
    with pytest.raises(Conflict, match=f"container c1 cannot go from {now} to {wanted}"), db.write():
        lifecycle.move(db, "c1", wanted)
    assert db.read("SELECT phase FROM container") == [(now,)]


def test_no_row_no_phase(db):
    with db.write():
        assert lifecycle.move(db, "c1", UP) == ""


def test_a_database_of_another_version_is_refused(tmp_path, db):
    with db.write():
        db.do("PRAGMA user_version=99")
    with pytest.raises(UtsuwaError, match=r"cannot use the database .*state\.db: it is of version 99, this utsuwa knows 1"):
        Database(f"{tmp_path}/state.db")
