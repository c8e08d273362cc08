"""Removing a container on disk and in the database: whoever does it, however often, however far another had come."""

import os
from marshal import dumps

import pytest

from utsuwa import ledger
from utsuwa.engine import containers, recover, remove
from utsuwa.engine.context import Context
from utsuwa.kernel.process import boot_id, start_time
from utsuwa.state import lifecycle
from utsuwa.state.db import Database
from utsuwa.state.paths import Paths
from utsuwa.state.volumes import VolumeRow, every, insert

ID, OTHER = "a" * 64, "b" * 64
CHAIN = "c" * 64


@pytest.fixture
def context(tmp_path):
    paths = Paths(f"{tmp_path}/root", f"{tmp_path}/run")
    paths.make()
    made = Context(paths, Database(paths.database))
    yield made
    made.db.close()


def add(context, container=ID, *, phase="up", pid=0, chains=(), options=None, volumes=()):
    """A container without processes and network: rows, files, a run directory."""
    with context.db.write():
        context.db.do("INSERT INTO container VALUES (?,?,?,?,?,?,?,?,?,?)", container, container[:6], "", "x", 1, phase, pid, start_time(pid) if pid else 0, boot_id(), dumps({"options": options or {}, "volumes": list(volumes)}))
        for chain in chains:
            context.db.do("INSERT OR IGNORE INTO layer VALUES (?,?,?,?)", chain, "sha256:" + chain, None, 1)
            context.db.do("INSERT INTO container_layer VALUES (?,?)", container, chain)
    for path in (context.paths.container(container) + "/upper/deep", context.paths.container_run(container)):
        os.makedirs(path)
    for name in ("ledger.jsonl", "upper/file"):
        with open(f"{context.paths.container(container)}/{name}", "w") as file:
            file.write("{}\n")


def files(context):
    """All that is on disk of containers, layers and trash."""
    places = [(context.paths.root, name) for name in ("containers", "layers", "trash")] + [(context.paths.run, "containers")]
    return [f"{name}/{entry}" for base, name in places for entry in sorted(os.listdir(f"{base}/{name}"))]


def rows(context):
    return [context.db.read(f"SELECT count(*) FROM {table}")[0][0] for table in ("container", "container_layer", "layer")]  # noqa: S608 - our own tables


def lay(context, chain=CHAIN):
    os.makedirs(context.paths.layer(chain))


def stop_at(monkeypatch, point):
    """The next fault point of that name interrupts, once."""
    def fault(call):
        if call == point:
            monkeypatch.undo()
            raise KeyboardInterrupt

    monkeypatch.setattr(ledger, "fault", fault)


def test_nothing_stays_but_the_ledger(context):
    add(context)
    remove.remove_all(context, ID)
    assert (files(context), rows(context), os.listdir(context.paths.root + "/ledgers")) == ([], [0, 0, 0], [ID + ".jsonl"])


def test_a_second_remover_does_nothing(context, monkeypatch):
    add(context)
    remove.remove_all(context, ID)
    monkeypatch.setattr(remove, "release", lambda *_: pytest.fail("its address may be somebody else's by now"))
    remove.remove_all(context, ID)
    assert rows(context) == [0, 0, 0]


@pytest.mark.parametrize("point", ["remove:files", "remove:rows"])
def test_one_who_was_interrupted_is_followed_by_the_next(context, monkeypatch, point):
    add(context)
    stop_at(monkeypatch, point)
    with pytest.raises(KeyboardInterrupt):
        remove.remove_all(context, ID)
    assert [row.phase for row in containers.every(context)] == [lifecycle.REMOVING]
    remove.remove_all(context, ID)
    assert (files(context), rows(context)) == ([], [0, 0, 0])


@pytest.mark.parametrize("volumes", [True, False])
def test_anonymous_volumes_go_if_whoever_began_to_remove_wanted_that(context, monkeypatch, volumes):
    name = "d" * 64
    add(context, volumes=[{"name": name, "anonymous": True}])
    with context.db.write():
        insert(context.db, VolumeRow(name, 1, anonymous=True, container=ID))
    os.makedirs(f"{context.paths.root}/volumes/{name}/_data")
    stop_at(monkeypatch, "remove:files")
    with pytest.raises(KeyboardInterrupt):
        remove.remove_all(context, ID, volumes=volumes)
    recover.cleanup(context, ID)  # a monitor's, which knows nothing of it
    assert rows(context) == [0, 0, 0]
    assert (os.listdir(context.paths.root + "/volumes"), len(every(context.db))) == (([], 0) if volumes else ([name], 1))


