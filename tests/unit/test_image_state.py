"""Images in the database: found by what a user types, inserted and forgotten."""

import pytest

from utsuwa.errors import Conflict
from utsuwa.spec.image import CONFIG_DEFAULTS, ImageRecord, empty_config
from utsuwa.state import images
from utsuwa.state.db import Database
from utsuwa.state.images import LayerRow

ID, OTHER = "sha256:" + "ab" * 32, "sha256:" + "ac" * 32
MANIFEST, INDEX = "sha256:" + "1" * 64, "sha256:" + "2" * 64
NAME = "docker.io/library/busybox:latest"


@pytest.fixture
def db(tmp_path):
    db = Database(str(tmp_path / "state.db"))
    yield db
    db.close()


def add(db, identity=ID, name=NAME, chains=("c1", "c2"), created="2024-01-01T00:00:00Z", manifest=MANIFEST, index=INDEX):
    record = ImageRecord(identity, manifest, "linux/amd64", list(chains), empty_config(), name=name, passwd=b"root:x:0:0\n")
    rows = [LayerRow(chain, "d" + chain, None, 10, "b" + chain) for chain in chains]
    return images.insert(db, record, rows, created, index, list)


def test_a_record_survives_the_database(db):
    assert add(db) == []
    found = images.find(db, "busybox")
    assert (found.id, found.manifest, found.platform, found.layers, found.name, found.passwd, found.group, found.host) == (
        ID, MANIFEST, "linux/amd64", ["c1", "c2"], NAME, b"root:x:0:0\n", None, False)
    assert set(found.config) == {key for key, _ in CONFIG_DEFAULTS} and found.config["Env"] == []
    with pytest.raises(ValueError, match="version"):
        ImageRecord.from_bytes(b"[\x01\x00\x00\x00i\xe7\x03\x00\x00")


@pytest.mark.parametrize("text", [
    "busybox", "busybox:latest", "docker.io/busybox", "library/busybox", ID, ID[7:], ID[:20], ID[7:12], "ab", f"busybox@{INDEX}", f"busybox@{MANIFEST}", f"busybox:other@{INDEX}",
])
def test_what_finds_an_image(db, text):
    add(db)
    assert images.find(db, text).id == ID


@pytest.mark.parametrize("text", ["busybox:1", "other", "xyz", ID[:-1] + "0", f"other@{INDEX}", "AB", "sha256:", "", "a" * 65, "%", "b'; DROP TABLE image"])
def test_what_finds_none(db, text):
    add(db)
    assert images.find(db, text) is None


def test_a_prefix_of_two_is_ambiguous_and_a_name_wins_over_it(db):
    add(db)
    add(db, OTHER, "docker.io/library/a:latest")
    with pytest.raises(Conflict, match="several ids begin so"):
        images.find(db, "sha256:a")
    assert images.find(db, "a").id == OTHER
    assert images.find(db, "ac").id == OTHER


def test_a_name_moves_and_the_old_image_stays(db):
    add(db)
    add(db, OTHER, created="2025-01-01T00:00:00Z")
    rows = images.every(db)
    assert [(row.id, row.references) for row in rows] == [(OTHER, [(NAME, INDEX)]), (ID, [])]
    assert rows[0].size == 20


def test_where_files_are_missing_nothing_is_written(db):
    record = ImageRecord(ID, MANIFEST, "linux/amd64", [], empty_config(), name=NAME)
    assert images.insert(db, record, [], "", INDEX, lambda: ["gone"]) == ["gone"]
    assert images.every(db) == [] and images.find(db, "busybox") is None


def test_what_another_image_or_container_needs_is_not_forgotten(db):
    add(db, chains=("c1", "c2", "c3"))
    add(db, OTHER, "docker.io/library/a:latest", chains=("c1",))
    with db.write():
        db.do("INSERT INTO container VALUES ('x','n',?,'',0,'up',0,0,'',x'')", ID)
        db.do("INSERT INTO container_layer VALUES ('x','c2')")
    assert images.users(db, ID) == ["x"]
    with db.write():
        files = images.forget(db, ID)
    assert files.chains == ["c3"] and {ID, MANIFEST, INDEX, "bc3"} <= files.blobs
    assert images.known_chain(db, "c1") and images.known_chain(db, "c2") and not images.known_chain(db, "c3")
    assert images.known_blob(db, "bc1") and not images.known_blob(db, "bc3")
    with db.write():
        db.do("DELETE FROM container_layer")
        assert images.forget_layers(db, ["c1", "c2"]) == ["c2"]
