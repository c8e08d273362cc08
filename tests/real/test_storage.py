"""Volumes on a real file system: filled once with all that files have, found again, removed."""

import fcntl
import os
import stat
import subprocess
import threading

import pytest

from utsuwa.errors import NotSupported, RuntimeFailure, UsageError
from utsuwa.kernel.door import close
from utsuwa.state import volumes as rows
from utsuwa.state.db import Database
from utsuwa.state.paths import Paths
from utsuwa.storage import copyup, volumes

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners, device nodes and overlay mounts")
LOW, HIGH = "a" * 64, "b" * 64


@pytest.fixture
def engine(tmp_path):
    paths = Paths(f"{tmp_path}/root", f"{tmp_path}/run")
    paths.make()
    db = Database(paths.database)
    yield paths, db
    db.close()


def layer(paths, chain, tree):
    """Make a layer: name → text, or a callable that is given the path."""
    for name, content in tree.items():
        path = f"{paths.layer(chain)}/{name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if callable(content):
            content(path)
        else:
            with open(path, "w") as file:
                file.write(content)


def make(engine, spec, layers, image_volumes=(), **kw):
    paths, db = engine
    _, points = volumes.plan(paths, [spec] if spec else [], list(image_volumes))
    volumes.make(db, paths, points, layers, **kw)
    return points


def read(path):
    with open(path) as file:
        return file.read()


def test_a_volume_is_made_filled_and_found_again(engine):
    paths, db = engine
    layer(paths, LOW, {"d/x": "image", "d/sub/y": "below"})
    point, = make(engine, "data:/d", [LOW], container="c1")
    assert read(f"{point['source']}/x") == "image" and read(f"{point['source']}/sub/y") == "below"
    with open(f"{point['source']}/x", "w") as file:
        file.write("mine")
    os.unlink(f"{point['source']}/sub/y")
    make(engine, "data:/d", [LOW])
    assert read(f"{point['source']}/x") == "mine" and not os.path.exists(f"{point['source']}/sub/y")
    row, = rows.every(db)
    assert (row.name, row.anonymous, row.container) == ("data", False, "c1")
    assert os.listdir(paths.root + "/volumes") == ["data"]
    assert stat.S_IMODE(os.stat(f"{paths.root}/volumes/data").st_mode) == 0o700


def test_nocopy_and_a_place_that_the_image_lacks(engine):
    layer(engine[0], LOW, {"d/x": "image", "file": "not a directory"})
    for spec in ("none:/d:nocopy", "miss:/nowhere", "file:/file"):
        point, = make(engine, spec, [LOW])
        assert os.listdir(point["source"]) == []
        assert stat.S_IMODE(os.stat(point["source"]).st_mode) == 0o755


def test_an_empty_volume_is_filled_too(engine):
    layer(engine[0], LOW, {"d/x": "image"})
    make(engine, "data:/d", [])
    point, = make(engine, "data:/d", [LOW])
    assert os.listdir(point["source"]) == ["x"]


def test_anonymous_volumes_go_with_their_container_unless_another_has_them(engine):
    paths, db = engine
    point, = make(engine, "", [], ["/v"])
    name = point["name"]
    for container in ("1", "2"):
        with db.write():
            db.do("INSERT INTO container VALUES (?,?,'','',0,'up',0,0,'',?)", container, container, b"record " + name.encode())
    assert not volumes.remove(db, paths, name) and os.path.isdir(point["source"])
    with db.write():
        db.do("DELETE FROM container WHERE id='2'")
    assert volumes.remove(db, paths, name) and volumes.remove(db, paths, name)
    assert os.listdir(paths.root + "/volumes") == os.listdir(paths.root + "/trash") == rows.every(db) == []


