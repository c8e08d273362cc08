"""Who is told a secret: CVE-2019-10214, CVE-2020-15157, CVE-2021-41092, CVE-2026-33540, and where a registry may send us."""

import base64
import json

import pytest

from support.puller import Puller
from support.registry import Answer, FakeRegistry, Image, digest, entry, layer
from utsuwa.errors import RegistryError
from utsuwa.image import auth, registry as client
from utsuwa.spec.reference import parse

pytestmark = pytest.mark.root_only("pulls into a store of this process's own")
SECRET = base64.b64encode(b"user:pa:ss").decode()


@pytest.fixture
def fake():
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def other():
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def puller(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "_BACKOFF", (0.0,) * 5)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    puller = Puller(tmp_path)

    def login(*hosts):
        (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"auth": SECRET} for host in hosts}, "credsStore": "evil-helper"}))

    puller.login = login
    yield puller
    assert puller.clean()
    puller.close()


@pytest.fixture
def image():
    return Image(layer(entry("a", b"1")))


def guard(fake, expected, challenge):
    """Every route of `fake` first wants the Authorization header to be `expected`."""
    for path, answer in list(fake.routes.items()):
        fake.routes[path] = lambda request, answer=answer: answer if request.headers.get("Authorization") == expected else Answer(b"", 401, WWW_Authenticate=challenge)


def told(fake):
    return {headers["Authorization"] for _, headers in fake.seen if "Authorization" in headers}


def test_an_anonymous_token(fake, other, puller, image):
    reference = fake.add("x", image)
    guard(fake, "Bearer t0k3n", f'Bearer realm="http://{other.address}/token",service="s",scope="repository:x:pull,push"')
    other.routes["/token"] = Answer(b'{"token": "t0k3n"}')
    puller.pull(reference)
    assert other.seen[0][0] == "/token?service=s&scope=repository%3Ax%3Apull" and told(other) == set()
    assert told(fake) == {"Bearer t0k3n"}


def test_basic_for_this_host_only(fake, other, puller, image):
    puller.login(fake.address)
    reference = fake.add("x", image)
    guard(fake, "Basic " + SECRET, "Basic realm=x")
    puller.pull(reference)
    second = other.add("x", image)
    guard(other, "Basic " + SECRET, "Basic realm=x")
    puller.fails(second, RegistryError, f"wants credentials, and there are none for it; log in with: docker login {other.address}")
    assert told(other) == set()


def test_credentials_are_not_sent_unasked(fake, puller, image):
    puller.login(fake.address)
    puller.pull(fake.add("x", image))
    assert told(fake) == set()


def test_a_realm_on_another_host_does_not_get_the_registrys_credentials(fake, other, puller, image):
    """CVE-2026-33540."""
    puller.login(fake.address)
    reference = fake.add("x", image)
    guard(fake, "Bearer t", f'Bearer realm="http://{other.address}/token"')
    other.routes["/token"] = Answer(b'{"access_token": "t"}')
    puller.pull(reference)
    assert told(other) == set()


def test_a_realm_on_the_same_host_gets_them(fake, puller, image):
    puller.login(fake.address)
    reference = fake.add("x", image)
    guard(fake, "Bearer t", f'Bearer realm="http://{fake.address}/token"')
    fake.routes["/token"] = Answer(b'{"token": "t"}')
    puller.pull(reference)
    assert told(fake) == {"Basic " + SECRET, "Bearer t"}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_host_carries_no_secret(fake, other, puller, image, status):
    """CVE-2020-15157: a blob kept elsewhere, whose host is told the registry's token."""
    puller.login(fake.address)
    reference = fake.add("x", image)
    blob = f"/v2/x/blobs/{digest(image.layer_blobs[0])}"
    other.routes["/cdn"] = Answer(image.layer_blobs[0])
    fake.routes[blob] = Answer(b"", status, Location=f"http://{other.address}/cdn?signed=1")
    guard(fake, "Basic " + SECRET, "Basic realm=x")
    puller.pull(reference)
    assert [path for path, _ in other.seen] == ["/cdn?signed=1"] and told(other) == set()


def test_a_401_from_another_host_is_not_answered(fake, other, puller, image):
    puller.login(fake.address, other.address)
    reference = fake.add("x", image)
    fake.routes[f"/v2/x/blobs/{digest(image.layer_blobs[0])}"] = Answer(b"", 307, Location=f"http://{other.address}/cdn")
    other.routes["/cdn"] = Answer(b"", 401, WWW_Authenticate="Basic realm=x")
    puller.fails(reference, RegistryError, "")
    assert told(other) == set()


def test_redirects_end(fake, puller, image):
    reference = fake.add("x", image)
    fake.routes["/v2/x/manifests/latest"] = Answer(b"", 302, Location="/v2/x/manifests/latest")
    puller.fails(reference, RegistryError, "redirects manifests/latest more than 5 times")


