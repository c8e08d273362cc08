"""Hostile manifests and indexes: GHSA-5j5w-g665-5m35, CVE-2024-3727, CVE-2023-25153, and answers that are none."""

import json
import time

import pytest

from support.puller import Puller
from support.registry import OCI, Answer, FakeRegistry, Image, digest, entry, index, layer
from utsuwa.errors import ImageError, IntegrityError, NotFound, RegistryError
from utsuwa.image import registry as client
from utsuwa.image.document import wanted_platforms

pytestmark = pytest.mark.root_only("pulls into a store of this process's own")


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
    return Image(layer(entry("a", b"1")))


def test_a_manifest_of_two_types(fake, puller, image):
    both = json.dumps({**image.manifest_dict, "manifests": [image.descriptor()]}).encode()
    puller.fails(fake.add("x", image, manifest=both), ImageError, "both an image and an index")


def test_a_manifest_that_says_it_is_an_index(fake, puller, image):
    puller.fails(fake.add("x", image, media_type=OCI + "index.v1+json"), ImageError, "wrong media type")


def test_a_manifest_of_100_megabytes(fake, puller, image):
    reference = fake.add("x", image)
    fake.routes["/v2/x/manifests/latest"] = Answer((b" " * (1 << 20) for _ in range(100)), Content_Type=OCI + "manifest.v1+json")
    started = time.monotonic()
    puller.fails(reference, RegistryError, "more than 4194304 bytes")
    assert time.monotonic() - started < 5


def test_a_manifest_without_end(fake, puller, image):
    reference = fake.add("x", image)
    fake.routes["/v2/x/manifests/latest"] = Answer(iter(lambda: b" " * 65536, b""), length=1 << 40, Content_Type=OCI + "manifest.v1+json")
    puller.fails(reference, RegistryError, "more than 4194304 bytes")


def test_an_index_that_points_at_itself(fake, puller, image):
    """By digest it cannot; a registry that lies about the digest is caught at the first step."""
    itself = index({"mediaType": OCI + "index.v1+json", "digest": digest(b"x"), "size": 300, "platform": {"os": "linux", "architecture": "amd64"}})
    reference = fake.add("x", image, manifest=itself, media_type=OCI + "index.v1+json")
    fake.routes[f"/v2/x/manifests/{digest(b'x')}"] = Answer(itself, Content_Type=OCI + "index.v1+json")
    puller.fails(reference, IntegrityError, "is not what was promised")


def test_indexes_within_indexes(fake, puller, image):
    inner, kind = image.manifest, "manifest"
    for _ in range(6):
        descriptor = {"mediaType": OCI + kind + ".v1+json", "digest": digest(inner), "size": len(inner), "platform": image.descriptor()["platform"]}
        inner, kind = index(descriptor), "index"
        reference = fake.add("x", image, manifest=inner, media_type=OCI + "index.v1+json")
    fake.add("x", image, tag="plain")
    puller.fails(reference, ImageError, "index of indexes")


def test_an_index_whose_manifest_is_another(fake, puller, image):
    other = Image(layer(entry("evil")))
    fake.add("x", image, tag="plain")
    reference = fake.add("x", image, manifest=index(image.descriptor()), media_type=OCI + "index.v1+json")
    fake.routes[f"/v2/x/manifests/{digest(image.manifest)}"] = Answer(other.manifest, Content_Type=OCI + "manifest.v1+json")
    puller.fails(reference, IntegrityError, "is not what was promised")


def test_a_digest_that_is_answered_with_something_else(fake, puller, image):
    wanted = digest(b"what was asked for")
    fake.add("x", image)
    fake.routes[f"/v2/x/manifests/{wanted}"] = Answer(image.manifest, Content_Type=OCI + "manifest.v1+json")
    puller.fails(f"{fake.address}/x@{wanted}", IntegrityError, "is not what was promised")


@pytest.mark.parametrize("header", [digest(b"other"), "sha256:../../x", "nonsense"])
def test_a_header_with_another_digest(fake, puller, image, header):
    reference = fake.add("x", image)
    fake.routes["/v2/x/manifests/latest"].headers["Docker-Content-Digest"] = header
    puller.fails(reference, IntegrityError, "is not what was promised")


