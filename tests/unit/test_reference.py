"""References: Docker's grammar and defaults, and nothing that is not in them."""

import hypothesis
import hypothesis.strategies as st
import pytest

from utsuwa.errors import UsageError
from utsuwa.spec.reference import is_digest, is_hex, parse

SHA = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(("text", "name", "familiar"), [
    ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
    ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
    ("user/app", "docker.io/user/app:latest", "user/app:latest"),
    ("docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
    ("index.docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
    ("library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
    ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
    ("localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app:latest"),
    ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
    ("127.0.0.1:5000/a/b:v1", "127.0.0.1:5000/a/b:v1", "127.0.0.1:5000/a/b:v1"),
    ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest"),
    ("UPPER/app", "UPPER/app:latest", "UPPER/app:latest"),
    ("ghcr.io/o/app:v-1_2.3", "ghcr.io/o/app:v-1_2.3", "ghcr.io/o/app:v-1_2.3"),
    ("a__b/c---d/e.f", "docker.io/a__b/c---d/e.f:latest", "a__b/c---d/e.f:latest"),
    (f"busybox@{SHA}", f"docker.io/library/busybox@{SHA}", f"busybox@{SHA}"),
    (f"busybox:1@{SHA}", f"docker.io/library/busybox@{SHA}", f"busybox:1@{SHA}"),
])
def test_what_a_name_stands_for(text, name, familiar):
    reference = parse(text)
    assert (reference.name, reference.familiar) == (name, familiar)
    assert parse(reference.name).name == name


@pytest.mark.parametrize(("text", "why"), [
    ("", "no repository name"), ("Busybox", "must be lowercase"), ("busybox:", "tag ''"), ("busybox:-x", "tag '-x'"), ("busybox:" + "x" * 129, "tag"),
    ("a//b", "component ''"), ("/a", "component ''"), ("a/", "component ''"), ("-a", "component '-a'"), ("a_-b", "component"), ("a...b", "component"), ("a___b", "component"),
    ("../../etc", "host name"), ("a/../b", "component '..'"), ("busybox@sha256:12", "digest"), (f"busybox@{SHA.upper()}", "digest"), ("busybox@md5:" + "0" * 32, "digest"),
    ("host.name:99999/a", "host name"), ("host.name:/a", "host name"), ("-x.y/a", "host name"), ("[::1/a", "host name"), ("a b", "component"), ("a\n", "component"), ("a\0b", "component"),
    ("ä", "component"), ("x" * 300, "more than 255"), ("0" * 64, "image id"), (f"busybox@{SHA}\n", "digest"),
])
def test_what_is_no_name(text, why):
    with pytest.raises(UsageError, match=r"^invalid reference format: ") as caught:
        parse(text)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value) and "\0" not in str(caught.value)


@hypothesis.given(st.text(max_size=40))
def test_any_text_is_a_name_or_an_error_and_never_a_path(text):
    try:
        reference = parse(text)
    except UsageError:
        return
    assert ".." not in reference.base.split("/") and "\0" not in reference.name and not reference.repository.startswith("/")
    assert parse(reference.name).name == reference.name


def test_digests_are_exact():
    assert is_digest(SHA) and is_digest("sha512:" + "0" * 128)
    for text in ("", "sha256:", SHA[:-1], SHA + "0", SHA.replace("a", "A"), "sha256:" + "../" * 21 + "a", "sha1:" + "0" * 40, SHA + "\n", " " + SHA):
        assert not is_digest(text)
    assert is_hex("0af") and not is_hex("") and not is_hex("0AF") and not is_hex("xyz")