@as_root
def test_all_that_files_have_is_copied(engine):
    paths, _ = engine

    def furnish(path):
        with open(path, "w") as file:
            file.write("set")
        os.chown(path, 1000, 1001)
        os.chmod(path, 0o6751)  # noqa: S103 - it must come through
        os.setxattr(path, "user.note", b"kept")
        os.setxattr(path, "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
        os.utime(path, ns=(10**18, 10**18 + 7))
        os.link(path, path + ".again")
        os.symlink("/etc/passwd", path + ".link")
        os.chown(path + ".link", 5, 6, follow_symlinks=False)
        os.mkfifo(path + ".fifo")
        os.chmod(path + ".fifo", 0o622)  # noqa: S103 - it must come through
        os.mknod(path + ".null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(path + ".whiteout", stat.S_IFCHR, 0)
        os.mknod(path + ".sock", stat.S_IFSOCK | 0o600)
        directory = os.path.dirname(path)
        os.chown(directory, 33, 34)
        os.chmod(directory, 0o3770)  # noqa: S103 - it must come through
        os.utime(directory, ns=(10**18, 10**18 + 9))

    layer(paths, LOW, {"d/f": furnish})
    source = make(engine, "data:/d", [LOW])[0]["source"]
    info = os.stat(source + "/f")
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (1000, 1001, 0o6751, 10**18 + 7)
    assert os.getxattr(source + "/f", "user.note") == b"kept" and "security.capability" in os.listxattr(source + "/f")
    assert os.stat(source + "/f.again").st_ino == info.st_ino and info.st_nlink == 2
    assert os.readlink(source + "/f.link") == "/etc/passwd" and os.lstat(source + "/f.link").st_gid == 6
    assert stat.S_ISFIFO(os.stat(source + "/f.fifo").st_mode) and stat.S_IMODE(os.stat(source + "/f.fifo").st_mode) == 0o622
    assert os.stat(source + "/f.null").st_rdev == os.makedev(1, 3)
    assert not {"f.whiteout", "f.sock"} & set(os.listdir(source))
    top = os.stat(source)
    assert (top.st_uid, top.st_gid, stat.S_IMODE(top.st_mode), top.st_mtime_ns) == (33, 34, 0o3770, 10**18 + 9)


def test_holes_stay_holes(engine):
    def sparse(path):
        with open(path, "wb") as file:
            file.truncate(1 << 40)
            file.seek(1 << 39)
            file.write(b"middle")

    layer(engine[0], LOW, {"d/f": sparse, "d/empty": ""})
    os.truncate(f"{engine[0].layer(LOW)}/d/empty", 1 << 40)
    source = make(engine, "data:/d", [LOW])[0]["source"]
    info = os.stat(source + "/f")
    assert info.st_size == 1 << 40 and info.st_blocks < 100 and os.stat(source + "/empty").st_blocks == 0
    with open(source + "/f", "rb") as file:
        file.seek(1 << 39)
        assert file.read(7) == b"middle\0"


@as_root
def test_layers_are_merged_and_nothing_stays_mounted(engine):
    paths, _ = engine
    layer(paths, LOW, {"d/gone": "1", "d/low": "1", "d/both": "low"})
    layer(paths, HIGH, {"d/both": "high", "d/gone": lambda path: os.mknod(path, stat.S_IFCHR, 0)})
    with open("/proc/self/mountinfo") as file:
        before = file.read()
    source = make(engine, "data:/d", [LOW, HIGH])[0]["source"]
    assert sorted(os.listdir(source)) == ["both", "low"] and read(source + "/both") == "high"
    with open("/proc/self/mountinfo") as file:
        assert file.read() == before


def test_two_makers_of_one_volume(engine):
    paths, db = engine
    layer(paths, LOW, {f"d/{number}": "x" * 1000 for number in range(200)})
    errors = []

    def go():
        own = Database(paths.database)
        try:
            volumes.make(own, paths, volumes.plan(paths, ["data:/d"], [])[1], [LOW])
        except BaseException as error:  # noqa: BLE001 - told below
            errors.append(error)
        own.close()

    threads = [threading.Thread(target=go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and os.listdir(paths.root + "/volumes") == ["data"]
    assert len(os.listdir(volumes.data(paths, "data"))) == 200 and len(rows.every(db)) == 1


def test_what_a_killed_command_left_is_swept_and_what_is_in_use_is_not(engine):
    paths, _ = engine
    for name in ("dead", "busy"):
        os.makedirs(f"{paths.root}/volumes/.tmp-{name}/_data/x")
    held = os.open(f"{paths.root}/volumes/.tmp-busy", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert volumes.sweep(paths) == [".tmp-dead"]
    assert os.listdir(paths.root + "/volumes") == [".tmp-busy"]
    os.close(held)
    make(engine, "data:/d", [])
    assert os.listdir(paths.root + "/volumes") == ["data"]


def test_a_volume_that_cannot_be_filled_is_not_left(engine):
    paths, db = engine

    def deep(path):
        os.makedirs(path)
        fd = os.open(path, os.O_RDONLY)
        for _ in range(copyup.DEPTH_MAX + 2):
            os.mkdir("d", dir_fd=fd)
            below = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(fd)

    layer(paths, LOW, {"d/x": deep})
    with pytest.raises(RuntimeFailure, match="nested deeper than 256"):
        make(engine, "data:/d", [LOW])
    assert os.listdir(paths.root + "/volumes") == [] and rows.every(db) == []


@as_root
def test_a_full_disk_is_one_clear_line(engine, tmp_path):
    paths, db = engine
    layer(paths, LOW, {"d/x": "x" * 3_000_000})
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", paths.root + "/volumes"], check=True)
    try:
        with pytest.raises(RuntimeFailure, match=r"^cannot make the volume data: no space left on device$"):
            make(engine, "data:/d", [LOW])
        assert os.listdir(paths.root + "/volumes") == [] and rows.every(db) == []
    finally:
        subprocess.run(["umount", paths.root + "/volumes"], check=True)


def test_a_missing_host_directory_is_made(engine, tmp_path):
    make(engine, f"{tmp_path}/new/dir:/d", [])
    assert os.path.isdir(f"{tmp_path}/new/dir")
    make(engine, f"{tmp_path}/new/dir:/d", [])
    with pytest.raises(UsageError, match=r"^error while creating mount source path '/proc/nowhere/x': mkdir /proc/nowhere"):
        make(engine, "/proc/nowhere/x:/d", [])


@as_root
def test_option_u_gives_files_to_the_user(engine, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("host")
    (tmp_path / "h" / "sub").mkdir(parents=True)
    (tmp_path / "h" / "sub" / "f").write_text("x")
    os.symlink(outside, tmp_path / "h" / "link")
    with pytest.raises(NotSupported, match="option U"):
        make(engine, f"{tmp_path}/h:/d:U", [])
    make(engine, f"{tmp_path}/h:/d:U", [], user=(1000, 1001))
    assert {os.lstat(f"{tmp_path}/h/{name}").st_uid for name in ("", "sub", "sub/f", "link")} == {1000}
    assert outside.stat().st_uid == 0
    with pytest.raises(UsageError, match="cannot change the owner of /etc"):
        make(engine, "/etc:/d:U", [], user=(1000, 1000))


def test_fill_tells_when_there_is_nothing(engine, tmp_path):
    layer(engine[0], LOW, {"x": "file"})
    root = copyup.open_image([engine[0].layer(LOW)])
    target = os.open(tmp_path, os.O_RDONLY)
    assert [copyup.fill(root, path, target) for path in ("/none", "/x", "/x/y")] == [False] * 3
    os.close(target)
    close(root)
