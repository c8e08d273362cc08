"""Who may be told what: loopback, credentials, and the challenge of a 401. Decides; registry.py sends.

Three rules (CVE-2019-10214, CVE-2020-15157, CVE-2026-33540): credentials are those of the very host that gets them; they travel over TLS, or
on loopback; and a registry elsewhere cannot send us to loopback or to plain HTTP.
"""

from __future__ import annotations

import os

from utsuwa.errors import RegistryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    Credentials = tuple[str, str]

API_HOSTS = {"docker.io": "registry-1.docker.io"}
"""Registries whose API is on another host than their name. Docker Hub's name in references is not a host at all."""
_AUTH_KEYS = {
    "docker.io": ("https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io"),
}
_REALMS = {"docker.io": frozenset({"auth.docker.io"})}
"""Token servers, other than the registry's own host, that a registry's credentials may go to."""
TOKEN_BYTES = 1 << 20


def host_of(netloc: str) -> str:
    """Return the host of HOST[:PORT], lower case, without brackets."""
    if netloc.startswith("["):
        return netloc[1:].partition("]")[0].lower()
    return netloc.partition(":")[0].lower()


def is_loopback(netloc: str) -> bool:
    """Whether HOST[:PORT] is this machine by its spelling: localhost, 127.0.0.0/8 or ::1. No name is looked up."""
    from ipaddress import ip_address

    host = host_of(netloc)
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def check_target(url: str, registry: str) -> str:
    """Return the HOST[:PORT] of a URL that the registry sends us to. Raises RegistryError for one that it may not."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    netloc = parts.netloc.rpartition("@")[2]
    if parts.scheme not in ("http", "https") or not netloc or any(ord(letter) <= 32 or ord(letter) > 126 for letter in url):
        raise RegistryError(f"registry {registry} sends us to {url[:100]!r}, which is not an address")
    if not is_loopback(registry) and (parts.scheme == "http" or is_loopback(netloc)):
        raise RegistryError(f"registry {registry} sends us to {parts.scheme}://{netloc[:100]}; refused: only a registry on this machine may use plain HTTP or loopback")
    if is_loopback(registry) and parts.scheme == "http" and not is_loopback(netloc):
        raise RegistryError(f"registry {registry} sends us to http://{netloc[:100]}; refused: plain HTTP is for loopback only")
    return netloc


def parse_challenge(header: str) -> tuple[str, dict[str, str]]:
    """Return (scheme in lower case, parameters) of the first WWW-Authenticate challenge. RFC 9110, section 11.6.1."""
    scheme, _, rest = header.strip()[:4096].partition(" ")
    parameters: dict[str, str] = {}
    while rest:
        key, equals, rest = rest.strip(" ,").partition("=")
        if not equals:
            break
        if rest.startswith('"'):
            value, _, rest = rest[1:].partition('"')
        else:
            value, _, rest = rest.partition(",")
        parameters[key.strip().lower()] = value.strip()
    return scheme.lower(), parameters


def config_file() -> str:
    """Return the path of Docker's own configuration: DOCKER_CONFIG, else ~/.docker."""
    return os.environ.get("DOCKER_CONFIG", "") + "/config.json" if os.environ.get("DOCKER_CONFIG") else os.path.expanduser("~/.docker/config.json")


def credentials_for(registry: str) -> Credentials | None:
    """Return (user, password) that `docker login` stored for exactly this registry; None where there are none.

    Credential helpers are not run. Raises RegistryError for a file that cannot be read as what it should be.
    """
    import json
    from base64 import b64decode

    try:
        with open(config_file(), "rb") as file:
            auths = json.loads(file.read(TOKEN_BYTES)).get("auths") or {}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, RecursionError):
        raise RegistryError(f"cannot read the credentials in {config_file()}; repair or remove it") from None
    for key in _AUTH_KEYS.get(registry, (registry, f"https://{registry}", f"https://{registry}/", f"https://{registry}/v1/", f"https://{registry}/v2/")):
        entry = auths.get(key)
        if isinstance(entry, dict) and isinstance(entry.get("auth"), str) and entry["auth"]:
            try:
                user, colon, password = b64decode(entry["auth"], validate=True).decode().partition(":")
            except ValueError:
                colon = ""
            if not colon:
                raise RegistryError(f"cannot read the credentials of {registry} in {config_file()}; log in again") from None
            return user, password
    return None


def credentials_for_realm(registry: str, api: str, realm: str) -> Credentials | None:
    """Return what may be told to a token server at `realm` (HOST[:PORT]): the registry's own credentials only if it is the registry's own host.

    Else those stored for the token server itself: a registry cannot have its credentials carried to a host that it names (CVE-2026-33540).
    """
    if realm.lower() == api.lower() or realm.lower() in _REALMS.get(registry, ()):
        return credentials_for(registry)
    return credentials_for(realm)


def basic(credentials: Credentials) -> str:
    """Return the value of an Authorization header. RFC 7617."""
    from base64 import b64encode

    return "Basic " + b64encode(":".join(credentials).encode()).decode()


def same_origin(one: str, other: str) -> bool:
    """Whether two URLs have the same scheme, host and port: only then may a secret go on. RFC 6454."""
    from urllib.parse import urlsplit

    def origin(url: str) -> tuple[str, str | None, int | None]:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)

    try:
        return origin(one) == origin(other)
    except ValueError:
        return False
