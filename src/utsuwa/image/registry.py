"""A client for the OCI distribution API: manifests and blobs of one repository, over urllib3.

Redirects are followed here and not by the library, so that nothing secret crosses to another host; every read is bounded; a blob's
bytes are yielded as they come, resumed where a connection drops, and hashed by the caller. OCI distribution-spec, "Pull".
"""

from __future__ import annotations

import threading
import time

from utsuwa.errors import ImageError, IntegrityError, NotFound, RegistryError
from utsuwa.image import auth
from utsuwa.image.document import INDEX_TYPES, MANIFEST_BYTES, MANIFEST_TYPES
from utsuwa.spec.reference import is_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from urllib3 import BaseHTTPResponse, PoolManager

    from utsuwa.image.document import Descriptor
    from utsuwa.spec.reference import Reference

CHUNK = 1 << 18
CONNECT_SECONDS, READ_SECONDS = 15.0, 60.0
REDIRECTS = 5
TRIES = 5
"""A request, or a stretch of a blob without progress, is tried so often."""
SLOWEST, GRACE_SECONDS = 1024, 60.0
"""Bytes per second that a blob must come with on average after the grace: a drip-fed pull ends."""
_BACKOFF = (0.0, 0.1, 0.3, 1.0, 2.0)
_REDIRECT = frozenset({301, 302, 303, 307, 308})
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_ACCEPT = ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))