@pytest.mark.parametrize("location", ["", "file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x", "http://", "http://example.com/x", "//example.com/x", "http://a b/", "http://127.0.0.1\r\nX: y/"])
def test_redirects_to_what_is_no_place(fake, puller, image, location):
    reference = fake.add("x", image)

    def answer(request):
        request.wfile.write(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + location.replace("\r\n", "%0d%0a").encode() + b"\r\n\r\n")

    fake.routes["/v2/x/manifests/latest"] = answer
    puller.fails(reference, RegistryError, "regist")


@pytest.mark.parametrize("url", ["http://evil.example/x", "http://127.0.0.1/x", "https://127.0.0.1:443/x", "https://localhost/x", "https://[::1]/x", "file:///x", "https:///x", "https://user@127.0.0.1/x"])
def test_a_registry_elsewhere_cannot_send_us_to_loopback_or_plain_http(url):
    with pytest.raises(RegistryError, match="sends us to"):
        auth.check_target(url, "registry.example")


def test_where_it_may_send_us():
    assert auth.check_target("https://cdn.example/x", "registry.example") == "cdn.example"
    assert auth.check_target("https://cdn.example/x", "127.0.0.1:5000") == "cdn.example"
    with pytest.raises(RegistryError, match="plain HTTP is for loopback only"):
        auth.check_target("http://cdn.example/x", "127.0.0.1:5000")


@pytest.mark.parametrize(("netloc", "expected"), [
    ("127.0.0.1:5000", True), ("127.9.9.9", True), ("localhost", True), ("LOCALHOST:1", True), ("[::1]:5000", True), ("127.0.0.1.evil.example", False), ("localhost.evil.example", False),
    ("127.1", False), ("0.0.0.0", False), ("[::ffff:10.0.0.1]", False), ("10.0.0.1:5000", False), ("2130706433", False), ("", False),
])
def test_what_is_loopback(netloc, expected):
    assert auth.is_loopback(netloc) is expected


def test_plain_http_is_for_loopback_only():
    """CVE-2019-10214."""
    for text, scheme in (("127.0.0.1:5000/x", "http"), ("localhost/x", "http"), ("[::1]:5/x", "http"), ("registry.example/x", "https"), ("10.0.0.1:5000/x", "https"), ("busybox", "https")):
        assert client.Registry(parse(text))._scheme == scheme


def test_secrets_of_docker_hub_go_to_docker_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"auths": {"https://index.docker.io/v1/": {"auth": SECRET}, "https://ghcr.io": {"auth": SECRET}}}))
    hub = "registry-1.docker.io"
    assert auth.credentials_for("docker.io") == ("user", "pa:ss")
    assert auth.credentials_for_realm("docker.io", hub, "auth.docker.io") == ("user", "pa:ss")
    assert auth.credentials_for_realm("docker.io", hub, "auth.docker.io.evil.example") is None
    assert auth.credentials_for_realm("docker.io", hub, "evil.example") is None
    assert auth.credentials_for_realm("ghcr.io", "ghcr.io", "ghcr.io") == ("user", "pa:ss")
    assert auth.credentials_for_realm("evil.example", "evil.example", "auth.docker.io") is None
    assert auth.credentials_for("ghcr.io.evil.example") is None


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": {"H": {"auth": "!!!"}}}', '{"auths": {"H": {"auth": "bm9jb2xvbg=="}}}'])
def test_a_damaged_file_of_credentials(tmp_path, monkeypatch, text):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RegistryError, match="cannot read the credentials"):
        auth.credentials_for("H")


def test_a_helper_is_never_run(puller, fake, image, tmp_path, monkeypatch):
    """CVE-2021-41092, and an image must not choose programs of the host: `credsStore` is not looked at."""
    helper = tmp_path / "docker-credential-evil-helper"
    helper.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    puller.login()
    reference = fake.add("x", image)
    guard(fake, "Basic x", "Basic realm=x")
    puller.fails(reference, RegistryError, "wants credentials")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("challenge", ["", "Digest realm=x", "Bearer", "Bearer realm=", 'Bearer realm="http://example.com/token"', 'Bearer realm="file:///etc/passwd"', "Negotiate " + "x" * 5000, '="'])
def test_challenges_that_are_not_answered(fake, puller, image, challenge):
    reference = fake.add("x", image)
    guard(fake, "nothing will do", challenge)
    puller.fails(reference, RegistryError, "registry")


@pytest.mark.parametrize("answer", [b"", b"{", b"{}", b'{"token": 5}', b'{"token": "a\\r\\nX-Evil: 1"}', b'{"token": "\\u00e9"}', b" " * (2 << 20)])
def test_tokens_that_are_none(fake, puller, image, answer):
    reference = fake.add("x", image)
    guard(fake, "nothing will do", f'Bearer realm="http://{fake.address}/token"')
    fake.routes["/token"] = Answer(answer)
    with pytest.raises(Exception, match="malformed answer"):
        puller.pull(reference)
    assert puller.clean()


def test_a_token_that_does_not_help_is_asked_for_once(fake, puller, image):
    reference = fake.add("x", image)
    guard(fake, "nothing will do", f'Bearer realm="http://{fake.address}/token"')
    fake.routes["/token"] = Answer(b'{"token": "t"}')
    puller.fails(reference, RegistryError, "pull access denied for")
    assert len(fake.seen) <= 5
