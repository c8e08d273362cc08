"""What a user asks of `-v`, and an image of VOLUME: strings to plain requests, in Docker's grammar and words. Makes and looks at nothing.

`name:/path[:options]` is a named volume, made when missing; `/host/path:/path[:options]` (or `./relative:…`) a bind of the host's own, a missing
directory made; `/path` an anonymous volume.
"""

from __future__ import annotations

import os

from utsuwa.errors import UsageError
from utsuwa.spec.mount import PROC_FILES

PROPAGATION = frozenset({"private", "rprivate", "slave", "rslave", "shared", "rshared"})
_GROUPS: dict[str, str] = {
    "ro": "access", "rw": "access", "z": "label", "Z": "label", "nocopy": "copy", "consistent": "consistency", "cached": "consistency", "delegated": "consistency",
    "U": "owner", **dict.fromkeys(PROPAGATION, "propagation"),
}
"""Option → what it is about; of each group one may be given. z and Z relabel for SELinux: without it they do nothing, as in Docker. U is Podman's."""
_ALNUM = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_NAME = _ALNUM | frozenset("_.-")
NAME_MAX, PATH_MAX = 255, 4095


class Request:
    """One mount. `kind` is bind or volume; `source` a path of the host, a volume's name, or "" for an anonymous volume."""

    __slots__ = ("destination", "kind", "options", "source")

    def __init__(self, kind: str, source: str, destination: str, options: tuple[str, ...] = ()) -> None:
        self.kind, self.source, self.destination, self.options = kind, source, destination, options

    @property
    def readonly(self) -> bool:
        return "ro" in self.options

    @property
    def propagation(self) -> str:
        return next((option for option in self.options if option in PROPAGATION), "" if self.kind == "volume" else "rprivate")


def parse(text: str) -> Request:
    """Return what one -v says. Raises UsageError."""
    if not text:
        raise UsageError("invalid empty volume spec")
    parts = text.split(":")
    if "" in parts or "\0" in text:
        raise UsageError(f"invalid spec: {text!r}: a NUL character" if "\0" in text else f"invalid spec: {text}: empty section between colons")
    if len(parts) > 3 or (len(parts) == 2 and _are_options(parts[1])):
        raise UsageError(f"invalid volume specification: '{text}'")
    options = tuple(parts[2].split(",")) if len(parts) == 3 else ()
    if not _are_options(",".join(options)):
        raise UsageError(f"invalid mode: {parts[2]}")
    source, destination = (parts[0], parts[1]) if len(parts) > 1 else ("", parts[0])
    if source.startswith("."):
        source = os.path.abspath(source)
    kind = "bind" if source.startswith("/") else "volume"
    _check(text, kind, source, destination, options)
    return Request(kind, os.path.normpath(source) if kind == "bind" else source, clean(destination), options)


def _are_options(text: str) -> bool:
    """Whether all words are options, and no two of one group."""
    groups = [_GROUPS.get(word, "") for word in text.split(",")] if text else []
    return all(groups) and len(groups) == len(set(groups))


def _check(text: str, kind: str, source: str, destination: str, options: tuple[str, ...]) -> None:
    why = check_destination(destination)
    if kind == "volume" and PROPAGATION.intersection(options):
        why = why or "field BindOptions must not be specified"
    if kind == "bind" and "nocopy" in options:
        why = why or "field VolumeOptions must not be specified"
    if why:
        raise UsageError(f"invalid volume specification: '{text}': invalid mount config for type \"{kind}\": {why}")
    if kind == "volume" and source:
        check_name(source)


def check_destination(path: str) -> str:
    """Return why a path in a container cannot be mounted on, "" when it can."""
    if clean(path) == "/":
        return "invalid specification: destination can't be '/'"
    if not path.startswith("/"):
        return f"invalid mount path: '{path}' mount path must be absolute"
    if clean(path) == "/proc" or (clean(path).startswith("/proc/") and clean(path) not in PROC_FILES):
        return f"'{path}' is inside /proc, which is the container's own"
    return "invalid mount path: it is too long or has a NUL character" if "\0" in path or len(path) > PATH_MAX else ""


def clean(path: str) -> str:
    """Return a path as Go's path.Clean does: no double slash, no `.`, `..` taken away by name alone."""
    path = os.path.normpath(path)
    return path[1:] if path.startswith("//") else path


def check_name(name: str) -> str:
    """Return a volume's name. Raises UsageError in Docker's words: it becomes a directory's name, so nothing else may pass."""
    if len(name) == 1:
        raise UsageError(f"create {name}: volume name is too short, names should be at least two alphanumeric characters")
    if not name or name[0] not in _ALNUM or not _NAME.issuperset(name):
        raise UsageError(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. '
            "If you intended to pass a host directory, use absolute path",
        )
    if len(name) > NAME_MAX:
        raise UsageError(f"create {name[:20]}…: volume name has {len(name)} characters, {NAME_MAX} are allowed")
    return name


def collect(specs: list[str], image_volumes: list[str]) -> list[Request]:
    """Return all mounts: the user's, then the image's VOLUMEs where the user mounts nothing. Raises UsageError."""
    found: dict[str, Request] = {}
    for spec in specs:
        request = parse(spec)
        if request.destination in found:
            raise UsageError(f"Duplicate mount point: {request.destination}")
        found[request.destination] = request
    for path in sorted(image_volumes):
        why = check_destination(path)
        if why:
            raise UsageError(f"invalid volume {path!r} in the image: {why}")
        found.setdefault(clean(path), Request("volume", "", clean(path)))
    return list(found.values())