class Registry:
    """One repository of one registry. Safe to use from several threads; `close` when done."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.name = reference.registry
        self._api = auth.API_HOSTS.get(self.name, self.name)
        self._scheme = "http" if auth.is_loopback(self.name) else "https"
        self._authorization = ""
        self._lock = threading.Lock()
        self._pool: PoolManager | None = None

    def close(self) -> None:
        """Close the connections. Idempotent."""
        if self._pool is not None:
            self._pool.clear()

    # -------------------------------------------------------------------------------------------------- public

    def manifest(self, what: str) -> tuple[bytes, str]:
        """Return (bytes, media type or "") of a manifest or index by tag or digest, unverified but for its size. Raises RegistryError, NotFound."""
        response = self._get(f"manifests/{what}", {"Accept": _ACCEPT})
        try:
            data = _bounded(response, MANIFEST_BYTES, f"the manifest of {self.reference.familiar}")
        finally:
            response.release_conn()
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
        promised = response.headers.get("Docker-Content-Digest", "")
        if promised:
            from utsuwa.image.document import digest_of

            if not is_digest(promised) or digest_of(data, promised.partition(":")[0]) != promised:
                raise IntegrityError(f"the manifest of {self.reference.familiar} is not what was promised: its digest is not {promised[:100]!r}")
        return data, "" if kind in ("application/json", "text/plain", "application/octet-stream") else kind

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """Yield the bytes of a blob, exactly `size` of them, unverified. Raises RegistryError, IntegrityError.

        A connection that drops is made again and the blob resumed where it stood; after TRIES without a byte of progress it is given up.
        """
        at, tries, started = 0, 0, time.monotonic()
        while at < descriptor.size:
            before = at
            try:
                for chunk in self._stretch(descriptor, at):
                    at += len(chunk)
                    if at > descriptor.size:
                        raise IntegrityError(f"{short(descriptor.digest)} is longer than the {descriptor.size} bytes that were promised")
                    passed = time.monotonic() - started
                    if passed > GRACE_SECONDS and at < passed * SLOWEST:
                        raise RegistryError(f"registry {self.name} is too slow: {at} bytes of {short(descriptor.digest)} in {passed:.0f} s")
                    yield chunk
            except _Dropped as error:
                tries = 1 if at > before else tries + 1
                if tries >= TRIES:
                    raise RegistryError(f"cannot download {short(descriptor.digest)} from {self.name}: {error}; {at} of {descriptor.size} bytes came") from None
                time.sleep(_BACKOFF[tries])

    def _stretch(self, descriptor: Descriptor, at: int) -> Iterator[bytes]:
        """Yield the blob from `at` to where the connection ends; raises _Dropped where that is too early."""
        response = self._get(f"blobs/{descriptor.digest}", {"Range": f"bytes={at}-"} if at else {})
        skip = at if response.status == 200 else 0  # a server without ranges starts over
        whole = False
        try:
            self._check_length(response, descriptor, at, at - skip)
            for chunk in _chunks(response):
                if skip >= len(chunk):
                    skip -= len(chunk)
                    continue
                yield chunk[skip:] if skip else chunk
                at += len(chunk) - skip
                skip = 0
            whole = at >= descriptor.size
        finally:
            (response.release_conn if whole else response.close)()
        if not whole:
            raise _Dropped("the connection ended early")

    def _check_length(self, response: BaseHTTPResponse, descriptor: Descriptor, at: int, start: int) -> None:
        """Check what the headers say of a part that should begin at `at` (a resumed one) and does at `start`."""
        if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {at}-"):
            raise RegistryError(f"registry {self.name} resumes {short(descriptor.digest)} at another place than asked")
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and int(length) != descriptor.size - start:
            raise IntegrityError(f"{short(descriptor.digest)} is not what was promised: {int(length) + start} bytes instead of {descriptor.size}")

    # ----------------------------------------------------------------------------------------- requests

    def _get(self, path: str, headers: dict[str, str]) -> BaseHTTPResponse:
        """GET a path of the repository, with what the registry wants to see of us, redirects followed. Returns a response of 200 or 206."""
        for challenged in (False, False, True):
            url = f"{self._scheme}://{self._api}/v2/{self.reference.repository}/{path}"
            used = self._authorization
            response = self._follow(url, {**headers, **({"Authorization": used} if used else {})}, path)
            if response.status == 400 and self._scheme == "http":  # "client sent an HTTP request to an HTTPS server", as Go's says
                response.drain_conn()
                self._scheme = "https"
                continue
            if response.status == 401 and not challenged:
                header = response.headers.get("WWW-Authenticate", "")
                response.drain_conn()
                self._authorize(header, used)
                continue
            if response.status in (200, 206):
                return response
            raise self._refusal(response, path)
        raise AssertionError("unreachable")

    def _follow(self, url: str, headers: dict[str, str], path: str) -> BaseHTTPResponse:
        for _ in range(REDIRECTS + 1):
            response = self._send(url, headers)
            if response.status not in _REDIRECT:
                return response
            from urllib.parse import urljoin

            target = urljoin(url, response.headers.get("Location", ""))
            response.drain_conn()
            if not auth.same_origin(url, target):
                auth.check_target(target, self.name)
                headers = {key: value for key, value in headers.items() if key != "Authorization"}
            url = target
        raise RegistryError(f"registry {self.name} redirects {path[:80]} more than {REDIRECTS} times")

    def _send(self, url: str, headers: dict[str, str]) -> BaseHTTPResponse:
        """Make one GET; transient failures are tried again. Raises RegistryError."""
        import urllib3

        pool = self._connect()
        for attempt in range(TRIES):
            try:
                response = pool.request("GET", url, headers={"User-Agent": "utsuwa", "Accept-Encoding": "identity", **headers}, redirect=False, retries=False, preload_content=False, decode_content=False)
            except urllib3.exceptions.HTTPError as error:
                if not isinstance(error, urllib3.exceptions.ProtocolError) or attempt + 1 == TRIES:
                    raise self._unreachable(url, error) from None
            except ValueError:
                raise RegistryError(f"registry {self.name} sends us to an address that cannot be used: {url[:100]!r}") from None
            else:
                if response.status not in _TRANSIENT or attempt + 1 == TRIES:
                    return response
                response.drain_conn()
            time.sleep(_BACKOFF[attempt])
        raise AssertionError("unreachable")

    def _connect(self) -> PoolManager:
        with self._lock:
            if self._pool is None:
                import urllib3

                self._pool = urllib3.PoolManager(num_pools=8, maxsize=4, timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS))
            return self._pool

    def _authorize(self, header: str, used: str) -> None:
        """Answer a challenge, once for all threads. Raises RegistryError where there is no answer."""
        with self._lock:
            if self._authorization != used:
                return  # another thread has just done it
        scheme, parameters = auth.parse_challenge(header)
        if scheme == "bearer" and parameters.get("realm"):
            authorization = self._token(parameters)
        elif scheme == "basic":
            found = auth.credentials_for(self.name)
            if found is None:
                raise RegistryError(f"registry {self.name} wants credentials, and there are none for it; log in with: docker login {self.name}")
            authorization = auth.basic(found)
        else:
            raise RegistryError(f"registry {self.name} asks for an authentication that is not known: {header[:60]!r}")
        with self._lock:
            self._authorization = authorization

    def _token(self, parameters: dict[str, str]) -> str:
        from urllib.parse import urlencode

        from utsuwa.image.document import parse_json

        realm = parameters["realm"]
        netloc = auth.check_target(realm, self.name)
        query = urlencode({"service": parameters.get("service", ""), "scope": f"repository:{self.reference.repository}:pull"})
        found = auth.credentials_for_realm(self.name, self._api, netloc)
        response = self._follow(f"{realm}{'&' if '?' in realm else '?'}{query}", {"Authorization": auth.basic(found)} if found else {}, "token")
        if response.status != 200:
            raise self._refusal(response, "token")
        answer = parse_json(_bounded(response, auth.TOKEN_BYTES, f"the token of {netloc}"), f"the token of {netloc}")
        response.release_conn()
        token = answer.get("token") or answer.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise RegistryError(f"malformed answer: the token server {netloc} gave no token")
        return f"Bearer {token}"

    # ------------------------------------------------------------------------------------------------ errors

    def _unreachable(self, url: str, error: Exception) -> RegistryError:
        from urllib.parse import urlsplit

        host = urlsplit(url).netloc.rpartition("@")[2][:100]
        return RegistryError(f"cannot reach registry {host}: {_reason(error)}; is it up, and its name right?")

    def _refusal(self, response: BaseHTTPResponse, path: str) -> ImageError | NotFound:
        """Word a status that is no success. The registry's own message is quoted, bounded and without control characters."""
        said = _message(response)
        response.close()
        familiar = self.reference.familiar
        if response.status in (401, 403):
            return RegistryError(f"pull access denied for {self.reference.familiar_base}, repository does not exist or may require 'docker login'{said}")
        if response.status == 404 and path.startswith("manifests/"):
            return NotFound(f"manifest for {familiar} not found{said or ': manifest unknown'}")
        if response.status == 404:
            return RegistryError(f"registry {self.name} has the image {familiar} but not all of it: {path[:100]} not found")
        return RegistryError(f"registry {self.name} answers {response.status} to {path[:100]}{said}")


