"""Manifests, indexes, configurations and platforms."""

import json

import pytest

from support.registry import OCI, Image, digest, entry, index, layer
from utsuwa.errors import ImageError, IntegrityError
from utsuwa.image import document

AMD64 = ["linux/amd64", "linux/386"]


@pytest.fixture
def image():
    return Image(layer(entry("a")), layer(entry("b")), architecture="amd64", config={"Env": ["A=b"], "Cmd": ["x"], "Unknown": 1})


def test_an_oci_manifest(image):
    found = document.parse_manifest(image.manifest, OCI + "manifest.v1+json", "x")
    assert [item.digest for item in found.layers] == [digest(blob) for blob in image.layer_blobs]
    assert found.config.size == len(image.config)


def test_a_docker_manifest(image):
    docker = {**image.manifest_dict, "mediaType": document.MANIFEST_TYPES[1]}
    docker["config"] = {**docker["config"], "mediaType": document.CONFIG_TYPES[1]}
    docker["layers"] = [{**item, "mediaType": document.DOCKER + "image.rootfs.diff.tar.gzip"} for item in docker["layers"]]
    assert len(document.parse_manifest(json.dumps(docker).encode(), document.MANIFEST_TYPES[1], "x").layers) == 2


def change(image, **fields):
    return json.dumps({**image.manifest_dict, **fields}).encode()


@pytest.mark.parametrize(("fields", "kind", "why"), [
    ({"manifests": []}, "", "both an image and an index"),
    ({"mediaType": OCI + "index.v1+json"}, "", "wrong media type"),
    ({}, document.MANIFEST_TYPES[1], "two media types"),
    ({}, OCI + "index.v1+json", "wrong media type"),
    ({}, "text/html", "wrong media type"),
    ({"schemaVersion": 1}, "", "schema 1"),
    ({"layers": {}}, "", "not a list"),
    ({"layers": [1]}, "", "not an object"),
    ({"layers": [{"digest": "sha256:../../../etc/passwd", "size": 1}]}, "", "is not a digest"),
    ({"layers": [{"digest": digest(b""), "size": -1}]}, "", "size -1"),
    ({"layers": [{"digest": digest(b""), "size": True}]}, "", "size True"),
    ({"layers": [{"digest": digest(b""), "size": 1 << 60}]}, "", "size"),
    ({"layers": [{"digest": digest(b""), "size": 1, "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "urls": ["http://evil"]}]}, "", "media type"),
    ({"layers": [{"digest": digest(b""), "size": 1, "mediaType": "text/plain"}]}, "", "media type"),
    ({"config": {"digest": digest(b""), "size": 1, "mediaType": "application/vnd.cncf.helm.config.v1+json"}}, "", "not a container image"),
    ({"config": {"digest": digest(b""), "size": 1 << 30, "mediaType": document.CONFIG_TYPES[0]}}, "", "at most"),
])
def test_a_manifest_that_is_refused(image, fields, kind, why):
    with pytest.raises(ImageError) as caught:
        document.parse_manifest(change(image, **fields), kind, "x")
    assert why in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b'{"layers": ' + b"9" * 10_000 + b"}", b"{}"])
def test_what_is_not_a_manifest_at_all(data):
    with pytest.raises(ImageError, match="malformed answer"):
        document.parse_manifest(data, "", "x")


def test_too_many_layers_and_manifests(image):
    with pytest.raises(ImageError, match="at most 500"):
        document.parse_manifest(change(image, layers=image.manifest_dict["layers"] * 251), "", "x")
    with pytest.raises(ImageError, match="at most 1000"):
        document.parse_manifest(index(*[image.descriptor()] * 1001), "", "x")


def test_the_platform_is_chosen(image):
    arm = {**image.descriptor("arm"), "digest": digest(b"arm"), "platform": {"os": "linux", "architecture": "arm", "variant": "v7"}}
    amd = {**image.descriptor("amd64")}
    nothing = {**image.descriptor("unknown"), "platform": {"os": "unknown", "architecture": "unknown"}}
    found = document.parse_manifest(index(nothing, arm, amd), "", "x")
    assert document.choose(found, AMD64, "x").digest == amd["digest"]
    assert document.choose(found, document.wanted_platforms("", "armv7l"), "x").digest == digest(b"arm")
    with pytest.raises(ImageError, match=r"^no image for linux/s390x in x: it has linux/amd64, linux/arm/v7$"):
        document.choose(found, ["linux/s390x"], "x")


def test_platforms():
    assert document.wanted_platforms("", "x86_64") == AMD64
    assert document.wanted_platforms("", "aarch64") == ["linux/arm64"]
    assert document.wanted_platforms("linux/arm64/v8") == ["linux/arm64"] and document.wanted_platforms("arm") == ["linux/arm/v7"]
    for text in ("linux/", "a/b/c/d", "linux/am\n64", "/"):
        with pytest.raises(ImageError, match="is not a platform"):
            document.wanted_platforms(text)


def test_a_configuration(image):
    found = document.parse_config(image.config, 2, AMD64, "x")
    assert found.diffs == image.diffs and found.platform == "linux/amd64" and found.created == "2024-01-02T03:04:05Z"
    assert found.chains == [image.diffs[0][7:], digest(f"{image.diffs[0]} {image.diffs[1]}".encode())[7:]]
    assert found.config["Env"] == ["A=b"] and found.config["Entrypoint"] is None and "Unknown" not in found.config


@pytest.mark.parametrize(("config", "why"), [
    ({"Env": "A=b"}, "Env is not a list"), ({"Env": [1]}, "Env"), ({"Env": ["A=\0"]}, "Env"), ({"Env": ["=x"]}, "Env"), ({"Cmd": "sh"}, "Cmd"), ({"Cmd": ["\ud800"]}, "Cmd"),
    ({"WorkingDir": ["/"]}, "WorkingDir"), ({"User": 0}, "User"), ({"User": "a\0b"}, "User"), ({"Labels": {"a": 1}}, "Labels"), ({"Labels": []}, "Labels"), ({"Volumes": ["/x"]}, "Volumes"),
    ({"Healthcheck": {"Test": "x"}}, "Healthcheck"), ({"StopSignal": 9}, "StopSignal"), ({"Shell": [None]}, "Shell"), ([], "not an object"),
])
def test_a_configuration_that_is_refused(config, why):
    image = Image(layer(entry("a")), architecture="amd64")
    data = json.dumps({**json.loads(image.config), "config": config}).encode()
    with pytest.raises(ImageError) as caught:
        document.parse_config(data, 1, AMD64, "x")
    assert why in str(caught.value)


def test_a_configuration_for_another_machine_or_other_layers(image):
    with pytest.raises(ImageError, match=r"^no image for linux/arm64 in x: it has linux/amd64$"):
        document.parse_config(image.config, 2, ["linux/arm64"], "x")
    with pytest.raises(ImageError, match="x has 3 layers, and its configuration 2"):
        document.parse_config(image.config, 3, AMD64, "x")


def test_bytes_are_what_was_promised():
    good = document.Descriptor(digest(b"abc"), 3, "")
    assert document.verify(b"abc", good, "x") == b"abc"
    with pytest.raises(IntegrityError, match="4 bytes instead of 3"):
        document.verify(b"abcd", good, "x")
    with pytest.raises(IntegrityError, match="digest sha256:"):
        document.verify(b"abd", good, "x")