def test_what_was_thrown_away_by_one_who_was_killed_is_deleted_by_the_next_and_nobody_else_s(context):
    add(context)
    remove._throw_away(context, ID, context.paths.container(ID))
    os.mkdir(f"{context.paths.root}/trash/{OTHER}.0")
    assert len(files(context)) == 3
    remove.remove_all(context, ID)
    assert files(context) == [f"trash/{OTHER}.0"]


def test_names_in_the_trash_are_nobody_else_s(context):
    for _ in range(3):
        os.makedirs(context.paths.container(ID) + "/upper")
        remove._throw_away(context, ID, context.paths.container(ID))
    assert len(files(context)) == 3
    remove._throw_away(context, ID, context.paths.container(ID))  # gone: nothing to do
    assert len(files(context)) == 3


def test_layers_without_an_image_go_with_their_last_container(context):
    lay(context)
    add(context, ID, chains=[CHAIN])
    add(context, OTHER, chains=[CHAIN])
    remove.remove_all(context, ID)
    assert os.listdir(context.paths.root + "/layers") == [CHAIN] and rows(context) == [1, 1, 1]
    remove.remove_all(context, OTHER)
    assert (files(context), rows(context)) == ([], [0, 0, 0])


def test_layers_of_an_image_stay(context):
    lay(context)
    add(context, chains=[CHAIN])
    with context.db.write():
        context.db.do("INSERT INTO image VALUES (?,?,?,?,?,?)", "sha256:i", "sha256:m", "linux/amd64", "", 1, b"")
        context.db.do("INSERT INTO image_layer VALUES (?,?,?,?)", "sha256:i", 0, CHAIN, "sha256:b")
    remove.remove_all(context, ID)
    assert (os.listdir(context.paths.root + "/layers"), rows(context)) == ([CHAIN], [0, 0, 1])


def test_layers_whose_remover_was_killed_before_its_commit_go_with_the_next(context, monkeypatch):
    lay(context)
    add(context, chains=[CHAIN])
    real = remove._throw_away

    def killed(context, container, path):
        real(context, container, path)
        if "/layers/" in path:
            raise KeyboardInterrupt

    monkeypatch.setattr(remove, "_throw_away", killed)
    with pytest.raises(KeyboardInterrupt):
        remove.remove_all(context, ID)
    monkeypatch.undo()
    assert rows(context) == [1, 1, 1] and len(files(context)) == 1
    remove.remove_all(context, ID)
    assert (files(context), rows(context)) == ([], [0, 0, 0])


# ---- the lock, and who is at work

def test_two_who_look_do_not_take_each_other_for_a_monitor_but_a_monitor_is_seen(context):
    add(context)
    with remove.locked(context, ID, wait=False) as one, remove.locked(context, ID, wait=False) as two:
        assert one.held and two.held
    with remove.locked(context, ID) as monitor:
        assert monitor.held
        with remove.locked(context, ID, wait=False) as look:
            assert not look.held


def test_recover_removes_what_a_dead_owner_was_removing_and_leaves_a_living_one_s(context):
    add(context, ID, phase=lifecycle.REMOVING)
    add(context, OTHER, phase=lifecycle.REMOVING, pid=os.getpid())
    recover.recover(context)
    assert [row.id for row in containers.every(context)] == [OTHER]


def test_an_owner_that_nobody_has_waited_for_is_dead(context):
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    add(context, phase=lifecycle.REMOVING, pid=child)
    try:
        assert recover.unfinished(context) == [ID]
    finally:
        os.waitpid(child, 0)


def test_settling_one_that_is_being_removed_does_not_take_the_mark_away(context):
    add(context, phase=lifecycle.REMOVING_WITH_VOLUMES)
    recover.settle(context, ID)
    assert [row.phase for row in containers.every(context)] == ["removing with volumes"]
    with context.db.write():
        context.db.do("UPDATE container SET phase='creating'")
    recover.settle(context, ID)
    assert [row.phase for row in containers.every(context)] == ["up"]


def test_the_last_fifty_ledgers_stay(tmp_path):
    for number in range(remove.KEPT_LEDGERS + remove.SLACK):
        (tmp_path / f"{number}.jsonl").touch()
        os.utime(tmp_path / f"{number}.jsonl", (number, number))
    remove._prune(str(tmp_path))
    assert len(os.listdir(tmp_path)) == remove.KEPT_LEDGERS + remove.SLACK
    (tmp_path / "newest.jsonl").touch()
    remove._prune(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted([*(f"{number}.jsonl" for number in range(remove.SLACK + 1, remove.KEPT_LEDGERS + remove.SLACK)), "newest.jsonl"])