class _Dropped(Exception):
    """A connection ended before the blob did."""


def short(digest: str) -> str:
    """Return a digest as people read it: its first twelve digits."""
    return digest.partition(":")[2][:12]


def _chunks(response: BaseHTTPResponse) -> Iterator[bytes]:
    import urllib3

    try:
        while chunk := response.read(CHUNK, decode_content=False):
            yield chunk
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _Dropped(_reason(error)) from None


def _bounded(response: BaseHTTPResponse, most: int, what: str) -> bytes:
    """Return the body. Raises RegistryError for one of more than `most` bytes, whatever its header says."""
    data = b""
    try:
        for chunk in _chunks(response):
            data += chunk
            if len(data) > most:
                response.close()
                raise RegistryError(f"malformed answer: {what} has more than {most} bytes")
    except _Dropped as error:
        raise RegistryError(f"cannot download {what}: {error}") from None
    return data


def _reason(error: Exception) -> str:
    """Return the cause at the bottom of urllib3's nesting, as the system words it."""
    import socket

    cause: BaseException = error
    for _ in range(8):
        inner = next((item for item in (getattr(cause, "reason", None), cause.__cause__, *cause.args) if isinstance(item, BaseException)), None)
        if inner is None or isinstance(cause, socket.gaierror):
            break
        cause = inner
    if isinstance(cause, socket.gaierror):
        return "no such host"
    if isinstance(cause, TimeoutError) or "timed out" in str(cause):
        return "no answer in time"
    text = (cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)).lower()
    return clean_text(text.partition(": ")[2] if text.startswith("<") else text)


def _message(response: BaseHTTPResponse) -> str:
    import json

    try:
        data = response.read(4096, decode_content=False)
        first = json.loads(data)["errors"][0]
        text = f"{first.get('code', '')}: {first.get('message', '')}".strip(": ").lower().replace("_", " ")
    except Exception:  # noqa: BLE001 - whatever a stranger sent, the status alone is then the message
        return ""
    return ": " + clean_text(text) if text else ""


def clean_text(text: str) -> str:
    """Return a stranger's text fit for one line of a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:200])