@pytest.mark.parametrize("value", ["sha256:../../../../etc/cron.d/evil", "sha256:" + "/" * 64, "../x", "sha256:" + "A" * 64, "md5:" + "0" * 32, "", None, 5])
def test_a_digest_that_is_a_path(fake, puller, image, value):
    """CVE-2024-3727."""
    for place in ("layers", "config"):
        changed = json.loads(image.manifest)
        (changed["layers"][0] if place == "layers" else changed["config"])["digest"] = value
        puller.fails(fake.add("x", image, manifest=json.dumps(changed).encode()), ImageError, "is not a digest")


@pytest.mark.parametrize("body", [b"", b"<html>login</html>", b"{", b"[]", b"null", b"\xff\xff", b"[" * 200_000, b"{}"])
def test_malformed_answers(fake, puller, image, body):
    reference = fake.add("x", image)
    fake.routes["/v2/x/manifests/latest"] = Answer(body, Content_Type=OCI + "manifest.v1+json")
    puller.fails(reference, ImageError, "malformed answer")


def test_a_page_of_html(fake, puller, image):
    reference = fake.add("x", image)
    fake.routes["/v2/x/manifests/latest"] = Answer(b"<html>", Content_Type="text/html; charset=utf-8")
    puller.fails(reference, ImageError, "malformed answer")


def test_no_image_for_this_machine(fake, puller):
    other = Image(layer(entry("a")), architecture="s390x")
    puller.fails(fake.add("x", other), ImageError, f"no image for {wanted_platforms()[0]} in ")
    indexed = fake.add("x", other, manifest=index(other.descriptor("s390x")), media_type=OCI + "index.v1+json")
    puller.fails(indexed, ImageError, "it has linux/s390x")


def test_a_configuration_that_is_not_the_promised_one(fake, puller, image):
    reference = fake.add("x", image)
    path = f"/v2/x/blobs/{digest(image.config)}"
    fake.routes[path] = Answer(image.config.replace(b"linux", b"minix"))
    puller.fails(reference, IntegrityError, "configuration")
    fake.routes[path] = Answer(image.config + b" ")
    puller.fails(reference, IntegrityError, "instead of")


@pytest.mark.parametrize("config", [{"Env": ["A=\0"]}, {"Cmd": [["sh"]]}, {"User": {"a": 1}}, {"Labels": {"x": None}}, "x"])
def test_configurations_that_are_not_what_they_should_be(fake, puller, config):
    puller.fails(fake.add("x", Image(layer(entry("a")), config=config)), ImageError, "configuration of")


def test_unknown_images_and_refusals(fake, puller):
    puller.fails(f"{fake.address}/nothing", NotFound, "not found: name unknown: not here")
    for status, kind, why in ((403, RegistryError, "pull access denied for"), (418, RegistryError, "answers 418"), (503, RegistryError, "answers 503"), (429, RegistryError, "answers 429")):
        fake.routes["/v2/x/manifests/latest"] = Answer(b'{"errors":[{"code":"DENIED","message":"no\\u001b[31m\\nway"}]}', status)
        text = puller.fails(f"{fake.address}/x", kind, why)
        assert "\x1b" not in text


def test_errors_of_any_shape(fake, puller):
    for body in (b"", b"[]", b'{"errors":[]}', b'{"errors":{"a":1}}', b'{"errors":[1]}', b"\xff" * 10_000, b"x" * 5_000_000):
        fake.routes["/v2/x/manifests/latest"] = Answer(body, 404)
        puller.fails(f"{fake.address}/x", NotFound, "not found")


def test_a_registry_that_hangs_up(fake, puller):
    fake.routes["/v2/x/manifests/latest"] = lambda request: None
    puller.fails(f"{fake.address}/x", RegistryError, "cannot reach registry")


def test_nobody_is_there(puller):
    puller.fails("127.0.0.1:1/x", RegistryError, "cannot reach registry 127.0.0.1:1: connection refused")
    puller.fails("no-such-host.invalid/x", RegistryError, "cannot reach registry no-such-host.invalid: no such host")
