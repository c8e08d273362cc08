"""Locks, stages, publishing and garbage, beside others at work and after a kill."""

import json
import os
import signal
import subprocess
import threading

import pytest

from support.puller import Puller
from support.registry import FakeRegistry, Image, digest, entry, layer
from utsuwa import ledger
from utsuwa.engine import images
from utsuwa.errors import Conflict, ImageError, NotFound
from utsuwa.image import fetch, store

pytestmark = pytest.mark.root_only("pulls into a store of this process's own")


@pytest.fixture
def fake():
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def puller(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    puller = Puller(tmp_path)
    yield puller
    ledger.arm("")
    puller.close()


@pytest.fixture
def image():
    return Image(layer(entry("etc/passwd", b"root:x:0:0\n"), entry("low", b"1" * 1000)), layer(entry("etc/group", b"root:x:0\n"), entry("high", b"2" * 1000)), config={"Cmd": ["x"]})


def test_a_lock_waits_and_leaves_no_file(puller):
    order = []

    def second():
        with store.Lock(puller.paths, "image-x") as lock:
            order.append(("second", lock.waited))

    with store.Lock(puller.paths, "image-x") as lock:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.1)
        order.append(("first", lock.waited))
    thread.join()
    assert order == [("first", False), ("second", True)]
    assert os.listdir(puller.paths.run + "/locks") == []


def test_a_lock_under_contention_is_held_by_one(puller):
    inside, most = [], []

    def work():
        for _ in range(20):
            with store.Lock(puller.paths, "index"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1} and len(most) == 120


def test_a_pull_and_what_it_says(puller, fake, image):
    reference = fake.add("a/b", image, tag="v1")
    record = puller.pull(reference)
    short = [digest(blob)[7:19] for blob in image.layer_blobs]
    assert puller.lines[0] == "v1: Pulling from a/b"
    assert sorted(puller.lines[1:5]) == sorted(f"{name}: {what}" for name in short for what in ("Pulling fs layer", "Pull complete"))
    assert puller.lines[5:] == [f"Digest: {digest(image.manifest)}", f"Status: Downloaded newer image for {reference}"]
    assert (record.passwd, record.group, record.config["Cmd"], record.name) == (b"root:x:0:0\n", b"root:x:0\n", ["x"], reference)
    puller.pull(reference)
    assert puller.lines == ["v1: Pulling from a/b", f"Digest: {digest(image.manifest)}", f"Status: Image is up to date for {reference}"]
    assert puller.clean()
    assert images.resolve(puller.context, reference).id == record.id == images.resolve(puller.context, record.id[:15]).id


