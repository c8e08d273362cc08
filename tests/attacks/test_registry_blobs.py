"""Hostile and broken blobs: wrong bytes, truncated and endless ones, dropped connections."""

import threading
import time

import pytest

from support.layers import tree
from support.puller import Puller
from support.registry import Answer, FakeRegistry, Image, digest, directory, entry, layer
from utsuwa.errors import ImageError, IntegrityError, RegistryError
from utsuwa.image import registry as client

pytestmark = pytest.mark.root_only("pulls into a store of this process's own")
CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def fake():
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def puller(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "_BACKOFF", (0.0,) * 5)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    puller = Puller(tmp_path)
    yield puller
    assert puller.clean()
    puller.close()


@pytest.fixture
def image():
    data = layer(directory("d"), entry("d/file", CONTENT))
    return Image(data, packed=[data])  # uncompressed, so that half of it is half of it


def blob_path(image, number=0):
    return f"/v2/x/blobs/{digest(image.layer_blobs[number])}"


def test_wrong_digest(fake, puller, image):
    reference = fake.add("x", image)
    wrong = bytearray(image.layer_blobs[0])
    wrong[2000] ^= 1
    fake.routes[blob_path(image)] = Answer(bytes(wrong))
    puller.fails(reference, IntegrityError, "is not what was promised: digest")


def test_garbage_is_told_as_a_wrong_digest(fake, puller, image):
    reference = fake.add("x", image)
    fake.routes[blob_path(image)] = Answer(b"g" * len(image.layer_blobs[0]))
    puller.fails(reference, IntegrityError, "is not what was promised: digest")


@pytest.mark.parametrize("more", [-1, 1, 1000])
def test_wrong_size(fake, puller, image, more):
    reference = fake.add("x", image)
    blob = image.layer_blobs[0]
    fake.routes[blob_path(image)] = Answer(blob[:more] if more < 0 else blob + b"x" * more)
    puller.fails(reference, IntegrityError, f"{len(blob) + more} bytes instead of {len(blob)}")


def test_wrong_size_without_a_length(fake, puller, image):
    reference = fake.add("x", image)
    fake.routes[blob_path(image)] = Answer(iter([image.layer_blobs[0], b"more"]))
    puller.fails(reference, IntegrityError, "longer than the")


def test_a_blob_without_end(fake, puller, image):
    reference = fake.add("x", image)
    fake.routes[blob_path(image)] = lambda request: Answer(iter(lambda: b"x" * 65536, b""))
    started = time.monotonic()
    puller.fails(reference, IntegrityError, "longer than the")
    assert time.monotonic() - started < 5


def test_a_layer_that_is_not_the_configurations(fake, puller, image):
    """The manifest's digest is right and the configuration promises other content: CVE-2025-11395's kin."""
    lying = Image(layer(entry("good")), packed=image.layer_blobs)
    puller.fails(fake.add("x", lying), IntegrityError, "unpacked, its digest is")


def test_a_layer_that_is_no_archive(fake, puller):
    data = b"not an archive" * 1000
    puller.fails(fake.add("x", Image(data, packed=[data])), ImageError, "not a tar archive")


def test_a_bad_layer_among_good_ones(fake, puller):
    image = Image(*[layer(entry(f"f{number}", bytes([number]) * 200_000)) for number in range(8)])
    reference = fake.add("x", image)
    fake.routes[blob_path(image, 5)] = Answer(b"g" * len(image.layer_blobs[5]))
    puller.fails(reference, IntegrityError, "is not what was promised")


def test_a_missing_blob(fake, puller, image):
    reference = fake.add("x", image)
    del fake.routes[blob_path(image)]
    puller.fails(reference, RegistryError, "but not all of it")


def dropping(image, piece, *, ranges=True, log=None):
    """Answer with so many bytes and hang up; honours Range or not."""
    blob = image.layer_blobs[0]

    def answer(request):
        asked = request.headers.get("Range", "")
        at = int(asked[6:-1]) if asked and ranges else 0
        if log is not None:
            log.append(asked)
        body = blob[at:at + piece] if ranges else blob[:piece * (len(log or []))]
        return Answer(body, 206 if at else 200, length=len(blob) - at, **({"Content_Range": f"bytes {at}-{len(blob) - 1}/{len(blob)}"} if at else {}))

    return answer


def test_a_dropped_connection_is_resumed(fake, puller, image):
    log = []
    reference = fake.add("x", image)
    fake.routes[blob_path(image)] = dropping(image, 300_000, log=log)
    record = puller.pull(reference)
    assert log == ["", "bytes=300000-", "bytes=600000-", "bytes=900000-"]
    assert tree(puller.paths.layer(record.layers[0])) == {"d": "dir", "d/file": CONTENT}


def test_a_server_without_ranges_starts_over(fake, puller, image):
    log = []
    reference = fake.add("x", image)
    fake.routes[blob_path(image)] = dropping(image, 400_000, ranges=False, log=log)
    record = puller.pull(reference)
    assert log[1] == "bytes=400000-"
    assert tree(puller.paths.layer(record.layers[0]))["d/file"] == CONTENT


def test_a_server_that_resumes_elsewhere(fake, puller, image):
    blob = image.layer_blobs[0]
    reference = fake.add("x", image)

    def answer(request):
        if request.headers.get("Range"):
            return Answer(blob[5:], 206, Content_Range=f"bytes 5-{len(blob) - 1}/{len(blob)}")
        return Answer(blob[:1000], length=len(blob))

    fake.routes[blob_path(image)] = answer
    puller.fails(reference, RegistryError, "at another place than asked")


def test_a_connection_that_never_holds(fake, puller, image):
    reference = fake.add("x", image)
    fake.routes[blob_path(image)] = lambda request: Answer(b"", 200, length=len(image.layer_blobs[0]))
    puller.fails(reference, RegistryError, "cannot download")


def test_a_drip_fed_blob(fake, puller, image, monkeypatch):
    monkeypatch.setattr(client, "GRACE_SECONDS", 0.3)
    monkeypatch.setattr(client, "SLOWEST", 1_000_000)
    monkeypatch.setattr(client, "CHUNK", 100)
    blob = image.layer_blobs[0]

    def drops():
        for at in range(0, len(blob), 100):
            time.sleep(0.02)
            yield blob[at:at + 100]

    reference = fake.add("x", image)
    fake.routes[blob_path(image)] = lambda request: Answer(drops(), length=len(blob))
    puller.fails(reference, RegistryError, "is too slow")


def test_a_stalled_layer_does_not_hold_up_the_error_of_another(fake, puller, monkeypatch):
    monkeypatch.setattr("utsuwa.image.fetch.PATIENCE", 0.1)
    image = Image(layer(entry("a", b"1" * 1000)), layer(entry("b", b"2" * 1000)))
    reference = fake.add("x", image)
    release = threading.Event()

    def stalls():
        yield b""
        release.wait(20)

    fake.routes[blob_path(image, 0)] = lambda request: Answer(stalls(), length=len(image.layer_blobs[0]))
    fake.routes[blob_path(image, 1)] = Answer(b"g" * len(image.layer_blobs[1]))
    started = time.monotonic()
    try:
        puller.fails(reference, IntegrityError, "is not what was promised")
        assert time.monotonic() - started < 5
    finally:
        release.set()


def test_one_blob_in_two_layers_comes_once(fake, puller):
    data = layer(entry("same", b"1"))
    reference = fake.add("x", Image(data, layer(entry("other", b"2")), data))
    assert len(puller.pull(reference).layers) == 3
    paths = [path for path, _ in fake.seen if "/blobs/" in path]
    assert len(paths) == len(set(paths))
