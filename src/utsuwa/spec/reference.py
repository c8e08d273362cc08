"""Image references: what a user types, and the one canonical name that the store keeps.

The grammar and the defaults are Docker's (the distribution project's `reference` package): `busybox` is
`docker.io/library/busybox:latest`. Hand-written checks, because `run` parses one reference and `re` costs more than all of them.
"""

from __future__ import annotations

from utsuwa.errors import UsageError

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
NAME_MAX = 255
TAG_MAX = 128
_LOWER_DIGIT = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_ALNUM = _LOWER_DIGIT | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_TAG = _ALNUM | frozenset("_.-")
_HEX = frozenset("0123456789abcdef")
_DIGEST_LENGTH = {"sha256": 64, "sha512": 128}


class Reference:
    """A parsed reference. `tag` is "" where only a digest was given, `digest` is "" where none was.

    `name` is canonical and is what the database keys on: a digest, where there is one, makes the tag irrelevant, as in Docker.
    `familiar` is what Docker prints: without `docker.io/` and `library/`.
    """

    __slots__ = ("digest", "registry", "repository", "tag")

    def __init__(self, registry: str, repository: str, tag: str = "", digest: str = "") -> None:
        self.registry, self.repository, self.tag, self.digest = registry, repository, tag, digest

    @property
    def base(self) -> str:
        """Registry and repository: `docker.io/library/busybox`."""
        return f"{self.registry}/{self.repository}"

    @property
    def name(self) -> str:
        return f"{self.base}@{self.digest}" if self.digest else f"{self.base}:{self.tag}"

    @property
    def familiar_base(self) -> str:
        """The repository as Docker shows it: `busybox`, `user/app`, `127.0.0.1:5000/busybox`."""
        if self.registry != DEFAULT_REGISTRY:
            return self.base
        return self.repository.removeprefix("library/") if self.repository.count("/") == 1 else self.repository

    @property
    def familiar(self) -> str:
        return self.familiar_base + (":" + self.tag if self.tag else "") + ("@" + self.digest if self.digest else "")

    def __repr__(self) -> str:
        return f"Reference({self.familiar})"


def is_digest(text: str) -> bool:
    """Whether `text` is exactly `sha256:` and 64, or `sha512:` and 128, lower-case hexadecimal digits. OCI image-spec, descriptor.md."""
    algorithm, colon, digits = text.partition(":")
    return bool(colon) and len(digits) == _DIGEST_LENGTH.get(algorithm, -1) and _HEX.issuperset(digits)


def is_hex(text: str) -> bool:
    """Whether `text` is one or more lower-case hexadecimal digits: it may be (the start of) an image id."""
    return bool(text) and _HEX.issuperset(text)


def parse(text: str) -> Reference:
    """Return the reference that `text` stands for, with Docker's defaults filled in. Raises UsageError `invalid reference format: …`."""
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise _bad(text, f"digest {digest!r} is not sha256: and 64, or sha512: and 128, lower-case hex digits")
    slash = rest.rfind("/")
    colon = rest.find(":", slash + 1)
    tag = ""
    if colon >= 0:
        rest, tag = rest[:colon], rest[colon + 1 :]
        if not _is_tag(tag):
            raise _bad(text, f"tag {tag!r} must be 1 to {TAG_MAX} letters, digits, '_', '.' or '-', and not begin with '.' or '-'")
    registry, repository = _split(rest)
    _check_name(text, registry, repository)
    if not tag and not digest:
        tag = DEFAULT_TAG
    return Reference(registry, repository, tag, digest)


def _bad(text: str, why: str) -> UsageError:
    shown = text if len(text) <= 80 else text[:77] + "..."
    return UsageError(f"invalid reference format: {shown!r}: {why}")


def _split(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    is_host = slash and ("." in first or ":" in first or first == "localhost" or first.lower() != first)
    registry, repository = (first, rest) if is_host else (DEFAULT_REGISTRY, name)
    if registry == "index.docker.io":
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and repository and "/" not in repository:
        repository = "library/" + repository
    return registry, repository


def _check_name(text: str, registry: str, repository: str) -> None:
    if not repository:
        raise _bad(text, "no repository name; expected [HOST[:PORT]/]NAME[:TAG][@DIGEST]")
    if repository.lower() != repository:
        raise _bad(text, "repository name must be lowercase")
    if len(registry) + 1 + len(repository) > NAME_MAX:
        raise _bad(text, f"repository name must not be more than {NAME_MAX} characters")
    if not _is_domain(registry):
        raise _bad(text, f"{registry!r} is not a host name with an optional port")
    for component in repository.split("/"):
        if not _is_component(component):
            raise _bad(text, f"repository component {component!r} must be lower-case letters and digits, separated by '.', '_', '__' or dashes")
    bare = repository.removeprefix("library/") if registry == DEFAULT_REGISTRY else ""
    if len(bare) == 64 and is_hex(bare):
        raise _bad(text, "64 hexadecimal digits are an image id, not a repository name")


def _is_tag(tag: str) -> bool:
    return 0 < len(tag) <= TAG_MAX and _TAG.issuperset(tag) and tag[0] not in ".-"


def _is_domain(domain: str) -> bool:
    if domain.startswith("["):  # an IPv6 address in brackets
        host, bracket, port = domain[1:].partition("]")
        if not bracket or not host or not frozenset("0123456789abcdefABCDEF:").issuperset(host) or (port and not port.startswith(":")):
            return False
        return not port or _is_port(port[1:])
    host, colon, port = domain.partition(":")
    if colon and not _is_port(port):
        return False
    return all(part and frozenset("-").union(_ALNUM).issuperset(part) and part[0] != "-" and part[-1] != "-" for part in host.split("."))


def _is_port(port: str) -> bool:
    return 0 < len(port) <= 5 and frozenset("0123456789").issuperset(port) and 0 < int(port) < 65536


def _is_component(component: str) -> bool:
    if not component or component[0] not in _LOWER_DIGIT or component[-1] not in _LOWER_DIGIT:
        return False
    run = ""  # the separator being read: one '.', one or two '_', or any number of '-'
    for letter in component:
        if letter in _LOWER_DIGIT:
            run = ""
            continue
        run += letter
        if run not in (".", "_", "__") and run.strip("-"):
            return False
    return True