def test_the_store_is_an_oci_layout(puller, fake, image, tmp_path):
    puller.pull(fake.add("x", image))
    done = subprocess.run(["skopeo", "--insecure-policy", "copy", "--quiet", f"oci:{puller.paths.root}:{fake.address}/x:latest", f"dir:{tmp_path}/out"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out" / "manifest.json", "rb") as file:
        assert json.load(file)["layers"] == image.manifest_dict["layers"]


def test_a_shared_layer_is_taken_once_and_outlives_one_of_its_images(puller, fake, image):
    base = layer(entry("etc/passwd", b"root:x:0:0\n"), entry("low", b"1" * 1000))
    other = Image(base, layer(entry("other", b"3")))
    first, second = fake.add("x", image), fake.add("y", other)
    puller.pull(first)
    record = puller.pull(second)
    assert f"{digest(other.layer_blobs[0])[7:19]}: Already exists" in puller.lines
    images.remove(puller.context, first)
    assert all(store.has_layer(puller.paths, chain) for chain in record.layers) and store.has_blob(puller.paths, digest(other.layer_blobs[0]))
    assert not store.has_blob(puller.paths, digest(image.layer_blobs[1])) and puller.clean()
    images.remove(puller.context, second)
    assert os.listdir(puller.paths.root + "/layers") == os.listdir(puller.paths.root + "/blobs/sha256") == os.listdir(puller.paths.root + "/trash") == []


def test_an_opaque_root_hides_the_layers_below(puller, fake):
    record = puller.pull(fake.add("x", Image(layer(entry("etc/passwd", b"old")), layer(entry(".wh..wh..opq"), entry("new")), layer(entry("top")))))
    assert len(record.layers) == 2 and record.passwd is None
    assert puller.clean()


def test_a_later_layer_decides_about_accounts(puller, fake):
    for number, (top, expected) in enumerate(((entry("etc/passwd", b"new"), b"new"), (entry("etc/.wh.passwd"), None), (entry(".wh.etc"), None), (entry("etc", b"a file"), None), (entry("other"), b"old"))):
        assert puller.pull(fake.add(f"x{number}", Image(layer(entry("etc/passwd", b"old")), layer(top)))).passwd == expected


def test_two_pulls_at_once_download_once(puller, fake, image):
    reference = fake.add("x", image)
    results = []
    others = [Puller(puller.paths.root.rpartition("/")[0]) for _ in range(3)]
    threads = [threading.Thread(target=lambda other=other: results.append(images.resolve(other.context, reference).id)) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        other.close()
    assert len(set(results)) == 1 and len(results) == 3
    assert len([path for path, _ in fake.seen if "/blobs/" in path]) == 3
    assert puller.clean()


POINTS = ("pull:blob#1", "pull:blob#4", "pull:layer#1", "pull:layer#2", "pull:rows#1", "pull:sync#1")


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_step_the_next_pull_works_and_nothing_is_left(puller, fake, image, point, tmp_path):
    reference = fake.add("x", image)
    pid = os.fork()
    if not pid:
        try:
            ledger.arm(f"engine:{point}=kill")
            images.pull(Puller(tmp_path).context, reference)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert store.leftovers(puller.paths, puller.db)
    record = puller.pull(reference)
    assert all(store.has_layer(puller.paths, chain) for chain in record.layers)
    store.sweep(puller.paths, puller.db)
    assert puller.clean() and images.resolve(puller.context, reference).id == record.id


@pytest.mark.parametrize("point", POINTS)
def test_a_failing_step_is_one_line_and_leaves_nothing(puller, fake, image, point):
    reference = fake.add("x", image)
    ledger.arm(f"engine:{point}=ENOSPC")
    with pytest.raises(ImageError, match=rf"^cannot pull {reference}: no space left on device in "):
        puller.pull(reference)
    ledger.arm("")
    store.sweep(puller.paths, puller.db)
    assert puller.clean() and images.listing(puller.context) == []


@pytest.mark.parametrize("point", ["rmi:blob#1", "rmi:blob#3", "rmi:layer#1", "rmi:layer#2"])
def test_killed_while_removing(puller, fake, image, point, tmp_path):
    reference = fake.add("x", image)
    puller.pull(reference)
    pid = os.fork()
    if not pid:
        try:
            ledger.arm(f"engine:{point}=kill")
            images.remove(Puller(tmp_path).context, reference)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    store.sweep(puller.paths, puller.db)
    assert puller.clean() and images.listing(puller.context) == []
    puller.pull(reference)
    assert puller.clean()


def test_a_sweep_spares_what_is_at_work(puller):
    with store.Stage(puller.paths) as stage, store.Lock(puller.paths, "layer-x"):
        stage.write_blob(digest(b"x"), b"x")
        assert store.leftovers(puller.paths, puller.db) == []
        store.sweep(puller.paths, puller.db)
        assert stage.has_blob(digest(b"x"))
    assert puller.clean()


def test_leftovers_are_named_and_swept(puller):
    root = puller.paths.root
    os.makedirs(f"{root}/layers/.tmp-dead/x")
    os.makedirs(f"{root}/layers/{'0' * 64}/fs")
    os.makedirs(f"{root}/blobs/sha256")
    for path in (f"{root}/blobs/sha256/{'1' * 64}", f"{root}/trash/thing", f"{puller.paths.run}/locks/layer-x.lock"):
        with open(path, "w", encoding="ascii"):
            pass
    assert len(store.leftovers(puller.paths, puller.db)) == 5
    store.sweep(puller.paths, puller.db)
    assert puller.clean()


def test_files_that_vanish_before_the_rows_are_fetched_again(puller, fake, image, monkeypatch):
    reference = fake.add("x", image)
    puller.pull(reference)
    real, calls = store.Stage.publish, []

    def publish(self, digests, chains):
        if not calls:
            calls.append(1)
            os.unlink(store.blob_path(puller.paths, digests[-1]))
        return real(self, digests, chains)

    monkeypatch.setattr(store.Stage, "publish", publish)
    puller.pull(reference)
    assert calls and all(store.has_blob(puller.paths, digest(blob)) for blob in image.layer_blobs) and puller.clean()


def test_rmi_as_docker_does_it(puller, fake, image):
    one, two = fake.add("x", image), fake.add("x", image, tag="two")
    elsewhere = fake.add("y", image)
    for reference in (one, two, elsewhere):
        record = puller.pull(reference)
    manifest, identity = digest(image.manifest), record.id
    with pytest.raises(Conflict, match=rf"^conflict: unable to delete {identity[7:19]} .must be forced. - image is referenced in multiple repositories$"):
        images.remove(puller.context, identity)
    assert images.remove(puller.context, one) == [f"Untagged: {one}"]
    assert images.remove(puller.context, two) == [f"Untagged: {two}", f"Untagged: {fake.address}/x@{manifest}"]
    lines = images.remove(puller.context, identity[7:15])
    assert lines[:3] == [f"Untagged: {elsewhere}", f"Untagged: {fake.address}/y@{manifest}", f"Deleted: {identity}"]
    assert [line[:16] for line in lines[3:]] == ["Deleted: sha256:"] * 2 and lines[3] != lines[4]
    with pytest.raises(NotFound, match="no such image"):
        images.remove(puller.context, one)
    assert puller.clean()


def test_rmi_of_an_image_in_use(puller, fake, image):
    reference = fake.add("x", image)
    record = puller.pull(reference)
    container = "c0ffee" + "0" * 58
    with puller.db.write():
        puller.db.do("INSERT INTO container VALUES (?,'n',?,'',0,'up',0,0,'',x'')", container, record.id)
        puller.db.do("INSERT INTO container_layer VALUES (?,?)", container, record.layers[0])
    short = record.id[7:19]
    with pytest.raises(Conflict) as caught:
        images.remove(puller.context, reference)
    assert str(caught.value) == f'conflict: unable to remove repository reference "{reference}" (must force) - container c0ffee000000 is using its referenced image {short}'
    with pytest.raises(Conflict, match=rf"unable to delete {short} .must be forced. - image is being used by stopped container c0ffee000000$"):
        images.remove(puller.context, record.id)
    os.makedirs(puller.paths.container(container))
    with open(puller.paths.container(container) + "/lock", "w", encoding="ascii") as file:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match=rf"unable to delete {short} .cannot be forced. - image is being used by running container c0ffee000000$"):
            images.remove(puller.context, record.id, force=True)
        assert images.remove(puller.context, reference, force=True) == [f"Untagged: {reference}", f"Untagged: {reference.rpartition(':')[0]}@{digest(image.manifest)}"]
    assert images.remove(puller.context, record.id, force=True)[0] == f"Deleted: {record.id}"
    assert store.has_layer(puller.paths, record.layers[0]) and not store.has_layer(puller.paths, record.layers[1])


def test_a_digest_is_never_a_path(puller):
    for text in ("sha256:../../x", "../x", "sha256:", ""):
        with pytest.raises(ValueError, match=r".*"):
            store.blob_path(puller.paths, text)


def test_a_growing_file_is_read_to_its_error(tmp_path):
    fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    growing = fetch.Growing(fd)
    growing.append(b"abc")
    seen = growing.chunks()
    assert next(seen) == b"abc"
    growing.finish(ImageError("why"))
    with pytest.raises(ImageError, match="why"):
        next(seen)
